// The crate's own kernels, compiled for the host from the text that NVRTC compiles: csrc/gpu/kernels.cu. With
// COUNTING_KERNELS, the driver computes them with it.
//
// The threads of a block run in turn, each from one meeting of threads to the next. All of them must come to the same
// meeting: on a device, anything could happen otherwise.
#undef _FORTIFY_SOURCE
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "arguments.h"

namespace {

struct Place {
  unsigned x, y, z;
};
Place threadIdx, blockIdx, blockDim, gridDim;

// A thread has a stack of its own, for all blocks. Jumps between them ask the system for nothing, which contexts do.
enum { MOST_IN_BLOCK = 1024, STACK = 64 << 10 };
struct Thread {
  jmp_buf place;
  bool begun, done;
  int meeting;
  std::vector<char> stack;
};
std::vector<Thread> threads(MOST_IN_BLOCK);
jmp_buf scheduler;
unsigned current;
void (*body)(const void*);
const void* body_arguments;

// The others come first.
__attribute__((noinline)) void meet(int meeting) {
  threads[current].meeting = meeting;
  if (_setjmp(threads[current].place) == 0) _longjmp(scheduler, 1);
}

void live() {
  for (;;) {
    body(body_arguments);
    threads[current].done = true;
    meet(0);
  }
}

// Until it meets the others, or is done.
__attribute__((noinline)) void go_on(unsigned thread) {
  current = thread;
  threadIdx = {thread % blockDim.x, thread / blockDim.x, 0};
  if (_setjmp(scheduler) != 0) return;
  Thread& own = threads[thread];
  if (own.begun) _longjmp(own.place, 1);
  own.begun = true;
  own.stack.resize(STACK);
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = own.stack.data();
  context.uc_stack.ss_size = STACK;
  context.uc_link = nullptr;
  makecontext(&context, live, 0);
  setcontext(&context);
}

void run_block() {
  const unsigned count = blockDim.x * blockDim.y;
  for (unsigned i = 0; i < count; ++i) threads[i].done = false;
  for (bool left = true; left;) {
    left = false;
    int meeting = 0;
    for (unsigned i = 0; i < count; ++i) {
      if (threads[i].done) continue;
      go_on(i);
      if (threads[i].done) continue;
      if (left && threads[i].meeting != meeting) {
        std::fputs("counting runtime: threads of a block wait for each other at different places\n", stderr);
        std::abort();
      }
      left = true;
      meeting = threads[i].meeting;
    }
  }
}

void run(void (*kernel)(const void*), const void* arguments, const unsigned sizes[4], unsigned most_threads) {
  gridDim = {sizes[0], sizes[1], 1};
  blockDim = {sizes[2], sizes[3], 1};
  if (blockDim.x * blockDim.y > most_threads) {
    std::fputs("counting runtime: a block has more threads than its kernel was compiled for\n", stderr);
    std::abort();
  }
  body = kernel;
  body_arguments = arguments;
  for (unsigned y = 0; y < gridDim.y; ++y) {
    for (unsigned x = 0; x < gridDim.x; ++x) {
      blockIdx = {x, y, 0};
      run_block();
    }
  }
}

// ---- What CUDA has built in.

#define ON_HOST
#define __device__
#define __forceinline__ inline
#define __shared__ static
#define __syncthreads() meet(__LINE__)

float __shfl_xor_sync(unsigned, float x, int distance) {
  // The exchange before may still be read.
  static float slots[2][MOST_IN_BLOCK];
  static unsigned char turns[MOST_IN_BLOCK];
  const unsigned own = current, turn = turns[own]++ % 2;
  slots[turn][own] = x;
  meet(-distance);
  return slots[turn][own ^ distance];
}

float __uint_as_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

uint32_t __float_as_uint(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}

float half_as_float(uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const float size = exponent == 31 ? (mantissa ? NAN : INFINITY)
      : exponent == 0                ? std::ldexp((float)mantissa, -24)
                                     : std::ldexp((float)(1024 + mantissa), exponent - 25);
  return bits >> 15 ? -size : size;
}

uint16_t float_as_half(float x) {
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  const float size = std::fabs(x);
  if (std::isnan(x)) return 0x7E00;
  if (size >= 65520) return sign | 0x7C00;
  if (size == 0) return sign;
  // The last bit of the result is worth 2^(exponent - 10), and never less than 2^-24.
  int exponent;
  std::frexp(size, &exponent);
  exponent = std::max(exponent - 1, -14);
  const int steps = (int)std::nearbyint(std::ldexp(size, 10 - exponent));
  return sign | (uint16_t)(steps + ((exponent + 14) << 10));
}

#define KERNEL(name, Arguments, THREADS, BLOCKS)                                                    \
  void NAMED(name##_body)(const void* a);                                                           \
  void NAMED(name##_with)(const ln_tuning::gpu::Arguments& a);                                      \
  extern "C" __attribute__((visibility("default"))) void NAMED(name)(void** values, unsigned sizes[4]) { \
    run(NAMED(name##_body), values[0], sizes, THREADS);                                             \
  }                                                                                                 \
  void NAMED(name##_body)(const void* a) { NAMED(name##_with)(*(const ln_tuning::gpu::Arguments*)a); } \
  void NAMED(name##_with)(const ln_tuning::gpu::Arguments& a)

}  // namespace

namespace {
namespace f32 {
#define KIND_F32
#include "kernels.cu"
#undef KIND_F32
#undef NAMED
}  // namespace f32

namespace bf16 {
#define KIND_BF16
#include "kernels.cu"
#undef KIND_BF16
#undef NAMED
}  // namespace bf16

namespace f16 {
#include "kernels.cu"
}  // namespace f16
}  // namespace
