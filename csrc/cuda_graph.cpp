// CUDA graphs of libtorch behind a C interface, and the stream beside the default one on which they are captured. Every
// function returns null, or a message that the caller frees with `free`; no exception leaves.

#include <ATen/ops/zeros.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/version.h>

#include <dlfcn.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <utility>

#include "guarded.h"

namespace {

using ln_tuning::guarded;

// `cudaStreamCaptureModeThreadLocal`: other threads, such as those that make the next batches, go on as they like.
constexpr int32_t THREAD_LOCAL = 1;
// A graph is constructed in memory that holds any: its header needs those of CUDA, which few machines have.
constexpr size_t ROOM = 1 << 12;

using Pool = std::pair<unsigned long long, unsigned long long>;

// Members of `at::cuda::CUDAGraph`, which stands in libtorch_cuda, by their names in libtorch 2.11 to 2.13. A program
// loads that library late or never, so that they are looked up here and not linked.
struct Members {
  void (*construct)(void*, bool);
  void (*destroy)(void*);
  void (*capture_begin)(void*, Pool, int32_t);
  void (*capture_end)(void*);
  void (*replay)(void*);
  Pool (*pool)(void*);
};

const Members& members() {
  static const Members found = [] {
    TORCH_CHECK(
        TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR >= 11 && TORCH_VERSION_MINOR <= 13,
        "CUDA graphs are known of libtorch 2.11 to 2.13, and this is ", TORCH_VERSION);
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    TORCH_CHECK(library != nullptr, "libtorch_cuda.so, which has CUDA graphs, is not loaded");
    const auto find = [&](auto& member, const char* name) {
      void* symbol = dlsym(library, name);
      TORCH_CHECK(symbol != nullptr, "this libtorch_cuda.so has other CUDA graphs: ", name, " is missing");
      member = reinterpret_cast<std::decay_t<decltype(member)>>(symbol);
    };
    Members members;
    find(members.construct, "_ZN2at4cuda9CUDAGraphC1Eb");
    find(members.destroy, "_ZN2at4cuda9CUDAGraphD1Ev");
    find(members.capture_begin, "_ZN2at4cuda9CUDAGraph13capture_beginESt4pairIyyE21cudaStreamCaptureMode");
    find(members.capture_end, "_ZN2at4cuda9CUDAGraph11capture_endEv");
    find(members.replay, "_ZN2at4cuda9CUDAGraph6replayEv");
    find(members.pool, "_ZN2at4cuda9CUDAGraph4poolEv");
    return members;
  }();
  return found;
}

void* new_graph() {
  void* graph = ::operator new(ROOM);
  std::memset(graph, 0, ROOM);
  try {
    members().construct(graph, false);
  } catch (...) {
    ::operator delete(graph);
    throw;
  }
  return graph;
}

void free_graph(void* graph) {
  members().destroy(graph);
  ::operator delete(graph);
}

c10::impl::VirtualGuardImpl cuda() {
  return c10::impl::VirtualGuardImpl(c10::DeviceType::CUDA);
}

c10::Device device_at(int64_t device) {
  return c10::Device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(device));
}

c10::Stream stream_at(const int64_t* stream) {
  return c10::Stream::unpack3(
      stream[0], static_cast<c10::DeviceIndex>(stream[1]), static_cast<c10::DeviceType>(stream[2]));
}

void write(c10::Stream from, int64_t* stream) {
  const auto packed = from.pack3();
  stream[0] = packed.stream_id;
  stream[1] = packed.device_index;
  stream[2] = static_cast<int64_t>(packed.device_type);
}

// Work that is asked of `later` from now on begins when `earlier` has done its own.
void wait(c10::Stream later, c10::Stream earlier) {
  c10::Event event(c10::DeviceType::CUDA);
  event.record(earlier);
  event.block(later);
}

// A capture that has failed leaves libtorch's random numbers in the state of one: the end of another one ends that.
void end_capture_of_random_numbers(c10::Device device) {
  const auto stream = cuda().getStreamFromGlobalPool(device, false);
  const auto before = cuda().exchangeStream(stream);
  try {
    void* graph = new_graph();
    members().capture_begin(graph, Pool(0, 0), THREAD_LOCAL);
    at::zeros({1}, at::TensorOptions().device(device)); // libtorch warns of an empty one
    members().capture_end(graph);
    free_graph(graph);
  } catch (...) {
  }
  cuda().exchangeStream(before);
}

} // namespace

extern "C" {

// A stream of a device that waits for no other, as three numbers.
char* ln_tuning_stream_new(int64_t device, int64_t* stream) {
  return guarded([&] { write(cuda().getStreamFromGlobalPool(device_at(device), false), stream); });
}

// Makes a stream the current one of this thread, behind all that was asked of the former, and its device the current
// device. `before`: the former stream, and the former device.
char* ln_tuning_stream_enter(const int64_t* stream, int64_t* before) {
  return guarded([&] {
    const auto own = stream_at(stream);
    const auto former = cuda().getStream(own.device());
    wait(own, former);
    write(former, before);
    before[3] = cuda().exchangeDevice(own.device()).index();
    cuda().exchangeStream(own);
  });
}

// The reverse: the former stream goes on behind all that was asked of this one.
char* ln_tuning_stream_leave(const int64_t* stream, const int64_t* before) {
  return guarded([&] {
    const auto former = stream_at(before);
    cuda().exchangeStream(former);
    cuda().uncheckedSetDevice(device_at(before[3]));
    wait(former, stream_at(stream));
  });
}

// Begins to capture what is asked of the current stream, in memory of `beside`'s, a graph that never runs at the same
// time, or of its own. Waits for the device, and gives back what libtorch keeps of its memory for later.
char* ln_tuning_graph_begin(int64_t device, void* beside, void** graph) {
  return guarded([&] {
    members();
    cuda().synchronizeDevice(static_cast<c10::DeviceIndex>(device));
    c10::getDeviceAllocator(c10::DeviceType::CUDA)->emptyCache();
    *graph = new_graph();
    const Pool pool = beside == nullptr ? Pool(0, 0) : members().pool(beside);
    members().capture_begin(*graph, pool, THREAD_LOCAL);
  });
}

// Ends the capture. A graph whose capture has failed must not be freed: libtorch still knows it.
char* ln_tuning_graph_end(int64_t device, void* graph) {
  return guarded([&] {
    try {
      members().capture_end(graph);
    } catch (...) {
      end_capture_of_random_numbers(device_at(device));
      throw;
    }
  });
}

char* ln_tuning_graph_replay(void* graph) {
  return guarded([&] { members().replay(graph); });
}

// It may still run: CUDA waits for that, and its memory goes back to the device and not to other tensors.
char* ln_tuning_graph_free(void* graph) {
  return guarded([&] { free_graph(graph); });
}

} // extern "C"
