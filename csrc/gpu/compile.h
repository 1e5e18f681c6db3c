// The kernels' source, compiled by NVRTC for a kind of device.
#pragma once

#include <string>

#include "../loops.h"

namespace ln_tuning {
namespace gpu {

struct Compiled {
  // A cubin; PTX for devices that are newer than NVRTC.
  std::string image;
  // NVRTC's words; the registers and the local memory of each kernel are in it.
  std::string log;
};

// The kernels of one kind for a compute capability, times ten; compiled at the first call, and kept. Throws a
// std::runtime_error with the reason if they cannot be compiled.
const Compiled& compile(int capability, Kind kind);

// "f32", with which the names of the kernels end.
const char* name_of(Kind kind);

}  // namespace gpu
}  // namespace ln_tuning
