// The border of what only CUDA needs, and of the checks of the fused functions on any device.
#pragma once

#include "tensors.h"
#ifdef LN_TUNING_GPU
#include "../gpu/compile.h"
#endif

namespace ln_tuning {

#ifdef LN_TUNING_GPU
// Loads the kernels of a kind on a device if they are not there; `ready` is then 1. It stays 0 without a message while
// a graph is captured.
extern "C" char* ln_tuning_gpu_load(int64_t device, int64_t kind, int64_t* ready) {
  return guarded([&] {
    const c10::OptionalDeviceGuard guard(c10::Device(c10::kCUDA, (c10::DeviceIndex)device));
    *ready = gpu::load((int)device, (Kind)kind);
  });
}

// NVRTC's words about the kernels of a kind for a compute capability, times ten. The caller frees it.
extern "C" char* ln_tuning_gpu_compile(int64_t capability, int64_t kind, char** log) {
  return guarded([&] { *log = strdup(gpu::compile((int)capability, (Kind)kind).log.c_str()); });
}
#endif

// The gradients of `inputs` from those of `outputs`, which tch has no call for.
extern "C" char* ln_tuning_gradients(
    Tensor** results,
    const Tensor* const* outputs,
    const Tensor* const* gradients,
    int64_t outputs_count,
    const Tensor* const* inputs,
    int64_t inputs_count) {
  return guarded([&] {
    const auto list = [](const Tensor* const* tensors, int64_t count) {
      variable_list all;
      for (int64_t i = 0; i < count; ++i) all.push_back(*tensors[i]);
      return all;
    };
    variable_list found = torch::autograd::grad(
        list(outputs, outputs_count), list(inputs, inputs_count), list(gradients, outputs_count));
    for (int64_t i = 0; i < inputs_count; ++i) results[i] = new Tensor(std::move(found[i]));
  });
}

}  // namespace ln_tuning
