// What all attention kernels share: head counts and sizes, and the schedule of tiles that the host prepares.
#pragma once
#include "types.cuh"

// Head counts and sizes; `scale` is the factor on the scores, in natural exponent. A row of `kv` holds the keys of all
// heads, then their values.
struct Shape {
  int q_heads, kv_heads, qk_dim, v_dim;
  f32 scale;
};

// One block's work for one head: a tile of rows of the one side, which is queries for the forward pass and the gradient
// of queries, keys for the gradient of keys and values. It visits tiles of the other side. A tile of queries may have
// no visits: its queries attend nothing.
struct Item {
  int row, rows;
  int first, count;  // of its visits
};

// A tile of the other side's rows. `table < 0`: every query of the tile attends every key of it; else the tile's i-th
// query has a word at `table + i`, from | to << 16, and attends the keys from <= j < to, counted from the tile's first
// key.
struct Visit {
  int row, rows;
  int table;
};

// A cell of a query and a key is in at most one visit; a query with several intervals in a tile of keys has a visit
// for each.
struct Tiles {
  const Item* items;
  const Visit* visits;
  const u32* table;
  i64 count;  // of items
};

// Keys from <= j < to of a tile.
struct Interval {
  int from, to;
};

// What the i-th of `queries` queries attends of a tile's `keys` keys; rows of a tile past its queries attend nothing.
INLINE Interval attended(const Tiles& tiles, const Visit& visit, int i, int queries, int keys) {
  if (i >= queries) return {0, 0};
  if (visit.table < 0) return {0, keys};
  u32 word = tiles.table[visit.table + i];
  return {(int)(word & 0xFFFF), (int)(word >> 16)};
}

INLINE bool contains(Interval interval, int j) {
#if FAULT == 212
  return interval.from <= j && j <= interval.to;
#else
  return interval.from <= j && j < interval.to;
#endif
}

// The key/value head of a query head.
INLINE int kv_head_of(const Shape& shape, int q_head) { return q_head / (shape.q_heads / shape.kv_heads); }

// First column of a head: of queries in q, of keys and of values in kv, of outputs in out.
INLINE i64 query_column(const Shape& shape, int q_head) { return (i64)q_head * shape.qk_dim; }
INLINE i64 key_column(const Shape& shape, int kv_head) { return (i64)kv_head * shape.qk_dim; }
INLINE i64 value_column(const Shape& shape, int kv_head) {
  return (i64)shape.kv_heads * shape.qk_dim + (i64)kv_head * shape.v_dim;
}
INLINE i64 output_column(const Shape& shape, int q_head) { return (i64)q_head * shape.v_dim; }

// Calls `each(row, head, lane)` for every head of every row, in a warp each. Any grid; blocks of whole warps.
template <class Each>
INLINE void for_each_head(i64 rows, int heads, Each each) {
  int warps = blockDim.x / 32, lane = threadIdx.x % 32;
  for (i64 at = (i64)blockIdx.x * warps + threadIdx.x / 32; at < rows * heads; at += (i64)gridDim.x * warps)
    each(at / heads, (int)(at % heads), lane);
}
