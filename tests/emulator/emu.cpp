//! Fibers, the scheduler of a block, and twins of the instructions that sm_80 has.
#include "emu.h"

#include <stdarg.h>
#include <sys/mman.h>

#include <algorithm>
#include <map>
#include <sstream>

#ifdef EMU_ASAN
extern "C" void __sanitizer_start_switch_fiber(void** save, const void* bottom, size_t size);
extern "C" void __sanitizer_finish_switch_fiber(void* save, const void** bottom, size_t* size);
extern "C" void __asan_poison_memory_region(const void* from, size_t bytes);
extern "C" void __asan_unpoison_memory_region(const void* from, size_t bytes);
#endif

#ifdef EMU_TSAN
// Containers of the emulator and of hopper.cpp, which fibers share without telling the sanitizer.
extern "C" const char* __tsan_default_suppressions() {
  return "race:operator delete\nrace:__relocate_a\nrace:_M_realloc_insert\nrace:__copy_m<emu\n";
}
#endif

namespace emu {

__thread Block* B = nullptr;

// ---- Fibers

extern "C" void emu_switch(void** save, void* load);
asm(R"(
.text
.globl emu_switch
.type emu_switch,@function
emu_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
.size emu_switch,.-emu_switch
)");

constexpr size_t STACK = 256 << 10, PAGE = 4096;

/// Stacks of ended fibers, for the next block of this thread. The lowest page of a stack is a guard.
struct Stacks {
  std::vector<char*> spare;
  ~Stacks() {
    for (char* stack : spare) munmap(stack, STACK);
  }
};
static std::vector<char*>& spare_stacks() {
  static thread_local Stacks stacks;
  return stacks.spare;
}
static char* take_stack() {
  auto& spare = spare_stacks();
  if (spare.empty()) {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    char* fresh = (char*)mmap(nullptr, STACK, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (fresh == MAP_FAILED) {
      perror("emu: stacks");
      abort();
    }
    mprotect(fresh, PAGE, PROT_NONE);
    return fresh;
  }
  char* stack = spare.back();
  spare.pop_back();
#ifdef EMU_ASAN
  __asan_unpoison_memory_region(stack + PAGE, STACK - PAGE);    // frames of a fiber that was given up
#endif
  return stack;
}

static void to_scheduler() {
  Block* b = B;
  Fiber& f = me();
#ifdef EMU_ASAN
  __sanitizer_start_switch_fiber(f.done ? nullptr : &f.asan_fake, b->asan_bottom, b->asan_size);
#endif
#ifdef EMU_TSAN
  __tsan_switch_to_fiber(b->main_tsan, 1);
#endif
  emu_switch(&f.sp, b->main_sp);
#ifdef EMU_ASAN
  __sanitizer_finish_switch_fiber(f.asan_fake, nullptr, nullptr);
#endif
}

static void to_fiber(Fiber& f) {
  Block* b = B;
#ifdef EMU_ASAN
  __sanitizer_start_switch_fiber(&b->asan_fake, f.stack, STACK);
#endif
#ifdef EMU_TSAN
  __tsan_switch_to_fiber(f.tsan, 1);
#endif
  emu_switch(&b->main_sp, f.sp);
#ifdef EMU_ASAN
  __sanitizer_finish_switch_fiber(b->asan_fake, nullptr, nullptr);
#endif
}

static void fiber_main() {
  Block* b = B;
#ifdef EMU_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &b->asan_bottom, &b->asan_size);
#endif
  (*b->body)();
  RELEASE(b);
  Fiber& f = me();
  f.done = true;
  f.waits = "its end";
  b->alive--;
  to_scheduler();
  abort();
}

static void prepare(Fiber& f) {
  void** top = (void**)(f.stack + STACK - 64);
  *--top = nullptr;                // where fiber_main would return to; also aligns the stack as a call does
  *--top = (void*)fiber_main;
  top -= 6;                        // the registers that emu_switch pops
  memset(top, 0, 6 * sizeof *top);
  f.sp = top;
#ifdef EMU_TSAN
  f.tsan = __tsan_create_fiber(0);
#endif
}

void block_on(const char* what, uint64_t which) {
  Fiber& f = me();
  f.waits = what;
  f.waits_on = which;
  to_scheduler();
  f.waits = "";
}

void wake(unsigned i) {
  uint32_t& warp = B->ready[i / 32];
  if (B->fibers[i].done || warp >> i % 32 & 1) return;
  warp |= 1u << i % 32;
  B->ready_count++;
}

/// Notes the first error of a block.
static void note(Block& b, const std::string& text) {
  if (b.failed) return;
  b.failed = true;
  b.why = text;
}

void fail(const char* format, ...) {
  char text[1024];
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof text, format, args);
  va_end(args);
  if (!B || !B->inside) {
    fprintf(stderr, "emu: %s\n", text);
    abort();
  }
  char where[96];
  snprintf(where, sizeof where, "block %u,%u,%u thread %u: ", B->idx.x, B->idx.y, B->idx.z, B->cur);
  note(*B, std::string(where) + text);
  to_scheduler();    // and never back: the block is given up
  abort();
}

// ---- Shared memory

uint32_t shared_address(const void* p) {
  const uint8_t* x = (const uint8_t*)p;
  if (x < B->smem || x > B->smem + B->static_end) fail("an address of shared memory is taken of memory elsewhere");
  return (uint32_t)(x - B->smem) + SMEM_BASE;
}

uint8_t* at(uint32_t address, size_t bytes, const char* who) {
  size_t from = (size_t)address - SMEM_BASE, to = from + bytes;
  bool dynamic = address >= SMEM_BASE && to <= B->smem_bytes;
  bool fixed = address >= SMEM_BASE && from >= B->static_at && to <= B->static_end;
  if (!dynamic && !fixed)
    fail("%s: shared address %u + %zu lies outside the block's %zu bytes", who, address, bytes, B->smem_bytes);
  return B->smem + from;
}

void* shared_array(const void* declaration, size_t bytes, size_t align) {
  for (auto& [whose, where] : B->arrays)
    if (whose == declaration) return B->smem + where;
  size_t from = (B->static_end + align - 1) / align * align;
  if (from + bytes > B->static_at + STATIC_BYTES) fail("static arrays take more than %zu bytes", STATIC_BYTES);
#ifdef EMU_ASAN
  __asan_unpoison_memory_region(B->smem + from, bytes);
#endif
#ifndef EMU_TSAN
  memset(B->smem + from, 0xff, bytes);
#endif
  B->arrays.push_back({declaration, from});
  B->static_end = from + bytes;
  return B->smem + from;
}

// ---- Barriers and collectives

void bar(unsigned id, unsigned threads, bool sync) {
  const char* what = sync ? "bar.sync" : "bar.arrive";
  if (id > 15) fail("%s: there is no barrier %u", what, id);
  if (threads == 0 || threads % 32 || threads > B->threads) fail("%s %u: %u threads of %u", what, id, threads, B->threads);
  Named& x = B->named[id];
  if (x.arrived && x.expect != threads) fail("%s %u: %u threads, but others said %u", what, id, threads, x.expect);
  x.expect = threads;
  x.arrived++;
  RELEASE(&x);
  if (x.arrived == threads) {
    x.arrived = 0;
    for (unsigned i : x.waiters) wake(i);
    x.waiters.clear();
  } else if (sync) {
    x.waiters.push_back(B->cur);
    block_on("bar.sync", id);
  }
  if (sync) { ACQUIRE(&x); }
}

static void whole_warp(unsigned mask) {
  if (mask != ~0u) fail("a collective of some lanes (mask %08x) is not modelled", mask);
}

void sync_warp(unsigned mask) {
  whole_warp(mask);
  meet_warp("__syncwarp", nullptr, [](void**) {});
}

uint64_t shuffle(const char* what, unsigned mask, uint64_t bits, unsigned from) {
  struct Lane { uint64_t in, out; unsigned from; } mine{bits, 0, from & 31};
  whole_warp(mask);
  meet_warp(what, &mine, [](void** lanes) {
    for (int i = 0; i < 32; i++) {
      Lane& x = *(Lane*)lanes[i];
      x.out = ((Lane*)lanes[x.from])->in;
    }
  }, false);
  return mine.out;
}

unsigned ballot(unsigned mask, bool vote) {
  struct Lane { bool vote; unsigned all; } mine{vote, 0};
  whole_warp(mask);
  meet_warp("__ballot_sync", &mine, [](void** lanes) {
    unsigned all = 0;
    for (int i = 0; i < 32; i++) all |= (unsigned)((Lane*)lanes[i])->vote << i;
    for (int i = 0; i < 32; i++) ((Lane*)lanes[i])->all = all;
  }, false);
  return mine.all;
}

// ---- cp.async

struct LineCopy {
  uint32_t target;
  const void* source;
  unsigned valid;
  bool landed;
};

/// What a thread commits at once. For ThreadSanitizer the copies of a group are a fiber of their own, which knows what
/// their issuer knew at each issue, and which the issuer joins when it waits. Its next life begins after that join, so
/// it still knows no more than its issuer does.
struct CopyGroup {
  std::vector<LineCopy> lines;
  void* engine = nullptr;
  char issued = 0, landed = 0;    // tokens
};

struct Copies {
  std::unique_ptr<CopyGroup> open;
  std::vector<std::unique_ptr<CopyGroup>> groups;    // a deque would allocate for each thread of each block
  std::vector<std::unique_ptr<CopyGroup>> spare;

  CopyGroup& current() {
    if (!open && !spare.empty()) {
      open = std::move(spare.back());
      spare.pop_back();
    } else if (!open) {
      open = std::make_unique<CopyGroup>();
    }
    return *open;
  }
  ~Copies() {
#ifdef EMU_TSAN
    if (open) spare.push_back(std::move(open));
    for (auto& g : groups) spare.push_back(std::move(g));
    for (auto& g : spare)
      if (g->engine) __tsan_destroy_fiber(g->engine);
#endif
  }
};

Block::Block() = default;
Block::~Block() = default;

/// ThreadSanitizer would count a call of memcpy as an access by whoever runs, so bytes go one by one.
static void land(LineCopy& x) {
  if (x.landed) return;
  x.landed = true;
  volatile uint8_t* target = B->smem + (x.target - SMEM_BASE);
  for (unsigned i = 0; i < 16; i++) target[i] = i < x.valid ? ((const uint8_t*)x.source)[i] : 0;
  B->copies++;
}

void copy_async(uint32_t target, const void* source, unsigned valid) {
  uint8_t* to = at(target, 16, "cp.async");
  if (target % 16 || (uintptr_t)source % 16) fail("cp.async: %u from %p is not aligned to 16", target, source);
  if (valid > 16) fail("cp.async: %u bytes of 16", valid);
  CopyGroup& group = B->copies_of[B->cur].current();
#ifdef EMU_TSAN
  // When it lands is open, so the sanitizer may as well hear of it now.
  void* issuer = __tsan_get_current_fiber();
  RELEASE(&group.issued);
  if (!group.engine) group.engine = __tsan_create_fiber(0);
  __tsan_switch_to_fiber(group.engine, 1);
  ACQUIRE(&group.issued);
  WRITES(to, 16);
  if (valid) READS(source, valid);
  RELEASE(&group.landed);
  __tsan_switch_to_fiber(issuer, 1);
#endif
  memset(to, 0xff, 16);
  group.lines.push_back({target, source, valid, false});
  if (B->opt.async == Async::Eager || (B->opt.async == Async::Random && B->random() % 4 == 0)) land(group.lines.back());
}

void copy_commit() {
  Copies& mine = B->copies_of[B->cur];
  mine.current();    // a group may be empty
  mine.groups.push_back(std::move(mine.open));
}

void copy_wait(unsigned pending) {
  Copies& mine = B->copies_of[B->cur];
  while (mine.groups.size() > pending) {
    auto group = std::move(mine.groups.front());
    mine.groups.erase(mine.groups.begin());
    for (auto& x : group->lines) land(x);
    if (!group->lines.empty()) { ACQUIRE(&group->landed); }
    group->lines.clear();
    mine.spare.push_back(std::move(group));
  }
}

/// Lets one random copy of a random thread land.
static bool land_some() {
  Copies& some = B->copies_of[B->random() % B->threads];
  auto one_of = [](CopyGroup& g) {
    if (g.lines.empty()) return false;
    land(g.lines[B->random() % g.lines.size()]);
    return true;
  };
  if (!some.groups.empty() && one_of(*some.groups[B->random() % some.groups.size()])) return true;
  return some.open && one_of(*some.open);
}

// ---- Matrices

void load_matrices(uint32_t (&r)[4], uint32_t row, bool transposed) {
  struct Lane { uint32_t row; uint32_t* r; } mine{row, r};
  auto act = [transposed](void** lanes) {
    for (int i = 0; i < 4; i++) {
      uint16_t m[8][8];
      unsigned banks = 0;
      for (int j = 0; j < 8; j++) {
        uint32_t address = ((Lane*)lanes[8 * i + j])->row;
        uint8_t* from = at(address, 16, "ldmatrix");
        if (address % 16) fail("ldmatrix: address %u is not aligned to 16", address);
        READS(from, 16);
        memcpy(m[j], from, 16);
        banks |= 1 << (address / 16 % 8);
      }
      if (banks != 0xff) B->conflicts++;
      for (int l = 0; l < 32; l++) {
        int a = l / 4, b = 2 * (l % 4);
        uint32_t low = transposed ? m[b][a] : m[a][b], high = transposed ? m[b + 1][a] : m[a][b + 1];
        ((Lane*)lanes[l])->r[i] = low | high << 16;
      }
    }
  };
  meet_warp(transposed ? "ldmatrix.trans" : "ldmatrix", &mine, act, false);
}

static float bf16_value(uint16_t bits) {
  uint32_t wide = (uint32_t)bits << 16;
  float x;
  memcpy(&x, &wide, 4);
  return x;
}
static float f16_value(uint16_t bits) {
  _Float16 x;
  memcpy(&x, &bits, 2);
  return (float)x;
}

/// Lane l: a[i] holds row l/4 + 8(i%2), columns 2(l%4) + 8(i/2) and the next; b[i] rows 2(l%4) + 8i and the next of
/// column l/4; d[i] row l/4 + 8(i/2), column 2(l%4) + i%2.
template <float (*VALUE)(uint16_t)>
static void multiply(const char* what, float* d, const uint32_t* a, const uint32_t* b) {
  struct Lane { float* d; const uint32_t *a, *b; } mine{d, a, b};
  meet_warp(what, &mine, [](void** lanes) {
    float a[16][16], b[16][8], d[16][8];
    for (int l = 0; l < 32; l++) {
      Lane& x = *(Lane*)lanes[l];
      int row = l / 4, column = 2 * (l % 4);
      for (int i = 0; i < 4; i++) {
        float* to = &a[row + 8 * (i % 2)][column + 8 * (i / 2)];
        to[0] = VALUE(x.a[i] & 0xffff);
        to[1] = VALUE(x.a[i] >> 16);
        d[row + 8 * (i / 2)][column + i % 2] = x.d[i];
      }
      for (int i = 0; i < 2; i++) {
        b[column + 8 * i][row] = VALUE(x.b[i] & 0xffff);
        b[column + 8 * i + 1][row] = VALUE(x.b[i] >> 16);
      }
    }
    for (int i = 0; i < 16; i++)
      for (int k = 0; k < 16; k++)
        for (int j = 0; j < 8; j++) d[i][j] += a[i][k] * b[k][j];
    for (int l = 0; l < 32; l++)
      for (int i = 0; i < 4; i++) ((Lane*)lanes[l])->d[i] = d[l / 4 + 8 * (i / 2)][2 * (l % 4) + i % 2];
    B->mmas++;
  }, false);
}

void multiply_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const uint32_t b[2] = {b0, b1};
  multiply<bf16_value>("mma.bf16", d, a, b);
}
void multiply_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const uint32_t b[2] = {b0, b1};
  multiply<f16_value>("mma.f16", d, a, b);
}

static uint32_t bf16_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return x != x ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
static uint32_t f16_bits(float x) {
  _Float16 near = (_Float16)x;
  uint16_t bits;
  memcpy(&bits, &near, 2);
  return x != x ? 0x7fff : bits;
}
uint32_t pack_bf16(float low, float high) { return bf16_bits(low) | bf16_bits(high) << 16; }
uint32_t pack_f16(float low, float high) { return f16_bits(low) | f16_bits(high) << 16; }

// ---- Blocks and grids

void global_wait(const unsigned* count, unsigned value) {
  while (*(volatile const unsigned*)count != value) {
    B->global_waiters.push_back(B->cur);
    block_on("a count in global memory", (uint64_t)count);
  }
  ACQUIRE(count);
}

static std::unique_ptr<Block> start(dim3 grid, dim3 dim, size_t smem, const Options& opt, uint64_t index,
                                    const std::function<void()>& body) {
  auto b = std::make_unique<Block>();
  B = b.get();
  b->opt = opt;
  b->grid = grid;
  b->dim = dim;
  b->idx = dim3(index % grid.x, index / grid.x % grid.y, index / grid.x / grid.y);
  b->threads = dim.x * dim.y * dim.z;
  b->rng = (opt.seed + index) * 0x9E3779B97F4A7C15ull | 1;
  b->body = &body;
  b->warps.resize(b->threads / 32);
  b->warpgroups.resize((b->threads + 127) / 128);
  // Room for all, so that no fiber moves what others wrote: ThreadSanitizer looks into memmove and delete.
  b->global_waiters.reserve(b->threads);
  for (auto& x : b->named) x.waiters.reserve(b->threads);
  for (auto& g : b->warps) g.args.resize(32);
  for (auto& g : b->warpgroups) g.args.resize(128);
  b->copies_of = std::make_unique<Copies[]>(b->threads);

  b->smem_bytes = smem;
  b->static_at = b->static_end = (smem + 1023) / 1024 * 1024 + 1024;
  size_t total = b->static_at + STATIC_BYTES;
  b->smem = (uint8_t*)aligned_alloc(1024, total);
  // NaN in every type; static arrays get it when they are declared, where no sanitizer asks who wrote it.
#ifdef EMU_TSAN
  memset(b->smem, 0xff, total);
#else
  memset(b->smem, 0xff, smem);
#endif
  WRITES(b->smem, total);
#ifdef EMU_ASAN
  __asan_poison_memory_region(b->smem + smem, total - smem);
#endif
#ifdef EMU_TSAN
  b->main_tsan = __tsan_get_current_fiber();
#endif
  if (start_async) start_async(total);

  b->fibers.resize(b->threads);
  b->alive = b->threads;
  for (auto& r : b->rank) r = b->random();
  for (unsigned i = 0; i < b->threads; i++) {
    Fiber& f = b->fibers[i];
    f.id = i;
    f.tid = dim3(i % dim.x, i / dim.x % dim.y, i / dim.x / dim.y);
    f.stack = take_stack();
    prepare(f);
  }
  for (unsigned i = 0; i < b->threads; i++) wake(i);
  return b;
}

static void finish(Block& b) {
  B = &b;
  ACQUIRE(&b);
  for (unsigned i = 0; i < b.threads; i++) {
    Copies& mine = b.copies_of[i];
    bool waiting = mine.open && !mine.open->lines.empty();
    for (auto& g : mine.groups) waiting |= !g->lines.empty();
    if (waiting) note(b, "block " + std::to_string(b.idx.x) + " ends with cp.async that nobody waited for");
  }
  for (int i = 0; i < 16; i++)
    if (b.named[i].arrived) note(b, "named barrier " + std::to_string(i) + " is left with arrivals");
  if (end_block) end_block();
  for (Fiber& f : b.fibers) {
#ifdef EMU_TSAN
    __tsan_destroy_fiber(f.tsan);
#endif
    spare_stacks().push_back(f.stack);
  }
#ifdef EMU_ASAN
  __asan_unpoison_memory_region(b.smem, b.static_at + STATIC_BYTES);
#endif
  free(b.smem);
}

static std::string deadlock(Block& b) {
  std::map<std::string, std::pair<unsigned, unsigned>> waits;    // what: how many threads, the first of them
  for (Fiber& f : b.fibers) {
    if (f.done) continue;
    std::string what = f.waits;
    what += ' ';
    what += std::to_string(f.waits_on);
    auto& [count, first] = waits[what];
    if (count++ == 0) first = f.id;
  }
  std::ostringstream text;
  text << "block " << b.idx.x << ": deadlock:";
  for (auto& [what, who] : waits) text << " " << who.first << " threads (first " << who.second << ") at " << what << ";";
  return text.str();
}

static unsigned take_ready(Block& b) {
  unsigned warps = b.threads / 32, w = 0, skip = 0;    // the warp, and how many of its ready lanes are passed over
  switch (b.opt.order) {
    case Order::Forward:
      while (!b.ready[w]) w++;
      break;
    case Order::Reverse:
      for (w = warps - 1; !b.ready[w];) w--;
      skip = __builtin_popcount(b.ready[w]) - 1;
      break;
    case Order::Random:
      for (skip = b.random() % b.ready_count; skip >= (unsigned)__builtin_popcount(b.ready[w]); w++)
        skip -= __builtin_popcount(b.ready[w]);
      break;
    case Order::Priority:
      if (b.switches % 2048 == 0) b.rank[b.random() % 32] = b.random();
      while (!b.ready[w]) w++;
      for (unsigned other = w + 1; other < warps; other++)
        if (b.ready[other] && b.rank[other] > b.rank[w]) w = other;
      break;
  }
  uint32_t lanes = b.ready[w];
  while (skip-- > 0) lanes &= lanes - 1;
  b.ready[w] &= ~(lanes & -lanes);
  b.ready_count--;
  return w * 32 + __builtin_ctz(lanes);
}

/// Runs until the block ends (true) or all its threads wait for other blocks (false).
static bool run(Block& b) {
  B = &b;
  for (unsigned i : b.global_waiters) wake(i);
  b.global_waiters.clear();
  while (b.alive && !b.failed) {
    if (b.opt.async == Async::Random && b.random() % 8 == 0) {
      land_some();
      if (progress) progress();
    }
    if (b.ready_count == 0) {
      if (progress && progress()) continue;
      if (b.failed) break;
      if (!b.global_waiters.empty()) return false;
      note(b, deadlock(b));
      break;
    }
    if (b.failed) break;
    b.cur = take_ready(b);
    b.switches++;
    b.inside = true;
    to_fiber(b.fibers[b.cur]);
    b.inside = false;
  }
  return true;
}

std::string launch(dim3 grid, dim3 dim, size_t smem, Options opt, const std::function<void()>& body, Stats* stats) {
  uint64_t total = (uint64_t)grid.x * grid.y * grid.z, next = 0, random = opt.seed | 1;
  unsigned threads = dim.x * dim.y * dim.z;
  if (!total || !threads || threads > 1024 || threads % 32) return "launch: not a grid of whole warps, at most 1024 threads";

  // Resident blocks, most of them not begun; one runs until it ends or waits for a count of another one.
  struct Resident { uint64_t index; std::unique_ptr<Block> block; };
  std::vector<Resident> resident;
  std::string why;
  size_t stuck = 0;
  while (why.empty() && (next < total || !resident.empty())) {
    while (next < total && resident.size() < RESIDENT) resident.push_back({next++, nullptr});
    random = random * 6364136223846793005ull + 1442695040888963407ull;
    size_t k = (random >> 33) % resident.size();
    if (opt.order == Order::Forward) k = stuck % resident.size();
    if (opt.order == Order::Reverse) k = resident.size() - 1 - stuck % resident.size();
    if (!resident[k].block) resident[k].block = start(grid, dim, smem, opt, resident[k].index, body);
    Block& b = *resident[k].block;
    uint64_t switches = b.switches, waiting = b.global_waiters.size();
    if (run(b)) {
      finish(b);
      why = b.why;
      if (stats) {
        stats->switches += b.switches;
        stats->copies += b.copies;
        stats->mmas += b.mmas;
        stats->conflicts += b.conflicts;
      }
      resident.erase(resident.begin() + k);
      stuck = 0;
    } else {
      bool moved = b.switches - switches > waiting;    // more than looking at the count again
      stuck = moved ? 0 : stuck + 1;
      if (stuck > 64 * resident.size()) why = "deadlock: every block waits for another one's count";
    }
  }
  for (auto& x : resident)
    if (x.block) finish(*x.block);
  B = nullptr;
  return why;
}

}    // namespace emu
