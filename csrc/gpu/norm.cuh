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

KERNEL(norm, NormArguments, MOST_THREADS, 3) {
  if (a.vectors) {
    norm<MANY>(a);
  } else {
    norm<1>(a);
  }
}

// Some columns of a row: values, the gradient given to the norm, and the one that is added to the row's own.
template <int COUNT>
struct NormPiece {
  Some<COUNT> x, given, more;
};

// The mean of a row and one over its deviation.
struct NormStats {
  float mean, rate;
};

INLINE NormStats stats_of(const NormBackwardArguments& a, Size row, bool is_there) {
  if (!is_there) return {0, 0};
  return {a.stats[2 * row], a.stats[2 * row + 1]};
}

template <int COUNT>
INLINE NormPiece<COUNT> piece_of(const NormBackwardArguments& a, Size row, Size at) {
  NormPiece<COUNT> piece = {};
  piece.x = read<COUNT>(a.x, row * a.x_stride + at);
  piece.given = read<COUNT>(a.d_out, row * a.size + at);
  if (a.d_sum) piece.more = read<COUNT>(a.d_sum, row * a.size + at);
  return piece;
}

// Adds what a row's own gradient takes from all of its columns.
template <int COUNT>
INLINE void share(const NormPiece<COUNT>& piece, const float* factors, NormStats stats, Two* shared) {
  float values[COUNT], given[COUNT];
  widen(piece.x, values);
  widen(piece.given, given);
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    const float d = given[i] * factors[i];
    shared->first += d;
    shared->second += d * ((values[i] - stats.mean) * stats.rate);
  }
}

// That of the whole row, divided by its size.
INLINE Two shared_by_row(const NormBackwardArguments& a, Two own) {
  own = over_row(own);
  return {a.centred ? own.first / (float)a.size : 0.f, own.second / (float)a.size};
}

// Writes a row's own gradient, if it is wanted, and adds to the sums for weight and bias where there are such.
template <int COUNT>
INLINE void finish(
    const NormBackwardArguments& a, const NormPiece<COUNT>& piece, const float* factors, NormStats stats, Two shared,
    Size to, float* weights, float* biases) {
  float values[COUNT], given[COUNT], more[COUNT];
  widen(piece.x, values);
  widen(piece.given, given);
  widen(piece.more, more);
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    values[i] = (values[i] - stats.mean) * stats.rate;
    if (weights) weights[i] += given[i] * values[i];
    if (biases) biases[i] += given[i];
  }
  if (!a.d_x) return;
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    values[i] = stats.rate * (given[i] * factors[i] - shared.first - values[i] * shared.second);
    if (a.d_sum) values[i] += more[i];
  }
  store<COUNT>(a.d_x, to, values);
}

// The rows of a block: those of one group, whose weight stands at `weight`.
struct NormRows {
  Size first, step, weight, group;
};

INLINE NormRows rows_of_block(const NormBackwardArguments& a) {
  const unsigned of_group = gridDim.x / (unsigned)a.groups, group = blockIdx.x / of_group;
  return {(Size)(blockIdx.x % of_group) * blockDim.y, (Size)of_group * blockDim.y, group * a.weight_stride, (Size)group};
}

// Columns of a thread, where they are so few that it keeps them, and its sums, in registers: a row is read once.
#define NORM_PIECES 2

template <int COUNT, bool BIASES>
INLINE void short_norm_backward(const NormBackwardArguments& a) {
  const Size from = (Size)threadIdx.x * COUNT, step = (Size)blockDim.x * COUNT;
  const NormRows rows = rows_of_block(a);
  float weights[NORM_PIECES * COUNT], biases[BIASES ? NORM_PIECES * COUNT : 1];
#pragma unroll
  for (int i = 0; i < NORM_PIECES * COUNT; ++i) {
    weights[i] = 0;
    if (BIASES) biases[i] = 0;
  }
#pragma unroll 1
  for (Size first = rows.first; first < a.rows; first += rows.step) {
    const bool is_there = row_at(first) < a.rows;
    const Size row = rows.group * a.rows + row_at(first);
    NormPiece<COUNT> pieces[NORM_PIECES] = {};
#pragma unroll
    for (int i = 0; i < NORM_PIECES; ++i) {
      const Size at = from + i * step;
      if (is_there && at < a.size) pieces[i] = piece_of<COUNT>(a, row, at);
    }
    const NormStats stats = stats_of(a, row, is_there);
    Two shared = {0, 0};
    float factors[COUNT];
    if (a.d_x) {
#pragma unroll
      for (int i = 0; i < NORM_PIECES; ++i) {
        const Size at = from + i * step;
        if (at < a.size) {
          scales<COUNT>(a.weight, a.from_one, rows.weight + at, factors);
          share<COUNT>(pieces[i], factors, stats, &shared);
        }
      }
      shared = shared_by_row(a, shared);
    }
#pragma unroll
    for (int i = 0; i < NORM_PIECES; ++i) {
      forget(pieces[i].x);
      forget(pieces[i].given);
      const Size at = from + i * step;
      if (is_there && at < a.size) {
        scales<COUNT>(a.weight, a.from_one, rows.weight + at, factors);
        finish<COUNT>(
            a, pieces[i], factors, stats, shared, row * a.size + at, weights + i * COUNT,
            BIASES ? biases + i * COUNT : nullptr);
      }
    }
  }
  const Size part = row_at(first_row()) * a.size;
#pragma unroll
  for (int i = 0; i < NORM_PIECES * COUNT; ++i) {
    const Size at = from + i / COUNT * step + i % COUNT;
    if (at < a.size && a.weight_parts) a.weight_parts[part + at] = weights[i];
    if (BIASES && at < a.size && a.bias_parts) a.bias_parts[part + at] = biases[i];
  }
}

// Longer rows are read twice, and their sums stand in memory.
template <int COUNT>
INLINE void long_norm_backward(const NormBackwardArguments& a) {
  const Size from = (Size)threadIdx.x * COUNT, step = (Size)blockDim.x * COUNT;
  const NormRows rows = rows_of_block(a);
  const Size part = row_at(first_row()) * a.size;
#pragma unroll 1
  for (Size at = from; at < a.size; at += step) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      if (a.weight_parts) a.weight_parts[part + at + i] = 0;
      if (a.bias_parts) a.bias_parts[part + at + i] = 0;
    }
  }
#pragma unroll 1
  for (Size first = rows.first; first < a.rows; first += rows.step) {
    const bool is_there = row_at(first) < a.rows;
    const Size row = rows.group * a.rows + row_at(first), stop = is_there ? a.size : 0;
    const NormStats stats = stats_of(a, row, is_there);
    Two shared = {0, 0};
    float factors[COUNT];
    if (a.d_x) {
#pragma unroll 1
      for (Size at = from; at < stop; at += step) {
        scales<COUNT>(a.weight, a.from_one, rows.weight + at, factors);
        share<COUNT>(piece_of<COUNT>(a, row, at), factors, stats, &shared);
      }
      shared = shared_by_row(a, shared);
    }
#pragma unroll 1
    for (Size at = from; at < stop; at += step) {
      scales<COUNT>(a.weight, a.from_one, rows.weight + at, factors);
      finish<COUNT>(
          a, piece_of<COUNT>(a, row, at), factors, stats, shared, row * a.size + at,
          a.weight_parts ? a.weight_parts + part + at : nullptr, a.bias_parts ? a.bias_parts + part + at : nullptr);
    }
  }
}

// Kernels of their own, since one takes as many registers as its largest part. This one is for rows that few threads
// compute, without a bias.
KERNEL(norm_backward, NormBackwardArguments, FEW_THREADS, 3) {
  if (a.vectors) {
    short_norm_backward<MANY, false>(a);
  } else {
    short_norm_backward<1, false>(a);
  }
}

KERNEL(norm_backward_with_bias, NormBackwardArguments, MOST_THREADS, 1) {
  if (a.vectors) {
    short_norm_backward<MANY, true>(a);
  } else {
    short_norm_backward<1, true>(a);
  }
}

KERNEL(norm_backward_of_long_rows, NormBackwardArguments, MOST_THREADS, 2) {
  if (a.vectors) {
    long_norm_backward<MANY>(a);
  } else {
    long_norm_backward<1>(a);
  }
}

// The sum of all parts, in an order that depends on their number alone: blockDim is 32 columns, 8 groups of rows. As many
// blocks as there are columns compute a result; those of the weight come first.
KERNEL(total, TotalArguments, FEW_THREADS, 4) {
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
