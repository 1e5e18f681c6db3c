// Rotary embeddings.
#pragma once

#include "tensors.h"

namespace ln_tuning {
namespace {

// One of queries and keys, [batch, length, heads, dim], on its way through the tables, [length, 1, turned] or
// [batch, length, 1, turned].
struct Turning {
  Tensor x, out;
  Rope all = {};

  // Undefined: there is none.
  Turning(const Tensor& input, const Tensor& cos, const Tensor& sin, bool side_by_side, bool backward) {
    if (!input.defined()) return;
    x = input.stride(-1) == 1 ? input : input.contiguous();
    out = at::empty(x.sizes(), x.options());
    if (x.numel() == 0) return;
    all.kind = *kind_of(x);
    all.side_by_side = side_by_side;
    all.backward = backward;
    all.length = x.size(1);
    all.heads = x.size(2);
    all.dim = x.size(3);
    all.turned = cos.size(-1);
    all.x = x.const_data_ptr();
    for (int64_t d = 0; d < 3; ++d) all.x_strides[d] = x.stride(d);
    all.cos = cos.const_data_ptr();
    all.sin = sin.const_data_ptr();
    all.table_strides[0] = cos.dim() == 4 && cos.size(0) > 1 ? cos.stride(0) : 0;
    all.table_strides[1] = cos.size(-3) > 1 ? cos.stride(-3) : 0;
    all.out = out.mutable_data_ptr();
  }

  void on_cpu() const {
    if (all.heads == 0) return;
    for_rows(x.size(0) * x.size(1), all.heads * all.dim, [&](int64_t begin, int64_t end) {
      loops().rope(all, begin, end);
    });
  }
};

std::array<Tensor, 2> turned(
    const Tensor& q,
    const Tensor& k,
    const Tensor& cos,
    const Tensor& sin,
    bool side_by_side,
    bool backward) {
  const Turning both[] = {{q, cos, sin, side_by_side, backward}, {k, cos, sin, side_by_side, backward}};
  if (cos.is_cuda()) {
#ifdef LN_TUNING_GPU
    gpu::rope(both[0].all, both[1].all, (q.defined() ? q : k).size(0), cos);
#endif
  } else {
    for (const Turning& one : both) one.on_cpu();
  }
  return {both[0].out, both[1].out};
}

Tensor turned_by_operators(const Tensor& x, const Tensor& cos, const Tensor& sin, bool side_by_side) {
  const int64_t turned = cos.size(-1);
  const Tensor part = x.narrow(-1, 0, turned);
  const Tensor other = side_by_side ? part.unflatten(-1, {turned / 2, 2}).flip({-1}).flatten(-2, -1)
                                    : part.roll({turned / 2}, {-1});
  return at::cat({part * cos + other * sin, x.narrow(-1, turned, x.size(-1) - turned)}, -1);
}

struct Turn : Function<Turn> {
  static variable_list forward(
      AutogradContext* ctx,
      const Tensor& q,
      const Tensor& k,
      const Tensor& cos,
      const Tensor& sin,
      bool side_by_side) {
    ctx->set_materialize_grads(false);
    ctx->save_for_backward({cos, sin});
    ctx->saved_data["side_by_side"] = side_by_side;
    const std::array<Tensor, 2> both = turned(q, k, cos, sin, side_by_side, false);
    return {both[0], both[1]};
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const variable_list saved = ctx->get_saved_variables();
    const bool side_by_side = ctx->saved_data["side_by_side"].toBool();
    variable_list all(5);
    for (size_t i = 0; i < 2; ++i) {
      if (gradients[i].defined() && wants(ctx, i)) all[i] = gradients[i];
    }
    if (!all[0].defined() && !all[1].defined()) return all;
    if (!at::GradMode::is_enabled()) {
      const std::array<Tensor, 2> both = turned(all[0], all[1], saved[0], saved[1], side_by_side, true);
      all[0] = both[0];
      all[1] = both[1];
      return all;
    }
    for (size_t i = 0; i < 2; ++i) {
      if (!all[i].defined()) continue;
      // A rotation is linear: its gradient is the gradient of any input.
      const Tensor any = at::zeros_like(all[i]).requires_grad_(true);
      const auto forward = [&](const variable_list& in) {
        return variable_list{turned_by_operators(in[0], saved[0], saved[1], side_by_side)};
      };
      all[i] = differentiable({any}, {all[i]}, forward)[0];
    }
    return all;
  }
};

}  // namespace

// Queries and keys turned by the angles of their places.
extern "C" char* ln_tuning_turned(
    Tensor** results,
    const Tensor* q,
    const Tensor* k,
    const Tensor* cos,
    const Tensor* sin,
    int64_t side_by_side) {
  return guarded([&] {
    if (!fits_anywhere({q, k, cos, sin}) || cos->requires_grad() || sin->requires_grad()) return;
    if (cos->dim() < 3 || cos->dim() > 4 || sin->sizes() != cos->sizes() || sin->strides() != cos->strides()) return;
    const int64_t dim = cos->size(-1);
    for (const Tensor* x : {q, k}) {
      if (x->dim() != 4 || dim > x->size(3) || cos->size(-2) != 1) return;
      if (cos->size(-3) != 1 && cos->size(-3) != x->size(1)) return;
      if (cos->dim() == 4 && cos->size(0) != 1 && cos->size(0) != x->size(0)) return;
    }
    if (q->is_cuda() && (q->size(0) != k->size(0) || q->size(1) != k->size(1) || q->size(3) != k->size(3))) return;
    if (dim % 2 != 0 || (dim > 1 && cos->stride(-1) != 1)) return;
    variable_list all = Turn::apply(*q, *k, *cos, *sin, side_by_side != 0);
    for (size_t i = 0; i < 2; ++i) results[i] = new Tensor(std::move(all[i]));
  });
}

}  // namespace ln_tuning
