//! attention_general.cu against float64: masks, sizes, groups of heads, strides; the same bits on all schedules.
#include "attention_oracle.h"

#include "../../kernels/tile_products.cuh"
#define ELEM bf16
namespace of_bf16 {
#include "../../kernels/attention_general.cu"
}
#undef ELEM
#define ELEM f16
namespace of_f16 {
#include "../../kernels/attention_general.cu"
}
#undef ELEM
#define ELEM f32
namespace of_f32 {
#include "../../kernels/attention_general.cu"
}
#undef ELEM

using namespace testing;

// Scores of up to 40 amplify the rounding of log-sum-exps.
constexpr f64 BOUND = 3e-6;

struct Case {
  int queries, keys;
  ::Shape shape;
  const char* mask;
  int gap, lead;  // of all matrices
  int cut;        // rows of the first tile
  bool silent;    // some queries with cells have a log-sum-exp of -inf in the backward pass
};
const Case CASES[] = {
    {150, 150, {2, 1, 16, 24, 0.25f}, "causal", 0, 0, 64, true},
    {90, 200, {4, 2, 12, 20, -0.3f}, "holes", 4, 0, 64, false},
    {130, 121, {2, 2, 8, 8, 0.35f}, "empty rows", 3, 1, 17, false},
    {1, 1, {1, 1, 1, 1, 1}, "full", 0, 0, 64, false},
    {70, 133, {2, 2, 33, 7, 0.2f}, "full", 1, 3, 64, false},
    {140, 140, {2, 1, 16, 16, 3.0f}, "window", 0, 0, 33, true},
    {100, 100, {3, 1, 8, 12, 0.3f}, "documents", 2, 0, 64, false},
    {66, 9, {1, 1, 4, 5, 0.5f}, "nothing", 0, 1, 64, false},
    {40, 70, {1, 1, 200, 256, 0.07f}, "full", 0, 0, 64, false},
    {10, 65, {1, 1, 256, 65, 0.06f}, "causal", 0, 0, 64, false},
};

schedule::Attends mask_of(const char* name) {
  for (auto& mask : schedule::masks()) if (mask.name == name) return mask.attends;
  abort();
}

template <class E>
void test(Report& report, const Case& c) {
  auto attends = mask_of(c.mask);
  auto silent = [&](int i) { return c.silent && i % 7 == 3; };
  oracle::Inputs<E> x(c.shape, c.queries, c.keys, 5, c.gap, c.lead);
  oracle::Results want = oracle::attention(x, attends, silent);
  schedule::Schedule queries = schedule::of_queries(c.queries, c.keys, attends, {64, c.cut}, 64);
  schedule::Schedule keys = schedule::of_keys(c.queries, c.keys, attends, 64, {64, c.cut});
  std::string name = std::string(name_of<E>()) + " " + c.mask + " " + std::to_string(c.queries) + "x" +
                     std::to_string(c.keys) + " " + std::to_string(c.shape.qk_dim) + "/" +
                     std::to_string(c.shape.v_dim);
  report.check(name + ": queries' schedule", schedule::covers(queries, true, c.queries, c.keys, attends));
  report.check(name + ": keys' schedule", schedule::covers(keys, false, c.queries, c.keys, attends));
  auto rows = [&](i64 rows, i64 cols) { return Matrix<f32>(rows, cols, cols + c.gap, c.lead); };
  auto launch = [&](dim3 grid, emu::Options options, auto body) {
    return emu::launch(grid, THREADS, SHARED_BYTES, options, body);
  };

  oracle::sweep(report, "forward " + name, BOUND, [&](dim3 grid, emu::Options options) {
    Matrix<f32> out = rows(c.queries, c.shape.q_heads * c.shape.v_dim), lse = rows(c.queries, c.shape.q_heads);
    std::string why = launch(grid, options, [&] {
      OF(E, attention_forward_general)(c.shape, std::as_const(x.q).view(), std::as_const(x.kv).view(), queries.tiles(),
                                       out.view(), lse.view());
    });
    f64 error = std::max(relative_error(out.values(), want.out), relative_error(lse.values(), want.lse));
    return Outcome{why, error, out.padding_untouched() && lse.padding_untouched(), out.print() * 31 + lse.print()};
  });

  std::vector<double> lses = want.lse;
  for (size_t i = 0; i < lses.size(); i++) if (silent(i / c.shape.q_heads)) lses[i] = -INFINITY;
  const Matrix<f32> lse = oracle::matrix<f32>(c.queries, c.shape.q_heads, lses, c.gap, c.lead);
  const Matrix<f32> delta = oracle::matrix<f32>(c.queries, c.shape.q_heads, want.delta, c.gap, c.lead);
  // Gradients are added to what is there.
  auto gradient = [&](dim3 grid, emu::Options options, i64 count, const std::vector<double>& added, auto kernel,
                      const schedule::Schedule& schedule) {
    i64 cols = added.size() / count;
    Matrix<f32> sums = rows(count, cols);
    Random random(8);
    sums.fill_normal(random, 0.1);
    std::vector<double> total = sums.values();
    for (size_t i = 0; i < total.size(); i++) total[i] += added[i];
    std::string why = launch(grid, options, [&] {
      kernel(c.shape, std::as_const(x.q).view(), std::as_const(x.kv).view(), schedule.tiles(),
             std::as_const(x.dout).view(), lse.view(), delta.view(), sums.view());
    });
    return Outcome{why, relative_error(sums.values(), total), sums.padding_untouched(), sums.print()};
  };
  oracle::sweep(report, "backward queries " + name, BOUND, [&](dim3 grid, emu::Options options) {
    return gradient(grid, options, c.queries, want.dq, OF(E, attention_backward_queries_general), queries);
  });
  oracle::sweep(report, "backward keys " + name, BOUND, [&](dim3 grid, emu::Options options) {
    return gradient(grid, options, c.keys, want.dkv, OF(E, attention_backward_keys_general), keys);
  });
}

// A query of NaN has an output of NaN, and no other query has. Queries that attend nothing have outputs of 0 even where
// values are NaN.
void not_a_number(Report& report) {
  oracle::Inputs<f32> x({1, 1, 8, 4, 0.3f}, 70, 70, 3);
  auto attends = mask_of("empty rows");
  schedule::Schedule queries = schedule::of_queries(70, 70, attends, 64, 64);
  Matrix<f32> out(70, 4), lse(70, 1);
  auto run = [&] {
    return emu::launch(2, THREADS, SHARED_BYTES, {}, [&] {
      of_f32::attention_forward_general_f32(x.shape, std::as_const(x.q).view(), std::as_const(x.kv).view(),
                                            queries.tiles(), out.view(), lse.view());
    });
  };
  for (int c = 0; c < 8; c++) x.q.at(9, c) = NAN;
  oracle::Results want = oracle::attention(x, attends);
  std::string why = run();
  f64 error = std::max(relative_error(out.values(), want.out), relative_error(lse.values(), want.lse));
  bool alone = true;
  for (int row = 0; row < 70; row++) alone &= std::isnan(out.at(row, 0)) == (row == 9);
  report.check("NaN of a query", why, error, BOUND);
  report.check("NaN of a query stays there", alone);
  x.kv.at(20, 8) = NAN;
  why = run();
  report.check("NaN of a value", why.empty() && out.at(5, 0) == 0 && std::isnan(out.at(31, 0)));
}

int main(int argc, char** argv) {
  Report report("attention_general (forward, backward_queries, backward_keys)", argc, argv);
  int index = 0;
  for (const Case& c : CASES) {
    // Sanitizers take long: two masks show them all barriers.
    if (report.one() && index > 1) break;
    if (!report.one() || index == 0) test<f32>(report, c);
    if (report.one() ? index == 1 : !report.quick() || index % 3 == 0) test<bf16>(report, c);
    if (!report.one() && (!report.quick() || index % 3 == 1)) test<f16>(report, c);
    index++;
  }
  not_a_number(report);
  return report.finish();
}
