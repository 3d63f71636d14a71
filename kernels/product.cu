// What is done around products with weights: src/ops/matmul.
#include "cells.cuh"
#include "primitives.cuh"

constexpr int TILE = 32;
// One more than a tile has, so that a column's elements lie in different banks.
constexpr int PITCH = TILE + 1;

KERNEL void __launch_bounds__(BLOCK) NAME(transpose)(View<const ELEM> x, View<ELEM> y) {
  SHARED_ARRAY(ELEM, tile, [TILE][PITCH]);
  constexpr int STEP = BLOCK / TILE;
  int minor = threadIdx.x % TILE, major = threadIdx.x / TILE;
  i64 across = quotient(x.cols + TILE - 1, TILE), tiles = quotient(x.rows + TILE - 1, TILE) * across;
  for (i64 at = blockIdx.x; at < tiles; at += gridDim.x) {
    i64 row = quotient(at, across), col = (at - row * across) * TILE;
    row *= TILE;
    UNROLL for (int i = major; i < TILE; i += STEP) {
      if (row + i < x.rows && col + minor < x.cols) tile[i][minor] = x.at(row + i, col + minor);
    }
#if FAULT != 120
    __syncthreads();
#endif
    UNROLL for (int i = major; i < TILE; i += STEP) {
      if (col + i < x.cols && row + minor < x.rows) y.at(col + i, row + minor) = tile[minor][i];
    }
#if FAULT != 121
    __syncthreads();
#endif
  }
}
EXPORT(NAME(transpose))

// A block sums the columns of a chunk of rows, for sum_chunks.
KERNEL void __launch_bounds__(BLOCK) NAME(column_sums)(View<const ELEM> dy, f32* partials) {
  i64 first = chunk_start(blockIdx.x, dy.rows), end = chunk_start(blockIdx.x + 1, dy.rows);
  for (i64 col = threadIdx.x; col < dy.cols; col += BLOCK) {
    f32 sum = 0;
    for (i64 row = first; row < end; row++) sum += widen(dy.at(row, col));
    partials[blockIdx.x * dy.cols + col] = sum;
  }
}
EXPORT(NAME(column_sums))
