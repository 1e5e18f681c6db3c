// The inner loops of the fused functions, in vectors of GCC and Clang. Compiled once per kind of processor:
// LN_TUNING_LOOPS is the name of the table, and the compiler's flags decide how wide a vector is.
#include "loops.h"

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

// ---- Kinds: what is stored, and how it becomes a vector of f32.

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

// ---- The end of a row: fewer numbers than a vector has.

struct Whole {};
struct Part {
  int64_t count;
};

template <class K>
INLINE F load(const typename K::Stored* at, Whole) {
  return K::load(at);
}
template <class K>
INLINE void store(typename K::Stored* at, F x, Whole) {
  K::store(at, x);
}
// Zeros behind the end.
template <class K>
INLINE F load(const typename K::Stored* at, Part part) {
  typename K::Stored padded[LANES] = {};
  for (int64_t i = 0; i < part.count; ++i) padded[i] = at[i];
  return K::load(padded);
}
template <class K>
INLINE void store(typename K::Stored* at, F x, Part part) {
  typename K::Stored padded[LANES];
  K::store(padded, x);
  for (int64_t i = 0; i < part.count; ++i) at[i] = padded[i];
}

INLINE F kept(F x, Whole, float) { return x; }
// Another number behind the end.
INLINE F kept(F x, Part part, float other) {
  float lanes[LANES];
  std::memcpy(lanes, &x, sizeof(x));
  for (int64_t i = part.count; i < LANES; ++i) lanes[i] = other;
  return Float::load(lanes);
}

template <class Body>
INLINE void each(int64_t size, Body body) {
  int64_t i = 0;
  for (; i + LANES <= size; i += LANES) body(i, Whole{});
  if (i < size) body(i, Part{size - i});
}

INLINE float highest(F x) {
  float lanes[LANES];
  std::memcpy(lanes, &x, sizeof(x));
  float most = lanes[0];
  for (int i = 1; i < LANES; ++i) most = lanes[i] > most ? lanes[i] : most;
  return most;
}

INLINE float across(F x) {
  float lanes[LANES];
  std::memcpy(lanes, &x, sizeof(x));
  for (int width = LANES / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return lanes[0];
}

// Sums of two values per number, block by block, so that long rows lose nothing.
struct Two {
  double first, second;
};
template <class Body>
INLINE Two sums(int64_t size, Body body) {
  const int64_t block = 2048;
  Two total = {0, 0};
  for (int64_t start = 0; start < size; start += block) {
    const int64_t stop = size - start < block ? size : start + block;
    F first[4] = {}, second[4] = {};
    int64_t i = start;
    for (; i + 4 * LANES <= stop; i += 4 * LANES)
      for (int part = 0; part < 4; ++part) body(i + part * LANES, Whole{}, first[part], second[part]);
    for (; i + LANES <= stop; i += LANES) body(i, Whole{}, first[0], second[0]);
    if (i < stop) body(i, Part{stop - i}, first[1], second[1]);
    total.first += across((first[0] + first[1]) + (first[2] + first[3]));
    total.second += across((second[0] + second[1]) + (second[2] + second[3]));
  }
  return total;
}

// ---- Functions.

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

// ---- The loops.

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

template <class K, class A>
void gated(const Gated& a, int64_t begin, int64_t end) {
  typedef typename K::Stored T;
  for (int64_t row = begin; row < end; ++row) {
    const T* gate = (const T*)a.gate + row * a.gate_stride;
    const T* up = (const T*)a.up + row * a.up_stride;
    T* out = (T*)a.out + row * a.size;
    each(a.size, [&](int64_t i, auto how) {
      store<K>(out + i, A::value(load<K>(gate + i, how)) * load<K>(up + i, how), how);
    });
  }
}

template <class K, class A>
void gated_backward(const GatedBackward& b, int64_t begin, int64_t end) {
  typedef typename K::Stored T;
  const Gated& a = b.forward;
  for (int64_t row = begin; row < end; ++row) {
    const T* gate = (const T*)a.gate + row * a.gate_stride;
    const T* up = (const T*)a.up + row * a.up_stride;
    const T* d_out = (const T*)b.d_out + row * a.size;
    T* d_gate = (T*)b.d_gate + row * b.d_stride;
    T* d_up = (T*)b.d_up + row * b.d_stride;
    each(a.size, [&](int64_t i, auto how) {
      const F d = load<K>(d_out + i, how);
      F slope;
      const F value = A::both(load<K>(gate + i, how), slope);
      store<K>(d_gate + i, d * load<K>(up + i, how) * slope, how);
      store<K>(d_up + i, d * value, how);
    });
  }
}

INLINE F swapped(F x) {
  const Pairs pairs = bits<Pairs>(x);
  return bits<F>(pairs >> 32 | pairs << 32);
}

template <class K>
void rope(const Rope& a, int64_t begin, int64_t end) {
  typedef typename K::Stored T;
  const int64_t half = a.turned / 2;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t batch = row / a.length, place = row % a.length;
    const int64_t table = batch * a.table_strides[0] + place * a.table_strides[1];
    const T* cos = (const T*)a.cos + table;
    const T* sin = (const T*)a.sin + table;
    for (int64_t head = 0; head < a.heads; ++head) {
      const T* x = (const T*)a.x + batch * a.x_strides[0] + place * a.x_strides[1] + head * a.x_strides[2];
      T* out = (T*)a.out + (row * a.heads + head) * a.dim;
      if (a.side_by_side) {
        each(a.turned, [&](int64_t i, auto how) {
          const F value = load<K>(x + i, how), s = load<K>(sin + i, how);
          const F other = a.backward ? swapped(value * s) : swapped(value) * s;
          store<K>(out + i, value * load<K>(cos + i, how) + other, how);
        });
      } else {
        // Forwards a half takes its own sine with the other's value; backwards, the other's.
        const T* first_sin = a.backward ? sin + half : sin;
        const T* second_sin = a.backward ? sin : sin + half;
        each(half, [&](int64_t i, auto how) {
          const F first = load<K>(x + i, how), second = load<K>(x + half + i, how);
          store<K>(out + i, first * load<K>(cos + i, how) + second * load<K>(first_sin + i, how), how);
          store<K>(out + half + i, second * load<K>(cos + half + i, how) + first * load<K>(second_sin + i, how), how);
        });
      }
      if (a.turned < a.dim) std::memcpy(out + a.turned, x + a.turned, (a.dim - a.turned) * sizeof(T));
    }
  }
}

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

// ---- From the kinds of the arguments to the loops.

template <class Body>
INLINE void with_kind(Kind kind, Body body) {
  switch (kind) {
    case Kind::f32: return body(Float{});
    case Kind::bf16: return body(BFloat16{});
    case Kind::f16: return body(Half{});
  }
}

template <class Body>
INLINE void with_activation(Activation activation, Body body) {
  switch (activation) {
    case Activation::gelu: return body(Gelu{});
    case Activation::gelu_tanh: return body(GeluTanh{});
    case Activation::quick_gelu: return body(QuickGelu{});
    case Activation::relu: return body(Relu{});
    case Activation::silu: return body(Silu{});
  }
}

void any_norm(const Norm& a, int64_t begin, int64_t end) {
  with_kind(a.kind, [&](auto kind) { norm<decltype(kind)>(a, begin, end); });
}

void any_norm_backward(const NormBackward& a, int64_t begin, int64_t end, float* d_weight, float* d_bias) {
  with_kind(a.kind, [&](auto kind) { norm_backward<decltype(kind)>(a, begin, end, d_weight, d_bias); });
}

void any_gated(const Gated& a, int64_t begin, int64_t end) {
  with_kind(a.kind, [&](auto kind) {
    with_activation(a.activation, [&](auto activation) {
      gated<decltype(kind), decltype(activation)>(a, begin, end);
    });
  });
}

void any_gated_backward(const GatedBackward& a, int64_t begin, int64_t end) {
  with_kind(a.forward.kind, [&](auto kind) {
    with_activation(a.forward.activation, [&](auto activation) {
      gated_backward<decltype(kind), decltype(activation)>(a, begin, end);
    });
  });
}

void any_rope(const Rope& a, int64_t begin, int64_t end) {
  with_kind(a.kind, [&](auto kind) { rope<decltype(kind)>(a, begin, end); });
}

void any_softmax(const Softmax& a, int64_t begin, int64_t end, float* scratch) {
  with_kind(a.kind, [&](auto kind) { softmax<decltype(kind)>(a, begin, end, scratch); });
}

void any_softmax_backward(const SoftmaxBackward& a, int64_t begin, int64_t end) {
  with_kind(a.forward.kind, [&](auto kind) { softmax_backward<decltype(kind)>(a, begin, end); });
}

void any_cross_entropy(const CrossEntropy& a, int64_t begin, int64_t end) {
  with_kind(a.kind, [&](auto kind) { cross_entropy<decltype(kind)>(a, begin, end); });
}

}  // namespace

extern const Loops LN_TUNING_LOOPS;
constexpr Loops table = {any_norm, any_norm_backward, any_gated, any_gated_backward, any_rope,
                         any_softmax, any_softmax_backward, any_cross_entropy};
const Loops LN_TUNING_LOOPS = table;

}  // namespace ln_tuning
