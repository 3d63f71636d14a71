// Stand-in libnvrtc: compiles nothing, and gives an image that names the source, the architecture and the options
// (image.h). It refuses what the compiler would refuse before it reads the code: unknown options, missing headers.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "image.h"

#define API extern "C" __attribute__((visibility("default")))

namespace {

enum Result {
  SUCCESS = 0,
  OUT_OF_MEMORY = 1,
  INVALID_INPUT = 3,
  INVALID_PROGRAM = 4,
  INVALID_OPTION = 5,
  COMPILATION = 6
};

struct Program {
  std::string source, name, log, image, ptx;
  std::map<std::string, std::string> headers;
  std::set<std::string> expressions;
  bool compiled = false;
};
uint64_t compilations = 0;

// Names in quotes or brackets that the text includes, apart from what is only for the emulator.
std::vector<std::string> included(const std::string& text) {
  std::vector<std::string> names;
  std::vector<bool> skipped;  // of each open #if: whether this part of it is the emulator's
  std::istringstream lines(text);
  std::string line;
  while (std::getline(lines, line)) {
    std::istringstream words(line);
    std::string directive, argument;
    words >> directive >> argument;
    if (directive == "#if" || directive == "#ifdef" || directive == "#ifndef")
      skipped.push_back(directive == "#ifdef" && argument == "CPU_EMU");
    else if (directive == "#else" && !skipped.empty())
      skipped.back() = false;
    else if (directive == "#endif" && !skipped.empty())
      skipped.pop_back();
    else if (directive == "#include" && argument.size() > 2 &&
             std::find(skipped.begin(), skipped.end(), true) == skipped.end())
      names.push_back(argument.substr(1, argument.size() - 2));
  }
  return names;
}

// The first header that is missing, or "".
std::string missing(const Program& program) {
  std::set<std::string> seen;
  std::vector<std::string> open = {program.source};
  while (!open.empty()) {
    std::string text = open.back();
    open.pop_back();
    for (const std::string& name : included(text)) {
      if (!seen.insert(name).second) continue;
      auto header = program.headers.find(name);
      if (header == program.headers.end()) return name;
      open.push_back(header->second);
    }
  }
  return "";
}

bool known(const std::string& option) {
  static const char* const BEGINNINGS[] = {
      "-D",
      "--define-macro",
      "-I",
      "--include-path",
      "--std=",
      "-std=",
      "-default-device",
      "--device-as-default-execution-space",
      "--ptxas-options",
      "-Xptxas",
      "--use_fast_math",
      "-use_fast_math",
      "--fmad=",
      "--ftz=",
      "--prec-div=",
      "--prec-sqrt=",
      "-lineinfo",
      "--generate-line-info",
      "-G",
      "--maxrregcount=",
      "-w",
      "--disable-warnings",
      "--diag-suppress=",
      "--extra-device-vectorization",
      "-U",
      "--restrict",
      "-restrict",
      "--split-compile=",
      "--minimal",
      "-minimal",
      "--no-source-include",
      "-no-source-include",
      "--dopt",
      "-dopt",
      "--modify-stack-limit=",
      "--display-error-number",
      "--no-display-error-number",
      "--time=",
  };
  for (const char* beginning : BEGINNINGS)
    if (!option.compare(0, strlen(beginning), beginning)) return true;
  return false;
}

Result give(const std::string& text, char* target) {
  memcpy(target, text.c_str(), text.size() + 1);
  return SUCCESS;
}

constexpr int ARCHITECTURES[] = {75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121};

}  // namespace

// How many programs were compiled.
API uint64_t emu_compilations() { return __atomic_load_n(&compilations, __ATOMIC_RELAXED); }

API Result nvrtcVersion(int* major, int* minor) {
  *major = 13;
  *minor = 0;
  return SUCCESS;
}
API Result nvrtcGetNumSupportedArchs(int* n) {
  *n = std::size(ARCHITECTURES);
  return SUCCESS;
}
API Result nvrtcGetSupportedArchs(int* all) {
  std::copy(std::begin(ARCHITECTURES), std::end(ARCHITECTURES), all);
  return SUCCESS;
}
API const char* nvrtcGetErrorString(Result result) {
  switch (result) {
    case SUCCESS: return "NVRTC_SUCCESS";
    case OUT_OF_MEMORY: return "NVRTC_ERROR_OUT_OF_MEMORY";
    case INVALID_INPUT: return "NVRTC_ERROR_INVALID_INPUT";
    case INVALID_PROGRAM: return "NVRTC_ERROR_INVALID_PROGRAM";
    case INVALID_OPTION: return "NVRTC_ERROR_INVALID_OPTION";
    case COMPILATION: return "NVRTC_ERROR_COMPILATION";
  }
  return "NVRTC_ERROR unknown";
}

API Result nvrtcCreateProgram(Program** program, const char* source, const char* name, int n,
                              const char* const* headers, const char* const* names) {
  if (!program || !source || n < 0 || (n && (!headers || !names))) return INVALID_INPUT;
  auto made = std::make_unique<Program>();
  made->source = source;
  made->name = name ? name : "";
  for (int i = 0; i < n; i++) made->headers[names[i]] = headers[i];
  *program = made.release();
  return SUCCESS;
}
API Result nvrtcDestroyProgram(Program** program) {
  if (!program || !*program) return INVALID_PROGRAM;
  delete *program;
  *program = nullptr;
  return SUCCESS;
}
API Result nvrtcCompileProgram(Program* program, int n, const char* const* options) {
  if (!program) return INVALID_PROGRAM;
  __atomic_fetch_add(&compilations, 1, __ATOMIC_RELAXED);
  std::string architecture = "sm_75", all;
  program->log.clear();
  auto refuse = [&](const std::string& why, Result result) {
    program->log = program->name + ": error: " + why + "\n";
    return result;
  };
  for (int i = 0; i < n; i++) {
    std::string option = options[i];
    all += (all.empty() ? "" : " ") + option;
    bool takes_next =
        option == "-D" || option == "-I" || option == "-U" || option == "--define-macro" || option == "--include-path";
    if (!option.compare(0, 18, "--gpu-architecture") || !option.compare(0, 5, "-arch")) {
      size_t equals = option.find('=');
      if (equals == option.npos && i + 1 == n) return refuse("no architecture", INVALID_OPTION);
      architecture = equals == option.npos ? options[++i] : option.substr(equals + 1);
      if (equals == option.npos) all += " " + architecture;
    } else if (!known(option)) {
      return refuse("unrecognized option " + option + " found", INVALID_OPTION);
    } else if (takes_next) {
      if (++i == n) return refuse("nothing follows " + option, INVALID_OPTION);
      all += std::string(" ") + options[i];
    }
  }
  bool is_virtual = !architecture.compare(0, 8, "compute_");
  if (!is_virtual && architecture.compare(0, 3, "sm_"))
    return refuse("invalid value for --gpu-architecture", INVALID_OPTION);
  int version = atoi(architecture.c_str() + architecture.find('_') + 1);
  if (std::find(std::begin(ARCHITECTURES), std::end(ARCHITECTURES), version) == std::end(ARCHITECTURES))
    return refuse("invalid value for --gpu-architecture (-arch)", INVALID_OPTION);
  std::string header = missing(*program);
  if (!header.empty()) return refuse("could not open source file \"" + header + "\"", COMPILATION);
  program->image = is_virtual ? "" : emu::device::Image{program->name, architecture, all}.text();
  program->ptx = ".version 9.0\n.target sm_" + architecture.substr(architecture.find('_') + 1) + "\n.address_size 64\n";
  program->compiled = true;
  return SUCCESS;
}

API Result nvrtcGetProgramLogSize(Program* program, size_t* bytes) {
  if (!program) return INVALID_PROGRAM;
  *bytes = program->log.size() + 1;
  return SUCCESS;
}
API Result nvrtcGetProgramLog(Program* program, char* log) {
  return program ? give(program->log, log) : INVALID_PROGRAM;
}
API Result nvrtcGetCUBINSize(Program* program, size_t* bytes) {
  if (!program || !program->compiled) return INVALID_PROGRAM;
  *bytes = program->image.empty() ? 0 : program->image.size() + 1;
  return SUCCESS;
}
API Result nvrtcGetCUBIN(Program* program, char* image) {
  return !program || program->image.empty() ? INVALID_PROGRAM : give(program->image, image);
}
API Result nvrtcGetPTXSize(Program* program, size_t* bytes) {
  if (!program || !program->compiled) return INVALID_PROGRAM;
  *bytes = program->ptx.size() + 1;
  return SUCCESS;
}
API Result nvrtcGetPTX(Program* program, char* ptx) {
  return !program || !program->compiled ? INVALID_PROGRAM : give(program->ptx, ptx);
}
// Kernels are extern "C": their names stay.
API Result nvrtcAddNameExpression(Program* program, const char* name) {
  if (!program) return INVALID_PROGRAM;
  program->expressions.insert(name);
  return SUCCESS;
}
API Result nvrtcGetLoweredName(Program* program, const char* name, const char** lowered) {
  constexpr Result NAME_EXPRESSION_NOT_VALID = (Result)10;
  if (!program || !program->compiled) return INVALID_PROGRAM;
  auto at = program->expressions.find(name);
  if (at == program->expressions.end()) return NAME_EXPRESSION_NOT_VALID;
  *lowered = at->c_str();
  return SUCCESS;
}
