// How the asynchronous units of a Hopper block behave at their most unhelpful; hopper.h says what callers see.
#include "hopper.h"

#include <algorithm>
#include <deque>
#include <map>
#include <memory>
#include <utility>
#include <vector>

namespace emu {

namespace {

constexpr uint32_t MAP_MAGIC = 0x544d4150, POISON = 0x7fc0dead;
constexpr unsigned MAX_COLUMNS = 256, INNER = 16;

struct Barrier {
  unsigned count, pending, phase, owner;
  long bytes;    // expected and not yet arrived
  bool visible;  // to the units that copy
  std::vector<unsigned> waiters;
};

// The box of a tensor at coordinates, or `bytes` bytes in a row where `line` is not null.
struct Place {
  Map map;
  int at[5];
  const void* line;
  uint32_t bytes;
};

// Tokens: `issued` carries what the issuer knew to the copy, `landed` what the copy did to whoever waits for it.
struct Tokens {
  char issued, landed;
};

struct Load {
  Place from;
  uint32_t target, bar;
  std::shared_ptr<Tokens> tokens;
};

struct Store {
  Place to;
  uint32_t source;
  bool adds;
  uint64_t hash;
  std::vector<uint8_t> data;  // once it was read
  std::shared_ptr<Tokens> tokens;
};

struct Stores {  // of a thread
  std::vector<Store> open, landing;
  std::vector<std::vector<Store>> groups;
};

struct Operand {
  uint64_t descriptor;
  unsigned rows;
  bool transposed;
};

struct Sums {  // accumulators of a warp that are in flight: 16 x columns
  float* registers[32];
  unsigned columns, in_flight;
  std::vector<float> values;
};

struct Running {  // a product that was issued by a warp and not yet retired
  Sums* sums;
  Operand a, b;
  bool a_in_registers;
  const uint32_t* a_registers[32];
  uint32_t a_values[32][4];
  uint64_t a_hash, b_hash;
};

struct Products {  // of a warp
  std::vector<Running> open;
  std::vector<std::vector<Running>> groups;
};

// What the warps of a warpgroup issued: the same, whenever each of them gets there.
struct Sequence {
  std::vector<uint64_t> products;
  size_t at[4] = {};
};

// Registers as a wgmma.fence of a thread found them.
struct Fenced {
  const char* at;
  std::vector<char> values;
};

}  // namespace

struct Hopper {
  std::map<uint32_t, Barrier> barriers;
  std::vector<Load> loads;
  std::vector<Stores> stores;
  std::vector<Products> products;
  std::vector<Sequence> sequences;
  std::map<float*, std::unique_ptr<Sums>> sums;  // by the registers of the warp's first thread
  std::vector<std::vector<Fenced>> named;
  std::vector<uint16_t> unfenced;                  // by 16 bytes of shared memory: 1 + the thread that stored, or 0
  std::vector<std::vector<uint32_t>> unfenced_of;  // the same by thread
  std::vector<unsigned> registers;                 // of a thread of each warp
  long spare_registers;
  std::vector<unsigned> register_waiters;
};

static Hopper& hopper() { return *B->hopper; }
static uint8_t* memory(uint32_t address) { return B->smem + (address - SMEM_BASE); }

static uint64_t mix(uint64_t hash, uint64_t value) {
  hash = (hash ^ value) * 0x9E3779B97F4A7C15ull;
  return hash ^ hash >> 29;
}
static uint64_t mix_line(uint64_t hash, const uint8_t* bytes16) {
  uint64_t words[2];
  memcpy(words, bytes16, 16);
  return mix(hash ^ words[1], words[0]);
}

// memcmp, but not one that ThreadSanitizer takes for an access of the kernel.
static bool same_words(const void* x, const void* y, size_t bytes) {
  uint32_t differ = 0;
  for (size_t i = 0; i < bytes; i += 4) {
    uint32_t a, b;
    memcpy(&a, (const char*)x + i, 4);
    memcpy(&b, (const char*)y + i, 4);
    differ |= a ^ b;
  }
  return !differ;
}

// ---- Beginning and end of a block

void start_async(size_t bytes) {
  B->hopper = new Hopper;
  Hopper& h = hopper();
  unsigned threads = B->threads, warps = threads / 32;
  h.stores.resize(threads);
  h.products.resize(warps);
  h.sequences.resize((warps + 3) / 4);
  h.named.resize(threads);
  h.unfenced.assign(bytes / 16 + 1, 0);
  h.unfenced_of.resize(threads);
  // setmaxnreg moves registers within what the block was launched with.
  h.registers.assign(warps, std::min(255u, 65536 / threads) / 8 * 8);
  h.spare_registers = 0;
}

static void land(Store& store);

static const char* leftover() {
  Hopper& h = hopper();
  if (!h.loads.empty()) return "ends with bulk copies on their way";
  for (auto& p : h.products)
    if (!p.open.empty() || !p.groups.empty()) return "ends with wgmma that nobody waited for";
  for (auto& s : h.sequences)
    for (size_t at : s.at)
      if (at != s.at[0]) return "ends with warps of a warpgroup that issued different numbers of wgmma";
  for (auto& s : h.stores) {
    if (!s.open.empty()) return "ends with bulk stores that were not committed";
    if (!s.groups.empty()) return "ends with bulk stores whose shared memory nobody waited for";
  }
  return nullptr;
}

void end_block() {
  if (!B->failed) {
    for (auto& s : hopper().stores) {
      for (auto& store : s.landing) {
        land(store);
        ACQUIRE(&store.tokens->landed);  // for whoever comes after the launch
      }
    }
    if (const char* what = leftover()) {
      B->failed = true;
      B->why = "block " + std::to_string(B->idx.x) + ": " + what;
    }
  }
  delete B->hopper;
  B->hopper = nullptr;
}

// ---- Barriers in shared memory

static Barrier& barrier(uint32_t bar, const char* who) {
  auto found = hopper().barriers.find(bar);
  if (found == hopper().barriers.end()) fail("%s: there is no mbarrier at %u", who, bar);
  READS(memory(bar), 8);
  return found->second;
}

static void end_phase_if_complete(Barrier& b) {
  if (b.pending || b.bytes) return;
  b.phase ^= 1;
  b.pending = b.count;
  for (unsigned i : std::exchange(b.waiters, {})) wake(i);
}

void mbarrier_init(uint32_t bar, unsigned count) {
  at(bar, 8, "mbarrier.init");
  if (bar % 8) fail("mbarrier.init: %u is not aligned", bar);
  WRITES(memory(bar), 8);
  hopper().barriers[bar] = {count, count, 0, B->cur, 0, false, {}};
}

void mbarrier_arrive(uint32_t bar, long bytes) {
  Barrier& b = barrier(bar, "mbarrier.arrive");
  if (b.pending == 0) fail("mbarrier %u: more arrivals than its count of %u", bar, b.count);
  RELEASE(&b);
  b.bytes += bytes;
  b.pending--;
  end_phase_if_complete(b);
}

void mbarrier_wait(uint32_t bar, unsigned parity) {
  Barrier& b = barrier(bar, "mbarrier.try_wait");
  while (b.phase == parity) {
    b.waiters.push_back(B->cur);
    block_on("mbarrier.try_wait", bar);
  }
  ACQUIRE(&b);
}

void fence_mbarrier_init() {
  for (auto& [address, b] : hopper().barriers)
    if (b.owner == B->cur) b.visible = true;
}

// ---- Generic stores, which the asynchronous units see after a fence

void fence_async_shared() {
  Hopper& h = hopper();
  for (uint32_t line : h.unfenced_of[B->cur])
    if (h.unfenced[line] == B->cur + 1) h.unfenced[line] = 0;
  h.unfenced_of[B->cur].clear();
  fence_mbarrier_init();
}

static void store_as(unsigned thread, uint32_t target, const void* from, size_t bytes) {
  Hopper& h = hopper();
  memcpy(memory(target), from, bytes);
  for (uint32_t line = (target - SMEM_BASE) / 16; line <= (target - SMEM_BASE + bytes - 1) / 16; line++) {
    h.unfenced[line] = thread + 1;
    h.unfenced_of[thread].push_back(line);
  }
}

void shared_store(uint32_t target, const void* from, size_t bytes) {
  at(target, bytes, "st.shared");
  if (target % bytes) fail("st.shared: %u is not aligned to %zu", target, bytes);
  WRITES(memory(target), bytes);
  store_as(B->cur, target, from, bytes);
}

void stmatrix_x4(uint32_t row, const uint32_t (&matrices)[4]) {
  struct Lane {
    uint32_t row;
    const uint32_t* r;
  } mine{row, matrices};
  at(row, 16, "stmatrix");
  if (row % 16) fail("stmatrix: %u is not aligned to 16", row);
  // Lanes 8i..8i+7 give the rows of matrix i; lane l holds row l / 4, columns 2 (l % 4) and the next.
  meet_warp(
      "stmatrix", &mine,
      [](void** lanes) {
        for (int i = 0; i < 4; i++)
          for (int l = 0; l < 32; l++) {
            uint32_t target = ((Lane*)lanes[8 * i + l / 4])->row + 4 * (l % 4);
            WRITES(memory(target), 4);
            store_as(B->cur / 32 * 32 + l, target, &((Lane*)lanes[l])->r[i], 4);
          }
      },
      false);
}

static void check_fenced(uint32_t address, const char* who) {
  unsigned thread = hopper().unfenced[(address - SMEM_BASE) / 16];
  if (thread)
    fail("%s at shared address %u, which thread %u stored to without fence.proxy.async since", who, address,
         thread - 1);
}

// ---- Bulk copies

std::string encode_map(void* target, void* base, unsigned bytes, unsigned rank, const uint64_t* dims,
                       const uint64_t* strides, const uint32_t* box, unsigned swizzle) {
  const unsigned widths[] = {256 * bytes, 32, 64, 128};
  if ((uintptr_t)target % 128) return "the map is not aligned to 128";
  if (!base || (uintptr_t)base % 16) return "the base is not aligned to 16";
  if (rank < 1 || rank > 5) return "rank " + std::to_string(rank);
  if (swizzle > 3) return "swizzle " + std::to_string(swizzle);
  if (box[0] * bytes % 16) return "the inner box is not a multiple of 16 bytes";
  if (box[0] * bytes > widths[swizzle]) return "the inner box is wider than the swizzle";
  Map map{MAP_MAGIC, (uint8_t)rank, (uint8_t)bytes, (uint8_t)swizzle, (uint8_t*)base, {}, {}, {}};
  for (unsigned i = 0; i < rank; i++) {
    if (dims[i] < 1 || dims[i] > 1ull << 32) return "dimension " + std::to_string(i) + " is " + std::to_string(dims[i]);
    if (box[i] < 1 || box[i] > 256) return "box " + std::to_string(i) + " is " + std::to_string(box[i]);
    map.dims[i] = dims[i];
    map.box[i] = box[i];
    if (i == 0) continue;
    if (strides[i - 1] % 16 || strides[i - 1] >= 1ull << 40) return "stride " + std::to_string(strides[i - 1]);
    map.strides[i - 1] = strides[i - 1];
  }
  memset(target, 0, 128);
  memcpy(target, &map, sizeof map);
  return "";
}

// By bits of a descriptor: 1, 2, 3 = 128, 64, 32 bytes.
static uint32_t swizzled(uint32_t address, unsigned mode) {
  const uint32_t moved[] = {0, 0x70, 0x30, 0x10};
  return address ^ (address >> 3 & moved[mode]);
}

static Place box_of(const void* map, Coordinates at, const char* who) {
  Place place{};
  if ((uintptr_t)map % 128) fail("%s: the tensor map is not aligned to 128", who);
  memcpy(&place.map, map, sizeof place.map);
  if (place.map.magic != MAP_MAGIC) fail("%s: this is no tensor map", who);
  if (at.size() != place.map.rank) fail("%s: %zu coordinates for rank %u", who, at.size(), place.map.rank);
  std::copy(at.begin(), at.end(), place.at);
  place.bytes = place.map.bytes;
  for (unsigned i = 0; i < place.map.rank; i++) place.bytes *= place.map.box[i];
  return place;
}

static Place line_of(const void* line, uint32_t bytes, const char* who) {
  if ((uintptr_t)line % 16 || bytes % 16 || !bytes)
    fail("%s: %u bytes at %p are not multiples of 16", who, bytes, line);
  Place place{};
  place.line = line;
  place.bytes = bytes;
  return place;
}

static void check_alignment(const Place& place, uint32_t shared, const char* who) {
  // A pattern of 128 bytes repeats every 1024.
  unsigned align = place.line ? 16 : place.map.swizzle == 3 ? 1024 : place.map.swizzle == 2 ? 512 : 128;
  if (shared % align) fail("%s: shared address %u is not aligned to %u", who, shared, align);
}

// Every 16 bytes of a place: each(shared address, global address, first valid byte, end of valid bytes).
template <class F>
static void each_line(const Place& place, uint32_t shared, F each) {
  if (place.line) {
    for (uint32_t i = 0; i < place.bytes; i += 16) each(shared + i, (uint8_t*)place.line + i, 0, 16);
    return;
  }
  const Map& m = place.map;
  unsigned inner = m.box[0] * m.bytes, mode = m.swizzle ? 4 - m.swizzle : 0;
  for (uint32_t row = 0; row < place.bytes / inner; row++) {
    bool inside = true;
    uint8_t* global = m.base;
    for (unsigned i = 1, rest = row; i < m.rank; rest /= m.box[i++]) {
      long x = place.at[i] + (long)(rest % m.box[i]);
      inside &= x >= 0 && x < (long)m.dims[i];
      global += x * (long)m.strides[i - 1];
    }
    for (unsigned b = 0; b < inner; b += 16) {
      long first = place.at[0] + (long)(b / m.bytes), per = 16 / m.bytes;
      long from = inside ? std::max(0l, -first) : 0, to = inside ? std::min(per, (long)m.dims[0] - first) : 0;
      each(swizzled(shared + row * inner + b, mode), global + first * m.bytes, from * m.bytes,
           std::max(from, to) * m.bytes);
    }
  }
}

// For ThreadSanitizer every copy is a thread of its own, which knows what its issuer knew: copies are not ordered among
// each other, so one must not pass on what another one's barrier says.
struct Engine {
#ifdef EMU_TSAN
  void *before = __tsan_get_current_fiber(), *mine = __tsan_create_fiber(0);
  Engine(Tokens& tokens) {
    __tsan_switch_to_fiber(mine, 1);
    ACQUIRE(&tokens.issued);
  }
  ~Engine() {
    __tsan_switch_to_fiber(before, 1);
    __tsan_destroy_fiber(mine);
  }
#else
  Engine(Tokens&) {}
#endif
};

static std::shared_ptr<Tokens> issue() {
  auto tokens = std::make_shared<Tokens>();
  RELEASE(&tokens->issued);
  return tokens;
}

static void land(const Load& load) {
  Engine engine(*load.tokens);
  each_line(load.from, load.target, [](uint32_t shared, uint8_t* global, long from, long to) {
    WRITES(memory(shared), 16);
    memset(memory(shared), 0, 16);
    if (to <= from) return;
    READS(global + from, to - from);
    memcpy(memory(shared) + from, global + from, to - from);
  });
  B->copies++;
  Barrier& b = hopper().barriers[load.bar];
  RELEASE(&b);
  b.bytes -= load.from.bytes;
  if (b.bytes < 0 && b.pending == 0) {
    B->failed = true;
    B->why = "mbarrier " + std::to_string(load.bar) + ": more bytes arrived than were expected";
  }
  end_phase_if_complete(b);
}

bool progress() {
  auto& loads = hopper().loads;
  if (loads.empty()) return false;
  bool any = B->opt.async == Async::Random || B->opt.order == Order::Random;
  size_t i = any ? B->random() % loads.size() : 0;
  Load load = loads[i];
  loads.erase(loads.begin() + i);
  land(load);
  return true;
}

static void start_load(const Place& from, uint32_t target, uint32_t bar, const char* who) {
  at(target, from.bytes, who);
  check_alignment(from, target, who);
  if (!barrier(bar, who).visible) fail("%s: mbarrier %u was initialised without fence.mbarrier_init", who, bar);
  each_line(from, target, [who](uint32_t shared, uint8_t*, long, long) {
    check_fenced(shared, who);
    memset(memory(shared), 0xFF, 16);  // nothing may be read there until it has landed
  });
  Load load{from, target, bar, issue()};
  if (B->opt.async == Async::Eager) land(load);
  else hopper().loads.push_back(load);
}
void tensor_load(uint32_t target, const void* map, uint32_t bar, Coordinates at) {
  start_load(box_of(map, at, "cp.async.bulk.tensor"), target, bar, "cp.async.bulk.tensor");
}
void bulk_load(uint32_t target, const void* source, uint32_t bytes, uint32_t bar) {
  start_load(line_of(source, bytes, "cp.async.bulk"), target, bar, "cp.async.bulk");
}

static uint64_t source_hash(const Store& store) {
  uint64_t hash = 0;
  each_line(store.to, store.source, [&](uint32_t shared, uint8_t*, long, long) {
    READS(memory(shared), 16);
    hash = mix_line(hash, memory(shared));
  });
  return hash;
}

static void start_store(const Place& to, uint32_t source, bool adds, const char* who) {
  at(source, to.bytes, who);
  check_alignment(to, source, who);
  each_line(to, source, [who](uint32_t shared, uint8_t*, long, long) { check_fenced(shared, who); });
  Store store{to, source, adds, 0, {}, issue()};
  store.hash = source_hash(store);
  hopper().stores[B->cur].open.push_back(store);
}
void tensor_store(const void* map, uint32_t source, Coordinates at) {
  start_store(box_of(map, at, "cp.async.bulk.tensor store"), source, false, "cp.async.bulk.tensor store");
}
void bulk_add(float* target, uint32_t source, uint32_t bytes) {
  start_store(line_of(target, bytes, "cp.reduce.async.bulk"), source, true, "cp.reduce.async.bulk");
}

void bulk_commit() {
  Stores& mine = hopper().stores[B->cur];
  mine.groups.push_back(std::exchange(mine.open, {}));
}

static void read(Store& store) {
  if (source_hash(store) != store.hash)
    fail("bulk store from shared address %u: its source changed before it was read", store.source);
  each_line(store.to, store.source, [&](uint32_t shared, uint8_t*, long, long) {
    store.data.insert(store.data.end(), memory(shared), memory(shared) + 16);
  });
  B->copies++;
}

static void land(Store& store) {
  Engine engine(*store.tokens);
  const uint8_t* line = store.data.data();
  each_line(store.to, store.source, [&](uint32_t, uint8_t* global, long from, long to) {
    if (to > from) {
      WRITES(global + from, to - from);
      if (!store.adds) memcpy(global + from, line + from, to - from);
      else
        for (int i = 0; i < 4; i++) ((float*)global)[i] += ((const float*)line)[i];
    }
    line += 16;
  });
  RELEASE(&store.tokens->landed);
}

// With `only_read` the writes land later: when they are waited for, or when the block ends.
void bulk_wait(unsigned groups, bool only_read) {
  Stores& mine = hopper().stores[B->cur];
  while (mine.groups.size() > groups) {
    for (Store& store : mine.groups.front()) {
      read(store);
      mine.landing.push_back(std::move(store));
    }
    mine.groups.erase(mine.groups.begin());
  }
  if (only_read) return;
  for (Store& store : mine.landing) {
    land(store);
    ACQUIRE(&store.tokens->landed);
  }
  mine.landing.clear();
}

// ---- Warpgroup products

// Every 16 bytes of a `rows` x 16 operand: each(shared address, first row, first of the inner dimension).
template <class F>
static void each_line(const Operand& x, unsigned first_row, unsigned rows, F each) {
  uint32_t start = (x.descriptor & 0x3FFF) << 4;
  uint32_t leading = (x.descriptor >> 16 & 0x3FFF) << 4, stride = (x.descriptor >> 32 & 0x3FFF) << 4;
  unsigned mode = x.descriptor >> 62, width = mode ? 256 >> mode : 16;
  if (x.descriptor >> 49 & 7) fail("wgmma: a base offset is not modelled");
  if (mode && (start & (8 * width - 1) & ~(width - 1)))
    fail("wgmma: descriptor starts at %u, inside a swizzle pattern", start);
  if (!x.transposed) {  // rows of `width` bytes, `stride` bytes between groups of 8 rows
    if (mode && (start & (width - 1)) + 32 > width) fail("wgmma: 16 elements cross the swizzle's width");
    for (unsigned r = first_row; r < first_row + rows; r++)
      for (unsigned k = 0; k < INNER; k += 8) {
        uint32_t inner = mode ? k * 2 : k / 8 * leading;
        each(swizzled(start + r % 8 * width + r / 8 * stride + inner, mode), r - first_row, k);
      }
  } else {  // `width` bytes of rows per inner index, `stride` to the next 8 of those, `leading` to the next rows
    if (!mode) fail("wgmma: a transposed operand without swizzle is not modelled");
    unsigned per = width / 2;
    for (unsigned k = 0; k < INNER; k++)
      for (unsigned r = first_row; r < first_row + rows; r += 8)
        each(swizzled(start + r % per * 2 + r / per * leading + k % 8 * width + k / 8 * stride, mode), r - first_row,
             k);
  }
}

static uint64_t operand_hash(const Operand& x) {
  uint64_t hash = 0;
  const uint16_t* unfenced = hopper().unfenced.data();
  const size_t bytes = B->smem_bytes;
  each_line(x, 0, x.rows, [&](uint32_t address, unsigned, unsigned) {
    const uint8_t* line = address - SMEM_BASE + 16 <= bytes ? memory(address) : at(address, 16, "wgmma");
    if (unfenced[(address - SMEM_BASE) / 16]) check_fenced(address, "wgmma");
    READS(line, 16);
    hash = mix_line(hash, line);
  });
  return hash;
}

static float value_of(uint16_t bits, Half type) {
  if (type == Half::f16) {
    _Float16 x;
    memcpy(&x, &bits, 2);
    return x;
  }
  uint32_t wide = (uint32_t)bits << 16;
  float x;
  memcpy(&x, &wide, 4);
  return x;
}

static void operand_values(const Operand& x, unsigned first_row, unsigned rows, Half type, float* values,
                           unsigned row_stride, unsigned inner_stride) {
  each_line(x, first_row, rows, [&](uint32_t address, unsigned r, unsigned k) {
    uint16_t bits[8];
    memcpy(bits, memory(address), 16);
    unsigned step = x.transposed ? row_stride : inner_stride;
    for (unsigned i = 0; i < 8; i++) values[r * row_stride + k * inner_stride + i * step] = value_of(bits[i], type);
  });
}

// Accumulator i of a lane.
static unsigned row_of(unsigned lane, unsigned i) { return lane / 4 + 8 * (i >> 1 & 1); }
static unsigned column_of(unsigned lane, unsigned i) { return 8 * (i >> 2) + 2 * (lane & 3) + (i & 1); }

// 8 rows by 8 columns at a time, which stay in registers.
static void multiply(float* sums, const float* a, const float* b, unsigned columns) {
  typedef float Eight __attribute__((vector_size(32), aligned(4)));
  for (unsigned j = 0; j < columns; j += 8)
    for (unsigned i = 0; i < 16; i += 8) {
      Eight block[8];
      for (unsigned r = 0; r < 8; r++) block[r] = *(const Eight*)&sums[(i + r) * columns + j];
      for (unsigned k = 0; k < INNER; k++) {
        Eight row = *(const Eight*)&b[k * columns + j];
        for (unsigned r = 0; r < 8; r++) block[r] += a[(i + r) * INNER + k] * row;
      }
      for (unsigned r = 0; r < 8; r++) *(Eight*)&sums[(i + r) * columns + j] = block[r];
    }
}

// The B operands that were read last: four warps and both warpgroups read the same.
struct Cached {
  uint64_t descriptor = 0, hash = 0;
  unsigned columns = 0;
  bool transposed = false;
  Half type = Half::bf16;
  float values[INNER * MAX_COLUMNS];
};
static const float* b_values(const Operand& b, uint64_t hash, Half type) {
  static thread_local Cached cache[32];
  Cached& c = cache[(hash ^ b.descriptor) % 32];
  bool same = c.descriptor == b.descriptor && c.hash == hash && c.columns == b.rows && c.transposed == b.transposed &&
              c.type == type;
  if (!same) {
    c.descriptor = b.descriptor;
    c.hash = hash;
    c.columns = b.rows;
    c.transposed = b.transposed;
    c.type = type;
    operand_values(b, 0, b.rows, type, c.values, 1, b.rows);
  }
  return c.values;
}

static const char* as_fenced(unsigned thread, const void* at, size_t bytes) {
  for (auto& n : hopper().named[thread]) {
    const char* first = (const char*)at;
    if (first >= n.at && first + bytes <= n.at + n.values.size()) return n.values.data() + (first - n.at);
  }
  return nullptr;
}
static void forget(unsigned thread, const void* at) {
  auto& named = hopper().named[thread];
  named.erase(std::remove_if(named.begin(), named.end(), [at](Fenced& n) { return n.at == at; }), named.end());
}

static void check_registers(unsigned thread, const Product& p, bool fresh) {
  size_t bytes = p.columns / 2 * 4;
  const char* sums = as_fenced(thread, p.sums, bytes);
  if (!sums)
    fail("wgmma: accumulators of thread %u were not named by a wgmma.fence since they were last waited for", thread);
  if (fresh && p.add && !same_words(p.sums, sums, bytes))
    fail("wgmma: accumulators of thread %u changed since wgmma.fence", thread);
  if (!p.a) return;
  const char* a = as_fenced(thread, p.a, 16);
  if (!a || !same_words(p.a, a, 16)) fail("wgmma: registers of A of thread %u changed since wgmma.fence", thread);
}

static void check_sequence(unsigned w, const Product& p) {
  Sequence& sequence = hopper().sequences[w / 4];
  uint64_t id = mix(mix(mix(p.columns, p.a_descriptor), p.b_descriptor), p.a_transposed * 2 + p.b_transposed);
  size_t at = sequence.at[w % 4]++;
  if (at == sequence.products.size()) sequence.products.push_back(id);
  else if (sequence.products[at] != id) fail("wgmma: another instruction than that of the warpgroup's other warps");
}

static Sums& take_sums(void** lanes) {
  const Product& first = *(Product*)lanes[0];
  auto& sums = hopper().sums[first.sums];
  bool fresh = !sums;
  if (fresh) {
    sums = std::make_unique<Sums>();
    sums->columns = first.columns;
    sums->in_flight = 0;
    sums->values.resize(16 * first.columns);
  }
  if (sums->columns != first.columns) fail("wgmma: another shape on accumulators that are in flight");
  for (unsigned l = 0; l < 32; l++) {
    const Product& p = *(Product*)lanes[l];
    check_registers(warp() * 32 + l, p, fresh);
    if (!fresh) continue;
    sums->registers[l] = p.sums;
    for (unsigned i = 0; i < p.columns / 2; i++) {
      sums->values[row_of(l, i) * p.columns + column_of(l, i)] = p.sums[i];
      memcpy(&p.sums[i], &POISON, 4);
    }
  }
  return *sums;
}

static void a_from_registers(Running& r, void** lanes, Half type, float* a) {
  for (unsigned l = 0; l < 32; l++) {
    r.a_registers[l] = ((Product*)lanes[l])->a;
    memcpy(r.a_values[l], r.a_registers[l], 16);
    for (int i = 0; i < 4; i++)
      for (int e = 0; e < 2; e++)
        a[(l / 4 + 8 * (i & 1)) * INNER + 2 * (l & 3) + e + 8 * (i >> 1)] = value_of(r.a_values[l][i] >> 16 * e, type);
  }
}

// Each warp is taken by itself with its 16 rows, since the hardware promises no meeting of the four.
static void issue_product(void** lanes) {
  const Product& p = *(Product*)lanes[0];
  unsigned w = warp();
  for (int l = 1; l < 32; l++) {
    const Product& other = *(Product*)lanes[l];
    if (other.a_descriptor != p.a_descriptor || other.b_descriptor != p.b_descriptor || other.add != p.add)
      fail("wgmma: descriptors or scale differ between threads of a warp");
  }
  check_sequence(w, p);
  Sums& sums = take_sums(lanes);
  Running r{&sums,
            {p.a_descriptor, 64, p.a_transposed},
            {p.b_descriptor, p.columns, p.b_transposed},
            p.a != nullptr,
            {},
            {},
            0,
            0};
  float a[16 * INNER];
  if (r.a_in_registers) {
    a_from_registers(r, lanes, p.type, a);
  } else {
    r.a_hash = operand_hash(r.a);  // all 64 rows: a warp may be late with its own
    operand_values(r.a, 16 * (w % 4), 16, p.type, a, INNER, 1);
  }
  r.b_hash = operand_hash(r.b);
  if (!p.add) std::fill(sums.values.begin(), sums.values.end(), 0.f);
  multiply(sums.values.data(), a, b_values(r.b, r.b_hash, p.type), p.columns);
  sums.in_flight++;
  B->mmas++;
  hopper().products[w].open.push_back(r);
}

void wgmma(const Product& product) {
  if (product.columns % 8 || product.columns < 8 || product.columns > MAX_COLUMNS)
    fail("wgmma: %u columns", product.columns);
  meet_warp("wgmma.mma_async", (void*)&product, issue_product, false);
}

void wgmma_fence(std::initializer_list<Registers> named) {
  for (auto& r : named) {
    forget(B->cur, r.at);
    const char* from = (const char*)r.at;
    hopper().named[B->cur].push_back({from, std::vector<char>(from, from + r.bytes)});
  }
  meet_warp("wgmma.fence", nullptr, [](void**) {}, false);
}

void wgmma_commit() {
  meet_warp(
      "wgmma.commit_group", nullptr,
      [](void**) {
        Products& mine = hopper().products[warp()];
        mine.groups.push_back(std::exchange(mine.open, {}));
      },
      false);
}

static void give_back(Sums& sums) {
  for (unsigned l = 0; l < 32; l++) {
    for (unsigned i = 0; i < sums.columns / 2; i++) {
      uint32_t bits;
      memcpy(&bits, &sums.registers[l][i], 4);
      if (bits != POISON) fail("wgmma: accumulator %u of thread %u was written while in flight", i, warp() * 32 + l);
      sums.registers[l][i] = sums.values[row_of(l, i) * sums.columns + column_of(l, i)];
    }
    forget(warp() * 32 + l, sums.registers[l]);
  }
  hopper().sums.erase(sums.registers[0]);
}

static void retire(Running& r) {
  bool same = operand_hash(r.b) == r.b_hash && (r.a_in_registers || operand_hash(r.a) == r.a_hash);
  if (!same)
    fail("wgmma: an operand in shared memory changed before the product was waited for (descriptors %llx, %llx)",
         (unsigned long long)r.a.descriptor, (unsigned long long)r.b.descriptor);
  for (unsigned l = 0; l < 32 && r.a_in_registers; l++)
    if (!same_words(r.a_registers[l], r.a_values[l], 16))
      fail("wgmma: registers of A of thread %u changed before the product was waited for", warp() * 32 + l);
  if (--r.sums->in_flight == 0) give_back(*r.sums);
}

void wgmma_wait(unsigned groups, std::initializer_list<Registers> named) {
  // This meeting orders memory: a lane that frees the operands afterwards does so after they were read.
  meet_warp("wgmma.wait_group", &named, [groups](void** lanes) {
    Products& mine = hopper().products[warp()];
    while (mine.groups.size() > groups) {
      auto group = std::move(mine.groups.front());
      mine.groups.erase(mine.groups.begin());
      for (Running& r : group) {
        for (int l = 0; l < 32; l++) {
          auto& names = *(std::initializer_list<Registers>*)lanes[l];
          const void* sums = r.sums->registers[l];
          if (std::none_of(names.begin(), names.end(), [sums](const Registers& n) { return n.at == sums; }))
            fail(
                "wgmma.wait_group retires accumulators that it does not name, so the compiler may read them before it");
        }
        retire(r);
      }
    }
  });
}

// ---- Registers, lanes, counters

void setmaxnreg(unsigned registers, bool up) {
  if (registers < 24 || registers > 256 || registers % 8) fail("setmaxnreg %u", registers);
  Hopper& h = hopper();
  unsigned w = warp();
  long more = ((long)registers - (long)h.registers[w]) * 32;
  if (up ? more < 0 : more > 0) fail("setmaxnreg.%s %u from %u", up ? "inc" : "dec", registers, h.registers[w]);
  meet_warp("setmaxnreg", nullptr, [](void**) {}, false);
  if (lane() == 0) {
    while (more > h.spare_registers) {
      h.register_waiters.push_back(B->cur);
      block_on("setmaxnreg", registers);
    }
    h.spare_registers -= more;
    h.registers[w] = registers;
    for (unsigned i : std::exchange(h.register_waiters, {})) wake(i);
  }
  meet_warp("setmaxnreg", nullptr, [](void**) {}, false);
}

bool elect() {
  bool chosen = lane() == B->opt.seed % 32;
  meet_warp("elect.sync", nullptr, [](void**) {}, false);
  return chosen;
}

void count(uint32_t* counter) {
  RELEASE(counter);
  ++*counter;
}
void wait_count(const uint32_t* counter, uint32_t value) { global_wait(counter, value); }

}  // namespace emu
