// Sequences, parts of them and their probabilities, as the unfused kernels see them.
#pragma once
#include "attention.cuh"
#include "tile_products.cuh"

// The query rows and key rows of a sequence. The probabilities of head h are [q_rows, k_rows] from
// at + h * q_rows * k_rows on.
struct Sequence {
  int q_row, q_rows, k_row, k_rows;
  i64 at;
};

// At most TILE rows of a sequence from its row `row` on: queries or keys, as the kernel says.
struct Part {
  int sequence, row;
};
struct Parts {
  const Sequence* sequences;
  const Part* parts;
  i64 count;
};

// Query row i attends the key rows in intervals[starts[i]..starts[i + 1]], as far as they are of its sequence; rows
// count from the start of the buffers.
struct Attended {
  const u32* starts;
  const Interval* intervals;
};

// Rows in a tile that starts at row `first` of `count`.
INLINE int rows_from(int first, int count) { return min(TILE, count - first); }

// One head of a sequence, as the kernels see it. Tiles of its rows start at row `first` of the sequence.
struct Head {
  const Shape& shape;
  const Sequence& sequence;
  int head, kv_head;

  template <class E>
  MEMBER Rows<E> queries(View<const E> q, int first) const {
    return {q, sequence.q_row + first, rows_from(first, sequence.q_rows), query_column(shape, head), shape.qk_dim};
  }
  template <class E>
  MEMBER Rows<E> gradients(View<const E> dout, int first) const {
    return {dout, sequence.q_row + first, rows_from(first, sequence.q_rows), output_column(shape, head), shape.v_dim};
  }
  template <class E>
  MEMBER Rows<E> keys(View<const E> kv, int first) const {
    return {kv, sequence.k_row + first, rows_from(first, sequence.k_rows), key_column(shape, kv_head), shape.qk_dim};
  }
  template <class E>
  MEMBER Rows<E> values(View<const E> kv, int first) const {
    return {kv, sequence.k_row + first, rows_from(first, sequence.k_rows), value_column(shape, kv_head), shape.v_dim};
  }
  // Where the probability of a query and a key of the sequence is.
  MEMBER i64 cell(int query, int key) const {
    return sequence.at + ((i64)head * sequence.q_rows + query) * sequence.k_rows + key;
  }
  MEMBER bool inside(int query, int key) const { return query < sequence.q_rows && key < sequence.k_rows; }
};

// What a block does: `each(head, first)` for every part and head that fall to it, with the part's first row.
template <class Each>
INLINE void for_each_part(const Parts& parts, int heads, Each each) {
  for (int head = blockIdx.y; head < heads; head += gridDim.y)
    for (i64 at = blockIdx.x; at < parts.count; at += gridDim.x)
      each(parts.sequences[parts.parts[at].sequence], head, parts.parts[at].row);
}

// Probabilities of a tile of queries and a tile of keys of the sequence; transposed: own rows are keys.
template <bool TRANSPOSED>
INLINE void read_probabilities(f32 (&p)[OWN][OTHER], const f32* probabilities, const Head& head, int query, int key) {
  UNROLL for (int i = 0; i < OWN; i++)
    UNROLL for (int j = 0; j < OTHER; j++) {
      int row = query + (TRANSPOSED ? other(j) : own(i)), column = key + (TRANSPOSED ? own(i) : other(j));
      p[i][j] = head.inside(row, column) ? probabilities[head.cell(row, column)] : 0;
    }
}
