// Functions of NVIDIA's driver, of NVRTC and of libtorch's CUDA that the GPU kernels need: found in the running process, since
// this crate is built without CUDA and runs where there is none. The types are those of cuda.h and nvrtc.h, versions 12
// and 13.
#pragma once

#include <c10/core/Stream.h>

#include <cstddef>

namespace ln_tuning {
namespace gpu {

// The driver's and NVRTC's numbers; 0 is success.
typedef int Result;

struct Driver {
  Result (*cuInit)(unsigned flags);
  Result (*cuDeviceGet)(int* device, int ordinal);
  Result (*cuDeviceGetAttribute)(int* value, int attribute, int device);
  Result (*cuDevicePrimaryCtxRetain)(void** context, int device);
  Result (*cuCtxGetCurrent)(void** context);
  Result (*cuCtxSetCurrent)(void* context);
  Result (*cuModuleLoadDataEx)(void** module, const void* image, unsigned options, int* names, void** values);
  Result (*cuModuleGetFunction)(void** function, void* module, const char* name);
  Result (*cuLaunchKernel)(
      void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
      unsigned block_z, unsigned shared, void* stream, void** arguments, void** extra);
  Result (*cuStreamIsCapturing)(void* stream, int* status);
  Result (*cuGetErrorString)(Result error, const char** text);
};

struct Nvrtc {
  Result (*nvrtcVersion)(int* major, int* minor);
  Result (*nvrtcGetNumSupportedArchs)(int* count);
  Result (*nvrtcGetSupportedArchs)(int* archs);
  Result (*nvrtcCreateProgram)(
      void** program, const char* source, const char* name, int headers, const char* const* header_sources,
      const char* const* header_names);
  Result (*nvrtcDestroyProgram)(void** program);
  Result (*nvrtcCompileProgram)(void* program, int options, const char* const* option);
  Result (*nvrtcGetProgramLogSize)(void* program, size_t* size);
  Result (*nvrtcGetProgramLog)(void* program, char* log);
  Result (*nvrtcGetCUBINSize)(void* program, size_t* size);
  Result (*nvrtcGetCUBIN)(void* program, char* cubin);
  Result (*nvrtcGetPTXSize)(void* program, size_t* size);
  Result (*nvrtcGetPTX)(void* program, char* ptx);
  const char* (*nvrtcGetErrorString)(Result error);
};

// Each throws a std::runtime_error with the reason if there is none, at every call.
const Driver& driver();
const Nvrtc& nvrtc();

// The stream on which libtorch computes on this device: a cudaStream_t, which is a CUstream.
void* current_stream(c10::DeviceIndex device);

// Throws with the driver's words if this is an error.
void check(Result result, const char* call);

}  // namespace gpu
}  // namespace ln_tuning
