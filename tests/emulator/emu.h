//! CUDA on the CPU: a thread is a fiber, a block is a set of fibers, the blocks of a grid run in turn on the calling
//! thread. Kernels include this through `primitives.cuh` when CPU_EMU is defined. x86-64 only.
//!
//! The emulator is strict where hardware is merely unlucky: shared memory starts as NaN, asynchronous copies poison
//! their destination at issue and land at the time that `Options::async` names, threads run in the order that
//! `Options::order` names, and whoever waits for ever is reported with what it waits for.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <functional>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#define EMU_ASAN 1
#endif

// -DEMU_TSAN: kernels are compiled with -fsanitize=thread and the emulator without; the emulator tells the sanitizer
// which fiber runs, what twins of instructions read and write, and what orders memory. QUIET code is not observed.
#ifdef EMU_TSAN
extern "C" void* __tsan_get_current_fiber(void);
extern "C" void* __tsan_create_fiber(unsigned flags);
extern "C" void __tsan_destroy_fiber(void* fiber);
extern "C" void __tsan_switch_to_fiber(void* fiber, unsigned flags);
extern "C" void __tsan_acquire(void* token);
extern "C" void __tsan_release(void* token);
extern "C" void __tsan_read_range(void* from, unsigned long bytes);
extern "C" void __tsan_write_range(void* from, unsigned long bytes);
#define QUIET __attribute__((no_sanitize("thread")))
#define ACQUIRE(token) __tsan_acquire((void*)(token))
#define RELEASE(token) __tsan_release((void*)(token))
#define READS(from, bytes) __tsan_read_range((void*)(from), bytes)
#define WRITES(from, bytes) __tsan_write_range((void*)(from), bytes)
#else
#define QUIET
#define ACQUIRE(token)
#define RELEASE(token)
#define READS(from, bytes)
#define WRITES(from, bytes)
#endif

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };

namespace emu {

/// Which thread that can run does run. Priority: the warp of highest rank, and ranks change now and then, which makes
/// warps drift further apart than uniform choice does.
enum class Order { Forward, Reverse, Random, Priority };
/// When an asynchronous copy lands: at issue, only when somebody waits for it, or at random in between.
enum class Async { Eager, Lazy, Random };

struct Options {
  Order order = Order::Forward;
  Async async = Async::Lazy;
  uint64_t seed = 1;
  bool strict = true;    // checks of Hopper's asynchronous proxy; see hopper.h
  unsigned regs = 168;   // registers per thread at entry, for setmaxnreg
};

struct Stats {
  uint64_t switches = 0, copies = 0, mmas = 0;
  uint64_t conflicts = 0;   // phases of ldmatrix in which two of eight rows share a bank
};

/// Runs the grid, `body` in every thread. Gives the text of the first error, or "" if all went well.
std::string launch(dim3 grid, dim3 block, size_t smem, Options options, const std::function<void()>& body,
                   Stats* stats = nullptr);

/// Ends the block with an error, from one of its threads. Does not return.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// ---- State of a block: for the twins of instructions.

struct Fiber {
  void* sp = nullptr;
  char* stack = nullptr;
  unsigned id = 0;
  dim3 tid;
  bool done = false;
  const char* waits = "";    // what it waits for, and which one
  uint64_t waits_on = 0;
  void* asan_fake = nullptr;
  void* tsan = nullptr;
};

/// A warp or warpgroup that meets at a collective instruction.
struct Group {
  unsigned count = 0;
  const char* what = nullptr;
  std::vector<void*> args;
};

/// A named barrier.
struct Named {
  unsigned expect = 0, arrived = 0;
  std::vector<unsigned> waiters;
};

struct Hopper;    // state of the units that only sm_90 has; hopper.h
struct Copies;    // cp.async of one thread; emu.cpp

struct Block {
  Options opt;
  dim3 grid, dim, idx;
  unsigned threads = 0;
  std::vector<Fiber> fibers;
  uint32_t ready[32] = {};        // threads that can run: a mask of lanes for each warp
  unsigned ready_count = 0;
  unsigned cur = 0, alive = 0;    // the thread that runs; how many have not ended
  bool inside = false;            // a fiber runs, not the scheduler
  std::vector<Group> warps, warpgroups;
  Named named[16];
  uint8_t* smem = nullptr;        // `smem_bytes` of dynamic memory, then static arrays
  size_t smem_bytes = 0, static_at = 0, static_end = 0;
  std::vector<std::pair<const void*, size_t>> arrays;    // static arrays: whose, where
  std::unique_ptr<Copies[]> copies_of;
  Hopper* hopper = nullptr;
  const std::function<void()>* body = nullptr;
  void* main_sp = nullptr;
  bool failed = false;
  std::string why;
  std::vector<unsigned> global_waiters;
  uint64_t rng = 1;
  uint32_t rank[32] = {};
  uint64_t switches = 0, copies = 0, mmas = 0, conflicts = 0;
  void* asan_fake = nullptr;
  const void* asan_bottom = nullptr;
  size_t asan_size = 0;
  void* main_tsan = nullptr;

  Block();
  ~Block();
  uint64_t random() {
    rng ^= rng << 13;
    rng ^= rng >> 7;
    return rng ^= rng << 17;
  }
};
extern __thread Block* B;    // the block that runs; `__thread`, since UBSan trips over thread_local's wrapper

constexpr size_t SMEM_BASE = 1024;            // the shared address of the first byte, so that 0 is never valid
constexpr size_t STATIC_BYTES = 48 << 10;     // room for static arrays, as on hardware
constexpr size_t RESIDENT = 132;              // blocks that run at the same time

// Hooks of hopper.cpp, absent from programs that do not link it. `progress` lets one operation land, false if none is
// on its way; `start_async` is told the bytes of shared memory, static arrays included; `end_block` reports leftovers.
__attribute__((weak)) bool progress();
__attribute__((weak)) void start_async(size_t bytes);
__attribute__((weak)) void end_block();

void block_on(const char* what, uint64_t which = 0);
void wake(unsigned fiber);
/// Waits until another block has counted up to `value`.
void global_wait(const unsigned* count, unsigned value);

QUIET inline Fiber& me() { return B->fibers[B->cur]; }
QUIET inline dim3 tid() { return me().tid; }
QUIET inline dim3 where() { return B->idx; }
QUIET inline dim3 dims() { return B->dim; }
QUIET inline dim3 grids() { return B->grid; }
QUIET inline unsigned block_threads() { return B->threads; }
QUIET inline unsigned lane() { return B->cur & 31; }
QUIET inline unsigned warp() { return B->cur >> 5; }

QUIET inline uint8_t* shared_memory() { return B->smem; }
uint32_t shared_address(const void* p);
/// Shared memory at an address as instructions see it, checked to hold `bytes`.
uint8_t* at(uint32_t address, size_t bytes, const char* who);
/// The static array of a declaration, the same for all threads of the block.
void* shared_array(const void* declaration, size_t bytes, size_t align);

/// All `size` threads of a group meet; the last one runs `act` on everybody's argument. Without `orders` the meeting
/// says nothing about memory, as for shuffles and mma.sync.
template <class F>
QUIET void meet(Group& g, unsigned size, unsigned first, const char* what, void* arg, F act, bool orders = true) {
  if (g.count == 0) g.what = what;
  else if (g.what != what && strcmp(g.what, what)) fail("thread %u is at %s while others of its group are at %s", B->cur, what, g.what);
  if (orders) { RELEASE(&g); }
  g.args[B->cur - first] = arg;
  if (++g.count < size) {
    block_on(what);
  } else {
    g.count = 0;
    if (orders) { ACQUIRE(&g); }
    act(g.args.data());
    if (orders) { RELEASE(&g); }
    for (unsigned i = 0; i < size; i++)
      if (first + i != B->cur) wake(first + i);
  }
  if (orders) { ACQUIRE(&g); }
}
template <class F>
QUIET void meet_warp(const char* what, void* arg, F act, bool orders = true) {
  unsigned w = warp();
  meet(B->warps[w], 32, w * 32, what, arg, act, orders);
}
template <class F>
QUIET void meet_warpgroup(const char* what, void* arg, F act, bool orders = true) {
  unsigned w = B->cur >> 7;
  meet(B->warpgroups[w], 128, w * 128, what, arg, act, orders);
}

// ---- Twins of instructions that every architecture has from sm_80 on.

/// bar.sync or bar.arrive on a named barrier of `threads` threads.
void bar(unsigned id, unsigned threads, bool sync);
void sync_warp(unsigned mask);
/// What lane `from` gave: all shuffles.
uint64_t shuffle(const char* what, unsigned mask, uint64_t bits, unsigned from);
unsigned ballot(unsigned mask, bool vote);

/// cp.async of 16 bytes, of which the first `valid` come from `source` and the others are zero.
void copy_async(uint32_t target, const void* source, unsigned valid);
void copy_commit();
/// Until at most `pending` committed groups of this thread are on their way.
void copy_wait(unsigned pending);

/// ldmatrix.x4: lanes 8i..8i+7 name the rows of matrix i.
void load_matrices(uint32_t (&r)[4], uint32_t row, bool transposed);
/// mma.sync.m16n8k16 with f32 sums: d += a * b.
void multiply_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
void multiply_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

/// Two numbers rounded to nearest even, the first in the low half; NaN becomes 0x7FFF, as on hardware.
uint32_t pack_bf16(float low, float high);
uint32_t pack_f16(float low, float high);

}    // namespace emu

// ---- The language: after all headers of C++, some of which use these names.

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __restrict__ __restrict
#define __align__(n) alignas(n)

#define threadIdx (emu::tid())
#define blockIdx (emu::where())
#define blockDim (emu::dims())
#define gridDim (emu::grids())

static inline void __syncthreads() { emu::bar(0, emu::block_threads(), true); }
static inline void __syncwarp(unsigned mask = ~0u) { emu::sync_warp(mask); }

namespace emu {
template <class T>
QUIET T shuffle_value(const char* what, unsigned mask, T value, unsigned from) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof value);
  bits = shuffle(what, mask, bits, from);
  memcpy(&value, &bits, sizeof value);
  return value;
}
}    // namespace emu
template <class T> static inline T __shfl_sync(unsigned mask, T value, int from, int width = 32) {
  return emu::shuffle_value("__shfl_sync", mask, value, (emu::lane() & ~(width - 1)) | (from & (width - 1)));
}
template <class T> static inline T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
  unsigned from = emu::lane() ^ bits;    // a lane of another segment of `width` gives nothing
  return emu::shuffle_value("__shfl_xor_sync", mask, value, (from ^ emu::lane()) < (unsigned)width ? from : emu::lane());
}
template <class T> static inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  unsigned at = emu::lane() & (width - 1);
  return emu::shuffle_value("__shfl_down_sync", mask, value, at + delta < (unsigned)width ? emu::lane() + delta : emu::lane());
}
template <class T> static inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  unsigned at = emu::lane() & (width - 1);
  return emu::shuffle_value("__shfl_up_sync", mask, value, at >= delta ? emu::lane() - delta : emu::lane());
}
static inline unsigned __ballot_sync(unsigned mask, int vote) { return emu::ballot(mask, vote); }
static inline int __any_sync(unsigned mask, int vote) { return emu::ballot(mask, vote) != 0; }
static inline int __all_sync(unsigned mask, int vote) { return emu::ballot(mask, vote) == ~0u; }

template <class T> static inline T __ldg(const T* p) { return *p; }
template <class T> QUIET static inline T atomicAdd(T* p, T value) {
  static_assert(std::is_integral_v<T>, "sums of floats depend on the order of threads");
  T old = *p;
  *p += value;
  return old;
}
static inline float __int_as_float(int x) { float y; memcpy(&y, &x, 4); return y; }
static inline int __float_as_int(float x) { int y; memcpy(&y, &x, 4); return y; }
static inline float __uint_as_float(unsigned x) { float y; memcpy(&y, &x, 4); return y; }
static inline unsigned __float_as_uint(float x) { unsigned y; memcpy(&y, &x, 4); return y; }
static inline float rsqrtf(float x) { return 1 / sqrtf(x); }
static inline float __fdividef(float a, float b) { return a / b; }
static inline float __frcp_rn(float x) { return 1 / x; }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
#define __expf(x) expf(x)    // macros, since glibc owns the names
#define __logf(x) logf(x)
template <class T> static inline T max(T a, T b) { return a > b ? a : b; }
template <class T> static inline T min(T a, T b) { return a < b ? a : b; }
