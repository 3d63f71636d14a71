// Attention backward for sm_90a: one kernel for the gradients of keys and values, one for that of queries. Each sums in
// registers what falls to its own tiles, in the order of its visits, so bits depend on the schedule alone, no block
// waits for another one, and scores are computed twice.
//
// With P = exp(scale S - lse) and dS = P (dP - delta): dV = P^T dO, dK = scale dS^T Q, dQ = scale dS K.
//
// Maps, each with boxes {64, tile rows, dim / 64} and a swizzle of 128 bytes: q {64, queries, q_heads QK_DIM / 64},
// dout {64, queries, q_heads V_DIM / 64}, k {64, keys, kv_heads QK_DIM / 64}, v {64, keys, kv_heads V_DIM / 64}.
#include "attention_sm90.cuh"

using Elem = ELEM;

struct Maps {
  const TensorMap *q, *k, *v, *dout;
};

// Turns scores into probabilities. `lse` is to the base of 2; it is infinite for queries that attend nothing.
INLINE f32 probability(f32 score, f32 scale, f32 lse) { return exp2_fast(fmaf(score, scale, -lse)); }

INLINE f32 lse_of(const View<const f32>& lse, i64 row, int head) {
  f32 x = lse.at(row, head);
  return x == -INF ? INF : x * LOG2_E;
}

template <int COLUMNS>
INLINE void add_row(f32* to, const f32 (&sums)[COLUMNS / 2], int h, f32 scale) {
  UNROLL for (int c = 0; c < COLUMNS / 8; c++) {
    float2 x = *(float2*)(to + 8 * c);
    *(float2*)(to + 8 * c) = float2{x.x + sums[4 * c + 2 * h] * scale, x.y + sums[4 * c + 2 * h + 1] * scale};
  }
}

// The sums of both gradients must leave registers for scores.
#if QK_DIM + V_DIM <= 320

// ---- Gradients of keys and values: keys and values stay in shared memory, queries and gradients of outputs pass by.
// Scores are transposed: rows are keys, columns queries, so that P^T and dS^T are left operands from registers.
namespace of_keys {

constexpr int KEYS = COMPUTING_GROUPS * GROUP_ROWS;
constexpr int ROWS = QK_DIM + V_DIM > 256 ? 32 : 64;  // sums of both gradients leave few registers for scores
constexpr int STAGES = 2;
constexpr int SCORES = ROWS / 2;
constexpr int COPYING_REGISTERS = 40;

using Keys = Tile<KEYS, QK_DIM>;
using Values = Tile<KEYS, V_DIM>;
using Queries = Tile<ROWS, QK_DIM>;
using Gradients = Tile<ROWS, V_DIM>;

constexpr u32 KEYS_AT = 0, VALUES_AT = Keys::BYTES, QUERIES_AT = VALUES_AT + Values::BYTES;
constexpr u32 GRADIENTS_AT = QUERIES_AT + STAGES * Queries::BYTES;
// What a stage's queries have: log-sum-exp, delta, and from | to << 16 of the keys that they attend.
constexpr u32 LSE_AT = GRADIENTS_AT + STAGES * Gradients::BYTES, DELTA_AT = LSE_AT + STAGES * ROWS * 4;
constexpr u32 INTERVALS_AT = DELTA_AT + STAGES * ROWS * 4;
constexpr u32 KEYS_FULL = INTERVALS_AT + STAGES * ROWS * 4, KEYS_FREE = KEYS_FULL + 8;
constexpr u32 QUERIES_FULL = KEYS_FREE + 8, QUERIES_FREE = QUERIES_FULL + 8 * STAGES;
constexpr u32 GRADIENTS_FULL = QUERIES_FREE + 8 * STAGES, GRADIENTS_FREE = GRADIENTS_FULL + 8 * STAGES;
constexpr u32 ROWS_FULL = GRADIENTS_FREE + 8 * STAGES, ROWS_FREE = ROWS_FULL + 8 * STAGES;
constexpr u32 SHARED_BYTES = ROWS_FREE + 8 * STAGES;
static_assert(SHARED_BYTES <= MOST_SHARED_BYTES, "the block's shared memory");
LAUNCHED_WITH(64, 64, 64, 128, 67184);
LAUNCHED_WITH(128, 128, 64, 128, 132720);
LAUNCHED_WITH(192, 128, 32, 128, 123760);

struct Rows {
  View<const f32> lse, delta;
};

INLINE int group_size(const Shape& shape) { return shape.q_heads / shape.kv_heads; }

// -- The copying thread

INLINE void copy_visit(u32 base, const Maps& maps, Ring<STAGES> ring, int row, int head) {
  copy_stage<Queries>(base + QUERIES_AT, base + QUERIES_FULL, base + QUERIES_FREE, maps.q, ring, row, head);
  copy_stage<Gradients>(base + GRADIENTS_AT, base + GRADIENTS_FULL, base + GRADIENTS_FREE, maps.dout, ring, row, head);
}

// -- The gathering threads, one for each query of a visit: what lies a row apart in memory is not for tensor maps

INLINE void gather_row(u32 base, const Tiles& tiles, const Rows& rows, Ring<STAGES> ring, int key_rows,
                       const Visit& visit, int head) {
  int i = threadIdx.x % ROWS;
  u32 at = base + (ring.stage * ROWS + i) * 4;
  bool inside = i < visit.rows;
  Interval keys = attended(tiles, visit, i, visit.rows, key_rows);
  UNLESS(30) mbarrier_wait(of_stage(base + ROWS_FREE, ring.stage), ring.phase ^ 1);
  store_shared(at + INTERVALS_AT, (u32)keys.from | (u32)keys.to << 16);
  store_shared(at + LSE_AT, bits_of(inside ? lse_of(rows.lse, visit.row + i, head) : INF));
  store_shared(at + DELTA_AT, bits_of(inside ? rows.delta.at(visit.row + i, head) : 0.f));
  mbarrier_arrive(of_stage(base + ROWS_FULL, ring.stage));
}

// The copying thread and the gathering ones walk through the same visits.
INLINE void feed(u32 base, bool gathers, const Maps& maps, const Rows& rows, const Shape& shape, const Tiles& tiles,
                 const Shares& shares) {
  Ring<STAGES> ring;
  Ring<1> keys;
  NO_UNROLL for (int n = first_unit(shares), end = end_unit(shares); n < end; n++) {
    Unit unit = shares.units[n];
    Item item = tiles.items[unit.item];
    if (item.count == 0) continue;
    if (!gathers)
      copy_kept<Keys, Values>(base + KEYS_AT, base + KEYS_FULL, base + KEYS_FREE, maps.k, maps.v, keys, item.row,
                              unit.head);
    keys.next();
    int group = group_size(shape), first = unit.head * group;
    NO_UNROLL for (int head = first; head < first + group; head++) {
      NO_UNROLL for (int i = item.first; i < item.first + item.count; i++) {
        if (gathers) gather_row(base, tiles, rows, ring, item.rows, tiles.visits[i], head);
        else copy_visit(base, maps, ring, tiles.visits[i].row, head);
        ring.next();
      }
    }
  }
}

// -- The computing warpgroups

INLINE void issue_scores(f32 (&s)[SCORES], u32 base, int group, u32 stage) {
  issue_over_features<Elem, Keys, Queries>(s, base + KEYS_AT, base + QUERIES_AT + stage * Queries::BYTES, group);
}
INLINE void issue_probability_gradients(f32 (&dp)[SCORES], u32 base, int group, u32 stage) {
  issue_over_features<Elem, Values, Gradients>(dp, base + VALUES_AT, base + GRADIENTS_AT + stage * Gradients::BYTES,
                                               group);
}
INLINE void issue_value_gradients(f32 (&dv)[V_DIM / 2], const u32 (&p)[ROWS / 16][4], u32 base, u32 stage) {
  issue_over_rows<Elem, Gradients>(dv, p, base + GRADIENTS_AT + stage * Gradients::BYTES);
}
INLINE void issue_key_gradients(f32 (&dk)[QK_DIM / 2], const u32 (&ds)[ROWS / 16][4], u32 base, u32 stage) {
  issue_over_rows<Elem, Queries>(dk, ds, base + QUERIES_AT + stage * Queries::BYTES);
}

// Two words of neighbouring queries of a stage.
template <class Two>
INLINE Two two_of(const unsigned char* shared, u32 at, u32 stage, int query) {
  return *(const Two*)(shared + at + (stage * ROWS + query) * 4);
}

INLINE void mask(f32 (&s)[SCORES], const unsigned char* shared, u32 stage, const Place& place) {
  UNROLL for (int c = 0; c < SCORES / 4; c++) {
    uint2 words = two_of<uint2>(shared, INTERVALS_AT, stage, 8 * c + place.column);
    UNROLL for (int i = 0; i < 4; i++) {
      u32 word = i % 2 ? words.y : words.x;
      Interval keys{(int)(word & 0xFFFF), (int)(word >> 16)};
      if (!contains(keys, place.group * GROUP_ROWS + place.row + 8 * (i / 2))) s[4 * c + i] = -INF;
    }
  }
}

INLINE void probabilities(f32 (&s)[SCORES], const unsigned char* shared, u32 stage, f32 scale, const Place& place) {
  UNROLL for (int c = 0; c < SCORES / 4; c++) {
    float2 lse = two_of<float2>(shared, LSE_AT, stage, 8 * c + place.column);
    UNROLL for (int i = 0; i < 4; i++)
      s[4 * c + i] = probability(s[4 * c + i], scale, i % 2 ? lse.y : lse.x);
  }
}

INLINE void score_gradients(f32 (&dp)[SCORES], const f32 (&p)[SCORES], const unsigned char* shared, u32 stage,
                            const Place& place) {
  UNROLL for (int c = 0; c < SCORES / 4; c++) {
    float2 delta = two_of<float2>(shared, DELTA_AT, stage, 8 * c + place.column);
    UNROLL for (int i = 0; i < 4; i++)
      dp[4 * c + i] = p[4 * c + i] * (dp[4 * c + i] - (i % 2 ? delta.y : delta.x));
  }
}

INLINE void compute_visit(u32 base, const unsigned char* shared, Ring<STAGES> ring, f32 scale, bool whole,
                          const Place& place, f32 (&dk)[QK_DIM / 2], f32 (&dv)[V_DIM / 2]) {
  f32 s[SCORES], dp[SCORES];
  u32 p[ROWS / 16][4], ds[ROWS / 16][4];
  UNLESS(13) mbarrier_wait(of_stage(base + QUERIES_FULL, ring.stage), ring.phase ^ (FAULT == 12));
  UNLESS(14) wgmma_fence(s);
  issue_scores(s, base, place.group, ring.stage);
  UNLESS(15) mbarrier_wait(of_stage(base + GRADIENTS_FULL, ring.stage), ring.phase);
  wgmma_fence(dp);
  issue_probability_gradients(dp, base, place.group, ring.stage);
  UNLESS(29) mbarrier_wait(of_stage(base + ROWS_FULL, ring.stage), ring.phase);
  UNLESS(16) wgmma_wait<1>(s);
  if (!whole) mask(s, shared, ring.stage, place);
  probabilities(s, shared, ring.stage, scale, place);
  if constexpr (FAULT == 20) wgmma_wait<0>();
  else if constexpr (FAULT != 18) wgmma_wait<0>(dp);
  score_gradients(dp, s, shared, ring.stage, place);
  if constexpr (FAULT == 18) wgmma_wait<0>(dp);
  arrive_warp_after_reads(of_stage(base + ROWS_FREE, ring.stage));
  // Both at once: packing frees registers as it goes, so that the sums leave enough of them.
  pack_operand<Elem>(p, s);
  pack_operand<Elem>(ds, dp);
  UNLESS(21) wgmma_fence(dv, p);
  issue_value_gradients(dv, p, base, ring.stage);
  wgmma_fence(dk, ds);
  issue_key_gradients(dk, ds, base, ring.stage);
  wgmma_wait<1>(dv);
  arrive_warp(of_stage(base + GRADIENTS_FREE, ring.stage));
  if constexpr (FAULT == 19) arrive_warp(of_stage(base + QUERIES_FREE, ring.stage));
  wgmma_wait<0>(dk);
  if constexpr (FAULT != 17 && FAULT != 19) arrive_warp(of_stage(base + QUERIES_FREE, ring.stage));
}

INLINE void add_gradients(const View<f32>& dkv, const Shape& shape, const Item& item, int kv_head, const Place& place,
                          const f32 (&dk)[QK_DIM / 2], const f32 (&dv)[V_DIM / 2]) {
  UNROLL for (int h = 0; h < 2; h++) {
    int row = place.group * GROUP_ROWS + place.row + 8 * h;
    if (row >= item.rows) continue;
    f32* to = dkv.row(item.row + row) + place.column;
    add_row<QK_DIM>(to + key_column(shape, kv_head), dk, h, shape.scale);
    add_row<V_DIM>(to + value_column(shape, kv_head), dv, h, 1);
  }
}

INLINE void compute(u32 base, const unsigned char* shared, const Shape& shape, const Tiles& tiles, const Shares& shares,
                    const View<f32>& dkv) {
  Place place;
  Ring<STAGES> ring;
  Ring<1> keys;
  NO_UNROLL for (int n = first_unit(shares), end = end_unit(shares); n < end; n++) {
    Unit unit = shares.units[n];
    Item item = tiles.items[unit.item];
    if (item.count == 0) continue;
    f32 dk[QK_DIM / 2], dv[V_DIM / 2];
    UNROLL for (int i = 0; i < QK_DIM / 2; i++)
      dk[i] = 0;
    UNROLL for (int i = 0; i < V_DIM / 2; i++)
      dv[i] = 0;
    UNLESS(11) mbarrier_wait(base + KEYS_FULL, keys.phase);
    keys.next();
    NO_UNROLL for (int head = 0; head < group_size(shape); head++) {
      NO_UNROLL for (int i = item.first; i < item.first + item.count; i++) {
        Visit visit = tiles.visits[i];
        bool whole = visit.table < 0 && visit.rows == ROWS && item.rows == KEYS;
        compute_visit(base, shared, ring, shape.scale * LOG2_E, whole, place, dk, dv);
        ring.next();
      }
    }
    arrive_warp(base + KEYS_FREE);
    add_gradients(dkv, shape, item, unit.head, place, dk, dv);
  }
}

INLINE void init_barriers(u32 base) {
  init_stages(base + KEYS_FULL, base + KEYS_FREE, 1);
  init_stages(base + QUERIES_FULL, base + QUERIES_FREE, STAGES);
  init_stages(base + GRADIENTS_FULL, base + GRADIENTS_FREE, STAGES);
  for (int s = 0; s < STAGES; s++) {
    mbarrier_init(of_stage(base + ROWS_FULL, s), ROWS);
    mbarrier_init(of_stage(base + ROWS_FREE, s), COMPUTING_WARPS);
  }
}

}  // namespace of_keys

KERNEL void __launch_bounds__(SM90_THREADS, 1)
    SIZED_NAME(attention_backward_keys_sm90)(Shape shape, const __grid_constant__ TensorMap q,
                                             const __grid_constant__ TensorMap k, const __grid_constant__ TensorMap v,
                                             const __grid_constant__ TensorMap dout, Tiles tiles, Shares shares,
                                             View<const f32> lse, View<const f32> delta, View<f32> dkv) {
  DYNAMIC_SHARED(shared);
  u32 base = shared_address(shared), thread = threadIdx.x;
  if (threadIdx.x == 0) of_keys::init_barriers(base);
  publish_barriers();
  if (threadIdx.x < GROUP_THREADS) {
    give_registers<of_keys::COPYING_REGISTERS>();
    bool gathers = thread >= GROUP_THREADS - of_keys::ROWS, copies = thread < 32 && elect_one();
    if (gathers || copies) of_keys::feed(base, gathers, {&q, &k, &v, &dout}, {lse, delta}, shape, tiles, shares);
  } else {
    take_registers<computing_registers(of_keys::COPYING_REGISTERS)>();
    of_keys::compute(base, shared, shape, tiles, shares, dkv);
  }
}
EXPORT(SIZED_NAME(attention_backward_keys_sm90))

#endif

// ---- Gradient of queries: queries and gradients of outputs stay in shared memory, keys and values pass by.
namespace of_queries {

constexpr int ROWS = COMPUTING_GROUPS * GROUP_ROWS;
constexpr int KEYS = QK_DIM > 128 ? 64 : 128;
constexpr int STAGES = QK_DIM > 192 ? 1 : 2, COPYING_REGISTERS = 24;
constexpr int SCORES = KEYS / 2;

using Queries = Tile<ROWS, QK_DIM>;
using Gradients = Tile<ROWS, V_DIM>;
using Keys = Tile<KEYS, QK_DIM>;
using Values = Tile<KEYS, V_DIM>;

constexpr u32 QUERIES_AT = 0, GRADIENTS_AT = Queries::BYTES, KEYS_AT = GRADIENTS_AT + Gradients::BYTES;
constexpr u32 VALUES_AT = KEYS_AT + STAGES * Keys::BYTES;
constexpr u32 QUERIES_FULL = VALUES_AT + STAGES * Values::BYTES, QUERIES_FREE = QUERIES_FULL + 8;
constexpr u32 KEYS_FULL = QUERIES_FREE + 8, KEYS_FREE = KEYS_FULL + 8 * STAGES;
constexpr u32 VALUES_FULL = KEYS_FREE + 8 * STAGES, VALUES_FREE = VALUES_FULL + 8 * STAGES;
constexpr u32 SHARED_BYTES = VALUES_FREE + 8 * STAGES;
static_assert(SHARED_BYTES <= MOST_SHARED_BYTES, "the block's shared memory");
LAUNCHED_WITH(64, 64, 128, 128, 98384);
LAUNCHED_WITH(128, 128, 128, 128, 196688);
LAUNCHED_WITH(192, 128, 128, 64, 163920);
LAUNCHED_WITH(256, 256, 128, 64, 196656);

// -- The copying thread

INLINE void copy_visit(u32 base, const Maps& maps, Ring<STAGES> ring, int row, int kv_head) {
  copy_stage<Keys>(base + KEYS_AT, base + KEYS_FULL, base + KEYS_FREE, maps.k, ring, row, kv_head);
  copy_stage<Values>(base + VALUES_AT, base + VALUES_FULL, base + VALUES_FREE, maps.v, ring, row, kv_head);
}

INLINE void copy_tiles(u32 base, const Maps& maps, const Shape& shape, const Tiles& tiles, const Shares& shares) {
  Ring<STAGES> ring;
  Ring<1> queries;
  NO_UNROLL for (int n = first_unit(shares), end = end_unit(shares); n < end; n++) {
    Unit unit = shares.units[n];
    Item item = tiles.items[unit.item];
    if (item.count == 0) continue;
    int head = unit.head, kv_head = kv_head_of(shape, head);
    copy_kept<Queries, Gradients>(base + QUERIES_AT, base + QUERIES_FULL, base + QUERIES_FREE, maps.q, maps.dout,
                                  queries, item.row, head);
    queries.next();
    NO_UNROLL for (int i = item.first; i < item.first + item.count; i++) {
      copy_visit(base, maps, ring, tiles.visits[i].row, kv_head);
      ring.next();
    }
  }
}

// -- The computing warpgroups

INLINE void issue_scores(f32 (&s)[SCORES], u32 base, int group, u32 stage) {
  issue_over_features<Elem, Queries, Keys>(s, base + QUERIES_AT, base + KEYS_AT + stage * Keys::BYTES, group);
}
INLINE void issue_probability_gradients(f32 (&dp)[SCORES], u32 base, int group, u32 stage) {
  issue_over_features<Elem, Gradients, Values>(dp, base + GRADIENTS_AT, base + VALUES_AT + stage * Values::BYTES,
                                               group);
}
INLINE void issue_query_gradients(f32 (&dq)[QK_DIM / 2], const u32 (&ds)[KEYS / 16][4], u32 base, u32 stage) {
  issue_over_rows<Elem, Keys>(dq, ds, base + KEYS_AT + stage * Keys::BYTES);
}

// Of a thread's two rows.
struct Rows {
  f32 lse[2], delta[2];
};

INLINE Rows rows_of(const View<const f32>& lse, const View<const f32>& delta, const Item& item, int head,
                    const Place& place) {
  Rows rows{{INF, INF}, {0, 0}};
  UNROLL for (int h = 0; h < 2; h++) {
    int row = place.group * GROUP_ROWS + place.row + 8 * h;
    if (row >= item.rows) continue;
    rows.lse[h] = lse_of(lse, item.row + row, head);
    rows.delta[h] = delta.at(item.row + row, head);
  }
  return rows;
}

INLINE void probabilities(f32 (&s)[SCORES], const Rows& rows, f32 scale) {
  UNROLL for (int i = 0; i < SCORES; i++)
    s[i] = probability(s[i], scale, rows.lse[i / 2 % 2]);
}

INLINE void compute_visit(u32 base, Ring<STAGES> ring, const Rows& rows, const Tiles& tiles, const Visit& visit,
                          const Item& item, f32 scale, const Place& place, f32 (&dq)[QK_DIM / 2]) {
  f32 s[SCORES], dp[SCORES];
  u32 ds[KEYS / 16][4];
  UNLESS(13) mbarrier_wait(of_stage(base + KEYS_FULL, ring.stage), ring.phase ^ (FAULT == 12));
  UNLESS(14) wgmma_fence(s);
  issue_scores(s, base, place.group, ring.stage);
  UNLESS(15) mbarrier_wait(of_stage(base + VALUES_FULL, ring.stage), ring.phase);
  wgmma_fence(dp);
  issue_probability_gradients(dp, base, place.group, ring.stage);
  UNLESS(16) wgmma_wait<1>(s);
  mask_scores(s, tiles, visit, item, place);
  probabilities(s, rows, scale);
  if constexpr (FAULT == 20) wgmma_wait<0>();
  else if constexpr (FAULT != 18) wgmma_wait<0>(dp);
  UNROLL for (int i = 0; i < SCORES; i++)
    s[i] *= dp[i] - rows.delta[i / 2 % 2];
  if constexpr (FAULT == 18) wgmma_wait<0>(dp);
  arrive_warp(of_stage(base + VALUES_FREE, ring.stage));
  pack_operand<Elem>(ds, s);
  UNLESS(21) wgmma_fence(dq, ds);
  issue_query_gradients(dq, ds, base, ring.stage);
  if constexpr (FAULT == 19) arrive_warp(of_stage(base + KEYS_FREE, ring.stage));
  wgmma_wait<0>(dq);
  if constexpr (FAULT != 17 && FAULT != 19) arrive_warp(of_stage(base + KEYS_FREE, ring.stage));
}

INLINE void add_gradients(const View<f32>& dq, const Shape& shape, const Item& item, int head, const Place& place,
                          const f32 (&sums)[QK_DIM / 2]) {
  UNROLL for (int h = 0; h < 2; h++) {
    int row = place.group * GROUP_ROWS + place.row + 8 * h;
    if (row < item.rows)
      add_row<QK_DIM>(dq.row(item.row + row) + query_column(shape, head) + place.column, sums, h, shape.scale);
  }
}

INLINE void compute(u32 base, const Shape& shape, const Tiles& tiles, const Shares& shares, const View<const f32>& lse,
                    const View<const f32>& delta, const View<f32>& dq) {
  Place place;
  Ring<STAGES> ring;
  Ring<1> queries;
  NO_UNROLL for (int n = first_unit(shares), end = end_unit(shares); n < end; n++) {
    Unit unit = shares.units[n];
    Item item = tiles.items[unit.item];
    if (item.count == 0) continue;
    Rows rows = rows_of(lse, delta, item, unit.head, place);
    f32 sums[QK_DIM / 2];
    UNROLL for (int i = 0; i < QK_DIM / 2; i++)
      sums[i] = 0;
    UNLESS(11) mbarrier_wait(base + QUERIES_FULL, queries.phase);
    queries.next();
    NO_UNROLL for (int i = item.first; i < item.first + item.count; i++) {
      compute_visit(base, ring, rows, tiles, tiles.visits[i], item, shape.scale * LOG2_E, place, sums);
      ring.next();
    }
    arrive_warp(base + QUERIES_FREE);
    add_gradients(dq, shape, item, unit.head, place, sums);
  }
}

INLINE void init_barriers(u32 base) {
  init_stages(base + QUERIES_FULL, base + QUERIES_FREE, 1);
  init_stages(base + KEYS_FULL, base + KEYS_FREE, STAGES);
  init_stages(base + VALUES_FULL, base + VALUES_FREE, STAGES);
}

}  // namespace of_queries

KERNEL void __launch_bounds__(SM90_THREADS, 1)
    SIZED_NAME(attention_backward_queries_sm90)(Shape shape, const __grid_constant__ TensorMap q,
                                                const __grid_constant__ TensorMap k,
                                                const __grid_constant__ TensorMap v,
                                                const __grid_constant__ TensorMap dout, Tiles tiles, Shares shares,
                                                View<const f32> lse, View<const f32> delta, View<f32> dq) {
  DYNAMIC_SHARED(shared);
  u32 base = shared_address(shared);
  if (threadIdx.x == 0) of_queries::init_barriers(base);
  publish_barriers();
  if (threadIdx.x < GROUP_THREADS) {
    give_registers<of_queries::COPYING_REGISTERS>();
    if (threadIdx.x < 32 && elect_one()) of_queries::copy_tiles(base, {&q, &k, &v, &dout}, shape, tiles, shares);
  } else {
    take_registers<computing_registers(of_queries::COPYING_REGISTERS)>();
    of_queries::compute(base, shape, tiles, shares, lse, delta, dq);
  }
}
EXPORT(SIZED_NAME(attention_backward_queries_sm90))
