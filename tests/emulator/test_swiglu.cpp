//! swiglu.cu against float64.
#include "cells.h"

#define ELEM bf16
namespace of_bf16 {
#include "../../kernels/swiglu.cu"
}
#undef ELEM
#define ELEM f16
namespace of_f16 {
#include "../../kernels/swiglu.cu"
}
#undef ELEM
#define ELEM f32
namespace of_f32 {
#include "../../kernels/swiglu.cu"
}
#undef ELEM

using namespace testing;

const std::vector<unsigned> GRIDS = {1, 3, 29};

struct Shape {
  i64 rows, n;
};
constexpr Shape SHAPES[] = {{1, 1}, {3, 5}, {7, 64}, {2, 131}, {13, 24}};

template <class E>
void test(Report& report) {
  Random random(1);
  for (auto [rows, n] : SHAPES)
    for (const Layout& layout : LAYOUTS) {
      std::string what = described<E>(rows, n, layout);
      // Gate and up are halves of one matrix, as the layer has them.
      Matrix<E> both = normal<E>(rows, 2 * n, layout, random, 3);
      Matrix<E> dy = normal<E>(rows, n, LAYOUTS[random.below(3)], random);
      View<const E> gate = std::as_const(both).columns(0, n), up = std::as_const(both).columns(n, n);
      if (rows > 1) {
        // Where exponentials overflow or vanish.
        both.at(0, 0) = round<E>(-300);
        both.at(rows - 1, n - 1) = round<E>(300);
      }
      std::vector<double> y, gradient(2 * rows * n);
      for (i64 r = 0; r < rows; r++)
        for (i64 c = 0; c < n; c++) {
          double g = value(both.at(r, c)), u = value(both.at(r, n + c)), d = value(dy.at(r, c)), s = 1 / (1 + exp(-g));
          y.push_back(g * s * u);
          gradient[r * 2 * n + c] = d * u * (s + g * s * (1 - s));
          gradient[r * 2 * n + n + c] = d * g * s;
        }
      auto forward = [&, rows = rows, n = n](unsigned grid, emu::Options options) {
        Matrix<E> got = matrix<E>(rows, n, layout);
        auto why = emu::launch(grid, BLOCK, 0, options, [&] { OF(E, swiglu)(gate, up, got.view()); });
        return Outcome{why, error_of(got, y), got.padding_untouched(), got.print()};
      };
      sweep(report, "swiglu " + what, GRIDS, ALLOWED, forward);
      auto backward = [&, rows = rows, n = n](unsigned grid, emu::Options options) {
        Matrix<E> got = matrix<E>(rows, 2 * n, layout);
        auto why = emu::launch(grid, BLOCK, 0, options, [&] {
          OF(E, swiglu_backward)(gate, up, std::as_const(dy).view(), got.view());
        });
        return Outcome{why, error_of(got, gradient), got.padding_untouched(), got.print()};
      };
      sweep(report, "swiglu_backward " + what, GRIDS, ALLOWED, backward);
    }
}

int main(int argc, char** argv) {
  Report report("swiglu", argc, argv);
  test<bf16>(report);
  test<f16>(report);
  test<f32>(report);
  return report.finish();
}
