// The kind of the values, and how they are read and written.

#if defined(KIND_F32)
typedef float Value;
INLINE float widened(Value x) { return x; }
INLINE Value narrowed(float x) { return x; }
#elif defined(KIND_BF16)
typedef unsigned short Value;
INLINE float widened(Value x) { return __uint_as_float((unsigned)x << 16); }
// To the nearest, to the even one of two.
INLINE Value narrowed(float x) {
  const unsigned bits = __float_as_uint(x);
  if (x != x) return 0x7FC0;
  return (Value)((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}
#else
typedef unsigned short Value;
#ifdef ON_HOST
INLINE float widened(Value x) { return half_as_float(x); }
INLINE Value narrowed(float x) { return float_as_half(x); }
#else
INLINE float widened(Value x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
  return y;
}
INLINE Value narrowed(float x) {
  Value y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
  return y;
}
#endif
#endif

// As many values as are read at once.
#define MANY (16 / (int)sizeof(Value))

template <int COUNT>
struct alignas(COUNT * sizeof(Value)) Some {
  Value values[COUNT];
};

template <int COUNT>
INLINE void load(const void* from, Size at, float* to) {
  const Some<COUNT> some = *(const Some<COUNT>*)((const Value*)from + at);
#pragma unroll
  for (int i = 0; i < COUNT; ++i) to[i] = widened(some.values[i]);
}

template <int COUNT>
INLINE void store(void* to, Size at, const float* from) {
  Some<COUNT> some;
#pragma unroll
  for (int i = 0; i < COUNT; ++i) some.values[i] = narrowed(from[i]);
  *(Some<COUNT>*)((Value*)to + at) = some;
}
