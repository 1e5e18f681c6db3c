// Products of few rows, which wait for the weight to be read from memory and for nothing else.

#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>

namespace products {
namespace {

using at::Tensor;

int64_t outer(const Tensor& x) {
  return x.size(-1) == 0 ? 0 : x.numel() / x.size(-1);
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

// True if this processor has the loops of these products.
bool has_dots() {
  return dots_of_this_processor() != Dots::none;
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

}  // namespace
}  // namespace products
