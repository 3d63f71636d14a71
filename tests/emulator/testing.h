//! What kernel tests share: random numbers, conversions that owe nothing to the kernels', matrices with poisoned
//! padding, a table of schedules, and the report. A test's main:
//!
//!     int main(int argc, char** argv) {
//!       testing::Report report("norm", argc, argv);
//!       for (const testing::Schedule& s : report.schedules()) {
//!         std::string why = emu::launch(grid, block, 0, s.options, [&] { kernel(...); });
//!         report.check(s.name + " 3x5", why, testing::relative_error(got, want), 1e-6);
//!       }
//!       return report.finish();
//!     }
//!
//! Arguments: `quick` takes one seed, `one` only the mildest schedule, for sanitizers.
#pragma once
#include <time.h>

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "../../kernels/types.cuh"

namespace testing {

struct Random {
  uint64_t state;
  explicit Random(uint64_t seed) : state(seed * 0x9E3779B97F4A7C15ull + 1) {}
  uint64_t bits() {
    state += 0x9E3779B97F4A7C15ull;
    uint64_t x = (state ^ state >> 30) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ x >> 27) * 0x94D049BB133111EBull;
    return x ^ x >> 31;
  }
  uint64_t below(uint64_t n) { return bits() % n; }
  double uniform() { return (double)(bits() >> 11) / (double)(1ull << 53); }
  double normal() { return sqrt(-2 * log(1 - uniform())) * cos(6.283185307179586 * uniform()); }
};

// Storage types on the host.
inline double value(double x) { return x; }
inline double value(float x) { return x; }
inline double value(bf16 x) {
  uint32_t bits = (uint32_t)x.bits << 16;
  float y;
  memcpy(&y, &bits, 4);
  return y;
}
inline double value(f16 x) {
  _Float16 y;
  memcpy(&y, &x.bits, 2);
  return (double)y;
}

// Nearest value of a storage type, ties to even: round<bf16>(x).
template <class E> E round(double x) {
  if constexpr (sizeof(E) > 2) {
    return (E)x;
  } else if constexpr (std::is_same_v<E, f16>) {
    _Float16 y = (_Float16)x;
    f16 bits;
    memcpy(&bits, &y, 2);
    return bits;
  } else {
    if (x != x) return {0x7FFF};
    float near = (float)x;
    uint32_t bits;
    memcpy(&bits, &near, 4);
    uint32_t half = bits & 0xFFFF, odd = bits >> 16 & 1;
    // The way over float must not make or break a tie.
    double rest = fabs(x) - fabs((double)near);
    bool up = half > 0x8000 || (half == 0x8000 && (rest > 0 || (rest == 0 && odd)));
    return {(uint16_t)((bits >> 16) + up)};
  }
}

// |got - want| / |want| over all elements; infinite if an element is NaN that should not be. Empty or all zero: |got|.
template <class Got, class Want>
double relative_error(const Got& got, const Want& want) {
  double difference = 0, size = 0;
  for (size_t i = 0; i < std::size(want); i++) {
    double x = value(got[i]), y = value(want[i]);
    if (x == y || (x != x && y != y)) x = y = std::isfinite(y) ? y : 0;
    difference += (x - y) * (x - y);
    size += y * y;
  }
  double error = sqrt(size > 0 ? difference / size : difference);
  return std::isfinite(error) ? error : INFINITY;
}

// Of the bits of an array: equal arrays have equal fingerprints.
inline uint64_t fingerprint(const void* from, size_t bytes, uint64_t hash = 14695981039346656037ull) {
  for (size_t i = 0; i < bytes; i++) hash = (hash ^ ((const uint8_t*)from)[i]) * 1099511628211ull;
  return hash;
}
template <class T> uint64_t fingerprint(const std::vector<T>& x) { return fingerprint(x.data(), x.size() * sizeof(T)); }

// A matrix within memory of its own; all that is not its cells, and at first its cells too, is poison (0xFF bytes: NaN).
// `lead` elements come before the first row, which otherwise begins at a multiple of 64 bytes.
template <class E> struct Matrix {
  i64 rows, cols, stride, lead;
  std::vector<uint8_t> memory;

  Matrix(i64 rows, i64 cols, i64 stride = 0, i64 lead = 0)
      : rows(rows), cols(cols), stride(stride ? stride : cols), lead(lead),
        memory((this->stride * rows + lead) * sizeof(E) + 192, 0xFF) {}
  E* data() { return (E*)(((uintptr_t)memory.data() + 127) / 64 * 64) + lead; }
  const E* data() const { return const_cast<Matrix*>(this)->data(); }
  E& at(i64 r, i64 c) { return data()[r * stride + c]; }
  const E& at(i64 r, i64 c) const { return data()[r * stride + c]; }
  View<E> view() { return {data(), rows, cols, stride}; }
  View<const E> view() const { return {data(), rows, cols, stride}; }
  /// A range of columns.
  View<E> columns(i64 from, i64 count) { return {data() + from, rows, count, stride}; }
  View<const E> columns(i64 from, i64 count) const { return {data() + from, rows, count, stride}; }

  void fill(double x) {
    for (i64 r = 0; r < rows; r++)
      for (i64 c = 0; c < cols; c++) at(r, c) = round<E>(x);
  }
  void fill_normal(Random& random, double deviation = 1) {
    for (i64 r = 0; r < rows; r++)
      for (i64 c = 0; c < cols; c++) at(r, c) = round<E>(random.normal() * deviation);
  }
  std::vector<double> values() const {
    std::vector<double> all;
    for (i64 r = 0; r < rows; r++)
      for (i64 c = 0; c < cols; c++) all.push_back(value(at(r, c)));
    return all;
  }
  /// Whether all that is not a cell still is poison.
  bool padding_untouched() const {
    std::vector<bool> cell(memory.size());
    for (i64 r = 0; r < rows; r++) {
      size_t from = (const uint8_t*)(data() + r * stride) - memory.data();
      std::fill_n(cell.begin() + from, cols * sizeof(E), true);
    }
    for (size_t i = 0; i < memory.size(); i++)
      if (!cell[i] && memory[i] != 0xFF) return false;
    return true;
  }
  /// Of the cells' bits.
  uint64_t print() const {
    uint64_t hash = 14695981039346656037ull;
    for (i64 r = 0; r < rows; r++) hash = fingerprint(data() + r * stride, cols * sizeof(E), hash);
    return hash;
  }
};

struct Schedule {
  emu::Options options;
  std::string name;
};

enum class Extent { One, Quick, Full };

inline std::vector<Schedule> schedules(Extent extent) {
  const char* orders[] = {"forward", "reverse", "random", "priority"};
  const char* landings[] = {"eager", "lazy", "random"};
  std::vector<Schedule> all;
  for (int order = 0; order < 4; order++)
    for (int landing = 0; landing < 3; landing++) {
      bool chance = order >= 2 || landing == 2;
      int seeds = extent == Extent::Full && chance ? 3 : 1;
      for (int seed = 1; seed <= seeds; seed++) {
        Schedule s;
        s.options.order = (emu::Order)order;
        s.options.async = (emu::Async)landing;
        s.options.seed = seed * 77;
        s.name = std::string(orders[order]) + "/" + landings[landing] + "/" + std::to_string(seed);
        all.push_back(s);
        if (extent == Extent::One) return all;
      }
    }
  return all;
}

class Report {
 public:
  Report(std::string name, int argc, char** argv) : name(std::move(name)), began(now()) {
    for (int i = 1; i < argc; i++) {
      if (!strcmp(argv[i], "quick")) extent = Extent::Quick;
      if (!strcmp(argv[i], "one")) extent = Extent::One;
    }
  }
  bool one() const { return extent == Extent::One; }
  bool quick() const { return extent != Extent::Full; }
  std::vector<Schedule> schedules() const { return testing::schedules(extent); }

  /// Counts a run: `why` is what the emulator said. The first runs that fail in a new way are printed.
  bool check(const std::string& what, const std::string& why, double error, double allowed) {
    runs++;
    bool fine = why.empty() && error <= allowed;
    if (fine) {
      worst = std::max(worst, error);
      return true;
    }
    failed++;
    char numbers[96];
    snprintf(numbers, sizeof numbers, "error %.2e, allowed %.1e", error, allowed);
    std::string kind = why.empty() ? "wrong numbers" : why.substr(std::min(why.size(), why.find(": ")));
    if (ways[kind]++ == 0 && ways.size() <= 5) printf("  %s: %s\n", what.c_str(), why.empty() ? numbers : why.c_str());
    return false;
  }
  /// A run of which only yes or no is known.
  bool check(const std::string& what, bool holds) { return check(what, holds ? "" : "does not hold: " + what, 0, 0); }

  int finish() {
    printf("%s: %d runs, %d failed, worst error %.2e, %.1f s\n", name.c_str(), runs, failed, worst, now() - began);
    return failed != 0;
  }

 private:
  static double now() {    // of this process: machines are shared
    timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
  }
  std::string name;
  Extent extent = Extent::Full;
  int runs = 0, failed = 0;
  double worst = 0, began;
  std::map<std::string, int> ways;
};

}    // namespace testing
