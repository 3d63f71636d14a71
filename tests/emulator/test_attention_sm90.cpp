// Attention for sm_90a on the emulator: against sums in f64, over masks, odd sizes, groups of heads and schedules of
// threads and copies, with equal bits in all of them. Arguments besides those of all tests: forward, keys, queries name
// the kernels to run.
#include "../../kernels/attention_sm90.cuh"
#include "schedule.h"
#include "testing.h"

using testing::Matrix;
using testing::Random;

template <class Function>
struct SizedKernel {
  int rows, keys;  // of a tile
  size_t shared;
  Function* run;
};
using Forward = void(Shape, TensorMap, TensorMap, TensorMap, Tiles, Shares, View<f32>, View<f32>);
using Backward = void(Shape, TensorMap, TensorMap, TensorMap, TensorMap, Tiles, Shares, View<const f32>,
                      View<const f32>, View<f32>);

template <class E>
struct VariantOf {
  int qk_dim, v_dim;
  SizedKernel<Forward> forward;
  SizedKernel<Backward> keys, queries;
};

#define ELEM bf16
#define QK_DIM 64
#define V_DIM 64
#include "attention_sm90_variant.h"
#if FAULT == 0  // planted faults are looked for in one variant and two cases
#define ELEM bf16
#define QK_DIM 128
#define V_DIM 128
#include "attention_sm90_variant.h"
#define ELEM f16
#define QK_DIM 128
#define V_DIM 128
#include "attention_sm90_variant.h"
#define ELEM f16
#define QK_DIM 192
#define V_DIM 128
#include "attention_sm90_variant.h"
#define ELEM bf16
#define QK_DIM 256
#define V_DIM 256
#include "attention_sm90_variant.h"
#endif

struct Case {
  int queries, keys, q_heads, kv_heads;
  const char* mask;
  int first_cut;  // rows of the first tile, so that others start anywhere
  int blocks;
};

static schedule::Attends mask_of(const char* name) {
  for (auto& mask : schedule::masks())
    if (mask.name == name) return mask.attends;
  fprintf(stderr, "there is no mask %s\n", name);
  abort();
}

// ---- Inputs, and what they give in f64

template <class E>
struct Inputs {
  Shape shape;
  schedule::Attends attends;
  // Each within a wider matrix.
  Matrix<E> q, kv, dout;
  Matrix<f32> lse, delta;
  std::vector<double> out, log_sums, dq, dkv;

  Inputs(const Case& c, int qk_dim, int v_dim)
      : shape{c.q_heads, c.kv_heads, qk_dim, v_dim, 1 / sqrtf(qk_dim)},
        attends(mask_of(c.mask)),
        q(c.queries, c.q_heads * qk_dim, c.q_heads * qk_dim + 24, 8),
        kv(c.keys, c.kv_heads * (qk_dim + v_dim), c.kv_heads * (qk_dim + v_dim) + 8, 16),
        dout(c.queries, c.q_heads * v_dim, c.q_heads * v_dim + 16, 8),
        lse(c.queries, c.q_heads, c.q_heads + 1, 1),
        delta(c.queries, c.q_heads, c.q_heads + 3) {
    Random random(c.queries * 1000 + c.keys);
    q.fill_normal(random);
    kv.fill_normal(random);
    dout.fill_normal(random);
    out.assign(dout.rows * dout.cols, 0);
    log_sums.assign(c.queries * c.q_heads, -INFINITY);
    dq.assign(q.rows * q.cols, 0);
    dkv.assign(kv.rows * kv.cols, 0);
    for (int head = 0; head < c.q_heads; head++)
      for (int i = 0; i < c.queries; i++) row(head, i);
  }

  static std::vector<double> part(const Matrix<E>& x, i64 row, i64 column, int count) {
    std::vector<double> values(count);
    for (int e = 0; e < count; e++) values[e] = testing::value(x.at(row, column + e));
    return values;
  }
  static double dot(const std::vector<double>& x, const std::vector<double>& y) {
    double sum = 0;
    for (size_t e = 0; e < x.size(); e++) sum += x[e] * y[e];
    return sum;
  }
  static void add(double* to, double factor, const std::vector<double>& x) {
    for (size_t e = 0; e < x.size(); e++) to[e] += factor * x[e];
  }

  void row(int head, int i) {
    int kv_head = kv_head_of(shape, head);
    i64 q_at = query_column(shape, head), k_at = key_column(shape, kv_head), v_at = value_column(shape, kv_head);
    i64 o_at = output_column(shape, head);
    auto query = part(q, i, q_at, shape.qk_dim), gradient = part(dout, i, o_at, shape.v_dim);
    std::vector<int> keys;
    std::vector<double> scores, dp;
    double most = -INFINITY, sum = 0, delta_sum = 0;
    for (int j = 0; j < kv.rows; j++) {
      if (!attends(i, j)) continue;
      keys.push_back(j);
      scores.push_back(dot(query, part(kv, j, k_at, shape.qk_dim)) * shape.scale);
      dp.push_back(dot(gradient, part(kv, j, v_at, shape.v_dim)));
      most = std::max(most, scores.back());
    }
    for (double s : scores) sum += exp(s - most);
    double log_sum = keys.empty() ? -INFINITY : most + log(sum);
    for (size_t n = 0; n < keys.size(); n++) delta_sum += exp(scores[n] - log_sum) * dp[n];
    for (size_t n = 0; n < keys.size(); n++) {
      double p = exp(scores[n] - log_sum), ds = p * (dp[n] - delta_sum) * shape.scale;
      double* of_key = &dkv[keys[n] * kv.cols];
      add(&out[i * dout.cols + o_at], p, part(kv, keys[n], v_at, shape.v_dim));
      add(&dq[i * q.cols + q_at], ds, part(kv, keys[n], k_at, shape.qk_dim));
      add(of_key + k_at, ds, query);
      add(of_key + v_at, p, gradient);
    }
    log_sums[i * shape.q_heads + head] = log_sum;
    lse.at(i, head) = log_sum;
    delta.at(i, head) = delta_sum;
  }
};

// ---- What the host prepares

template <class E>
static void encode(TensorMap& map, View<E> x, int heads, int dim, int box_rows) {
  uint64_t dims[] = {64, (uint64_t)x.rows, (uint64_t)heads * dim / 64}, strides[] = {(uint64_t)x.stride * 2, 128};
  u32 box[] = {64, (u32)box_rows, (u32)dim / 64};
  std::string why = emu::encode_map(&map, x.data, 2, 3, dims, strides, box, 3);
  if (!why.empty()) {
    fprintf(stderr, "map: %s\n", why.c_str());
    abort();
  }
}

template <class E>
struct Maps {
  TensorMap q, k, v, dout;
  Maps(Inputs<E>& in, int rows, int keys) {
    const Shape& s = in.shape;
    encode(q, in.q.view(), s.q_heads, s.qk_dim, rows);
    encode(k, in.kv.view(), s.kv_heads, s.qk_dim, keys);
    encode(v, in.kv.columns(value_column(s, 0), s.kv_heads * s.v_dim), s.kv_heads, s.v_dim, keys);
    encode(dout, in.dout.view(), s.q_heads, s.v_dim, rows);
  }
};

// Items for all heads, longest first, each to the block that has least to do.
struct Plan {
  std::vector<Unit> units;
  std::vector<int> ends;
  Plan(const schedule::Schedule& tiles, int heads, int blocks) {
    std::vector<std::vector<Unit>> of_block(blocks);
    std::vector<i64> load(blocks, 0);
    for (int item = 0; item < (int)tiles.items.size(); item++)
      for (int head = 0; head < heads; head++) {
        size_t least = std::min_element(load.begin(), load.end()) - load.begin();
        load[least] += tiles.items[item].count + 1;
        of_block[least].push_back({item, head});
      }
    for (auto& own : of_block) {
      units.insert(units.end(), own.begin(), own.end());
      ends.push_back(units.size());
    }
  }
  Shares shares() const { return {units.data(), ends.data()}; }
};

// ---- Runs

static std::string label(const char* kernel, const Case& c, const testing::Schedule& s) {
  return std::string(kernel) + " " + std::to_string(c.queries) + "x" + std::to_string(c.keys) + " heads " +
         std::to_string(c.q_heads) + ":" + std::to_string(c.kv_heads) + " " + c.mask + " " + s.name;
}

// All schedules must give the bits of the first.
struct SameBits {
  u64 first = 0;
  bool any = false;
  std::string operator()(const std::string& why, u64 print) {
    if (!any) first = print;
    any = true;
    return !why.empty() || print == first ? why : "run: other bits than in the first schedule";
  }
};

template <class E>
static void test_forward(testing::Report& report, const VariantOf<E>& variant, const Case& c, Inputs<E>& in,
                         double allowed) {
  auto& kernel = variant.forward;
  auto tiles = schedule::of_queries(c.queries, c.keys, in.attends, {kernel.rows, c.first_cut}, kernel.keys);
  report.check("schedule of queries", schedule::covers(tiles, true, c.queries, c.keys, in.attends));
  Plan plan(tiles, c.q_heads, c.blocks);
  Maps<E> maps(in, kernel.rows, kernel.keys);
  SameBits same;
  for (auto& s : report.schedules()) {
    Matrix<f32> out(c.queries, in.dout.cols, in.dout.cols + 4, 4), lse(c.queries, c.q_heads, c.q_heads + 1);
    std::string why = emu::launch(c.blocks, SM90_THREADS, kernel.shared, s.options, [&] {
      kernel.run(in.shape, maps.q, maps.k, maps.v, tiles.tiles(), plan.shares(), out.view(), lse.view());
    });
    double error = testing::relative_error(out.values(), in.out);
    for (int i = 0; i < c.queries; i++)
      for (int head = 0; head < c.q_heads; head++) {
        double want = in.log_sums[i * c.q_heads + head], got = lse.at(i, head);
        if (std::isinf(want)) {
          if (got != want) error = INFINITY;
          for (int e = 0; e < variant.v_dim; e++)
            if (out.at(i, head * variant.v_dim + e) != 0) error = INFINITY;
        } else if (!(fabs(got - want) < 1e-5 * std::max(1., fabs(want)))) {
          error = INFINITY;
        }
      }
    if (!out.padding_untouched() || !lse.padding_untouched()) error = INFINITY;
    report.check(label("forward", c, s), same(why, out.print() ^ lse.print() << 1), error, allowed);
  }
}

template <class E>
static void test_backward(testing::Report& report, const SizedKernel<Backward>& kernel, bool of_keys, const Case& c,
                          Inputs<E>& in, double allowed) {
  auto tiles = of_keys ? schedule::of_keys(c.queries, c.keys, in.attends, kernel.rows, {kernel.keys, c.first_cut})
                       : schedule::of_queries(c.queries, c.keys, in.attends, {kernel.rows, c.first_cut}, kernel.keys);
  report.check("schedule", schedule::covers(tiles, !of_keys, c.queries, c.keys, in.attends));
  if (tiles.items.empty()) return;
  Plan plan(tiles, of_keys ? c.kv_heads : c.q_heads, c.blocks);
  Maps<E> maps(in, kernel.rows, kernel.keys);
  i64 rows = of_keys ? c.keys : c.queries, cols = of_keys ? in.kv.cols : in.q.cols;
  const std::vector<double>& sums = of_keys ? in.dkv : in.dq;
  SameBits same;
  for (auto& s : report.schedules()) {
    Random random(5);
    Matrix<f32> gradient(rows, cols, cols + 4, 4);
    gradient.fill_normal(random, 0.01);
    std::vector<double> was = gradient.values();
    std::string why = emu::launch(c.blocks, SM90_THREADS, kernel.shared, s.options, [&] {
      kernel.run(in.shape, maps.q, maps.k, maps.v, maps.dout, tiles.tiles(), plan.shares(),
                 std::as_const(in.lse).view(), std::as_const(in.delta).view(), gradient.view());
    });
    std::vector<double> got = gradient.values();
    for (size_t i = 0; i < got.size(); i++) got[i] -= was[i];
    double error = testing::relative_error(got, sums);
    if (!gradient.padding_untouched()) error = INFINITY;
    report.check(label(of_keys ? "backward keys" : "backward queries", c, s), same(why, gradient.print()), error,
                 allowed);
  }
}

static bool forward_wanted = true, keys_wanted = true, queries_wanted = true;

static void choose(int argc, char** argv) {
  auto named = [&](const char* name) {
    return std::any_of(argv + 1, argv + argc, [&](char* x) { return !strcmp(x, name); });
  };
  bool forward = named("forward"), keys = named("keys"), queries = named("queries"),
       all = !forward && !keys && !queries;
  forward_wanted = forward || all;
  keys_wanted = keys || all;
  queries_wanted = queries || all;
}

template <class E>
static void test(testing::Report& report, const VariantOf<E>& variant, const std::vector<Case>& cases) {
  double allowed = std::is_same_v<E, f16> ? 1e-3 : 6e-3;
  for (const Case& c : cases) {
    Inputs<E> in(c, variant.qk_dim, variant.v_dim);
    if (forward_wanted) test_forward(report, variant, c, in, allowed);
    if (keys_wanted && variant.keys.run) test_backward(report, variant.keys, true, c, in, allowed);
    if (queries_wanted) test_backward(report, variant.queries, false, c, in, allowed);
  }
}

int main(int argc, char** argv) {
  testing::Report report("attention_sm90", argc, argv);
  choose(argc, argv);
  std::vector<Case> some = {{257, 257, 2, 1, "causal", 128, 2}, {150, 150, 2, 1, "empty rows", 77, 1}};
  std::vector<Case> all = {
      some[0],
      some[1],
      {2, 1, 1, 1, "full", 128, 2},
      {129, 300, 2, 2, "full", 50, 3},
      {140, 200, 1, 1, "holes", 128, 1},
      {200, 330, 4, 2, "documents", 128, 3},
      {300, 300, 1, 1, "window", 77, 2},
      {130, 20, 1, 1, "nothing", 128, 2},
      {385, 385, 1, 1, "causal", 1, 2},
  };
  if (report.one() || FAULT) all = some;
  else if (report.quick() && all.size() > 5) all.resize(5);
#if FAULT
  test(report, variant_bf16_64_64::VARIANT, all);
#else
  test(report, variant_bf16_128_128::VARIANT, all);
  if (report.quick()) some.resize(1);
  test(report, variant_bf16_64_64::VARIANT, some);
  test(report, variant_f16_128_128::VARIANT, some);
  test(report, variant_f16_192_128::VARIANT, some);
  test(report, variant_bf16_256_256::VARIANT, some);
#endif
  return report.finish();
}
