//! unfused.cu against float64: sequences, masks, groups of heads, strides; the same bits on all schedules and grids.
#include "attention_oracle.h"

#include "../../kernels/unfused.cuh"
#define ELEM bf16
namespace of_bf16 {
#include "../../kernels/unfused.cu"
}
#undef ELEM
#define ELEM f16
namespace of_f16 {
#include "../../kernels/unfused.cu"
}
#undef ELEM
#define ELEM f32
namespace of_f32 {
#include "../../kernels/unfused.cu"
}
#undef ELEM

using namespace testing;

// Queries and keys of the sequences, one behind the other.
struct Case {
  std::vector<std::pair<int, int>> sequences;
  ::Shape shape;
  const char* mask;  // between rows of a sequence
  int gap, lead;
};
const std::vector<Case> CASES = {
    {{{70, 70}, {1, 1}, {13, 130}}, {2, 1, 12, 20, 0.3f}, "causal", 0, 0},
    {{{50, 80}, {65, 64}}, {2, 2, 33, 7, -0.2f}, "holes", 3, 1},
    {{{130, 70}}, {4, 2, 8, 8, 1.5f}, "empty rows", 4, 0},
    {{{3, 5}}, {1, 1, 256, 65, 0.1f}, "full", 1, 0},
    {{{9, 9}, {20, 20}}, {1, 1, 5, 4, 0.4f}, "nothing", 0, 0},
};
// Scores of up to 40 amplify the rounding of sums.
constexpr f64 BOUND = 3e-6;
template <class E>
void test(Report& report, const Case& c) {
  schedule::Attends mask;
  for (auto& each : schedule::masks()) if (each.name == c.mask) mask = each.attends;

  // The prepared cells, as the host makes them.
  std::vector<Sequence> sequences;
  std::vector<Part> query_parts, key_parts;
  std::vector<int> of_query, of_key;
  i64 cells = 0;
  for (auto [q_rows, k_rows] : c.sequences) {
    int index = sequences.size();
    sequences.push_back({(int)of_query.size(), q_rows, (int)of_key.size(), k_rows, cells});
    of_query.insert(of_query.end(), q_rows, index);
    of_key.insert(of_key.end(), k_rows, index);
    for (int row = 0; row < q_rows; row += TILE) query_parts.push_back({index, row});
    for (int row = 0; row < k_rows; row += TILE) key_parts.push_back({index, row});
    cells += (i64)c.shape.q_heads * q_rows * k_rows;
  }
  int queries = of_query.size(), keys = of_key.size();
  schedule::Attends attends = [&](int i, int j) {
    const auto& sequence = sequences[of_query[i]];
    return of_query[i] == of_key[j] && mask(i - sequence.q_row, j - sequence.k_row);
  };
  std::vector<u32> starts = {0};
  std::vector<Interval> intervals;
  for (int i = 0; i < queries; i++) {
    for (Interval x : schedule::intervals(attends, i, 0, keys)) intervals.push_back(x);
    starts.push_back(intervals.size());
  }

  oracle::Inputs<E> x(c.shape, queries, keys, 5, c.gap, c.lead);
  oracle::Results want = oracle::attention(x, attends);
  std::vector<f64> p(cells);
  for (auto& s : sequences)
    for (int h = 0; h < c.shape.q_heads; h++)
      for (int i = 0; i < s.q_rows; i++)
        for (int j = 0; j < s.k_rows; j++)
          p[s.at + ((i64)h * s.q_rows + i) * s.k_rows + j] =
              want.probabilities[((i64)h * queries + s.q_row + i) * keys + s.k_row + j];
  const Matrix<f32> probabilities = oracle::matrix<f32>(1, cells, p);

  std::string name = std::string(name_of<E>()) + " " + c.mask + " " + std::to_string(queries) + "x" +
                     std::to_string(keys) + " " + std::to_string(c.shape.qk_dim) + "/" + std::to_string(c.shape.v_dim);
  auto rows = [&](i64 count, i64 cols) { return Matrix<f32>(count, cols, cols + c.gap, c.lead); };
  const Parts of_queries{sequences.data(), query_parts.data(), (i64)query_parts.size()};
  const Parts of_keys{sequences.data(), key_parts.data(), (i64)key_parts.size()};
  auto launch = [&](dim3 grid, emu::Options options, auto body) {
    return emu::launch(grid, THREADS, SHARED_BYTES, options, body);
  };
  View<const E> q = std::as_const(x.q).view(), kv = std::as_const(x.kv).view(), dout = std::as_const(x.dout).view();

  oracle::sweep(report, "forward " + name, BOUND, [&](dim3 grid, emu::Options options) {
    Matrix<f32> found(1, cells), out = rows(queries, c.shape.q_heads * c.shape.v_dim);
    std::string why = launch(grid, options, [&] {
      OF(E, unfused_forward)(c.shape, q, kv, of_queries, {starts.data(), intervals.data()}, found.data(), out.view());
    });
    f64 error = std::max(relative_error(found.values(), p), relative_error(out.values(), want.out));
    return Outcome{why, error, out.padding_untouched() && found.padding_untouched(), out.print() * 31 + found.print()};
  });

  // Gradients are added to what is there.
  auto total = [](const Matrix<f32>& before, const std::vector<f64>& added) {
    std::vector<f64> sum = before.values();
    for (size_t i = 0; i < sum.size(); i++) sum[i] += added[i];
    return sum;
  };
  oracle::sweep(report, "backward queries " + name, BOUND, [&](dim3 grid, emu::Options options) {
    Matrix<f32> dq = rows(queries, c.shape.q_heads * c.shape.qk_dim), delta = rows(queries, c.shape.q_heads);
    Random random(8);
    dq.fill_normal(random, 0.1);
    std::vector<f64> sum = total(dq, want.dq);
    std::string why = launch(grid, options, [&] {
      OF(E, unfused_backward_queries)(c.shape, kv, of_queries, probabilities.data(), dout, delta.view(), dq.view());
    });
    f64 error = std::max(relative_error(dq.values(), sum), relative_error(delta.values(), want.delta));
    return Outcome{why, error, dq.padding_untouched() && delta.padding_untouched(), dq.print() * 31 + delta.print()};
  });
  const Matrix<f32> delta = oracle::matrix<f32>(queries, c.shape.q_heads, want.delta, c.gap, c.lead);
  oracle::sweep(report, "backward keys " + name, BOUND, [&](dim3 grid, emu::Options options) {
    Matrix<f32> dkv = rows(keys, x.kv_width());
    Random random(9);
    dkv.fill_normal(random, 0.1);
    std::vector<f64> sum = total(dkv, want.dkv);
    std::string why = launch(grid, options, [&] {
      OF(E, unfused_backward_keys)(c.shape, q, kv, of_keys, probabilities.data(), dout, delta.view(), dkv.view());
    });
    return Outcome{why, relative_error(dkv.values(), sum), dkv.padding_untouched(), dkv.print()};
  });
}

int main(int argc, char** argv) {
  Report report("unfused (unfused_forward, unfused_backward_queries, unfused_backward_keys)", argc, argv);
  int index = 0;
  for (const Case& c : CASES) {
    // Sanitizers take long: two cases show them all barriers.
    if (report.one() && index > 1) break;
    if (!report.one() || index == 0) test<f32>(report, c);
    if (report.one() ? index == 1 : !report.quick() || index % 3 == 0) test<bf16>(report, c);
    if (!report.one() && (!report.quick() || index % 3 == 1)) test<f16>(report, c);
    index++;
  }
  return report.finish();
}
