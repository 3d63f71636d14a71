// Allocations between guard zones.
#include "memory.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>

namespace emu::device {
namespace {

constexpr size_t GUARD = 8192, ALIGNMENT = 512, KEPT = 64 << 20;
// Two of these bytes are NaN in bf16 and f16, four in f32, eight in f64; as an index they are out of any range.
constexpr unsigned char POISON = 0xFF;

std::map<uintptr_t, Allocation>& allocations() {
  static auto* all = new std::map<uintptr_t, Allocation>;
  return *all;
}
// Freed memory is kept for a while, to see who writes to it.
std::deque<Allocation>& kept() {
  static auto* all = new std::deque<Allocation>;
  return *all;
}
size_t kept_bytes = 0;

// The first byte that is not poison, or null.
const unsigned char* damage(const unsigned char* from, size_t bytes) {
  if (!bytes || (*from == POISON && !memcmp(from, from + 1, bytes - 1))) return nullptr;
  return std::find_if(from, from + bytes, [](unsigned char byte) { return byte != POISON; });
}

unsigned check(const Allocation& a, bool freed, const char* after) {
  const auto* data = (const unsigned char*)a.address;
  unsigned found = 0;
  auto report = [&](const unsigned char* at, const char* where) {
    if (!at) return;
    found++;
    fprintf(stderr,
            "emulated device: %s%swritten %s an allocation of %zu bytes, at byte %lld of it (allocated at %p)\n",
            after ? after : "", after ? ": " : "", where, a.bytes, (long long)(at - data), (const void*)data);
  };
  report(damage(data - GUARD, GUARD), "before");
  report(damage(data + a.bytes, GUARD), "past the end of");
  if (freed) report(damage(data, a.bytes), "after its end to");
  return found;
}

void* take(size_t bytes) {
  size_t whole = (GUARD + bytes + GUARD + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
  auto* block = (unsigned char*)aligned_alloc(ALIGNMENT, whole);
  if (!block) return nullptr;
  memset(block, POISON, whole);
  return block + GUARD;
}

void give_back(const Allocation& a) { free((void*)(a.address - GUARD)); }

// A damage is told once.
void heal(const Allocation& a) {
  memset((void*)(a.address - GUARD), POISON, GUARD);
  memset((void*)(a.address + a.bytes), POISON, GUARD);
}

}  // namespace

size_t memory_of_a_device() {
  static const size_t bytes = getenv("EMU_MEMORY") ? strtoull(getenv("EMU_MEMORY"), nullptr, 10) : size_t(2) << 30;
  return bytes;
}

Result allocate(Context* context, size_t bytes, uintptr_t& address) {
  if (!bytes) return INVALID_VALUE;
  if (bytes > memory_of_a_device() - std::min(context->used, memory_of_a_device())) return OUT_OF_MEMORY;
  void* data = take(bytes);
  if (!data) return OUT_OF_MEMORY;
  address = (uintptr_t)data;
  allocations()[address] = {address, bytes, context};
  context->used += bytes;
  count(ALLOCATIONS);
  return SUCCESS;
}

Result release(uintptr_t address) {
  auto at = allocations().find(address);
  if (at == allocations().end() || !at->second.context) return INVALID_VALUE;
  Allocation a = at->second;
  allocations().erase(at);
  a.context->used -= a.bytes;
  count(FREES);
  unsigned found = check(a, false, "freed");
  heal(a);
  memset((void*)a.address, POISON, a.bytes);
  kept().push_back(a);
  kept_bytes += a.bytes + 2 * GUARD;
  while (kept_bytes > KEPT) {
    Allocation oldest = kept().front();
    kept().pop_front();
    kept_bytes -= oldest.bytes + 2 * GUARD;
    found += check(oldest, true, nullptr);
    give_back(oldest);
  }
  if (found) a.context->sticky = ILLEGAL_ADDRESS;
  return found ? ILLEGAL_ADDRESS : SUCCESS;
}

const Allocation* allocation_of(uintptr_t address, size_t bytes) {
  auto after = allocations().upper_bound(address);
  if (after == allocations().begin()) return nullptr;
  const Allocation& a = std::prev(after)->second;
  return address - a.address <= a.bytes && bytes <= a.bytes - (address - a.address) ? &a : nullptr;
}

bool pinned(const void* address, size_t bytes) {
  const Allocation* a = allocation_of((uintptr_t)address, bytes);
  return a && !a->context;
}

bool on_device(uintptr_t address, size_t bytes, Context* context) {
  const Allocation* a = allocation_of(address, bytes);
  return a && a->context && (!context || a->context == context);
}

unsigned check_all(const char* after) {
  unsigned found = 0;
  for (const auto& [address, a] : allocations()) {
    if (!a.context) continue;
    unsigned here = check(a, false, after);
    if (here) heal(a);
    found += here;
  }
  for (const Allocation& a : kept()) {
    unsigned here = check(a, true, after);
    if (here) {
      heal(a);
      memset((void*)a.address, POISON, a.bytes);
    }
    found += here;
  }
  return found;
}

Result pin(size_t bytes, void*& address) {
  if (!bytes) return INVALID_VALUE;
  address = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
  if (!address) return OUT_OF_MEMORY;
  memset(address, POISON, bytes);
  return adopt(address, bytes);
}

Result adopt(void* address, size_t bytes) {
  if (!bytes || allocation_of((uintptr_t)address, 1)) return INVALID_VALUE;
  allocations()[(uintptr_t)address] = {(uintptr_t)address, bytes, nullptr};
  return SUCCESS;
}

Result unpin(void* address, bool adopted) {
  auto at = allocations().find((uintptr_t)address);
  if (at == allocations().end() || at->second.context) return INVALID_VALUE;
  allocations().erase(at);
  if (!adopted) free(address);
  return SUCCESS;
}

}  // namespace emu::device
