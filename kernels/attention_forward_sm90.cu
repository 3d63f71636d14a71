// Attention forward for sm_90a: queries stay in shared memory, keys and values pass by in stages.
//
// The two computing warpgroups take turns with the tensor cores: while one turns scores into probabilities, the other
// one's products run. In its turn a warpgroup issues the scores of a visit together with the outputs of the visit
// before.
//
// Maps, each with boxes {64, ROWS or KEYS, dim / 64} and a swizzle of 128 bytes: q {64, queries, q_heads QK_DIM / 64},
// k {64, keys, kv_heads QK_DIM / 64}, v {64, keys, kv_heads V_DIM / 64}.
#include "attention_sm90.cuh"

using Elem = ELEM;

constexpr int ROWS = COMPUTING_GROUPS * GROUP_ROWS;
// Outputs of 256 features leave registers for the scores of 64 keys only.
constexpr int KEYS = V_DIM > 128 ? 64 : 128;
constexpr int STAGES = 2, COPYING_REGISTERS = 24;
// Accumulators of a thread.
constexpr int SCORES = KEYS / 2, OUTPUTS = V_DIM / 2;

using Queries = Tile<ROWS, QK_DIM>;
using Keys = Tile<KEYS, QK_DIM>;
using Values = Tile<KEYS, V_DIM>;

constexpr u32 QUERIES_AT = 0, KEYS_AT = Queries::BYTES, VALUES_AT = KEYS_AT + STAGES * Keys::BYTES;
constexpr u32 QUERIES_FULL = VALUES_AT + STAGES * Values::BYTES, QUERIES_FREE = QUERIES_FULL + 8;
constexpr u32 KEYS_FULL = QUERIES_FREE + 8, KEYS_FREE = KEYS_FULL + 8 * STAGES;
constexpr u32 VALUES_FULL = KEYS_FREE + 8 * STAGES, VALUES_FREE = VALUES_FULL + 8 * STAGES;
constexpr u32 SHARED_BYTES = VALUES_FREE + 8 * STAGES;
static_assert(SHARED_BYTES <= MOST_SHARED_BYTES, "the block's shared memory");
LAUNCHED_WITH(64, 64, 128, 128, 82000);
LAUNCHED_WITH(128, 128, 128, 128, 163920);
LAUNCHED_WITH(192, 128, 128, 128, 213072);
LAUNCHED_WITH(256, 256, 128, 64, 196688);

// ---- The copying thread

INLINE void copy_tiles(u32 base, const TensorMap* q, const TensorMap* k, const TensorMap* v, const Shape& shape,
                       const Tiles& tiles, const Shares& shares) {
  Ring<STAGES> ring;
  Ring<1> queries;
  NO_UNROLL for (int n = first_unit(shares), end = end_unit(shares); n < end; n++) {
    Unit unit = shares.units[n];
    Item item = tiles.items[unit.item];
    int head = unit.head, kv_head = kv_head_of(shape, head);
    if (item.count == 0) continue;
    mbarrier_wait(base + QUERIES_FREE, queries.phase ^ 1);
    mbarrier_arrive_expect(base + QUERIES_FULL, Queries::BYTES);
    tensor_load(base + QUERIES_AT, q, base + QUERIES_FULL, 0, item.row, head * Queries::PANELS);
    queries.next();
    NO_UNROLL for (int i = item.first; i < item.first + item.count; i++) {
      int row = tiles.visits[i].row;
      copy_stage<Keys>(base + KEYS_AT, base + KEYS_FULL, base + KEYS_FREE, k, ring, row, kv_head);
      copy_stage<Values>(base + VALUES_AT, base + VALUES_FULL, base + VALUES_FREE, v, ring, row, kv_head);
      ring.next();
    }
  }
}

// ---- Products and softmax of a warpgroup

INLINE void issue_scores(f32 (&s)[SCORES], u32 base, int group, u32 stage) {
  issue_over_features<Elem, Queries, Keys>(s, base + QUERIES_AT, base + KEYS_AT + stage * Keys::BYTES, group);
}
INLINE void issue_outputs(f32 (&o)[OUTPUTS], const u32 (&p)[KEYS / 16][4], u32 base, u32 stage) {
  issue_over_rows<Elem, Values>(o, p, base + VALUES_AT + stage * Values::BYTES);
}

// Of a thread's two rows: the largest score yet, and the sum of this thread's columns of exp(score - largest).
struct Softmax {
  f32 most[2], sum[2];
};

INLINE f32 across_row_max(f32 x) {
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}
INLINE f32 across_row_sum(f32 x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}

// Turns scores into probabilities relative to the largest score yet; `factor` is what earlier ones count for now.
// `scale` is positive, and to the base of 2.
INLINE void exponentiate(f32 (&s)[SCORES], Softmax& rows, f32 (&factor)[2], f32 scale) {
  UNROLL for (int h = 0; h < 2; h++) {
    f32 most = rows.most[h];
    UNROLL for (int c = 0; c < SCORES / 4; c++)
      most = fmaxf(most, fmaxf(s[4 * c + 2 * h], s[4 * c + 2 * h + 1]));
    most = across_row_max(most);
    f32 base = most == -INF ? 0.f : most * scale;  // a row without any key yet: exp2(-inf), not of -inf + inf
    factor[h] = exp2_fast(rows.most[h] * scale - base);
    rows.most[h] = most;
    f32 sum = 0;
    UNROLL for (int c = 0; c < SCORES / 4; c++) {
      UNROLL for (int e = 0; e < 2; e++) {
        f32& p = s[4 * c + 2 * h + e];
        p = exp2_fast(fmaf(p, scale, -base));
        sum += p;
      }
    }
    rows.sum[h] = rows.sum[h] * factor[h] + sum;
  }
}

INLINE void rescale(f32 (&o)[OUTPUTS], const f32 (&factor)[2]) {
  UNROLL for (int i = 0; i < OUTPUTS; i++)
    o[i] *= factor[i / 2 % 2];
}

INLINE void write_rows(f32 (&o)[OUTPUTS], Softmax& rows, const Item& item, int head, f32 scale, const Place& place,
                       const View<f32>& out, const View<f32>& lse) {
  UNROLL for (int h = 0; h < 2; h++) {
    f32 sum = across_row_sum(rows.sum[h]), factor = sum > 0 ? 1 / sum : 0.f;
    int row = place.group * GROUP_ROWS + place.row + 8 * h;
    if (row >= item.rows) continue;
    if (place.column == 0) lse.at(item.row + row, head) = sum > 0 ? rows.most[h] * scale + logf(sum) : -INF;
    f32* to = out.row(item.row + row) + head * V_DIM + place.column;
    UNROLL for (int c = 0; c < OUTPUTS / 4; c++)
      *(float2*)(to + 8 * c) = float2{o[4 * c + 2 * h] * factor, o[4 * c + 2 * h + 1] * factor};
  }
}

// ---- A computing warpgroup

// The tensor cores pass from one warpgroup to the other. The first one has the first turn.
INLINE void await_turn(int group) { named_sync(1 + group, COMPUTING_GROUPS * GROUP_THREADS); }
INLINE void pass_turn(int group) { named_arrive(2 - group, COMPUTING_GROUPS * GROUP_THREADS); }

struct Stages {
  Ring<STAGES> keys, values;
  Ring<1> queries;
};

INLINE void wait_for_keys(u32 base, Ring<STAGES> ring) {
  UNLESS(13) mbarrier_wait(of_stage(base + KEYS_FULL, ring.stage), ring.phase ^ (FAULT == 12));
}
INLINE void free_keys(u32 base, Ring<STAGES>& ring) {
  UNLESS(17) arrive_warp(of_stage(base + KEYS_FREE, ring.stage));
  ring.next();
}
INLINE void free_values(u32 base, Ring<STAGES>& ring) {
  arrive_warp(of_stage(base + VALUES_FREE, ring.stage));
  ring.next();
}

INLINE void compute_item(u32 base, Stages& at, const Shape& shape, const Tiles& tiles, const Item& item,
                         const Place& place, f32 (&o)[OUTPUTS], Softmax& rows) {
  f32 s[SCORES], factor[2], scale = shape.scale * LOG2_E;
  u32 p[KEYS / 16][4];
  UNLESS(11) mbarrier_wait(base + QUERIES_FULL, at.queries.phase);
  at.queries.next();

  wait_for_keys(base, at.keys);
  await_turn(place.group);
  UNLESS(14) wgmma_fence(s);
  issue_scores(s, base, place.group, at.keys.stage);
  pass_turn(place.group);
  UNLESS(16) wgmma_wait<0>(s);
  free_keys(base, at.keys);
  mask_scores(s, tiles, tiles.visits[item.first], item, place);
  exponentiate(s, rows, factor, scale);
  pack_operand<Elem>(p, s);

  NO_UNROLL for (int i = item.first + 1; i < item.first + item.count; i++) {
    wait_for_keys(base, at.keys);
    await_turn(place.group);
    wgmma_fence(s);
    issue_scores(s, base, place.group, at.keys.stage);
    UNLESS(15) mbarrier_wait(of_stage(base + VALUES_FULL, at.values.stage), at.values.phase);
    wgmma_fence(o, p);
    issue_outputs(o, p, base, at.values.stage);
    pass_turn(place.group);
    wgmma_wait<1>(s);
    free_keys(base, at.keys);
    mask_scores(s, tiles, tiles.visits[i], item, place);
    exponentiate(s, rows, factor, scale);
    if constexpr (FAULT == 18) rescale(o, factor);
    if constexpr (FAULT == 19) free_values(base, at.values);
    if constexpr (FAULT == 20) wgmma_wait<0>();
    else wgmma_wait<0>(o);
    UNLESS(19) free_values(base, at.values);
    UNLESS(18) rescale(o, factor);
    pack_operand<Elem>(p, s);
  }
  arrive_warp(base + QUERIES_FREE);

  mbarrier_wait(of_stage(base + VALUES_FULL, at.values.stage), at.values.phase);
  UNLESS(21) wgmma_fence(o, p);
  issue_outputs(o, p, base, at.values.stage);
  wgmma_wait<0>(o);
  free_values(base, at.values);
  if constexpr (FAULT == 27) {
    if (item.count > 2 && threadIdx.x % GROUP_THREADS < 32) named_sync(5, GROUP_THREADS);
  }
}

INLINE void compute(u32 base, const Shape& shape, const Tiles& tiles, const Shares& shares, const View<f32>& out,
                    const View<f32>& lse) {
  Place place;
  Stages at;
  if (place.group == 1) pass_turn(place.group);
  NO_UNROLL for (int n = first_unit(shares), end = end_unit(shares); n < end; n++) {
    Unit unit = shares.units[n];
    Item item = tiles.items[unit.item];
    f32 o[OUTPUTS];
    Softmax rows{{-INF, -INF}, {0, 0}};
    UNROLL for (int i = 0; i < OUTPUTS; i++)
      o[i] = 0;
    if (item.count > 0) compute_item(base, at, shape, tiles, item, place, o, rows);
    write_rows(o, rows, item, unit.head, shape.scale, place, out, lse);
  }
  if (place.group == 0) await_turn(place.group);  // takes the other one's last pass
}

KERNEL void __launch_bounds__(SM90_THREADS, 1)
    SIZED_NAME(attention_forward_sm90)(Shape shape, const __grid_constant__ TensorMap q,
                                       const __grid_constant__ TensorMap k, const __grid_constant__ TensorMap v,
                                       Tiles tiles, Shares shares, View<f32> out, View<f32> lse) {
  DYNAMIC_SHARED(shared);
  u32 base = shared_address(shared);
  if (threadIdx.x == 0) {
    init_stages(base + QUERIES_FULL, base + QUERIES_FREE, 1);
    init_stages(base + KEYS_FULL, base + KEYS_FREE, STAGES);
    init_stages(base + VALUES_FULL, base + VALUES_FREE, STAGES);
  }
  publish_barriers();
  if (threadIdx.x < GROUP_THREADS) {
    give_registers<COPYING_REGISTERS>();
    if (threadIdx.x < 32 && elect_one()) copy_tiles(base, &q, &k, &v, shape, tiles, shares);
  } else {
    take_registers<computing_registers(COPYING_REGISTERS)>();
    compute(base, shape, tiles, shares, out, lse);
  }
}
EXPORT(SIZED_NAME(attention_forward_sm90))
