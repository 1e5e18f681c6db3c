// Norms, with the addition before them.
#pragma once

#include "rows.h"

namespace ln_tuning {
namespace {

template <class K>
void norm(const Norm& a, int64_t begin, int64_t end) {
  typedef typename K::Stored T;
  for (int64_t row = begin; row < end; ++row) {
    const T* x = (const T*)a.x + row * a.x_stride;
    if (a.added) {
      const T* added = (const T*)a.added + row * a.added_stride;
      T* sum = (T*)a.sum + row * a.size;
      each(a.size, [&](int64_t i, auto how) {
        store<K>(sum + i, load<K>(x + i, how) + load<K>(added + i, how), how);
      });
      x = sum;
    }
    float mean = 0;
    if (a.centred) {
      const Two total = sums(a.size, [&](int64_t i, auto how, F& sum, F&) { sum += load<K>(x + i, how); });
      mean = (float)(total.first / (double)a.size);
    }
    const Two total = sums(a.size, [&](int64_t i, auto how, F& sum, F&) {
      const F off = kept(load<K>(x + i, how) - mean, how, 0.f);
      sum += off * off;
    });
    const float rate = (float)(1. / __builtin_sqrt(total.first / (double)a.size + a.eps));
    a.stats[2 * row] = mean;
    a.stats[2 * row + 1] = rate;
    T* out = (T*)a.out + row * a.size;
    if (a.bias) {
      each(a.size, [&](int64_t i, auto how) {
        const F normed = (load<K>(x + i, how) - mean) * rate;
        store<K>(out + i, normed * load<Float>(a.weight + i, how) + load<Float>(a.bias + i, how), how);
      });
    } else {
      each(a.size, [&](int64_t i, auto how) {
        const F normed = (load<K>(x + i, how) - mean) * rate;
        store<K>(out + i, normed * load<Float>(a.weight + i, how), how);
      });
    }
  }
}

template <class K>
void norm_backward(const NormBackward& a, int64_t begin, int64_t end, float* d_weight, float* d_bias) {
  typedef typename K::Stored T;
  for (int64_t row = begin; row < end; ++row) {
    const T* x = (const T*)a.x + row * a.x_stride;
    const T* d_out = (const T*)a.d_out + row * a.size;
    const float mean = a.stats[2 * row], rate = a.stats[2 * row + 1];
    if (d_weight) {
      each(a.size, [&](int64_t i, auto how) {
        const F normed = (load<K>(x + i, how) - mean) * rate;
        store<Float>(d_weight + i, load<Float>(d_weight + i, how) + load<K>(d_out + i, how) * normed, how);
      });
    }
    if (d_bias) {
      each(a.size, [&](int64_t i, auto how) {
        store<Float>(d_bias + i, load<Float>(d_bias + i, how) + load<K>(d_out + i, how), how);
      });
    }
    if (!a.d_x) continue;
    const Two total = sums(a.size, [&](int64_t i, auto how, F& plain, F& along) {
      const F d = load<K>(d_out + i, how) * load<Float>(a.weight + i, how);
      plain += d;
      along += d * ((load<K>(x + i, how) - mean) * rate);
    });
    const float shared = a.centred ? (float)(total.first / (double)a.size) : 0;
    const float along = (float)(total.second / (double)a.size);
    T* d_x = (T*)a.d_x + row * a.size;
    const auto inner = [&](int64_t i, auto how) {
      const F d = load<K>(d_out + i, how) * load<Float>(a.weight + i, how);
      return rate * (d - shared - ((load<K>(x + i, how) - mean) * rate) * along);
    };
    if (a.d_sum) {
      const T* d_sum = (const T*)a.d_sum + row * a.size;
      each(a.size, [&](int64_t i, auto how) {
        store<K>(d_x + i, load<K>(d_sum + i, how) + inner(i, how), how);
      });
    } else {
      each(a.size, [&](int64_t i, auto how) { store<K>(d_x + i, inner(i, how), how); });
    }
  }
}

void any_norm(const Norm& a, int64_t begin, int64_t end) {
  with_kind(a.kind, [&](auto kind) { norm<decltype(kind)>(a, begin, end); });
}

void any_norm_backward(const NormBackward& a, int64_t begin, int64_t end, float* d_weight, float* d_bias) {
  with_kind(a.kind, [&](auto kind) { norm_backward<decltype(kind)>(a, begin, end, d_weight, d_bias); });
}

}  // namespace
}  // namespace ln_tuning
