// The arguments of the kernels, as the host writes them and the device reads them. Strides are in elements; `vectors`
// is true where everything can be read and written 16 bytes at a time.
#pragma once

namespace ln_tuning {
namespace gpu {

typedef long long Size;

struct NormArguments {
  Size rows, size;
  const void* x;
  Size x_stride;
  // Added to x if it is there; the sum is then written to `sum`.
  const void* added;
  Size added_stride;
  void* sum;
  void* out;
  // May be null. So many rows have one of each; a stride of 0 is that of one for all rows.
  Size rows_together;
  const void* weight;
  const void* bias;
  Size weight_stride, bias_stride;
  // Per row, its mean and one over its deviation.
  float* stats;
  float eps;
  // LayerNorm, which subtracts the mean; else RMSNorm.
  int centred;
  // Weights count from 1.
  int from_one;
  int vectors;
};

struct NormBackwardArguments {
  // Groups of so many rows, each with a weight; the same number of blocks computes each.
  Size groups, rows, size;
  const void* x;
  Size x_stride;
  const float* stats;
  const void* weight;
  // Of groups; 0 is that of one weight for all.
  Size weight_stride;
  const void* d_out;
  // Added to the gradient; may be null.
  const void* d_sum;
  // The gradient of x, if it is wanted.
  void* d_x;
  // Sums for the gradients of weight and bias, one row of `size` for each row that is computed at a time; null where
  // they are not wanted.
  float* weight_parts;
  float* bias_parts;
  int centred;
  int from_one;
  int vectors;
};

// Sums of rows, for the weight and for the bias: as many results of each, of so many rows that follow each other.
struct TotalArguments {
  Size size;
  Size results[2];
  Size parts[2];
  const float* from[2];
  void* to[2];
};

struct GatedArguments {
  Size rows, size;
  const void* gate;
  const void* up;
  Size gate_stride, up_stride;
  void* out;
  int activation;
  int vectors;
};

struct GatedBackwardArguments {
  GatedArguments forward;
  const void* d_out;
  void* d_gate;
  void* d_up;
  Size d_stride;
};

// Logits are f32; their gradient, of the kernels' kind, may stand in their place if that is f32 too.
struct CrossEntropyArguments {
  Size rows, classes;
  const float* logits;
  // Null if it is not wanted.
  void* gradient;
  // Added to the logits; may be null.
  const float* bias;
  const long long* targets;
  float scale;
  // 0: none.
  float cap;
  float smoothing;
  float z_loss;
  // Per row: the largest logit, its share of the softmax, and the logit of the target.
  float* largest;
  float* peak;
  float* target;
  int vectors;
};

// Heads of one tensor: queries or keys.
struct RopeSide {
  const void* x;
  // Of batch, length and head; the last dimension is dense.
  Size strides[3];
  // Dense.
  void* out;
  Size heads;
};

struct RopeArguments {
  Size batch, length;
  RopeSide sides[2];
  const void* cos;
  const void* sin;
  // Of batch and length.
  Size table_strides[2];
  int dim;
  // The dimensions that are turned; the others are copied.
  int turned;
  int side_by_side;
  // The other way round.
  int backward;
  int vectors;
};

}  // namespace gpu
}  // namespace ln_tuning
