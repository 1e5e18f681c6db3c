// Loops of matrix products in f32 for x86 processors with AVX-512: blocks of results stay in registers, and a panel of
// the second matrix in the cache.

#pragma once

#include <immintrin.h>

#include <cstdint>

namespace products {

// Results of one block.
constexpr int ROWS = 12, COLUMNS = 32;

#define LN_PRODUCTS_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))

// Adds the products of twelve rows, `stride` apart, with a panel `[length][COLUMNS]` to `sums`, or writes them.
LN_PRODUCTS_AVX512 inline void block(
    const float* a, int64_t stride, const float* panel, int64_t length, bool more, float* sums) {
  __m512 c[ROWS][2];
  for (int r = 0; r < ROWS; r++)
    for (int n = 0; n < 2; n++) c[r][n] = _mm512_setzero_ps();
  // Few registers are left for places.
  const int64_t stride3 = 3 * stride;
  const float *a0 = a, *a1 = a + 4 * stride, *a2 = a + 8 * stride;
  const float* const end = panel + length * COLUMNS;
  for (; panel < end; panel += COLUMNS, a0++, a1++, a2++) {
    const __m512 b0 = _mm512_loadu_ps(panel), b1 = _mm512_loadu_ps(panel + 16);
    const float* const at[ROWS] = {a0, a0 + stride, a0 + 2 * stride, a0 + stride3,
                                   a1, a1 + stride, a1 + 2 * stride, a1 + stride3,
                                   a2, a2 + stride, a2 + 2 * stride, a2 + stride3};
    _Pragma("GCC unroll 12") for (int r = 0; r < ROWS; r++) {
      const __m512 x = _mm512_set1_ps(*at[r]);
      c[r][0] = _mm512_fmadd_ps(x, b0, c[r][0]);
      c[r][1] = _mm512_fmadd_ps(x, b1, c[r][1]);
    }
  }
  for (int r = 0; r < ROWS; r++)
    for (int n = 0; n < 2; n++) {
      float* own = sums + r * COLUMNS + n * 16;
      // A long sum in one piece would round each term to the whole.
      _mm512_storeu_ps(own, more ? _mm512_add_ps(_mm512_loadu_ps(own), c[r][n]) : c[r][n]);
    }
}

LN_PRODUCTS_AVX512 inline void transpose(__m512 (&r)[16]) {
  __m512 t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
  }
  const auto low = [](__m512 a, __m512 b) LN_PRODUCTS_AVX512 {
    return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
  };
  const auto high = [](__m512 a, __m512 b) LN_PRODUCTS_AVX512 {
    return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
  };
  for (int i = 0; i < 16; i += 4) {
    r[i] = low(t[i], t[i + 2]);
    r[i + 1] = high(t[i], t[i + 2]);
    r[i + 2] = low(t[i + 1], t[i + 3]);
    r[i + 3] = high(t[i + 1], t[i + 3]);
  }
  for (int half = 0; half < 16; half += 8)
    for (int i = 0; i < 4; i++) {
      t[half + i] = _mm512_shuffle_f32x4(r[half + i], r[half + 4 + i], 0x88);
      t[half + 4 + i] = _mm512_shuffle_f32x4(r[half + i], r[half + 4 + i], 0xdd);
    }
  for (int i = 0; i < 8; i++) {
    r[i] = _mm512_shuffle_f32x4(t[i], t[8 + i], 0x88);
    r[8 + i] = _mm512_shuffle_f32x4(t[i], t[8 + i], 0xdd);
  }
}

LN_PRODUCTS_AVX512 inline __mmask16 first(int64_t count) {
  return count >= 16 ? 0xffff : count <= 0 ? 0 : (1u << count) - 1;
}

// A panel `[length][COLUMNS]` of rows, `stride` apart, that are its columns; columns behind `count` are zero.
LN_PRODUCTS_AVX512 inline void pack_rows(
    const float* rows, int64_t stride, int64_t length, int64_t count, float* panel) {
  for (int64_t group = 0; group < COLUMNS; group += 16) {
    for (int64_t k = 0; k < length; k += 16) {
      const int left = length - k < 16 ? length - k : 16;
      const __mmask16 mask = first(left);
      __m512 r[16];
      for (int i = 0; i < 16; i++)
        r[i] = group + i < count ? _mm512_maskz_loadu_ps(mask, rows + (group + i) * stride + k) : _mm512_setzero_ps();
      transpose(r);
      float* to = panel + k * COLUMNS + group;
      if (left == 16) {
        for (int i = 0; i < 16; i++) _mm512_storeu_ps(to + i * COLUMNS, r[i]);
      } else {
        for (int i = 0; i < left; i++) _mm512_storeu_ps(to + i * COLUMNS, r[i]);
      }
    }
  }
}

// The same of columns that stand beside each other; the next number of each is `stride` behind.
LN_PRODUCTS_AVX512 inline void pack_columns(
    const float* from, int64_t stride, int64_t length, int64_t count, float* panel) {
  const __mmask16 masks[2] = {first(count), first(count - 16)};
  for (int64_t k = 0; k < length; k++, from += stride, panel += COLUMNS)
    for (int n = 0; n < 2; n++) _mm512_storeu_ps(panel + n * 16, _mm512_maskz_loadu_ps(masks[n], from + n * 16));
}

// Writes `rows` rows of results, `stride` apart, with a bias if there is one.
LN_PRODUCTS_AVX512 inline void write(
    const float* sums, const float* bias, int rows, int64_t count, float* out, int64_t stride) {
  for (int n = 0; n < 2; n++) {
    const __mmask16 mask = first(count - n * 16);
    const __m512 more = bias == nullptr ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(mask, bias + n * 16);
    for (int r = 0; r < rows; r++) {
      __m512 sum = _mm512_loadu_ps(sums + r * COLUMNS + n * 16);
      if (bias != nullptr) sum = _mm512_add_ps(sum, more);
      _mm512_mask_storeu_ps(out + r * stride + n * 16, mask, sum);
    }
  }
}

} // namespace products
