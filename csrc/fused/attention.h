// Attention, with all scores at once.
#pragma once

#include "tensors.h"

namespace ln_tuning {
namespace {

// Queries [batch * heads of keys, places * group, dim], keys and values [batch * heads of keys, keys, dim]. `shape`:
// batch, heads of keys, places, group, keys.
struct Attend : Function<Attend> {
  static Tensor forward(
      AutogradContext* ctx,
      const Tensor& q,
      const Tensor& k,
      const Tensor& v,
      const MaybeTensor& mask,
      std::vector<int64_t> shape,
      bool causal,
      double scale,
      double cap) {
    const Tensor scores = at::bmm(q, k.transpose(1, 2)).contiguous();
    // With a cap, the weights do not tell its slope: the scores are kept, and the weights computed again.
    const Tensor weights = cap == 0 ? scores : at::empty_like(scores);
    Softmax all = softmax(q, mask, shape, causal, scale, cap);
    all.scores = scores.const_data_ptr();
    all.weights = weights.mutable_data_ptr();
    for_rows(scores.size(0) * scores.size(1), 2 * all.keys, [&](int64_t begin, int64_t end) {
      std::vector<float> scratch(all.keys);
      loops().softmax(all, begin, end, scratch.data());
    });
    ctx->save_for_backward({q, k, v, mask.value_or(Tensor()), scores});
    ctx->saved_data["shape"] = shape;
    ctx->saved_data["causal"] = causal;
    ctx->saved_data["scale"] = scale;
    ctx->saved_data["cap"] = cap;
    return at::bmm(weights, v);
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &q = saved[0], &k = saved[1], &v = saved[2];
    const MaybeTensor mask = saved[3].defined() ? MaybeTensor(saved[3]) : std::nullopt;
    const std::vector<int64_t> shape = ctx->saved_data["shape"].toIntVector();
    const bool causal = ctx->saved_data["causal"].toBool();
    const double scale = ctx->saved_data["scale"].toDouble(), cap = ctx->saved_data["cap"].toDouble();
    variable_list found(3);
    if (at::GradMode::is_enabled()) {
      const auto forward = [&](const variable_list& in) {
        return variable_list{by_operators(in, mask, shape, causal, scale, cap)};
      };
      found = differentiable({q, k, v}, gradients, forward);
    } else {
      const Tensor d_out = gradients[0].contiguous();
      Tensor weights = saved[4];
      Tensor gradient = at::bmm(d_out, v.transpose(1, 2)).contiguous();
      SoftmaxBackward all = {softmax(q, mask, shape, causal, scale, cap), gradient.mutable_data_ptr()};
      if (cap != 0) {
        weights = at::empty_like(saved[4]);
        all.forward.scores = saved[4].const_data_ptr();
      }
      all.forward.weights = weights.mutable_data_ptr();
      const Softmax& again = all.forward;
      for_rows(weights.size(0) * weights.size(1), 3 * again.keys, [&](int64_t begin, int64_t end) {
        std::vector<float> scratch(again.keys);
        if (cap != 0) loops().softmax(again, begin, end, scratch.data());
        loops().softmax_backward(all, begin, end);
      });
      if (wants(ctx, 0)) found[0] = at::bmm(gradient, k);
      if (wants(ctx, 1)) found[1] = at::bmm(gradient.transpose(1, 2), q);
      if (wants(ctx, 2)) found[2] = at::bmm(weights.transpose(1, 2), d_out);
    }
    found.resize(8);
    return found;
  }

 private:
  static Softmax softmax(
      const Tensor& q,
      const MaybeTensor& mask,
      const std::vector<int64_t>& shape,
      bool causal,
      double scale,
      double cap) {
    Softmax all = {};
    all.kind = *kind_of(q);
    all.causal = causal;
    all.heads = shape[1];
    all.places = shape[2];
    all.group = shape[3];
    all.keys = shape[4];
    all.scale = (float)scale;
    all.cap = (float)cap;
    if (mask) {
      all.mask = mask->const_data_ptr<bool>();
      all.mask_strides[0] = mask->dim() == 4 && mask->size(0) > 1 ? mask->stride(0) : 0;
      all.mask_strides[1] = mask->size(-2) > 1 ? mask->stride(-2) : 0;
    }
    return all;
  }

  static Tensor by_operators(
      const variable_list& in,
      const MaybeTensor& mask,
      const std::vector<int64_t>& shape,
      bool causal,
      double scale,
      double cap) {
    Tensor scores = at::bmm(in[0], in[1].transpose(1, 2)) * scale;
    if (cap != 0) scores = at::tanh(scores / cap) * cap;
    const Tensor apart = scores.view(shape);
    const double hidden = -std::numeric_limits<double>::infinity();
    Tensor seen = mask ? (mask->dim() == 2 ? mask->unsqueeze(1) : mask->unsqueeze(3)) : Tensor();
    if (causal) seen = at::ones({shape[2], shape[4]}, at::kBool).tril().unsqueeze(1);
    Tensor weights = seen.defined() ? apart.masked_fill(seen.logical_not(), hidden) : apart;
    weights = weights.softmax(-1);
    // No key is seen.
    if (seen.defined()) weights = weights.masked_fill(seen.any(-1, true).logical_not(), 0);
    return at::bmm(weights.view_as(scores), in[2]);
  }
};

}  // namespace

// Attention of queries [batch, heads, length, dim] to keys and values [batch, fewer heads, keys, dim], as
// [batch, heads, length, dim]. `mask` [length, keys] or [batch or 1, 1, length or 1, keys] is true where a key is seen.
extern "C" char* ln_tuning_attend(
    Tensor** result,
    const Tensor* q,
    const Tensor* k,
    const Tensor* v,
    const Tensor* mask,
    int64_t causal,
    double scale,
    double cap) {
  return guarded([&] {
    if (!fits({q, k, v}) || q->dim() != 4 || k->dim() != 4 || v->dim() != 4) return;
    const int64_t batch = q->size(0), heads = q->size(1), length = q->size(2), dim = q->size(3);
    const int64_t kv_heads = k->size(1), keys = k->size(2), value_dim = v->size(3);
    if (k->sizes() != at::IntArrayRef({batch, kv_heads, keys, dim})) return;
    if (v->sizes() != at::IntArrayRef({batch, kv_heads, keys, value_dim})) return;
    if (q->numel() == 0 || k->numel() == 0 || v->numel() == 0 || heads % kv_heads != 0) return;
    if (causal && (mask || length != keys)) return;
    MaybeTensor seen;
    if (mask) {
      if (mask->scalar_type() != at::kBool || !mask->is_cpu() || (mask->dim() != 2 && mask->dim() != 4)) return;
      if (mask->size(-1) != keys || (mask->size(-2) != length && mask->size(-2) != 1)) return;
      if (mask->dim() == 4 && (mask->size(1) != 1 || (mask->size(0) != batch && mask->size(0) != 1))) return;
      seen = mask->stride(-1) == 1 ? *mask : mask->contiguous();
    }
    const int64_t group = heads / kv_heads;
    // The queries of a group are rows of one matrix, so that keys and values are not repeated.
    const Tensor queries = q->reshape({batch, kv_heads, group, length, dim})
                               .transpose(2, 3)
                               .reshape({batch * kv_heads, length * group, dim});
    const Tensor attended = Attend::apply(
        queries,
        k->reshape({batch * kv_heads, keys, dim}),
        v->reshape({batch * kv_heads, keys, value_dim}),
        seen,
        std::vector<int64_t>{batch, kv_heads, length, group, keys},
        causal != 0,
        scale,
        cap);
    // In the memory order that the next product expects.
    const Tensor apart = attended.view({batch, kv_heads, length, group, value_dim}).permute({0, 2, 1, 3, 4});
    *result = new Tensor(apart.reshape({batch, length, heads, value_dim}).transpose(1, 2));
  });
}

}  // namespace ln_tuning
