//! rotary.cu against float64.
#include "cells.h"

#define ELEM bf16
namespace of_bf16 {
#include "../../kernels/rotary.cu"
}
#undef ELEM
#define ELEM f16
namespace of_f16 {
#include "../../kernels/rotary.cu"
}
#undef ELEM
#define ELEM f32
namespace of_f32 {
#include "../../kernels/rotary.cu"
}
#undef ELEM

using namespace testing;

const std::vector<unsigned> GRIDS = {1, 3, 29};

struct Shape {
  i64 rows;
  int heads;
  i64 dim, pairs;
};
constexpr Shape SHAPES[] = {{1, 1, 2, 1}, {5, 2, 10, 4}, {3, 4, 64, 32}, {7, 3, 40, 16}, {2, 1, 33, 16}, {3, 2, 24, 8}};

template <class E>
void test(Report& report) {
  Random random(2);
  for (Shape shape : SHAPES)
    for (const Layout& layout : LAYOUTS)
      for (int kind = 0; kind < 4; kind++) {
        auto [rows, heads, dim, pairs] = shape;
        int interleaved = kind % 2, inverse = kind / 2;
        std::string what = std::string("rotate ") + name_of<E>() + " " + std::to_string(heads) + "x" +
                           std::to_string(dim) + " " + layout.name + " kind " + std::to_string(kind);
        Matrix<E> x = normal<E>(rows, heads * dim, layout, random);
        const Layout& other = LAYOUTS[random.below(2) * 2];
        Matrix<f32> cosine = matrix<f32>(rows, pairs, other), sine = matrix<f32>(rows, pairs, other);
        std::vector<double> want = x.values();
        for (i64 r = 0; r < rows; r++)
          for (i64 p = 0; p < pairs; p++) {
            double angle = 7 * random.normal();
            cosine.at(r, p) = (f32)cos(angle);
            sine.at(r, p) = (f32)sin(angle);
            for (int head = 0; head < heads; head++) {
              double* from = &want[r * heads * dim + head * dim];
              double &a = from[interleaved ? 2 * p : p], &b = from[interleaved ? 2 * p + 1 : pairs + p], old = a;
              double c = cosine.at(r, p), s = inverse ? -sine.at(r, p) : sine.at(r, p);
              a = a * c - b * s;
              b = b * c + old * s;
            }
          }
        sweep(report, what, GRIDS, ALLOWED, [&, rows = rows, heads = heads](unsigned grid, emu::Options options) {
          Matrix<E> got = copy_of(x);
          auto why = emu::launch(grid, BLOCK, 0, options, [&] {
            OF(E, rotate)(
                got.view(), heads, std::as_const(cosine).view(), std::as_const(sine).view(), interleaved, inverse
            );
          });
          return Outcome{why, error_of(got, want), got.padding_untouched(), got.print()};
        });
      }
}

int main(int argc, char** argv) {
  Report report("rotary", argc, argv);
  test<bf16>(report);
  test<f16>(report);
  test<f32>(report);
  return report.finish();
}
