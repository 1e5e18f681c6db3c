#include "launch.h"

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>

#include "compile.h"
#include "library.h"

namespace ln_tuning {
namespace gpu {
namespace {

// In the order of `Kernel`.
constexpr const char* NAMES[] = {
    "norm", "norm_backward", "norm_backward_with_bias", "norm_backward_of_long_rows", "total", "gated", "gated_backward",
    "rope", "cross_entropy"};
constexpr int KERNELS = sizeof(NAMES) / sizeof(NAMES[0]);
constexpr int DEVICES = 64, KINDS = 3;

struct Module {
  void* context;
  void* functions[KERNELS];
};

// Loaded kernels stay loaded.
std::atomic<const Module*> modules[DEVICES][KINDS];

std::atomic<const Module*>& place(int device, Kind kind) {
  if (device < 0 || device >= DEVICES) throw std::runtime_error("more devices than " + std::to_string(DEVICES));
  return modules[device][(int)kind];
}

// A thread of libtorch's backward pass may not have been on its device yet.
void enter(void* context) {
  void* current = nullptr;
  check(driver().cuCtxGetCurrent(&current), "cuCtxGetCurrent");
  if (!current) check(driver().cuCtxSetCurrent(context), "cuCtxSetCurrent");
}

int attribute(int device, int name) {
  int value = 0;
  check(driver().cuDeviceGetAttribute(&value, name, device), "cuDeviceGetAttribute");
  return value;
}

const Module* make(int ordinal, Kind kind) {
  check(driver().cuInit(0), "cuInit");
  int device = 0;
  check(driver().cuDeviceGet(&device, ordinal), "cuDeviceGet");
  // Major and minor number of the compute capability.
  const int capability = 10 * attribute(device, 75) + attribute(device, 76);
  const std::string& image = compile(capability, kind).image;
  auto made = std::make_unique<Module>();
  // The one that libtorch's runtime uses too. It is kept until the process ends.
  check(driver().cuDevicePrimaryCtxRetain(&made->context, device), "cuDevicePrimaryCtxRetain");
  enter(made->context);
  void* module = nullptr;
  check(driver().cuModuleLoadDataEx(&module, image.data(), 0, nullptr, nullptr), "cuModuleLoadDataEx");
  for (int i = 0; i < KERNELS; ++i) {
    const std::string name = std::string("ln_tuning_") + NAMES[i] + "_" + name_of(kind);
    check(driver().cuModuleGetFunction(&made->functions[i], module, name.c_str()), "cuModuleGetFunction");
  }
  return made.release();
}

bool is_capturing(int device) {
  int status = 0;
  check(driver().cuStreamIsCapturing(current_stream(device), &status), "cuStreamIsCapturing");
  return status != 0;
}

}  // namespace

bool load(int device, Kind kind) {
  if (is_loaded(device, kind)) return true;
  static std::mutex lock;
  static std::map<std::pair<int, int>, std::string> failures;
  const std::lock_guard<std::mutex> guard(lock);
  if (is_loaded(device, kind)) return true;
  std::string& failure = failures[{device, (int)kind}];
  if (!failure.empty()) throw std::runtime_error(failure);
  try {
    if (is_capturing(device)) return false;
    place(device, kind).store(make(device, kind), std::memory_order_release);
    return true;
  } catch (const std::exception& error) {
    failure = error.what();
    throw;
  }
}

bool is_loaded(int device, Kind kind) { return place(device, kind).load(std::memory_order_acquire) != nullptr; }

void launch(int device, Kind kind, Kernel kernel, const Grid& grid, const void* arguments) {
  const Module* module = place(device, kind).load(std::memory_order_acquire);
  if (!module) throw std::runtime_error("the kernels are not loaded on this device");
  enter(module->context);
  void* values[] = {const_cast<void*>(arguments)};
  const Result result = driver().cuLaunchKernel(
      module->functions[(int)kernel], (unsigned)grid.blocks_x, (unsigned)grid.blocks_y, 1, (unsigned)grid.threads_x,
      (unsigned)grid.threads_y, 1, 0, current_stream(device), values, nullptr);
  check(result, (std::string("the launch of ln_tuning_") + NAMES[(int)kernel] + "_" + name_of(kind)).c_str());
}

}  // namespace gpu
}  // namespace ln_tuning
