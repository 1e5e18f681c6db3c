// The fused functions as CUDA kernels, compiled on the user's machine for its device, once for each kind: KIND_F32,
// KIND_BF16 or KIND_F16 is defined. Values are computed in f32 and rounded once.
//
// No header of CUDA is read. Tests compile the same text for the host, where a program runs the threads of a block in
// turn; that one defines ON_HOST and what CUDA has built in.
#include "arguments.h"

#define INLINE static __device__ __forceinline__
#ifndef ON_HOST
#define KERNEL(name, Arguments, THREADS) \
  extern "C" __global__ void __launch_bounds__(THREADS) NAMED(name)(const ln_tuning::gpu::Arguments a)
#endif

#if defined(KIND_F32)
#define NAMED(name) ln_tuning_##name##_f32
#elif defined(KIND_BF16)
#define NAMED(name) ln_tuning_##name##_bf16
#else
#define NAMED(name) ln_tuning_##name##_f16
#endif

using ln_tuning::gpu::GatedArguments;
using ln_tuning::gpu::GatedBackwardArguments;
using ln_tuning::gpu::NormArguments;
using ln_tuning::gpu::NormBackwardArguments;
using ln_tuning::gpu::RopeArguments;
using ln_tuning::gpu::RopeSide;
using ln_tuning::gpu::Size;

// ---- Kinds.

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

// ---- Rows: a block computes blockDim.y of them at a time, each by blockDim.x threads, which are whole warps.

#define MOST_THREADS 512

// The row of this thread, where a block begins with `first`.
INLINE Size row_at(Size first) { return first + threadIdx.y; }
INLINE Size first_row() { return (Size)blockIdx.x * blockDim.y; }
INLINE Size rows_at_a_time() { return (Size)gridDim.x * blockDim.y; }

struct Two {
  float first, second;
};

// The sums over the threads of a row, in an order that depends on their number alone. All threads of a block come here.
INLINE Two over_row(Two x) {
  for (int distance = 16; distance > 0; distance >>= 1) {
    x.first += __shfl_xor_sync(0xFFFFFFFF, x.first, distance);
    x.second += __shfl_xor_sync(0xFFFFFFFF, x.second, distance);
  }
  const int warps = blockDim.x / 32;
  if (warps == 1) return x;
  __shared__ Two parts[MOST_THREADS / 32];
  if (threadIdx.x % 32 == 0) parts[threadIdx.y * warps + threadIdx.x / 32] = x;
  __syncthreads();
  x = parts[threadIdx.y * warps];
  for (int warp = 1; warp < warps; ++warp) {
    x.first += parts[threadIdx.y * warps + warp].first;
    x.second += parts[threadIdx.y * warps + warp].second;
  }
  __syncthreads();
  return x;
}

// ---- Norms.

template <int COUNT>
INLINE void scales(const void* weight, int from_one, Size at, float* to) {
  if (weight) {
    load<COUNT>(weight, at, to);
  } else {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) to[i] = from_one ? 0.f : 1.f;
  }
  if (from_one) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) to[i] += 1.f;
  }
}

template <int COUNT>
INLINE void norm(const NormArguments& a) {
  const Size from = (Size)threadIdx.x * COUNT, step = (Size)blockDim.x * COUNT;
#pragma unroll 1
  for (Size first = first_row(); first < a.rows; first += rows_at_a_time()) {
    const Size row = row_at(first);
    const Size stop = row < a.rows ? a.size : 0;
    const Value* x = (const Value*)a.x + row * a.x_stride;
    Two total = {0, 0};
    if (a.added) {
      const Value* added = (const Value*)a.added + row * a.added_stride;
      Value* sum = (Value*)a.sum + row * a.size;
#pragma unroll 1
      for (Size at = from; at < stop; at += step) {
        float values[COUNT], more[COUNT];
        load<COUNT>(x, at, values);
        load<COUNT>(added, at, more);
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
          // The norm is that of the sum as it is kept.
          values[i] = widened(narrowed(values[i] + more[i]));
          total.first += values[i];
          total.second += values[i] * values[i];
        }
        store<COUNT>(sum, at, values);
      }
      x = sum;
    } else {
#pragma unroll 1
      for (Size at = from; at < stop; at += step) {
        float values[COUNT];
        load<COUNT>(x, at, values);
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
          total.first += values[i];
          total.second += values[i] * values[i];
        }
      }
    }
    total = over_row(total);
    float mean = 0;
    if (a.centred) {
      // Squares of what is left, since those of large numbers would hide it.
      mean = total.first / (float)a.size;
      total.second = 0;
#pragma unroll 1
      for (Size at = from; at < stop; at += step) {
        float values[COUNT];
        load<COUNT>(x, at, values);
#pragma unroll
        for (int i = 0; i < COUNT; ++i) total.second += (values[i] - mean) * (values[i] - mean);
      }
      total = over_row(total);
    }
    const float rate = 1.f / sqrtf(total.second / (float)a.size + a.eps);
    if (threadIdx.x == 0 && stop != 0) {
      a.stats[2 * row] = mean;
      a.stats[2 * row + 1] = rate;
    }
#pragma unroll 1
    for (Size at = from; at < stop; at += step) {
      float values[COUNT], weights[COUNT], biases[COUNT];
      load<COUNT>(x, at, values);
      scales<COUNT>(a.weight, a.from_one, at, weights);
      if (a.bias) load<COUNT>(a.bias, at, biases);
#pragma unroll
      for (int i = 0; i < COUNT; ++i) {
        values[i] = (values[i] - mean) * rate * weights[i];
        if (a.bias) values[i] += biases[i];
      }
      store<COUNT>(a.out, row * a.size + at, values);
    }
  }
}

KERNEL(norm, NormArguments, MOST_THREADS) {
  if (a.vectors) {
    norm<MANY>(a);
  } else {
    norm<1>(a);
  }
}

// A row's part of the gradients of weight and bias, and its own gradient.
template <int COUNT>
struct NormRow {
  const NormBackwardArguments& a;
  Size row;
  float mean, rate;
  // Of the whole row, divided by its size.
  Two shared;

  __device__ __forceinline__ void visit(Size at, float* weights, float* biases) const {
    float values[COUNT], given[COUNT];
    load<COUNT>(a.x, row * a.x_stride + at, values);
    load<COUNT>(a.d_out, row * a.size + at, given);
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      values[i] = (values[i] - mean) * rate;
      if (a.weight_parts) weights[i] += given[i] * values[i];
      if (a.bias_parts) biases[i] += given[i];
    }
    if (!a.d_x) return;
    float factors[COUNT], more[COUNT];
    scales<COUNT>(a.weight, a.from_one, at, factors);
    if (a.d_sum) load<COUNT>(a.d_sum, row * a.size + at, more);
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      values[i] = rate * (given[i] * factors[i] - shared.first - values[i] * shared.second);
      if (a.d_sum) values[i] += more[i];
    }
    store<COUNT>(a.d_x, row * a.size + at, values);
  }
};

// A thread keeps the sums of its first columns in registers: two pieces, as many as most threads have, and no more, so
// that more threads run at once. Those of further columns are in its row of the parts.
template <int COUNT>
INLINE void norm_backward(const NormBackwardArguments& a) {
  constexpr int CHUNKS = 2, REGISTERS = CHUNKS * COUNT;
  const Size from = (Size)threadIdx.x * COUNT, step = (Size)blockDim.x * COUNT;
  const Size part = row_at(first_row()) * a.size;
  float weights[REGISTERS], biases[REGISTERS];
#pragma unroll
  for (int i = 0; i < REGISTERS; ++i) weights[i] = biases[i] = 0;
#pragma unroll 1
  for (Size at = from + CHUNKS * step; at < a.size; at += step) {
    for (int i = 0; i < COUNT; ++i) {
      if (a.weight_parts) a.weight_parts[part + at + i] = 0;
      if (a.bias_parts) a.bias_parts[part + at + i] = 0;
    }
  }
#pragma unroll 1
  for (Size first = first_row(); first < a.rows; first += rows_at_a_time()) {
    const Size row = row_at(first);
    const Size stop = row < a.rows ? a.size : 0;
    NormRow<COUNT> one = {a, row, 0, 0, {0, 0}};
    if (stop != 0) {
      one.mean = a.stats[2 * row];
      one.rate = a.stats[2 * row + 1];
    }
    if (a.d_x) {
#pragma unroll 1
      for (Size at = from; at < stop; at += step) {
        float values[COUNT], given[COUNT], factors[COUNT];
        load<COUNT>(a.x, row * a.x_stride + at, values);
        load<COUNT>(a.d_out, row * a.size + at, given);
        scales<COUNT>(a.weight, a.from_one, at, factors);
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
          const float d = given[i] * factors[i];
          one.shared.first += d;
          one.shared.second += d * ((values[i] - one.mean) * one.rate);
        }
      }
      one.shared = over_row(one.shared);
      one.shared.first = a.centred ? one.shared.first / (float)a.size : 0.f;
      one.shared.second /= (float)a.size;
    }
#pragma unroll
    for (int chunk = 0; chunk < CHUNKS; ++chunk) {
      const Size at = from + chunk * step;
      if (at < stop) one.visit(at, weights + chunk * COUNT, biases + chunk * COUNT);
    }
#pragma unroll 1
    for (Size at = from + CHUNKS * step; at < stop; at += step) {
      // Not read where they are not wanted.
      one.visit(at, a.weight_parts + part + at, a.bias_parts + part + at);
    }
  }
#pragma unroll
  for (int i = 0; i < REGISTERS; ++i) {
    const Size at = from + i / COUNT * step + i % COUNT;
    if (at < a.size && a.weight_parts) a.weight_parts[part + at] = weights[i];
    if (at < a.size && a.bias_parts) a.bias_parts[part + at] = biases[i];
  }
}

KERNEL(norm_backward, NormBackwardArguments, MOST_THREADS) {
  if (a.vectors) {
    norm_backward<MANY>(a);
  } else {
    norm_backward<1>(a);
  }
}

// The sum of all parts, in an order that depends on their number alone: blockDim is 32 columns, 8 groups of rows.
KERNEL(total, TotalArguments, 256) {
  __shared__ float groups[8][32];
  const float* from = blockIdx.y == 0 ? a.from[0] : a.from[1];
  void* to = blockIdx.y == 0 ? a.to[0] : a.to[1];
  const Size at = (Size)blockIdx.x * 32 + threadIdx.x;
  float sum = 0;
  if (at < a.size) {
#pragma unroll 4
    for (Size part = threadIdx.y; part < a.parts; part += 8) sum += from[part * a.size + at];
  }
  groups[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || at >= a.size) return;
  for (int group = 1; group < 8; ++group) sum += groups[group][threadIdx.x];
  store<1>(to, at, &sum);
}

// ---- Gates.

INLINE float sigmoid(float x) { return 1.f / (1.f + expf(-x)); }

// The value of an activation, and its slope.
INLINE float activated(int activation, float x, float* slope) {
  switch (activation) {
    case 0: {  // gelu
      const float below = 0.5f * (1.f + erff(x * 0.7071067811865476f));
      *slope = below + x * expf(-0.5f * x * x) * 0.3989422804014327f;
      return x * below;
    }
    case 1: {  // gelu_tanh: (1 + tanh(u)) / 2 is the sigmoid of 2u
      const float s = sigmoid(1.5957691216057308f * (x + 0.044715f * (x * x * x)));
      *slope = s + x * (s * (1.f - s)) * (1.5957691216057308f * (1.f + 0.134145f * (x * x)));
      return x * s;
    }
    case 2: {  // quick_gelu
      const float s = sigmoid(1.702f * x);
      *slope = s + 1.702f * x * (s * (1.f - s));
      return x * s;
    }
    case 3:  // relu; NaN stays
      *slope = x > 0.f ? 1.f : 0.f;
      return x < 0.f ? 0.f : x;
    default: {  // silu
      const float s = sigmoid(x);
      *slope = s * (1.f + x * (1.f - s));
      return x / (1.f + expf(-x));
    }
  }
}

template <int COUNT>
INLINE void gated(const GatedArguments& a) {
  const Size from = (Size)threadIdx.x * COUNT, step = (Size)blockDim.x * COUNT;
#pragma unroll 1
  for (Size row = row_at(first_row()); row < a.rows; row += rows_at_a_time()) {
#pragma unroll 1
    for (Size at = from; at < a.size; at += step) {
      float gate[COUNT], up[COUNT], slope;
      load<COUNT>(a.gate, row * a.gate_stride + at, gate);
      load<COUNT>(a.up, row * a.up_stride + at, up);
#pragma unroll
      for (int i = 0; i < COUNT; ++i) up[i] *= activated(a.activation, gate[i], &slope);
      store<COUNT>(a.out, row * a.size + at, up);
    }
  }
}

KERNEL(gated, GatedArguments, MOST_THREADS) {
  if (a.vectors) {
    gated<MANY>(a);
  } else {
    gated<1>(a);
  }
}

template <int COUNT>
INLINE void gated_backward(const GatedBackwardArguments& b) {
  const GatedArguments& a = b.forward;
  const Size from = (Size)threadIdx.x * COUNT, step = (Size)blockDim.x * COUNT;
#pragma unroll 1
  for (Size row = row_at(first_row()); row < a.rows; row += rows_at_a_time()) {
#pragma unroll 1
    for (Size at = from; at < a.size; at += step) {
      float gate[COUNT], up[COUNT], given[COUNT];
      load<COUNT>(a.gate, row * a.gate_stride + at, gate);
      load<COUNT>(a.up, row * a.up_stride + at, up);
      load<COUNT>(b.d_out, row * a.size + at, given);
#pragma unroll
      for (int i = 0; i < COUNT; ++i) {
        float slope;
        const float value = activated(a.activation, gate[i], &slope);
        gate[i] = given[i] * up[i] * slope;
        up[i] = given[i] * value;
      }
      store<COUNT>(b.d_gate, row * b.d_stride + at, gate);
      store<COUNT>(b.d_up, row * b.d_stride + at, up);
    }
  }
}

KERNEL(gated_backward, GatedBackwardArguments, MOST_THREADS) {
  if (a.forward.vectors) {
    gated_backward<MANY>(a);
  } else {
    gated_backward<1>(a);
  }
}

// ---- Rotary embeddings: a block turns the heads of one place, queries and keys.

// The two halves are turned against each other.
template <int COUNT>
INLINE void turn_halves(const RopeArguments& a, const Value* x, Value* out, const Value* cos, const Value* sin, int at) {
  const int half = a.turned / 2;
  float first[COUNT], second[COUNT], cosines[2][COUNT], sines[2][COUNT];
  load<COUNT>(x, at, first);
  load<COUNT>(x, at + half, second);
  load<COUNT>(cos, at, cosines[0]);
  load<COUNT>(cos, at + half, cosines[1]);
  // Forwards a half takes its own sine with the other's value; backwards, the other's.
  load<COUNT>(sin, a.backward ? at + half : at, sines[0]);
  load<COUNT>(sin, a.backward ? at : at + half, sines[1]);
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    const float value = first[i];
    first[i] = value * cosines[0][i] + second[i] * sines[0][i];
    second[i] = second[i] * cosines[1][i] + value * sines[1][i];
  }
  store<COUNT>(out, at, first);
  store<COUNT>(out, at + half, second);
}

// Neighbours are turned against each other.
template <int COUNT>
INLINE void turn_pairs(const RopeArguments& a, const Value* x, Value* out, const Value* cos, const Value* sin, int at) {
  // Two values at odd addresses are read one by one.
  constexpr int READ = COUNT == 2 ? 1 : COUNT;
  float values[COUNT], cosines[COUNT], sines[COUNT];
#pragma unroll
  for (int i = 0; i < COUNT; i += READ) {
    load<READ>(x, at + i, values + i);
    load<READ>(cos, at + i, cosines + i);
    load<READ>(sin, at + i, sines + i);
  }
#pragma unroll
  for (int i = 0; i < COUNT; i += 2) {
    const float first = values[i], second = values[i + 1];
    const int own = a.backward ? 1 : 0;
    values[i] = first * cosines[i] + second * (own ? sines[i + 1] : sines[i]);
    values[i + 1] = second * cosines[i + 1] + first * (own ? sines[i] : sines[i + 1]);
  }
#pragma unroll
  for (int i = 0; i < COUNT; i += READ) store<READ>(out, at + i, values + i);
}

KERNEL(rope, RopeArguments, 256) {
#pragma unroll 1
  for (Size place = blockIdx.x; place < a.batch * a.length; place += gridDim.x) {
    const Size batch = place / a.length, at_length = place % a.length;
    const Size table = batch * a.table_strides[0] + at_length * a.table_strides[1];
    const Value* cos = (const Value*)a.cos + table;
    const Value* sin = (const Value*)a.sin + table;
    const int count = a.vectors ? MANY : a.side_by_side ? 2 : 1;
    const int pieces = (a.side_by_side ? a.turned : a.turned / 2) / count, rest = a.dim - a.turned;
#pragma unroll
    for (int which = 0; which < 2; ++which) {
      const RopeSide& side = a.sides[which];
      const Value* x = (const Value*)side.x + batch * side.strides[0] + at_length * side.strides[1];
      Value* out = (Value*)side.out + place * side.heads * a.dim;
      const int heads = (int)side.heads;
#pragma unroll 1
      for (int item = threadIdx.x; item < heads * pieces; item += blockDim.x) {
        const int head = item / pieces, at = item % pieces * count;
        const Value* own = x + head * side.strides[2];
        Value* to = out + (Size)head * a.dim;
        if (a.side_by_side) {
          if (a.vectors) {
            turn_pairs<MANY>(a, own, to, cos, sin, at);
          } else {
            turn_pairs<2>(a, own, to, cos, sin, at);
          }
        } else if (a.vectors) {
          turn_halves<MANY>(a, own, to, cos, sin, at);
        } else {
          turn_halves<1>(a, own, to, cos, sin, at);
        }
      }
#pragma unroll 1
      for (int item = threadIdx.x; item < heads * rest; item += blockDim.x) {
        const int head = item / rest, at = a.turned + item % rest;
        out[(Size)head * a.dim + at] = x[head * side.strides[2] + at];
      }
    }
  }
}
