// Products with the weight of a linear layer that libtorch's own graph would keep too much for, or be slow at.
//
// Functions report errors as those of torch-sys do: in its `torch_last_err`.

#if defined(__x86_64__)
#include <immintrin.h>

#include "products/product.h"
#endif

#include <algorithm>
#include <cstring>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/Version.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/jit/frontend/tracer.h>

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// libtch's: the message of the last error, made by `strdup`.
extern thread_local char* torch_last_err;

namespace {

template <class F>
void caught(F f) {
  try {
    f();
  } catch (const std::exception& error) {
    torch_last_err = strdup(error.what());
  } catch (...) {
    torch_last_err = strdup("an exception of C++ that is none of libtorch's");
  }
}

int64_t outer(const Tensor& x) {
  return x.size(-1) == 0 ? 0 : x.numel() / x.size(-1);
}

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

constexpr int64_t MOST_ROWS = 8;

#if defined(__x86_64__)
#define LN_TUNING_DOTS
#define LN_TUNING_AVX512 __attribute__((target("avx512f,avx512bw")))
#define LN_TUNING_BF16 __attribute__((target("avx512f,avx512bw,avx512bf16")))

// Dot products of `N` rows, `size` apart, with each of `R` rows of a weight. A weight is read once, whatever the number
// of rows: few rows wait for memory and nothing else. Each product is summed in the same order, whatever the rows beside
// it. `LOAD` is the number of values that are multiplied at a time.
#define LN_TUNING_DOT_PRODUCTS(NAME, TARGET, X, LOAD, READ_X, READ_WEIGHT, MULTIPLIED)            \
  template <class T, int N, int R>                                                                \
  TARGET void NAME(const X* x, const T* weight, int64_t size, float (&sums)[R][N]) {              \
    __m512 lanes[R][N];                                                                           \
    for (int r = 0; r < R; r++)                                                                   \
      for (int n = 0; n < N; n++) lanes[r][n] = _mm512_setzero_ps();                              \
    int64_t k = 0;                                                                                \
    for (; k + LOAD <= size; k += LOAD) {                                                         \
      decltype(READ_WEIGHT(weight)) w[R];                                                         \
      for (int r = 0; r < R; r++) {                                                               \
        w[r] = READ_WEIGHT(weight + r * size + k);                                                \
        _mm_prefetch((const char*)(weight + (3 * R + r) * size + k), _MM_HINT_T0);                    \
      }                                                                                           \
      for (int n = 0; n < N; n++) {                                                               \
        const auto values = READ_X(x + n * size + k);                                             \
        for (int r = 0; r < R; r++) lanes[r][n] = MULTIPLIED(lanes[r][n], w[r], values);          \
      }                                                                                           \
    }                                                                                             \
    for (int r = 0; r < R; r++) {                                                                 \
      for (int n = 0; n < N; n++) {                                                               \
        sums[r][n] = _mm512_reduce_add_ps(lanes[r][n]);                                           \
        for (int64_t rest = k; rest < size; rest++)                                               \
          sums[r][n] += float(weight[r * size + rest]) * float(x[n * size + rest]);               \
      }                                                                                           \
    }                                                                                             \
  }

#define LN_TUNING_READ_F32(place) _mm512_loadu_ps(place)
#define LN_TUNING_READ_BF16(place) (__m512bh) _mm512_loadu_si512(place)
#define LN_TUNING_READ_WIDE(place) \
  _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(place))), 16))
#define LN_TUNING_MULTIPLIED(sum, a, b) _mm512_fmadd_ps(a, b, sum)

LN_TUNING_DOT_PRODUCTS(
    dots_f32, LN_TUNING_AVX512, float, 16, LN_TUNING_READ_F32, LN_TUNING_READ_F32, LN_TUNING_MULTIPLIED)
LN_TUNING_DOT_PRODUCTS(
    dots_wide, LN_TUNING_AVX512, float, 16, LN_TUNING_READ_F32, LN_TUNING_READ_WIDE, LN_TUNING_MULTIPLIED)
LN_TUNING_DOT_PRODUCTS(
    dots_bf16, LN_TUNING_BF16, T, 32, LN_TUNING_READ_BF16, LN_TUNING_READ_BF16, _mm512_dpbf16_ps)
#endif

// The loops that this processor has, as libtorch chooses its own (ATEN_CPU_CAPABILITY counts here too).
enum class Dots { none, avx512, avx512_bf16 };

Dots dots_of_this_processor() {
#ifdef LN_TUNING_DOTS
  static const Dots dots = [] {
    if (at::get_cpu_capability().rfind("AVX512", 0) != 0) return Dots::none;
    return __builtin_cpu_supports("avx512bf16") ? Dots::avx512_bf16 : Dots::avx512;
  }();
  return dots;
#else
  return Dots::none;
#endif
}

template <class T, class X, int N, int R>
void some_outputs(
    const X* x, const T* weight, const T* bias, T* out, int64_t size, int64_t outputs, int64_t begin) {
#ifdef LN_TUNING_DOTS
  float sums[R][N];
  const T* own = weight + begin * size;
  if constexpr (!std::is_same_v<X, float>) {
    dots_bf16<T, N, R>(x, own, size, sums);
  } else if constexpr (std::is_same_v<T, float>) {
    dots_f32<T, N, R>(x, own, size, sums);
  } else {
    dots_wide<T, N, R>(x, own, size, sums);
  }
  for (int r = 0; r < R; r++) {
    for (int n = 0; n < N; n++) {
      const float sum = bias == nullptr ? sums[r][n] : sums[r][n] + float(bias[begin + r]);
      out[n * outputs + begin + r] = T(sum);
    }
  }
#endif
}

// A weight with its bias and the place of its outputs, which stand `outputs` apart.
template <class T>
struct Part {
  const T *weight, *bias;
  T* out;
  int64_t outputs;
};

// All parts in one go, since waking threads takes as long as a small part.
template <class T, class X, int N>
void few_rows(const X* x, const std::vector<Part<T>>& parts, int64_t size) {
  constexpr int R = N <= 4 ? 4 : 2;
  int64_t total = 0;
  for (const auto& part : parts) total += part.outputs;
  const int64_t enough = std::max<int64_t>(1, (1 << 15) / std::max<int64_t>(1, size));
  at::parallel_for(0, total, enough, [&](int64_t begin, int64_t end) {
    int64_t first = 0;
    for (const auto& [weight, bias, out, outputs] : parts) {
      int64_t at = std::max<int64_t>(begin - first, 0);
      const int64_t until = std::min(end - first, outputs);
      for (; at + R <= until; at += R) some_outputs<T, X, N, R>(x, weight, bias, out, size, outputs, at);
      for (; at < until; at++) some_outputs<T, X, N, 1>(x, weight, bias, out, size, outputs, at);
      first += outputs;
    }
  });
}

using Weights = std::vector<std::pair<Tensor, std::optional<Tensor>>>;

template <class T, class X>
std::vector<Tensor> few_rows(const Tensor& x, const Weights& weights) {
  const int64_t count = outer(x), size = x.size(-1);
  const auto given = x.to(c10::CppTypeToScalarType<X>::value).contiguous();
  std::vector<Tensor> outs, biases;
  std::vector<Part<T>> parts;
  for (const auto& [weight, bias] : weights) {
    auto shape = x.sizes().vec();
    shape.back() = weight.size(0);
    outs.push_back(at::empty(shape, weight.options()));
    biases.push_back(bias ? bias->contiguous() : Tensor());
    parts.push_back(
        {weight.template const_data_ptr<T>(),
         bias ? biases.back().template const_data_ptr<T>() : nullptr,
         outs.back().template mutable_data_ptr<T>(),
         weight.size(0)});
  }
  const auto* from = given.template const_data_ptr<X>();
  switch (count) {
    case 1: few_rows<T, X, 1>(from, parts, size); break;
    case 2: few_rows<T, X, 2>(from, parts, size); break;
    case 3: few_rows<T, X, 3>(from, parts, size); break;
    case 4: few_rows<T, X, 4>(from, parts, size); break;
    case 5: few_rows<T, X, 5>(from, parts, size); break;
    case 6: few_rows<T, X, 6>(from, parts, size); break;
    case 7: few_rows<T, X, 7>(from, parts, size); break;
    case 8: few_rows<T, X, 8>(from, parts, size); break;
    default: TORCH_CHECK(false, "a product of ", count, " rows, expected 1 to ", MOST_ROWS);
  }
  return outs;
}

std::vector<Tensor> few_rows(const Tensor& x, const Weights& weights) {
  if (x.scalar_type() == at::kFloat) return few_rows<float, float>(x, weights);
  TORCH_CHECK(x.scalar_type() == at::kBFloat16, "a product of few rows in ", x.scalar_type());
  if (dots_of_this_processor() == Dots::avx512_bf16) return few_rows<at::BFloat16, at::BFloat16>(x, weights);
  return few_rows<at::BFloat16, float>(x, weights);
}

// The numbers of `Way` in Rust.
enum Way : int64_t { LIBTORCH = 0, CONVOLUTION = 1, BLOCKS = 2 };

// x · weightᵀ, or x · weight if it is transposed, by the loops in `products`, into `out`. All are in f32, matrices,
// and rows of each stand in one piece.
void blocks_into(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, bool transposed, Tensor& out) {
#ifdef LN_TUNING_DOTS
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
void ln_linear_graph(
    Tensor** out,
    const Tensor* value,
    const Tensor* x,
    const Tensor* weight,
    const Tensor* bias,
    const Tensor* packed,
    int transposed,
    int64_t way) {
  caught([&] {
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
  return dots_of_this_processor() == Dots::none ? 0 : MOST_ROWS;
}

// True if this processor has the loops of products in blocks.
int ln_linear_has_blocks() {
  return dots_of_this_processor() != Dots::none;
}

// x · weightᵀ + bias without a graph, or x · weight + bias if it is transposed, block by block; in f32.
void ln_linear_blocks(Tensor** out, const Tensor* x, const Tensor* weight, const Tensor* bias, int transposed) {
  caught([&] {
    check_blocks(*x, *weight, bias, transposed != 0);
    *out = new Tensor(blocks(*x, *weight, given(bias), transposed != 0));
  });
}

// The same of a matrix, into `out`, rows of which stand in one piece each.
void ln_linear_blocks_into(const Tensor* x, const Tensor* weight, int transposed, Tensor* out) {
  caught([&] {
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
void ln_linear_few_rows(
    Tensor** outs, const Tensor* x, const Tensor* const* weights, const Tensor* const* biases, int64_t count) {
  caught([&] {
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
void ln_linear_pack(Tensor** out, const Tensor* weight) {
  caught([&] {
    static auto op = c10::Dispatcher::singleton().findSchemaOrThrow("mkldnn::_reorder_linear_weight", "");
    torch::jit::Stack stack;
    // For so many rows.
    torch::jit::push(stack, *weight, std::optional<int64_t>(1024));
    op.callBoxed(stack);
    *out = new Tensor(stack.front().toTensor());
  });
}

// x · weightᵀ + bias without a graph, for a packed weight.
void ln_linear_packed(Tensor** out, const Tensor* x, const Tensor* packed, const Tensor* bias) {
  caught([&] { *out = new Tensor(packed_product(*x, *packed, given(bias))); });
}

} // extern "C"
