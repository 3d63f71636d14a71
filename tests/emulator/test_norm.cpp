//! norm.cu and sums.cu's sum_chunks against float64.
#include "cells.h"

#include "../../kernels/sums.cu"
#define ELEM bf16
namespace of_bf16 {
#include "../../kernels/norm.cu"
}
#undef ELEM
#define ELEM f16
namespace of_f16 {
#include "../../kernels/norm.cu"
}
#undef ELEM
#define ELEM f32
namespace of_f32 {
#include "../../kernels/norm.cu"
}
#undef ELEM

using namespace testing;

struct Shape {
  i64 rows;
  int parts;
  i64 n;
};
// Parts for a warp, for a block, and with more features than a block's registers hold sums of.
constexpr Shape SHAPES[] = {{1, 1, 1}, {3, 2, 5}, {5, 3, 128}, {9, 1, 1024}, {4, 2, 1029}, {3, 1, 2056}, {3, 1, 8219}};

template <class E>
void test(Report& report) {
  Random random(3);
  for (Shape shape : SHAPES)
    for (const Layout& layout : LAYOUTS) {
      auto [rows, parts, n] = shape;
      if (report.quick() && n > 2048 && layout.lead == 0 && layout.gap > 0) continue;
      std::string what = std::string(name_of<E>()) + " " + std::to_string(rows) + "x" + std::to_string(parts) + "x" +
                         std::to_string(n) + " " + layout.name;
      i64 cols = parts * n;
      Matrix<E> x = normal<E>(rows, cols, layout, random, 2), dy = normal<E>(rows, cols, layout, random);
      Matrix<E> weight = normal<E>(1, n, layout, random), before = normal<E>(rows, cols, layout, random, 0.1);
      // The gradient of a single feature is all cancellation if eps is small.
      f32 eps = rows == 3 ? 0 : n == 1 ? 20 : 1e-2f;
      // A part of zeros, whose root is 0 without eps.
      for (i64 c = 0; c < n && rows > 1; c++) x.at(1, cols - n + c) = round<E>(0);
      std::vector<double> y(rows * cols), reciprocal, added, written, dweight(n);
      Matrix<f32> known = matrix<f32>(rows, parts, layout);
      for (i64 r = 0; r < rows; r++)
        for (i64 part = 0; part < parts; part++) {
          double squares = 0, dot = 0;
          auto at = [&, n = n](i64 c) { return part * n + c; };
          for (i64 c = 0; c < n; c++) squares += value(x.at(r, at(c))) * value(x.at(r, at(c)));
          double root = sqrt(squares / n + eps), of_root = root == 0 ? 0 : 1 / root;
          reciprocal.push_back(of_root);
          known.at(r, part) = (f32)of_root;
          for (i64 c = 0; c < n; c++) {
            double xs = value(x.at(r, at(c))), ds = value(dy.at(r, at(c))), w = value(weight.at(0, c));
            y[r * cols + at(c)] = xs * of_root * w;
            dot += xs * ds * w;
            dweight[c] += ds * xs * of_root;
          }
          for (i64 c = 0; c < n; c++) {
            double xs = value(x.at(r, at(c))), ds = value(dy.at(r, at(c))), w = value(weight.at(0, c));
            written.push_back(of_root * (w * ds - xs * of_root * of_root * dot / n));
            added.push_back(written.back() + value(before.at(r, at(c))));
          }
        }

      std::vector<unsigned> grids = n > 2048 ? std::vector<unsigned>{1, 3} : std::vector<unsigned>{1, 3, 17};
      sweep(report, "rms_norm " + what, grids, ALLOWED, [&, parts = parts](unsigned grid, emu::Options options) {
        Matrix<E> got = matrix<E>(rows, cols, layout);
        Matrix<f32> of_root = matrix<f32>(rows, parts, layout);
        auto why = emu::launch(grid, 128, 0, options, [&] {
          OF(E, rms_norm)(
              std::as_const(x).view(), std::as_const(weight).view(), parts, eps, got.view(), of_root.view()
          );
        });
        double error = error_of(got, y);
        error = std::max(error, relative_error(of_root.values(), reciprocal));
        bool untouched = got.padding_untouched() && of_root.padding_untouched();
        return Outcome{why, error, untouched, got.print() ^ of_root.print()};
      });

      for (bool accumulate : {false, true}) {
        std::map<unsigned, uint64_t> sums;
        auto backward = [&](unsigned grid, emu::Options options) {
          Matrix<E> dx = accumulate ? copy_of(before) : matrix<E>(rows, cols, layout);
          Matrix<f32> partials(grid, n);
          auto why = emu::launch(grid, BLOCK, 0, options, [&] {
            OF(E, rms_norm_backward)(
                std::as_const(x).view(), std::as_const(weight).view(), std::as_const(known).view(),
                std::as_const(dy).view(), dx.view(), accumulate, partials.data()
            );
          });
          Matrix<f32> got = matrix<f32>(1, n, layout);
          std::vector<double> want = dweight;
          for (i64 c = 0; c < n; c++) {
            got.at(0, c) = (f32)(c % 7);
            want[c] += c % 7;
          }
          if (why.empty()) {
            why = emu::launch(2, BLOCK, 0, options, [&] { sum_chunks(partials.data(), grid, got.view()); });
          }
          // Sums depend on the number of chunks, which is the grid, but on nothing else.
          if (!sums.emplace(grid, got.print()).second && sums[grid] != got.print()) why = "bits of sums differ";
          double error = error_of(dx, accumulate ? added : written);
          error = std::max(error, relative_error(got.values(), want));
          bool untouched = dx.padding_untouched() && partials.padding_untouched() && got.padding_untouched();
          return Outcome{why, error, untouched, dx.print()};
        };
        sweep(report, "rms_norm_backward " + what, grids, ALLOWED, backward);
      }
    }

  // Where memory begins and rows are apart does not change bits.
  i64 n = 1096;
  Matrix<E> dense(5, n), weight(1, n);
  dense.fill_normal(random);
  weight.fill_normal(random);
  std::map<uint64_t, int> prints;
  for (const Layout& layout : LAYOUTS) {
    Matrix<E> x = matrix<E>(5, n, layout), y = matrix<E>(5, n, layout), dx = matrix<E>(5, n, layout);
    for (i64 r = 0; r < 5; r++)
      for (i64 c = 0; c < n; c++) x.at(r, c) = dense.at(r, c);
    Matrix<f32> reciprocal(5, 1), partials(2, n);
    auto why = emu::launch(2, 128, 0, {}, [&] {
      OF(E, rms_norm)(std::as_const(x).view(), std::as_const(weight).view(), 1, 0, y.view(), reciprocal.view());
    });
    why += emu::launch(2, BLOCK, 0, {}, [&] {
      OF(E, rms_norm_backward)(
          std::as_const(x).view(), std::as_const(weight).view(), std::as_const(reciprocal).view(),
          std::as_const(x).view(), dx.view(), false, partials.data()
      );
    });
    prints[y.print() ^ reciprocal.print() ^ dx.print() ^ partials.print()]++;
    report.check(std::string("layouts ") + name_of<E>() + " " + layout.name, why, (double)prints.size() - 1, 0);
  }
}

int main(int argc, char** argv) {
  Report report("norm", argc, argv);
  test<bf16>(report);
  test<f16>(report);
  test<f32>(report);
  return report.finish();
}
