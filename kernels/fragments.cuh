// Tiles of 16-bit elements in shared memory and their products by tensor cores, for the attention kernels of sm_80.
//
// A tile's row has DIM elements, a multiple of 64. Its chunks of 16 bytes are swizzled: chunk c of row r lies at c ^ r % 8,
// so that neither a row of copies nor eight rows of a load share a bank. Tiles begin at multiples of 1024 bytes.
#pragma once
#include "primitives.cuh"
#include "types.cuh"

// Before a loop that goes through a list.
#ifdef CPU_EMU
#define NO_UNROLL
#else
#define NO_UNROLL _Pragma("unroll 1")
#endif

// DIMS_NAME(attention_forward) is attention_forward_bf16_128_128 where ELEM is bf16, and QK_DIM and V_DIM are 128.
#define JOINED_DIMS(name, elem, qk, v) name##_##elem##_##qk##_##v
#define JOIN_DIMS(name, elem, qk, v) JOINED_DIMS(name, elem, qk, v)
#define DIMS_NAME(name) JOIN_DIMS(name, ELEM, QK_DIM, V_DIM)

INLINE void multiply(bf16, f32 (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) { multiply_bf16(d, a, b0, b1); }
INLINE void multiply(f16, f32 (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) { multiply_f16(d, a, b0, b1); }
INLINE u32 pack(bf16, f32 low, f32 high) { return pack_bf16(low, high); }
INLINE u32 pack(f16, f32 low, f32 high) { return pack_f16(low, high); }

template <int DIM>
constexpr u32 TILE_ROW = DIM * 2;  // bytes

// Starts the copies of COUNT rows by THREADS threads; those from `rows` on become zeros: nobody knows what follows a
// matrix, and 0 times NaN is NaN.
template <int THREADS, int DIM, int COUNT, class E>
INLINE void copy_tile(u32 tile, const E* source, i64 stride, int rows) {
  int first = threadIdx.x / 8, chunk = threadIdx.x % 8;
  const E* from = source + first * stride + chunk * 8;
#if FAULT == 300
  u32 to = tile + first * TILE_ROW<DIM> + chunk * 16;  // not swizzled
#else
  u32 to = tile + first * TILE_ROW<DIM> + (chunk ^ first % 8) * 16;
#endif
  UNROLL for (int row = 0; row < COUNT; row += THREADS / 8) {
#if FAULT == 301
    u32 valid = 16;  // what follows the tile is read
#else
    u32 valid = first + row < rows ? 16 : 0;
#endif
    UNROLL for (int group = 0; group < DIM / 64; group++) {
      copy_async(to + row * TILE_ROW<DIM> + group * 128, from + group * 64, valid);
    }
    from += THREADS / 8 * stride;
  }
}

// Where a lane's part of 16 rows from `row` on begins, columns 0..15. Down: matrices are the upper and lower eight rows of
// the left eight columns, then of the right ones, as the left operand of a product takes them, and the right one
// transposed. Across: left and right columns of the upper rows, then of the lower ones, as the right operand takes them.
template <int DIM>
INLINE u32 down(u32 tile, int row) {
  int lane = threadIdx.x % 32;
  return tile + (row + lane % 16) * TILE_ROW<DIM> + (lane / 16 ^ lane % 8) * 16;
}
template <int DIM>
INLINE u32 across(u32 tile, int row) {
  int lane = threadIdx.x % 32;
  return tile + (row + lane % 8 + lane / 16 * 8) * TILE_ROW<DIM> + (lane / 8 % 2 ^ lane % 8) * 16;
}

// The same lane's part `k` times 16 columns further on.
INLINE u32 columns(u32 place, int k) {
#if FAULT == 302
  return place + k * 32;
#else
  return (place ^ k % 4 * 32) + k / 4 * 128;
#endif
}

// Sums of 16 rows and 8 N columns, spread over a warp: a lane holds elements i of blocks n of eight columns.
template <int N>
INLINE void clear(f32 (&x)[N][4]) {
  UNROLL for (int n = 0; n < N; n++) UNROLL for (int i = 0; i < 4; i++) x[n][i] = 0;
}
INLINE int sum_row(int i) { return threadIdx.x % 32 / 4 + i / 2 * 8; }
INLINE int sum_column(int n, int i) { return n * 8 + threadIdx.x % 4 * 2 + i % 2; }

// d += a b^T for columns 16 k to 16 k + 15 of 16 rows of a, which are `left`, and of 8 N rows of b, from `across`.
template <int DIM, class E, int N>
INLINE void multiply_rows(E type, f32 (&d)[N][4], const u32 (&left)[4], u32 b, int k) {
  UNROLL for (int n = 0; n < N; n += 2) {
    u32 right[4];
    load_matrices(right, columns(b, k) + n * 8 * TILE_ROW<DIM>);
    multiply(type, d[n], left, right[0], right[1]);
    multiply(type, d[n + 1], left, right[2], right[3]);
  }
}

// d = a b^T for 16 rows of a from `down` and 8 N rows of b from `across`.
template <int DIM, class E, int N>
INLINE void product_of_rows(E type, f32 (&d)[N][4], u32 a, u32 b) {
  clear(d);
  UNROLL for (int k = 0; k < DIM / 16; k++) {
    u32 left[4];
    load_matrices(left, columns(a, k));
    multiply_rows<DIM>(type, d, left, b, k);
  }
}

// d += a b for 16 rows of a, sums of an earlier product that are rounded now, and 8 N rows of b from `down`.
template <int DIM, class E, int N>
INLINE void add_product(E type, f32 (&d)[DIM / 8][4], const f32 (&a)[N][4], u32 b) {
  UNROLL for (int k = 0; k < N / 2; k++) {
    // A lane has the sums of a product where the left operand of the next has them.
    u32 left[4];
    UNROLL for (int i = 0; i < 4; i++) {
      const f32(&from)[4] = a[2 * k + i / 2];
      left[i] = pack(type, from[2 * (i % 2)], from[2 * (i % 2) + 1]);
    }
    UNROLL for (int n = 0; n < DIM / 8; n += 2) {
      u32 right[4];
      u32 place = columns(b, n / 2) + k * 16 * TILE_ROW<DIM>;
#if FAULT == 303
      load_matrices(right, place);  // not transposed
#else
      load_matrices_transposed(right, place);
#endif
      multiply(type, d[n], left, right[0], right[1]);
      multiply(type, d[n + 1], left, right[2], right[3]);
    }
  }
}
