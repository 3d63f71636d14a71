//! product.cu: transposes, and the sums of columns with sums.cu's sum_chunks.
#include "cells.h"

#include "../../kernels/sums.cu"
#define ELEM bf16
namespace of_bf16 {
#include "../../kernels/product.cu"
}
#undef ELEM
#define ELEM f16
namespace of_f16 {
#include "../../kernels/product.cu"
}
#undef ELEM
#define ELEM f32
namespace of_f32 {
#include "../../kernels/product.cu"
}
#undef ELEM

using namespace testing;

const std::vector<unsigned> GRIDS = {1, 3, 17};

struct Shape {
  i64 rows, cols;
};
constexpr Shape SHAPES[] = {{1, 1}, {5, 3}, {32, 32}, {67, 40}, {33, 300}, {130, 2}};

template <class E>
void test(Report& report) {
  Random random(10);
  for (Shape shape : SHAPES)
    for (const Layout& layout : LAYOUTS) {
      auto [rows, cols] = shape;
      std::string what = described<E>(rows, cols, layout);
      Matrix<E> x = normal<E>(rows, cols, layout, random);
      sweep(report, "transpose " + what, GRIDS, 0, [&, rows = rows, cols = cols](unsigned grid, emu::Options options) {
        Matrix<E> got = matrix<E>(cols, rows, LAYOUTS[2]), want = matrix<E>(cols, rows, LAYOUTS[2]);
        for (i64 r = 0; r < rows; r++)
          for (i64 c = 0; c < cols; c++) want.at(c, r) = x.at(r, c);
        auto why = emu::launch(grid, BLOCK, 0, options, [&] {
          OF(E, transpose)(std::as_const(x).view(), got.view());
        });
        return Outcome{why, got.print() != want.print() ? 1.0 : 0, got.padding_untouched(), got.print()};
      });
      std::vector<double> sums;
      for (i64 c = 0; c < cols; c++) {
        sums.push_back(0.5);
        for (i64 r = 0; r < rows; r++) sums[c] += value(x.at(r, c));
      }
      auto attempt = [&, cols = cols](unsigned grid, emu::Options options) {
        Matrix<f32> partials(grid, cols), got = matrix<f32>(1, cols, layout);
        got.fill(0.5);
        auto why = emu::launch(grid, BLOCK, 0, options, [&] {
          OF(E, column_sums)(std::as_const(x).view(), partials.data());
        });
        why += emu::launch(1 + grid % 2, BLOCK, 0, options, [&] { sum_chunks(partials.data(), grid, got.view()); });
        bool untouched = partials.padding_untouched() && got.padding_untouched();
        return Outcome{why, relative_error(got.values(), sums), untouched, got.print()};
      };
      sweep(report, "column_sums " + what, GRIDS, ALLOWED, attempt, false);
    }
}

int main(int argc, char** argv) {
  Report report("product", argc, argv);
  test<bf16>(report);
  test<f16>(report);
  test<f32>(report);
  return report.finish();
}
