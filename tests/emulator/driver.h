// What every call of the stand-in driver begins with.
#pragma once
#include <memory>
#include <set>

#include "memory.h"
#include "streams.h"

#define API extern "C" __attribute__((visibility("default")))

namespace emu::device {

int architecture();  // EMU_ARCH: 80 or 90
int device_count();  // EMU_DEVICES
Context* primary(int device);
Context* context_of(void* handle);

// Holds the lock for the whole call. `error`: why the call may not go on; an error of the device stays for ever.
struct Call {
  Held held;
  Context* context = nullptr;
  Result error = SUCCESS;

  Call();
  std::shared_ptr<Stream> stream(void* handle) {
    auto found = context ? find_stream(context, handle) : nullptr;
    if (!found && !error) error = INVALID_HANDLE;
    return found;
  }
  // For calls that end an existence: what the device did before does not matter.
  bool only_sticky() const { return context && error == context->sticky; }
};

// Handles that exist; those of other calls are refused.
template <class T>
struct Handles {
  std::set<T*> all;
  T* add(T* one) {
    all.insert(one);
    return one;
  }
  T* find(void* handle) const { return all.count((T*)handle) ? (T*)handle : nullptr; }
  bool remove(void* handle) {
    if (!all.erase((T*)handle)) return false;
    delete (T*)handle;
    return true;
  }
};

}  // namespace emu::device
