// Kernels on a device: compiled and loaded once, launched on libtorch's current stream.
#pragma once

#include <cstdint>

#include "../loops.h"

namespace ln_tuning {
namespace gpu {

enum class Kernel {
  norm,
  norm_backward,
  norm_backward_with_bias,
  norm_backward_of_long_rows,
  total,
  gated,
  gated_backward,
  rope,
  cross_entropy
};

struct Grid {
  int64_t blocks_x, blocks_y;
  int threads_x, threads_y;
};

// True if the kernels of this kind are loaded on this device. They are compiled and loaded at the first call, which
// throws a std::runtime_error with the reason if that is not possible, as does every later one. While a graph is
// captured on libtorch's current stream, nothing can be loaded: false.
bool load(int device, Kind kind);

// The same, without loading.
bool is_loaded(int device, Kind kind);

// The device must be libtorch's current one, and the kernels loaded. Throws a std::runtime_error.
void launch(int device, Kind kind, Kernel kernel, const Grid& grid, const void* arguments);

}  // namespace gpu
}  // namespace ln_tuning
