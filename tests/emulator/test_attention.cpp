//! attention_forward.cu and attention_backward.cu against float64: sizes, masks, groups of heads, strides; the same bits on
//! all schedules, and no load of matrices in which rows share a bank.
//!
//! -DQUICK_BUILD has only one variant, which finds all planted faults but 342, of heads that take keys in two steps;
//! sanitizers have two variants: their compilers take long.
#define CPU_EMU
#include "attention_oracle.h"

#include "../../kernels/fragments.cuh"

template <class E, int QK, int V>
struct Variant;

#define ELEM bf16
#define QK_DIM 64
#define V_DIM 64
#include "attention_variant.h"
#ifndef QUICK_BUILD
#define ELEM f16
#define QK_DIM 256
#define V_DIM 256
#include "attention_variant.h"
#endif
#if !defined(QUICK_BUILD) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define ALL_VARIANTS
#define ELEM f16
#define QK_DIM 64
#define V_DIM 64
#include "attention_variant.h"
#define ELEM bf16
#define QK_DIM 128
#define V_DIM 128
#include "attention_variant.h"
#define ELEM f16
#define QK_DIM 128
#define V_DIM 128
#include "attention_variant.h"
#define ELEM bf16
#define QK_DIM 192
#define V_DIM 128
#include "attention_variant.h"
#define ELEM f16
#define QK_DIM 192
#define V_DIM 128
#include "attention_variant.h"
#define ELEM bf16
#define QK_DIM 256
#define V_DIM 256
#include "attention_variant.h"
#endif

using namespace testing;

struct Case {
  int queries, keys, q_heads, kv_heads;
  const char* mask;
  double scale;   // of scores, times the square root of their features
  int gap, lead;  // of all matrices, multiples of 8
  int cut;        // rows of the first tile
  bool silent;    // some queries with cells have a log-sum-exp of -inf in the backward pass
};
const Case CASES[] = {
    {130, 130, 2, 1, "causal", 1, 0, 0, 64, false},
    {65, 129, 2, 2, "holes", 1, 8, 16, 64, false},     // keys are visited several times
    {129, 100, 3, 1, "empty rows", -1, 0, 8, 17, true},
    {1, 1, 1, 1, "full", 1, 0, 0, 64, false},
    {63, 200, 2, 1, "full", 1, 24, 0, 64, false},
    {64, 64, 1, 1, "full", 1, 0, 0, 64, false},
    {200, 200, 1, 1, "documents", 2, 8, 0, 64, false},
    {150, 140, 2, 2, "window", 3, 0, 0, 33, false},
    {150, 2, 1, 1, "full", 90, 0, 0, 64, false},       // log-sum-exps so low that a score of 0 overflows
    {66, 9, 1, 1, "nothing", 1, 0, 0, 64, false},
    {20, 70, 1, 1, "full", 0, 0, 0, 64, false},
};
// Of the larger heads and of f16, which differ in sizes of stages and in conversions.
const Case FEW[] = {
    {66, 70, 2, 1, "documents", 1, 8, 16, 64, false},
    {20, 97, 1, 1, "full", 1, 0, 0, 64, false},
    {65, 65, 1, 1, "causal", 1, 0, 8, 40, true},
};

schedule::Attends mask_of(const std::string& name) {
  for (auto& mask : schedule::masks())
    if (mask.name == name) return mask.attends;
  abort();
}

// Runs on all schedules, whose landing times of copies matter here.
template <class Attempt>
void over_schedules(Report& report, const std::string& name, double allowed, Attempt attempt) {
  uint64_t first = 0;
  for (const Schedule& schedule : report.schedules()) {
    emu::Stats stats;
    Outcome found = attempt(schedule.options, &stats);
    if (!first) first = found.print;
    if (found.why.empty() && !found.untouched) found.why = "writes outside of the results";
    if (found.why.empty() && first != found.print) found.why = "bits differ from those of another schedule";
    if (found.why.empty() && stats.conflicts) found.why = "rows of a matrix share a bank";
    report.check(name + " " + schedule.name, found.why, found.error, allowed);
  }
}

template <class E, int QK, int V>
void test(Report& report, const Case& c) {
  using Kernels = Variant<E, QK, V>;
  const double allowed = std::is_same_v<E, bf16> ? 5e-3 : 7e-4;
  const ::Shape shape = {c.q_heads, c.kv_heads, QK, V, (f32)(c.scale / sqrt(QK))};
  const bool silenced = c.silent;
  auto attends = mask_of(c.mask);
  auto silent = [=](int i) { return silenced && i % 7 == 3; };
  const oracle::Inputs<E> x(shape, c.queries, c.keys, 5, c.gap, c.lead);
  const oracle::Results want = oracle::attention(x, attends, silent);
  const schedule::Schedule queries = schedule::of_queries(c.queries, c.keys, attends, {64, c.cut}, 64);
  const schedule::Schedule keys = schedule::of_keys(c.queries, c.keys, attends, 64, {64, c.cut});
  const std::string name = std::string(std::is_same_v<E, bf16> ? "bf16 " : "f16 ") + std::to_string(QK) + "/" +
                           std::to_string(V) + " " + c.mask + " " + std::to_string(c.queries) + "x" +
                           std::to_string(c.keys);
  report.check(name + ": queries' schedule", schedule::covers(queries, true, c.queries, c.keys, attends));
  report.check(name + ": keys' schedule", schedule::covers(keys, false, c.queries, c.keys, attends));
  auto rows = [&](i64 rows, i64 cols) { return Matrix<f32>(rows, cols, cols + c.gap, c.lead); };

  over_schedules(report, "forward " + name, allowed, [&](emu::Options options, emu::Stats* stats) {
    Matrix<f32> out = rows(c.queries, c.q_heads * V), lse = rows(c.queries, c.q_heads);
    dim3 grid(queries.items.size(), c.q_heads);
    std::string why = emu::launch(grid, Kernels::FORWARD_THREADS, Kernels::FORWARD_SHARED, options, [&] {
      Kernels::forward(shape, x.q.view(), x.kv.view(), queries.tiles(), out.view(), lse.view());
    }, stats);
    double error = relative_error(out.values(), want.out);
    if (relative_error(lse.values(), want.lse) > 1e-5) error = INFINITY;
    return Outcome{why, error, out.padding_untouched() && lse.padding_untouched(), out.print() * 31 + lse.print()};
  });

  std::vector<double> lses = want.lse;
  for (size_t i = 0; i < lses.size(); i++)
    if (silent(i / c.q_heads)) lses[i] = -INFINITY;
  const Matrix<f32> lse = oracle::matrix<f32>(c.queries, c.q_heads, lses, c.gap, c.lead);
  const Matrix<f32> delta = oracle::matrix<f32>(c.queries, c.q_heads, want.delta, c.gap, c.lead);
  // Gradients are added to what is there: cells that are not to be touched are compared as well.
  auto backward = [&](auto kernel, const schedule::Schedule& schedule, int heads, int threads, u32 shared, i64 count,
                      const std::vector<double>& added) {
    return [&, kernel, heads, threads, shared, count](emu::Options options, emu::Stats* stats) {
      Matrix<f32> sums = rows(count, added.size() / count);
      Random random(8);
      sums.fill_normal(random, 0.1);
      std::vector<double> before = sums.values();
      std::string why = schedule.items.empty() ? "" : emu::launch(
          dim3(schedule.items.size(), heads), threads, shared, options, [&] {
            kernel(shape, x.q.view(), x.kv.view(), schedule.tiles(), x.dout.view(), lse.view(), delta.view(), sums.view());
          }, stats);
      std::vector<double> got = sums.values();
      for (size_t i = 0; i < got.size(); i++) got[i] -= before[i];
      return Outcome{why, relative_error(got, added), sums.padding_untouched(), sums.print()};
    };
  };
  over_schedules(report, "backward queries " + name, allowed,
        backward(Kernels::queries, queries, c.q_heads, Kernels::QUERIES_THREADS, Kernels::QUERIES_SHARED, c.queries, want.dq));
  over_schedules(report, "backward keys " + name, allowed,
        backward(Kernels::keys, keys, c.kv_heads, Kernels::KEYS_THREADS, Kernels::KEYS_SHARED, c.keys, want.dkv));
}

// A query of NaN has an output of NaN, and no other query has.
void not_a_number(Report& report) {
  using Kernels = Variant<bf16, 64, 64>;
  oracle::Inputs<bf16> x({1, 1, 64, 64, 0.1f}, 70, 70, 3);
  x.q.at(9, 1) = {0x7FC0};
  schedule::Schedule queries = schedule::of_queries(70, 70, mask_of("causal"), 64, 64);
  Matrix<f32> out(70, 64), lse(70, 1);
  std::string why = emu::launch(queries.items.size(), Kernels::FORWARD_THREADS, Kernels::FORWARD_SHARED, {}, [&] {
    Kernels::forward(x.shape, std::as_const(x.q).view(), std::as_const(x.kv).view(), queries.tiles(), out.view(), lse.view());
  });
  report.check("NaN", why, 0, 0);
  for (int row = 0; row < 70; row++) {
    bool nan = out.at(row, 0) != out.at(row, 0) && lse.at(row, 0) != lse.at(row, 0);
    report.check("NaN of row 9 alone", nan == (row == 9));
  }
}

int main(int argc, char** argv) {
  Report report("attention (forward, backward_queries, backward_keys)", argc, argv);
  // Sanitizers take long: two cases show them all barriers.
  if (report.one()) test<bf16, 64, 64>(report, CASES[1]);
  else for (const Case& c : CASES) test<bf16, 64, 64>(report, c);
  not_a_number(report);
#ifndef QUICK_BUILD
  for (const Case& c : FEW) {
    test<f16, 256, 256>(report, c);
    if (report.quick()) break;
  }
#endif
#ifdef ALL_VARIANTS
  for (const Case& c : FEW) {
    if (report.one()) break;
    test<f16, 64, 64>(report, c);
    test<bf16, 128, 128>(report, c);
    test<f16, 128, 128>(report, c);
    test<bf16, 192, 128>(report, c);
    test<f16, 192, 128>(report, c);
    test<bf16, 256, 256>(report, c);
    if (report.quick()) break;
  }
#endif
  return report.finish();
}
