//! optimizer.cu against float64, and the sum of what its blocks found.
#include "cells.h"

#include "../../kernels/sums.cu"
#define ELEM bf16
namespace of_bf16 {
#include "../../kernels/optimizer.cu"
}
#undef ELEM
#define ELEM f16
namespace of_f16 {
#include "../../kernels/optimizer.cu"
}
#undef ELEM
#define ELEM f32
namespace of_f32 {
#include "../../kernels/optimizer.cu"
}
#undef ELEM

using namespace testing;

const std::vector<unsigned> GRIDS = {1, 3, 17};

template <class E>
void squares(Report& report) {
  Random random(8);
  for (i64 count : {1, 5, 700, 5003}) {
    Matrix<f32> x = normal<f32>(1, count, LAYOUTS[2], random);
    if (count == 5) x.at(0, 0) = 3e30f;  // its square is no f32
    double want = 0;
    for (i64 i = 0; i < count; i++) want += (double)x.at(0, i) * x.at(0, i);
    auto attempt = [&](unsigned grid, emu::Options options) {
      Matrix<f64> partials(1, grid), got(1, 1);
      auto why = emu::launch(grid, BLOCK, 0, options, [&] {
        OF(E, sum_of_squares)(x.data(), count, partials.data());
      });
      why += emu::launch(1, BLOCK, 0, options, [&] { sum_f64(partials.data(), grid, 0, got.data()); });
      bool untouched = partials.padding_untouched() && got.padding_untouched();
      return Outcome{why, fabs(got.at(0, 0) / want - 1), untouched, got.print()};
    };
    sweep(report, "sum_of_squares " + described<E>(1, count, LAYOUTS[2]), GRIDS, 1e-13, attempt, false);
  }
}

template <class E>
void test(Report& report) {
  using Options = std::conditional_t<
      std::is_same_v<E, bf16>, of_bf16::AdamwOptions,
      std::conditional_t<std::is_same_v<E, f16>, of_f16::AdamwOptions, of_f32::AdamwOptions>>;
  Random random(9);
  for (i64 count : {1, 5, 700, 5003})
    for (int kind = 0; kind < 4; kind++) {
      // No bound, a bound that binds, one that does not, a gradient that is not finite.
      Options options{0.9, 0.95, 1e-8, 0.1, kind == 0 ? 0 : kind == 2 ? 1e6 : 1};
      std::string what = "adamw " + described<E>(1, count, LAYOUTS[2]) + " kind " + std::to_string(kind);
      i64 decayed = count / 3;
      const Layout& layout = LAYOUTS[2];
      Matrix<f32> gradient = normal<f32>(1, count, layout, random), weights = normal<f32>(1, count, layout, random);
      Matrix<f32> mean = normal<f32>(1, count, layout, random, 0.1), square = matrix<f32>(1, count, layout);
      for (i64 i = 0; i < count; i++) square.at(0, i) = (f32)(0.01 + random.uniform());
      if (kind == 3) gradient.at(0, count / 2) = count == 5 ? NAN : INFINITY;
      f64 numbers[4] = {0.03, 7, 0, 12.5};
      for (i64 i = 0; i < count; i++) numbers[2] += (double)gradient.at(0, i) * gradient.at(0, i);

      double scale = options.clip > 0 ? std::min(1.0, options.clip / (sqrt(numbers[2]) + 1e-6)) : 1, sum = 0;
      std::vector<double> w, m, v;
      for (i64 i = 0; i < count; i++) {
        double g = gradient.at(0, i) * scale;
        m.push_back(0.9 * mean.at(0, i) + (1 - 0.9) * g);
        v.push_back(0.95 * square.at(0, i) + (1 - 0.95) * g * g);
        double step = 0.03 * (m[i] / (1 - pow(0.9, 7))) / (sqrt(v[i] / (1 - pow(0.95, 7))) + 1e-8);
        w.push_back(weights.at(0, i) * (i < decayed ? 1 - 0.03 * 0.1 : 1) - step);
        sum += w[i] * w[i];
      }

      // The sum depends on the number of chunks, which is the grid; weights and state do not.
      std::map<unsigned, uint64_t> sums;
      sweep(report, what, GRIDS, ALLOWED, [&](unsigned grid, emu::Options how) {
        Matrix<f32> gs = copy_of(gradient), ws = copy_of(weights), ms = copy_of(mean), vs = copy_of(square);
        Matrix<E> working = matrix<E>(1, count, layout);
        Matrix<f64> partials(1, grid), total(1, 1);
        auto why = emu::launch(grid, BLOCK, 0, how, [&] {
          OF(E, adamw)(
              options, decayed, numbers, gs.data(), ws.data(), ms.data(), vs.data(), working.data(), count,
              partials.data()
          );
        });
        why += emu::launch(1, BLOCK, 0, how, [&] { sum_f64(partials.data(), grid, 0, total.data()); });
        if (!sums.emplace(grid, total.print()).second && sums[grid] != total.print()) why = "bits of sums differ";
        double error = 0;
        if (kind == 3) {
          Matrix<E> untouched = matrix<E>(1, count, layout);
          bool same = gs.print() == gradient.print() && ws.print() == weights.print() && ms.print() == mean.print() &&
                      vs.print() == square.print() && working.print() == untouched.print() && total.at(0, 0) == 12.5;
          if (!same) why = "changed by a gradient that is not finite";
        } else {
          double of_means = std::max(relative_error(ms.values(), m), relative_error(vs.values(), v));
          double of_sum = relative_error(total.values(), std::vector<double>{sum});
          error = std::max({relative_error(ws.values(), w), of_means, of_sum});
          if (differing(gs.values(), std::vector<double>(count, 0))) why = "the gradient is not zero";
          if (differing(working.values(), rounded<E>(ws.values()))) why = "the working copy is not the weights";
        }
        bool untouched = gs.padding_untouched() && ws.padding_untouched() && ms.padding_untouched() &&
                         vs.padding_untouched() && working.padding_untouched() && partials.padding_untouched();
        uint64_t print = gs.print() ^ ws.print() * 3 ^ ms.print() * 5 ^ vs.print() * 7 ^ working.print() * 9;
        return Outcome{why, error, untouched, print};
      });
    }
}

int main(int argc, char** argv) {
  Report report("optimizer", argc, argv);
  squares<f32>(report);
  squares<bf16>(report);
  test<bf16>(report);
  test<f16>(report);
  test<f32>(report);
  return report.finish();
}
