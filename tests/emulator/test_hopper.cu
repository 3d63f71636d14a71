// Small kernels for what the attention kernels do not use of hopper.cuh: other ranks of tensor maps, copies in a row,
// stores by a map, sums in global memory in a prescribed order. NVRTC takes them as well.
#include "attention_sm90.cuh"

constexpr int SIDE = 64;  // of a square matrix of bf16: one panel
using Square = Tile<SIDE, SIDE>;

// Copies a box of two tensors of rank 2 and 4 and some bytes in a row to `out`, as they come to lie in shared memory.
constexpr u32 PLANE_BYTES = 4096, SOLID_BYTES = 2048, LINE_BYTES = 256;
KERNEL void __launch_bounds__(GROUP_THREADS, 1)
    copy_boxes(const __grid_constant__ TensorMap plane, const __grid_constant__ TensorMap solid, const u32* line,
               u32* out, int x, int y, int z, int w) {
  DYNAMIC_SHARED(shared);
  constexpr u32 BYTES = PLANE_BYTES + SOLID_BYTES + LINE_BYTES;
  u32 base = shared_address(shared), full = base + BYTES;
  if (threadIdx.x == 0) {
    prefetch_map(&plane);
    mbarrier_init(full, 1);
    fence_mbarrier_init();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect(full, BYTES);
    tensor_load(base, &plane, full, x, y);
    tensor_load(base + PLANE_BYTES, &solid, full, x, y, z, w);
    bulk_load(base + PLANE_BYTES + SOLID_BYTES, line, LINE_BYTES, full);
  }
  mbarrier_wait(full, 0);
  for (int i = threadIdx.x; i < (int)BYTES / 4; i += GROUP_THREADS) out[i] = ((const u32*)shared)[i];
}

// y = x x^T of 64 x 64 matrices, written over x in shared memory, and from there by a map. Rows past the end are not.
KERNEL void __launch_bounds__(GROUP_THREADS, 1)
    square(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap y, int row) {
  DYNAMIC_SHARED(shared);
  u32 base = shared_address(shared), full = base + Square::BYTES;
  if (threadIdx.x == 0) {
    mbarrier_init(full, 1);
    fence_mbarrier_init();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect(full, Square::BYTES);
    tensor_load(base, &x, full, 0, row, 0);
  }
  mbarrier_wait(full, 0);
  f32 sums[SIDE / 2];
  wgmma_fence(sums);
  UNROLL for (int step = 0; step < SIDE / 16; step++) {
    u64 operand = Square::features(base, 0, step);
    wgmma<bf16, 0, 0>(sums, operand, operand, step > 0);
  }
  wgmma_commit();
  wgmma_wait<0>(sums);
  UNLESS(28) __syncthreads();  // all four warps are done with x

  u32 packed[SIDE / 16][4];
  pack_operand<bf16>(packed, sums);
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, line = warp * 16 + lane % 16;
  UNROLL for (int step = 0; step < SIDE / 16; step++) {
    int byte = step * 32 + lane / 16 * 16;
    store_matrices(base + line * 128 + (FAULT == 22 ? byte : byte ^ line % 8 * 16), packed[step]);
  }
  UNLESS(23) fence_async_shared();
  UNLESS(24) __syncthreads();
  if (threadIdx.x == 0) {
    tensor_store(&y, base, 0, row, 0);
    bulk_commit();
    UNLESS(25) bulk_wait_read<0>();
  }
}

// Each block adds `rounds` vectors of 128 x 4 to the same place: block b's r-th is the (r * gridDim + b)-th of all, so
// that bits do not depend on who comes first.
constexpr u32 VECTOR_BYTES = GROUP_THREADS * 16;
KERNEL void __launch_bounds__(GROUP_THREADS, 1) add_in_order(const f32* terms, f32* sum, u32* counter, int rounds) {
  DYNAMIC_SHARED(shared);
  u32 base = shared_address(shared);
  for (int r = 0; r < rounds; r++) {
    u32 order = r * gridDim.x + blockIdx.x;
    const f32* own = terms + (order * GROUP_THREADS + threadIdx.x) * 4;
    __syncthreads();  // what was added before has landed
    store_shared(base + threadIdx.x * 16, own[0], own[1], own[2], own[3]);
    UNLESS(42) fence_async_shared();
    UNLESS(43) __syncthreads();
    if (threadIdx.x == 0) {
      UNLESS(45) wait_count(counter, order);
      bulk_add(sum, base, VECTOR_BYTES);
      bulk_commit();
      if constexpr (FAULT == 46) bulk_wait_read<0>();  // the sum may still be under way
      else bulk_wait_written<0>();
      count(counter);
    }
  }
}

// The first warpgroup hands words to the others by a named barrier, and registers.
KERNEL void __launch_bounds__(SM90_THREADS, 1) hand_over(u32* out) {
  DYNAMIC_SHARED(shared);
  u32 base = shared_address(shared);
  if (threadIdx.x < GROUP_THREADS) {
    give_registers<24>();
    store_shared(base + threadIdx.x * 4, threadIdx.x * 3);
    named_arrive(3, SM90_THREADS);
    if (threadIdx.x < 32 && elect_one()) out[0] = 1;
  } else {
    take_registers<240>();
    named_sync(3, SM90_THREADS);
    out[threadIdx.x] = ((const u32*)shared)[threadIdx.x % GROUP_THREADS];
  }
}
