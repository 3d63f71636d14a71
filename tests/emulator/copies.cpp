// Stand-in libcuda: memory, copies and memsets.
#include <algorithm>
#include <cstdio>
#include <cstring>

#include "driver.h"

namespace emu::device {
namespace {

Op copy_op(const char* what, void* to, const void* from, size_t bytes) {
  return {what,
          [=] {
            memcpy(to, from, bytes);
            return SUCCESS;
          },
          {},
          {}};
}

Result to_device(Call& call, uintptr_t to, const void* from, size_t bytes, const std::shared_ptr<Stream>& stream) {
  if (call.error || !bytes) return call.error;
  if (!on_device(to, bytes) || !from) return INVALID_VALUE;
  count(COPIES_TO_DEVICE);
  if (pinned(from, bytes) || stream->capture)
    return push(call.held, stream, copy_op("copy to the device", (void*)to, from, bytes));
  // Pageable memory is staged before the call returns.
  auto staged = std::make_shared<std::vector<char>>((const char*)from, (const char*)from + bytes);
  return push(call.held, stream,
              {"copy to the device",
               [=] {
                 memcpy((void*)to, staged->data(), bytes);
                 return SUCCESS;
               },
               {},
               {}});
}

Result to_host(Call& call, void* to, uintptr_t from, size_t bytes, const std::shared_ptr<Stream>& stream) {
  if (call.error || !bytes) return call.error;
  if (!on_device(from, bytes) || !to) return INVALID_VALUE;
  count(COPIES_TO_HOST);
  bool asynchronous = pinned(to, bytes) || stream->capture;
  Result result = push(call.held, stream, copy_op("copy to the host", to, (void*)from, bytes));
  return result || asynchronous ? result : synchronize(call.held, stream);
}

Result on_devices(Call& call, uintptr_t to, uintptr_t from, size_t bytes, const std::shared_ptr<Stream>& stream,
                  Context* of_to = nullptr, Context* of_from = nullptr) {
  if (call.error || !bytes) return call.error;
  if (!on_device(to, bytes, of_to) || !on_device(from, bytes, of_from)) return INVALID_VALUE;
  if (to < from + bytes && from < to + bytes) {
    fprintf(stderr, "emulated device: a copy of %zu bytes onto itself\n", bytes);
    return INVALID_VALUE;
  }
  count(COPIES_ON_DEVICE);
  return push(call.held, stream, copy_op("copy on the device", (void*)to, (void*)from, bytes));
}

template <class T>
Result set(Call& call, uintptr_t to, T value, size_t n, const std::shared_ptr<Stream>& stream) {
  if (call.error || !n) return call.error;
  if (to % sizeof(T) || n > SIZE_MAX / sizeof(T) || !on_device(to, n * sizeof(T))) return INVALID_VALUE;
  count(MEMSETS);
  return push(call.held, stream,
              {"memset",
               [=] {
                 std::fill_n((T*)to, n, value);
                 return SUCCESS;
               },
               {},
               {}});
}

// A copy or memset without a stream goes through the null stream. Those that involve the host wait for it.
Result after_null(Call& call, Result result) { return result ? result : synchronize(call.held, call.context->null); }

}  // namespace
}  // namespace emu::device

using namespace emu::device;

// Memory.

API Result cuMemGetInfo_v2(size_t* free, size_t* total) {
  Call call;
  if (call.error) return call.error;
  *total = memory_of_a_device();
  *free = *total - std::min(*total, call.context->used);
  return SUCCESS;
}
API Result cuMemAlloc_v2(uintptr_t* address, size_t bytes) {
  Call call;
  if (!call.error) call.error = unsafe_call();
  return call.error ? call.error : allocate(call.context, bytes, *address);
}
API Result cuMemFree_v2(uintptr_t address) {
  Call call;
  if (call.error && !call.only_sticky()) return call.error;
  if (!address) return call.error;
  if (Result result = unsafe_call()) return result;
  const Allocation* a = allocation_of(address, 1);
  if (!a || !a->context || a->address != address) return INVALID_VALUE;
  // As the driver does: what is queued may still use the memory.
  Context* owner = a->context;
  Result result = synchronize(call.held, owner);
  Result damaged = release(address);
  return result ? result : damaged;
}
API Result cuMemGetAddressRange_v2(uintptr_t* base, size_t* bytes, uintptr_t address) {
  Call call;
  if (call.error) return call.error;
  const Allocation* a = allocation_of(address, 1);
  if (!a) return NOT_FOUND;
  if (base) *base = a->address;
  if (bytes) *bytes = a->bytes;
  return SUCCESS;
}
API Result cuPointerGetAttribute(void* value, int attribute, uintptr_t address) {
  Call call;
  if (call.error) return call.error;
  const Allocation* a = allocation_of(address, 1);
  if (!a) return INVALID_VALUE;
  switch (attribute) {
    case 1: *(void**)value = a->context; break;
    case 2: *(unsigned*)value = a->context ? 2 : 1; break;  // memory of the device or of the host
    case 3: *(uintptr_t*)value = address; break;
    case 4: *(void**)value = (void*)address; break;
    case 9: *(int*)value = a->context ? a->context->device : 0; break;
    default: return NOT_SUPPORTED;
  }
  return SUCCESS;
}
API Result cuMemHostAlloc(void** address, size_t bytes, unsigned) {
  Call call;
  if (!call.error) call.error = unsafe_call();
  return call.error ? call.error : pin(bytes, *address);
}
API Result cuMemAllocHost_v2(void** address, size_t bytes) { return cuMemHostAlloc(address, bytes, 0); }
API Result cuMemFreeHost(void* address) {
  Call call;
  if (call.error && !call.only_sticky()) return call.error;
  if (Result result = unsafe_call()) return result;
  Result result = synchronize(call.held, call.context);
  Result freed = unpin(address, false);
  return result ? result : freed;
}
API Result cuMemHostRegister_v2(void* address, size_t bytes, unsigned) {
  Call call;
  return call.error ? call.error : adopt(address, bytes);
}
API Result cuMemHostUnregister(void* address) {
  Call call;
  if (call.error && !call.only_sticky()) return call.error;
  Result result = synchronize(call.held, call.context);
  Result freed = unpin(address, true);
  return result ? result : freed;
}
API Result cuMemHostGetDevicePointer_v2(uintptr_t* on_device, void* address, unsigned) {
  Call call;
  if (call.error) return call.error;
  *on_device = (uintptr_t)address;
  return pinned(address, 1) ? SUCCESS : INVALID_VALUE;
}

API Result cuMemcpyHtoDAsync_v2(uintptr_t to, const void* from, size_t bytes, void* handle) {
  Call call;
  auto stream = call.stream(handle);
  return to_device(call, to, from, bytes, stream);
}
API Result cuMemcpyDtoHAsync_v2(void* to, uintptr_t from, size_t bytes, void* handle) {
  Call call;
  auto stream = call.stream(handle);
  return to_host(call, to, from, bytes, stream);
}
API Result cuMemcpyDtoDAsync_v2(uintptr_t to, uintptr_t from, size_t bytes, void* handle) {
  Call call;
  auto stream = call.stream(handle);
  return on_devices(call, to, from, bytes, stream);
}
API Result cuMemcpyPeerAsync(uintptr_t to, void* of_to, uintptr_t from, void* of_from, size_t bytes, void* handle) {
  Call call;
  auto stream = call.stream(handle);
  if (!call.error && (!context_of(of_to) || !context_of(of_from))) return INVALID_CONTEXT;
  return on_devices(call, to, from, bytes, stream, context_of(of_to), context_of(of_from));
}
API Result cuMemcpyAsync(uintptr_t to, uintptr_t from, size_t bytes, void* handle) {
  Call call;
  auto stream = call.stream(handle);
  if (call.error || !bytes) return call.error;
  bool to_there = on_device(to, bytes), from_there = on_device(from, bytes);
  if (to_there && from_there) return on_devices(call, to, from, bytes, stream);
  if (to_there) return to_device(call, to, (void*)from, bytes, stream);
  if (from_there) return to_host(call, (void*)to, from, bytes, stream);
  return push(call.held, stream, copy_op("copy on the host", (void*)to, (void*)from, bytes));
}
API Result cuMemcpyHtoD_v2(uintptr_t to, const void* from, size_t bytes) {
  Call call;
  auto stream = call.stream(nullptr);
  return after_null(call, to_device(call, to, from, bytes, stream));
}
API Result cuMemcpyDtoH_v2(void* to, uintptr_t from, size_t bytes) {
  Call call;
  auto stream = call.stream(nullptr);
  return after_null(call, to_host(call, to, from, bytes, stream));
}
API Result cuMemcpyDtoD_v2(uintptr_t to, uintptr_t from, size_t bytes) {
  return cuMemcpyDtoDAsync_v2(to, from, bytes, nullptr);
}
API Result cuMemcpyPeer(uintptr_t to, void* of_to, uintptr_t from, void* of_from, size_t bytes) {
  return cuMemcpyPeerAsync(to, of_to, from, of_from, bytes, nullptr);
}

// CUDA_MEMCPY2D: one side of it.
struct Side {
  size_t x, y;
  unsigned type;
  void* host;
  uintptr_t device;
  void* array;
  size_t pitch;

  enum { HOST = 1, DEVICE = 2, UNIFIED = 4 };
  char* at(size_t row) const { return (char*)(type == HOST ? (uintptr_t)host : device) + (y + row) * pitch + x; }
};
struct Copy2d {
  Side from, to;
  size_t width, height;
};
API Result cuMemcpy2DAsync_v2(const Copy2d* given, void* handle) {
  Call call;
  auto stream = call.stream(handle);
  Copy2d c = *given;
  if (call.error || !c.width || !c.height) return call.error;
  size_t from_bytes = (c.height - 1) * c.from.pitch + c.width, to_bytes = (c.height - 1) * c.to.pitch + c.width;
  bool there[2] = {on_device((uintptr_t)c.from.at(0), from_bytes), on_device((uintptr_t)c.to.at(0), to_bytes)};
  int i = 0;
  for (const Side* side : {&c.from, &c.to}) {
    if (side->type != Side::HOST && side->type != Side::DEVICE && side->type != Side::UNIFIED) return INVALID_VALUE;
    if (side->pitch < side->x + c.width && c.height > 1) return INVALID_VALUE;
    if (side->type == Side::DEVICE && !there[i]) return INVALID_VALUE;
    i++;
  }
  count(there[0] && there[1] ? COPIES_ON_DEVICE : there[1] ? COPIES_TO_DEVICE : COPIES_TO_HOST);
  // As for copies in one piece: pageable memory is staged before the call returns, and has arrived when it returns.
  bool stages = !there[0] && !stream->capture && !pinned(c.from.at(0), from_bytes);
  bool waits = !there[1] && !stream->capture && !pinned(c.to.at(0), to_bytes);
  auto staged = std::make_shared<std::vector<char>>(stages ? c.width * c.height : 0);
  for (size_t row = 0; stages && row < c.height; row++) memcpy(&(*staged)[row * c.width], c.from.at(row), c.width);
  auto copy = [=] {
    for (size_t row = 0; row < c.height; row++)
      memcpy(c.to.at(row), stages ? &(*staged)[row * c.width] : c.from.at(row), c.width);
    return SUCCESS;
  };
  Result result = push(call.held, stream, {"copy of rows", copy, {}, {}});
  return result || !waits ? result : synchronize(call.held, stream);
}

API Result cuMemsetD8Async(uintptr_t to, uint8_t value, size_t n, void* handle) {
  Call call;
  auto stream = call.stream(handle);
  return set(call, to, value, n, stream);
}
API Result cuMemsetD16Async(uintptr_t to, uint16_t value, size_t n, void* handle) {
  Call call;
  auto stream = call.stream(handle);
  return set(call, to, value, n, stream);
}
API Result cuMemsetD32Async(uintptr_t to, uint32_t value, size_t n, void* handle) {
  Call call;
  auto stream = call.stream(handle);
  return set(call, to, value, n, stream);
}
API Result cuMemsetD8_v2(uintptr_t to, uint8_t value, size_t n) { return cuMemsetD8Async(to, value, n, nullptr); }
API Result cuMemsetD16_v2(uintptr_t to, uint16_t value, size_t n) { return cuMemsetD16Async(to, value, n, nullptr); }
API Result cuMemsetD32_v2(uintptr_t to, uint32_t value, size_t n) { return cuMemsetD32Async(to, value, n, nullptr); }
