// Ways through the cells of matrices: 16 bytes at a time where rows are aligned, and shares of threads and blocks.
#pragma once
#include "types.cuh"

// Elements that are read or written together: 16 bytes.
template <class E>
struct alignas(16) Pack {
  static constexpr int COUNT = 16 / sizeof(E);
  E each[COUNT];
};
template <class E>
INLINE Pack<E>* packs(E* x) {
#ifdef CPU_EMU
  if ((u64)x % 16) emu::fail("16 bytes at address %llx", (u64)x);
#endif
  return (Pack<E>*)x;
}
template <class E>
INLINE const Pack<E>* packs(const E* x) {
  return packs(const_cast<E*>(x));
}

// Whether every row begins at a multiple of 16 bytes and is made of packs.
template <class E>
INLINE bool is_packed(const View<E>& x) {
  i64 bytes = sizeof(E);
#if FAULT == 102
  return x.cols * bytes % 16 == 0;
#else
  return (u64)x.data % 16 == 0 && x.cols * bytes % 16 == 0 && (x.rows < 2 || x.stride * bytes % 16 == 0);
#endif
}

// Copies COUNT elements as they are: an element, or a pack.
template <int COUNT, class T>
INLINE void copy_cells(const T* from, T* to) {
  if constexpr (COUNT == 1) {
    *to = *from;
  } else {
    static_assert(COUNT == Pack<T>::COUNT);
    *packs(to) = *packs(from);
  }
}

// Reads COUNT elements: an element, or packs.
template <int COUNT, class E, class Value>
INLINE void load(const E* from, Value (&x)[COUNT]) {
  if constexpr (COUNT % Pack<E>::COUNT == 0) {
    UNROLL for (int k = 0; k < COUNT; k += Pack<E>::COUNT) {
      Pack<E> pack = *packs(from + k);
      UNROLL for (int i = 0; i < Pack<E>::COUNT; i++) x[k + i] = widen(pack.each[i]);
    }
  } else {
    static_assert(COUNT == 1);
    x[0] = widen(*from);
  }
}
// Rounds and writes COUNT elements.
template <int COUNT, class E, class Value>
INLINE void store(E* to, const Value (&x)[COUNT]) {
  if constexpr (COUNT % Pack<E>::COUNT == 0) {
    UNROLL for (int k = 0; k < COUNT; k += Pack<E>::COUNT) {
      Pack<E> pack;
      UNROLL for (int i = 0; i < Pack<E>::COUNT; i++) round_into(pack.each[i], x[k + i]);
      *packs(to + k) = pack;
    }
  } else {
    static_assert(COUNT == 1);
    round_into(*to, x[0]);
  }
}

// The same with `left` elements if those are less than COUNT (read as `otherwise` beyond), and one by one unless
// `packed`: threads have the same elements either way, so that sums do not depend on where memory begins.
template <int COUNT, class E>
INLINE void load(const E* from, i64 left, bool packed, f32 (&x)[COUNT], f32 otherwise = 0) {
  if (packed && left >= COUNT) {
    load(from, x);
  } else {
#if FAULT == 103
    left = COUNT;
#endif
    UNROLL for (int i = 0; i < COUNT; i++) x[i] = i < left ? widen(from[i]) : otherwise;
  }
}
template <int COUNT, class E>
INLINE void store(E* to, i64 left, bool packed, const f32 (&x)[COUNT]) {
  if (packed && left >= COUNT) {
    store(to, x);
  } else {
#if FAULT == 104
    left = COUNT;
#endif
    UNROLL for (int i = 0; i < COUNT; i++) {
      if (i < left) round_into(to[i], x[i]);
    }
  }
}

// Quotients of numbers that are not negative: 64 bits only where they are needed.
INLINE i64 quotient(i64 a, i64 b) { return (u64)(a | b) >> 32 ? a / b : (i64)((u32)a / (u32)b); }

// Where the chunk of a block begins, of `count` things that the grid shares out.
INLINE i64 chunk_start(i64 block, i64 count) {
#if FAULT == 105
  return block * (count / gridDim.x);  // forgets the remainder
#else
  return quotient(block * count, gridDim.x);
#endif
}

// The cells of a matrix that fall to a thread, if threads take one after another in order of rows:
// for (Cells at(cols); at.row < rows; at.next()). There is one division per thread, none per cell.
struct Cells {
  i64 row, col, cols, row_step, col_step;

  MEMBER Cells(i64 cols) : cols(cols) {
    i64 first = (i64)blockIdx.x * blockDim.x + threadIdx.x, step = (i64)gridDim.x * blockDim.x;
    row = quotient(first, cols);
    col = first - row * cols;
    row_step = quotient(step, cols);
    col_step = step - row_step * cols;
  }
  MEMBER void next() {
    row += row_step;
    col += col_step;
    if (col >= cols) {
      col -= cols;
      row++;
    }
  }
};

template <int N>
struct Count {
  static constexpr int VALUE = N;
};

// Calls each(Count<N>(), row, column) for stretches of N cells, the first of them in that column, if `packed`; else for
// single cells. Grid and block are any.
template <int N, class Each>
INLINE void each_stretch(bool packed, i64 rows, i64 cols, Each each) {
  if (packed) {
    for (Cells at(quotient(cols, N)); at.row < rows; at.next()) each(Count<N>(), at.row, at.col * N);
  } else {
    for (Cells at(cols); at.row < rows; at.next()) each(Count<1>(), at.row, at.col);
  }
}
