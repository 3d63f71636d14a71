// Sums and maxima over a team of threads, a warp or the block, by a fixed tree: all threads have the same bits.
#pragma once
#include "primitives.cuh"
#include "types.cuh"

struct Sum {
  template <class T>
  MEMBER T operator()(T a, T b) const {
    return a + b;
  }
};
// NaN is not the largest of anything.
struct Largest {
  MEMBER f32 operator()(f32 a, f32 b) const { return fmaxf(a, b); }
};

// `combine` of the x of a team. If the team is a block, all of its threads are here, and those that came here have done
// with all that they read before.
template <int TEAM, class T, class Combine>
INLINE T over_team(T x, Combine combine) {
  static_assert(TEAM % 32 == 0);
  for (int bit = 16; bit > 0; bit /= 2) x = combine(x, __shfl_xor_sync(~0u, x, bit));
  if constexpr (TEAM > 32) {
    SHARED_ARRAY(T, of_warps, [TEAM / 32]);
#if FAULT != 106
    __syncthreads();  // what an earlier call left may still be read
#endif
    if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = x;
#if FAULT != 107
    __syncthreads();
#endif
    x = of_warps[0];
    for (int warp = 1; warp < TEAM / 32; warp++) x = combine(x, of_warps[warp]);
  }
  return x;
}
