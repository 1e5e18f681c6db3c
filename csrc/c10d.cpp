// libtorch's c10d behind a C interface: the store through which processes meet, and Gloo, through which they add up
// tensors. Every function returns null, or a message that the caller frees with `ln_c10d_free`; no exception leaves.

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

namespace {

using Store = c10::intrusive_ptr<c10d::Store>;
using Backend = c10::intrusive_ptr<c10d::Backend>;
using Millis = std::chrono::milliseconds;

template <typename F>
char* guarded(F f) noexcept {
  try {
    f();
    return nullptr;
  } catch (const c10::Error& error) {
    return strdup(error.what_without_backtrace());
  } catch (const std::exception& error) {
    return strdup(error.what());
  } catch (...) {
    return strdup("an exception without a message");
  }
}

Store& store_at(void* store) {
  return *static_cast<Store*>(store);
}

Backend& backend_at(void* backend) {
  return *static_cast<Backend*>(backend);
}

at::Tensor& tensor_at(void* tensor) {
  return *static_cast<at::Tensor*>(tensor);
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
    // Operations come one after the other, so that a second thread only costs.
    options->threads = 1;
    auto own = c10::make_intrusive<c10d::PrefixStore>(prefix, store_at(store));
    *backend = new Backend(c10::make_intrusive<Gloo>(own, rank, size, options));
  });
}

void ln_c10d_backend_free(void* backend) {
  guarded([&] { delete static_cast<Backend*>(backend); });
}

// `operation` is a number of c10d's `ReduceOp`.
char* ln_c10d_all_reduce(void* backend, void* tensor, uint8_t operation) {
  return guarded([&] {
    std::vector<at::Tensor> tensors{tensor_at(tensor)};
    c10d::AllreduceOptions options;
    options.reduceOp = static_cast<c10d::ReduceOp::RedOpType>(operation);
    backend_at(backend)->allreduce(tensors, options)->wait();
  });
}

char* ln_c10d_broadcast(void* backend, void* tensor, int64_t root) {
  return guarded([&] {
    std::vector<at::Tensor> tensors{tensor_at(tensor)};
    c10d::BroadcastOptions options;
    options.rootRank = root;
    backend_at(backend)->broadcast(tensors, options)->wait();
  });
}

// `outputs` are as many tensors of the input's shape as there are ranks.
char* ln_c10d_all_gather(void* backend, void* input, void** outputs, size_t count) {
  return guarded([&] {
    std::vector<at::Tensor> inputs{tensor_at(input)};
    std::vector<std::vector<at::Tensor>> lists(1);
    for (size_t at = 0; at < count; at++) {
      lists[0].push_back(tensor_at(outputs[at]));
    }
    backend_at(backend)->allgather(lists, inputs)->wait();
  });
}

} // extern "C"
