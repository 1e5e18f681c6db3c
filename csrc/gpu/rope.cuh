// Rotary embeddings: a block turns the heads of one place at a time, queries and keys.

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

// A head at a place.
struct RopeHead {
  const Value* x;
  Value* out;
};

// Those of keys come after those of queries.
INLINE RopeHead rope_head(const RopeArguments& a, int batch, int at_length, int head) {
  const int queries = (int)a.sides[0].heads;
  // Not by an index, for which the arguments would be copied.
  const bool is_query = head < queries;
  const RopeSide &q = a.sides[0], &k = a.sides[1];
  if (!is_query) head -= queries;
  const Size place = batch * a.length + at_length;
  const Size from = batch * (is_query ? q.strides[0] : k.strides[0]) +
      at_length * (is_query ? q.strides[1] : k.strides[1]) + head * (is_query ? q.strides[2] : k.strides[2]);
  const Size to = (place * (is_query ? q.heads : k.heads) + head) * a.dim;
  return {(const Value*)(is_query ? q.x : k.x) + from, (Value*)(is_query ? q.out : k.out) + to};
}

// A row of blocks for each batch: a division by the length would take as long as the turning.
KERNEL(rope, RopeArguments, FEW_THREADS, 4) {
  const int heads = (int)(a.sides[0].heads + a.sides[1].heads), length = (int)a.length;
  const int count = a.vectors ? MANY : a.side_by_side ? 2 : 1;
  const int pieces = (a.side_by_side ? a.turned : a.turned / 2) / count, rest = a.dim - a.turned;
#pragma unroll 1
  for (int batch = blockIdx.y; batch < (int)a.batch; batch += gridDim.y) {
#pragma unroll 1
    for (int at_length = blockIdx.x; at_length < length; at_length += gridDim.x) {
      const Size table = batch * a.table_strides[0] + at_length * a.table_strides[1];
      const Value* cos = (const Value*)a.cos + table;
      const Value* sin = (const Value*)a.sin + table;
#pragma unroll 1
      for (int item = threadIdx.x; item < heads * pieces; item += blockDim.x) {
        const RopeHead head = rope_head(a, batch, at_length, item / pieces);
        const int at = item % pieces * count;
        if (a.side_by_side) {
          if (a.vectors) {
            turn_pairs<MANY>(a, head.x, head.out, cos, sin, at);
          } else {
            turn_pairs<2>(a, head.x, head.out, cos, sin, at);
          }
        } else if (a.vectors) {
          turn_halves<MANY>(a, head.x, head.out, cos, sin, at);
        } else {
          turn_halves<1>(a, head.x, head.out, cos, sin, at);
        }
      }
#pragma unroll 1
      for (int item = threadIdx.x; item < heads * rest; item += blockDim.x) {
        const RopeHead head = rope_head(a, batch, at_length, item / rest);
        const int at = a.turned + item % rest;
        head.out[at] = head.x[at];
      }
    }
  }
}
