// What the backward pass of attention needs of a final output. Launch: 256 threads, any grid.
#include "attention.cuh"

// Writes delta [queries, q_heads]: the sum over a head's features of out * dout.
KERNEL void __launch_bounds__(BLOCK)
    NAME(attention_delta)(Shape shape, View<const f32> out, View<const ELEM> dout, View<f32> delta) {
  for_each_head(out.rows, shape.q_heads, [&](i64 row, int head, int lane) {
    const f32* x = out.row(row) + output_column(shape, head);
#if FAULT == 224
    const ELEM* y = dout.row(row) + output_column(shape, kv_head_of(shape, head));
#else
    const ELEM* y = dout.row(row) + output_column(shape, head);
#endif
    f32 sum = 0;
    for (int c = lane; c < shape.v_dim; c += 32) sum += x[c] * widen(y[c]);
#if FAULT == 225
    for (int mask = 8; mask > 0; mask /= 2) sum += __shfl_xor_sync(~0u, sum, mask);
#else
    for (int mask = 16; mask > 0; mask /= 2) sum += __shfl_xor_sync(~0u, sum, mask);
#endif
    if (lane == 0) delta.row(row)[head] = sum;
  });
}
EXPORT(NAME(attention_delta))
