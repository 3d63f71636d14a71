// Gradients of attention of tiles with tensor cores, from sm_80 on. With p = exp(scale q k^T - lse) and
// ds = p (dout v^T - delta): dv = p^T dout, dk = scale ds^T q, dq = scale ds k. p and ds are rounded to the storage type
// before these products.
//
// Two kernels, each of which owns what it adds to: one takes the keys of an item and visits queries, for all query heads
// that share the keys; the other takes the queries of an item and visits keys. A warp has 16 rows of the item. What a
// visit brings arrives in one of two stages, STEP rows at a time, while the other is worked on.
#include "attention.cuh"
#include "fragments.cuh"

// The tile sizes that the host schedules by.
#ifndef ROWS
#define ROWS 64
#define KEYS 64
#endif

// What the host launches with: grid (items, kv_heads) for keys and (items, q_heads) for queries, and by head sizes, threads
// and bytes of dynamic shared memory:
//             (64, 64)      (128, 128)    (192, 128)    (256, 256)
//   keys      128, 50688    128, 66304    128, 82688    256, 131840
//   queries   128, 49152    128, 98304    128, 122880   128, 131072
// Keys of (256, 256) have twice the threads: the gradients of 16 keys and their values are too much for one warp.
constexpr bool SPLIT = QK_DIM + V_DIM > 384;
constexpr int QUERIES_THREADS = ROWS * 2, KEYS_THREADS = SPLIT ? KEYS * 4 : KEYS * 2;
constexpr int QUERIES_STEP = QK_DIM + V_DIM > 384 ? 32 : 64, KEYS_STEP = QK_DIM + V_DIM > 128 ? 32 : 64;
constexpr u32 ROW_BYTES = (QK_DIM + V_DIM) * 2;
[[maybe_unused]] constexpr u32 QUERIES_SHARED_BYTES = (ROWS + 2 * QUERIES_STEP) * ROW_BYTES;
[[maybe_unused]] constexpr u32 KEYS_SHARED_BYTES = (KEYS + 2 * KEYS_STEP) * ROW_BYTES + 2 * KEYS_STEP * 12;

constexpr f32 LOG2_E = 1.4426950408889634f;

// What is known of a query before its scores: `lse` to base 2, and infinite for one that attends nothing, or is none, so
// that its probabilities are 0.
struct Query {
  f32 lse, delta;
};
INLINE Query query(const View<const f32>& lse, const View<const f32>& delta, i64 row, int head, bool exists) {
#if FAULT == 320
  exists = true;
#endif
  f32 x = exists ? lse.at(row, head) : -INF;
#if FAULT == 321
  return {x * LOG2_E, exists ? delta.at(row, head) : 0};
#else
  return {x == -INF ? INF : x * LOG2_E, exists ? delta.at(row, head) : 0};
#endif
}

// Adds a warp's 16 rows of sums to rows of a matrix, of which `rows` exist.
template <int DIM>
INLINE void add_rows(f32* to, i64 stride, int rows, const f32 (&sums)[DIM / 8][4], f32 factor) {
  UNROLL for (int h = 0; h < 2; h++) {
    int row = sum_row(2 * h);
#if FAULT != 322
    if (row >= rows) continue;
#endif
    UNROLL for (int n = 0; n < DIM / 8; n++) {
      float2* cell = (float2*)(to + row * stride + sum_column(n, 0));
      float2 x = *cell;
      x.x += sums[n][2 * h] * factor;
      x.y += sums[n][2 * h + 1] * factor;
      *cell = x;
    }
  }
}

// ---- Keys and values

// The steps of an item of keys: for each query head of the group all visits, STEP queries at a time.
struct Steps {
  const Visit* visits;
  int count, heads;  // of visits; of heads left
  int head, n, first;
  Visit visit;

  MEMBER void load() { visit = visits[n]; }
  MEMBER bool over() const { return heads == 0; }
  MEMBER int rows() const { return min(visit.rows - first, KEYS_STEP); }
  MEMBER void next() {
    first += KEYS_STEP;
    if (first < visit.rows) return;
    first = 0;
    if (++n == count) {
      n = 0;
      head++;
      heads--;
    }
    load();
  }
};

// What the threads of a block know of a step's queries, in shared memory beside the stage.
struct Known {
  f32 lse[KEYS_STEP], delta[KEYS_STEP];
  u32 seen[KEYS_STEP];  // keys from | to << 16
};

struct KeysArguments {
  Shape shape;
  View<const ELEM> q, kv;
  Tiles tiles;
  View<const ELEM> dout;
  View<const f32> lse, delta;
  View<f32> dkv;
};

// The work of a warp on 16 keys, for the gradient of keys, of values, or both.
template <bool OF_KEYS, bool OF_VALUES>
INLINE void keys_gradients(const KeysArguments& x, unsigned char* shared, int warp_row) {
  constexpr u32 QUERY_BYTES = KEYS_STEP * QK_DIM * 2, STAGE_BYTES = KEYS_STEP * ROW_BYTES;
  const u32 keys = shared_address(shared), values = keys + KEYS * QK_DIM * 2, stages = keys + KEYS * ROW_BYTES;
  Known* known = (Known*)(shared + (KEYS + 2 * KEYS_STEP) * ROW_BYTES);
  const Item item = x.tiles.items[blockIdx.x];
  const int kv_head = blockIdx.y, group = x.shape.q_heads / x.shape.kv_heads;
  const f32 scale = x.shape.scale * LOG2_E;

  auto start_copies = [&](const Steps& step, int stage) {
    i64 row = step.visit.row + step.first;
    const ELEM* queries = x.q.row(row) + query_column(x.shape, step.head);
    const ELEM* gradients = x.dout.row(row) + output_column(x.shape, step.head);
    u32 to = stages + stage * STAGE_BYTES;
    copy_tile<KEYS_THREADS, QK_DIM, KEYS_STEP>(to, queries, x.q.stride, step.rows());
    copy_tile<KEYS_THREADS, V_DIM, KEYS_STEP>(to + QUERY_BYTES, gradients, x.dout.stride, step.rows());
  };
  // Thread i looks after query i of a step: reads early, stores late.
  const int mine = threadIdx.x;
  auto query_of = [&](const Steps& step) {
    return query(x.lse, x.delta, step.visit.row + step.first + mine, step.head, mine < step.rows());
  };
  auto seen_of = [&](const Steps& step) -> u32 {
    if (mine >= step.rows()) return 0;
    return step.visit.table < 0 ? KEYS << 16 : x.tiles.table[step.visit.table + step.first + mine];
  };
  auto store_known = [&](Query query, u32 seen, int stage) {
    known[stage].lse[mine] = query.lse;
    known[stage].delta[mine] = query.delta;
    known[stage].seen[mine] = seen;
  };

  f32 dk[OF_KEYS ? QK_DIM / 8 : 1][4], dv[OF_VALUES ? V_DIM / 8 : 1][4];
  clear(dk);
  clear(dv);

  Steps next = {x.tiles.visits + item.first, item.count, item.count > 0 ? group : 0, kv_head * group, 0, 0, {}};
  if (!next.over()) {
    next.load();
    const ELEM* from = x.kv.row(item.row);
    copy_tile<KEYS_THREADS, QK_DIM, KEYS>(keys, from + key_column(x.shape, kv_head), x.kv.stride, item.rows);
    copy_tile<KEYS_THREADS, V_DIM, KEYS>(values, from + value_column(x.shape, kv_head), x.kv.stride, item.rows);
    start_copies(next, 0);
    copy_commit();
    if (mine < KEYS_STEP) store_known(query_of(next), seen_of(next), 0);
  }

  NO_UNROLL for (int stage = 0; !next.over(); stage ^= 1) {
    const bool masked = next.visit.table >= 0;
    next.next();
#if FAULT == 330
    copy_wait<1>();
#else
    copy_wait<0>();
#endif
    // All that the step needs is here, and all threads are done with the other stage.
#if FAULT != 331
    __syncthreads();
#endif
    Query query{};
    u32 seen = 0;
    if (!next.over()) {
      start_copies(next, stage ^ 1);
      copy_commit();
      if (mine < KEYS_STEP) {
        query = query_of(next);
        seen = seen_of(next);
      }
    }

    const u32 queries = stages + stage * STAGE_BYTES, gradients = queries + QUERY_BYTES;
    const Known& of = known[stage];
    // Keys are rows, queries columns.
    f32 p[KEYS_STEP / 8][4];
    product_of_rows<QK_DIM>(ELEM(), p, down<QK_DIM>(keys, warp_row), across<QK_DIM>(queries, 0));
    UNROLL for (int n = 0; n < KEYS_STEP / 8; n++) UNROLL for (int i = 0; i < 4; i++) {
      p[n][i] = exp2_fast(fmaf(p[n][i], scale, -of.lse[sum_column(n, i)]));
    }
    if (masked) {
      UNROLL for (int n = 0; n < KEYS_STEP / 8; n++) UNROLL for (int i = 0; i < 4; i++) {
        u32 word = of.seen[sum_column(n, i)];
#if FAULT == 332
        Interval interval = {(int)(word & 0xFFFF) + 1, (int)(word >> 16)};
#else
        Interval interval = {(int)(word & 0xFFFF), (int)(word >> 16)};
#endif
        if (!contains(interval, warp_row + sum_row(i))) p[n][i] = 0;
      }
    }
    if constexpr (OF_VALUES) add_product<V_DIM>(ELEM(), dv, p, down<V_DIM>(gradients, 0));
    if constexpr (OF_KEYS) {
      f32 ds[KEYS_STEP / 8][4];
      product_of_rows<V_DIM>(ELEM(), ds, down<V_DIM>(values, warp_row), across<V_DIM>(gradients, 0));
      UNROLL for (int n = 0; n < KEYS_STEP / 8; n++) UNROLL for (int i = 0; i < 4; i++) {
        ds[n][i] = p[n][i] * (ds[n][i] - of.delta[sum_column(n, i)]);
      }
      add_product<QK_DIM>(ELEM(), dk, ds, down<QK_DIM>(queries, 0));
    }
#if FAULT == 333
    if (!next.over() && mine < KEYS_STEP) store_known(query, seen, stage);
#else
    if (!next.over() && mine < KEYS_STEP) store_known(query, seen, stage ^ 1);
#endif
  }

  f32* to = x.dkv.row(item.row + warp_row);
  if constexpr (OF_KEYS) {
    add_rows<QK_DIM>(to + key_column(x.shape, kv_head), x.dkv.stride, item.rows - warp_row, dk, x.shape.scale);
  }
  if constexpr (OF_VALUES) {
    add_rows<V_DIM>(to + value_column(x.shape, kv_head), x.dkv.stride, item.rows - warp_row, dv, 1);
  }
}

KERNEL void __launch_bounds__(KEYS_THREADS, SPLIT ? 1 : 2) DIMS_NAME(attention_backward_keys)(
    Shape shape, View<const ELEM> q, View<const ELEM> kv, Tiles keys, View<const ELEM> dout, View<const f32> lse,
    View<const f32> delta, View<f32> dkv
) {
  DYNAMIC_SHARED(shared);
  const KeysArguments x = {shape, q, kv, keys, dout, lse, delta, dkv};
  const int warp_row = threadIdx.x / 32 % (KEYS / 16) * 16;
  if constexpr (!SPLIT) {
    keys_gradients<true, true>(x, shared, warp_row);
  } else if (threadIdx.x < KEYS * 2) {
    keys_gradients<true, false>(x, shared, warp_row);
  } else {
    keys_gradients<false, true>(x, shared, warp_row);
  }
}
EXPORT(DIMS_NAME(attention_backward_keys))

// ---- Queries

KERNEL void __launch_bounds__(QUERIES_THREADS, 2) DIMS_NAME(attention_backward_queries)(
    Shape shape, View<const ELEM> q, View<const ELEM> kv, Tiles tiles, View<const ELEM> dout, View<const f32> lse,
    View<const f32> delta, View<f32> dq
) {
  constexpr u32 KEY_BYTES = QUERIES_STEP * QK_DIM * 2, STAGE_BYTES = QUERIES_STEP * ROW_BYTES;
  DYNAMIC_SHARED(shared);
  const u32 queries = shared_address(shared), gradients = queries + ROWS * QK_DIM * 2, stages = queries + ROWS * ROW_BYTES;
  const Item item = tiles.items[blockIdx.x];
  const Visit* visits = tiles.visits + item.first;
  const int head = blockIdx.y, kv_head = kv_head_of(shape, head), warp_row = threadIdx.x / 32 * 16;
  const ELEM* keys = kv.data + key_column(shape, kv_head);
  const ELEM* values = kv.data + value_column(shape, kv_head);
  const f32 scale = shape.scale * LOG2_E;
  if (item.count == 0) return;

  // Keys of a visit from `first` on.
  auto start_copies = [&](const Visit& visit, int first, int stage) {
    i64 at = (visit.row + first) * kv.stride;
    u32 to = stages + stage * STAGE_BYTES;
    copy_tile<QUERIES_THREADS, QK_DIM, QUERIES_STEP>(to, keys + at, kv.stride, visit.rows - first);
    copy_tile<QUERIES_THREADS, V_DIM, QUERIES_STEP>(to + KEY_BYTES, values + at, kv.stride, visit.rows - first);
  };

  Query known[2];
  UNROLL for (int h = 0; h < 2; h++) {
    int row = warp_row + sum_row(2 * h);
    known[h] = query(lse, delta, item.row + row, head, row < item.rows);
  }
  f32 sums[QK_DIM / 8][4];
  clear(sums);

  Visit visit{}, next = visits[0];
  int first = 0, next_first = 0, n = 0;  // n: the visit after the next one
  copy_tile<QUERIES_THREADS, QK_DIM, ROWS>(queries, q.row(item.row) + query_column(shape, head), q.stride, item.rows);
  copy_tile<QUERIES_THREADS, V_DIM, ROWS>(gradients, dout.row(item.row) + output_column(shape, head), dout.stride, item.rows);
  start_copies(next, 0, 0);
  copy_commit();

  NO_UNROLL for (int stage = 0; n < item.count; stage ^= 1) {
    visit = next;
    first = next_first;
    next_first += QUERIES_STEP;
    if (next_first >= visit.rows) {
      next_first = 0;
      if (++n < item.count) next = visits[n];
    }
    Interval seen[2];
    UNROLL for (int h = 0; h < 2; h++) {
      seen[h] = attended(tiles, visit, warp_row + sum_row(2 * h), item.rows, visit.rows);
    }
#if FAULT == 340
    if (n == 0) copy_wait<0>();
#else
    copy_wait<0>();
#endif
    // The copies of all threads are here, and all are done with the other stage.
#if FAULT != 341
    __syncthreads();
#endif
    if (n < item.count) {
      start_copies(next, next_first, stage ^ 1);
      copy_commit();
    }

    const u32 stage_keys = stages + stage * STAGE_BYTES, stage_values = stage_keys + KEY_BYTES;
    f32 p[QUERIES_STEP / 8][4], ds[QUERIES_STEP / 8][4];
    product_of_rows<QK_DIM>(ELEM(), p, down<QK_DIM>(queries, warp_row), across<QK_DIM>(stage_keys, 0));
    UNROLL for (int c = 0; c < QUERIES_STEP / 8; c++) UNROLL for (int i = 0; i < 4; i++) {
      p[c][i] = exp2_fast(fmaf(p[c][i], scale, -known[i / 2].lse));
    }
    // Keys past the tile's are zeros, which may be as probable as infinity.
    #if FAULT == 344
    if (visit.table >= 0) {
#else
    if (visit.table >= 0 || visit.rows - first < QUERIES_STEP) {
#endif
      UNROLL for (int c = 0; c < QUERIES_STEP / 8; c++) UNROLL for (int i = 0; i < 4; i++) {
#if FAULT == 342
        int j = sum_column(c, i);
#else
        int j = first + sum_column(c, i);
#endif
        if (!contains(seen[i / 2], j)) p[c][i] = 0;
      }
    }
    product_of_rows<V_DIM>(ELEM(), ds, down<V_DIM>(gradients, warp_row), across<V_DIM>(stage_values, 0));
    UNROLL for (int c = 0; c < QUERIES_STEP / 8; c++) UNROLL for (int i = 0; i < 4; i++) {
#if FAULT == 343
      ds[c][i] = p[c][i] * ds[c][i];
#else
      ds[c][i] = p[c][i] * (ds[c][i] - known[i / 2].delta);
#endif
    }
    add_product<QK_DIM>(ELEM(), sums, ds, down<QK_DIM>(stage_keys, 0));
  }
  f32* to = dq.row(item.row + warp_row) + query_column(shape, head);
  add_rows<QK_DIM>(to, dq.stride, item.rows - warp_row, sums, shape.scale);
}
EXPORT(DIMS_NAME(attention_backward_queries))
