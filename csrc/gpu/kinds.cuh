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

#if defined(KIND_F32)
#define OF_WORD 1
INLINE float of_word(unsigned word, int) { return __uint_as_float(word); }
INLINE unsigned word_of(const float* values) { return __float_as_uint(values[0]); }
#else
#define OF_WORD 2
INLINE float of_word(unsigned word, int i) { return widened((Value)(word >> 16 * i)); }
#if defined(KIND_BF16) && !defined(ON_HOST) && __CUDA_ARCH__ >= 800
INLINE unsigned word_of(const float* values) {
  unsigned word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(values[1]), "f"(values[0]));
  return word;
}
#else
INLINE unsigned word_of(const float* values) { return narrowed(values[0]) | (unsigned)narrowed(values[1]) << 16; }
#endif
#endif

// Values as they stand in memory, in words: the compiler does not always read or write a struct of half words at once.
template <int COUNT>
struct alignas(4 * COUNT / OF_WORD) Some {
  unsigned words[COUNT / OF_WORD];
};

// A single value, which may be half a word.
template <>
struct Some<1> {
  Value value;
};

template <int COUNT>
INLINE Some<COUNT> read(const void* from, Size at) {
  return *(const Some<COUNT>*)((const Value*)from + at);
}

template <int COUNT>
INLINE void widen(const Some<COUNT>& some, float* to) {
  if constexpr (COUNT == 1) {
    to[0] = widened(some.value);
  } else {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) to[i] = of_word(some.words[i / OF_WORD], i % OF_WORD);
  }
}

template <int COUNT>
INLINE void load(const void* from, Size at, float* to) {
  widen(read<COUNT>(from, at), to);
}

// From here on the compiler does not know what the values are: it keeps these and widens them anew, instead of keeping
// what it has computed from them in twice as many registers.
template <int COUNT>
INLINE void forget(Some<COUNT>& some) {
#ifndef ON_HOST
  if constexpr (COUNT > 1) {
#pragma unroll
    for (int i = 0; i < COUNT / OF_WORD; ++i) asm volatile("" : "+r"(some.words[i]));
  }
#endif
}

template <int COUNT>
INLINE void store(void* to, Size at, const float* from) {
  Some<COUNT> some;
  if constexpr (COUNT == 1) {
    some.value = narrowed(from[0]);
  } else {
#pragma unroll
    for (int i = 0; i < COUNT / OF_WORD; ++i) some.words[i] = word_of(from + OF_WORD * i);
  }
  *(Some<COUNT>*)((Value*)to + at) = some;
}
