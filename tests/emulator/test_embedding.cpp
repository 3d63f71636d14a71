//! embedding.cu: bits are those of sums in order.
#include "cells.h"

#define ELEM bf16
namespace of_bf16 {
#include "../../kernels/embedding.cu"
}
#undef ELEM
#define ELEM f16
namespace of_f16 {
#include "../../kernels/embedding.cu"
}
#undef ELEM
#define ELEM f32
namespace of_f32 {
#include "../../kernels/embedding.cu"
}
#undef ELEM

using namespace testing;

const std::vector<unsigned> GRIDS = {1, 3, 23};

struct Shape {
  i64 rows, cols, vocab;
};
constexpr Shape SHAPES[] = {{1, 1, 1}, {5, 3, 4}, {70, 40, 9}, {259, 5, 300}, {600, 16, 11}};

template <class E>
void test(Report& report) {
  Random random(5);
  for (Shape shape : SHAPES)
    for (const Layout& layout : LAYOUTS) {
      auto [rows, cols, vocab] = shape;
      std::string what = described<E>(rows, cols, layout);
      Matrix<E> table = normal<E>(vocab, cols, layout, random), dy = normal<E>(rows, cols, layout, random);
      table.at(vocab - 1, cols - 1) = round<E>(-0.0);
      Matrix<i64> tokens = matrix<i64>(rows, 1, layout);
      for (i64 r = 0; r < rows; r++) {
        tokens.at(r, 0) = random.below(8) ? (i64)random.below(vocab) : -1 - (i64)random.below(200);
      }
      View<const i64> ids = std::as_const(tokens).view();

      sweep(report, "embed " + what, GRIDS, 0, [&, rows = rows, cols = cols](unsigned grid, emu::Options options) {
        Matrix<E> got = matrix<E>(rows, cols, layout), want = matrix<E>(rows, cols, layout);
        want.fill(0);
        for (i64 r = 0; r < rows; r++)
          for (i64 c = 0; c < cols && tokens.at(r, 0) >= 0; c++) want.at(r, c) = table.at(tokens.at(r, 0), c);
        auto why = emu::launch(grid, BLOCK, 0, options, [&] {
          OF(E, embed)(std::as_const(table).view(), ids, got.view());
        });
        return Outcome{why, got.print() != want.print() ? 1.0 : 0, got.padding_untouched(), got.print()};
      });

      std::vector<u32> sorted;
      for (i64 r = 0; r < rows; r++) sorted.push_back((u32)r);
      std::stable_sort(sorted.begin(), sorted.end(), [&](u32 a, u32 b) { return tokens.at(a, 0) < tokens.at(b, 0); });
      sweep(report, "embed_order " + what, GRIDS, 0, [&, rows = rows](unsigned grid, emu::Options options) {
        Matrix<u32> got(1, rows);
        auto why = emu::launch(grid, BLOCK, 0, options, [&] { OF(E, embed_order)(ids, got.data()); });
        double wrong = 0;
        for (i64 r = 0; r < rows; r++) wrong += got.at(0, r) != sorted[r];
        return Outcome{why, wrong, got.padding_untouched(), got.print()};
      });

      Matrix<f32> before = normal<f32>(vocab, cols, layout, random);
      // No skip, an id that is there, and one that is not.
      for (auto [has_skip, skip] : {std::pair<int, i64>{0, 0}, {1, 0}, {1, vocab}}) {
        auto name = "embed_backward " + what + " skip " + std::to_string(has_skip * (1 + skip));
        sweep(report, name, GRIDS, 0, [&, rows = rows, cols = cols, has_skip = has_skip, skip = skip](
            unsigned grid, emu::Options options
        ) {
          Matrix<f32> got = copy_of(before), want = copy_of(before);
          for (i64 r = 0; r < rows; r++) {
            i64 token = tokens.at(r, 0);
            if (token < 0 || (has_skip && token == skip)) continue;
            for (i64 c = 0; c < cols; c++) want.at(token, c) += (f32)value(dy.at(r, c));
          }
          auto why = emu::launch(grid, BLOCK, 0, options, [&] {
            OF(E, embed_backward)(ids, sorted.data(), std::as_const(dy).view(), has_skip, skip, got.view());
          });
          return Outcome{why, got.print() != want.print() ? 1.0 : 0, got.padding_untouched(), got.print()};
        });
      }
    }

  FarRows<E> far(50);
  for (int i = 0; i < 50; i++) {
    far.data[i] = round<E>(i);
    far.data[far.STRIDE + i] = round<E>(100 + i);
  }
  Matrix<i64> tokens(2, 1);
  tokens.at(0, 0) = 1;
  tokens.at(1, 0) = 0;
  Matrix<E> got(2, 50);
  auto why = emu::launch(1, BLOCK, 0, {}, [&] {
    OF(E, embed)({far.data, 2, far.cols, far.STRIDE}, std::as_const(tokens).view(), got.view());
  });
  double error = fabs(value(got.at(0, 49)) - 149) + fabs(value(got.at(1, 49)) - 49);
  report.check(std::string("a table of more than 2^32 elements ") + name_of<E>(), why, error, 0);
}

int main(int argc, char** argv) {
  Report report("embedding", argc, argv);
  test<bf16>(report);
  test<f16>(report);
  test<f32>(report);
  return report.finish();
}
