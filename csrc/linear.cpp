// Products with the weight of a linear layer that libtorch's own graph would keep too much for, or be slow at.
//
// Functions return null, or the message of an error, which the caller frees.

#include <optional>
#include <string>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/jit/frontend/tracer.h>

#include "guarded.h"
#include "products/few_rows.h"
#if defined(__x86_64__)
#include "products/product.h"
#endif

using at::Tensor;
using ln_tuning::guarded;
using products::few_rows;
using products::has_dots;
using products::outer;
using products::Weights;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

namespace {

// The rows of x as the pixels of an image, channels last.
Tensor pixels(const Tensor& x) {
  return x.reshape({1, outer(x), 1, x.size(-1)}).permute({0, 3, 1, 2});
}

// Pixels as rows again, in the shape of x but for the last dimension.
Tensor rows(const Tensor& pixels, const Tensor& x) {
  auto shape = x.sizes().vec();
  shape.back() = pixels.size(1);
  return pixels.permute({0, 2, 3, 1}).reshape(shape);
}

// oneDNN's product with a matrix in its own order.
Tensor packed_product(const Tensor& x, const Tensor& packed, const std::optional<Tensor>& bias) {
  static auto op = c10::Dispatcher::singleton().findSchemaOrThrow("mkldnn::_linear_pointwise", "");
  torch::jit::Stack stack;
  const c10::List<std::optional<at::Scalar>> none;
  torch::jit::push(stack, x.contiguous(), packed, bias, std::string("none"), c10::IValue(none), std::string());
  op.callBoxed(stack);
  return stack.front().toTensor();
}

// The numbers of `Way` in Rust.
enum Way : int64_t { LIBTORCH = 0, CONVOLUTION = 1, BLOCKS = 2 };

// x · weightᵀ, or x · weight if it is transposed, by the loops in `products`, into `out`. All are in f32, matrices,
// and rows of each stand in one piece.
void blocks_into(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, bool transposed, Tensor& out) {
#if defined(__x86_64__)
  const auto own_bias = bias ? bias->contiguous() : Tensor();
  const products::Product product{
      x.size(0),
      out.size(1),
      x.size(1),
      x.const_data_ptr<float>(),
      x.stride(0),
      weight.const_data_ptr<float>(),
      weight.stride(0),
      !transposed,
      bias ? own_bias.const_data_ptr<float>() : nullptr,
      out.mutable_data_ptr<float>(),
      out.stride(0)};
  products::compute(product, at::get_num_threads(), [](int64_t tasks, const auto& some) {
    at::parallel_for(0, tasks, 1, some);
  });
#else
  TORCH_CHECK(false, "a product in blocks on a processor without AVX-512");
#endif
}

Tensor blocks(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, bool transposed) {
  auto flat = x.reshape({outer(x), x.size(-1)});
  if (flat.stride(1) != 1 || (flat.size(0) > 1 && flat.stride(0) < flat.size(1))) flat = flat.contiguous();
  auto shape = x.sizes().vec();
  shape.back() = weight.size(transposed ? 1 : 0);
  auto out = at::empty({flat.size(0), shape.back()}, weight.options());
  blocks_into(flat, weight, bias, transposed, out);
  return out.view(shape);
}

// A graph around the value of x · weightᵀ + bias (x · weight + bias, if it is transposed) that was computed without one.
struct Product : torch::autograd::Function<Product> {
  static Tensor forward(
      AutogradContext* ctx,
      const Tensor& x,
      const Tensor& weight,
      const std::optional<Tensor>& bias,
      const Tensor* value,
      const Tensor* packed,
      bool transposed,
      int64_t way) {
    // Neither is kept for a gradient that nobody wants: the input of a frozen weight above all.
    ctx->save_for_backward(
        {weight.requires_grad() ? x : Tensor(), x.requires_grad() ? weight : Tensor()});
    if (packed != nullptr) ctx->saved_data["packed"] = *packed;
    ctx->saved_data["biased"] = bias.has_value();
    ctx->saved_data["transposed"] = transposed;
    ctx->saved_data["way"] = way;
    // Without the marks of a view, in case it is one.
    return value->variable_data();
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const auto saved = ctx->get_saved_variables();
    const auto &x = saved[0], &weight = saved[1], &dy = gradients[0];
    const bool transposed = ctx->saved_data["transposed"].toBool();
    const int64_t way = ctx->saved_data["way"].toInt();
    Tensor dx, dw, db;
    if (weight.defined() && ctx->needs_input_grad(0)) {
      // A graph of the gradient, if one is wanted, is that of libtorch's product.
      const auto packed = ctx->saved_data.find("packed");
      if (packed != ctx->saved_data.end() && !at::GradMode::is_enabled()) {
        dx = packed_product(dy, packed->second.toTensor(), std::nullopt);
      } else if (way == BLOCKS && !at::GradMode::is_enabled()) {
        dx = blocks(dy, weight, std::nullopt, !transposed);
      } else if (way == CONVOLUTION && !at::GradMode::is_enabled()) {
        const auto windows = weight.view({weight.size(0), weight.size(1), 1, 1});
        const auto image = pixels(dy);
        dx = rows(transposed ? at::conv2d(image, windows) : at::conv_transpose2d(image, windows), dy);
      } else {
        dx = at::matmul(dy, transposed ? weight.t() : weight);
      }
    }
    if (x.defined() && ctx->needs_input_grad(1)) {
      const auto flat_x = x.reshape({outer(x), x.size(-1)}), flat = dy.reshape({outer(dy), dy.size(-1)});
      dw = transposed ? flat_x.t().mm(flat) : flat.t().mm(flat_x);
    }
    // Only tensors that are there have an edge.
    if (ctx->saved_data["biased"].toBool() && ctx->needs_input_grad(2)) db = dy.reshape({outer(dy), dy.size(-1)}).sum(0);
    return {dx, dw, db, Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

std::optional<Tensor> given(const Tensor* tensor) {
  return tensor == nullptr ? std::nullopt : std::optional<Tensor>(*tensor);
}

void check_blocks(const Tensor& x, const Tensor& weight, const Tensor* bias, bool transposed) {
  TORCH_CHECK(
      weight.dim() == 2 && weight.is_contiguous() && weight.device().is_cpu() && x.device().is_cpu() &&
          weight.scalar_type() == at::kFloat && x.scalar_type() == at::kFloat &&
          x.size(-1) == weight.size(transposed ? 0 : 1) &&
          (bias == nullptr ||
           (bias->numel() == weight.size(transposed ? 1 : 0) && bias->scalar_type() == at::kFloat)),
      "a product in blocks whose tensors do not fit");
}

} // namespace

extern "C" {

// `value` with the graph of the product, if anything in it wants a gradient. `packed` is the weight for the way back, in
// oneDNN's order, if there is one.
char* ln_linear_graph(
    Tensor** out,
    const Tensor* value,
    const Tensor* x,
    const Tensor* weight,
    const Tensor* bias,
    const Tensor* packed,
    int transposed,
    int64_t way) {
  return guarded([&] {
    const bool wanted = x->requires_grad() || weight->requires_grad() ||
        (bias != nullptr && bias->requires_grad());
    *out = new Tensor(
        at::GradMode::is_enabled() && wanted
            ? Product::apply(*x, *weight, given(bias), value, packed, transposed != 0, way)
            : *value);
  });
}

// True while a trace is recorded, which would not see what is computed here.
int ln_linear_is_traced() {
  return torch::jit::tracer::isTracing();
}

// The largest number of rows that `ln_linear_few_rows` takes on this processor.
int64_t ln_linear_most_rows() {
  return has_dots() ? products::MOST_ROWS : 0;
}

// True if this processor has the loops of products in blocks.
int ln_linear_has_blocks() {
  return has_dots();
}

// x · weightᵀ + bias without a graph, or x · weight + bias if it is transposed, block by block; in f32.
char* ln_linear_blocks(Tensor** out, const Tensor* x, const Tensor* weight, const Tensor* bias, int transposed) {
  return guarded([&] {
    check_blocks(*x, *weight, bias, transposed != 0);
    *out = new Tensor(blocks(*x, *weight, given(bias), transposed != 0));
  });
}

// The same of a matrix, into `out`, rows of which stand in one piece each.
char* ln_linear_blocks_into(const Tensor* x, const Tensor* weight, int transposed, Tensor* out) {
  return guarded([&] {
    check_blocks(*x, *weight, nullptr, transposed != 0);
    TORCH_CHECK(
        x->dim() == 2 && x->stride(1) == 1 && out->dim() == 2 && out->stride(1) == 1 && out->size(0) == x->size(0) &&
            out->size(1) == weight->size(transposed != 0 ? 1 : 0) && out->scalar_type() == weight->scalar_type(),
        "a product in blocks whose result does not fit");
    blocks_into(*x, *weight, std::nullopt, transposed != 0, *out);
  });
}

// x · weightᵀ + bias of each weight without a graph, for few rows; a weight is contiguous, in f32 or bf16, and so is its
// bias, which may be null.
char* ln_linear_few_rows(
    Tensor** outs, const Tensor* x, const Tensor* const* weights, const Tensor* const* biases, int64_t count) {
  return guarded([&] {
    Weights all;
    for (int64_t i = 0; i < count; i++) {
      const Tensor &weight = *weights[i], *bias = biases[i];
      TORCH_CHECK(
          weight.is_contiguous() && weight.device().is_cpu() && x->size(-1) == weight.size(1) &&
              x->scalar_type() == weight.scalar_type() &&
              (bias == nullptr || (bias->numel() == weight.size(0) && bias->scalar_type() == weight.scalar_type())),
          "a product of few rows whose tensors do not fit");
      all.emplace_back(weight, given(bias));
    }
    auto found = few_rows(*x, all);
    for (int64_t i = 0; i < count; i++) outs[i] = new Tensor(std::move(found[i]));
  });
}

// A matrix `[out, in]` in the order that oneDNN multiplies fastest with.
char* ln_linear_pack(Tensor** out, const Tensor* weight) {
  return guarded([&] {
    static auto op = c10::Dispatcher::singleton().findSchemaOrThrow("mkldnn::_reorder_linear_weight", "");
    torch::jit::Stack stack;
    // For so many rows.
    torch::jit::push(stack, *weight, std::optional<int64_t>(1024));
    op.callBoxed(stack);
    *out = new Tensor(stack.front().toTensor());
  });
}

// x · weightᵀ + bias without a graph, for a packed weight.
char* ln_linear_packed(Tensor** out, const Tensor* x, const Tensor* packed, const Tensor* bias) {
  return guarded([&] { *out = new Tensor(packed_product(*x, *packed, given(bias))); });
}

} // extern "C"
