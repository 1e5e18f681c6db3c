// Parts of all fused functions: tensors that the loops can read, rows in several threads, second derivatives, and the
// border to C.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/jit/frontend/tracer.h>

#include <cstring>

#include "../guarded.h"
#include "../loops.h"
#ifdef LN_TUNING_GPU
#include "../gpu/functions.h"
#include "../gpu/launch.h"
#endif

namespace ln_tuning {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;
using MaybeTensor = std::optional<Tensor>;

// The loops for this processor, as libtorch chooses its own: ATEN_CPU_CAPABILITY counts here too.
const Loops& loops() {
  static const Loops& chosen = []() -> const Loops& {
#ifdef LN_TUNING_X86
    const std::string capability = at::get_cpu_capability();
    if (capability.rfind("AVX512", 0) == 0) return loops_avx512;
    if (capability == "AVX2") return loops_avx2;
#endif
    return loops_plain;
  }();
  return chosen;
}

std::optional<Kind> kind_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case at::kFloat: return Kind::f32;
    case at::kBFloat16: return Kind::bf16;
    case at::kHalf: return Kind::f16;
    default: return std::nullopt;
  }
}

bool is_plain(const Tensor& x) {
  return x.defined() && x.layout() == at::kStrided && !x.is_neg() && !x._is_zerotensor() && kind_of(x).has_value();
}

// True for tensors of one kind that the loops can read. A trace would not see what they do.
bool fits(std::initializer_list<const Tensor*> tensors, bool on_cuda = false) {
  const Tensor* first = nullptr;
  for (const Tensor* x : tensors) {
    if (!x) continue;
    if (!is_plain(*x)) return false;
    if (first && (x->scalar_type() != first->scalar_type() || x->device() != first->device())) return false;
    if (!first) first = x;
  }
  if (!first || torch::jit::tracer::isTracing()) return false;
#ifdef LN_TUNING_GPU
  if (on_cuda && first->is_cuda()) return gpu::is_loaded(first->get_device(), *kind_of(*first));
#endif
  return first->is_cpu();
}

// The same where there are kernels for CUDA, if they are loaded.
bool fits_anywhere(std::initializer_list<const Tensor*> tensors) { return fits(tensors, true); }

// Calls `work` for parts of the rows, in several threads if there is enough to do.
template <class Work>
void for_rows(int64_t rows, int64_t row_size, const Work& work) {
  const int64_t enough = 1 << 14;
  at::parallel_for(0, rows, std::max<int64_t>(1, enough / std::max<int64_t>(1, row_size)), work);
}

// Rows of the last dimension at one distance from each other.
struct Rows {
  Tensor tensor;
  int64_t count, size, stride;
};

// Copied if they are not so.
Rows as_rows(const Tensor& x) {
  const int64_t size = x.size(-1), count = size == 0 ? 0 : x.numel() / size;
  // The distance may be 0: one row for all.
  int64_t stride = size, expected = 0;
  bool even = x.stride(-1) == 1 || size == 1, begun = false;
  for (int64_t d = x.dim() - 2; d >= 0 && even; --d) {
    if (x.size(d) == 1) continue;
    if (!begun) stride = x.stride(d);
    even = !begun || x.stride(d) == expected;
    expected = x.stride(d) * x.size(d);
    begun = true;
  }
  if (even) return {x, count, size, stride};
  return {x.contiguous(), count, size, size};
}

// A gradient that shall exist, or none.
bool wants(AutogradContext* ctx, size_t edge) { return ctx->needs_input_grad(edge); }

// Gradients of `forward`, which consists of libtorch's operators, as a graph of their own: for second derivatives.
template <class Forward>
variable_list differentiable(const variable_list& inputs, const variable_list& gradients, const Forward& forward) {
  variable_list aliases, wanted;
  for (const Tensor& x : inputs) {
    aliases.push_back(x.defined() ? x.alias() : x);
    if (x.defined() && x.requires_grad()) wanted.push_back(aliases.back());
  }
  const variable_list outputs = forward(aliases);
  variable_list used, given;
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (!gradients[i].defined()) continue;
    used.push_back(outputs[i]);
    given.push_back(gradients[i]);
  }
  const variable_list found = torch::autograd::grad(used, wanted, given, true, true, true);
  variable_list all;
  size_t at = 0;
  for (const Tensor& x : inputs) all.push_back(x.defined() && x.requires_grad() ? found[at++] : Tensor());
  return all;
}

MaybeTensor maybe(const Tensor* x) { return x ? MaybeTensor(*x) : std::nullopt; }

}  // namespace
}  // namespace ln_tuning
