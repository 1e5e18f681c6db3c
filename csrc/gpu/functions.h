// The fused functions on CUDA, as the autograd functions call them: from tensors to the arguments of kernels and the
// shapes of their grids. Tensors are of one device, one kind, and loaded kernels; rows are dense, `stride` elements
// apart.
#pragma once

#include <ATen/ATen.h>
#include <c10/core/DeviceGuard.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "../loops.h"
#include "arguments.h"
#include "launch.h"

namespace ln_tuning {
namespace gpu {
namespace {

using at::Tensor;
using MaybeTensor = std::optional<Tensor>;

// Threads that kernels.cu is compiled for.
constexpr int64_t MOST_THREADS = 512, FEW_THREADS = 256, WARP = 32;
// Blocks that add up rows for the gradient of a weight. It does not depend on the device, and so neither do the sums.
constexpr int64_t SUMMING_BLOCKS = 512;
// Blocks beyond these take several rows each.
constexpr int64_t MOST_BLOCKS = int64_t(1) << 20;
// CUDA's own limit.
constexpr int64_t MOST_BLOCKS_ACROSS = 65535;

int64_t divided_up(int64_t x, int64_t by) { return (x + by - 1) / by; }

Kind kind_of_plain(const Tensor& x) {
  return x.scalar_type() == at::kFloat ? Kind::f32 : x.scalar_type() == at::kBFloat16 ? Kind::bf16 : Kind::f16;
}

int64_t bytes_of(Kind kind) { return kind == Kind::f32 ? 4 : 2; }

// True if all addresses and distances are those of vectors of 16 bytes.
bool in_vectors(Kind kind, std::initializer_list<const void*> addresses, std::initializer_list<int64_t> distances) {
  const auto whole = [](int64_t bytes) { return bytes % 16 == 0; };
  return std::all_of(addresses.begin(), addresses.end(), [&](const void* at) { return whole((int64_t)at); }) &&
      std::all_of(distances.begin(), distances.end(), [&](int64_t n) { return whole(n * bytes_of(kind)); });
}

// Blocks of whole rows: about two vectors for each thread, and several short rows in a block.
Grid rows_grid(int64_t rows, int64_t size, Kind kind, bool vectors, int64_t most_blocks) {
  const int64_t pieces = vectors ? size * bytes_of(kind) / 16 : size;
  const int64_t threads = std::min(MOST_THREADS, std::max(WARP, WARP * divided_up(divided_up(pieces, 2), WARP)));
  const int64_t at_a_time = std::max<int64_t>(1, 4 * WARP / threads);
  return {std::min(divided_up(rows, at_a_time), most_blocks), 1, (int)threads, (int)at_a_time};
}

// Launches on the tensor's device, whatever the current one is.
void launch_for(const Tensor& x, Kernel kernel, const Grid& grid, const void* arguments) {
  const c10::OptionalDeviceGuard guard(x.device());
  try {
    launch(x.get_device(), kind_of_plain(x), kernel, grid, arguments);
  } catch (const std::exception& error) {
    TORCH_CHECK(false, error.what());
  }
}

const void* address(const MaybeTensor& x) { return x && x->defined() ? x->const_data_ptr() : nullptr; }
void* written(const Tensor& x) { return x.defined() ? x.mutable_data_ptr() : nullptr; }

struct NormForm {
  bool centred, from_one;
};

// A weight or a bias: none, one for all rows, or `count` of them, each for as many rows, `stride` apart.
struct Vectors {
  Tensor tensor;
  int64_t count, stride;

  const void* address() const { return tensor.defined() ? tensor.const_data_ptr() : nullptr; }
};

// Writes `out` and `stats`, and with `added` also `sum`.
void norm(
    const Tensor& x,
    int64_t x_stride,
    const MaybeTensor& added,
    int64_t added_stride,
    const Vectors& weight,
    const Vectors& bias,
    NormForm form,
    double eps,
    const Tensor& sum,
    const Tensor& out,
    const Tensor& stats) {
  NormArguments all = {};
  all.size = out.size(-1);
  all.rows = stats.size(0);
  if (all.rows == 0) return;
  all.x = x.const_data_ptr();
  all.x_stride = x_stride;
  all.added = address(added);
  all.added_stride = added ? added_stride : 0;
  all.sum = written(sum);
  all.out = written(out);
  all.rows_together = all.rows / std::max(weight.count, bias.count);
  all.weight = weight.address();
  all.bias = bias.address();
  all.weight_stride = weight.stride;
  all.bias_stride = bias.stride;
  all.stats = stats.mutable_data_ptr<float>();
  all.eps = (float)eps;
  all.centred = form.centred;
  all.from_one = form.from_one;
  const Kind kind = kind_of_plain(x);
  all.vectors = in_vectors(
      kind, {all.x, all.added, all.sum, all.out, all.weight, all.bias},
      {all.size, all.x_stride, all.added_stride, all.weight_stride, all.bias_stride});
  launch_for(x, Kernel::norm, rows_grid(all.rows, all.size, kind, all.vectors, MOST_BLOCKS), &all);
}

// A thread keeps two pieces of a row, vectors or values, and its sums over rows, unless the row is too long.
Kernel kernel_for(const NormBackwardArguments& all, const Grid& grid, Kind kind) {
  const int64_t piece = all.vectors ? 16 / bytes_of(kind) : 1;
  if (all.size > 2 * piece * grid.threads_x) return Kernel::norm_backward_of_long_rows;
  const bool few = grid.threads_x * grid.threads_y <= FEW_THREADS;
  return few && !all.bias_parts ? Kernel::norm_backward : Kernel::norm_backward_with_bias;
}

// Writes `d_x` if it is defined, and the gradients of weight and bias that are.
void norm_backward(
    const Tensor& x,
    int64_t x_stride,
    const Tensor& stats,
    const Vectors& weight,
    const Vectors& bias,
    NormForm form,
    const Tensor& d_out,
    const Tensor& d_sum,
    const Tensor& d_x,
    const std::array<Tensor, 2>& gradients) {
  NormBackwardArguments all = {};
  all.size = d_out.size(-1);
  if (all.size == 0) return;
  all.groups = std::max(weight.count, bias.count);
  all.rows = stats.size(0) / all.groups;
  all.x = x.const_data_ptr();
  all.x_stride = x_stride;
  all.stats = stats.const_data_ptr<float>();
  all.weight = weight.address();
  all.weight_stride = weight.stride;
  all.d_out = d_out.const_data_ptr();
  all.d_sum = address(d_sum);
  all.d_x = written(d_x);
  all.centred = form.centred;
  all.from_one = form.from_one;
  const Kind kind = kind_of_plain(x);
  all.vectors =
      in_vectors(kind, {all.x, all.weight, all.d_out, all.d_sum, all.d_x}, {all.size, all.x_stride, all.weight_stride});
  const bool sums = gradients[0].defined() || gradients[1].defined();
  const int64_t most_blocks = std::max<int64_t>(1, (sums ? SUMMING_BLOCKS : MOST_BLOCKS) / all.groups);
  Grid grid = rows_grid(all.rows, all.size, kind, all.vectors, most_blocks);
  grid.blocks_x *= all.groups;
  const int64_t parts = grid.blocks_x * grid.threads_y;
  TotalArguments total = {};
  total.size = all.size;
  // Rows of parts for each gradient.
  std::array<Tensor, 2> from;
  for (int i = 0; i < 2; ++i) {
    if (!gradients[i].defined() || gradients[i].numel() == 0) continue;
    from[i] = at::empty({parts, all.size}, stats.options());
    float* to = from[i].mutable_data_ptr<float>();
    (i == 0 ? all.weight_parts : all.bias_parts) = to;
    total.from[i] = to;
    total.to[i] = gradients[i].mutable_data_ptr();
    total.results[i] = gradients[i].numel() / all.size;
    total.parts[i] = parts / total.results[i];
  }
  if (all.rows > 0 && (sums || d_x.defined())) launch_for(x, kernel_for(all, grid, kind), grid, &all);
  // Without rows, zeros.
  const int64_t results = total.results[0] + total.results[1];
  if (results > 0) launch_for(x, Kernel::total, {results * divided_up(all.size, 32), 1, 32, 8}, &total);
}

GatedArguments arguments_of(const Gated& from, int64_t rows) {
  GatedArguments all = {};
  all.rows = rows;
  all.size = from.size;
  all.gate = from.gate;
  all.up = from.up;
  all.gate_stride = from.gate_stride;
  all.up_stride = from.up_stride;
  all.out = from.out;
  all.activation = (int)from.activation;
  all.vectors = in_vectors(from.kind, {all.gate, all.up, all.out}, {all.size, all.gate_stride, all.up_stride});
  return all;
}

// As on the CPU; `x` is any of the tensors.
void gated(const Gated& from, int64_t rows, const Tensor& x) {
  const GatedArguments all = arguments_of(from, rows);
  if (rows == 0) return;
  launch_for(x, Kernel::gated, rows_grid(rows, all.size, from.kind, all.vectors, MOST_BLOCKS), &all);
}

void gated_backward(const GatedBackward& from, int64_t rows, const Tensor& x) {
  GatedBackwardArguments all = {};
  all.forward = arguments_of(from.forward, rows);
  if (rows == 0) return;
  all.d_out = from.d_out;
  all.d_gate = from.d_gate;
  all.d_up = from.d_up;
  all.d_stride = from.d_stride;
  const Kind kind = from.forward.kind;
  int& vectors = all.forward.vectors;
  vectors = vectors && in_vectors(kind, {all.d_out, all.d_gate, all.d_up}, {all.d_stride});
  launch_for(x, Kernel::gated_backward, rows_grid(rows, all.forward.size, kind, vectors, MOST_BLOCKS), &all);
}

// `all` has everything but the choice of vectors; the gradient is of the kind of `to`.
void cross_entropy(CrossEntropyArguments all, const Tensor& to) {
  if (all.rows == 0) return;
  const Kind kind = kind_of_plain(to);
  all.vectors = all.classes % 4 == 0 && (int64_t)all.logits % 16 == 0 && (int64_t)all.bias % 16 == 0 &&
      (int64_t)all.gradient % (4 * bytes_of(kind)) == 0;
  const int64_t pieces = divided_up(all.classes, all.vectors ? 4 : 1);
  const int64_t threads = std::min(MOST_THREADS, WARP * divided_up(pieces, WARP));
  launch_for(to, Kernel::cross_entropy, {std::min<int64_t>(all.rows, MOST_BLOCKS), 1, (int)threads, 1}, &all);
}

// Queries and keys in one launch; the heads of one may be 0. `batch` is theirs, `x` any of the tensors.
void rope(const Rope& q, const Rope& k, int64_t batch, const Tensor& x) {
  RopeArguments all = {};
  // Of the one that is there.
  const Rope& any = q.heads > 0 ? q : k;
  all.batch = batch;
  all.length = any.length;
  all.cos = any.cos;
  all.sin = any.sin;
  all.dim = (int)any.dim;
  all.turned = (int)any.turned;
  all.side_by_side = any.side_by_side;
  all.backward = any.backward;
  for (int i = 0; i < 2; ++i) all.table_strides[i] = any.table_strides[i];
  // A half is read as it stands.
  const int64_t piece = any.side_by_side ? any.turned : any.turned / 2;
  bool vectors = in_vectors(
      any.kind, {all.cos, all.sin}, {piece, any.dim, all.table_strides[0], all.table_strides[1]});
  int64_t heads = 0;
  for (int which = 0; which < 2; ++which) {
    const Rope& from = which == 0 ? q : k;
    RopeSide& side = all.sides[which];
    side.x = from.x;
    side.out = from.out;
    side.heads = from.heads;
    for (int i = 0; i < 3; ++i) side.strides[i] = from.heads > 0 ? from.x_strides[i] : 0;
    vectors = vectors && in_vectors(any.kind, {side.x, side.out}, {side.strides[0], side.strides[1], side.strides[2]});
    heads += from.heads;
  }
  all.vectors = vectors;
  const int64_t items = heads * std::max<int64_t>(1, any.dim / 2);
  if (all.batch * all.length == 0 || heads == 0 || any.dim == 0) return;
  const int64_t many = vectors ? 16 / bytes_of(any.kind) : 1;
  const int64_t threads = std::min(FEW_THREADS, WARP * divided_up(divided_up(items, many), WARP));
  const Grid grid = {std::min<int64_t>(all.length, MOST_BLOCKS), std::min<int64_t>(all.batch, MOST_BLOCKS_ACROSS), (int)threads, 1};
  launch_for(x, Kernel::rope, grid, &all);
}

}  // namespace
}  // namespace gpu
}  // namespace ln_tuning
