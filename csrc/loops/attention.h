// The weights of attention.
#pragma once

#include "functions.h"
#include "rows.h"

namespace ln_tuning {
namespace {

// Minus infinity where a key is not seen.
INLINE F seen_only(F x, const bool* mask, Whole) {
  uint8_t bytes[LANES];
  std::memcpy(bytes, mask, LANES);
  int32_t lanes[LANES];
  for (int i = 0; i < LANES; ++i) lanes[i] = bytes[i];
  I seen;
  std::memcpy(&seen, lanes, sizeof(seen));
  return choose(seen != 0, x, all(-__builtin_inff()));
}
INLINE F seen_only(F x, const bool* mask, Part part) {
  bool padded[LANES] = {};
  for (int64_t i = 0; i < part.count; ++i) padded[i] = mask[i];
  return seen_only(x, padded, Whole{});
}

// The row's weights, in f32, of the keys before `stop`; gives one over their sum. Without a key that is seen, they are
// zeros.
template <class K>
INLINE float weigh(const Softmax& a, const typename K::Stored* scores, const bool* mask, int64_t stop, float* out) {
  F top = all(-__builtin_inff());
  each(stop, [&](int64_t i, auto how) {
    F slope;
    F x = bounded(load<K>(scores + i, how), a.scale, a.cap, slope);
    if (mask) x = seen_only(x, mask + i, how);
    x = kept(x, how, -__builtin_inff());
    store<Float>(out + i, x, how);
    top = choose(x > top, x, top);
  });
  const float most = highest(top);
  const float shift = most == -__builtin_inff() ? 0.f : most;
  const Two total = sums(stop, [&](int64_t i, auto how, F& sum, F&) {
    const F x = kept(exponential(load<Float>(out + i, how) - shift), how, 0.f);
    store<Float>(out + i, x, how);
    sum += x;
  });
  return total.first == 0 ? 0.f : (float)(1. / total.first);
}

struct SoftmaxRow {
  const bool* mask;
  int64_t stop;
  SoftmaxRow(const Softmax& a, int64_t row) {
    const int64_t place = row / a.group % a.places, batch = row / (a.group * a.places * a.heads);
    mask = a.mask ? a.mask + batch * a.mask_strides[0] + place * a.mask_strides[1] : nullptr;
    stop = a.causal && place + 1 < a.keys ? place + 1 : a.keys;
  }
};

template <class K>
void softmax(const Softmax& a, int64_t begin, int64_t end, float* scratch) {
  typedef typename K::Stored T;
  for (int64_t row = begin; row < end; ++row) {
    const SoftmaxRow at(a, row);
    const float share = weigh<K>(a, (const T*)a.scores + row * a.keys, at.mask, at.stop, scratch);
    T* weights = (T*)a.weights + row * a.keys;
    each(at.stop, [&](int64_t i, auto how) { store<K>(weights + i, load<Float>(scratch + i, how) * share, how); });
    std::memset(weights + at.stop, 0, (a.keys - at.stop) * sizeof(T));
  }
}

template <class K>
void softmax_backward(const SoftmaxBackward& b, int64_t begin, int64_t end) {
  typedef typename K::Stored T;
  const Softmax& a = b.forward;
  for (int64_t row = begin; row < end; ++row) {
    const SoftmaxRow at(a, row);
    T* gradient = (T*)b.gradient + row * a.keys;
    const T* scores = (const T*)a.scores + row * a.keys;
    const T* weights = (const T*)a.weights + row * a.keys;
    const Two total = sums(at.stop, [&](int64_t i, auto how, F& sum, F&) {
      sum += load<K>(weights + i, how) * load<K>(gradient + i, how);
    });
    const float shared = (float)total.first;
    each(at.stop, [&](int64_t i, auto how) {
      F slope = all(1.f);
      if (a.cap != 0) bounded(load<K>(scores + i, how), a.scale, a.cap, slope);
      const F d = load<K>(weights + i, how) * (load<K>(gradient + i, how) - shared) * slope;
      store<K>(gradient + i, d * a.scale, how);
    });
    std::memset(gradient + at.stop, 0, (a.keys - at.stop) * sizeof(T));
  }
}

void any_softmax(const Softmax& a, int64_t begin, int64_t end, float* scratch) {
  with_kind(a.kind, [&](auto kind) { softmax<decltype(kind)>(a, begin, end, scratch); });
}

void any_softmax_backward(const SoftmaxBackward& a, int64_t begin, int64_t end) {
  with_kind(a.forward.kind, [&](auto kind) { softmax_backward<decltype(kind)>(a, begin, end); });
}

}  // namespace
}  // namespace ln_tuning
