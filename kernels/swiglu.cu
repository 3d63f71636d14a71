// The gated activation silu(gate) * up and its gradient: src/ops/swiglu.
#include "cells.cuh"

// The exponential is that of a number below 0, so that it is 0 where a sigmoid is.
INLINE f32 sigmoid(f32 x) {
#if FAULT == 130
  return expf(x) / (1 + expf(x));
#else
  f32 e = expf(-fabsf(x));
  return (x >= 0 ? 1 : e) / (1 + e);
#endif
}

KERNEL void __launch_bounds__(BLOCK) NAME(swiglu)(View<const ELEM> gate, View<const ELEM> up, View<ELEM> y) {
  bool packed = is_packed(gate) && is_packed(up) && is_packed(y);
  each_stretch<Pack<ELEM>::COUNT>(packed, y.rows, y.cols, [&](auto count, i64 row, i64 col) {
    constexpr int N = decltype(count)::VALUE;
    f32 g[N], u[N];
    load(gate.row(row) + col, g);
    load(up.row(row) + col, u);
    UNROLL for (int i = 0; i < N; i++) u[i] *= g[i] * sigmoid(g[i]);
    store(y.row(row) + col, u);
  });
}
EXPORT(NAME(swiglu))

// Gradients of gate, then of up, side by side.
KERNEL void __launch_bounds__(BLOCK)
    NAME(swiglu_backward)(View<const ELEM> gate, View<const ELEM> up, View<const ELEM> dy, View<ELEM> gradient) {
  bool packed = is_packed(gate) && is_packed(up) && is_packed(dy) && is_packed(gradient);
  each_stretch<Pack<ELEM>::COUNT>(packed, dy.rows, dy.cols, [&](auto count, i64 row, i64 col) {
    constexpr int N = decltype(count)::VALUE;
    f32 g[N], u[N], d[N];
    load(gate.row(row) + col, g);
    load(up.row(row) + col, u);
    load(dy.row(row) + col, d);
    UNROLL for (int i = 0; i < N; i++) {
      f32 s = sigmoid(g[i]);
      // silu'(g) = s + g s (1 - s).
#if FAULT == 131
      u[i] *= d[i] * s;
#else
      u[i] *= d[i] * (s * (1 + g[i] * (1 - s)));
#endif
      d[i] *= g[i] * s;
    }
    ELEM* target = gradient.row(row) + col;
    store(target, u);
    store(target + dy.cols, d);
  });
}
EXPORT(NAME(swiglu_backward))
