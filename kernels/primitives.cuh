// Instructions that C++ has no words for, behind named functions: those that every device from sm_80 on has. Under
// CPU_EMU each is its twin of tests/emulator. What only sm_90a has is in hopper.cuh.
#pragma once

typedef unsigned int u32;

#ifdef CPU_EMU
#include "emu.h"

// Shared memory of the size that the launch names, at a multiple of 1024 bytes.
#define DYNAMIC_SHARED(name) unsigned char* name = emu::shared_memory()
// An array of the block: SHARED_ARRAY(float, tile, [32][33]). It lives in the block's memory, and begins as NaN.
#define SHARED_ARRAY(type, name, dims)                                                                        \
  static const char name##_declaration = 0;                                                                   \
  auto& name = *(std::remove_reference_t<type(&) dims>*)emu::shared_array(&name##_declaration, sizeof(type dims), \
                                                                          alignof(type))
#define PRIMITIVE static inline
#else
#define DYNAMIC_SHARED(name) extern __shared__ __align__(1024) unsigned char name[]
#define SHARED_ARRAY(type, name, dims) __shared__ type name dims
#define PRIMITIVE static __device__ __forceinline__
#endif

// Address of shared memory as instructions take it.
PRIMITIVE u32 shared_address(const void* p) {
#ifdef CPU_EMU
  return emu::shared_address(p);
#else
  return (u32)__cvta_generic_to_shared(p);
#endif
}

// ---- Copies that go on while the thread computes. Both addresses are multiples of 16 bytes.

// Copies 16 bytes to shared memory; `valid`, 0 or 16, says how many are read: the others become 0.
PRIMITIVE void copy_async(u32 target, const void* source, u32 valid) {
#ifdef CPU_EMU
  emu::copy_async(target, source, valid);
#else
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(source), "r"(valid) : "memory");
#endif
}

// Makes a group of the copies since the last commit.
PRIMITIVE void copy_commit() {
#ifdef CPU_EMU
  emu::copy_commit();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most PENDING groups of this thread are on their way. Other threads see the copies after a barrier.
template <int PENDING>
PRIMITIVE void copy_wait() {
#ifdef CPU_EMU
  emu::copy_wait(PENDING);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#endif
}

// ---- Matrices of 16-bit elements, spread over a warp.

// Four matrices of 8x8. Lane l names row l % 8 of matrix l / 8, and gets row l / 4, columns 2 (l % 4) and the next of
// each.
PRIMITIVE void load_matrices(u32 (&r)[4], u32 row) {
#ifdef CPU_EMU
  emu::load_matrices(r, row, false);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
#endif
}

// The same, each matrix transposed on its way.
PRIMITIVE void load_matrices_transposed(u32 (&r)[4], u32 row) {
#ifdef CPU_EMU
  emu::load_matrices(r, row, true);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
#endif
}

// d += a b, where a is 16x16, b 16x8 and d 16x8. Lane l holds of a: rows l / 4 + 8 (i % 2), columns 2 (l % 4) + 8 (i / 2)
// and the next; of b: rows 2 (l % 4) + 8 i and the next, column l / 4; of d: row l / 4 + 8 (i / 2), column
// 2 (l % 4) + i % 2.
#ifdef CPU_EMU
#define MULTIPLY(type, d, a, b0, b1) emu::multiply_##type(d, a, b0, b1)
#else
#define MULTIPLY(type, d, a, b0, b1)                                                       \
  asm("mma.sync.aligned.m16n8k16.row.col.f32." #type "." #type                    \
               ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"      \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                            \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))
#endif
PRIMITIVE void multiply_bf16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) { MULTIPLY(bf16, d, a, b0, b1); }
PRIMITIVE void multiply_f16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) { MULTIPLY(f16, d, a, b0, b1); }

// ---- Numbers

// 2^x; numbers too small for a normal one are 0.
PRIMITIVE float exp2_fast(float x) {
#ifdef CPU_EMU
  float y = exp2f(x);
  return y < 1.17549435e-38f ? 0 : y;
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

// Two numbers, each rounded to nearest even, the first in the low half.
PRIMITIVE u32 pack_bf16(float low, float high) {
#ifdef CPU_EMU
  return emu::pack_bf16(low, high);
#else
  u32 both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
#endif
}
PRIMITIVE u32 pack_f16(float low, float high) {
#ifdef CPU_EMU
  return emu::pack_f16(low, high);
#else
  u32 both;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
#endif
}
