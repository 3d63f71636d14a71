// Rotation of queries and keys by their positions, in place: src/ops/rotary.
#include "cells.cuh"

// Rotates pairs `pair` .. `pair + N` of a head.
template <int N, class E>
INLINE void rotate_pairs(E* head, i64 pair, i64 pairs, const f32* cos, const f32* sin, bool interleaved, f32 sign) {
  f32 a[N], b[N], c[N], s[N];
  load(cos + pair, c);
  load(sin + pair, s);
  f32 both[2 * N];
  if (interleaved) {
    if constexpr (N == 1) {
      both[0] = widen(head[2 * pair]);
      both[1] = widen(head[2 * pair + 1]);
    } else {
      load(head + 2 * pair, both);
    }
    UNROLL for (int i = 0; i < N; i++) {
      a[i] = both[2 * i];
      b[i] = both[2 * i + 1];
    }
  } else {
    load(head + pair, a);
    load(head + pairs + pair, b);
  }
  UNROLL for (int i = 0; i < N; i++) {
    f32 x = a[i], y = b[i];
    a[i] = x * c[i] - y * (sign * s[i]);
    b[i] = y * c[i] + x * (sign * s[i]);
  }
  if (interleaved) {
    UNROLL for (int i = 0; i < N; i++) {
      both[2 * i] = a[i];
      both[2 * i + 1] = b[i];
    }
    if constexpr (N == 1) {
      round_into(head[2 * pair], both[0]);
      round_into(head[2 * pair + 1], both[1]);
    } else {
      store(head + 2 * pair, both);
    }
  } else {
    store(head + pair, a);
    store(head + pairs + pair, b);
  }
}

// Pairs are (i, i + pairs), or (2 i, 2 i + 1) if interleaved; features past 2 * pairs of a head stay.
KERNEL void __launch_bounds__(BLOCK) NAME(rotate)(
    View<ELEM> x, int heads, View<const f32> cos, View<const f32> sin, int interleaved, int inverse
) {
  constexpr int N = Pack<ELEM>::COUNT;
  i64 dim = quotient(x.cols, heads), pairs = cos.cols;
  if (pairs == 0) return;
  f32 sign = inverse ? -1 : 1;
#if FAULT == 114
  sign = 1;
#elif FAULT == 115
  interleaved = 0;
#endif
  bool packed = is_packed(x) && is_packed(cos) && is_packed(sin) && dim % N == 0 && pairs % N == 0;
  each_stretch<N>(packed, x.rows, heads * pairs, [&](auto count, i64 row, i64 at) {
    i64 head = quotient(at, pairs);
    rotate_pairs<decltype(count)::VALUE>(
        x.row(row) + head * dim, at - head * pairs, pairs, cos.row(row), sin.row(row), interleaved, sign
    );
  });
}
EXPORT(NAME(rotate))
