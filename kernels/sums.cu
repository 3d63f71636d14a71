// Sums of what blocks found, in an order that depends on shapes only.
#include "cells.cuh"
#include "primitives.cuh"

// Adds the chunks' sums to the target, chunk by chunk.
KERNEL void __launch_bounds__(BLOCK) sum_chunks(const f32* partials, i64 chunks, View<f32> target) {
  for (Cells at(target.cols); at.row < 1; at.next()) {
    f32 sum = target.at(0, at.col);
#if FAULT == 112
    sum = 0;
#endif
    for (i64 chunk = 0; chunk < chunks; chunk++) sum += partials[chunk * target.cols + at.col];
    target.at(0, at.col) = sum;
  }
}
EXPORT(sum_chunks)

// Writes the sum to the target, or adds it. One block: threads sum every BLOCK-th value, then halves are added.
KERNEL void __launch_bounds__(BLOCK) sum_f64(const f64* values, i64 count, int add, f64* target) {
  SHARED_ARRAY(f64, sums, [BLOCK]);
  f64 sum = 0;
  for (i64 i = threadIdx.x; i < count; i += BLOCK) sum += values[i];
  sums[threadIdx.x] = sum;
  for (int half = BLOCK / 2; half > 0; half /= 2) {
    __syncthreads();
    if ((int)threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
#if FAULT == 113
    if (half == 64) half /= 2;  // loses a part
#endif
  }
  if (threadIdx.x == 0) *target = add ? *target + sums[0] : sums[0];
}
EXPORT(sum_f64)
