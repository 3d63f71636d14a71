//! loss.cu and sums.cu's sum_f64 against float64.
#include "cells.h"

#include "../../kernels/sums.cu"
#define ELEM bf16
namespace of_bf16 {
#include "../../kernels/loss.cu"
}
#undef ELEM
#define ELEM f16
namespace of_f16 {
#include "../../kernels/loss.cu"
}
#undef ELEM
#define ELEM f32
namespace of_f32 {
#include "../../kernels/loss.cu"
}
#undef ELEM

using namespace testing;

const std::vector<unsigned> GRIDS = {1, 3, 17};

struct Shape {
  i64 rows, vocab;
  double deviation;
};
constexpr Shape SHAPES[] = {{1, 1, 1}, {3, 2, 1}, {9, 37, 4}, {5, 2053, 4}, {4, 4096, 30}, {3, 6001, 4}};

template <class E>
void test(Report& report) {
  Random random(6);
  for (Shape shape : SHAPES)
    for (const Layout& layout : LAYOUTS)
      for (int has_scale : {0, 1}) {
        auto [rows, vocab, deviation] = shape;
        std::string what = described<E>(rows, vocab, layout) + (has_scale ? " gradient" : "");
        Matrix<E> logits = normal<E>(rows, vocab, layout, random, deviation);
        Matrix<i64> labels = matrix<i64>(rows, 1, layout);
        Matrix<f32> weights = matrix<f32>(rows, 1, layout);
        double scale = 0.3;
        std::vector<double> losses, gradient;
        for (i64 r = 0; r < rows; r++) {
          labels.at(r, 0) = (i64)random.below(vocab);
          weights.at(r, 0) = (f32)(0.5 + random.uniform());
          if (r == 1) {
            // Does not count, whatever it holds.
            labels.at(r, 0) = -100;
            weights.at(r, 0) = 0;
            for (i64 c = 0; c < vocab; c++) logits.at(r, c) = round<E>(NAN);
          }
          if (r == 2)
            for (i64 c = 0; c < vocab; c++) {
              // Large numbers, and nothing at all in stretches of a thread.
              bool none = c != labels.at(r, 0) && (c < 3000 || c % 3 == 0);
              logits.at(r, c) = round<E>(none ? -INFINITY : value(logits.at(r, c)) - (sizeof(E) > 2 ? 3e3 : 6e4));
            }
          double most = -INFINITY, total = 0, weight = weights.at(r, 0), at_label = 0;
          for (i64 c = 0; c < vocab; c++) most = std::max(most, value(logits.at(r, c)));
          for (i64 c = 0; c < vocab; c++) total += exp(value(logits.at(r, c)) - most);
          if (weight > 0) at_label = value(logits.at(r, labels.at(r, 0))) - most;
          losses.push_back(weight > 0 ? weight * (log(total) - at_label) : 0);
          for (i64 c = 0; c < vocab; c++) {
            double p = exp(value(logits.at(r, c)) - most) / total;
            gradient.push_back(weight > 0 ? scale * weight * (p - (c == labels.at(r, 0))) : 0);
          }
        }
        auto attempt = [&, rows = rows, has_scale = has_scale](unsigned grid, emu::Options options) {
          Matrix<E> x = copy_of(logits);
          Matrix<f64> got(1, rows);
          auto why = emu::launch(grid, BLOCK, 0, options, [&] {
            OF(E, cross_entropy)(
                x.view(), std::as_const(labels).view(), std::as_const(weights).view(), has_scale,
                has_scale ? scale : NAN, got.data()
            );
          });
          double error = relative_error(got.values(), losses);
          if (has_scale) {
            error = std::max(error, error_of(x, gradient));
          } else if (x.print() != logits.print()) {
            why = "logits changed";
          }
          return Outcome{why, error, x.padding_untouched() && got.padding_untouched(), x.print() ^ got.print()};
        };
        sweep(report, "cross_entropy " + what, GRIDS, ALLOWED, attempt);
      }

  // Numbers that must show, and a label that is none.
  for (int kind = 0; kind < 4; kind++) {
    Matrix<E> logits(1, 700);
    logits.fill_normal(random);
    Matrix<i64> labels(1, 1);
    labels.at(0, 0) = kind == 3 ? 700 : 5;
    Matrix<f32> weights(1, 1);
    weights.at(0, 0) = 1;
    if (kind == 0) logits.at(0, 699) = round<E>(NAN);
    if (kind == 1) logits.at(0, 3) = round<E>(INFINITY);
    if (kind == 2) logits.fill(-INFINITY);
    f64 loss = 0;
    auto why = emu::launch(1, BLOCK, 0, {}, [&] {
      OF(E, cross_entropy)(logits.view(), std::as_const(labels).view(), std::as_const(weights).view(), 1, 1, &loss);
    });
    report.check("a loss that is none " + std::to_string(kind), why, loss != loss ? 0 : 1, 0);
  }
}

void sum(Report& report) {
  Random random(7);
  for (i64 count : {1, 5, 255, 256, 257, 5000}) {
    std::vector<f64> values(count);
    double exact = 0;
    for (f64& x : values) exact += x = 1e3 * random.normal();
    for (int add : {0, 1}) {
      sweep(report, "sum_f64 " + std::to_string(count), {1}, 1e-13, [&](unsigned, emu::Options options) {
        f64 got = add ? 0.25 : NAN;
        auto why = emu::launch(1, BLOCK, 0, options, [&] { sum_f64(values.data(), count, add, &got); });
        return Outcome{why, fabs(got - exact - add * 0.25) / 1e3 / (double)count, true, fingerprint(&got, 8)};
      });
    }
  }
}

int main(int argc, char** argv) {
  Report report("loss", argc, argv);
  test<bf16>(report);
  test<f16>(report);
  test<f32>(report);
  sum(report);
  return report.finish();
}
