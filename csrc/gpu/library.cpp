#include "library.h"

#include <dlfcn.h>

#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

// Of libtorch; its address tells where libtorch stands. The header would take half a minute to compile.
namespace at {
class Context;
Context& globalContext();
}  // namespace at

namespace ln_tuning {
namespace gpu {
namespace {

std::string last_error() {
  const char* text = dlerror();
  return text ? text : "no reason is given";
}

// Fills in the functions of a table, which stand behind each other.
template <class Table, size_t COUNT>
Table found(void* library, const char* of, const char* const (&names)[COUNT]) {
  static_assert(sizeof(Table) == COUNT * sizeof(void*), "");
  union {
    Table table;
    void* functions[COUNT];
  } all;
  for (size_t i = 0; i < COUNT; ++i) {
    all.functions[i] = dlsym(library, names[i]);
    if (!all.functions[i]) throw std::runtime_error(std::string(of) + " has no function " + names[i]);
  }
  return all.table;
}

Driver find_driver() {
  // Never closed.
  void* library = dlopen("libcuda.so.1", RTLD_NOW);
  if (!library) throw std::runtime_error("NVIDIA's driver cannot be loaded: " + last_error());
  const char* const names[] = {
      "cuInit", "cuDeviceGet", "cuDeviceGetAttribute", "cuDevicePrimaryCtxRetain", "cuCtxGetCurrent",
      "cuCtxSetCurrent", "cuModuleLoadDataEx", "cuModuleGetFunction", "cuLaunchKernel", "cuStreamIsCapturing",
      "cuGetErrorString"};
  return found<Driver>(library, "NVIDIA's driver", names);
}

// The folder of the library that has this function.
std::string folder_of(void* function) {
  Dl_info info;
  if (!dladdr(function, &info) || !info.dli_fname) return "";
  const std::string path = info.dli_fname;
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "" : path.substr(0, slash + 1);
}

// NVRTC opens its second half by name when it compiles, and finds it only where the loader looks. Beside NVRTC it is
// always.
void load_builtins(const Nvrtc& nvrtc) {
  int major = 0, minor = 0;
  if (nvrtc.nvrtcVersion(&major, &minor) != 0) return;
  const std::string name = "libnvrtc-builtins.so." + std::to_string(major) + "." + std::to_string(minor);
  dlopen((folder_of((void*)nvrtc.nvrtcCompileProgram) + name).c_str(), RTLD_NOW);
}

Nvrtc find_nvrtc() {
  const char* const names[] = {
      "nvrtcVersion", "nvrtcGetNumSupportedArchs", "nvrtcGetSupportedArchs", "nvrtcCreateProgram",
      "nvrtcDestroyProgram", "nvrtcCompileProgram", "nvrtcGetProgramLogSize", "nvrtcGetProgramLog",
      "nvrtcGetCUBINSize", "nvrtcGetCUBIN", "nvrtcGetPTXSize", "nvrtcGetPTX", "nvrtcGetErrorString"};
  // libtorch's own way to NVRTC comes first: it knows where the one stands that was installed with it.
  std::vector<std::string> places = {
      folder_of((void*)&at::globalContext) + "libcaffe2_nvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"};
  const char* chosen = std::getenv("LN_TUNING_NVRTC");
  if (chosen && *chosen) places = {chosen};
  std::string reasons;
  for (const std::string& place : places) {
    void* library = dlopen(place.c_str(), RTLD_NOW);
    if (library && dlsym(library, "nvrtcCompileProgram")) {
      const Nvrtc table = found<Nvrtc>(library, "NVRTC", names);
      load_builtins(table);
      return table;
    }
    reasons += "; " + (library ? "'" + place + "' has no NVRTC" : last_error());
  }
  throw std::runtime_error(
      "NVRTC, CUDA's compiler at run time, cannot be loaded (install the package nvidia-cuda-nvrtc, or name its library "
      "in LN_TUNING_NVRTC)" + reasons);
}

// The functions, or the reason why they were not found.
template <class Table>
struct Answer {
  Table table = {};
  std::string reason;

  explicit Answer(Table (*find)()) {
    try {
      table = find();
    } catch (const std::exception& error) {
      reason = error.what();
    }
  }

  const Table& get() const {
    if (!reason.empty()) throw std::runtime_error(reason);
    return table;
  }
};

// c10::cuda::CUDAStream, which holds a c10::Stream and nothing else.
struct CudaStream {
  c10::Stream stream;
};

struct Streams {
  CudaStream (*current)(c10::DeviceIndex device);
  void* (*raw)(const CudaStream* self);
};

Streams find_streams() {
  const char* const names[] = {"_ZN3c104cuda20getCurrentCUDAStreamEa", "_ZNK3c104cuda10CUDAStream6streamEv"};
  // Loaded with libtorch_cuda, which has made the tensors. A program may not see it: a module of Python has libtorch for
  // itself.
  void* library = dlopen("libc10_cuda.so", RTLD_NOW | RTLD_NOLOAD);
  return found<Streams>(library ? library : RTLD_DEFAULT, "libtorch's CUDA (known: 2.11)", names);
}

}  // namespace

const Driver& driver() {
  static const Answer<Driver> answer(find_driver);
  return answer.get();
}

const Nvrtc& nvrtc() {
  static const Answer<Nvrtc> answer(find_nvrtc);
  return answer.get();
}

void* current_stream(c10::DeviceIndex device) {
  static const Answer<Streams> answer(find_streams);
  const CudaStream stream = answer.get().current(device);
  return answer.get().raw(&stream);
}

void check(Result result, const char* call) {
  if (result == 0) return;
  const char* words = nullptr;
  driver().cuGetErrorString(result, &words);
  throw std::runtime_error(
      std::string(call) + " fails: " + (words ? words : "an unknown error") + ", error " + std::to_string(result));
}

}  // namespace gpu
}  // namespace ln_tuning
