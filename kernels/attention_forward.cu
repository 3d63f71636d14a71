// Attention of tiles with tensor cores, from sm_80 on: out = softmax(scale q k^T) v and the log-sum-exp of each row.
//
// A block takes the 64 queries of an item for one head, a warp 16 of them. It goes through the visits, whose keys and values
// arrive in one of two stages while the other is worked on, and keeps a running maximum, sum and output per query.
#include "attention.cuh"
#include "fragments.cuh"

// The tile sizes that the host schedules by.
#ifndef ROWS
#define ROWS 64
#define KEYS 64
#endif

// What the host launches with: grid (items, q_heads), 128 threads, and by head sizes, bytes of dynamic shared memory:
//   (64, 64) 40960, (128, 128) 81920, (192, 128) 106496, (256, 256) 163840.
constexpr int THREADS = ROWS * 2;
constexpr u32 QUERY_BYTES = ROWS * QK_DIM * 2, KEY_BYTES = KEYS * QK_DIM * 2, VALUE_BYTES = KEYS * V_DIM * 2;
constexpr u32 STAGE_BYTES = KEY_BYTES + VALUE_BYTES;
[[maybe_unused]] constexpr u32 SHARED_BYTES = QUERY_BYTES + 2 * STAGE_BYTES;

// Whether a warp holds its queries in registers from the first visit on.
constexpr bool HOLD_QUERIES = QK_DIM <= 128;

constexpr f32 LOG2_E = 1.4426950408889634f;

// Softmax of the rows that a lane has a part of, as far as their visits have come.
struct Softmax {
  f32 most[2], sum[2];  // of scores before scaling; sum is the lane's part
};

// Turns scores into probabilities relative to the rows' maxima so far; gives the factor on what was summed before.
INLINE void softmax(f32 (&s)[KEYS / 8][4], Softmax& rows, f32 (&factor)[2], f32 scale) {
  UNROLL for (int h = 0; h < 2; h++) {
    f32 most = rows.most[h];
    UNROLL for (int n = 0; n < KEYS / 8; n++) most = fmaxf(most, fmaxf(s[n][2 * h], s[n][2 * h + 1]));
    most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
#if FAULT != 310
    most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
#endif
    // A row that attends nothing yet has no maximum to subtract.
    f32 base = most == -INF ? 0 : most * scale;
    factor[h] = exp2_fast(rows.most[h] * scale - base);
    rows.most[h] = most;
    f32 sum = 0;
    UNROLL for (int n = 0; n < KEYS / 8; n++) UNROLL for (int e = 0; e < 2; e++) {
      f32& p = s[n][2 * h + e];
      p = exp2_fast(fmaf(p, scale, -base));
      sum += p;
    }
    rows.sum[h] = rows.sum[h] * factor[h] + sum;
  }
}

KERNEL void __launch_bounds__(THREADS) DIMS_NAME(attention_forward)(
    Shape shape, View<const ELEM> q, View<const ELEM> kv, Tiles tiles, View<f32> out, View<f32> lse
) {
  DYNAMIC_SHARED(shared);
  const u32 queries = shared_address(shared), stages = queries + QUERY_BYTES;
  const Item item = tiles.items[blockIdx.x];
  const Visit* visits = tiles.visits + item.first;
  const int head = blockIdx.y, kv_head = kv_head_of(shape, head), warp_row = threadIdx.x / 32 * 16;
  const ELEM* keys = kv.data + key_column(shape, kv_head);
  const ELEM* values = kv.data + value_column(shape, kv_head);

  auto start_copies = [&](const Visit& visit, int n) {
    u32 stage = stages + n % 2 * STAGE_BYTES;
    copy_tile<THREADS, QK_DIM, KEYS>(stage, keys + visit.row * kv.stride, kv.stride, visit.rows);
    copy_tile<THREADS, V_DIM, KEYS>(stage + KEY_BYTES, values + visit.row * kv.stride, kv.stride, visit.rows);
  };

  // Scores are compared before they are scaled, which takes a positive scale. That of 0 is close enough to 0.
  const f32 scale = fmaxf(fabsf(shape.scale), 1e-30f) * LOG2_E;

  f32 o[V_DIM / 8][4];
  clear(o);
  Softmax rows = {{-INF, -INF}, {0, 0}};
  const u32 query_rows = down<QK_DIM>(queries, warp_row);
  u32 held[HOLD_QUERIES ? QK_DIM / 16 : 1][4] = {};

  Visit visit{}, next{};
  if (item.count > 0) {
    next = visits[0];
    const ELEM* from = q.row(item.row) + query_column(shape, head);
    copy_tile<THREADS, QK_DIM, ROWS>(queries, from, q.stride, item.rows);
    start_copies(next, 0);
    copy_commit();
  }

  NO_UNROLL for (int n = 0; n < item.count; n++) {
    visit = next;
    if (n + 1 < item.count) next = visits[n + 1];
    Interval seen[2];
    UNROLL for (int h = 0; h < 2; h++) {
      seen[h] = attended(tiles, visit, warp_row + sum_row(2 * h), item.rows, visit.rows);
    }
#if FAULT == 311
    if (n > 0) copy_wait<1>();
#else
    copy_wait<0>();
#endif
    // The copies of all threads are here, and all are done with the other stage.
#if FAULT == 312
    if (n == 0) __syncthreads();
#elif FAULT == 313
    if (n > 0) __syncthreads();
#else
    __syncthreads();
#endif
    if (n + 1 < item.count) {
      start_copies(next, n + 1);
      copy_commit();
    }

    const u32 stage = stages + n % 2 * STAGE_BYTES;
    f32 s[KEYS / 8][4], factor[2];
    if constexpr (HOLD_QUERIES) {
      if (n == 0) {
        UNROLL for (int k = 0; k < QK_DIM / 16; k++) load_matrices(held[k], columns(query_rows, k));
      }
      clear(s);
      UNROLL for (int k = 0; k < QK_DIM / 16; k++) multiply_rows<QK_DIM>(ELEM(), s, held[k], across<QK_DIM>(stage, 0), k);
    } else {
      product_of_rows<QK_DIM>(ELEM(), s, query_rows, across<QK_DIM>(stage, 0));
    }
    if (shape.scale < 0) {
      UNROLL for (int c = 0; c < KEYS / 8; c++) UNROLL for (int i = 0; i < 4; i++) s[c][i] = -s[c][i];
    }
#if FAULT == 314
    if (visit.table >= 0) {
#else
    if (visit.table >= 0 || visit.rows < KEYS) {
#endif
      UNROLL for (int c = 0; c < KEYS / 8; c++) UNROLL for (int i = 0; i < 4; i++) {
#if FAULT == 315
        bool sees = seen[i / 2].from <= sum_column(c, i) && sum_column(c, i) <= seen[i / 2].to;
#else
        bool sees = contains(seen[i / 2], sum_column(c, i));
#endif
        s[c][i] = sees ? s[c][i] : -INF;
      }
    }
    softmax(s, rows, factor, scale);
#if FAULT != 316
    UNROLL for (int c = 0; c < V_DIM / 8; c++) UNROLL for (int i = 0; i < 4; i++) o[c][i] *= factor[i / 2];
#endif
    add_product<V_DIM>(ELEM(), o, s, down<V_DIM>(stage + KEY_BYTES, 0));
  }

  UNROLL for (int h = 0; h < 2; h++) {
    f32 sum = rows.sum[h];
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    int row = warp_row + sum_row(2 * h);
#if FAULT != 317
    if (row >= item.rows) continue;
#endif
    f32 share = sum == 0 ? 0 : 1 / sum;
    f32* to = out.row(item.row + row) + output_column(shape, head);
    UNROLL for (int c = 0; c < V_DIM / 8; c++) {
      *(float2*)(to + sum_column(c, 0)) = float2{o[c][2 * h] * share, o[c][2 * h + 1] * share};
    }
    if (threadIdx.x % 4 == 0) {
      lse.at(item.row + row, head) = sum == 0 ? -INF : rows.most[h] * fabsf(shape.scale) + logf(sum);
    }
  }
}
EXPORT(DIMS_NAME(attention_forward))
