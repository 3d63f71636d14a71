// Registry of kernels compiled for the emulator: the stand-in libcuda finds them by name and copies their arguments at
// launch. `EXPORT(name)` of kernels/types.cuh is, under CPU_EMU:
//   #define EXPORT(name) EXPORT_NAMED(name)
#pragma once
#include <cstddef>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

namespace emu {

struct Kernel {
  std::string name;
  std::string file;  // without folders
  std::vector<size_t> argument_offsets, argument_sizes;
  // Copies the arguments, then gives what one thread of the launch does.
  std::function<std::function<void()>(void** arguments)> bind;
};

// By name. A kernel of the same name that is registered again takes the place of the earlier one; `clashes` counts
// that.
struct Kernels {
  std::map<std::string, Kernel> by_name;
  unsigned clashes = 0;
};
inline Kernels& kernels() {
  static Kernels all;
  return all;
}

struct Export {
  template <class... Arguments>
  Export(const char* name, const char* path, void (*kernel)(Arguments...)) {
    static_assert((std::is_trivially_copyable_v<Arguments> && ...), "the driver copies arguments as bytes");
    Kernel entry;
    entry.name = name;
    entry.file = path;
    entry.file.erase(0, entry.file.rfind('/') + 1);
    size_t at = 0;
    auto place = [&](size_t size, size_t alignment) {
      at = (at + alignment - 1) / alignment * alignment;
      entry.argument_offsets.push_back(at);
      entry.argument_sizes.push_back(size);
      at += size;
    };
    (place(sizeof(Arguments), alignof(Arguments)), ...);
    entry.bind = [kernel]([[maybe_unused]] void** arguments) -> std::function<void()> {
      auto copies = std::make_shared<std::tuple<Arguments...>>();
      [[maybe_unused]] size_t i = 0;
      // Callers need not align what they pass.
      std::apply([&](auto&... each) { (memcpy((void*)&each, arguments[i++], sizeof each), ...); }, *copies);
      return [kernel, copies] { std::apply(kernel, *copies); };
    };
    Kernels& all = kernels();
    all.clashes += !all.by_name.insert_or_assign(entry.name, entry).second;
  }
};

}  // namespace emu

#define EMU_JOINED(a, b) a##b
#define EMU_EXPORT(name, kernel) static const emu::Export EMU_JOINED(export_of_, kernel)(#name, __FILE__, kernel);
#define EXPORT_NAMED(name) EMU_EXPORT(name, name)
