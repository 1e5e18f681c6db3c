// Norms, with the addition before them.
#pragma once

#include "rows.h"

namespace ln_tuning {
namespace {

// A number that is rounded here, where the compiler would otherwise add it to another in one step.
INLINE F rounded(F x) {
#if defined(__x86_64__)
  __asm__("" : "+v"(x));
#elif defined(__aarch64__)
  __asm__("" : "+w"(x));
#endif
  return x;
}

template <class K, class How>
INLINE F squares(const typename K::Stored* at, How how) {
  const F x = load<K>(at, how);
  return rounded(x * x);
}

// The sum of a row's squares, added up in the order of libtorch's sums on x86: with it, RMSNorm has the bits of its
// operators. 32 numbers stand beside each other; sixteen of such lines are one sum, and sixteen of these one of the next
// level, so that long rows lose little.
template <class K>
INLINE float sum_of_squares(const typename K::Stored* x, int64_t size) {
  constexpr int LINE = 32, EIGHT = 8, VECTORS = LINE / LANES, LEVELS = 4;
  if (size < EIGHT) {
    float lanes[LANES < 8 ? 8 : LANES] = {};
    for (int64_t i = 0; i < size; i += LANES) {
      const F some = squares<K>(x + i, Part{size - i < LANES ? size - i : LANES});
      std::memcpy(lanes + i, &some, sizeof(some));
    }
    const int64_t four = size / 4 * 4;
    float sums[4] = {};
    for (int64_t i = 0; i < size; ++i) sums[i < four ? i : 0] += lanes[i];
    return sums[0] + sums[1] + sums[2] + sums[3];
  }
  F sums[LEVELS][VECTORS] = {};
  const int64_t lines = size / LINE;
  int64_t line = 0;
  const auto add = [&] {
    for (int part = 0; part < VECTORS; ++part)
      sums[0][part] += squares<K>(x + line * LINE + part * LANES, Whole{});
    ++line;
  };
  while (line + 16 <= lines) {
    for (int i = 0; i < 16; ++i) add();
    for (int level = 1; level < LEVELS; ++level) {
      for (int part = 0; part < VECTORS; ++part) {
        sums[level][part] += sums[level - 1][part];
        sums[level - 1][part] = F{};
      }
      if (line & (int64_t)15 << 4 * level) break;
    }
  }
  while (line < lines) add();
  for (int level = 1; level < LEVELS; ++level)
    for (int part = 0; part < VECTORS; ++part) sums[0][part] += sums[level][part];
  float lanes[LINE], rest[LINE] = {};
  std::memcpy(lanes, sums[0], sizeof(lanes));
  const int64_t start = lines * LINE;
  for (int64_t i = start; i < size; i += LANES) {
    const F some = squares<K>(x + i, Part{size - i < LANES ? size - i : LANES});
    std::memcpy(rest + (i - start), &some, sizeof(some));
  }
  const int64_t eights = (size - start) / EIGHT * EIGHT;
  for (int64_t i = 0; i < eights; ++i) lanes[i % EIGHT] += rest[i];
  for (int i = EIGHT; i < LINE; ++i) lanes[i % EIGHT] += lanes[i];
  float total = 0;
  for (int64_t i = eights; i < size - start; ++i) total += rest[i];
  for (int i = 0; i < EIGHT; ++i) total += lanes[i];
  return total;
}

// The place of a row's head among the vectors of its part.
template <class A>
INLINE int64_t head_at(const A& a, int64_t row) {
  return a.heads > 1 ? row % a.heads * a.size : 0;
}

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
    float mean = 0, rate;
    if (a.centred) {
      const Two total = sums(a.size, [&](int64_t i, auto how, F& sum, F&) { sum += load<K>(x + i, how); });
      mean = (float)(total.first / (double)a.size);
      const Two squares = sums(a.size, [&](int64_t i, auto how, F& sum, F&) {
        const F off = kept(load<K>(x + i, how) - mean, how, 0.f);
        sum += off * off;
      });
      rate = (float)(1. / __builtin_sqrt(squares.first / (double)a.size + a.eps));
    } else {
      rate = 1.f / __builtin_sqrtf(sum_of_squares<K>(x, a.size) / (float)a.size + (float)a.eps);
    }
    const float* weight = a.weight + row / a.rows_together * a.weight_stride + head_at(a, row);
    a.stats[2 * row] = mean;
    a.stats[2 * row + 1] = rate;
    T* out = (T*)a.out + row * a.size;
    if (a.bias) {
      const float* bias = a.bias + row / a.rows_together * a.bias_stride;
      each(a.size, [&](int64_t i, auto how) {
        const F normed = (load<K>(x + i, how) - mean) * rate;
        store<K>(out + i, normed * load<Float>(weight + i, how) + load<Float>(bias + i, how), how);
      });
    } else {
      each(a.size, [&](int64_t i, auto how) {
        const F normed = (load<K>(x + i, how) - mean) * rate;
        store<K>(out + i, normed * load<Float>(weight + i, how), how);
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
    const float* weight = a.weight + row / a.rows_together * a.weight_stride + head_at(a, row);
    const float mean = a.stats[2 * row], rate = a.stats[2 * row + 1];
    if (d_weight) {
      float* own = d_weight + head_at(a, row);
      each(a.size, [&](int64_t i, auto how) {
        const F normed = (load<K>(x + i, how) - mean) * rate;
        store<Float>(own + i, load<Float>(own + i, how) + load<K>(d_out + i, how) * normed, how);
      });
    }
    if (d_bias) {
      each(a.size, [&](int64_t i, auto how) {
        store<Float>(d_bias + i, load<Float>(d_bias + i, how) + load<K>(d_out + i, how), how);
      });
    }
    if (!a.d_x) continue;
    const Two total = sums(a.size, [&](int64_t i, auto how, F& plain, F& along) {
      const F d = load<K>(d_out + i, how) * load<Float>(weight + i, how);
      plain += d;
      along += d * ((load<K>(x + i, how) - mean) * rate);
    });
    const float shared = a.centred ? (float)(total.first / (double)a.size) : 0;
    const float along = (float)(total.second / (double)a.size);
    T* d_x = (T*)a.d_x + row * a.size;
    const auto inner = [&](int64_t i, auto how) {
      const F d = load<K>(d_out + i, how) * load<Float>(weight + i, how);
      return rate * (d - shared - ((load<K>(x + i, how) - mean) * rate) * along);
    };
    if (a.d_sum) {
      const T* d_sum = (const T*)a.d_sum + row * a.size;
      each(a.size, [&](int64_t i, auto how) {
        store<K>(d_x + i, load<K>(d_sum + i, how) + rounded(inner(i, how)), how);
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
