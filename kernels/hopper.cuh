// Instructions that only sm_90a has, behind named functions: barriers in shared memory, bulk copies by tensor maps,
// products of a warpgroup. Under CPU_EMU each is its twin of tests/emulator/hopper.h.
//
// Shared memory that the asynchronous units read is stored to through functions of this file alone: the twins then know
// which thread has yet to fence its stores.
#pragma once
#include "primitives.cuh"
#include "types.cuh"

#ifdef CPU_EMU
#include "../tests/emulator/hopper.h"
#endif

// A CUtensorMap, passed by value as `const __grid_constant__ TensorMap`.
struct alignas(128) TensorMap {
  u64 opaque[16];
};

// ---- Barriers in shared memory, by address. A phase ends when as many threads as `count` have arrived and all bytes
// that arrivals said to expect have been copied. A wait is for the end of the phase of that parity, of which the first
// has 0; waiting for parity 1 on a fresh barrier does not wait.

PRIMITIVE void mbarrier_init(u32 bar, u32 count) {
#ifdef CPU_EMU
  emu::mbarrier_init(bar, count);
#else
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory");
#endif
}

// After the inits, before a barrier of the block: copies see the barriers that this thread initialised.
PRIMITIVE void fence_mbarrier_init() {
#ifdef CPU_EMU
  emu::fence_mbarrier_init();
#else
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

PRIMITIVE void mbarrier_arrive(u32 bar) {
#ifdef CPU_EMU
  emu::mbarrier_arrive(bar, 0);
#else
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
#endif
}

PRIMITIVE void mbarrier_arrive_expect(u32 bar, u32 bytes) {
#ifdef CPU_EMU
  emu::mbarrier_arrive(bar, bytes);
#else
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
#endif
}

PRIMITIVE void mbarrier_wait(u32 bar, u32 parity) {
#ifdef CPU_EMU
  emu::mbarrier_wait(bar, parity);
#else
  asm volatile(
      "{\n.reg .pred p;\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@p bra done;\nbra "
      "again;\ndone:\n}" ::"r"(bar),
      "r"(parity)
      : "memory");
#endif
}

// ---- Copies between global and shared memory by a tensor map: its box at the coordinates, innermost first. Elements
// outside of the tensor are read as zeros, count as bytes, and are not written. One thread issues a copy.

PRIMITIVE void tensor_load(u32 target, const TensorMap* map, u32 bar, int x, int y) {
#ifdef CPU_EMU
  emu::tensor_load(target, map, bar, {x, y});
#else
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::
          "r"(target),
      "l"(map), "r"(bar), "r"(x), "r"(y)
      : "memory");
#endif
}
PRIMITIVE void tensor_load(u32 target, const TensorMap* map, u32 bar, int x, int y, int z) {
#ifdef CPU_EMU
  emu::tensor_load(target, map, bar, {x, y, z});
#else
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], "
      "[%2];" ::"r"(target),
      "l"(map), "r"(bar), "r"(x), "r"(y), "r"(z)
      : "memory");
#endif
}
PRIMITIVE void tensor_load(u32 target, const TensorMap* map, u32 bar, int x, int y, int z, int w) {
#ifdef CPU_EMU
  emu::tensor_load(target, map, bar, {x, y, z, w});
#else
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], "
      "[%2];" ::"r"(target),
      "l"(map), "r"(bar), "r"(x), "r"(y), "r"(z), "r"(w)
      : "memory");
#endif
}

PRIMITIVE void tensor_store(const TensorMap* map, u32 source, int x, int y, int z) {
#ifdef CPU_EMU
  emu::tensor_store(map, source, {x, y, z});
#else
  asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(map),
               "r"(source), "r"(x), "r"(y), "r"(z)
               : "memory");
#endif
}

// Fetches the map itself before its first use.
PRIMITIVE void prefetch_map(const TensorMap* map) {
#ifdef CPU_EMU
  (void)map;
#else
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
#endif
}

// ---- Copies of bytes in a row: addresses and size are multiples of 16.

PRIMITIVE void bulk_load(u32 target, const void* source, u32 bytes, u32 bar) {
#ifdef CPU_EMU
  emu::bulk_load(target, source, bytes, bar);
#else
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(target),
               "l"(source), "r"(bytes), "r"(bar)
               : "memory");
#endif
}

PRIMITIVE void bulk_add(f32* target, u32 source, u32 bytes) {
#ifdef CPU_EMU
  emu::bulk_add(target, source, bytes);
#else
  asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(target), "r"(source),
               "r"(bytes)
               : "memory");
#endif
}

// What leaves shared memory is waited for in groups of the issuing thread: `read` is until the source may be stored to,
// `written` until the target holds the result.
PRIMITIVE void bulk_commit() {
#ifdef CPU_EMU
  emu::bulk_commit();
#else
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
#endif
}
template <int PENDING>
PRIMITIVE void bulk_wait_read() {
#ifdef CPU_EMU
  emu::bulk_wait(PENDING, true);
#else
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(PENDING) : "memory");
#endif
}
template <int PENDING>
PRIMITIVE void bulk_wait_written() {
#ifdef CPU_EMU
  emu::bulk_wait(PENDING, false);
#else
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(PENDING) : "memory");
#endif
}

// ---- Stores to shared memory. Before asynchronous units read what a thread stored, that thread fences, and then meets
// whoever starts the unit.

PRIMITIVE void fence_async_shared() {
#ifdef CPU_EMU
  emu::fence_async_shared();
#else
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

PRIMITIVE void store_shared(u32 target, u32 x) {
#ifdef CPU_EMU
  emu::shared_store(target, &x, 4);
#else
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(target), "r"(x) : "memory");
#endif
}
PRIMITIVE void store_shared(u32 target, f32 x, f32 y) {
#ifdef CPU_EMU
  f32 both[2] = {x, y};
  emu::shared_store(target, both, 8);
#else
  asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(target), "f"(x), "f"(y) : "memory");
#endif
}
PRIMITIVE void store_shared(u32 target, f32 x, f32 y, f32 z, f32 w) {
#ifdef CPU_EMU
  f32 all[4] = {x, y, z, w};
  emu::shared_store(target, all, 16);
#else
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(target), "f"(x), "f"(y), "f"(z), "f"(w) : "memory");
#endif
}

// Four matrices of 8x8 elements of 16 bits. Lane l names the place of row l % 8 of matrix l / 8, and holds row l / 4,
// columns 2 (l % 4) and the next of each.
PRIMITIVE void store_matrices(u32 row, const u32 (&r)[4]) {
#ifdef CPU_EMU
  emu::stmatrix_x4(row, r);
#else
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row), "r"(r[0]), "r"(r[1]),
               "r"(r[2]), "r"(r[3])
               : "memory");
#endif
}

// ---- Threads

// Barrier `id`, 0 to 15 with 0 that of __syncthreads, of `threads` threads that sync or arrive.
PRIMITIVE void named_sync(u32 id, u32 threads) {
#ifdef CPU_EMU
  emu::bar(id, threads, true);
#else
  asm volatile("barrier.cta.sync.aligned %0, %1;" ::"r"(id), "r"(threads) : "memory");
#endif
}
PRIMITIVE void named_arrive(u32 id, u32 threads) {
#ifdef CPU_EMU
  emu::bar(id, threads, false);
#else
  asm volatile("barrier.cta.arrive.aligned %0, %1;" ::"r"(id), "r"(threads) : "memory");
#endif
}

// True in one lane of the warp, whichever.
PRIMITIVE bool elect_one() {
#ifdef CPU_EMU
  return emu::elect();
#else
  u32 chosen;
  asm volatile("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\nselp.u32 %0, 1, 0, p;\n}" : "=r"(chosen)::"memory");
  return chosen;
#endif
}

// Registers of each thread of the warpgroup, a multiple of 8. More of them are there once other warpgroups have given
// theirs back. The kernel needs __launch_bounds__ with one block.
template <int REGISTERS>
PRIMITIVE void take_registers() {
#ifdef CPU_EMU
  emu::setmaxnreg(REGISTERS, true);
#else
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
#endif
}
template <int REGISTERS>
PRIMITIVE void give_registers() {
#ifdef CPU_EMU
  emu::setmaxnreg(REGISTERS, false);
#else
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
#endif
}

// Order between blocks that are resident together: who waits sees what was written before the count.
PRIMITIVE void count(u32* counter) {
#ifdef CPU_EMU
  emu::count(counter);
#else
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
#endif
}
PRIMITIVE void wait_count(const u32* counter, u32 value) {
#ifdef CPU_EMU
  emu::wait_count(counter, value);
#else
  u32 now;
  do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(counter) : "memory");
  while (now != value);
#endif
}

// ---- Products of a warpgroup: d (64 x N, f32) = a (64 x 16) b (16 x N) + (add ? d : 0).
// Accumulator i of lane l of warp w holds row 16 w + l / 4 + 8 (i / 2 % 2), column 8 (i / 4) + 2 (l % 4) + i % 2; so
// the registers 8 k..8 k + 7, rounded and packed in pairs, are the k-th 16 columns as an `a` of registers.
//
// The products run on while the thread goes on: wgmma_fence names all registers that the products issued after it use,
// and wgmma_wait<PENDING> the accumulators that it hands back, when at most PENDING committed groups still run.

// An operand in shared memory with a swizzle of 128 bytes, that repeats every 8 rows of 128 bytes.
// Along rows of the inner dimension (transposed = 0): `stride` bytes between groups of 8 rows; `leading` says nothing.
// Across (transposed = 1): `stride` bytes between groups of 8 inner indices, `leading` between groups of 64 rows.
INLINE u64 descriptor(u32 address, u32 leading, u32 stride) {
  return (u64)((address & 0x3FFFF) >> 4) | (u64)(leading >> 4) << 16 | (u64)(stride >> 4) << 32 | 1ull << 62;
}

#ifdef CPU_EMU

template <class E>
constexpr emu::Half HALF_OF = emu::Half::bf16;
template <>
constexpr emu::Half HALF_OF<f16> = emu::Half::f16;

template <class E, int A_TRANSPOSED, int B_TRANSPOSED, int REGISTERS>
PRIMITIVE void wgmma(f32 (&d)[REGISTERS], u64 a, u64 b, int add) {
  emu::wgmma({d, 2 * REGISTERS, nullptr, a, b, add != 0, A_TRANSPOSED, B_TRANSPOSED, HALF_OF<E>});
}
template <class E, int B_TRANSPOSED, int REGISTERS>
PRIMITIVE void wgmma(f32 (&d)[REGISTERS], const u32 (&a)[4], u64 b, int add) {
  emu::wgmma({d, 2 * REGISTERS, a, 0, b, add != 0, false, B_TRANSPOSED, HALF_OF<E>});
}
template <class... R>
PRIMITIVE void wgmma_fence(R&... named) {
  emu::wgmma_fence({{&named, sizeof named}...});
}
PRIMITIVE void wgmma_commit() { emu::wgmma_commit(); }
template <int PENDING, class... R>
PRIMITIVE void wgmma_wait(R&... named) {
  emu::wgmma_wait(PENDING, {{&named, sizeof named}...});
}

#else

// Named registers may not be moved across the fence or the wait by the compiler.
template <int N>
PRIMITIVE void hold(f32 (&r)[N]) {
  UNROLL for (int i = 0; i < N; i++)
    asm volatile("" : "+f"(r[i])::"memory");
}
template <int N>
PRIMITIVE void hold(u32 (&r)[N]) {
  UNROLL for (int i = 0; i < N; i++)
    asm volatile("" : "+r"(r[i])::"memory");
}
template <int M, int N>
PRIMITIVE void hold(u32 (&r)[M][N]) {
  UNROLL for (int i = 0; i < M; i++)
    hold(r[i]);
}
template <class... R>
PRIMITIVE void wgmma_fence(R&... named) {
  (hold(named), ...);
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
PRIMITIVE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING, class... R>
PRIMITIVE void wgmma_wait(R&... named) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
  (hold(named), ...);
}

// Operands of the asm statement, and their numbers, for 16, 32, 64, 96 and 128 accumulators.
#define WGMMA_8(d, i)                                                                                         \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
      "+f"(d[i + 7])
#define WGMMA_OPERANDS_16(d) WGMMA_8(d, 0), WGMMA_8(d, 8)
#define WGMMA_OPERANDS_32(d) WGMMA_OPERANDS_16(d), WGMMA_8(d, 16), WGMMA_8(d, 24)
#define WGMMA_OPERANDS_64(d) WGMMA_OPERANDS_32(d), WGMMA_8(d, 32), WGMMA_8(d, 40), WGMMA_8(d, 48), WGMMA_8(d, 56)
#define WGMMA_OPERANDS_96(d) WGMMA_OPERANDS_64(d), WGMMA_8(d, 64), WGMMA_8(d, 72), WGMMA_8(d, 80), WGMMA_8(d, 88)
#define WGMMA_OPERANDS_128(d) WGMMA_OPERANDS_96(d), WGMMA_8(d, 96), WGMMA_8(d, 104), WGMMA_8(d, 112), WGMMA_8(d, 120)
#define WGMMA_NUMBERS_16 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define WGMMA_NUMBERS_32 WGMMA_NUMBERS_16 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define WGMMA_NUMBERS_64                                                         \
  WGMMA_NUMBERS_32                                                               \
      ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49" \
      ",%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define WGMMA_NUMBERS_96                                                         \
  WGMMA_NUMBERS_64                                                               \
      ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81" \
      ",%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"
#define WGMMA_NUMBERS_128                                                                      \
  WGMMA_NUMBERS_96                                                                             \
      ",%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113" \
      ",%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"

#define WGMMA_SHARED(type, columns, registers, a, b, add, ta, tb)                                                     \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " add ", 0;\nwgmma.mma_async.sync.aligned.m64n" #columns             \
               "k16.f32." type "." type " {" WGMMA_NUMBERS_##registers "}, " a ", " b ", p, 1, 1, " ta ", " tb ";\n}" \
               : WGMMA_OPERANDS_##registers(d)                                                                        \
               : "l"(a_descriptor), "l"(b_descriptor), "r"(accumulate), "n"(A_TRANSPOSED), "n"(B_TRANSPOSED))
#define WGMMA_REGISTERS(type, columns, registers, a, b, add, tb)                                                \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " add ", 0;\nwgmma.mma_async.sync.aligned.m64n" #columns       \
               "k16.f32." type "." type " {" WGMMA_NUMBERS_##registers "}, {" a "}, " b ", p, 1, 1, " tb ";\n}" \
               : WGMMA_OPERANDS_##registers(d)                                                                  \
               : "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3]), "l"(b_descriptor), "r"(accumulate), "n"(B_TRANSPOSED))

template <class E>
struct Wgmma;
#define WGMMA_SHAPE(type, columns, registers, s0, s1, s2, s3, s4, r0, r1, r2, r3, r4, r5, r6)      \
  template <int A_TRANSPOSED, int B_TRANSPOSED>                                                    \
  static MEMBER void run(f32(&d)[registers], u64 a_descriptor, u64 b_descriptor, int accumulate) { \
    WGMMA_SHARED(#type, columns, registers, s0, s1, s2, s3, s4);                                   \
  }                                                                                                \
  template <int B_TRANSPOSED>                                                                      \
  static MEMBER void run(f32(&d)[registers], const u32(&r)[4], u64 b_descriptor, int accumulate) { \
    WGMMA_REGISTERS(#type, columns, registers, r0 ", " r1 ", " r2 ", " r3, r4, r5, r6);            \
  }
#define WGMMA_TYPE(type)                                                                                               \
  template <>                                                                                                          \
  struct Wgmma<type> {                                                                                                 \
    WGMMA_SHAPE(type, 32, 16, "%16", "%17", "%18", "%19", "%20", "%16", "%17", "%18", "%19", "%20", "%21", "%22")      \
    WGMMA_SHAPE(type, 64, 32, "%32", "%33", "%34", "%35", "%36", "%32", "%33", "%34", "%35", "%36", "%37", "%38")      \
    WGMMA_SHAPE(type, 128, 64, "%64", "%65", "%66", "%67", "%68", "%64", "%65", "%66", "%67", "%68", "%69", "%70")     \
    WGMMA_SHAPE(type, 192, 96, "%96", "%97", "%98", "%99", "%100", "%96", "%97", "%98", "%99", "%100", "%101", "%102") \
    WGMMA_SHAPE(type, 256, 128, "%128", "%129", "%130", "%131", "%132", "%128", "%129", "%130", "%131", "%132",        \
                "%133", "%134")                                                                                        \
  };
WGMMA_TYPE(bf16)
WGMMA_TYPE(f16)

template <class E, int A_TRANSPOSED, int B_TRANSPOSED, int REGISTERS>
PRIMITIVE void wgmma(f32 (&d)[REGISTERS], u64 a, u64 b, int add) {
  Wgmma<E>::template run<A_TRANSPOSED, B_TRANSPOSED>(d, a, b, add);
}
template <class E, int B_TRANSPOSED, int REGISTERS>
PRIMITIVE void wgmma(f32 (&d)[REGISTERS], const u32 (&a)[4], u64 b, int add) {
  Wgmma<E>::template run<B_TRANSPOSED>(d, a, b, add);
}

#endif
