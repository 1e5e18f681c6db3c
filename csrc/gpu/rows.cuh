// Rows: a block computes blockDim.y of them at a time, each by blockDim.x threads, which are whole warps.

#define MOST_THREADS 512
#define FEW_THREADS 256

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
