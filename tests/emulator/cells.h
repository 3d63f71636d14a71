//! What tests of kernels share that go through matrices cell by cell: layouts of memory, and a kernel's runs on several
//! grids and schedules, which must all give the same bits.
#pragma once
#define CPU_EMU
#include <sys/mman.h>

#include "testing.h"

#include "../../kernels/cells.cuh"
#include "../../kernels/team.cuh"

namespace testing {

/// How the rows of a matrix lie: 16 bytes at a time can be read of the first two if there are columns enough.
struct Layout {
  const char* name;
  i64 lead, gap;  // elements before the first row and after every row
};
constexpr Layout LAYOUTS[] = {{"dense", 0, 0}, {"strided", 0, 16}, {"odd", 1, 3}};

template <class E>
Matrix<E> matrix(i64 rows, i64 cols, const Layout& layout) {
  return Matrix<E>(rows, cols, cols + layout.gap, layout.lead);
}
template <class E>
Matrix<E> normal(i64 rows, i64 cols, const Layout& layout, Random& random, double deviation = 1) {
  Matrix<E> x = matrix<E>(rows, cols, layout);
  x.fill_normal(random, deviation);
  return x;
}

/// The same cells in memory of their own. The constructor that C++ provides copies bytes to where rows may begin
/// elsewhere.
template <class E>
Matrix<E> copy_of(const Matrix<E>& x) {
  Matrix<E> y(x.rows, x.cols, x.stride, x.lead);
  for (i64 r = 0; r < x.rows; r++) memcpy(&y.at(r, 0), &x.at(r, 0), x.cols * sizeof(E));
  return y;
}

template <class E>
const char* name_of() {
  return std::is_same_v<E, bf16> ? "bf16" : std::is_same_v<E, f16> ? "f16" : std::is_same_v<E, f64> ? "f64" : "f32";
}
template <class E>
std::string described(i64 rows, i64 cols, const Layout& layout) {
  return std::string(name_of<E>()) + " " + std::to_string(rows) + "x" + std::to_string(cols) + " " + layout.name;
}

/// The relative error of results of type E, computed in f32 and rounded once. What rounds to the next number of 16 bits
/// because f32 is at the other side of a tie is no error.
template <class E>
double error_of(const Matrix<E>& got, std::vector<double> want) {
  std::vector<double> found = got.values();
  if constexpr (sizeof(E) == 2) {
    double size = 0;
    for (double x : want) size += x * x / want.size();
    for (size_t i = 0; i < want.size(); i++) {
      double slack = 1e-6 * (fabs(want[i]) + sqrt(size));
      double low = value(round<E>(want[i] - slack)), high = value(round<E>(want[i] + slack));
      want[i] = low <= found[i] && found[i] <= high ? found[i] : value(round<E>(want[i]));
    }
  }
  return relative_error(found, want);
}
constexpr double ALLOWED = 1e-6;

/// The nearest values of E.
template <class E>
std::vector<double> rounded(std::vector<double> x) {
  for (double& each : x) each = value(round<E>(each));
  return x;
}

/// How many cells differ; NaN is NaN.
template <class Got, class Want>
double differing(const Got& got, const Want& want) {
  double count = 0;
  for (size_t i = 0; i < std::size(want); i++) {
    double x = value(got[i]), y = value(want[i]);
    count += !(x == y ? std::signbit(x) == std::signbit(y) : x != x && y != y);
  }
  return count;
}

/// What a run gave: the emulator's complaint, the error, whether memory outside of the results is as before, and the
/// bits of the results.
struct Outcome {
  std::string why;
  double error = 0;
  bool untouched = true;
  uint64_t print = 0;
};

inline bool skipped() {
  static int cases = 0;
  return cases++ % 7 != 0;
}

/// Runs on all grids with the mildest schedule and on one grid with the others. Without `same_bits` over grids, only
/// over schedules. ThreadSanitizer takes half a millisecond for every thread of every block: `one` runs every seventh
/// case, on two blocks.
template <class Attempt>
void sweep(
    Report& report, const std::string& name, std::vector<unsigned> grids, double allowed, Attempt attempt,
    bool same_bits = true
) {
  std::map<unsigned, uint64_t> prints;
  auto run = [&](unsigned grid, const Schedule& schedule) {
    Outcome found = attempt(grid, schedule.options);
    uint64_t first = prints.emplace(same_bits ? 0 : grid, found.print).first->second;
    if (found.why.empty() && !found.untouched) found.why = "writes outside of the results";
    if (found.why.empty() && first != found.print) found.why = "bits differ from those of another run";
    report.check(name + " grid " + std::to_string(grid) + " " + schedule.name, found.why, found.error, allowed);
  };
  std::vector<Schedule> schedules = report.schedules();
  if (report.one() && skipped()) return;
  if (report.one()) grids = {2};
  for (unsigned grid : grids) run(grid, schedules[0]);
  // These kernels wait for no copies, so that landing times are one.
  emu::Async landing = schedules[0].options.async;
  for (size_t i = 1; i < schedules.size(); i++) {
    if (schedules[i].options.async == landing) run(grids[grids.size() / 2], schedules[i]);
  }
}

/// A matrix of two rows that are more than 2^32 elements apart, in memory that is there only where it is touched.
template <class E>
struct FarRows {
  static constexpr i64 STRIDE = (1ll << 32) + 64;
  i64 cols;
  size_t bytes;
  E* data;

  explicit FarRows(i64 cols) : cols(cols), bytes((STRIDE + 128) * sizeof(E)) {
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) abort();
    data = (E*)memory;
  }
  ~FarRows() { munmap(data, bytes); }
  FarRows(const FarRows&) = delete;
  View<E> view() const { return {data, 2, cols, STRIDE}; }
};

}  // namespace testing

/// The kernels of a file for the three storage types, each in a namespace of its own:
///
///     #define ELEM bf16
///     namespace of_bf16 {
///     #include "../../kernels/norm.cu"
///     }
///     #undef ELEM
///
/// and OF(E, rms_norm) is the one for the storage type E.
#define OF(E, kernel)                                                                       \
  ([] {                                                                                     \
    if constexpr (std::is_same_v<E, bf16>) return &of_bf16::kernel##_bf16;                  \
    else if constexpr (std::is_same_v<E, f16>) return &of_f16::kernel##_f16;                \
    else return &of_f32::kernel##_f32;                                                      \
  }())
