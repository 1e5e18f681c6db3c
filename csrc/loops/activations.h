// Activations, with their slopes.
#pragma once

#include "functions.h"

namespace ln_tuning {
namespace {

// Value and slope of an activation. Values are computed as libtorch does, infinities included.
struct Gelu {
  static INLINE F value(F x) {
    F bell;
    return x * below(x, bell);
  }
  static INLINE F both(F x, F& slope) {
    F bell;
    const F part = below(x, bell);
    slope = part + x * bell * 0.3989422804014327f;
    return x * part;
  }

 private:
  // The part of the normal distribution below x, by the approximation of erf that libtorch has (Abramowitz and Stegun
  // 7.1.26); `bell` is exp(-x^2 / 2).
  static INLINE F below(F x, F& bell) {
    const F y = x * 0.7071067811865476f;
    const F size = bits<F>(bits<U>(y) & 0x7FFFFFFF);
    const F t = 1.f / (0.3275911f * size + 1.f);
    F r = all(1.061405429f);
    r = r * t - 1.453152027f;
    r = r * t + 1.421413741f;
    r = r * t - 0.284496736f;
    r = r * t + 0.254829592f;
    bell = exponential(-(y * y));
    const F erf = 1.f - r * t * bell;
    return 0.5f * (1.f + bits<F>(bits<U>(erf) ^ (bits<U>(y) & 0x80000000)));
  }
};

struct GeluTanh {
  // (1 + tanh(u)) / 2 is the sigmoid of 2u.
  static INLINE F value(F x) { return x * sigmoid(twice(x)); }
  static INLINE F both(F x, F& slope) {
    const F s = sigmoid(twice(x));
    slope = s + x * (s * (1.f - s)) * (1.5957691216057308f * (1.f + 0.134145f * (x * x)));
    return x * s;
  }

 private:
  static INLINE F twice(F x) { return 1.5957691216057308f * (x + 0.044715f * (x * x * x)); }
};

struct QuickGelu {
  static INLINE F value(F x) { return x * sigmoid(1.702f * x); }
  static INLINE F both(F x, F& slope) {
    const F s = sigmoid(1.702f * x);
    slope = s + 1.702f * x * (s * (1.f - s));
    return x * s;
  }
};

struct Relu {
  // NaN stays.
  static INLINE F value(F x) { return choose(x < 0.f, F{}, x); }
  static INLINE F both(F x, F& slope) {
    slope = choose(x > 0.f, all(1.f), F{});
    return value(x);
  }
};

struct Silu {
  static INLINE F value(F x) { return x / (1.f + exponential(-x)); }
  static INLINE F both(F x, F& slope) {
    const F s = sigmoid(x);
    slope = s * (1.f + x * (1.f - s));
    return value(x);
  }
};

}  // namespace
}  // namespace ln_tuning
