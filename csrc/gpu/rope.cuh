// Rotary embeddings: a block turns the heads of one place, queries and keys.

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
