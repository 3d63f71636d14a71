// Attention with materialised probabilities, sequence by sequence, in f32: for comparison with the tiled kernels.
//
// Launch: 256 threads, a grid of any (x, y), best (parts, heads), SHARED_BYTES of dynamic shared memory. As in
// attention_general.cu, a block is the only one that touches the results of its part and head.
#include "unfused.cuh"

// Writes the probabilities of the parts' queries, and their rows of `out`; no rows of sequences without keys. Heads are
// query heads.
KERNEL void __launch_bounds__(THREADS, 2) NAME(unfused_forward)(
    Shape shape, View<const ELEM> q, View<const ELEM> kv, Parts parts, Attended mask, f32* probabilities,
    View<f32> out) {
  DYNAMIC_SHARED(memory);
  f32* shared = (f32*)memory;
  for_each_part(parts, shape.q_heads, [&](const Sequence& sequence, int q_head, int row) {
    Head head{shape, sequence, q_head, kv_head_of(shape, q_head)};
    Rows<ELEM> queries = head.queries(q, row);
    // Of each own row: the largest score so far, and relative to it the sum of probabilities.
    f32 most[OWN], sum[OWN];
    UNROLL for (int i = 0; i < OWN; i++) most[i] = -INF, sum[i] = 0;
    for (int key = 0; key < sequence.k_rows; key += TILE) {
      f32 scores[OWN][OTHER];
      dot_rows(scores, queries, head.keys(kv, key), shared);
      UNROLL for (int i = 0; i < OWN; i++) {
        bool is_attended[OTHER] = {};
        if (own(i) < queries.rows) {
          i64 query = queries.row + own(i);
          for (u32 n = mask.starts[query]; n < mask.starts[query + 1]; n++)
            UNROLL for (int j = 0; j < OTHER; j++)
              is_attended[j] |= contains(mask.intervals[n], sequence.k_row + key + other(j));
        }
        f32 larger = most[i];
        UNROLL for (int j = 0; j < OTHER; j++) {
          scores[i][j] = is_attended[j] ? scores[i][j] * shape.scale : -INF;
          larger = fmaxf(larger, scores[i][j]);
        }
        larger = max_across(larger);
        f32 origin = larger == -INF ? 0 : larger, part = 0;
        UNROLL for (int j = 0; j < OTHER; j++) {
          bool inside = head.inside(row + own(i), key + other(j));
          if (inside) probabilities[head.cell(row + own(i), key + other(j))] = scores[i][j];
          if (inside) part += expf(scores[i][j] - origin);
        }
        sum[i] = sum[i] * expf(most[i] - origin) + sum_across(part);
        most[i] = larger;
      }
    }
    for (int key = 0; key < sequence.k_rows; key += TILE) {
      f32 p[OWN][OTHER];
      UNROLL for (int i = 0; i < OWN; i++) {
        f32 origin = most[i] == -INF ? 0 : most[i];
        UNROLL for (int j = 0; j < OTHER; j++) {
          p[i][j] = 0;
          if (!head.inside(row + own(i), key + other(j))) continue;
          // The score is there: this thread put it there.
          f32& cell = probabilities[head.cell(row + own(i), key + other(j))];
#if FAULT == 230
          p[i][j] = expf(cell - origin) / sum[i];
#else
          p[i][j] = sum[i] == 0 ? 0 : expf(cell - origin) / sum[i];
#endif
          cell = p[i][j];
        }
      }
#if FAULT != 231
      __syncthreads();  // until everybody has read the previous weights
#endif
      put_weights(p, shared);
#if FAULT == 232
      bool fresh = false;
#else
      bool fresh = key == 0;
#endif
      Rows<ELEM> values = head.values(kv, key);
      add_weighted_sums(out, queries.row, queries.rows, output_column(shape, q_head), values, shared, fresh);
    }
  });
}
EXPORT(NAME(unfused_forward))

// Adds to `dq` the gradients of the parts' queries, and writes `delta` [queries, q_heads] for the gradients of keys:
// the sum over keys of probabilities times their gradients. Heads are query heads.
KERNEL void __launch_bounds__(THREADS, 2) NAME(unfused_backward_queries)(
    Shape shape, View<const ELEM> kv, Parts parts, const f32* probabilities, View<const ELEM> dout, View<f32> delta,
    View<f32> dq) {
  DYNAMIC_SHARED(memory);
  f32* shared = (f32*)memory;
  for_each_part(parts, shape.q_heads, [&](const Sequence& sequence, int q_head, int row) {
    Head head{shape, sequence, q_head, kv_head_of(shape, q_head)};
    Rows<ELEM> gradients = head.gradients(dout, row);
    f32 p[OWN][OTHER], dp[OWN][OTHER], sum[OWN];
    UNROLL for (int i = 0; i < OWN; i++) sum[i] = 0;
    for (int key = 0; key < sequence.k_rows; key += TILE) {
      dot_rows(dp, gradients, head.values(kv, key), shared);
      read_probabilities<false>(p, probabilities, head, row, key);
      UNROLL for (int i = 0; i < OWN; i++) UNROLL for (int j = 0; j < OTHER; j++) sum[i] += p[i][j] * dp[i][j];
    }
    UNROLL for (int i = 0; i < OWN; i++) {
      sum[i] = sum_across(sum[i]);
      if (threadIdx.x % ACROSS == 0 && own(i) < gradients.rows) delta.row(gradients.row + own(i))[q_head] = sum[i];
    }
    for (int key = 0; key < sequence.k_rows; key += TILE) {
      dot_rows(dp, gradients, head.values(kv, key), shared);
      read_probabilities<false>(p, probabilities, head, row, key);
      UNROLL for (int i = 0; i < OWN; i++)
        UNROLL for (int j = 0; j < OTHER; j++) p[i][j] *= (dp[i][j] - sum[i]) * shape.scale;
      put_weights(p, shared);
      add_weighted_sums(dq, gradients.row, gradients.rows, query_column(shape, q_head), head.keys(kv, key), shared);
    }
  });
}
EXPORT(NAME(unfused_backward_queries))

// Adds to `dkv` the gradients of the parts' keys and values. Heads are key/value heads.
KERNEL void __launch_bounds__(THREADS, 2) NAME(unfused_backward_keys)(
    Shape shape, View<const ELEM> q, View<const ELEM> kv, Parts parts, const f32* probabilities, View<const ELEM> dout,
    View<const f32> delta, View<f32> dkv) {
  DYNAMIC_SHARED(memory);
  f32* shared = (f32*)memory;
  int group = shape.q_heads / shape.kv_heads;
  for_each_part(parts, shape.kv_heads, [&](const Sequence& sequence, int kv_head, int row) {
#if FAULT == 233
    for (int member = 0; member < 1; member++) {
#else
    for (int member = 0; member < group; member++) {
#endif
      Head head{shape, sequence, kv_head * group + member, kv_head};
      Rows<ELEM> values = head.values(kv, row);
      for (int query = 0; query < sequence.q_rows; query += TILE) {
        Rows<ELEM> queries = head.queries(q, query), gradients = head.gradients(dout, query);
        f32 p[OWN][OTHER], ds[OWN][OTHER];
        dot_rows(ds, values, gradients, shared);
        read_probabilities<true>(p, probabilities, head, query, row);
        UNROLL for (int j = 0; j < OTHER; j++) {
          f32 row_delta = other(j) < queries.rows ? delta.row(queries.row + other(j))[head.head] : 0;
          UNROLL for (int i = 0; i < OWN; i++) ds[i][j] = p[i][j] * (ds[i][j] - row_delta) * shape.scale;
        }
        put_weights(p, shared);
        add_weighted_sums(dkv, values.row, values.rows, value_column(shape, kv_head), gradients, shared);
#if FAULT != 234
        __syncthreads();  // until everybody has read p
#endif
        put_weights(ds, shared);
        add_weighted_sums(dkv, values.row, values.rows, key_column(shape, kv_head), queries, shared);
      }
    }
  });
}
EXPORT(NAME(unfused_backward_keys))
