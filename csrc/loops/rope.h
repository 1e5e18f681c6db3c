// Rotary embeddings.
#pragma once

#include "rows.h"

namespace ln_tuning {
namespace {

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

void any_rope(const Rope& a, int64_t begin, int64_t end) {
  with_kind(a.kind, [&](auto kind) { rope<decltype(kind)>(a, begin, end); });
}

}  // namespace
}  // namespace ln_tuning
