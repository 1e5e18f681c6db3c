// Functions of vectors.
#pragma once

#include "kinds.h"

namespace ln_tuning {
namespace {

INLINE F choose(I where, F yes, F no) {
  return bits<F>((bits<U>(where) & bits<U>(yes)) | (~bits<U>(where) & bits<U>(no)));
}

INLINE F exponential(F x) {
  x = choose(x > 89.f, all(89.f), x);
  x = choose(x < -104.f, all(-104.f), x);
  // The nearest whole number of doublings.
  const F shift = all(12582912.f);
  const F n = (x * 1.44269504088896341f + shift) - shift;
  const F r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  F p = all(1.9875691500E-4f);
  p = p * r + 1.3981999507E-3f;
  p = p * r + 8.3334519073E-3f;
  p = p * r + 4.1665795894E-2f;
  p = p * r + 1.6666665459E-1f;
  p = p * r + 5.0000001201E-1f;
  p = p * (r * r) + r + 1.f;
  // Twice the half: one step would not reach the smallest numbers and infinity.
  const I e = __builtin_convertvector(n, I), half = e >> 1;
  return p * bits<F>((half + 127) << 23) * bits<F>((e - half + 127) << 23);
}

INLINE F sigmoid(F x) { return 1.f / (1.f + exponential(-x)); }

INLINE F hyperbolic_tangent(F x) {
  const F square = x * x;
  // Near zero, where the other form has few digits.
  F p = all(-5.70498872745E-3f);
  p = p * square + 2.06390887954E-2f;
  p = p * square - 5.37397155531E-2f;
  p = p * square + 1.33314422036E-1f;
  p = p * square - 3.33332819422E-1f;
  const F far = 1.f - 2.f / (exponential(2.f * x) + 1.f);
  return choose(square < 0.390625f, p * square * x + x, far);
}

// The score as the softmax sees it; `slope` is the cap's.
INLINE F bounded(F score, float scale, float cap, F& slope) {
  score = score * scale;
  slope = all(1.f);
  if (cap == 0) return score;
  const F part = hyperbolic_tangent(score / cap);
  slope = 1.f - part * part;
  return cap * part;
}

}  // namespace
}  // namespace ln_tuning
