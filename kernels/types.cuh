// Number types, conversions and matrix views: what all kernels share, for NVRTC and for the emulator.
//
// A kernel that depends on the storage type is compiled with -DELEM=bf16, f16 or f32; its name then ends in the type.
#pragma once

#ifdef CPU_EMU
#include "emu.h"
#include "exports.h"
#define INLINE static inline
#define MEMBER inline
#define KERNEL extern "C"
#define EXPORT(kernel) EXPORT_NAMED(kernel)
#undef UNROLL
#define UNROLL
#else
#define INLINE static __device__ __forceinline__
#define MEMBER __device__ __forceinline__
#define KERNEL extern "C" __global__
#define EXPORT(kernel)
#define UNROLL _Pragma("unroll")
#endif

// Number of a fault planted on purpose, which a test must find.
#ifndef FAULT
#define FAULT 0
#endif

// NAME(rms_norm) is rms_norm_bf16 where ELEM is bf16.
#define JOINED(name, elem) name##_##elem
#define JOIN(name, elem) JOINED(name, elem)
#define NAME(name) JOIN(name, ELEM)

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;
typedef float f32;
typedef double f64;
struct bf16 {
  u16 bits;
};
struct f16 {
  u16 bits;
};

#define INF of_bits(0x7F800000)

// Threads of a block, where a kernel does not say otherwise.
constexpr int BLOCK = 256;

// A matrix whose rows begin `stride` elements apart. Offsets are of 64 bits: a matrix may have more than 2^31 elements.
template <class T>
struct View {
  T* data;
  i64 rows, cols, stride;

  MEMBER T* row(i64 r) const {
#if FAULT == 100
    return data + r * cols;  // ignores the stride
#elif FAULT == 101
    return data + (int)(r * stride);  // an offset of 32 bits
#else
    return data + r * stride;
#endif
  }
  MEMBER T& at(i64 r, i64 c) const { return row(r)[c]; }
};

// Bits of numbers, and conversions: to the nearest, ties to even; NaN becomes 0x7FFF, as the hardware has it.
#ifdef CPU_EMU
INLINE u32 bits_of(f32 x) {
  u32 bits;
  memcpy(&bits, &x, 4);
  return bits;
}
INLINE f32 of_bits(u32 bits) {
  f32 x;
  memcpy(&x, &bits, 4);
  return x;
}
INLINE u16 bf16_bits(f32 x) {
  u32 bits = bits_of(x);
  if ((bits & 0x7FFFFFFF) > 0x7F800000) return 0x7FFF;
  return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
}
INLINE u16 f16_bits(f32 x) {
  u32 sign = bits_of(x) >> 16 & 0x8000, size = bits_of(x) & 0x7FFFFFFF;
  if (size > 0x7F800000) return 0x7FFF;
  if (size >= 0x47800000) return sign | 0x7C00;  // 2^16 and more
  // Below 2^-14 the unit is 2^-24, that of f32 from 0.5 to 1: the sum is rounded as it should be.
  if (size < 0x38800000) return sign | (bits_of(of_bits(size) + 0.5f) - bits_of(0.5f));
  return sign | (size - 0x38000000 + 0xFFF + (size >> 13 & 1)) >> 13;
}
INLINE f32 f16_value(u16 bits) {
  u32 sign = (u32)(bits & 0x8000) << 16, size = bits & 0x7FFF;
  if (size >= 0x7C00) return of_bits(sign | 0x7F800000 | (size & 0x3FF) << 13);
  if (size < 0x400) return of_bits(sign | bits_of((f32)size / (1 << 24)));
  return of_bits(sign | ((size << 13) + 0x38000000));
}
#else
INLINE u32 bits_of(f32 x) { return __float_as_uint(x); }
INLINE f32 of_bits(u32 bits) { return __uint_as_float(bits); }
INLINE u16 bf16_bits(f32 x) {
  u16 bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}
INLINE u16 f16_bits(f32 x) {
  u16 bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}
INLINE f32 f16_value(u16 bits) {
  f32 x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
  return x;
}
#endif

INLINE f64 widen(f64 x) { return x; }
INLINE f32 widen(f32 x) { return x; }
INLINE f32 widen(bf16 x) { return of_bits((u32)x.bits << 16); }
INLINE f32 widen(f16 x) { return f16_value(x.bits); }

INLINE void round_into(f64& y, f64 x) { y = x; }
INLINE void round_into(f32& y, f32 x) { y = x; }
INLINE void round_into(bf16& y, f32 x) { y.bits = bf16_bits(x); }
INLINE void round_into(f16& y, f32 x) { y.bits = f16_bits(x); }

// Rounds to a storage type: round_to<bf16>(x).
template <class E>
INLINE E round_to(f32 x) {
  E y;
  round_into(y, x);
  return y;
}

// Rounds to a storage type once, though the way is over f32: the first step keeps what it cuts off in the last bit.
INLINE void round_once(f32& y, f64 x) { y = (f32)x; }
template <class E>
INLINE void round_once(E& y, f64 x) {
  f32 near = (f32)x;
  if ((f64)near != x && x - x == 0) {
    u32 bits = bits_of(near);
    bool outward = (f64)of_bits(bits & 0x7FFFFFFF) > (x < 0 ? -x : x);
    near = of_bits((bits - outward) | 1);
  }
  round_into(y, near);
}
