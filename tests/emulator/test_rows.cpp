//! rows.cu: row movements, copies, sums and conversions.
#include "cells.h"

#include "../../kernels/rows.cu"

using namespace testing;

template <class Word>
Matrix<Word> words(i64 rows, i64 cols, const Layout& layout, Random& random) {
  Matrix<Word> x = matrix<Word>(rows, cols, layout);
  for (i64 r = 0; r < rows; r++)
    for (i64 c = 0; c < cols; c++) x.at(r, c) = (Word)random.bits();
  return x;
}

struct Shape {
  i64 rows, cols;
};
constexpr Shape SHAPES[] = {{1, 1}, {3, 5}, {7, 64}, {5, 131}, {41, 32}};
const std::vector<unsigned> GRIDS = {1, 3, 29};

/// Whether `got` has the bits of `want`.
template <class E>
Outcome same(std::string why, const Matrix<E>& got, const Matrix<E>& want) {
  return {why, got.print() == want.print() ? 0.0 : 1.0, got.padding_untouched(), got.print()};
}

template <class Word, class Gather, class Scatter, class Copy, class Fill>
void movements(Report& report, Gather gather_rows, Scatter scatter_rows, Copy copy_rows, Fill fill_rows) {
  Random random(sizeof(Word));
  std::string type = "_" + std::to_string(sizeof(Word));
  for (Shape shape : SHAPES)
    for (const Layout& layout : LAYOUTS) {
      std::string what = type + " " + std::to_string(shape.rows) + "x" + std::to_string(shape.cols) + " " + layout.name;
      Matrix<Word> large = words<Word>(shape.rows, shape.cols, layout, random);
      const Layout& other = LAYOUTS[random.below(2) * 2];
      for (bool listed : {false, true}) {
        // Distinct rows: every second one from the last but one up, or a list.
        std::vector<u32> list;
        RowList rows{nullptr, shape.rows > 1, 2, shape.rows / 2};
        if (shape.rows == 1) rows.count = 1;
        if (listed) {
          for (i64 r = 0; r < shape.rows; r++) list.insert(list.begin() + random.below(list.size() + 1), (u32)r);
          rows = {list.data(), 1000000, 1000000, (shape.rows + 1) / 2};
        }
        Matrix<Word> small = words<Word>(rows.count, shape.cols, other, random);
        auto row = [&](i64 i) { return listed ? (i64)list[i] : rows.first + i * rows.step; };
        sweep(report, "gather" + type + what, GRIDS, 0, [&](unsigned grid, emu::Options options) {
          Matrix<Word> got = matrix<Word>(rows.count, shape.cols, other), want = copy_of(got);
          for (i64 i = 0; i < rows.count; i++)
            for (i64 c = 0; c < shape.cols; c++) want.at(i, c) = large.at(row(i), c);
          auto why = emu::launch(grid, BLOCK, 0, options, [&] {
            gather_rows(std::as_const(large).view(), rows, got.view());
          });
          return same(why, got, want);
        });
        sweep(report, "scatter" + type + what, GRIDS, 0, [&](unsigned grid, emu::Options options) {
          Matrix<Word> got = matrix<Word>(shape.rows, shape.cols, layout), want = copy_of(got);
          for (i64 i = 0; i < rows.count; i++)
            for (i64 c = 0; c < shape.cols; c++) want.at(row(i), c) = small.at(i, c);
          auto why = emu::launch(grid, BLOCK, 0, options, [&] {
            scatter_rows(std::as_const(small).view(), rows, got.view());
          });
          return same(why, got, want);
        });
      }
      sweep(report, "copy" + what, GRIDS, 0, [&](unsigned grid, emu::Options options) {
        Matrix<Word> got = matrix<Word>(shape.rows, shape.cols, other);
        auto why = emu::launch(grid, BLOCK, 0, options, [&] { copy_rows(std::as_const(large).view(), got.view()); });
        return same(why, got, large);
      });
      sweep(report, "fill" + what, GRIDS, 0, [&](unsigned grid, emu::Options options) {
        Matrix<Word> got = matrix<Word>(shape.rows, shape.cols, layout), want = copy_of(got);
        for (i64 r = 0; r < shape.rows; r++)
          for (i64 c = 0; c < shape.cols; c++) want.at(r, c) = (Word)0x8899AABBCCDDEEF1;
        auto why = emu::launch(grid, BLOCK, 0, options, [&] { fill_rows(got.view(), 0x8899AABBCCDDEEF1); });
        return same(why, got, want);
      });
    }

  FarRows<Word> far(50);
  for (int i = 0; i < 50; i++) {
    far.data[i] = i;
    far.data[far.STRIDE + i] = 100 + i;
  }
  Matrix<Word> got(2, 50);
  auto why = emu::launch(1, BLOCK, 0, {}, [&] {
    copy_rows({far.data, 2, far.cols, far.STRIDE}, got.view());
  });
  report.check("rows far apart" + type, why, fabs((double)got.at(0, 49) - 49) + fabs((double)got.at(1, 49) - 149), 0);
}

template <class T, class ScatterAdd>
void scatter_adds(Report& report, ScatterAdd scatter_add_rows) {
  Random random(3);
  for (Shape shape : SHAPES)
    for (const Layout& layout : LAYOUTS) {
      std::string what = std::string("scatter_add ") + name_of<T>() + " " + std::to_string(shape.cols) + layout.name;
      Matrix<T> before = normal<T>(shape.rows + 3, shape.cols, layout, random);
      Matrix<T> source = normal<T>(3 * shape.rows, shape.cols, LAYOUTS[random.below(3)], random);
      // Groups of up to five source rows, some of them empty, for every row but the first and the last two.
      std::vector<u32> targets, starts = {0}, order;
      for (i64 r = shape.rows; r >= 1; r--) {
        targets.push_back((u32)r);
        for (u64 n = random.below(6); n > 0; n--) order.push_back((u32)random.below(source.rows));
        starts.push_back((u32)order.size());
      }
      order.push_back(~0u);
      RowList list{targets.data(), 0, 0, shape.rows}, affine{nullptr, 1, 1, shape.rows};
      sweep(report, what, GRIDS, 0, [&](unsigned grid, emu::Options options) {
        Matrix<T> got = copy_of(before), want = copy_of(before);
        for (i64 i = 0; i < shape.rows; i++)
          for (u32 at = starts[i]; at < starts[i + 1]; at++)
            for (i64 c = 0; c < shape.cols; c++) want.at(targets[i], c) += source.at(order[at], c);
        auto why = emu::launch(grid, BLOCK, 0, options, [&] {
          scatter_add_rows(std::as_const(source).view(), list, starts.data(), order.data(), got.view());
        });
        return same(why, got, want);
      });
      sweep(report, what + " distinct", GRIDS, 0, [&](unsigned grid, emu::Options options) {
        Matrix<T> got = copy_of(before), want = copy_of(before);
        for (i64 i = 0; i < shape.rows; i++)
          for (i64 c = 0; c < shape.cols; c++) want.at(1 + i, c) += source.at(i, c);
        auto why = emu::launch(grid, BLOCK, 0, options, [&] {
          scatter_add_rows(std::as_const(source).view(), affine, nullptr, nullptr, got.view());
        });
        return same(why, got, want);
      });
    }
}

template <class T, class Add>
void sums(Report& report, Add add_to) {
  Random random(4);
  for (Shape shape : SHAPES)
    for (const Layout& layout : LAYOUTS) {
      Matrix<T> x = normal<T>(shape.rows, shape.cols, layout, random);
      Matrix<T> y = normal<T>(shape.rows, shape.cols, LAYOUTS[random.below(3)], random, 0.01);
      std::string what = std::string("add ") + name_of<T>() + " " + std::to_string(shape.cols) + layout.name;
      sweep(report, what, GRIDS, 0, [&](unsigned grid, emu::Options options) {
        Matrix<T> got = copy_of(x), want = copy_of(x);
        for (i64 r = 0; r < shape.rows; r++)
          for (i64 c = 0; c < shape.cols; c++) {
            double sum = value(x.at(r, c)) + value(y.at(r, c));
            want.at(r, c) = round<T>(sizeof(T) == 2 ? (float)sum : sum);
          }
        auto why = emu::launch(grid, BLOCK, 0, options, [&] { add_to(got.view(), std::as_const(y).view()); });
        return same(why, got, want);
      });
    }
}

template <class E, class Widen, class Round>
void conversions(Report& report, Widen widen_all, Round round_all) {
  Random random(5);
  for (Shape shape : SHAPES)
    for (const Layout& layout : LAYOUTS) {
      std::string what = std::string(name_of<E>()) + " " + std::to_string(shape.cols) + layout.name;
      const Layout& other = LAYOUTS[random.below(3)];
      Matrix<E> x = normal<E>(shape.rows, shape.cols, layout, random);
      Matrix<f32> y = normal<f32>(shape.rows, shape.cols, layout, random);
      sweep(report, "widen " + what, GRIDS, 0, [&](unsigned grid, emu::Options options) {
        Matrix<f32> got = matrix<f32>(shape.rows, shape.cols, other);
        auto why = emu::launch(grid, BLOCK, 0, options, [&] { widen_all(std::as_const(x).view(), got.view()); });
        return Outcome{why, differing(got.values(), x.values()), got.padding_untouched(), got.print()};
      });
      sweep(report, "round " + what, GRIDS, 0, [&](unsigned grid, emu::Options options) {
        Matrix<E> got = matrix<E>(shape.rows, shape.cols, other);
        auto why = emu::launch(grid, BLOCK, 0, options, [&] { round_all(std::as_const(y).view(), got.view()); });
        double wrong = differing(got.values(), rounded<E>(y.values()));
        return Outcome{why, wrong, got.padding_untouched(), got.print()};
      });
    }

  if constexpr (sizeof(E) == 2) {
    // Every number there is, and what lies between it and the next: a quarter, half, and next to half.
    Matrix<E> all(256, 256);
    Matrix<f32> wide(256, 256), between(256 * 5, 256);
    for (int bits = 0; bits < 1 << 16; bits++) all.at(bits / 256, bits % 256).bits = (u16)bits;
    auto why = emu::launch(4, BLOCK, 0, {}, [&] { widen_all(std::as_const(all).view(), wide.view()); });
    report.check(std::string("all numbers ") + name_of<E>(), why, differing(wide.values(), all.values()), 0);
    constexpr i64 UNIT = std::is_same_v<E, bf16> ? 1 << 16 : 1 << 13;
    constexpr i64 AWAY[] = {0, UNIT / 4, UNIT / 2 - 1, UNIT / 2, UNIT / 2 + 1};
    for (int i = 0; i < 5; i++)
      for (int at = 0; at < 1 << 16; at++) {
        u32 bits = bits_of(wide.at(at / 256, at % 256));
        between.at(256 * i + at / 256, at % 256) = of_bits(bits + (u32)AWAY[i]);
      }
    Matrix<E> near(256 * 5, 256);
    why = emu::launch(4, BLOCK, 0, {}, [&] { round_all(std::as_const(between).view(), near.view()); });
    double wrong = differing(near.values(), rounded<E>(between.values()));
    report.check(std::string("all numbers between ") + name_of<E>(), why, wrong, 0);
  }
}

int main(int argc, char** argv) {
  Report report("rows", argc, argv);
  movements<u8>(report, gather_rows_1, scatter_rows_1, copy_1, fill_1);
  movements<u16>(report, gather_rows_2, scatter_rows_2, copy_2, fill_2);
  movements<u32>(report, gather_rows_4, scatter_rows_4, copy_4, fill_4);
  movements<u64>(report, gather_rows_8, scatter_rows_8, copy_8, fill_8);
  scatter_adds<f32>(report, scatter_add_rows_f32);
  scatter_adds<f64>(report, scatter_add_rows_f64);
  sums<f32>(report, add_f32);
  sums<f64>(report, add_f64);
  sums<bf16>(report, add_bf16);
  sums<f16>(report, add_f16);
  conversions<f32>(report, widen_f32, round_f32);
  conversions<bf16>(report, widen_bf16, round_bf16);
  conversions<f16>(report, widen_f16, round_f16);
  return report.finish();
}
