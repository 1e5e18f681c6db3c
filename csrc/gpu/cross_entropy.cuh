// Cross entropy: logits are f32, their gradient is of the kernels' kind. A block computes one row at a time.

// The largest logit so far, the sum of exponentials over its own, and the plain sum.
struct Peak {
  float most, total, plain;
};

// Less than any logit that is a number, so that differences stay numbers too.
#define NO_LOGIT -3.402823466e38f

INLINE Peak merged(Peak a, Peak b) {
  const float most = fmaxf(a.most, b.most);
  return {most, a.total * expf(a.most - most) + b.total * expf(b.most - most), a.plain + b.plain};
}

// That of the whole row, in an order that depends on the number of threads alone.
INLINE Peak peak_of_row(Peak own) {
  __shared__ Peak parts[MOST_THREADS / 32];
  for (int distance = 16; distance > 0; distance >>= 1) {
    Peak other;
    other.most = __shfl_xor_sync(0xFFFFFFFF, own.most, distance);
    other.total = __shfl_xor_sync(0xFFFFFFFF, own.total, distance);
    other.plain = __shfl_xor_sync(0xFFFFFFFF, own.plain, distance);
    own = merged(own, other);
  }
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = own;
  __syncthreads();
  own = parts[0];
  for (int warp = 1; warp < blockDim.x / 32; ++warp) own = merged(own, parts[warp]);
  // The next row writes the parts again.
  __syncthreads();
  return own;
}

// The logit as the loss sees it, and its slope.
INLINE float bounded(float x, const CrossEntropyArguments& a, float* slope) {
  x *= a.scale;
  *slope = 1;
  if (a.cap == 0) return x;
  const float turned = tanhf(x / a.cap);
  *slope = 1.f - turned * turned;
  return a.cap * turned;
}

template <int COUNT>
struct alignas(COUNT * sizeof(float)) Floats {
  float values[COUNT];
};

template <int COUNT>
INLINE void logits_at(const CrossEntropyArguments& a, const float* logits, Size at, float* to) {
  const Floats<COUNT> floats = *(const Floats<COUNT>*)(logits + at);
#pragma unroll
  for (int i = 0; i < COUNT; ++i) to[i] = floats.values[i];
  if (!a.bias) return;
#pragma unroll
  for (int i = 0; i < COUNT; ++i) to[i] += a.bias[at + i];
}

template <int COUNT>
INLINE void cross_entropy(const CrossEntropyArguments& a) {
  const Size from = (Size)threadIdx.x * COUNT, step = (Size)blockDim.x * COUNT;
#pragma unroll 1
  for (Size row = blockIdx.x; row < a.rows; row += gridDim.x) {
    const float* logits = a.logits + row * a.classes;
    const Size target = a.targets[row];
    float at_target[1], slope;
    if (target >= 0 && target < a.classes) {
      // Before the gradient overwrites it.
      logits_at<1>(a, logits, target, at_target);
      at_target[0] = bounded(at_target[0], a, &slope);
    } else {
      at_target[0] = __uint_as_float(0x7FC00000);
    }
    Peak peak = {NO_LOGIT, 0, 0};
    Size at = from;
#pragma unroll 2
    for (; at < a.classes; at += step) {
      float values[COUNT];
      logits_at<COUNT>(a, logits, at, values);
      float most = peak.most;
#pragma unroll
      for (int i = 0; i < COUNT; ++i) {
        values[i] = bounded(values[i], a, &slope);
        most = fmaxf(most, values[i]);
      }
      if (most > peak.most) {
        peak.total *= expf(peak.most - most);
        peak.most = most;
      }
#pragma unroll
      for (int i = 0; i < COUNT; ++i) {
        peak.total += expf(values[i] - most);
        peak.plain += values[i];
      }
    }
    peak = peak_of_row(peak);
    const float share = 1.f / peak.total;
    if (threadIdx.x == 0) {
      a.largest[row] = peak.most;
      a.peak[row] = share;
      const float mean = a.smoothing == 0 ? 0.f : a.smoothing * (peak.plain / (float)a.classes);
      a.target[row] = (1.f - a.smoothing) * at_target[0] + mean;
    }
    if (!a.gradient) continue;
    const float denominator = peak.most + logf(peak.total);
    const float factor = share * (1.f + 2.f * a.z_loss * denominator);
    const float spread = a.smoothing / (float)a.classes;
    // Back to the beginning: what was read last may still be in the cache.
#pragma unroll 2
    for (at -= step; at >= from; at -= step) {
      float values[COUNT];
      logits_at<COUNT>(a, logits, at, values);
#pragma unroll
      for (int i = 0; i < COUNT; ++i) {
        const float x = bounded(values[i], a, &slope);
        const float chosen = at + i == target ? 1.f - a.smoothing : 0.f;
        values[i] = (expf(x - peak.most) * factor - spread - chosen) * slope;
      }
      store<COUNT>(a.gradient, row * a.classes + at, values);
    }
  }
}

KERNEL(cross_entropy, CrossEntropyArguments, MOST_THREADS, 3) {
  if (a.vectors) {
    cross_entropy<4>(a);
  } else {
    cross_entropy<1>(a);
  }
}
