// What the attention kernels for sm_90a share: who does what in a block, tiles in shared memory as products read them,
// and the share of the work that falls to a block.
//
// A block has three warpgroups. One thread of the first copies tiles by tensor maps, stages ahead of the two others,
// which compute 64 rows each of a tile of 128. Stages pass between them by pairs of barriers: `full` when copies have
// landed, `free` when each of the computing warps has arrived.
//
// A launch has SM90_THREADS threads a block, SHARED_BYTES of dynamic shared memory, and as many blocks as `Shares` has
// ends. No block waits for another one, so there may be more blocks than can be resident. Maps are of 16-bit elements,
// with zeros outside of the matrix; a matrix may be a range of columns of a wider one. Pointers and distances of rows
// are multiples of 16 bytes. The scale is positive.
#pragma once
#include "attention.cuh"
#include "hopper.cuh"

#ifdef CPU_EMU
#define NO_UNROLL
#else
#define NO_UNROLL _Pragma("unroll 1")
#endif

// The statement is left out by the planted fault of that number.
#define UNLESS(fault) if constexpr (FAULT != (fault))

// SIZED_NAME(attention) is attention_bf16_128_64 where ELEM is bf16, QK_DIM 128 and V_DIM 64.
#define SIZED_JOINED(name, elem, qk_dim, v_dim) name##_##elem##_##qk_dim##_##v_dim
#define SIZED_JOIN(name, elem, qk_dim, v_dim) SIZED_JOINED(name, elem, qk_dim, v_dim)
#define SIZED_NAME(name) SIZED_JOIN(name, ELEM, QK_DIM, V_DIM)

constexpr int GROUP_THREADS = 128, GROUP_ROWS = 64, COMPUTING_GROUPS = 2;
constexpr int SM90_THREADS = (1 + COMPUTING_GROUPS) * GROUP_THREADS;
constexpr int COMPUTING_WARPS = COMPUTING_GROUPS * GROUP_THREADS / 32;
// Registers of a thread: of three warpgroups they are together what all have at first.
constexpr int FIRST_REGISTERS = 168;
constexpr int computing_registers(int copying) {
  return (3 * FIRST_REGISTERS - copying) / COMPUTING_GROUPS + (FAULT == 10 ? 8 : 0);
}
constexpr u32 MOST_SHARED_BYTES = 227 * 1024;

constexpr f32 LOG2_E = 1.4426950408889634f;

// What the host launches a kernel with: for so many features of queries and of values, rows of queries and of keys of a
// tile, and bytes of shared memory. The constants of the kernel, computed elsewhere, must be these.
#define LAUNCHED_WITH(qk_dim, v_dim, rows, keys, bytes)                                                 \
  static_assert(QK_DIM != (qk_dim) || V_DIM != (v_dim) || (ROWS == (rows) && KEYS == (keys)), "tiles"); \
  static_assert(QK_DIM != (qk_dim) || V_DIM != (v_dim) || SHARED_BYTES == (bytes), "shared memory")

// An item for one head: of queries, or of keys and values.
struct Unit {
  int item, head;
};

// The work of a block: block b does `units` from ends[b - 1] to ends[b], in order.
struct Shares {
  const Unit* units;
  const int* ends;
};
INLINE int first_unit(const Shares& shares) { return blockIdx.x ? shares.ends[blockIdx.x - 1] : 0; }
INLINE int end_unit(const Shares& shares) { return shares.ends[blockIdx.x]; }

// A tile in shared memory: panels of 64 features, in each of them 128 bytes a row with the swizzle of that width. It is
// what a tensor map with the box {64, ROWS, FEATURES / 64} copies. It begins at a multiple of 1024.
template <int ROWS, int FEATURES>
struct Tile {
  static_assert(FEATURES % 64 == 0 && ROWS % 8 == 0, "whole panels and patterns");
  static constexpr u32 PANEL = ROWS * 128, BYTES = PANEL * (FEATURES / 64);
  static constexpr int PANELS = FEATURES / 64;

  // Its rows from `row` on, and 16 features: an operand for sums over features.
  static MEMBER u64 features(u32 tile, int row, int step) {
    u32 at = FAULT == 1 ? step * 32 : step / 4 * PANEL + step % 4 * 32;
    return descriptor(tile + row * 128 + at, 16, 1024);
  }
  // Its features, and 16 rows: an operand for sums over rows, transposed.
  static MEMBER u64 rows(u32 tile, int step) {
    return FAULT == 2 ? descriptor(tile + step * 2048, 1024, PANEL) : descriptor(tile + step * 2048, PANEL, 1024);
  }
};

// A place in a ring of stages; `phase` is the parity of the round.
template <int STAGES>
struct Ring {
  u32 stage = 0, phase = 0;
  MEMBER void next() {
    if (++stage < STAGES) return;
    stage = 0;
    phase ^= 1;
  }
};

// Barriers of 8 bytes in a row: one for each stage.
INLINE u32 of_stage(u32 barriers, u32 stage) { return barriers + 8 * stage; }

INLINE void init_stages(u32 full, u32 free, int stages) {
  for (int s = 0; s < stages; s++) {
    mbarrier_init(of_stage(full, s), 1);
    mbarrier_init(of_stage(free, s), COMPUTING_WARPS);
  }
}
// The barriers that thread 0 initialised, for everybody.
INLINE void publish_barriers() {
  if (threadIdx.x == 0) UNLESS(4) fence_mbarrier_init();
  UNLESS(5) __syncthreads();
}

// One arrival for each warp: after products, for which all its lanes have waited, or after reads of each lane's own.
INLINE void arrive_warp(u32 bar) {
  if (threadIdx.x % 32 == 0) mbarrier_arrive(bar);
}
INLINE void arrive_warp_after_reads(u32 bar) {
  UNLESS(31) __syncwarp();
  arrive_warp(bar);
}

// Copies a tile into its stage once that is free: a head's rows from `row` on. `tiles`, `full` and `free` are where
// those of all stages begin.
template <class Tile, int STAGES>
INLINE void copy_stage(u32 tiles, u32 full, u32 free, const TensorMap* map, Ring<STAGES> ring, int row, int head) {
  u32 landed = of_stage(full, ring.stage);
  UNLESS(7) mbarrier_wait(of_stage(free, ring.stage), ring.phase ^ (FAULT != 6));
  mbarrier_arrive_expect(landed, FAULT == 8 ? Tile::BYTES / 2 : FAULT == 9 ? Tile::BYTES * 2 : Tile::BYTES);
  tensor_load(tiles + ring.stage * Tile::BYTES, map, landed, 0, row, head * Tile::PANELS);
}
// Copies the two tiles that an item keeps, which follow each other, once those of the last item are done with.
template <class First, class Second>
INLINE void copy_kept(u32 tiles, u32 full, u32 free, const TensorMap* first, const TensorMap* second, Ring<1> ring,
                      int row, int head) {
  mbarrier_wait(free, ring.phase ^ 1);
  mbarrier_arrive_expect(full, First::BYTES + Second::BYTES);
  tensor_load(tiles, first, full, 0, row, head * First::PANELS);
  tensor_load(tiles + First::BYTES, second, full, 0, row, head * Second::PANELS);
}

// Issues the products of a warpgroup's rows of one tile with all rows of another one, over features.
template <class E, class A, class B, int N>
INLINE void issue_over_features(f32 (&products)[N], u32 a, u32 b, int group) {
  static_assert(A::PANELS == B::PANELS, "the same features");
  UNROLL for (int step = 0; step < A::PANELS * 4; step++)
    wgmma<E, 0, 0>(products, A::features(a, group * GROUP_ROWS, step), B::features(b, 0, step), step > 0);
  wgmma_commit();
}
// Issues what a warpgroup adds to sums: its operand in registers with a tile, over the rows of the tile.
template <class E, class B, int STEPS, int N>
INLINE void issue_over_rows(f32 (&sums)[N], const u32 (&a)[STEPS][4], u32 b) {
  UNROLL for (int step = 0; step < STEPS; step++)
    wgmma<E, FAULT != 3>(sums, a[step], B::rows(b, step), 1);
  wgmma_commit();
}

// Where a thread is among the computing ones, and which cells of a 64-row product its accumulators are:
// accumulator 4 c + 2 h + e is of row `row + 8 h` and column `8 c + column + e`.
struct Place {
  int group, row, column;  // the row counts from the warpgroup's first
  MEMBER Place()
      : group(threadIdx.x / GROUP_THREADS - 1),
        row(threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4),
        column(threadIdx.x % 4 * 2) {}
};

INLINE u32 pack(bf16, f32 low, f32 high) { return pack_bf16(low, high); }
INLINE u32 pack(f16, f32 low, f32 high) { return pack_f16(low, high); }

// Accumulators, rounded, as the left operand of sums over their columns.
template <class E, int N>
INLINE void pack_operand(u32 (&a)[N / 8][4], const f32 (&x)[N]) {
  UNROLL for (int k = 0; k < N / 8; k++) {
    UNROLL for (int i = 0; i < 4; i++)
      a[k][i] = pack(E(), x[8 * k + 2 * i], x[8 * k + 2 * i + 1]);
  }
}

// Scores of a tile of queries with a visit's keys: minus infinity where they do not attend. A whole tile has 2 N keys.
template <int N>
INLINE void mask_scores(f32 (&s)[N], const Tiles& tiles, const Visit& visit, const Item& item, const Place& place) {
  if (visit.table < 0 && visit.rows == 2 * N) return;
  UNROLL for (int h = 0; h < 2; h++) {
    Interval keys = attended(tiles, visit, place.group * GROUP_ROWS + place.row + 8 * h, item.rows, visit.rows);
    UNROLL for (int c = 0; c < N / 4; c++) {
      UNROLL for (int e = 0; e < 2; e++) {
        if (!contains(keys, 8 * c + place.column + e)) s[4 * c + 2 * h + e] = -INF;
      }
    }
  }
}
