//! attention_merge.cu and attention_delta.cu against float64.
#include "cells.h"

#include "../../kernels/attention.cuh"
#include "../../kernels/attention_merge.cu"
#define ELEM bf16
namespace of_bf16 {
#include "../../kernels/attention_delta.cu"
}
#undef ELEM
#define ELEM f16
namespace of_f16 {
#include "../../kernels/attention_delta.cu"
}
#undef ELEM
#define ELEM f32
namespace of_f32 {
#include "../../kernels/attention_delta.cu"
}
#undef ELEM

using namespace testing;

struct Case {
  i64 rows;
  ::Shape shape;
};
const Case CASES[] = {{1, {1, 1, 1, 1, 1}}, {5, {3, 1, 8, 40, 1}}, {7, {4, 2, 8, 33, 1}}, {3, {2, 2, 8, 256, 1}}};
const std::vector<unsigned> GRIDS = {1, 3, 40};

// log(exp(a) + exp(b)), and the share of b in it; nothing and nothing gives nothing.
f64 log_sum(f64 a, f64 b) { return a == -INFINITY ? b : b == -INFINITY ? a : fmax(a, b) + log1p(exp(-fabs(a - b))); }
f64 share(f64 a, f64 b) { return b == -INFINITY ? 0 : exp(b - log_sum(a, b)); }

void merge(Report& report, const Case& c, const Layout& layout) {
  auto [rows, shape] = c;
  int heads = shape.q_heads, width = shape.v_dim;
  Random random(rows);
  auto out = normal<f32>(rows, heads * width, layout, random);
  auto part_out = normal<f32>(rows, heads * width, layout, random);
  auto lse = normal<f32>(rows, heads, layout, random, 3), part_lse = normal<f32>(rows, heads, layout, random, 3);
  std::vector<f64> want, want_lse;
  for (i64 r = 0; r < rows; r++)
    for (int h = 0; h < heads; h++) {
      // Nothing in one part, in the other, in both; shares from all to none, and equal ones.
      int kind = (r * heads + h + rows) % 7;
      f32 &a = lse.at(r, h), &b = part_lse.at(r, h);
      if (kind == 0 || kind == 2) a = -INFINITY;
      if (kind == 1 || kind == 2) b = -INFINITY;
      if (kind == 3) b = a + 200;
      if (kind == 4) b = a - 200;
      if (kind == 5) b = a;
      f64 weight = share(a, b);
      for (int f = h * width; f < (h + 1) * width; f++) {
        // The result of nothing may be anything in a running result, and is not read of a part.
        if (a == -INFINITY && b != -INFINITY) out.at(r, f) = NAN;
        if (b == -INFINITY) part_out.at(r, f) = NAN;
        f64 x = out.at(r, f), y = part_out.at(r, f);
        want.push_back(weight == 0 ? x : weight == 1 ? y : x * (1 - weight) + y * weight);
      }
      want_lse.push_back(log_sum(a, b));
    }
  std::string name = "merge " + std::to_string(rows) + "x" + std::to_string(heads) + "x" + std::to_string(width) + " " +
                     layout.name;
  sweep(report, name, GRIDS, ALLOWED, [&](unsigned grid, emu::Options options) {
    auto y = copy_of(out), y_lse = copy_of(lse);
    std::string why = emu::launch(grid, BLOCK, 0, options, [&] {
      attention_merge(shape, y.view(), y_lse.view(), std::as_const(part_out).view(), std::as_const(part_lse).view());
    });
    f64 error = std::max(relative_error(y.values(), want), relative_error(y_lse.values(), want_lse));
    return Outcome{why, error, y.padding_untouched() && y_lse.padding_untouched(), y.print() * 31 + y_lse.print()};
  });
}

template <class E>
void delta(Report& report, const Case& c, const Layout& layout) {
  auto [rows, shape] = c;
  int heads = shape.q_heads, width = shape.v_dim;
  Random random(rows + 1);
  const auto out = normal<f32>(rows, heads * width, layout, random);
  const auto dout = normal<E>(rows, heads * width, layout, random);
  std::vector<f64> want;
  for (i64 r = 0; r < rows; r++)
    for (int h = 0; h < heads; h++) {
      want.push_back(0);
      for (int f = h * width; f < (h + 1) * width; f++) want.back() += value(out.at(r, f)) * value(dout.at(r, f));
    }
  std::string name = std::string("delta ") + name_of<E>() + " " + std::to_string(rows) + "x" + std::to_string(heads) +
                     "x" + std::to_string(width) + " " + layout.name;
  sweep(report, name, GRIDS, ALLOWED, [&](unsigned grid, emu::Options options) {
    auto y = matrix<f32>(rows, heads, layout);
    std::string why = emu::launch(grid, BLOCK, 0, options, [&] {
      OF(E, attention_delta)(shape, out.view(), dout.view(), y.view());
    });
    return Outcome{why, relative_error(y.values(), want), y.padding_untouched(), y.print()};
  });
}

int main(int argc, char** argv) {
  Report report("merge (attention_merge, attention_delta)", argc, argv);
  for (const Case& c : CASES)
    for (const Layout& layout : LAYOUTS) {
      merge(report, c, layout);
      delta<f32>(report, c, layout);
      delta<bf16>(report, c, layout);
      delta<f16>(report, c, layout);
    }
  return report.finish();
}
