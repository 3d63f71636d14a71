// Cross entropy of next-token logits, which become their gradient: src/ops/loss.
#include "cells.cuh"
#include "team.cuh"

// Logits that a thread has together, whatever the type and wherever they lie: the order of sums depends on this.
constexpr int STRETCH = 8;

// A block does a row, the grid is any. Writes the weighted loss of every row. A label outside of the vocabulary, which
// callers exclude, makes the loss NaN.
KERNEL void __launch_bounds__(BLOCK) NAME(cross_entropy)(
    View<ELEM> logits, View<const i64> labels, View<const f32> weights, int has_scale, f64 scale, f64* losses
) {
  bool packed = is_packed(logits);
  i64 vocab = logits.cols, first = threadIdx.x * STRETCH;
  for (i64 row = blockIdx.x; row < logits.rows; row += gridDim.x) {
    ELEM* x = logits.row(row);
    i64 label = *labels.row(row);
    f64 weight = *weights.row(row);
    f32 values[STRETCH];
#if FAULT != 150
    if (weight == 0) {
      // Whatever the row holds.
      UNROLL for (int i = 0; i < STRETCH; i++) values[i] = 0;
      for (i64 c = first; has_scale && c < vocab; c += BLOCK * STRETCH) store(x + c, vocab - c, packed, values);
      if (threadIdx.x == 0) losses[row] = 0;
      continue;
    }
#endif

    // The largest so far, and the sum of exponentials relative to it.
    f32 largest = -INF;
    f64 total = 0;
    for (i64 c = first; c < vocab; c += BLOCK * STRETCH) {
      load(x + c, vocab - c, packed, values, -INF);
      f32 larger = largest, sum = 0;
      UNROLL for (int i = 0; i < STRETCH; i++) larger = fmaxf(larger, values[i]);
      f32 base = larger == -INF ? 0 : larger;  // nothing but -INF so far
#if FAULT == 151
      base = 0;
#endif
      UNROLL for (int i = 0; i < STRETCH; i++) sum += expf(values[i] - base);
#if FAULT == 152
      total = total + sum;
#else
      total = total * expf(largest - base) + sum;
#endif
      largest = larger;
    }
    bool known = 0 <= label && label < vocab;
    f32 at_label = known ? widen(x[label]) : of_bits(0x7FFFFFFF);
    f32 of_row = over_team<BLOCK>(largest, Largest());
#if FAULT != 153
    // 0 where a thread has seen nothing but -INF; NaN, as it should be, where the whole row is that or has +INF.
    total *= expf(largest - of_row);
#endif
    total = over_team<BLOCK>(total, Sum());
#if FAULT == 154
    at_label = known ? widen(x[label]) : of_bits(0x7FFFFFFF);  // which may be the gradient already
#endif
    at_label -= of_row;

    if (has_scale) {
      f64 scaled = scale * weight;
      f32 factor = (f32)(scaled / total);
      for (i64 c = first; c < vocab; c += BLOCK * STRETCH) {
        load(x + c, vocab - c, packed, values);
        UNROLL for (int i = 0; i < STRETCH; i++) values[i] = expf(values[i] - of_row) * factor;
        store(x + c, vocab - c, packed, values);
        if (c <= label && label < c + STRETCH) round_once(x[label], scaled * (exp((f64)at_label) / total - 1));
      }
    }
    if (threadIdx.x == 0) losses[row] = weight * (log(total) - at_label);
  }
}
EXPORT(NAME(cross_entropy))
