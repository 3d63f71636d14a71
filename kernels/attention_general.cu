// Attention for head sizes and storage types that the tensor cores do not take: any number of features, f32 throughout.
//
// Launch: 256 threads, a grid of any (x, y), best (items, heads), SHARED_BYTES of dynamic shared memory. Items are
// tiles of at most TILE rows, so are their visits. A block is the only one that ever touches the results of its item
// and head: they are summed where they belong, visit by visit, and no bit depends on the grid.
#include "attention.cuh"
#include "tile_products.cuh"

// Writes `out` and `lse`; heads are query heads, items of queries.
KERNEL void __launch_bounds__(THREADS, 2) NAME(attention_forward_general)(
    Shape shape, View<const ELEM> q, View<const ELEM> kv, Tiles tiles, View<f32> out, View<f32> lse) {
  DYNAMIC_SHARED(memory);
  f32* shared = (f32*)memory;
  for (int head = blockIdx.y; head < shape.q_heads; head += gridDim.y) {
#if FAULT == 205
    int kv_head = head % shape.kv_heads;
#else
    int kv_head = kv_head_of(shape, head);
#endif
    i64 column = output_column(shape, head);
    for (i64 at = blockIdx.x; at < tiles.count; at += gridDim.x) {
      Item item = tiles.items[at];
      Rows<ELEM> queries{q, item.row, item.rows, query_column(shape, head), shape.qk_dim};
      // Of each own row: the largest score so far, and relative to it the sum of probabilities; `out` holds the sum of
      // probabilities times values.
      f32 most[OWN], sum[OWN];
      UNROLL for (int i = 0; i < OWN; i++) most[i] = -INF, sum[i] = 0;
      for (int n = 0; n < item.count; n++) {
        Visit visit = tiles.visits[item.first + n];
        Rows<ELEM> keys{kv, visit.row, visit.rows, key_column(shape, kv_head), shape.qk_dim};
        Rows<ELEM> values{kv, visit.row, visit.rows, value_column(shape, kv_head), shape.v_dim};
        f32 p[OWN][OTHER], factor[OWN];
        dot_rows(p, queries, keys, shared);
        UNROLL for (int i = 0; i < OWN; i++) {
          Interval interval = attended(tiles, visit, own(i), item.rows, visit.rows);
          f32 larger = most[i];
          UNROLL for (int j = 0; j < OTHER; j++) {
            p[i][j] = contains(interval, other(j)) ? p[i][j] * shape.scale : -INF;
            larger = fmaxf(larger, p[i][j]);
          }
          larger = max_across(larger);
          // Where nothing is attended yet, any finite number makes probabilities of 0, and NaN of NaN.
          f32 origin = larger == -INF ? 0 : larger;
          factor[i] = expf(most[i] - origin);
          f32 part = 0;
          UNROLL for (int j = 0; j < OTHER; j++) {
            p[i][j] = expf(p[i][j] - origin);
            part += p[i][j];
          }
          sum[i] = sum[i] * factor[i] + sum_across(part);
          most[i] = larger;
        }
#if FAULT == 206
        UNROLL for (int i = 0; i < OWN; i++) factor[i] = 1;
#endif
        put_weights(p, shared);
#if FAULT == 207
        bool first = false;
#else
        bool first = n == 0;
#endif
        bool last = n + 1 == item.count;
        weighted_sums(values, shared, [&](int i, int feature, const f32(&sums)[4]) {
          if (own(i) >= item.rows) return;
          f32* to = out.row(item.row + own(i)) + column + feature;
          f32 total[4] = {}, norm = last ? 1 / sum[i] : 1;
          bool nothing = last && sum[i] == 0;  // whatever the values are
          if (!first) read_four(total, to, shape.v_dim - feature);
          // A zero has no sign, whatever underflowed on the way to it.
          UNROLL for (int c = 0; c < 4; c++)
            total[c] = nothing ? 0 : (total[c] * factor[i] + sums[c]) * norm + 0.0f;
          write_four(to, total, shape.v_dim - feature);
        });
      }
      UNROLL for (int i = 0; i < OWN; i++) {
        if (own(i) >= item.rows) continue;
        i64 row = item.row + own(i);
        if (item.count == 0)
          for (int c = threadIdx.x % ACROSS; c < shape.v_dim; c += ACROSS) out.row(row)[column + c] = 0;
        if (threadIdx.x % ACROSS == 0) lse.row(row)[head] = sum[i] == 0 ? -INF : most[i] + logf(sum[i]);
      }
    }
  }
}
EXPORT(NAME(attention_forward_general))

// The probability of a score and the gradient of the score's dot product, from the gradient of the probability; both in
// place. Nothing where the query does not attend the key, or attends nothing anywhere.
INLINE void score_gradient(f32& p, f32& ds, const Shape& shape, bool is_attended, f32 lse, f32 delta) {
#if FAULT == 208
  bool some = is_attended;
#else
  bool some = is_attended && lse != -INF;
#endif
  p = some ? expf(p * shape.scale - lse) : 0;
  ds = some ? p * (ds - delta) * shape.scale : 0;
}

// Adds to `dq`; heads are query heads, items of queries.
KERNEL void __launch_bounds__(THREADS, 2) NAME(attention_backward_queries_general)(
    Shape shape, View<const ELEM> q, View<const ELEM> kv, Tiles tiles, View<const ELEM> dout, View<const f32> lse,
    View<const f32> delta, View<f32> dq) {
  DYNAMIC_SHARED(memory);
  f32* shared = (f32*)memory;
  for (int head = blockIdx.y; head < shape.q_heads; head += gridDim.y) {
    int kv_head = kv_head_of(shape, head);
    for (i64 at = blockIdx.x; at < tiles.count; at += gridDim.x) {
      Item item = tiles.items[at];
      Rows<ELEM> queries{q, item.row, item.rows, query_column(shape, head), shape.qk_dim};
      Rows<ELEM> gradients{dout, item.row, item.rows, output_column(shape, head), shape.v_dim};
      for (int n = 0; n < item.count; n++) {
        Visit visit = tiles.visits[item.first + n];
        Rows<ELEM> keys{kv, visit.row, visit.rows, key_column(shape, kv_head), shape.qk_dim};
        Rows<ELEM> values{kv, visit.row, visit.rows, value_column(shape, kv_head), shape.v_dim};
        f32 p[OWN][OTHER], ds[OWN][OTHER];
        dot_rows(p, queries, keys, shared);
        dot_rows(ds, gradients, values, shared);
        UNROLL for (int i = 0; i < OWN; i++) {
          Interval interval = attended(tiles, visit, own(i), item.rows, visit.rows);
          bool inside = own(i) < item.rows;
          f32 row_lse = inside ? lse.row(item.row + own(i))[head] : -INF;
          f32 row_delta = inside ? delta.row(item.row + own(i))[head] : 0;
          UNROLL for (int j = 0; j < OTHER; j++)
            score_gradient(p[i][j], ds[i][j], shape, contains(interval, other(j)), row_lse, row_delta);
        }
        put_weights(ds, shared);
        add_weighted_sums(dq, item.row, item.rows, query_column(shape, head), keys, shared);
      }
    }
  }
}
EXPORT(NAME(attention_backward_queries_general))

// Adds to `dkv`; heads are key/value heads, items of keys. Visits are run through for each query head of the group.
KERNEL void __launch_bounds__(THREADS, 2) NAME(attention_backward_keys_general)(
    Shape shape, View<const ELEM> q, View<const ELEM> kv, Tiles tiles, View<const ELEM> dout, View<const f32> lse,
    View<const f32> delta, View<f32> dkv) {
  DYNAMIC_SHARED(memory);
  f32* shared = (f32*)memory;
  int group = shape.q_heads / shape.kv_heads;
  for (int kv_head = blockIdx.y; kv_head < shape.kv_heads; kv_head += gridDim.y) {
    for (i64 at = blockIdx.x; at < tiles.count; at += gridDim.x) {
      Item item = tiles.items[at];
      Rows<ELEM> keys{kv, item.row, item.rows, key_column(shape, kv_head), shape.qk_dim};
      Rows<ELEM> values{kv, item.row, item.rows, value_column(shape, kv_head), shape.v_dim};
#if FAULT == 209
      for (int head = kv_head * group; head < kv_head * group + 1; head++) {
#elif FAULT == 210
      for (int head = kv_head; head < shape.q_heads; head += shape.kv_heads) {
#else
      for (int head = kv_head * group; head < (kv_head + 1) * group; head++) {
#endif
        for (int n = 0; n < item.count; n++) {
          Visit visit = tiles.visits[item.first + n];
          Rows<ELEM> queries{q, visit.row, visit.rows, query_column(shape, head), shape.qk_dim};
          Rows<ELEM> gradients{dout, visit.row, visit.rows, output_column(shape, head), shape.v_dim};
          // Transposed: own rows are keys.
          f32 p[OWN][OTHER], ds[OWN][OTHER];
          dot_rows(p, keys, queries, shared);
          dot_rows(ds, values, gradients, shared);
          UNROLL for (int j = 0; j < OTHER; j++) {
            Interval interval = attended(tiles, visit, other(j), visit.rows, item.rows);
            bool inside = other(j) < visit.rows;
            f32 row_lse = inside ? lse.row(visit.row + other(j))[head] : -INF;
            f32 row_delta = inside ? delta.row(visit.row + other(j))[head] : 0;
            UNROLL for (int i = 0; i < OWN; i++)
              score_gradient(p[i][j], ds[i][j], shape, contains(interval, own(i)), row_lse, row_delta);
          }
          put_weights(p, shared);
          add_weighted_sums(dkv, item.row, item.rows, value_column(shape, kv_head), gradients, shared);
#if FAULT != 211
          __syncthreads();  // until everybody has read p
#endif
          put_weights(ds, shared);
          add_weighted_sums(dkv, item.row, item.rows, key_column(shape, kv_head), queries, shared);
        }
      }
    }
  }
}
EXPORT(NAME(attention_backward_keys_general))
