// Gates: an activation times something.

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

KERNEL(gated, GatedArguments, MOST_THREADS, 3) {
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

KERNEL(gated_backward, GatedBackwardArguments, MOST_THREADS, 2) {
  if (a.forward.vectors) {
    gated_backward<MANY>(a);
  } else {
    gated_backward<1>(a);
  }
}
