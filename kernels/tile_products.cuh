// Products of tiles in shared memory with plain multiplications and additions, for any sizes and storage types.
//
// 256 threads work on a tile of TILE own rows: thread t has the rows t / 16 + 16 i of it, and of TILE other rows (the
// columns of a score tile) t % 16 + 16 j; of result features, 4 neighbours. Every sum runs in ascending order in one
// thread, so results depend on the schedule alone.
#pragma once
#include "primitives.cuh"
#include "types.cuh"

constexpr int TILE = 64;
constexpr int THREADS = 256, DOWN = 16, ACROSS = 16;
// Own rows and other rows of a thread.
constexpr int OWN = TILE / DOWN, OTHER = TILE / ACROSS;

// Features that are in shared memory at a time: of both factors of scores, and of the right factor of a result.
constexpr int DEPTH = 32, WIDTH = 4 * ACROSS;
// Distances of rows: the 8 rows that a quarter of a warp reads at once, 16 bytes each, are in different banks.
constexpr int DEPTH_STRIDE = DEPTH + 4, WIDTH_STRIDE = WIDTH + 4, TILE_STRIDE = TILE + 4;
constexpr int FACTORS = 2 * TILE * DEPTH_STRIDE;
static_assert(FACTORS >= TILE * WIDTH_STRIDE, "a right factor takes the place of the factors of scores");
// What kernels need of dynamic shared memory: factors, then weights.
constexpr int SHARED_BYTES = 4 * (FACTORS + TILE * TILE_STRIDE);

// Unrolls by n: more would only cost registers.
#ifdef CPU_EMU
#define UNROLL_BY(n)
#else
#define PRAGMA(text) _Pragma(#text)
#define UNROLL_BY(n) PRAGMA(unroll n)
#endif

INLINE int own(int i) { return threadIdx.x / ACROSS + DOWN * i; }
INLINE int other(int j) { return threadIdx.x % ACROSS + ACROSS * j; }

// Sum and maximum over the 16 threads that share their own rows.
INLINE f32 sum_across(f32 x) {
  UNROLL for (int mask = ACROSS / 2; mask > 0; mask /= 2) x += __shfl_xor_sync(~0u, x, mask);
  return x;
}
INLINE f32 max_across(f32 x) {
#if FAULT == 213
  return x;
#endif
  UNROLL for (int mask = ACROSS / 2; mask > 0; mask /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, mask));
  return x;
}

// Some rows of a matrix, and one head's features of them.
template <class E>
struct Rows {
  View<const E> matrix;
  i64 row;
  int rows;
  i64 column;
  int features;
};

// Copies TILE rows of FEATURES features from `first` on into shared memory, widened, with zeros beyond the edges.
template <int FEATURES, int STRIDE, class E>
INLINE void load_tile(f32* tile, const Rows<E>& x, int first) {
  constexpr int STEP = THREADS / FEATURES;
  int start = threadIdx.x / FEATURES, feature = threadIdx.x % FEATURES;
  const E* from = x.matrix.row(x.row + start) + x.column + first + feature;
  bool inside = first + feature < x.features;
  UNROLL_BY(8) for (int row = start; row < start + TILE; row += STEP, from += STEP * x.matrix.stride) {
#if FAULT == 200
    tile[row * STRIDE + feature] = inside ? widen(*from) : 0;
#else
    tile[row * STRIDE + feature] = inside && row < x.rows ? widen(*from) : 0;
#endif
  }
}

INLINE float4 four(const f32* x) { return *(const float4*)x; }

// scores[i][j]: the dot product of row own(i) of `a` and row other(j) of `b`.
template <class E>
INLINE void dot_rows(f32 (&scores)[OWN][OTHER], const Rows<E>& a, const Rows<E>& b, f32* shared) {
  f32 *as = shared, *bs = shared + TILE * DEPTH_STRIDE;
  UNROLL for (int i = 0; i < OWN; i++) UNROLL for (int j = 0; j < OTHER; j++) scores[i][j] = 0;
  for (int first = 0; first < a.features; first += DEPTH) {
#if FAULT != 201
    __syncthreads();  // until everybody has read what was here
#endif
    load_tile<DEPTH, DEPTH_STRIDE>(as, a, first);
    load_tile<DEPTH, DEPTH_STRIDE>(bs, b, first);
#if FAULT != 202
    __syncthreads();
#endif
    UNROLL_BY(1) for (int k = 0; k < DEPTH; k += 4) {
      float4 y[OTHER];
      UNROLL for (int j = 0; j < OTHER; j++) y[j] = four(bs + other(j) * DEPTH_STRIDE + k);
      UNROLL for (int i = 0; i < OWN; i++) {
        float4 x = four(as + own(i) * DEPTH_STRIDE + k);
        UNROLL for (int j = 0; j < OTHER; j++) {
          scores[i][j] += x.x * y[j].x;
          scores[i][j] += x.y * y[j].y;
          scores[i][j] += x.z * y[j].z;
          scores[i][j] += x.w * y[j].w;
        }
      }
    }
  }
}

// Stores weights[i][j] as the weight of row other(j) in the result of row own(i). All must have read the previous ones.
INLINE void put_weights(const f32 (&weights)[OWN][OTHER], f32* shared) {
  UNROLL for (int i = 0; i < OWN; i++)
    UNROLL for (int j = 0; j < OTHER; j++) shared[FACTORS + own(i) * TILE_STRIDE + other(j)] = weights[i][j];
}

// The sums of the rows of `x` with the weights that were put: `take(i, feature, sums)` gets four sums of row own(i), of
// the head's features from `feature` on, of which those below x.features count.
template <class E, class Take>
INLINE void weighted_sums(const Rows<E>& x, f32* shared, Take take) {
  const f32* weights = shared + FACTORS;
  for (int first = 0; first < x.features; first += WIDTH) {
    __syncthreads();  // until everybody has read what was here, and put its weights
    load_tile<WIDTH, WIDTH_STRIDE>(shared, x, first);
#if FAULT != 203
    __syncthreads();
#endif
    int feature = 4 * (threadIdx.x % ACROSS);
    f32 sums[OWN][4] = {};
    UNROLL_BY(1) for (int k = 0; k < TILE; k += 4) {
      float4 y[4];
      UNROLL for (int n = 0; n < 4; n++) y[n] = four(shared + (k + n) * WIDTH_STRIDE + feature);
      UNROLL for (int i = 0; i < OWN; i++) {
        float4 w = four(weights + own(i) * TILE_STRIDE + k);
        f32 each[4] = {w.x, w.y, w.z, w.w};
        UNROLL for (int n = 0; n < 4; n++) {
          sums[i][0] += each[n] * y[n].x;
          sums[i][1] += each[n] * y[n].y;
          sums[i][2] += each[n] * y[n].z;
          sums[i][3] += each[n] * y[n].w;
        }
      }
    }
    UNROLL for (int i = 0; i < OWN; i++) take(i, first + feature, sums[i]);
  }
}

// Four neighbours of a row, of which `count` are inside (any number): at once where they are aligned.
INLINE void read_four(f32 (&to)[4], const f32* from, int count) {
  if (count >= 4 && ((u64)from & 15) == 0) {
    float4 x = four(from);
    to[0] = x.x, to[1] = x.y, to[2] = x.z, to[3] = x.w;
  } else {
    UNROLL for (int n = 0; n < 4; n++) to[n] = n < count ? from[n] : 0;
  }
}
INLINE void write_four(f32* to, const f32 (&from)[4], int count) {
  if (count >= 4 && ((u64)to & 15) == 0) {
    *(float4*)to = {from[0], from[1], from[2], from[3]};
  } else {
    UNROLL for (int n = 0; n < 4; n++) if (n < count) to[n] = from[n];
  }
}

// Adds the weighted sums of the rows of `x` to the rows of `y` from `row` on, at the columns from `column` on; `fresh`:
// writes them. Each cell has one thread that ever adds to it, so the matrix itself is the accumulator.
template <class E>
INLINE void add_weighted_sums(View<f32> y, i64 row, int rows, i64 column, const Rows<E>& x, f32* shared,
                              bool fresh = false) {
  weighted_sums(x, shared, [&](int i, int feature, const f32(&sums)[4]) {
    if (own(i) >= rows) return;
    f32* to = y.row(row + own(i)) + column + feature;
    f32 total[4] = {};
    if (!fresh) read_four(total, to, x.features - feature);
#if FAULT == 204
    UNROLL for (int n = 0; n < 4; n++) total[n] = sums[n];
#else
    UNROLL for (int n = 0; n < 4; n++) total[n] += sums[n];
#endif
    write_four(to, total, x.features - feature);
  });
}
