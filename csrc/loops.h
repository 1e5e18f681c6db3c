// The inner loops of the fused functions. They know no tensors: loops.cpp is compiled once per kind of processor, and
// code of libtorch's headers that is compiled for one processor must not be linked into a program for all.
#pragma once

#include <cstdint>

namespace ln_tuning {

enum class Kind : int32_t { f32, bf16, f16 };
enum class Activation : int32_t { gelu, gelu_tanh, quick_gelu, relu, silu };

// Strides are in elements.
struct Norm {
  Kind kind;
  // LayerNorm, which subtracts the mean; else RMSNorm.
  bool centred;
  int64_t size;
  double eps;
  const void* x;
  int64_t x_stride;
  // Added to x if it is there; the sum is then written to `sum`.
  const void* added;
  int64_t added_stride;
  void* sum;
  void* out;
  // In f32; `bias` may be null. So many rows have one of each; a stride of 0 is that of one for all rows.
  int64_t rows_together;
  const float* weight;
  int64_t weight_stride;
  // So many weights, one after the other, belong to rows in turn.
  int64_t heads;
  const float* bias;
  int64_t bias_stride;
  // Per row, its mean and one over its deviation.
  float* stats;
};

struct NormBackward {
  Kind kind;
  bool centred;
  int64_t size;
  const void* x;
  int64_t x_stride;
  const float* stats;
  int64_t rows_together;
  const float* weight;
  int64_t weight_stride;
  int64_t heads;
  const void* d_out;
  // Added to the gradient; may be null.
  const void* d_sum;
  // The gradients, each null if it is not wanted. Those of weight and bias are added to.
  void* d_x;
};

struct Gated {
  Kind kind;
  Activation activation;
  int64_t size;
  const void* gate;
  const void* up;
  int64_t gate_stride;
  int64_t up_stride;
  void* out;
};

struct GatedBackward {
  Gated forward;
  const void* d_out;
  void* d_gate;
  void* d_up;
  int64_t d_stride;
};

struct Rope {
  Kind kind;
  bool side_by_side;
  // The other way round.
  bool backward;
  int64_t length;
  int64_t heads;
  int64_t dim;
  // The dimensions that are turned; the others are copied.
  int64_t turned;
  const void* x;
  // Of batch, length and head; the last dimension is dense.
  int64_t x_strides[3];
  const void* cos;
  const void* sin;
  // Of batch and length.
  int64_t table_strides[2];
  // Dense.
  void* out;
};

// The weights of attention: rows of queries, in the order batch, head of keys, place, query of the group.
struct Softmax {
  Kind kind;
  bool causal;
  int64_t keys;
  int64_t heads;
  int64_t places;
  int64_t group;
  float scale;
  // 0: none.
  float cap;
  // True where a key is seen; null: all are. Strides of batch and place.
  const bool* mask;
  int64_t mask_strides[2];
  const void* scores;
  // May be the scores.
  void* weights;
};

struct SoftmaxBackward {
  // With the weights as they were computed; `scores` are needed with a cap.
  Softmax forward;
  // The gradient of the weights becomes that of the scores.
  void* gradient;
};

// Loss and gradient of logits, which the gradient overwrites if it is wanted.
struct CrossEntropy {
  Kind kind;
  bool wanted;
  int64_t classes;
  void* logits;
  // Added to them; may be null.
  const float* bias;
  const int64_t* targets;
  float scale;
  // 0: none.
  float cap;
  float smoothing;
  float z_loss;
  // Per row: the largest logit, its share of the softmax, and the logit of the target.
  float* largest;
  float* peak;
  float* target;
};

// The functions work on the rows from `begin` to `end`.
struct Loops {
  void (*norm)(const Norm&, int64_t begin, int64_t end);
  void (*norm_backward)(const NormBackward&, int64_t begin, int64_t end, float* d_weight, float* d_bias);
  void (*gated)(const Gated&, int64_t begin, int64_t end);
  void (*gated_backward)(const GatedBackward&, int64_t begin, int64_t end);
  // A row is a place of a sequence.
  void (*rope)(const Rope&, int64_t begin, int64_t end);
  // `scratch` has room for one row.
  void (*softmax)(const Softmax&, int64_t begin, int64_t end, float* scratch);
  void (*softmax_backward)(const SoftmaxBackward&, int64_t begin, int64_t end);
  void (*cross_entropy)(const CrossEntropy&, int64_t begin, int64_t end);
};

extern const Loops loops_plain;
#ifdef LN_TUNING_X86
extern const Loops loops_avx2;
extern const Loops loops_avx512;
#endif

}  // namespace ln_tuning
