// The fused functions as CUDA kernels, compiled on the user's machine for its device, once for each kind: KIND_F32,
// KIND_BF16 or KIND_F16 is defined. Values are computed in f32 and rounded once.
//
// No header of CUDA is read. Tests compile the same text for the host, once for each kind in a namespace of its own, where
// a program runs the threads of a block in turn; that one defines ON_HOST and what CUDA has built in.
#include "arguments.h"

#define INLINE static __device__ __forceinline__
#ifndef ON_HOST
// For blocks of at most so many threads, of which so many are to run on a multiprocessor at once.
#define KERNEL(name, Arguments, THREADS, BLOCKS) \
  extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) NAMED(name)(const ln_tuning::gpu::Arguments a)
#endif

#if defined(KIND_F32)
#define NAMED(name) ln_tuning_##name##_f32
#elif defined(KIND_BF16)
#define NAMED(name) ln_tuning_##name##_bf16
#else
#define NAMED(name) ln_tuning_##name##_f16
#endif

using ln_tuning::gpu::CrossEntropyArguments;
using ln_tuning::gpu::GatedArguments;
using ln_tuning::gpu::GatedBackwardArguments;
using ln_tuning::gpu::NormArguments;
using ln_tuning::gpu::NormBackwardArguments;
using ln_tuning::gpu::RopeArguments;
using ln_tuning::gpu::RopeSide;
using ln_tuning::gpu::Size;

#include "kinds.cuh"
#include "rows.cuh"

#include "cross_entropy.cuh"
#include "gated.cuh"
#include "norm.cuh"
#include "rope.cuh"
