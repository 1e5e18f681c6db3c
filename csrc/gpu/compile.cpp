#include "compile.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <stdexcept>
#include <vector>

#include "library.h"

namespace ln_tuning {
namespace gpu {
namespace {

struct Text {
  const char* name;
  const char* text;
};

// Written by the build script: kernels.cu, and what it includes.
const Text texts[] = {
#include "gpu_texts.inc"
};
constexpr int HEADERS = sizeof(texts) / sizeof(texts[0]) - 1;

void checked(Result result, const char* call) {
  if (result != 0) {
    throw std::runtime_error(std::string(call) + " fails: " + nvrtc().nvrtcGetErrorString(result));
  }
}

// The option for a capability: code for that device if NVRTC knows it, else for the newest that it can become.
std::string architecture(int capability) {
  int count = 0, major = 0, minor = 0;
  checked(nvrtc().nvrtcGetNumSupportedArchs(&count), "nvrtcGetNumSupportedArchs");
  std::vector<int> known(count);
  checked(nvrtc().nvrtcGetSupportedArchs(known.data()), "nvrtcGetSupportedArchs");
  if (std::find(known.begin(), known.end(), capability) != known.end()) return "sm_" + std::to_string(capability);
  int newest = 0;
  for (const int one : known) {
    if (one < capability) newest = std::max(newest, one);
  }
  if (newest == 0) {
    nvrtc().nvrtcVersion(&major, &minor);
    throw std::runtime_error(
        "NVRTC " + std::to_string(major) + "." + std::to_string(minor) + " compiles for no device as old as this one (" +
        std::to_string(capability / 10) + "." + std::to_string(capability % 10) + ")");
  }
  return "compute_" + std::to_string(newest);
}

// Ends with the scope.
struct Program {
  void* handle = nullptr;
  ~Program() {
    if (handle) nvrtc().nvrtcDestroyProgram(&handle);
  }
};

}  // namespace

const char* name_of(Kind kind) { return kind == Kind::f32 ? "f32" : kind == Kind::bf16 ? "bf16" : "f16"; }

const Compiled& compile(int capability, Kind kind) {
  static std::mutex lock;
  static std::map<std::pair<int, Kind>, Compiled> kept;
  const std::lock_guard<std::mutex> guard(lock);
  const auto found = kept.find({capability, kind});
  if (found != kept.end()) return found->second;
  const std::string target = architecture(capability);
  const std::string for_target = "--gpu-architecture=" + target;
  const std::string define =
      std::string("--define-macro=KIND_") + (kind == Kind::f32 ? "F32" : kind == Kind::bf16 ? "BF16" : "F16");
  const char* const options[] = {for_target.c_str(), define.c_str(), "--std=c++17", "--ptxas-options=-v"};
  const char* headers[HEADERS];
  const char* names[HEADERS];
  for (int i = 0; i < HEADERS; ++i) {
    headers[i] = texts[i + 1].text;
    names[i] = texts[i + 1].name;
  }
  Program program;
  checked(
      nvrtc().nvrtcCreateProgram(&program.handle, texts[0].text, texts[0].name, HEADERS, headers, names),
      "nvrtcCreateProgram");
  const Result result = nvrtc().nvrtcCompileProgram(program.handle, 4, options);
  Compiled compiled;
  size_t size = 0;
  if (nvrtc().nvrtcGetProgramLogSize(program.handle, &size) == 0 && size > 1) {
    compiled.log.resize(size);
    nvrtc().nvrtcGetProgramLog(program.handle, &compiled.log[0]);
    compiled.log.resize(size - 1);
  }
  if (result != 0) {
    throw std::runtime_error(
        "NVRTC cannot compile the kernels for " + target + " (" + nvrtc().nvrtcGetErrorString(result) + "): " +
        compiled.log);
  }
  const bool ready = target[0] == 's';
  const auto get_size = ready ? nvrtc().nvrtcGetCUBINSize : nvrtc().nvrtcGetPTXSize;
  const auto get = ready ? nvrtc().nvrtcGetCUBIN : nvrtc().nvrtcGetPTX;
  checked(get_size(program.handle, &size), "nvrtcGetCUBINSize");
  compiled.image.resize(size);
  checked(get(program.handle, &compiled.image[0]), "nvrtcGetCUBIN");
  return kept[{capability, kind}] = std::move(compiled);
}

}  // namespace gpu
}  // namespace ln_tuning
