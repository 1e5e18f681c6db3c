// Vectors of GCC and Clang, and kinds of numbers: what is stored, and how it becomes a vector of f32. The compiler's
// flags decide how wide a vector is.
#pragma once

#include "../loops.h"

#include <cstring>
#ifdef __F16C__
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif
#define INLINE inline __attribute__((always_inline))

namespace ln_tuning {
namespace {

typedef float F __attribute__((vector_size(4 * LANES)));
typedef int32_t I __attribute__((vector_size(4 * LANES)));
typedef uint32_t U __attribute__((vector_size(4 * LANES)));
typedef uint64_t Pairs __attribute__((vector_size(4 * LANES)));
typedef uint16_t Short __attribute__((vector_size(2 * LANES)));

INLINE F all(float x) { return F{} + x; }

template <class To, class From>
INLINE To bits(From from) {
  To to;
  static_assert(sizeof(to) == sizeof(from), "");
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

struct Float {
  typedef float Stored;
  static INLINE F load(const Stored* at) {
    F x;
    std::memcpy(&x, at, sizeof(x));
    return x;
  }
  static INLINE void store(Stored* at, F x) { std::memcpy(at, &x, sizeof(x)); }
};

struct BFloat16 {
  typedef uint16_t Stored;
  static INLINE F load(const Stored* at) {
    Short x;
    std::memcpy(&x, at, sizeof(x));
    return bits<F>(__builtin_convertvector(x, U) << 16);
  }
  // To the nearest, to the even one of two.
  static INLINE void store(Stored* at, F x) {
    const U u = bits<U>(x);
    U near = (u + 0x7FFF + ((u >> 16) & 1)) >> 16;
    const I nan = x != x;
    near = (near & ~bits<U>(nan)) | (bits<U>(nan) & 0x7FC0);
    const Short rounded = __builtin_convertvector(near, Short);
    std::memcpy(at, &rounded, sizeof(rounded));
  }
};

struct Half {
  typedef uint16_t Stored;
#if defined(__AVX512F__)
  static INLINE F load(const Stored* at) {
    return (F)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)at));
  }
  static INLINE void store(Stored* at, F x) {
    _mm256_storeu_si256((__m256i*)at, _mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT));
  }
#elif defined(__F16C__)
  static INLINE F load(const Stored* at) { return (F)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)at)); }
  static INLINE void store(Stored* at, F x) {
    _mm_storeu_si128((__m128i*)at, _mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT));
  }
#else
  static INLINE F load(const Stored* at) {
    Short stored;
    std::memcpy(&stored, at, sizeof(stored));
    const U x = __builtin_convertvector(stored, U);
    const U sign = (x & 0x8000) << 16, rest = (x & 0x7FFF) << 13;
    // The exponents are 112 apart; a multiplication also brings small numbers, which have no leading one, to f32.
    const F scaled = bits<F>(rest) * 0x1p112f;
    const I special = (x & 0x7C00) == 0x7C00;
    const U value = (bits<U>(special) & (rest | 0x7F800000)) | (~bits<U>(special) & bits<U>(scaled));
    return bits<F>(value | sign);
  }
  static INLINE void store(Stored* at, F x) {
    const U u = bits<U>(x), sign = (u >> 16) & 0x8000, rest = u & 0x7FFFFFFF;
    // Added to a number whose last bit is worth as much as that of the result, the sum is rounded as it should be.
    const U least = U{} + 0x38800000, most = U{} + 0x477FF000;
    const I small = rest < least, large = rest >= most, nan = rest > (U{} + 0x7F800000);
    const U subnormal = bits<U>(bits<F>(rest) + 0.5f) - 0x3F000000;
    const U normal = (rest - 0x38000000 + 0xFFF + ((rest >> 13) & 1)) >> 13;
    U y = (bits<U>(small) & subnormal) | (~bits<U>(small) & normal);
    y = (bits<U>(large) & 0x7C00) | (~bits<U>(large) & y);
    y = (bits<U>(nan) & 0x7E00) | (~bits<U>(nan) & y);
    const Short rounded = __builtin_convertvector(y | sign, Short);
    std::memcpy(at, &rounded, sizeof(rounded));
  }
#endif
};

template <class Body>
INLINE void with_kind(Kind kind, Body body) {
  switch (kind) {
    case Kind::f32: return body(Float{});
    case Kind::bf16: return body(BFloat16{});
    case Kind::f16: return body(Half{});
  }
}

}  // namespace
}  // namespace ln_tuning
