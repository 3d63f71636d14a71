// Stand-in libcuda: modules, functions and launches. A module says which kernels there are; what runs is the kernel of
// that name that was compiled for the emulator.
#include <elf.h>
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>

#include "driver.h"
#include "emu.h"
#include "exports.h"
#include "image.h"

namespace emu::device {
namespace {

constexpr unsigned SHARED_WITHOUT_ASKING = 48 << 10, ARGUMENT_BYTES = 32764;
unsigned shared_at_most() { return architecture() >= 90 ? 232448 : 166912; }

struct Function {
  const Kernel* kernel;
  Context* context;
  unsigned dynamic_shared = SHARED_WITHOUT_ASKING;
};

struct Module {
  Context* context = nullptr;
  std::string file;             // of the source, if the image says it
  std::set<std::string> names;  // of its kernels, if the image says them
  std::map<std::string, std::unique_ptr<Function>> functions;
};

Handles<Module> modules;
std::map<std::string, uint64_t> launches;  // by kernel

Function* find_function(void* handle) {
  for (Module* module : modules.all)
    for (auto& [name, function] : module->functions)
      if (function.get() == handle) return function.get();
  return nullptr;
}

// Machine code runs on its own generation from its version on, that of sm_90a only there; PTX runs on what is newer.
bool runs_here(unsigned version, bool specific, bool ptx) {
  unsigned here = architecture();
  if (specific) return version == here;
  return ptx ? version <= here : version / 10 == here / 10 && version <= here;
}

Result read_text(const std::string& architecture, bool ptx) {
  if (architecture.compare(0, 3, "sm_") && architecture.compare(0, 8, "compute_")) return INVALID_IMAGE;
  char* end;
  unsigned version = strtoul(architecture.c_str() + architecture.find('_') + 1, &end, 10);
  return runs_here(version, *end == 'a', ptx) ? SUCCESS : NO_BINARY_FOR_GPU;
}

Result read_ptx(const std::string& text, Module& module) {
  size_t target = text.find(".target ");
  if (target == text.npos) return INVALID_IMAGE;
  target += 8;
  for (size_t at = 0; (at = text.find(".entry ", at)) != text.npos;) {
    at += 7;
    module.names.insert(text.substr(at, text.find_first_of("(\n ", at) - at));
  }
  return read_text(text.substr(target, text.find_first_of(",\n ", target) - target), true);
}

// Kernels of a CUBIN are the global functions of its symbol table.
Result read_cubin(const char* image, Module& module) {
  constexpr unsigned MACHINE = 190;
  const auto& header = *(const Elf64_Ehdr*)image;
  if (header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_machine != MACHINE) return INVALID_IMAGE;
  const auto* sections = (const Elf64_Shdr*)(image + header.e_shoff);
  for (unsigned i = 0; i < header.e_shnum; i++) {
    if (sections[i].sh_type != SHT_SYMTAB) continue;
    const auto* symbols = (const Elf64_Sym*)(image + sections[i].sh_offset);
    const char* strings = image + sections[sections[i].sh_link].sh_offset;
    for (size_t j = 0; j < sections[i].sh_size / sizeof(Elf64_Sym); j++)
      if (ELF64_ST_TYPE(symbols[j].st_info) == STT_FUNC && ELF64_ST_BIND(symbols[j].st_info) == STB_GLOBAL)
        module.names.insert(strings + symbols[j].st_name);
  }
  // From version 8 of the format on, that of CUDA 13, the architecture stands in the second byte.
  unsigned version = header.e_flags >> (header.e_ident[EI_ABIVERSION] >= 8 ? 8 : 0) & 0xFF;
  return runs_here(version, false, false) ? SUCCESS : NO_BINARY_FOR_GPU;
}

Result read(const char* image, Module& module) {
  if (!image) return INVALID_VALUE;
  if (!memcmp(image, ELFMAG, SELFMAG)) return read_cubin(image, module);
  if (!strncmp(image, IMAGE, strlen(IMAGE))) {
    Image text = Image::of(image);
    module.file = text.file.substr(text.file.rfind('/') + 1);
    return read_text(text.architecture, false);
  }
  if (strstr(image, ".version ")) return read_ptx(image, module);
  return INVALID_IMAGE;
}

// A kernel that reads or writes where nothing is ends the process, as it ends a context; this says which one it was.
thread_local const char* running = nullptr;
struct sigaction before;
void on_fault(int, siginfo_t* info, void*) {
  if (running) {
    char text[256];
    int length = snprintf(text, sizeof text, "%s: an illegal address, %p\n", running, info->si_addr);
    if (write(STDERR_FILENO, text, length) < 0) _exit(1);
  }
  // The instruction faults again and meets whoever was responsible.
  sigaction(SIGSEGV, &before, nullptr);
}
void watch_faults() {
  static const int once = [] {
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    return sigaction(SIGSEGV, &action, &before);
  }();
  (void)once;
}

struct Launch {
  unsigned grid[3], block[3], shared;
  void* stream;
};

Result queue_kernel(void* handle, const Launch& l, void** arguments, void** extra, bool cooperative) {
  static const bool strict = setting("EMU_STRICT");
  Call call;
  auto stream = call.stream(l.stream);
  if (call.error) return call.error;
  Function* function = find_function(handle);
  if (!function || function->context != stream->context) return INVALID_HANDLE;
  const Kernel* kernel = function->kernel;
  auto refuse = [&](const char* why, Result result) {
    fprintf(stderr, "%s: %s: grid %u,%u,%u, block %u,%u,%u, %u bytes of shared memory\n", kernel->name.c_str(), why,
            l.grid[0], l.grid[1], l.grid[2], l.block[0], l.block[1], l.block[2], l.shared);
    return result;
  };
  for (int i = 0; i < 3; i++)
    if (!l.grid[i] || !l.block[i]) return refuse("an empty launch", INVALID_VALUE);
  if (l.grid[0] > 0x7FFFFFFF || l.grid[1] > 65535 || l.grid[2] > 65535)
    return refuse("too large a grid", INVALID_VALUE);
  size_t threads = (size_t)l.block[0] * l.block[1] * l.block[2];
  if (threads > 1024 || l.block[2] > 64) return refuse("too large a block", INVALID_VALUE);
  if (threads % 32) return refuse("the emulator runs whole warps", INVALID_VALUE);
  if (l.shared > function->dynamic_shared) return refuse("more shared memory than the function allows", INVALID_VALUE);
  if (cooperative && (size_t)l.grid[0] * l.grid[1] * l.grid[2] > RESIDENT)
    return refuse("more blocks than run at once", COOPERATIVE_LAUNCH_TOO_LARGE);
  size_t n = kernel->argument_sizes.size();
  if (n && kernel->argument_offsets[n - 1] + kernel->argument_sizes[n - 1] > ARGUMENT_BYTES)
    return refuse("too many bytes of arguments", INVALID_VALUE);
  if (extra || (n && !arguments)) return refuse("arguments must be passed as pointers", INVALID_VALUE);
  for (size_t i = 0; i < n; i++)
    if (!arguments[i]) return refuse("an argument is missing", INVALID_VALUE);

  Options options;
  options.order = strict ? Order::Random : Order::Forward;
  options.async = strict ? Async::Random : Async::Eager;
  options.seed = strict ? random_number() : 1;
  dim3 grid(l.grid[0], l.grid[1], l.grid[2]), block(l.block[0], l.block[1], l.block[2]);
  count(LAUNCHES);
  launches[kernel->name]++;
  watch_faults();
  auto body = kernel->bind(arguments);
  auto run = [=, shared = l.shared] {
    count(KERNELS);
    running = kernel->name.c_str();
    std::string why = launch(grid, block, shared, options, body);
    running = nullptr;
    if (why.empty()) return SUCCESS;
    fprintf(stderr, "%s: %s\n", kernel->name.c_str(), why.c_str());
    return LAUNCH_FAILED;
  };
  return push(call.held, stream, {kernel->name, run, {}, {}});
}

}  // namespace
}  // namespace emu::device

using namespace emu::device;

// For tests: how many launches there were of kernels whose names contain this.
API uint64_t emu_launches_of(const char* part) {
  Held held(lock());
  uint64_t sum = 0;
  for (const auto& [name, count] : launches)
    if (name.find(part) != name.npos) sum += count;
  return sum;
}

API Result cuModuleLoadData(void** handle, const void* image) {
  Call call;
  if (call.error) return call.error;
  auto module = std::make_unique<Module>();
  module->context = call.context;
  if (Result result = read((const char*)image, *module)) return result;
  *handle = modules.add(module.release());
  return SUCCESS;
}
API Result cuModuleLoadDataEx(void** handle, const void* image, unsigned, int*, void**) {
  return cuModuleLoadData(handle, image);
}
API Result cuModuleLoad(void** handle, const char* path) {
  constexpr Result FILE_NOT_FOUND = (Result)301;
  std::ifstream file(path, std::ios::binary);
  if (!file) return FILE_NOT_FOUND;
  std::string image{std::istreambuf_iterator<char>(file), {}};
  return cuModuleLoadData(handle, image.c_str());
}
API Result cuModuleUnload(void* handle) {
  Call call;
  if (call.error && !call.only_sticky()) return call.error;
  return modules.remove(handle) ? call.error : INVALID_HANDLE;
}
API Result cuModuleGetFunction(void** handle, void* module_handle, const char* name) {
  Call call;
  Module* module = modules.find(module_handle);
  if (!call.error && !module) call.error = INVALID_HANDLE;
  if (call.error) return call.error;
  auto at = emu::kernels().by_name.find(name);
  bool here = at != emu::kernels().by_name.end();
  if (!module->names.empty() && !module->names.count(name)) return NOT_FOUND;
  if (!here && !module->names.empty()) fprintf(stderr, "%s is not compiled for the emulator\n", name);
  if (!here) return NOT_FOUND;
  if (module->file.ends_with(".cu") && module->file != at->second.file) return NOT_FOUND;
  auto& function = module->functions[name];
  if (!function) function.reset(new Function{&at->second, module->context});
  *handle = function.get();
  return SUCCESS;
}
API Result cuModuleGetGlobal_v2(uintptr_t*, size_t*, void*, const char*) { return NOT_FOUND; }

enum FunctionAttribute {
  MAX_THREADS = 0,
  STATIC_SHARED = 1,
  REGISTERS = 4,
  BINARY_VERSION = 6,
  DYNAMIC_SHARED = 8,
  CARVEOUT = 9
};

API Result cuFuncGetAttribute(int* value, int attribute, void* handle) {
  Call call;
  Function* function = find_function(handle);
  if (!call.error && !function) call.error = INVALID_HANDLE;
  if (call.error) return call.error;
  switch (attribute) {
    case MAX_THREADS: *value = 1024; break;
    case REGISTERS: *value = 64; break;
    case BINARY_VERSION: *value = architecture(); break;
    case DYNAMIC_SHARED: *value = function->dynamic_shared; break;
    default: *value = 0;
  }
  return SUCCESS;
}
API Result cuFuncSetAttribute(void* handle, int attribute, int value) {
  Call call;
  Function* function = find_function(handle);
  if (!call.error && !function) call.error = INVALID_HANDLE;
  if (call.error) return call.error;
  if (attribute == CARVEOUT) return value >= -1 && value <= 100 ? SUCCESS : INVALID_VALUE;
  if (attribute != DYNAMIC_SHARED || value < 0 || (unsigned)value > shared_at_most()) return INVALID_VALUE;
  function->dynamic_shared = value;
  return SUCCESS;
}
API Result cuFuncSetCacheConfig(void*, int) { return SUCCESS; }
API Result cuFuncGetName(const char** name, void* handle) {
  Call call;
  Function* function = find_function(handle);
  if (!function) return INVALID_HANDLE;
  *name = function->kernel->name.c_str();
  return SUCCESS;
}
API Result cuFuncGetParamInfo(void* handle, size_t i, size_t* offset, size_t* size) {
  Call call;
  Function* function = find_function(handle);
  if (!function) return INVALID_HANDLE;
  if (i >= function->kernel->argument_sizes.size()) return INVALID_VALUE;
  if (offset) *offset = function->kernel->argument_offsets[i];
  if (size) *size = function->kernel->argument_sizes[i];
  return SUCCESS;
}
API Result cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void* handle, int threads, size_t shared) {
  Call call;
  if (!find_function(handle)) return INVALID_HANDLE;
  if (threads <= 0) return INVALID_VALUE;
  size_t whole = architecture() >= 90 ? 233472 : 167936;
  *blocks = std::min<size_t>({32, (size_t)2048 / threads, whole / (shared + 1024)});
  return SUCCESS;
}
API Result cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, void* handle, int threads, size_t shared,
                                                                unsigned) {
  return cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks, handle, threads, shared);
}

API Result cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                          unsigned shared, void* stream, void** arguments, void** extra) {
  return queue_kernel(function, {{gx, gy, gz}, {bx, by, bz}, shared, stream}, arguments, extra, false);
}
API Result cuLaunchCooperativeKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                                     unsigned bz, unsigned shared, void* stream, void** arguments) {
  return queue_kernel(function, {{gx, gy, gz}, {bx, by, bz}, shared, stream}, arguments, nullptr, true);
}
// CUlaunchConfig; attributes other than clusters change nothing here.
struct LaunchConfig {
  unsigned grid[3], block[3], shared;
  void* stream;
  struct Attribute {
    int id;
    unsigned pad;
    unsigned value[16];
  }* attributes;
  unsigned n;
};
API Result cuLaunchKernelEx(const LaunchConfig* config, void* function, void** arguments, void** extra) {
  constexpr int CLUSTER = 4;
  for (unsigned i = 0; i < config->n; i++) {
    const auto& attribute = config->attributes[i];
    if (attribute.id == CLUSTER && attribute.value[0] * attribute.value[1] * attribute.value[2] != 1)
      return NOT_SUPPORTED;
  }
  const auto &g = config->grid, &b = config->block;
  return queue_kernel(function, {{g[0], g[1], g[2]}, {b[0], b[1], b[2]}, config->shared, config->stream}, arguments,
                      extra, false);
}
