// Stand-in libcublasLt: products on the streams of the stand-in driver. Descriptors are checked more strictly than the
// library does: an algorithm is good only for the problem that it was asked for, pointers must be as aligned as the
// preference said, the workspace is overwritten, and inputs must not overlap the output.
//
// Supported: sums in f32 or f64, operands of bf16, f16, f32, f64 as in the library's table, column and row order,
// batches, the epilogues bias, relu, gelu (of columns) and the gradients of a bias of A or B.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <set>

#include "products.h"
#include "streams.h"

#define API extern "C" __attribute__((visibility("default")))

using emu::device::Op;
using DriverResult = emu::device::Result;
using namespace emu::products;

namespace {

enum Status {
  SUCCESS = 0,
  NOT_INITIALIZED = 1,
  ALLOC_FAILED = 3,
  INVALID_VALUE = 7,
  ARCH_MISMATCH = 8,
  EXECUTION_FAILED = 13,
  INTERNAL_ERROR = 14,
  NOT_SUPPORTED = 15,
};
enum DescAttribute {
  OF_COMPUTE = 0,
  OF_SCALE = 1,
  POINTER_MODE = 2,
  TRANSPOSE_A = 3,
  TRANSPOSE_B = 4,
  TRANSPOSE_C = 5,
  OF_EPILOGUE = 7,
  BIAS_POINTER = 8,
  BIAS_STRIDE = 10,
  BIAS_TYPE = 26
};
enum LayoutAttribute { OF_TYPE = 0, ORDER = 1, ROWS = 2, COLS = 3, LD = 4, BATCH = 5, BATCH_STRIDE = 6 };
enum PreferenceAttribute { SEARCH_MODE = 0, WORKSPACE = 1, ALIGNMENT_A = 5 };  // then of B, C, D

Status refuse(const char* why, Status status) {
  fprintf(stderr, "cublasLt: %s\n", why);
  return status;
}

// A descriptor: attributes by number, each of its own size.
struct Attributes {
  std::map<int, std::pair<uint64_t, size_t>> values;  // and the bytes of each

  template <class T>
  void define(int attribute, T value) {
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    values[attribute] = {bits, sizeof value};
  }
  template <class T>
  T get(int attribute) const {
    T value;
    memcpy(&value, &values.at(attribute).first, sizeof value);
    return value;
  }
};
std::set<void*>& alive() {
  static auto* all = new std::set<void*>;
  return *all;
}
std::mutex alive_lock;

template <class T>
T* make(T* one) {
  std::lock_guard held(alive_lock);
  alive().insert(one);
  return one;
}
bool exists(const void* one) {
  std::lock_guard held(alive_lock);
  return alive().count((void*)one);
}
Status destroy(Attributes* one) {
  std::lock_guard held(alive_lock);
  if (!alive().erase(one)) return INVALID_VALUE;
  delete one;
  return SUCCESS;
}
Status set(Attributes* of, int attribute, const void* from, size_t bytes) {
  if (!exists(of) || !from) return INVALID_VALUE;
  auto at = of->values.find(attribute);
  if (at == of->values.end() || at->second.second != bytes)
    return refuse("an attribute is unknown or of another size", INVALID_VALUE);
  memcpy(&at->second.first, from, bytes);
  return SUCCESS;
}
Status get(Attributes* of, int attribute, void* to, size_t bytes, size_t* written) {
  if (!exists(of)) return INVALID_VALUE;
  auto at = of->values.find(attribute);
  if (at == of->values.end()) return INVALID_VALUE;
  if (written) *written = at->second.second;
  if (!bytes) return SUCCESS;
  if (bytes < at->second.second) return INVALID_VALUE;
  memcpy(to, &at->second.first, at->second.second);
  return SUCCESS;
}

Matrix matrix_of(const Attributes& a) {
  return {a.get<int32_t>(OF_TYPE), a.get<int32_t>(ORDER), a.get<uint64_t>(ROWS),       a.get<uint64_t>(COLS),
          a.get<int64_t>(LD),      a.get<int32_t>(BATCH), a.get<int64_t>(BATCH_STRIDE)};
}
Problem problem_of(const Attributes& desc, const Attributes& a, const Attributes& b, const Attributes& c,
                   const Attributes& d) {
  Problem p{};
  p.a = matrix_of(a), p.b = matrix_of(b), p.c = matrix_of(c), p.d = matrix_of(d);
  p.compute = desc.get<int32_t>(OF_COMPUTE);
  p.scale = desc.get<int32_t>(OF_SCALE);
  p.pointer_mode = desc.get<int32_t>(POINTER_MODE);
  p.epilogue = desc.get<int32_t>(OF_EPILOGUE);
  p.bias_type = desc.get<int32_t>(BIAS_TYPE) < 0 ? p.d.type : desc.get<int32_t>(BIAS_TYPE);
  p.transpose_a = desc.get<int32_t>(TRANSPOSE_A) != 0;
  p.transpose_b = desc.get<int32_t>(TRANSPOSE_B) != 0;
  p.bias = desc.get<void*>(BIAS_POINTER);
  p.bias_stride = desc.get<int64_t>(BIAS_STRIDE);
  p.m = p.d.rows, p.n = p.d.cols, p.k = p.transpose_a ? p.a.rows : p.a.cols;
  return p;
}

const char* wrong(const Matrix& x) {
  if (!size_of(x.type)) return "a type that is not emulated";
  if (x.order != 0 && x.order != 1) return "an order that is not emulated";
  if (!x.rows || !x.cols) return "an empty matrix";
  if (x.ld < (int64_t)(x.row_order() ? x.cols : x.rows)) return "a leading dimension that is too small";
  if (x.batch < 1) return "no batch";
  return nullptr;
}

Status check(const Problem& p) {
  const auto& [a, b, c, d, compute, scale, pointer_mode, epilogue, bias_type, transpose_a, transpose_b, bias,
               bias_stride, m, n, k] = p;
  for (const Matrix* x : {&a, &b, &c, &d})
    if (const char* why = wrong(*x)) return refuse(why, INVALID_VALUE);
  if ((transpose_a ? a.cols : a.rows) != m || (transpose_b ? b.rows : b.cols) != n ||
      (transpose_b ? b.cols : b.rows) != k)
    return refuse("dimensions do not agree", INVALID_VALUE);
  if (c.rows != m || c.cols != n || c.type != d.type || c.order != d.order)
    return refuse("C is not like D", INVALID_VALUE);
  if (a.batch != d.batch || b.batch != d.batch || c.batch != d.batch)
    return refuse("batches do not agree", INVALID_VALUE);
  bool narrow = (a.type == BF16 || a.type == F16) && (d.type == a.type || d.type == F32);
  bool types = false;
  switch (compute) {
    case COMPUTE_32F:
    case COMPUTE_32F_PEDANTIC: types = scale == F32 && (narrow || (a.type == F32 && d.type == F32)); break;
    case FAST_16F:
    case FAST_16BF:
    case FAST_TF32: types = scale == F32 && a.type == F32 && d.type == F32; break;
    case COMPUTE_64F:
    case COMPUTE_64F_PEDANTIC: types = scale == F64 && a.type == F64 && d.type == F64; break;
  }
  if (!types || a.type != b.type) return refuse("types that do not go together", NOT_SUPPORTED);
  if (pointer_mode != 0 && pointer_mode != 1) return refuse("a pointer mode that is not emulated", NOT_SUPPORTED);
  bool forward = !((epilogue & ~NONE) & ~(RELU | BIAS | GELU)) && (epilogue & (RELU | GELU)) != (RELU | GELU);
  if (!forward && epilogue != GRADIENT_A && epilogue != GRADIENT_B)
    return refuse("an epilogue that is not emulated", NOT_SUPPORTED);
  if (epilogue != NONE && (d.row_order() || p.in_f64()))
    return refuse("an epilogue needs D in column order", NOT_SUPPORTED);
  if (p.has_bias() && bias_type != d.type) return refuse("the bias must be of the type of D", NOT_SUPPORTED);
  return SUCCESS;
}

// What an algorithm depends on.
uint64_t hash(const Problem& p) {
  uint64_t h = 14695981039346656037ull;
  auto mix = [&h](uint64_t x) { h = (h ^ x) * 1099511628211ull; };
  for (const Matrix* x : {&p.a, &p.b, &p.c, &p.d})
    for (uint64_t y : {(uint64_t)x->type, (uint64_t)x->order, x->rows, x->cols, (uint64_t)x->ld, (uint64_t)x->batch})
      mix(y);
  for (int x : {p.compute, p.scale, p.pointer_mode, p.epilogue, (int)p.transpose_a, (int)p.transpose_b}) mix(x);
  return h;
}
// Some kernels split the sum and need memory for the parts; taken if the preference has it.
size_t workspace_of(const Problem& p) { return p.k >= 64 ? 1 << 16 : 0; }

struct Algorithm {
  uint64_t magic, hash, workspace, alignment[4], unused;
  static constexpr uint64_t MAGIC = 0x656d756c61746564;
};
static_assert(sizeof(Algorithm) == 64);
struct Heuristic {
  Algorithm algorithm;
  size_t workspace;
  Status state;
  float waves;
  int reserved[4];
};

Status check(const Attributes* desc, const Attributes* a, const Attributes* b, const Attributes* c,
             const Attributes* d) {
  for (const Attributes* x : {desc, a, b, c, d})
    if (!exists(x)) return refuse("a descriptor that does not exist", INVALID_VALUE);
  if (desc->get<int32_t>(TRANSPOSE_C)) return refuse("C cannot be transposed", NOT_SUPPORTED);
  for (int transpose : {TRANSPOSE_A, TRANSPOSE_B})
    if (desc->get<uint32_t>(transpose) > 2) return refuse("an unknown transposition", INVALID_VALUE);
  return check(problem_of(*desc, *a, *b, *c, *d));
}

}  // namespace

API Status cublasLtCreate(void** handle) {
  *handle = make(new Attributes);
  return SUCCESS;
}
API Status cublasLtDestroy(Attributes* handle) { return destroy(handle); }
API size_t cublasLtGetVersion() { return 130000; }
API size_t cublasLtGetCudartVersion() { return 13000; }
API Status cublasLtGetProperty(int which, int* value) {
  *value = which == 0 ? 13 : 0;
  return which >= 0 && which < 3 ? SUCCESS : INVALID_VALUE;
}
API const char* cublasLtGetStatusName(Status status) {
  switch (status) {
    case SUCCESS: return "CUBLAS_STATUS_SUCCESS";
    case NOT_INITIALIZED: return "CUBLAS_STATUS_NOT_INITIALIZED";
    case ALLOC_FAILED: return "CUBLAS_STATUS_ALLOC_FAILED";
    case INVALID_VALUE: return "CUBLAS_STATUS_INVALID_VALUE";
    case ARCH_MISMATCH: return "CUBLAS_STATUS_ARCH_MISMATCH";
    case EXECUTION_FAILED: return "CUBLAS_STATUS_EXECUTION_FAILED";
    case INTERNAL_ERROR: return "CUBLAS_STATUS_INTERNAL_ERROR";
    case NOT_SUPPORTED: return "CUBLAS_STATUS_NOT_SUPPORTED";
  }
  return "CUBLAS_STATUS_UNKNOWN";
}
API const char* cublasLtGetStatusString(Status status) { return cublasLtGetStatusName(status); }

API Status cublasLtMatmulDescCreate(Attributes** desc, int compute, int scale) {
  auto* made = new Attributes;
  made->define<int32_t>(OF_COMPUTE, compute);
  made->define<int32_t>(OF_SCALE, scale);
  for (int zero :
       {(int)POINTER_MODE, (int)TRANSPOSE_A, (int)TRANSPOSE_B, (int)TRANSPOSE_C, 6, 15, 22, 31, 32, 33, 34, 35, 37})
    made->define<int32_t>(zero, 0);
  made->define<int32_t>(OF_EPILOGUE, NONE);
  made->define<void*>(BIAS_POINTER, nullptr);
  for (int zero : {(int)BIAS_STRIDE, 11, 12, 13, 14, 17, 18, 19, 20, 21, 23, 24, 36}) made->define<int64_t>(zero, 0);
  made->define<int8_t>(25, 0);
  made->define<int32_t>(BIAS_TYPE, -1);
  *desc = make(made);
  return SUCCESS;
}
API Status cublasLtMatmulDescDestroy(Attributes* desc) { return destroy(desc); }
API Status cublasLtMatmulDescSetAttribute(Attributes* desc, int attribute, const void* from, size_t bytes) {
  return set(desc, attribute, from, bytes);
}
API Status cublasLtMatmulDescGetAttribute(Attributes* desc, int attribute, void* to, size_t bytes, size_t* written) {
  return get(desc, attribute, to, bytes, written);
}

API Status cublasLtMatrixLayoutCreate(Attributes** layout, int type, uint64_t rows, uint64_t cols, int64_t ld) {
  auto* made = new Attributes;
  made->define<int32_t>(OF_TYPE, type);
  made->define<int32_t>(ORDER, 0);
  made->define<uint64_t>(ROWS, rows);
  made->define<uint64_t>(COLS, cols);
  made->define<int64_t>(LD, ld);
  made->define<int32_t>(BATCH, 1);
  made->define<int64_t>(BATCH_STRIDE, 0);
  made->define<int64_t>(7, 0);
  *layout = make(made);
  return SUCCESS;
}
API Status cublasLtMatrixLayoutDestroy(Attributes* layout) { return destroy(layout); }
API Status cublasLtMatrixLayoutSetAttribute(Attributes* layout, int attribute, const void* from, size_t bytes) {
  return set(layout, attribute, from, bytes);
}
API Status cublasLtMatrixLayoutGetAttribute(Attributes* layout, int attribute, void* to, size_t bytes,
                                            size_t* written) {
  return get(layout, attribute, to, bytes, written);
}

API Status cublasLtMatmulPreferenceCreate(Attributes** preference) {
  auto* made = new Attributes;
  made->define<int32_t>(SEARCH_MODE, 0);
  made->define<uint64_t>(WORKSPACE, 0);
  made->define<uint32_t>(3, ~0u);
  for (int i = 0; i < 4; i++) made->define<uint32_t>(ALIGNMENT_A + i, 256);
  made->define<float>(9, 0);
  made->define<uint64_t>(12, 0);
  *preference = make(made);
  return SUCCESS;
}
API Status cublasLtMatmulPreferenceDestroy(Attributes* preference) { return destroy(preference); }
API Status cublasLtMatmulPreferenceSetAttribute(Attributes* preference, int attribute, const void* from, size_t bytes) {
  return set(preference, attribute, from, bytes);
}
API Status cublasLtMatmulPreferenceGetAttribute(Attributes* preference, int attribute, void* to, size_t bytes,
                                                size_t* written) {
  return get(preference, attribute, to, bytes, written);
}

API Status cublasLtMatmulAlgoGetHeuristic(void* handle, Attributes* desc, Attributes* a, Attributes* b, Attributes* c,
                                          Attributes* d, Attributes* preference, int wanted, Heuristic* results,
                                          int* found) {
  if (!exists(handle)) return NOT_INITIALIZED;
  if (!exists(preference) || wanted < 1 || !results || !found) return INVALID_VALUE;
  *found = 0;
  if (Status status = check(desc, a, b, c, d)) return status;
  Problem p = problem_of(*desc, *a, *b, *c, *d);
  memset((void*)results, 0, sizeof *results);
  Algorithm& algorithm = results->algorithm;
  algorithm.magic = Algorithm::MAGIC;
  algorithm.hash = hash(p);
  algorithm.workspace = workspace_of(p) <= preference->get<uint64_t>(WORKSPACE) ? workspace_of(p) : 0;
  for (int i = 0; i < 4; i++) algorithm.alignment[i] = preference->get<uint32_t>(ALIGNMENT_A + i);
  results->workspace = algorithm.workspace;
  results->waves = 1;
  *found = 1;
  return SUCCESS;
}

API Status cublasLtMatmul(void* handle, Attributes* desc, const void* alpha, const void* a, Attributes* a_layout,
                          const void* b, Attributes* b_layout, const void* beta, const void* c, Attributes* c_layout,
                          void* d, Attributes* d_layout, const Algorithm* algorithm, void* workspace,
                          size_t workspace_bytes, void* stream) {
  if (!exists(handle)) return NOT_INITIALIZED;
  if (Status status = check(desc, a_layout, b_layout, c_layout, d_layout)) return status;
  Problem p = problem_of(*desc, *a_layout, *b_layout, *c_layout, *d_layout);
  if (!alpha || !beta || !a || !b || !d) return refuse("a null pointer", INVALID_VALUE);
  bool on_host = p.pointer_mode == 0;
  auto number = [&](const void* from) { return load(from, 0, p.scale); };
  bool reads_c = !on_host || number(beta) != 0;
  if (reads_c && !c) return refuse("C is null and beta is not 0", INVALID_VALUE);
  if (p.has_bias() && !p.bias) return refuse("the epilogue needs a bias", INVALID_VALUE);
  if (!on_host && (!emu_on_device(alpha, size_of(p.scale)) || !emu_on_device(beta, size_of(p.scale))))
    return refuse("alpha and beta are not on the device", INVALID_VALUE);

  const struct {
    const void* at;
    const Matrix& matrix;
    const char* name;
    bool used;
  } operands[] = {{a, p.a, "A", true}, {b, p.b, "B", true}, {c, p.c, "C", reads_c}, {d, p.d, "D", true}};
  for (int i = 0; i < 4; i++) {
    const auto& x = operands[i];
    if (!x.used) continue;
    uint64_t alignment = algorithm ? algorithm->alignment[i] : size_of(x.matrix.type);
    if (alignment && (uintptr_t)x.at % alignment) {
      fprintf(stderr, "cublasLt: %s is less aligned than the preference said, %llu bytes\n", x.name,
              (unsigned long long)alignment);
      return NOT_SUPPORTED;
    }
    if (!emu_on_device(x.at, x.matrix.bytes())) {
      fprintf(stderr, "cublasLt: %s, %zu bytes at %p, is not in an allocation of the device\n", x.name,
              x.matrix.bytes(), x.at);
      return INVALID_VALUE;
    }
    bool same = i == 2 && c == d;
    if (same && (p.c.ld != p.d.ld || p.c.batch_stride != p.d.batch_stride))
      return refuse("C is D with another layout", INVALID_VALUE);
    if (i < 3 && !same && (const char*)x.at < (char*)d + p.d.bytes() &&
        (char*)d < (const char*)x.at + x.matrix.bytes()) {
      // Rows of both may lie between one another.
      bool between = x.matrix.ld == p.d.ld && x.matrix.order == p.d.order && x.matrix.type == p.d.type;
      if (!between) return refuse("an operand overlaps D", INVALID_VALUE);
    }
  }
  if (p.has_bias() && !emu_on_device(p.bias, p.bias_length() * size_of(p.bias_type)))
    return refuse("the bias is not in an allocation of the device", INVALID_VALUE);
  if (algorithm) {
    if (algorithm->magic != Algorithm::MAGIC || algorithm->hash != hash(p))
      return refuse("the algorithm is for another problem", NOT_SUPPORTED);
    if (workspace_bytes < algorithm->workspace)
      return refuse("the workspace is too small for the algorithm", INVALID_VALUE);
  }
  if (workspace_bytes && (!emu_on_device(workspace, workspace_bytes) || (uintptr_t)workspace % 256))
    return refuse("the workspace is not on the device, or not aligned to 256 bytes", INVALID_VALUE);

  double alpha_now = on_host ? number(alpha) : 0, beta_now = on_host ? number(beta) : 0;
  size_t scratch = std::min<size_t>(workspace_bytes, workspace_of(p));
  emu_count_product();
  DriverResult result =
      emu_enqueue(stream, {"product",
                           [=] {
                             if (scratch) memset(workspace, 0xFF, scratch);
                             double x = on_host ? alpha_now : load(alpha, 0, p.scale),
                                    y = on_host ? beta_now : load(beta, 0, p.scale);
                             if (p.in_f64())
                               run<double>(p, x, y, (const char*)a, (const char*)b, (const char*)c, (char*)d);
                             else
                               run<float>(p, x, y, (const char*)a, (const char*)b, (const char*)c, (char*)d);
                             return emu::device::SUCCESS;
                           },
                           {},
                           {}});
  return result ? EXECUTION_FAILED : SUCCESS;
}
