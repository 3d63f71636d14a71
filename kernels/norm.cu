// Root-mean-square normalisation and its gradient, by parts of rows: src/ops/norm.
#include "cells.cuh"
#include "team.cuh"

// Features of a part that a thread has together, whatever the type and wherever they lie: the order of sums depends on
// this. A warp does a part of few features, a block one of many.
constexpr int STRETCH = 8;
constexpr int NARROW = 1024;

// Threads of rms_norm's blocks.
constexpr int FORWARD = 128;

template <int TEAM, class E>
INLINE void norm_parts(
    const View<const E>& x, const View<const E>& weight, int parts, f32 eps, const View<E>& y,
    const View<f32>& reciprocal
) {
  constexpr int TEAMS = FORWARD / TEAM;
  bool packed = is_packed(x) && is_packed(weight) && is_packed(y);
  i64 n = weight.cols, first = threadIdx.x % TEAM * STRETCH;
  for (i64 at = (i64)blockIdx.x * TEAMS + threadIdx.x / TEAM; at < x.rows * parts; at += (i64)gridDim.x * TEAMS) {
    i64 row = quotient(at, parts), part = at - row * parts;
    const E* from = x.row(row) + part * n;
    f32 sum = 0;
    for (i64 c = first; c < n; c += TEAM * STRETCH) {
      f32 values[STRETCH];
      load(from + c, n - c, packed, values);
      UNROLL for (int i = 0; i < STRETCH; i++) sum += values[i] * values[i];
    }
    f32 root = sqrtf(over_team<TEAM>(sum, Sum()) / (f32)n + eps);
#if FAULT == 140
    f32 r = 1 / root;
#else
    f32 r = root == 0 ? 0 : 1 / root;
#endif
    if (first == 0) reciprocal.at(row, part) = r;
    for (i64 c = first; c < n; c += TEAM * STRETCH) {
      f32 values[STRETCH], w[STRETCH];
      load(from + c, n - c, packed, values);
      load(weight.data + c, n - c, packed, w);
#if FAULT == 141
      UNROLL for (int i = 0; i < STRETCH; i++) values[i] = widen(round_to<E>(values[i] * r)) * w[i];
#else
      UNROLL for (int i = 0; i < STRETCH; i++) values[i] *= r * w[i];
#endif
      store(y.row(row) + part * n + c, n - c, packed, values);
    }
  }
}

// Launch: grid any, best a block for every part of more than NARROW features, or for every four.
KERNEL void __launch_bounds__(FORWARD) NAME(rms_norm)(
    View<const ELEM> x, View<const ELEM> weight, int parts, f32 eps, View<ELEM> y, View<f32> reciprocal
) {
  if (weight.cols <= NARROW) {
    norm_parts<32>(x, weight, parts, eps, y, reciprocal);
  } else {
    norm_parts<FORWARD>(x, weight, parts, eps, y, reciprocal);
  }
}
EXPORT(NAME(rms_norm))

// Stretches of a thread whose sums for the gradient of the weights are in registers.
constexpr int HELD = 4;
static_assert(HELD * 32 * STRETCH == NARROW, "a warp holds all sums of a narrow part");

template <int TEAM, class E>
INLINE void norm_parts_backward(
    const View<const E>& x, const View<const E>& weight, const View<const f32>& reciprocal, const View<const E>& dy,
    const View<E>& dx, bool accumulate, f32* dweight
) {
  constexpr int TEAMS = BLOCK / TEAM, STEP = TEAM * STRETCH;
  bool packed = is_packed(x) && is_packed(weight) && is_packed(dy) && is_packed(dx);
  i64 n = weight.cols, parts = reciprocal.cols, first = threadIdx.x % TEAM * STRETCH;
  f32 held[HELD][STRETCH] = {};
  for (i64 c = first + HELD * STEP; c < n; c += STEP) {
    const f32 zeros[STRETCH] = {};
    store(dweight + c, n - c, false, zeros);
  }

  i64 end = chunk_start(blockIdx.x + 1, x.rows) * parts;
  for (i64 at = chunk_start(blockIdx.x, x.rows) * parts + threadIdx.x / TEAM; at < end; at += TEAMS) {
    i64 row = quotient(at, parts), part = at - row * parts;
    const E *x_from = x.row(row) + part * n, *dy_from = dy.row(row) + part * n;
    E* dx_to = dx.row(row) + part * n;
    f32 xs[STRETCH], ds[STRETCH], ws[STRETCH], dot = 0;
    auto read = [&](i64 c) {
      load(x_from + c, n - c, packed, xs);
      load(dy_from + c, n - c, packed, ds);
      load(weight.data + c, n - c, packed, ws);
    };
    for (i64 c = first; c < n; c += STEP) {
      read(c);
      UNROLL for (int i = 0; i < STRETCH; i++) dot += xs[i] * (ws[i] * ds[i]);
    }
    // d/dx of x r w: r (w dy - x r^2 mean(x w dy)).
    f32 r = reciprocal.at(row, part), back = r * r * (over_team<TEAM>(dot, Sum()) / (f32)n);
    auto finish = [&](i64 c, f32(&sums)[STRETCH]) {
      read(c);
      f32 gradient[STRETCH] = {};
#if FAULT != 142
      if (accumulate) load(dx_to + c, n - c, packed, gradient);
#endif
      UNROLL for (int i = 0; i < STRETCH; i++) {
        gradient[i] += r * (ws[i] * ds[i] - xs[i] * back);
        sums[i] += ds[i] * (xs[i] * r);
      }
      store(dx_to + c, n - c, packed, gradient);
    };
    UNROLL for (int k = 0; k < HELD; k++) {
      if (first + k * STEP < n) finish(first + k * STEP, held[k]);
    }
    for (i64 c = first + HELD * STEP; c < n; c += STEP) {
      f32 sums[STRETCH];
      load(dweight + c, n - c, false, sums);
      finish(c, sums);
      store(dweight + c, n - c, false, sums);
    }
  }

  if constexpr (TEAMS > 1) {
    // Warp after warp.
    SHARED_ARRAY(f32, sums, [NARROW]);
    for (int warp = 0; warp < TEAMS; warp++) {
      if ((int)threadIdx.x / TEAM == warp) {
        UNROLL for (int k = 0; k < HELD; k++) {
          UNROLL for (int i = 0; i < STRETCH; i++) {
            f32& sum = sums[first + k * STEP + i];
            sum = warp == 0 ? held[k][i] : sum + held[k][i];
          }
        }
      }
#if FAULT != 143
      __syncthreads();
#endif
    }
    for (i64 c = threadIdx.x; c < n; c += BLOCK) dweight[c] = sums[c];
  } else {
    UNROLL for (int k = 0; k < HELD; k++) {
      if (first + k * STEP < n) store(dweight + first + k * STEP, n - first - k * STEP, false, held[k]);
    }
  }
}

// Block b does the b-th chunk of rows and writes its part of the gradient of the weights to partials[b * n ..], for
// sum_chunks.
KERNEL void __launch_bounds__(BLOCK) NAME(rms_norm_backward)(
    View<const ELEM> x, View<const ELEM> weight, View<const f32> reciprocal, View<const ELEM> dy, View<ELEM> dx,
    int accumulate, f32* partials
) {
  f32* dweight = partials + blockIdx.x * weight.cols;
  if (weight.cols <= NARROW) {
    norm_parts_backward<32>(x, weight, reciprocal, dy, dx, accumulate, dweight);
  } else {
    norm_parts_backward<BLOCK>(x, weight, reciprocal, dy, dx, accumulate, dweight);
  }
}
EXPORT(NAME(rms_norm_backward))
