// Matrix products on the host as the stand-in of cuBLASLt does them.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace emu::products {

// By the numbers of the library's interface.
enum Type { F32 = 0, F64 = 1, F16 = 2, BF16 = 14 };
enum Compute {
  COMPUTE_32F = 68,
  COMPUTE_32F_PEDANTIC = 69,
  FAST_16F = 74,
  FAST_16BF = 75,
  FAST_TF32 = 77,
  COMPUTE_64F = 70,
  COMPUTE_64F_PEDANTIC = 71
};
enum Epilogue { NONE = 1, RELU = 2, BIAS = 4, GELU = 32, GRADIENT_A = 256, GRADIENT_B = 512 };

inline size_t size_of(int type) {
  switch (type) {
    case F32: return 4;
    case F64: return 8;
    case F16:
    case BF16: return 2;
  }
  return 0;
}

struct Matrix {
  int type, order;  // columns (0) or rows (1) lie one after another
  uint64_t rows, cols;
  int64_t ld;
  int32_t batch;
  int64_t batch_stride;

  bool row_order() const { return order == 1; }
  size_t at(size_t row, size_t col) const { return row_order() ? row * ld + col : col * ld + row; }
  size_t bytes() const { return ((batch - 1) * batch_stride + at(rows - 1, cols - 1) + 1) * size_of(type); }
};

// d[m][n] = alpha op(a) op(b) + beta c, with k products in each sum.
struct Problem {
  Matrix a, b, c, d;
  int compute, scale, pointer_mode, epilogue, bias_type;
  bool transpose_a, transpose_b;
  void* bias;
  int64_t bias_stride;
  uint64_t m, n, k;

  bool in_f64() const { return compute == COMPUTE_64F || compute == COMPUTE_64F_PEDANTIC; }
  bool has_bias() const { return epilogue & (BIAS | GRADIENT_A | GRADIENT_B); }
  size_t bias_length() const { return epilogue & GRADIENT_B ? n : m; }
};

inline double load(const void* from, size_t i, int type) {
  switch (type) {
    case F32: return ((const float*)from)[i];
    case F64: return ((const double*)from)[i];
    case F16: return (double)((const _Float16*)from)[i];
  }
  uint32_t bits = (uint32_t)((const uint16_t*)from)[i] << 16;
  float x;
  memcpy(&x, &bits, 4);
  return x;
}
// Keeps the upper bits of an f32, rounded to nearest even.
inline float cut(float x, int lower) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  if ((bits & 0x7F800000) != 0x7F800000)
    bits += (1u << (lower - 1)) - 1 + (bits >> lower & 1);
  else if (bits & 0x7FFFFF)
    bits |= 1u << 22;
  bits &= ~0u << lower;
  memcpy(&x, &bits, 4);
  return x;
}
inline void store(void* to, size_t i, int type, double x) {
  switch (type) {
    case F32: ((float*)to)[i] = x; return;
    case F64: ((double*)to)[i] = x; return;
    case F16: ((_Float16*)to)[i] = (_Float16)(float)x; return;
  }
  float rounded = cut(x, 16);
  uint32_t bits;
  memcpy(&bits, &rounded, 4);
  ((uint16_t*)to)[i] = bits >> 16;
}
inline double as_computed(double x, int compute) {
  switch (compute) {
    case FAST_16F: return (double)(_Float16)(float)x;
    case FAST_16BF: return cut(x, 16);
    case FAST_TF32: return cut(x, 13);
  }
  return x;
}

// sums[m][n] = op(A) op(B) with sums in T, in the order of k.
template <class T>
std::vector<T> multiply(const Problem& p, const char* a, const char* b) {
  std::vector<T> left(p.m * p.k), right(p.k * p.n), sums(p.m * p.n);
  for (size_t i = 0; i < p.m; i++)
    for (size_t k = 0; k < p.k; k++)
      left[i * p.k + k] = as_computed(load(a, p.transpose_a ? p.a.at(k, i) : p.a.at(i, k), p.a.type), p.compute);
  for (size_t k = 0; k < p.k; k++)
    for (size_t j = 0; j < p.n; j++)
      right[k * p.n + j] = as_computed(load(b, p.transpose_b ? p.b.at(j, k) : p.b.at(k, j), p.b.type), p.compute);
  // A block of columns stays in the cache while all rows go by; four rows share what is read of it.
  constexpr size_t COLUMNS = 64, INNER = 256, LINES = 4;
  for (size_t j0 = 0; j0 < p.n; j0 += COLUMNS) {
    size_t width = std::min(COLUMNS, p.n - j0);
    for (size_t k0 = 0; k0 < p.k; k0 += INNER) {
      size_t k1 = std::min(k0 + INNER, p.k);
      for (size_t i0 = 0; i0 < p.m; i0 += LINES) {
        size_t lines = std::min(LINES, p.m - i0);
        T part[LINES][COLUMNS] = {};
        for (size_t i = 0; i < lines; i++) memcpy(part[i], &sums[(i0 + i) * p.n + j0], width * sizeof(T));
        for (size_t k = k0; k < k1; k++) {
          T row[COLUMNS] = {};
          memcpy(row, &right[k * p.n + j0], width * sizeof(T));
          for (size_t i = 0; i < lines; i++) {
            T x = left[(i0 + i) * p.k + k];
            for (size_t j = 0; j < COLUMNS; j++) part[i][j] += x * row[j];
          }
        }
        for (size_t i = 0; i < lines; i++) memcpy(&sums[(i0 + i) * p.n + j0], part[i], width * sizeof(T));
      }
    }
  }
  return sums;
}

template <class T>
void run(const Problem& p, T alpha, T beta, const char* a, const char* b, const char* c, char* d) {
  for (int batch = 0; batch < p.d.batch; batch++) {
    auto of = [batch](const Matrix& x) { return batch * x.batch_stride * (int64_t)size_of(x.type); };
    std::vector<T> sums = multiply<T>(p, a + of(p.a), b + of(p.b));
    char* bias = (char*)p.bias + batch * p.bias_stride * (int64_t)size_of(p.bias_type);
    for (size_t i = 0; i < p.m; i++) {
      for (size_t j = 0; j < p.n; j++) {
        T x = alpha * sums[i * p.n + j];
        // C is not read when beta is 0: it may hold anything.
        if (beta != 0) x += beta * (T)load(c + of(p.c), p.c.at(i, j), p.c.type);
        if (p.epilogue & BIAS) x += (T)load(bias, i, p.bias_type);
        if (p.epilogue & RELU) x = std::max<T>(x, 0);
        if (p.epilogue & GELU) x = x / 2 * (1 + std::tanh((T)0.7978845608028654 * (x + (T)0.044715 * x * x * x)));
        store(d + of(p.d), p.d.at(i, j), p.d.type, x);
      }
    }
    for (size_t i = 0; p.epilogue & (GRADIENT_A | GRADIENT_B) && i < p.bias_length(); i++) {
      T sum = 0;
      for (size_t k = 0; k < p.k; k++) {
        bool left = p.epilogue & GRADIENT_A;
        const Matrix& x = left ? p.a : p.b;
        bool k_is_column = left != (left ? p.transpose_a : p.transpose_b);
        sum += load((left ? a : b) + of(x), k_is_column ? x.at(i, k) : x.at(k, i), x.type);
      }
      store(bias, i, p.bias_type, sum);
    }
  }
}

}  // namespace emu::products
