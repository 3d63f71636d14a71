// Memory of the stand-in devices: host memory between guard zones, poisoned with NaN when it is allocated and when it
// is freed.
#pragma once
#include "streams.h"

namespace emu::device {

size_t memory_of_a_device();

// All of these need the lock.
Result allocate(Context* context, size_t bytes, uintptr_t& address);
Result release(uintptr_t address);
struct Allocation {
  uintptr_t address = 0;
  size_t bytes = 0;
  Context* context = nullptr;  // null: pinned memory of the host
};
// The allocation that holds all of these bytes.
const Allocation* allocation_of(uintptr_t address, size_t bytes);
bool pinned(const void* address, size_t bytes);
// On that device, or on any one.
bool on_device(uintptr_t address, size_t bytes, Context* context = nullptr);
// Looks at the guard zones of all allocations and at freed memory that is still kept; says on stderr what was damaged.
unsigned check_all(const char* after);

Result pin(size_t bytes, void*& address);
Result adopt(void* address, size_t bytes);
Result unpin(void* address, bool adopted);

}  // namespace emu::device
