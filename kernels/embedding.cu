// Token embedding and its gradient: src/ops/embedding. An id below 0 stands for no token.
#include "cells.cuh"
#include "primitives.cuh"

KERNEL void __launch_bounds__(BLOCK)
    NAME(embed)(View<const ELEM> table, View<const i64> tokens, View<ELEM> y) {
  constexpr int N = Pack<ELEM>::COUNT;
  each_stretch<N>(is_packed(table) && is_packed(y), y.rows, y.cols, [&](auto count, i64 row, i64 col) {
    i64 token = *tokens.row(row);
#if FAULT == 116
    if (token < 0) token = 0;
#endif
    if (token < 0) {
      const f32 zeros[decltype(count)::VALUE] = {};
      store(y.row(row) + col, zeros);
    } else {
      copy_cells<decltype(count)::VALUE>(table.row(token) + col, y.row(row) + col);
    }
  });
}
EXPORT(NAME(embed))

// Sorts positions by token, equal tokens by position: order[rank] = position. A thread counts what comes before its own
// position; the square of the rows is little beside the products of a layer up to some 10^5 of them.
KERNEL void __launch_bounds__(BLOCK) NAME(embed_order)(View<const i64> tokens, u32* order) {
  SHARED_ARRAY(i64, tile, [BLOCK]);
  i64 rows = tokens.rows;
  for (i64 first = (i64)blockIdx.x * BLOCK; first < rows; first += (i64)gridDim.x * BLOCK) {
    i64 own = first + threadIdx.x, token = own < rows ? *tokens.row(own) : 0;
    u32 rank = 0;
    for (i64 from = 0; from < rows; from += BLOCK) {
      __syncthreads();
      if (from + threadIdx.x < rows) tile[threadIdx.x] = *tokens.row(from + threadIdx.x);
#if FAULT != 117
      __syncthreads();
#endif
      int count = rows - from < BLOCK ? (int)(rows - from) : BLOCK;
      for (int i = 0; i < count; i++) {
#if FAULT == 118
        rank += tile[i] < token || (tile[i] == token && from + i > own);
#else
        rank += tile[i] < token || (tile[i] == token && from + i < own);
#endif
      }
    }
    if (own < rows) order[rank] = (u32)own;
  }
}
EXPORT(NAME(embed_order))

// Adds row i of dy to row tokens[i] of dtable, for equal tokens in order of position: a block sums the rows of a token.
KERNEL void __launch_bounds__(BLOCK) NAME(embed_backward)(
    View<const i64> tokens, const u32* order, View<const ELEM> dy, int has_skip, i64 skip, View<f32> dtable
) {
  i64 rows = tokens.rows;
  auto token_at = [&](i64 rank) { return *tokens.row(order[rank]); };
  for (i64 start = blockIdx.x; start < rows; start += gridDim.x) {
    i64 token = token_at(start);
    if (token < 0 || (start > 0 && token_at(start - 1) == token)) continue;
#if FAULT != 119
    if (has_skip && token == skip) continue;
#endif
    // The end is found first, so that sums need not wait for tokens.
    i64 end = start + 1, past = rows;
    while (end < past) {
      i64 middle = end + (past - end) / 2;
      if (token_at(middle) == token) {
        end = middle + 1;
      } else {
        past = middle;
      }
    }
    for (i64 col = threadIdx.x; col < dy.cols; col += BLOCK) {
      f32* to = dtable.row(token) + col;
      f32 sum = *to;
      for (i64 rank = start; rank < end; rank++) sum += widen(dy.row(order[rank])[col]);
      *to = sum;
    }
  }
}
EXPORT(NAME(embed_backward))
