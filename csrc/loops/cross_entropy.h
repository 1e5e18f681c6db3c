// Cross entropy.
#pragma once

#include "functions.h"
#include "rows.h"

namespace ln_tuning {
namespace {

template <class K>
void cross_entropy(const CrossEntropy& a, int64_t begin, int64_t end) {
  typedef typename K::Stored T;
  for (int64_t row = begin; row < end; ++row) {
    T* logits = (T*)a.logits + row * a.classes;
    const auto logit = [&](int64_t i, auto how, F& slope) {
      F x = load<K>(logits + i, how);
      if (a.bias) x += load<Float>(a.bias + i, how);
      return bounded(x, a.scale, a.cap, slope);
    };
    F top = all(-__builtin_inff());
    each(a.classes, [&](int64_t i, auto how) {
      F slope;
      const F x = kept(logit(i, how, slope), how, -__builtin_inff());
      top = choose(x > top, x, top);
    });
    const float most = highest(top);
    const bool smooth = a.smoothing != 0;
    const Two total = sums(a.classes, [&](int64_t i, auto how, F& sum, F& plain) {
      F slope;
      const F x = logit(i, how, slope);
      sum += kept(exponential(x - most), how, 0.f);
      if (smooth) plain += kept(x, how, 0.f);
    });
    const int64_t target = a.targets[row];
    F slope;
    const F chosen = logit(target, Part{1}, slope);
    const float share = (float)(1. / total.first);
    a.largest[row] = most;
    a.peak[row] = share;
    a.target[row] = (1.f - a.smoothing) * chosen[0] + a.smoothing * (float)(total.second / (double)a.classes);
    if (!a.wanted) continue;
    const float denominator = most + (float)__builtin_log(total.first);
    const float factor = share * (1.f + 2.f * a.z_loss * denominator);
    const float spread = a.smoothing / (float)a.classes;
    // The target's before it is overwritten.
    const F at_target = (exponential(chosen - most) * factor - spread - (1.f - a.smoothing)) * slope;
    each(a.classes, [&](int64_t i, auto how) {
      F slope;
      const F x = exponential(logit(i, how, slope) - most) * factor;
      store<K>(logits + i, (x - spread) * slope, how);
    });
    store<K>(logits + target, at_target, Part{1});
  }
}

void any_cross_entropy(const CrossEntropy& a, int64_t begin, int64_t end) {
  with_kind(a.kind, [&](auto kind) { cross_entropy<decltype(kind)>(a, begin, end); });
}

}  // namespace
}  // namespace ln_tuning
