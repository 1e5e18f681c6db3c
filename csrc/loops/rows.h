// Rows of numbers, vector by vector, and their sums. The end of a row has fewer numbers than a vector.
#pragma once

#include "kinds.h"

namespace ln_tuning {
namespace {

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

}  // namespace
}  // namespace ln_tuning
