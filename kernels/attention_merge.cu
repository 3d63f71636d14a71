// Merges a partial result of attention into a running one. Launch: 256 threads, any grid.
#include "attention.cuh"

// The part with the larger share stays in place and the other moves it, so that many merges in a row round as little as
// one. A log-sum-exp of -inf says that nothing was attended.
KERNEL void __launch_bounds__(BLOCK)
    attention_merge(Shape shape, View<f32> out, View<f32> lse, View<const f32> part_out, View<const f32> part_lse) {
  for_each_head(out.rows, shape.q_heads, [&](i64 row, int head, int lane) {
    f32 a = lse.row(row)[head];
#if FAULT == 220
    f32 b = part_lse.row(row)[0];
#else
    f32 b = part_lse.row(row)[head];
#endif
#if FAULT != 221
    if (b == -INF) return;
#endif
#if FAULT != 222
    __syncwarp();  // all lanes have read what one of them writes
#endif
    f32* y = out.row(row) + output_column(shape, head);
    const f32* x = part_out.row(row) + output_column(shape, head);
    f32 ratio = expf(-fabsf(a - b)), share = ratio / (1 + ratio);
    for (int c = lane; c < shape.v_dim; c += 32) {
      // The running result of nothing is not read: it may be anything.
#if FAULT == 226
      if (false)
#else
      if (a == -INF)
#endif
        y[c] = x[c];
      else if (b > a)
        y[c] = x[c] + (y[c] - x[c]) * share;
      else
        y[c] += (x[c] - y[c]) * share;
    }
#if FAULT == 223
    if (lane == 0) lse.row(row)[head] = fmaxf(a, b);
#else
    if (lane == 0) lse.row(row)[head] = a == -INF ? b : (b > a ? b : a) + log1pf(ratio);
#endif
  });
}
EXPORT(attention_merge)
