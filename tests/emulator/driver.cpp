// Stand-in libcuda: the driver's interface on the CPU. Here devices and contexts; memory in copies.cpp, streams, events
// and graphs in queues.cpp, kernels in modules.cpp.
//
// EMU_ARCH=80|90, EMU_DEVICES=n, EMU_MEMORY=bytes of each device, EMU_PROCESSORS=multiprocessors;
// EMU_STREAMS=need, EMU_EAGER=1, EMU_SERIAL=1, EMU_SEED=n: when operations run (streams.h);
// EMU_STRICT=1: threads of a kernel run in random order (modules.cpp);
// EMU_CHECK=1: guard zones are looked at after every operation; EMU_STATS=1: counters on stderr at exit.
#include "driver.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#if __has_include("hopper.h")
#include "hopper.h"
#endif

namespace emu::device {
namespace {

bool initialised = false;
thread_local Context* current = nullptr;

std::vector<std::unique_ptr<Context>>& contexts() {
  static auto* all = [] {
    auto* all = new std::vector<std::unique_ptr<Context>>;
    for (int i = 0; i < device_count(); i++) {
      all->push_back(std::make_unique<Context>());
      all->back()->device = i;
    }
    return all;
  }();
  return *all;
}

int number(const char* name, int otherwise) { return getenv(name) ? atoi(getenv(name)) : otherwise; }

// Runs when the process ends. Damaged memory makes it fail, whatever the tests said.
struct AtExit {
  ~AtExit() {
    if (setting("EMU_STATS")) {
      fprintf(stderr, "emulated device:");
      for (int i = 0; i < COUNTERS; i++)
        fprintf(stderr, " %s %llu", COUNTER_NAMES[i], (unsigned long long)counted((Counter)i));
      fprintf(stderr, "\n");
    }
    if (check_all("at exit")) {
      fflush(nullptr);
      _Exit(99);
    }
  }
} at_exit;
}  // namespace

int architecture() {
  static const int arch = number("EMU_ARCH", 90);
  return arch;
}
int device_count() {
  static const int count = number("EMU_DEVICES", 1);
  return count;
}
Context* primary(int device) { return device >= 0 && device < device_count() ? contexts()[device].get() : nullptr; }

Context* context_of(void* handle) {
  for (auto& each : contexts())
    if (each.get() == handle) return each.get();
  return nullptr;
}

Call::Call() : held(lock()), context(current) {
  if (!initialised)
    error = NOT_INITIALIZED;
  else if (!context || !context->retained)
    error = INVALID_CONTEXT;
  else
    error = context->sticky;
}

}  // namespace emu::device

using namespace emu::device;

// For the other stand-ins.

#define SHARED_CALL __attribute__((visibility("default")))
SHARED_CALL Result emu_enqueue(void* handle, Op op) {
  Call call;
  auto stream = call.stream(handle);
  return call.error ? call.error : push(call.held, stream, std::move(op));
}
SHARED_CALL bool emu_is_capturing(void* handle) {
  Call call;
  auto stream = call.stream(handle);
  return stream && stream->capture;
}
SHARED_CALL bool emu_on_device(const void* address, size_t bytes) {
  Held held(lock());
  return on_device((uintptr_t)address, bytes);
}
SHARED_CALL std::mutex& emu_lock() { return lock(); }
SHARED_CALL void emu_changed() { changed(); }
SHARED_CALL void emu_count_product() { count(PRODUCTS); }

// For tests.

// Fills the first `n` of the counters of streams.h in their order, gives how many there are.
API size_t emu_counters(uint64_t* values, size_t n) {
  for (size_t i = 0; i < std::min<size_t>(n, COUNTERS); i++) values[i] = counted((Counter)i);
  return COUNTERS;
}
API const char* emu_counter_name(size_t i) { return i < COUNTERS ? COUNTER_NAMES[i] : nullptr; }
// How many allocations are damaged; says on stderr which.
API unsigned emu_check() {
  Held held(lock());
  return check_all(nullptr);
}
API size_t emu_used_memory(int device) {
  Held held(lock());
  Context* context = primary(device);
  return context ? context->used : 0;
}

// Initialisation, devices.

API Result cuInit(unsigned flags) {
  if (flags) return INVALID_VALUE;
  Held held(lock());
  initialised = true;
  return SUCCESS;
}
// Tables that are not documented, which NVIDIA's own libraries look into; the first word is a table's size in bytes.
// NVRTC does without what is not there, but not without a table.
API Result cuGetExportTable(const void** table, const void*) {
  static const size_t empty[] = {sizeof(size_t)};
  if (!table) return INVALID_VALUE;
  *table = empty;
  return SUCCESS;
}
API Result cuDriverGetVersion(int* version) {
  *version = 13000;
  return SUCCESS;
}
API Result cuDeviceGetCount(int* n) {
  *n = device_count();
  return initialised ? SUCCESS : NOT_INITIALIZED;
}
API Result cuDeviceGet(int* device, int ordinal) {
  if (!initialised) return NOT_INITIALIZED;
  if (!primary(ordinal)) return INVALID_DEVICE;
  *device = ordinal;
  return SUCCESS;
}
API Result cuDeviceGetName(char* name, int bytes, int device) {
  if (!primary(device)) return INVALID_DEVICE;
  snprintf(name, bytes, "emulated sm_%d", architecture());
  return SUCCESS;
}
API Result cuDeviceGetUuid_v2(unsigned char* uuid, int device) {
  if (!primary(device)) return INVALID_DEVICE;
  memset(uuid, 0, 16);
  uuid[0] = 0xE0;
  uuid[15] = device;
  return SUCCESS;
}
API Result cuDeviceGetUuid(unsigned char* uuid, int device) { return cuDeviceGetUuid_v2(uuid, device); }
API Result cuDeviceGetPCIBusId(char* id, int bytes, int device) {
  if (!primary(device)) return INVALID_DEVICE;
  snprintf(id, bytes, "0000:%02x:00.0", device + 1);
  return SUCCESS;
}
API Result cuDeviceTotalMem_v2(size_t* bytes, int device) {
  if (!primary(device)) return INVALID_DEVICE;
  *bytes = memory_of_a_device();
  return SUCCESS;
}
API Result cuDeviceComputeCapability(int* major, int* minor, int device) {
  if (!primary(device)) return INVALID_DEVICE;
  *major = architecture() / 10;
  *minor = architecture() % 10;
  return SUCCESS;
}
API Result cuDeviceGetAttribute(int* value, int attribute, int device) {
  if (!primary(device)) return INVALID_DEVICE;
  bool hopper = architecture() >= 90;
  switch (attribute) {
    case 1:
    case 2:
    case 3: *value = 1024; break;        // threads of a block; in x, y
    case 4: *value = 64; break;          // in z
    case 5: *value = 0x7FFFFFFF; break;  // blocks of a grid in x
    case 6:
    case 7: *value = 65535; break;     // in y, z
    case 8: *value = 48 << 10; break;  // shared memory of a block
    case 9: *value = 64 << 10; break;  // constant memory
    case 10: *value = 32; break;       // warp
    case 12:
    case 82: *value = 65536; break;    // registers of a block, of a multiprocessor
    case 13: *value = 1755000; break;  // kHz
    case 16: *value = number("EMU_PROCESSORS", hopper ? 132 : 108); break;
    case 31:
    case 41:
    case 78:
    case 79:
    case 80:
    case 95: *value = 1; break;           // concurrent kernels, unified addresses, priorities, caches, cooperative
    case 33: *value = device + 1; break;  // PCI bus
    case 36: *value = 2619000; break;     // kHz of the memory
    case 37: *value = 5120; break;        // bits of its bus
    case 38: *value = 50 << 20; break;    // L2 cache
    case 39: *value = 2048; break;        // threads of a multiprocessor
    case 40: *value = 3; break;           // copy engines
    case 75: *value = architecture() / 10; break;
    case 76: *value = architecture() % 10; break;
    case 81: *value = hopper ? 233472 : 167936; break;  // shared memory of a multiprocessor
    case 97: *value = hopper ? 232448 : 166912; break;  // of a block that asks for more
    case 106: *value = 32; break;                       // blocks of a multiprocessor
    case 111: *value = 1024; break;                     // shared memory that the system takes of each block
    default: *value = 0;                                // memory pools (115) among others
  }
  return SUCCESS;
}
API Result cuDeviceCanAccessPeer(int* can, int device, int peer) {
  if (!primary(device) || !primary(peer)) return INVALID_DEVICE;
  *can = device != peer;
  return SUCCESS;
}

// Contexts: the primary ones.

API Result cuDevicePrimaryCtxRetain(void** handle, int device) {
  Held held(lock());
  if (!initialised) return NOT_INITIALIZED;
  Context* context = primary(device);
  if (!context) return INVALID_DEVICE;
  if (!context->null) context->null = new_stream(context, true, 0, 0);
  context->retained++;
  *handle = context;
  return SUCCESS;
}
API Result cuDevicePrimaryCtxReset_v2(int device) {
  Held held(lock());
  Context* context = primary(device);
  if (!context) return INVALID_DEVICE;
  if (context->null) synchronize(held, context);
  context->sticky = SUCCESS;
  return SUCCESS;
}
API Result cuDevicePrimaryCtxRelease_v2(int device) {
  {
    Held held(lock());
    Context* context = primary(device);
    if (!context) return INVALID_DEVICE;
    if (!context->retained) return INVALID_CONTEXT;
    if (--context->retained) return SUCCESS;
  }
  return cuDevicePrimaryCtxReset_v2(device);
}
API Result cuDevicePrimaryCtxGetState(int device, unsigned* flags, int* active) {
  Context* context = primary(device);
  if (!context) return INVALID_DEVICE;
  *flags = 0;
  *active = context->retained > 0;
  return SUCCESS;
}
API Result cuDevicePrimaryCtxSetFlags_v2(int device, unsigned) { return primary(device) ? SUCCESS : INVALID_DEVICE; }
API Result cuCtxGetCurrent(void** handle) {
  *handle = current;
  return initialised ? SUCCESS : NOT_INITIALIZED;
}
API Result cuCtxSetCurrent(void* handle) {
  if (!initialised) return NOT_INITIALIZED;
  if (handle && !context_of(handle)) return INVALID_CONTEXT;
  current = (Context*)handle;
  return SUCCESS;
}
API Result cuCtxGetDevice(int* device) {
  if (!current) return INVALID_CONTEXT;
  *device = current->device;
  return SUCCESS;
}
API Result cuCtxSetFlags(unsigned) { return current ? SUCCESS : INVALID_CONTEXT; }
API Result cuCtxSetLimit(int, size_t) { return current ? SUCCESS : INVALID_CONTEXT; }
API Result cuCtxGetLimit(size_t* value, int) {
  *value = 1024;
  return current ? SUCCESS : INVALID_CONTEXT;
}
API Result cuCtxGetStreamPriorityRange(int* least, int* greatest) {
  if (least) *least = 0;
  if (greatest) *greatest = -5;
  return current ? SUCCESS : INVALID_CONTEXT;
}
API Result cuCtxEnablePeerAccess(void* peer, unsigned) {
  Call call;
  static std::set<std::pair<Context*, void*>> enabled;
  if (call.error) return call.error;
  if (!context_of(peer) || peer == call.context) return INVALID_CONTEXT;
  return enabled.insert({call.context, peer}).second ? SUCCESS : PEER_ACCESS_ALREADY_ENABLED;
}
API Result cuCtxSynchronize() {
  Call call;
  if (call.error) return call.error;
  if (Result result = unsafe_call()) return result;
  return synchronize(call.held, call.context);
}

// Errors.

static const struct {
  Result code;
  const char *name, *text;
} ERRORS[] = {
    {SUCCESS, "CUDA_SUCCESS", "no error"},
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {NO_BINARY_FOR_GPU, "CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available for execution on the device"},
    {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
    {ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {LAUNCH_OUT_OF_RESOURCES, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "too many resources requested for launch"},
    {PEER_ACCESS_ALREADY_ENABLED, "CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED", "peer access is already enabled"},
    {LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {COOPERATIVE_LAUNCH_TOO_LARGE, "CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE", "too many blocks in cooperative launch"},
    {NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
    {CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
     "operation failed due to a previous error during capture"},
    {CAPTURE_MERGE, "CUDA_ERROR_STREAM_CAPTURE_MERGE",
     "operation would result in a merge of separate capture sequences"},
    {CAPTURE_UNMATCHED, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED", "capture was not ended in the same stream as it began"},
    {CAPTURE_UNJOINED, "CUDA_ERROR_STREAM_CAPTURE_UNJOINED", "capturing stream has unjoined work"},
    {CAPTURE_ISOLATION, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION",
     "dependency created on uncaptured work in another stream"},
    {CAPTURE_IMPLICIT, "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT",
     "operation would make the legacy stream depend on a capturing blocking stream"},
    {CAPTURED_EVENT, "CUDA_ERROR_CAPTURED_EVENT",
     "operation not permitted on an event last recorded in a capturing stream"},
    {CAPTURE_WRONG_THREAD, "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD",
     "attempt to terminate a thread-local capture sequence from another thread"},
};
API Result cuGetErrorName(Result code, const char** name) {
  for (const auto& error : ERRORS)
    if (error.code == code) return *name = error.name, SUCCESS;
  *name = nullptr;
  return INVALID_VALUE;
}
API Result cuGetErrorString(Result code, const char** text) {
  for (const auto& error : ERRORS)
    if (error.code == code) return *text = error.text, SUCCESS;
  *text = nullptr;
  return INVALID_VALUE;
}

// Functions by name; the newest version of those that have several.
API Result cuGetProcAddress_v2(const char* name, void** function, int, uint64_t, int* status) {
  std::string base = name;
  *function = nullptr;
  for (const char* version : {"_v3", "_v2", ""})
    if (!*function) *function = dlsym(RTLD_DEFAULT, (base + version).c_str());
  if (status) *status = *function ? 0 : 1;
  return *function ? SUCCESS : NOT_FOUND;
}
API Result cuProfilerStart() { return SUCCESS; }
API Result cuProfilerStop() { return SUCCESS; }

#if __has_include("hopper.h")
API Result cuTensorMapEncodeTiled(void* map, int type, unsigned rank, void* base, const uint64_t* dims,
                                  const uint64_t* strides, const unsigned* box, const unsigned* element_strides,
                                  int interleave, int swizzle, int promotion, int fill) {
  // uint8, uint16, uint32, int32, uint64, int64, f16, f32, f64, bf16
  static const unsigned BYTES[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2};
  std::string why;
  if (!map || !base || !dims || !box || !element_strides || (rank > 1 && !strides))
    why = "an argument is missing";
  else if (type < 0 || type > 9)
    why = "this type of elements is not emulated";
  else if (interleave || fill)
    why = "interleaving and a fill with NaN are not emulated";
  else if (promotion < 0 || promotion > 3)
    why = "there is no such promotion to the L2 cache";
  else if (rank < 1 || rank > 5)
    why = "a tensor has 1 to 5 dimensions";
  for (unsigned i = 0; why.empty() && i < rank; i++)
    if (element_strides[i] != 1) why = "strides of elements are not emulated";
  if (why.empty()) why = emu::encode_map(map, base, BYTES[type], rank, dims, strides, box, swizzle);
  if (why.empty()) {
    // The driver takes any address; a map of more than the memory there is would only fail when it is read.
    size_t bytes = dims[0] * BYTES[type];
    for (unsigned i = 1; i < rank; i++) bytes += (dims[i] - 1) * strides[i - 1];
    Held held(lock());
    if (!on_device((uintptr_t)base, bytes)) why = "the tensor is not in memory of a device";
  }
  if (why.empty()) return SUCCESS;
  fprintf(stderr, "cuTensorMapEncodeTiled: %s\n", why.c_str());
  return INVALID_VALUE;
}
#endif