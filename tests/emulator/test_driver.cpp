// The stand-in libraries, loaded as programs load the real ones: by name, symbols one by one.
//
//     driver FOLDER          runs every case in a process of its own, since the environment is read once
//     driver FOLDER CASE     runs one
#include <dlfcn.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <vector>

namespace {

std::string folder;
int failures = 0;

void check(bool holds, const char* what, int line) {
  if (holds) return;
  failures++;
  fprintf(stderr, "line %d: does not hold: %s\n", line, what);
}
#define CHECK(x) check(x, #x, __LINE__)

void* library(const char* name) {
  void* handle = dlopen((folder + "/" + name).c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle) return handle;
  fprintf(stderr, "%s\n", dlerror());
  exit(1);
}
template <class... A>
int call(void* in, const char* name, A... arguments) {
  auto* function = (int (*)(A...))dlsym(in, name);
  if (function) return function(arguments...);
  fprintf(stderr, "no %s\n", name);
  exit(1);
}
void* driver() {
  static void* handle = library("libcuda.so");
  return handle;
}
template <class... A>
int cu(const char* name, A... arguments) {
  return call(driver(), name, arguments...);
}

typedef uint64_t Address;
typedef void* Handle;
constexpr unsigned NON_BLOCKING = 1;

template <class T>
struct View {
  T* data;
  long long rows, cols, stride;
};

void start() {
  Handle context;
  CHECK(cu("cuInit", 0u) == 0);
  CHECK(cu("cuDevicePrimaryCtxRetain", &context, 0) == 0);
  CHECK(cu("cuCtxSetCurrent", context) == 0);
}
Address allocate(size_t bytes) {
  Address at = 0;
  CHECK(cu("cuMemAlloc_v2", &at, bytes) == 0);
  return at;
}
Handle new_stream() {
  Handle stream;
  CHECK(cu("cuStreamCreate", &stream, NON_BLOCKING) == 0);
  return stream;
}
Handle new_event() {
  Handle event;
  CHECK(cu("cuEventCreate", &event, 0u) == 0);
  return event;
}
float* pinned(size_t n) {
  void* at;
  CHECK(cu("cuMemHostAlloc", &at, n * 4, 0u) == 0);
  return (float*)at;
}
int upload(Address to, const float* from, size_t n, Handle stream) {
  return cu("cuMemcpyHtoDAsync_v2", to, (const void*)from, n * 4, stream);
}
int download(float* to, Address from, size_t n, Handle stream) {
  return cu("cuMemcpyDtoHAsync_v2", (void*)to, from, n * 4, stream);
}

// The kernel of rows.cu, by way of the compiler.
Handle kernel(const char* name, const char* architecture = "sm_90") {
  void* nvrtc = library("libnvrtc.so");
  Handle program, module, function = nullptr;
  std::string option = std::string("--gpu-architecture=") + architecture;
  const char* options[] = {option.c_str()};
  CHECK(call(nvrtc, "nvrtcCreateProgram", &program, "#include \"types.cuh\"\n", "rows.cu", 0, (char**)nullptr,
             (char**)nullptr) == 0);
  CHECK(call(nvrtc, "nvrtcCompileProgram", program, 1, options) == 6);
  const char *headers[] = {"// types"}, *names[] = {"types.cuh"};
  CHECK(call(nvrtc, "nvrtcCreateProgram", &program, "#include \"types.cuh\"\n", "rows.cu", 1, headers, names) == 0);
  CHECK(call(nvrtc, "nvrtcCompileProgram", program, 1, options) == 0);
  size_t bytes;
  CHECK(call(nvrtc, "nvrtcGetCUBINSize", program, &bytes) == 0);
  std::vector<char> image(bytes);
  CHECK(call(nvrtc, "nvrtcGetCUBIN", program, image.data()) == 0);
  int result = cu("cuModuleLoadData", &module, (void*)image.data());
  if (result) return (Handle)(intptr_t)-result;
  CHECK(cu("cuModuleGetFunction", &function, module, name) == 0);
  Handle none;
  CHECK(cu("cuModuleGetFunction", &none, module, "absent") == 500);
  return function;
}
int launch(Handle function, void** arguments, Handle stream, unsigned block = 256, unsigned shared = 0) {
  return cu("cuLaunchKernel", function, 2u, 1u, 1u, block, 1u, 1u, shared, stream, arguments, (void**)nullptr);
}

void lazy() {
  start();
  Handle stream = new_stream(), event = new_event();
  Address device = allocate(64);
  float *from = pinned(16), *to = pinned(16);
  for (int i = 0; i < 16; i++) from[i] = i, to[i] = -1;
  CHECK(upload(device, from, 16, stream) == 0);
  CHECK(download(to, device, 16, stream) == 0);
  CHECK(cu("cuEventRecord", event, stream) == 0);
  CHECK(to[3] == -1);
  // Pinned memory is read when the copy runs.
  from[3] = 42;
  CHECK(cu("cuEventQuery", event) == 600);
  CHECK(cu("cuStreamSynchronize", stream) == 0);
  CHECK(to[3] == 42 && to[15] == 15);
  CHECK(cu("cuEventQuery", event) == 0);
  // Pageable memory when the copy is queued.
  float pageable[16] = {7};
  CHECK(upload(device, pageable, 16, stream) == 0);
  pageable[0] = 8;
  CHECK(download(pageable, device, 16, stream) == 0);
  CHECK(pageable[0] == 7);
  // A host that only asks comes to an end.
  CHECK(upload(device, from, 16, stream) == 0 && cu("cuEventRecord", event, stream) == 0);
  while (cu("cuEventQuery", event) == 600) continue;
  CHECK(cu("cuStreamDestroy_v2", stream) == 0 && cu("cuStreamSynchronize", stream) == 400);
}

// An upload on one stream and its use on another, with and without an event between them.
bool right_after_upload(bool waits) {
  Handle copies = new_stream(), computes = new_stream(), event = new_event();
  Address device = allocate(4);
  float *from = pinned(1), *to = pinned(1);
  *from = 5;
  CHECK(upload(device, from, 1, copies) == 0);
  CHECK(cu("cuEventRecord", event, copies) == 0);
  if (waits) CHECK(cu("cuStreamWaitEvent", computes, event, 0u) == 0);
  CHECK(download(to, device, 1, computes) == 0);
  CHECK(cu("cuStreamSynchronize", computes) == 0);
  return *to == 5;
}
void forgotten_event() {
  start();
  CHECK(right_after_upload(true));
  CHECK(!right_after_upload(false));
}
void eager() {
  start();
  CHECK(right_after_upload(false));
}

void past_the_end() {
  start();
  Handle function = kernel("fill_4");
  Address device = allocate(5 * 4);
  View<unsigned> view{(unsigned*)device, 2, 3, 3};
  unsigned long long value = 0;
  void* arguments[] = {&view, &value};
  CHECK(launch(function, arguments, nullptr) == 0);
  CHECK(cu("cuCtxSynchronize") == 0);
  CHECK(cu("cuMemFree_v2", device) == 700);
  CHECK(cu("cuCtxSynchronize") == 700);
}

void out_of_memory() {
  start();
  size_t free, total;
  CHECK(cu("cuMemGetInfo_v2", &free, &total) == 0 && total == 1 << 20 && free == total);
  Address device = allocate(1 << 19), more = 0;
  CHECK(cu("cuMemAlloc_v2", &more, (size_t)(1 << 19) + 1) == 2);
  CHECK(cu("cuMemAlloc_v2", &more, (size_t)(1 << 19)) == 0);
  CHECK(cu("cuMemFree_v2", device) == 0 && cu("cuMemFree_v2", device) == 1);
  allocate(1 << 19);
}

void launches() {
  start();
  Handle function = kernel("fill_4"), stream = new_stream();
  constexpr long long ROWS = 37, COLS = 21, STRIDE = 24;
  Address device = allocate(ROWS * STRIDE * 4);
  View<unsigned> view{(unsigned*)device, ROWS, COLS, STRIDE};
  unsigned long long value = 7;
  void* arguments[] = {&view, &value};
  CHECK(launch(function, arguments, stream) == 0);
  value = 8, view.data = nullptr;  // arguments were copied
  std::vector<unsigned> cells(ROWS * STRIDE);
  CHECK(download((float*)cells.data(), device, cells.size(), stream) == 0);
  for (long long i = 0; i < ROWS * STRIDE; i++) CHECK(cells[i] == (i % STRIDE < COLS ? 7 : ~0u));

  CHECK(launch(function, arguments, stream, 2048) == 1);
  CHECK(launch(function, arguments, stream, 256, 64 << 10) == 1);
  CHECK(cu("cuFuncSetAttribute", function, 8, 300000) == 1);
  CHECK(cu("cuFuncSetAttribute", function, 8, 64 << 10) == 0);
  view.data = (unsigned*)device;
  CHECK(launch(function, arguments, stream, 256, 64 << 10) == 0);
  size_t offset, size;
  CHECK(cu("cuFuncGetParamInfo", function, (size_t)1, &offset, &size) == 0 && offset == 32 && size == 8);
  CHECK(cu("cuFuncGetParamInfo", function, (size_t)2, &offset, &size) == 1);
  CHECK(kernel("fill_4", "sm_80") == (Handle)-209);

  uint64_t counters[11];
  CHECK(cu("emu_counters", counters, (size_t)11) == 11 && counters[0] == 2);
}

// A kernel that the emulator stops: the error stays.
void failing_kernel() {
  start();
  Handle function = kernel("fill_4"), stream = new_stream();
  View<unsigned> view{nullptr, 0, 0, 0};
  unsigned long long value = 0;
  void* arguments[] = {&view, &value};
  Address device = allocate(4);
  CHECK(launch(function, arguments, stream, 33) == 1);
  auto host_function = +[](void* at) { memset((char*)at + 4, 0, 1); };
  CHECK(cu("cuLaunchHostFunc", stream, host_function, (void*)device) == 0);
  CHECK(cu("cuStreamSynchronize", stream) == 700);
  CHECK(cu("cuMemAlloc_v2", &device, (size_t)4) == 700);
  CHECK(cu("cuDevicePrimaryCtxReset_v2", 0) == 0);
  CHECK(cu("cuMemAlloc_v2", &device, (size_t)4) == 0);
}

void illegal_address() {
  start();
  Handle function = kernel("fill_4");
  View<unsigned> view{(unsigned*)64, 2, 3, 3};
  unsigned long long value = 0;
  void* arguments[] = {&view, &value};
  CHECK(launch(function, arguments, nullptr) == 0);
  cu("cuCtxSynchronize");
}

void graphs() {
  start();
  Handle function = kernel("add_f32"), one = new_stream(), two = new_stream(), forked = new_event(),
         joined = new_event();
  Address x = allocate(4), y = allocate(4);
  float *host = pinned(1), *result = pinned(1);
  *host = 1;
  CHECK(upload(x, host, 1, one) == 0 && cu("cuStreamSynchronize", one) == 0);
  View<float> to{(float*)x, 1, 1, 1}, from{(float*)y, 1, 1, 1};
  void* arguments[] = {&to, &from};
  Handle graph, executable;
  CHECK(cu("cuStreamBeginCapture_v2", one, 1) == 0);
  CHECK(cu("cuEventRecord", forked, one) == 0 && cu("cuStreamWaitEvent", two, forked, 0u) == 0);
  CHECK(upload(y, host, 1, two) == 0);
  CHECK(cu("cuEventRecord", joined, two) == 0 && cu("cuStreamWaitEvent", one, joined, 0u) == 0);
  CHECK(launch(function, arguments, one) == 0);
  CHECK(download(result, x, 1, one) == 0);
  CHECK(cu("cuStreamEndCapture", one, &graph) == 0);
  CHECK(cu("cuGraphInstantiateWithFlags", &executable, graph, 0ull) == 0 && cu("cuGraphDestroy", graph) == 0);
  for (int i = 0; i < 3; i++) CHECK(cu("cuGraphLaunch", executable, one) == 0);
  CHECK(cu("cuStreamSynchronize", one) == 0 && *result == 4);
  uint64_t counters[11];
  cu("emu_counters", counters, (size_t)11);
  CHECK(counters[0] == 1 && counters[1] == 3 && counters[2] == 3);

  // What is not joined, and what must not be called.
  CHECK(cu("cuStreamBeginCapture_v2", one, 1) == 0);
  CHECK(cu("cuEventRecord", forked, one) == 0 && cu("cuStreamWaitEvent", two, forked, 0u) == 0);
  CHECK(upload(y, host, 1, two) == 0);
  CHECK(cu("cuEventQuery", forked) == 907);
  CHECK(cu("cuStreamEndCapture", one, &graph) == 904 && !graph);
  CHECK(cu("cuStreamBeginCapture_v2", one, 1) == 0);
  Address more;
  CHECK(cu("cuMemAlloc_v2", &more, (size_t)4) == 900);
  CHECK(launch(function, arguments, one) == 901);
  CHECK(cu("cuStreamEndCapture", one, &graph) == 901);
  CHECK(launch(function, arguments, one) == 0 && cu("cuStreamSynchronize", one) == 0);
  CHECK(cu("cuStreamBeginCapture_v2", one, 1) == 0);
  std::thread([&] {
    Handle context;
    cu("cuDevicePrimaryCtxRetain", &context, 0);
    cu("cuCtxSetCurrent", context);
    allocate(4);  // THREAD_LOCAL: others may
    CHECK(cu("cuStreamEndCapture", one, &graph) == 908);
  }).join();
  CHECK(cu("cuStreamSynchronize", one) == 900);
  CHECK(cu("cuStreamEndCapture", one, &graph) == 901);
}

void null_stream() {
  start();
  Handle blocking;
  CHECK(cu("cuStreamCreate", &blocking, 0u) == 0);
  Address device = allocate(4);
  float *from = pinned(1), *to = pinned(1);
  for (int i = 0; i < 50; i++) {
    *from = i;
    CHECK(upload(device, from, 1, blocking) == 0);
    CHECK(cu("cuMemcpyDtoDAsync_v2", device, device, (size_t)4, blocking) == 1);
    CHECK(download(to, device, 1, nullptr) == 0);
    CHECK(cu("cuStreamSynchronize", (Handle) nullptr) == 0 && *to == i);
  }
}

// Products of the library against a sum of doubles: C[m][n], row-major all, that is columns of their transposes.
void products() {
  start();
  void* lt = library("libcublasLt.so");
  Handle handle, desc, layouts[4], preference, stream = new_stream();
  constexpr uint64_t M = 5, N = 9, K = 70;
  constexpr int64_t LD = 80;
  std::vector<uint16_t> a(M * LD), b(N * LD);
  std::vector<float> d(M * N, 1);
  auto bf16 = [](float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return uint16_t(bits >> 16);
  };
  for (size_t i = 0; i < a.size(); i++) a[i] = bf16(float(i % 13) - 6);
  for (size_t i = 0; i < b.size(); i++) b[i] = bf16(float(i % 7) - 3);
  Address on_a = allocate(a.size() * 2), on_b = allocate(b.size() * 2), on_d = allocate(d.size() * 4),
          workspace = allocate(1 << 20);
  cu("cuMemcpyHtoD_v2", on_a, (const void*)a.data(), a.size() * 2);
  cu("cuMemcpyHtoD_v2", on_b, (const void*)b.data(), b.size() * 2);
  cu("cuMemcpyHtoD_v2", on_d, (const void*)d.data(), d.size() * 4);

  // D^T[n][m] = B A^T in columns: the first operand is b, transposed.
  constexpr int BF16 = 14, F32 = 0, COMPUTE_32F = 68, TRANSPOSE_A = 3;
  CHECK(call(lt, "cublasLtCreate", &handle) == 0);
  CHECK(call(lt, "cublasLtMatmulDescCreate", &desc, COMPUTE_32F, F32) == 0);
  int transposed = 1;
  CHECK(call(lt, "cublasLtMatmulDescSetAttribute", desc, TRANSPOSE_A, &transposed, (size_t)8) == 7);
  CHECK(call(lt, "cublasLtMatmulDescSetAttribute", desc, TRANSPOSE_A, &transposed, (size_t)4) == 0);
  CHECK(call(lt, "cublasLtMatrixLayoutCreate", &layouts[0], BF16, K, N, LD) == 0);
  CHECK(call(lt, "cublasLtMatrixLayoutCreate", &layouts[1], BF16, K, M, LD) == 0);
  for (int i : {2, 3}) CHECK(call(lt, "cublasLtMatrixLayoutCreate", &layouts[i], F32, N, M, (int64_t)N) == 0);
  CHECK(call(lt, "cublasLtMatmulPreferenceCreate", &preference) == 0);
  uint64_t most = 1 << 20;
  CHECK(call(lt, "cublasLtMatmulPreferenceSetAttribute", preference, 1, &most, (size_t)8) == 0);
  char results[128];
  int found;
  auto ask = [&] {
    return call(lt, "cublasLtMatmulAlgoGetHeuristic", handle, desc, layouts[0], layouts[1], layouts[2], layouts[3],
                preference, 1, (void*)results, &found);
  };
  CHECK(ask() == 0 && found == 1);
  float alpha = 0.5, beta = 2;
  auto multiply = [&](Address to, size_t bytes) {
    return call(lt, "cublasLtMatmul", handle, desc, &alpha, on_b, layouts[0], on_a, layouts[1], &beta, to, layouts[2],
                to, layouts[3], (void*)results, workspace, bytes, stream);
  };
  CHECK(multiply(on_d + 4, 1 << 20) == 15);
  CHECK(multiply(on_d, 16) == 7);
  CHECK(multiply(on_d, 1 << 20) == 0);
  alpha = beta = 0;  // were read
  CHECK(download(d.data(), on_d, d.size(), stream) == 0);
  for (size_t m = 0; m < M; m++)
    for (size_t n = 0; n < N; n++) {
      double sum = 0;
      for (size_t k = 0; k < K; k++) sum += (double((m * LD + k) % 13) - 6) * (double((n * LD + k) % 7) - 3);
      CHECK(std::fabs(d[m * N + n] - (0.5 * sum + 2)) < 1e-4);
    }
  // Dimensions, leading dimensions, types.
  auto with = [&](int i, int type, uint64_t rows, uint64_t cols, int64_t ld) {
    Handle before = layouts[i];
    CHECK(call(lt, "cublasLtMatrixLayoutCreate", &layouts[i], type, rows, cols, ld) == 0);
    int status = ask();
    layouts[i] = before;
    return status;
  };
  CHECK(with(0, BF16, K + 1, N, LD) == 7);
  CHECK(with(0, BF16, K, N, K - 1) == 7);
  CHECK(with(0, F32, K, N, LD) == 15);
  // Another problem needs another algorithm.
  CHECK(call(lt, "cublasLtMatrixLayoutCreate", &layouts[1], BF16, K, M - 1, LD) == 0);
  for (int i : {2, 3}) CHECK(call(lt, "cublasLtMatrixLayoutCreate", &layouts[i], F32, N, M - 1, (int64_t)N) == 0);
  CHECK(multiply(on_d, 1 << 20) == 15);
}

// Ranks of libnccl: threads with a device each.
struct Id {
  char bytes[128];
};
struct Config {
  size_t size;
  unsigned magic, version;
  int blocking;
  char rest[100];
};
constexpr int FLOAT = 7, IN_PROGRESS = 7;

struct Rank {
  int rank, ranks;
  void* nccl;
  Handle comm = nullptr, stream = nullptr;

  Rank(void* nccl, Id id, int rank, int ranks, const Config* config) : rank(rank), ranks(ranks), nccl(nccl) {
    Handle context;
    CHECK(cu("cuInit", 0u) == 0 && cu("cuDevicePrimaryCtxRetain", &context, rank) == 0 &&
          cu("cuCtxSetCurrent", context) == 0);
    stream = new_stream();
    int result = call(nccl, "ncclCommInitRankConfig", &comm, ranks, id, rank, config);
    CHECK(result == (config ? IN_PROGRESS : 0));
    settle();
  }
  void settle() {
    int state = IN_PROGRESS;
    while (state == IN_PROGRESS)
      CHECK(call(nccl, "ncclCommGetAsyncError", comm, &state) == 0), std::this_thread::yield();
    CHECK(state == 0);
  }
  // Sends its number to the next rank of a ring; gives what it got. `early`: does not look whether the messages are
  // queued.
  float pass_on(Handle on, int rank, int ranks, bool early = false) {
    Address mine = allocate(4), theirs = allocate(4);
    float *from = pinned(1), *to = pinned(1);
    *from = rank;
    CHECK(upload(mine, from, 1, stream) == 0);
    CHECK(call(nccl, "ncclGroupStart") == 0);
    CHECK(call(nccl, "ncclSend", mine, (size_t)1, FLOAT, (rank + 1) % ranks, on, stream) == 0);
    CHECK(call(nccl, "ncclRecv", theirs, (size_t)1, FLOAT, (rank + ranks - 1) % ranks, on, stream) == 0);
    int result = call(nccl, "ncclGroupEnd");
    CHECK(result == 0 || result == IN_PROGRESS);
    if (!early) settle();
    CHECK(download(to, theirs, 1, stream) == 0 && cu("cuStreamSynchronize", stream) == 0);
    if (early) settle();
    return *to;
  }
};

void on_ranks(int ranks, const Config* config, const std::function<void(Rank&)>& body) {
  void* nccl = library("libnccl.so.2");
  Id id;
  CHECK(call(nccl, "ncclGetUniqueId", &id) == 0);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; rank++)
    threads.emplace_back([&, rank] {
      Rank one(nccl, id, rank, ranks, config);
      body(one);
    });
  for (auto& thread : threads) thread.join();
}

void messages() {
  on_ranks(3, nullptr, [](Rank& r) {
    for (int i = 0; i < 5; i++) CHECK(r.pass_on(r.comm, r.rank, r.ranks) == (r.rank + 2) % 3);
    // The two ends, in reverse; the middle goes nowhere.
    Handle split;
    CHECK(call(r.nccl, "ncclCommSplit", r.comm, r.rank == 1 ? -1 : 4, -r.rank, &split, (Config*)nullptr) == 0);
    CHECK(!split == (r.rank == 1));
    if (!split) return;
    int rank, n;
    CHECK(call(r.nccl, "ncclCommUserRank", split, &rank) == 0 && rank == (r.rank == 0));
    CHECK(call(r.nccl, "ncclCommCount", split, &n) == 0 && n == 2);
    CHECK(r.pass_on(split, rank, 2) == 1 - rank);
  });
}
void messages_in_progress() {
  Config config{sizeof(Config), 0xcafebeef, 22800, 0, {}};
  on_ranks(2, &config, [](Rank& r) {
    CHECK(r.pass_on(r.comm, r.rank, 2) == 1 - r.rank);
    CHECK(std::isnan(r.pass_on(r.comm, r.rank, 2, true)));
  });
}
// Sums of all types, with and without a look at whether they are queued.
void sums() {
  Config config{sizeof(Config), 0xcafebeef, 22800, 0, {}};
  for (const Config* how : {(const Config*)nullptr, (const Config*)&config})
    on_ranks(3, how, [](Rank& r) {
      Address device = allocate(4);
      float* host = pinned(1);
      *host = r.rank == 0 ? 1e8f : r.rank == 1 ? -1e8f : 3;
      CHECK(upload(device, host, 1, r.stream) == 0);
      CHECK(call(r.nccl, "ncclAllReduce", device, device, (size_t)1, FLOAT, 2, r.comm, r.stream) == 4);
      CHECK(call(r.nccl, "ncclAllReduce", device, device, (size_t)1, 2, 0, r.comm, r.stream) == 4);
      int result = call(r.nccl, "ncclAllReduce", device, device, (size_t)1, FLOAT, 0, r.comm, r.stream);
      CHECK(result == 0 || result == IN_PROGRESS);
      r.settle();
      CHECK(download(host, device, 1, r.stream) == 0 && cu("cuStreamSynchronize", r.stream) == 0);
      CHECK(*host == 0);  // from the last rank on; in rank order it would be 3
    });
}
void abort_of_messages() {
  on_ranks(2, nullptr, [](Rank& r) {
    if (r.rank == 1) return;
    Address device = allocate(4);
    Handle event = new_event();
    CHECK(call(r.nccl, "ncclRecv", device, (size_t)1, FLOAT, 1, r.comm, r.stream) == 0);
    CHECK(cu("cuEventRecord", event, r.stream) == 0);
    for (int i = 0; i < 100; i++) CHECK(cu("cuEventQuery", event) == 600);
    CHECK(call(r.nccl, "ncclCommAbort", r.comm) == 0);
    CHECK(cu("cuEventSynchronize", event) == 0);
  });
}

// A matrix of 100 rows of 256 numbers in bf16, in boxes of 128 rows and two panels, and what is wrong with others.
void tensor_maps() {
  start();
  Address memory = allocate(100 * 512);
  struct Asked {
    int type;
    Address base;
    uint64_t dims[3], strides[2];
    unsigned box[3], steps[3];
    int interleave, swizzle, promotion, fill;
  };
  const Asked right = {9, memory, {64, 100, 4}, {512, 128}, {64, 128, 2}, {1, 1, 1}, 0, 3, 2, 0};
  alignas(128) unsigned char map[256];
  auto encode = [&](Asked a, size_t at = 0) {
    return cu("cuTensorMapEncodeTiled", (void*)(map + at), a.type, 3u, (void*)a.base, (const uint64_t*)a.dims,
              (const uint64_t*)a.strides, (const unsigned*)a.box, (const unsigned*)a.steps, a.interleave, a.swizzle,
              a.promotion, a.fill);
  };
  auto refused = [&](auto change) {
    Asked asked = right;
    change(asked);
    return encode(asked) == 1;
  };
  CHECK(encode(right) == 0);
  CHECK(encode(right, 64) == 1);
  CHECK(refused([](Asked& a) { a.base += 8; }));
  CHECK(refused([](Asked& a) { a.base = 16; }));
  CHECK(refused([](Asked& a) { a.dims[1] = 101; }));  // past the end of the memory
  CHECK(refused([](Asked& a) { a.dims[1] = 0; }));
  CHECK(refused([](Asked& a) { a.strides[0] = 520; }));
  CHECK(refused([](Asked& a) { a.strides[0] = 1ull << 40; }));
  CHECK(refused([](Asked& a) { a.box[0] = 128; }));  // wider than the swizzle
  CHECK(refused([](Asked& a) { a.box[1] = 257; }));
  CHECK(refused([](Asked& a) { a.steps[1] = 2; }));
  CHECK(refused([](Asked& a) { a.promotion = 4; }));
  CHECK(refused([](Asked& a) { a.swizzle = 4; }));
}

// $CUBIN, if there is one: rows.cu as the real compiler gives it.
void real_cubin() {
  start();
  Handle module, function;
  const char* path = getenv("CUBIN");
  if (!path) return;
  CHECK(cu("cuModuleLoad", &module, path) == 0);
  CHECK(cu("cuModuleGetFunction", &function, module, "fill_4") == 0);
  CHECK(cu("cuModuleGetFunction", &function, module, "rms_norm_bf16") == 500);
}

struct Case {
  const char* name;
  std::function<void()> run;
  std::vector<const char*> environment;
  int status;  // that the process ends with: 99 for damaged memory, -11 for an illegal address
};
const Case CASES[] = {
    {"lazy", lazy, {}, 0},
    {"forgotten event", forgotten_event, {"EMU_STREAMS=need"}, 0},
    {"eager", eager, {"EMU_EAGER=1"}, 0},
    {"past the end", past_the_end, {}, 0},
    {"out of memory", out_of_memory, {"EMU_MEMORY=1048576"}, 0},
    {"launches", launches, {}, 0},
    {"launches in random order", launches, {"EMU_STRICT=1"}, 0},
    {"failing kernel", failing_kernel, {"EMU_CHECK=1"}, 0},
    {"illegal address", illegal_address, {}, -SIGSEGV},
    {"graphs", graphs, {}, 0},
    {"null stream", null_stream, {}, 0},
    {"products", products, {}, 0},
    {"messages", messages, {"EMU_DEVICES=3"}, 0},
    {"messages as needed", messages, {"EMU_DEVICES=3", "EMU_STREAMS=need"}, 0},
    {"messages in progress", messages_in_progress, {"EMU_DEVICES=2"}, 0},
    {"sums over ranks", sums, {"EMU_DEVICES=3"}, 0},
    {"abort of messages", abort_of_messages, {"EMU_DEVICES=2"}, 0},
    {"tensor maps", tensor_maps, {}, 0},
    {"real CUBIN", real_cubin, {}, 0},
    {"damage at exit",
     [] {
       start();
       *((char*)allocate(1) + 1) = 0;
     },
     {},
     99},
};

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) return fprintf(stderr, "driver FOLDER [CASE]\n"), 2;
  folder = argv[1];
  if (argc > 2) {
    for (const Case& each : CASES)
      if (!strcmp(each.name, argv[2])) each.run();
    return failures != 0;
  }
  for (const Case& each : CASES) {
    pid_t child = fork();
    if (!child) {
      for (const char* variable :
           {"EMU_STREAMS", "EMU_EAGER", "EMU_MEMORY", "EMU_STRICT", "EMU_CHECK", "EMU_ARCH", "EMU_DEVICES"})
        unsetenv(variable);
      for (const char* variable : each.environment) putenv((char*)variable);
      execl(argv[0], argv[0], argv[1], each.name, nullptr);
      _exit(127);
    }
    int status;
    waitpid(child, &status, 0);
    bool right = (WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status)) == each.status;
    printf("%s: %s\n", each.name, right ? "passed" : "FAILED");
    failures += !right;
  }
  return failures != 0;
}
