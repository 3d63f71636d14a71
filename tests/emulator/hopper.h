// CPU twins of Hopper's asynchronous instructions (sm_90a): barriers in shared memory, bulk copies, warpgroup products.
//
// The hardware may finish an asynchronous operation at any moment between its issue and the wait for it, so a twin
// makes every early look at the result visible: copies poison their target and land late and in any order, accumulators
// are poisoned until a wait retires them, and what an operation reads is hashed when it is issued and again when it is
// over.
#pragma once
#include "emu.h"
#include <initializer_list>
#include <string>

namespace emu {

// What the stand-in of cuTensorMapEncodeTiled writes into the 128 bytes of a CUtensorMap.
struct Map {
  uint32_t magic;
  uint8_t rank, bytes,
      swizzle;  // bytes of an element; swizzle as CUtensorMapSwizzle: 0 none, 1, 2, 3 = 32, 64, 128 bytes
  uint8_t* base;
  uint64_t dims[5], strides[4];  // strides[i] in bytes, of dimension i + 1
  uint16_t box[5];
};
static_assert(sizeof(Map) <= 128);

// Fills `map` after the driver's checks; returns what is wrong, or "".
std::string encode_map(void* map, void* base, unsigned bytes, unsigned rank, const uint64_t* dims,
                       const uint64_t* strides, const uint32_t* box, unsigned swizzle);

// Barriers in shared memory. `bytes` of an arrival are added to what the phase expects from copies.
void mbarrier_init(uint32_t bar, unsigned count);
void mbarrier_arrive(uint32_t bar, long bytes);
void mbarrier_wait(uint32_t bar, unsigned parity);
void fence_mbarrier_init();
void fence_async_shared();

// Copies between global and shared memory.
using Coordinates = std::initializer_list<int>;
void tensor_load(uint32_t target, const void* map, uint32_t bar, Coordinates at);
void tensor_store(const void* map, uint32_t source, Coordinates at);
void bulk_load(uint32_t target, const void* source, uint32_t bytes, uint32_t bar);
void bulk_add(float* target, uint32_t source, uint32_t bytes);
void bulk_commit();
void bulk_wait(unsigned groups, bool read);  // read: only until the shared memory was read

// Stores that the asynchronous units may not read before fence_async_shared by the storing thread.
void shared_store(uint32_t target, const void* from, size_t bytes);
void stmatrix_x4(uint32_t row, const uint32_t (&matrices)[4]);

// Warpgroup products: 64 x columns sums, 16 steps of the inner dimension, operands of 2 bytes an element.
enum class Half { bf16, f16 };
struct Registers {
  const void* at;
  size_t bytes;
};
struct Product {
  float* sums;  // this thread's columns / 2 accumulators
  unsigned columns;
  const uint32_t* a;  // this thread's 4 registers of A, or null: A lies in shared memory
  uint64_t a_descriptor, b_descriptor;
  bool add, a_transposed, b_transposed;
  Half type;
};
void wgmma(const Product& product);
void wgmma_fence(std::initializer_list<Registers> named);
void wgmma_commit();
void wgmma_wait(unsigned groups, std::initializer_list<Registers> named);

void setmaxnreg(unsigned registers, bool up);
bool elect();  // true in one lane of the warp, another one per seed

// Order between blocks: a release and an acquire on a counter in global memory.
void count(uint32_t* counter);
void wait_count(const uint32_t* counter, uint32_t value);

}  // namespace emu
