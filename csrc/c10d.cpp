// libtorch's c10d behind a C interface: the store through which processes meet, and Gloo, through which they add up
// tensors. Every function returns null, or a message that the caller frees with `ln_c10d_free`; no exception leaves.

#include <dlfcn.h>

#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <string>
#include <vector>

// libtorch has Gloo in it, and c10d's header for it, but not the headers of Gloo that this one includes. The build
// script makes empty ones; these are the names that c10d's header needs, as Gloo declares them for libtorch 2.11 to
// 2.13. No function of theirs is called here, and no object of theirs made, so that their layout does not matter.
namespace gloo {
class Context {
 public:
  void setTimeout(std::chrono::milliseconds timeout);
};
namespace rendezvous {
class Store {
 public:
  virtual ~Store() = default;
  virtual void set(const std::string& key, const std::vector<char>& value) = 0;
  virtual std::vector<char> get(const std::string& key) = 0;
  virtual void wait(const std::vector<std::string>& keys) = 0;
  virtual void wait(const std::vector<std::string>& keys, const std::chrono::milliseconds& timeout) = 0;
};
} // namespace rendezvous
namespace transport {
class Device;
class UnboundBuffer {
 public:
  virtual ~UnboundBuffer() = default;
};
} // namespace transport
} // namespace gloo

#ifndef USE_C10D_GLOO
#define USE_C10D_GLOO
#endif
#include <c10/util/Logging.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "guarded.h"

namespace {

using Store = c10::intrusive_ptr<c10d::Store>;
using Backend = c10::intrusive_ptr<c10d::Backend>;
using Work = c10::intrusive_ptr<c10d::Work>;
using Millis = std::chrono::milliseconds;

using ln_tuning::guarded;

Store& store_at(void* store) {
  return *static_cast<Store*>(store);
}

Backend& backend_at(void* backend) {
  return *static_cast<Backend*>(backend);
}

at::Tensor& tensor_at(void* tensor) {
  return *static_cast<at::Tensor*>(tensor);
}

// Waits for an operation that writes to a tensor, and tells autograd of it.
void wait_for(const Work& work, const at::Tensor& written) {
  work->wait();
  written.unsafeGetTensorImpl()->bump_version();
}

// An object whose size is not known, built by `construct` in memory that holds any.
template <typename T, typename F>
T* built(F construct) {
  constexpr size_t room = 1 << 16;
  void* memory = ::operator new(room);
  std::memset(memory, 0, room);
  try {
    construct(memory);
  } catch (...) {
    ::operator delete(memory);
    throw;
  }
  return static_cast<T*>(memory);
}

// c10d logs each try, with its stack, to standard error. What counts comes as an error, once. TORCH_CPP_LOG_LEVEL shows
// all of it, as in Python.
struct Quiet {
  const int before = FLAGS_caffe2_log_level;
  Quiet() {
    if (std::getenv("TORCH_CPP_LOG_LEVEL") == nullptr) {
      FLAGS_caffe2_log_level = c10::GLOG_FATAL;
    } else {
      c10::initLogging();
    }
  }
  ~Quiet() {
    if (std::getenv("TORCH_CPP_LOG_LEVEL") == nullptr) {
      FLAGS_caffe2_log_level = before;
    }
  }
};

} // namespace

extern "C" {

void ln_c10d_free(void* memory) {
  free(memory);
}

char* ln_c10d_store_connect(const char* host, uint16_t port, bool is_server, int64_t timeout_ms, void** store) {
  return guarded([&] {
    Quiet quiet;
    c10d::TCPStoreOptions options;
    options.port = port;
    options.isServer = is_server;
    // The caller counts the processes itself.
    options.waitWorkers = false;
    options.timeout = Millis(timeout_ms);
    // Several groups of one process share the port, as in Python.
    options.multiTenant = is_server;
    *store = new Store(c10::make_intrusive<c10d::TCPStore>(host, options));
  });
}

void ln_c10d_store_free(void* store) {
  guarded([&] { delete static_cast<Store*>(store); });
}

char* ln_c10d_store_set(void* store, const char* key, const uint8_t* bytes, size_t length) {
  return guarded([&] { store_at(store)->set(key, std::vector<uint8_t>(bytes, bytes + length)); });
}

char* ln_c10d_store_append(void* store, const char* key, const uint8_t* bytes, size_t length) {
  return guarded([&] { store_at(store)->append(key, std::vector<uint8_t>(bytes, bytes + length)); });
}

// The value of a key, which the caller frees; null if there is none.
char* ln_c10d_store_get(void* store, const char* key, uint8_t** bytes, size_t* length) {
  return guarded([&] {
    *bytes = nullptr;
    if (!store_at(store)->check({key})) {
      return;
    }
    const auto value = store_at(store)->get(key);
    *bytes = static_cast<uint8_t*>(malloc(value.size() + 1));
    TORCH_CHECK(*bytes != nullptr, "not enough memory for ", value.size(), " bytes");
    std::memcpy(*bytes, value.data(), value.size());
    *length = value.size();
  });
}

// `address` is that of this machine's side; null leaves the choice to GLOO_SOCKET_IFNAME and the machine's name.
char* ln_c10d_gloo_new(
    void* store,
    const char* prefix,
    int32_t rank,
    int32_t size,
    const char* address,
    int64_t timeout_ms,
    void** backend) {
  return guarded([&] {
    using Gloo = c10d::ProcessGroupGloo;
    auto options = address == nullptr ? Gloo::Options::create_default(Millis(timeout_ms))
                                      : Gloo::Options::create(Millis(timeout_ms));
    if (address != nullptr) {
      options->devices.push_back(Gloo::createDeviceForHostname(address));
    }
    // As in Python. The thread of one operation may still be on its way to sleep when the next comes: with one thread
    // that takes a turn of the scheduler, milliseconds where others want the processors.
    options->threads = 2;
    auto own = c10::make_intrusive<c10d::PrefixStore>(prefix, store_at(store));
    *backend = new Backend(c10::make_intrusive<Gloo>(own, rank, size, options));
  });
}

// NCCL stands in libtorch_cuda, which a program loads late or never, so that it is looked up here and not linked. Its
// header needs those of CUDA, which few machines have: the two constructors are called by their names in libtorch 2.11
// to 2.13, on memory that is larger than the objects. All else is virtual, or is in the classes that they extend.
char* ln_c10d_nccl_new(
    void* store,
    const char* prefix,
    int32_t rank,
    int32_t size,
    int64_t timeout_ms,
    void** backend) {
  return guarded([&] {
    using Options = c10d::Backend::Options;
    using OptionsPtr = c10::intrusive_ptr<Options>;
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    TORCH_CHECK(library != nullptr, "libtorch_cuda.so, which has NCCL, is not loaded");
    const auto make_options = reinterpret_cast<void (*)(void*, bool)>(
        dlsym(library, "_ZN4c10d16ProcessGroupNCCL7OptionsC1Eb"));
    const auto make = reinterpret_cast<void (*)(void*, Store, int, int, OptionsPtr)>(dlsym(
        library,
        "_ZN4c10d16ProcessGroupNCCLC1EN3c1013intrusive_ptrINS_5StoreENS1_6detail34intrusive_target_default_null_typeI"
        "S3_EEEEiiNS2_INS0_7OptionsENS5_IS8_EEEE"));
    TORCH_CHECK(make_options != nullptr && make != nullptr, "this libtorch_cuda.so has no NCCL, or another one");
    auto options = OptionsPtr::unsafe_steal_from_new(
        built<Options>([&](void* memory) { make_options(memory, false); }));
    options->timeout = Millis(timeout_ms);
    const Store own = c10::make_intrusive<c10d::PrefixStore>(prefix, store_at(store));
    *backend = new Backend(Backend::unsafe_steal_from_new(
        built<c10d::Backend>([&](void* memory) { make(memory, own, rank, size, options); })));
  });
}

// The name of a GPU that no other of its machine has, by whatever number processes see it; empty if it is not known.
void ln_c10d_gpu(int32_t index, char* name, int32_t length) {
  name[0] = 0;
  if (void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD)) {
    // The runtime that the process uses: one that was loaded before the library's own stands in front of that.
    void* found = dlsym(RTLD_DEFAULT, "cudaDeviceGetPCIBusId");
    if (found == nullptr) found = dlsym(library, "cudaDeviceGetPCIBusId");
    const auto bus = reinterpret_cast<int (*)(char*, int, int)>(found);
    if (bus == nullptr || bus(name, length, index) != 0) {
      name[0] = 0;
    }
    dlclose(library);
  }
}

// Ends what others may never answer.
void ln_c10d_backend_abort(void* backend) {
  guarded([&] { backend_at(backend)->abort(); });
}

// NCCL ends what it has begun first, and complains otherwise.
void ln_c10d_backend_free(void* backend) {
  guarded([&] { backend_at(backend)->shutdown(); });
  guarded([&] { delete static_cast<Backend*>(backend); });
}

// `operation` is a number of c10d's `ReduceOp`.
char* ln_c10d_all_reduce(void* backend, void* tensor, uint8_t operation) {
  return guarded([&] {
    std::vector<at::Tensor> tensors{tensor_at(tensor)};
    c10d::AllreduceOptions options;
    options.reduceOp = static_cast<c10d::ReduceOp::RedOpType>(operation);
    wait_for(backend_at(backend)->allreduce(tensors, options), tensors[0]);
  });
}

char* ln_c10d_broadcast(void* backend, void* tensor, int64_t root) {
  return guarded([&] {
    std::vector<at::Tensor> tensors{tensor_at(tensor)};
    c10d::BroadcastOptions options;
    options.rootRank = root;
    wait_for(backend_at(backend)->broadcast(tensors, options), tensors[0]);
  });
}

// Begins what `ln_c10d_work_wait` ends. `outputs` are as many tensors of the input's shape as there are ranks.
char* ln_c10d_all_gather(void* backend, void* input, void** outputs, size_t count, void** work) {
  return guarded([&] {
    std::vector<at::Tensor> inputs{tensor_at(input)};
    std::vector<std::vector<at::Tensor>> lists(1);
    for (size_t at = 0; at < count; at++) {
      lists[0].push_back(tensor_at(outputs[at]));
    }
    *work = new Work(backend_at(backend)->allgather(lists, inputs));
  });
}

char* ln_c10d_work_wait(void* work) {
  const std::unique_ptr<Work> own(static_cast<Work*>(work));
  return guarded([&] { (*own)->wait(); });
}

} // extern "C"
