// Norms, with the addition before them.

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
    const Size part = a.weight_stride != 0 || a.bias_stride != 0 ? row / a.rows_together : 0;
    const Size own_weight = part * a.weight_stride, own_bias = part * a.bias_stride;
    if (threadIdx.x == 0 && stop != 0) {
      a.stats[2 * row] = mean;
      a.stats[2 * row + 1] = rate;
    }
#pragma unroll 1
    for (Size at = from; at < stop; at += step) {
      float values[COUNT], weights[COUNT], biases[COUNT];
      load<COUNT>(x, at, values);
      scales<COUNT>(a.weight, a.from_one, own_weight + at, weights);
      if (a.bias) load<COUNT>(a.bias, own_bias + at, biases);
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
  // The place of its weight.
  Size weight;
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
    scales<COUNT>(a.weight, a.from_one, weight + at, factors);
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
  const unsigned of_group = gridDim.x / (unsigned)a.groups, group = blockIdx.x / of_group;
  const Size weight = group * a.weight_stride;
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
  for (Size first = (Size)(blockIdx.x % of_group) * blockDim.y; first < a.rows; first += (Size)of_group * blockDim.y) {
    const Size stop = row_at(first) < a.rows ? a.size : 0;
    const Size row = group * a.rows + row_at(first);
    NormRow<COUNT> one = {a, row, weight, 0, 0, {0, 0}};
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
        scales<COUNT>(a.weight, a.from_one, weight + at, factors);
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

// The sum of all parts, in an order that depends on their number alone: blockDim is 32 columns, 8 groups of rows. As many
// blocks as there are columns compute a result; those of the weight come first.
KERNEL(total, TotalArguments, 256) {
  __shared__ float groups[8][32];
  const unsigned columns = (unsigned)((a.size + 31) / 32);
  const bool first = blockIdx.x / columns < a.results[0];
  const Size result = blockIdx.x / columns - (first ? 0 : a.results[0]);
  const Size parts = first ? a.parts[0] : a.parts[1];
  const float* from = (first ? a.from[0] : a.from[1]) + result * parts * a.size;
  const Size at = (Size)(blockIdx.x % columns) * 32 + threadIdx.x;
  float sum = 0;
  if (at < a.size) {
#pragma unroll 4
    for (Size part = threadIdx.y; part < parts; part += 8) sum += from[part * a.size + at];
  }
  groups[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || at >= a.size) return;
  for (int group = 1; group < 8; ++group) sum += groups[group][threadIdx.x];
  store<1>(first ? a.to[0] : a.to[1], result * a.size + at, &sum);
}
