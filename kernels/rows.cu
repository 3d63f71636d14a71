// Row movements, copies, sums and conversions: src/ops/rows. Words of 1, 2, 4 and 8 bytes stand for all types of that
// size.
#include "cells.cuh"

typedef u8 Word_1;
typedef u16 Word_2;
typedef u32 Word_4;
typedef u64 Word_8;

// A list of rows; without `rows`, those from `first` on at every `step`.
struct RowList {
  const u32* rows;
  i64 first, step, count;

  MEMBER i64 operator[](i64 i) const { return rows ? rows[i] : first + i * step; }
};

// Writes row list[i] of `source` to row i of `target`.
template <class T>
INLINE void gather(const View<const T>& source, const RowList& list, const View<T>& target) {
  bool packed = is_packed(source) && is_packed(target);
  each_stretch<Pack<T>::COUNT>(packed, list.count, target.cols, [&](auto count, i64 i, i64 col) {
    copy_cells<decltype(count)::VALUE>(source.row(list[i]) + col, target.row(i) + col);
  });
}

// Writes row i of `source` to row list[i] of `target`.
template <class T>
INLINE void scatter(const View<const T>& source, const RowList& list, const View<T>& target) {
  bool packed = is_packed(source) && is_packed(target);
  each_stretch<Pack<T>::COUNT>(packed, list.count, target.cols, [&](auto count, i64 i, i64 col) {
    copy_cells<decltype(count)::VALUE>(source.row(i) + col, target.row(list[i]) + col);
  });
}

template <class T>
INLINE void copy(const View<const T>& source, const View<T>& target) {
  bool packed = is_packed(source) && is_packed(target);
  each_stretch<Pack<T>::COUNT>(packed, target.rows, target.cols, [&](auto count, i64 row, i64 col) {
    copy_cells<decltype(count)::VALUE>(source.row(row) + col, target.row(row) + col);
  });
}

template <class T>
INLINE void fill(const View<T>& x, T value) {
  Pack<T> pack;
  UNROLL for (int i = 0; i < Pack<T>::COUNT; i++) pack.each[i] = value;
  each_stretch<Pack<T>::COUNT>(is_packed(x), x.rows, x.cols, [&](auto count, i64 row, i64 col) {
    copy_cells<decltype(count)::VALUE>(pack.each, x.row(row) + col);
  });
}

// Adds source rows order[starts[i]] .. order[starts[i + 1]], in this order, to row targets[i]; without `starts`, row i.
// Rows of the list are distinct, so that a cell of the target belongs to one thread.
template <class T>
INLINE void scatter_add(
    const View<const T>& source, const RowList& targets, const u32* starts, const u32* order, const View<T>& target
) {
  for (Cells at(target.cols); at.row < targets.count; at.next()) {
    T* to = target.row(targets[at.row]) + at.col;
    if (starts) {
      T sum = *to;
#if FAULT == 110
      for (i64 i = starts[at.row + 1]; i-- > starts[at.row];) sum += source.row(order[i])[at.col];
#else
      for (i64 i = starts[at.row]; i < starts[at.row + 1]; i++) sum += source.row(order[i])[at.col];
#endif
      *to = sum;
    } else {
      *to += source.row(at.row)[at.col];
    }
  }
}

template <class T>
struct SumType {
  typedef f32 Type;
};
template <>
struct SumType<f64> {
  typedef f64 Type;
};

// x += y, rounded once.
template <class T>
INLINE void add(const View<T>& x, const View<const T>& y) {
  bool packed = is_packed(x) && is_packed(y);
  each_stretch<Pack<T>::COUNT>(packed, x.rows, x.cols, [&](auto count, i64 row, i64 col) {
    constexpr int N = decltype(count)::VALUE;
    typename SumType<T>::Type a[N], b[N];
    load(x.row(row) + col, a);
    load(y.row(row) + col, b);
    UNROLL for (int i = 0; i < N; i++) a[i] += b[i];
    store(x.row(row) + col, a);
  });
}

// Widens or rounds, in stretches that are packs of both types.
template <class From, class To>
INLINE void convert(const View<const From>& x, const View<To>& y) {
  constexpr int N = Pack<From>::COUNT > Pack<To>::COUNT ? Pack<From>::COUNT : Pack<To>::COUNT;
  bool packed = is_packed(x) && is_packed(y);
  each_stretch<N>(packed, y.rows, y.cols, [&](auto count, i64 row, i64 col) {
    f32 values[decltype(count)::VALUE];
    load(x.row(row) + col, values);
    store(y.row(row) + col, values);
  });
}

#define WORDS(w)                                                                                               \
  KERNEL void __launch_bounds__(BLOCK)                                                                         \
      gather_rows_##w(View<const Word_##w> source, RowList rows, View<Word_##w> target) {                      \
    gather(source, rows, target);                                                                              \
  }                                                                                                            \
  EXPORT(gather_rows_##w)                                                                                      \
  KERNEL void __launch_bounds__(BLOCK)                                                                         \
      scatter_rows_##w(View<const Word_##w> source, RowList rows, View<Word_##w> target) {                     \
    scatter(source, rows, target);                                                                             \
  }                                                                                                            \
  EXPORT(scatter_rows_##w)                                                                                     \
  KERNEL void __launch_bounds__(BLOCK) copy_##w(View<const Word_##w> source, View<Word_##w> target) {          \
    copy(source, target);                                                                                      \
  }                                                                                                            \
  EXPORT(copy_##w)                                                                                             \
  KERNEL void __launch_bounds__(BLOCK) fill_##w(View<Word_##w> x, u64 value) { fill(x, (Word_##w)value); }     \
  EXPORT(fill_##w)

WORDS(1)
WORDS(2)
WORDS(4)
WORDS(8)

#define SCATTER_ADD(T)                                                                                         \
  KERNEL void __launch_bounds__(BLOCK) scatter_add_rows_##T(                                                   \
      View<const T> source, RowList targets, const u32* starts, const u32* order, View<T> target               \
  ) {                                                                                                          \
    scatter_add(source, targets, starts, order, target);                                                       \
  }                                                                                                            \
  EXPORT(scatter_add_rows_##T)

SCATTER_ADD(f32)
SCATTER_ADD(f64)

#define ADD(T)                                                                                                 \
  KERNEL void __launch_bounds__(BLOCK) add_##T(View<T> x, View<const T> y) { add(x, y); }                      \
  EXPORT(add_##T)

ADD(f32)
ADD(f64)
ADD(bf16)
ADD(f16)

#define CONVERT(E)                                                                                             \
  KERNEL void __launch_bounds__(BLOCK) widen_##E(View<const E> x, View<f32> y) { convert(x, y); }              \
  EXPORT(widen_##E)                                                                                            \
  KERNEL void __launch_bounds__(BLOCK) round_##E(View<const f32> x, View<E> y) { convert(x, y); }              \
  EXPORT(round_##E)

CONVERT(f32)
CONVERT(bf16)
CONVERT(f16)
