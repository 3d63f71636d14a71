// The twins of Hopper's instructions against formulas written apart from them.
#include "testing.h"

#include "test_hopper.cu"

static void fail_if(const std::string& why) {
  if (why.empty()) return;
  fprintf(stderr, "map: %s\n", why.c_str());
  abort();
}

// A box of a matrix and of a tensor of rank 4, partly outside of them.
static void test_boxes(testing::Report& report) {
  testing::Matrix<u16> plane(40, 100, 104);
  for (i64 r = 0; r < 40; r++)
    for (i64 c = 0; c < 100; c++) plane.at(r, c) = r * 100 + c + 1;
  testing::Matrix<u16> solid(9 * 7 * 5, 32);
  for (i64 r = 0; r < solid.rows; r++)
    for (i64 c = 0; c < 32; c++) solid.at(r, c) = r * 32 + c + 1;
  testing::Matrix<u32> line(1, LINE_BYTES / 4);
  for (u32 i = 0; i < LINE_BYTES / 4; i++) line.at(0, i) = i * i;

  TensorMap plane_map, solid_map;
  uint64_t plane_dims[] = {100, 40}, plane_strides[] = {208};
  uint64_t solid_dims[] = {32, 5, 7, 9}, solid_strides[] = {64, 320, 2240};
  uint32_t plane_box[] = {64, 32}, solid_box[] = {32, 4, 4, 2};
  fail_if(emu::encode_map(&plane_map, plane.data(), 2, 2, plane_dims, plane_strides, plane_box, 3));
  fail_if(emu::encode_map(&solid_map, solid.data(), 2, 4, solid_dims, solid_strides, solid_box, 2));

  auto plane_at = [&](int x, int y) { return x >= 0 && x < 100 && y >= 0 && y < 40 ? plane.at(y, x) : 0; };
  auto solid_at = [&](int x, int y, int z, int w) {
    bool inside = x >= 0 && x < 32 && y >= 0 && y < 5 && z >= 0 && z < 7 && w >= 0 && w < 9;
    return inside ? solid.at((w * 7 + z) * 5 + y, x) : 0;
  };
  for (auto& s : report.schedules())
    for (int x : {0, 8, 72})
      for (int y : {-3, 0, 20})
        for (int z : {-1, 5}) {
          int w = z + 3;
          std::vector<u32> out((PLANE_BYTES + SOLID_BYTES + LINE_BYTES) / 4);
          std::string why = emu::launch(1, GROUP_THREADS, out.size() * 4 + 8, s.options,
                                        [&] { copy_boxes(plane_map, solid_map, line.data(), out.data(), x, y, z, w); });
          const u16* got = (const u16*)out.data();
          int wrong = 0;
          // 128-byte rows whose 16-byte chunks change places by the row; 64-byte rows, by every second row.
          for (int r = 0; r < 32; r++)
            for (int c = 0; c < 64; c++)
              wrong += got[r * 64 + ((c / 8) ^ (r % 8)) * 8 + c % 8] != plane_at(x + c, y + r);
          for (int r = 0; r < 32; r++)
            for (int c = 0; c < 32; c++) {
              int want = solid_at(x + c, y + r % 4, z + r / 4 % 4, w + r / 16);
              wrong += got[2048 + r * 32 + ((c / 8) ^ (r / 2 % 4)) * 8 + c % 8] != want;
            }
          for (u32 i = 0; i < LINE_BYTES / 4; i++) wrong += out[(PLANE_BYTES + SOLID_BYTES) / 4 + i] != i * i;
          report.check("boxes " + s.name, why, wrong, 0);
        }
}

static void test_square(testing::Report& report) {
  const int rows = 100;
  testing::Random random(3);
  testing::Matrix<bf16> x(rows, SIDE);
  x.fill_normal(random);
  TensorMap x_map, y_map;
  uint64_t dims[] = {SIDE, rows, 1}, strides[] = {SIDE * 2, SIDE * 2};
  uint32_t box[] = {SIDE, SIDE, 1};
  fail_if(emu::encode_map(&x_map, x.data(), 2, 3, dims, strides, box, 3));
  for (auto& s : report.schedules()) {
    testing::Matrix<bf16> y(rows, SIDE);
    fail_if(emu::encode_map(&y_map, y.data(), 2, 3, dims, strides, box, 3));
    std::string why;
    for (int row = 0; row < rows && why.empty(); row += SIDE)
      why = emu::launch(1, GROUP_THREADS, Square::BYTES + 8, s.options, [&] { square(x_map, y_map, row); });
    std::vector<double> want;
    for (int r = 0; r < rows; r++)
      for (int c = 0; c < SIDE; c++) {
        int other = r / SIDE * SIDE + c;
        double sum = 0;
        for (int e = 0; e < SIDE && other < rows; e++)
          sum += testing::value(x.at(r, e)) * testing::value(x.at(other, e));
        want.push_back(sum);
      }
    double error = testing::relative_error(y.values(), want);
    report.check("square " + s.name, why, y.padding_untouched() ? error : INFINITY, 3e-3);
  }
}

static void test_sums(testing::Report& report) {
  const int blocks = 3, rounds = 4, length = GROUP_THREADS * 4;
  testing::Random random(4);
  testing::Matrix<f32> terms(blocks * rounds, length);
  terms.fill_normal(random);
  std::vector<float> want(length, 0);
  for (int r = 0; r < blocks * rounds; r++)
    for (int c = 0; c < length; c++) want[c] += terms.at(r, c);
  for (auto& s : report.schedules()) {
    testing::Matrix<f32> sum(1, length);
    sum.fill(0);
    u32 counter = 0;
    std::string why = emu::launch(blocks, GROUP_THREADS, VECTOR_BYTES, s.options,
                                  [&] { add_in_order(terms.data(), sum.data(), &counter, rounds); });
    bool same = !memcmp(sum.data(), want.data(), length * 4);
    report.check("sums " + s.name, why, same ? 0 : INFINITY, 0);
  }
}

static void test_hand_over(testing::Report& report) {
  for (auto& s : report.schedules()) {
    std::vector<u32> out(SM90_THREADS, 0);
    std::string why = emu::launch(1, SM90_THREADS, GROUP_THREADS * 4, s.options, [&] { hand_over(out.data()); });
    int wrong = out[0] != 1;
    for (u32 i = GROUP_THREADS; i < SM90_THREADS; i++) wrong += out[i] != i % GROUP_THREADS * 3;
    report.check("hand over " + s.name, why, wrong, 0);
  }
}

int main(int argc, char** argv) {
  testing::Report report("hopper", argc, argv);
  test_boxes(report);
  test_square(report);
  test_sums(report);
  test_hand_over(report);
  return report.finish();
}
