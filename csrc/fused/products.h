// Products of one input with several frozen weights.
#pragma once

#include "tensors.h"

namespace ln_tuning {
namespace {

// The gradient of the input is added up by the products, which round it fewer times than sums of their results would be
// rounded, and go over it fewer times. Nothing is kept but the weights.
struct Products : Function<Products> {
  static variable_list forward(
      AutogradContext* ctx, const Tensor& x, const variable_list* weights, const std::vector<MaybeTensor>* biases) {
    ctx->save_for_backward(*weights);
    ctx->saved_data["shape"] = x.sizes().vec();
    variable_list all;
    for (size_t i = 0; i < weights->size(); ++i) all.push_back(at::linear(x, (*weights)[i], (*biases)[i]));
    return all;
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const variable_list weights = ctx->get_saved_variables();
    const std::vector<int64_t> shape = ctx->saved_data["shape"].toIntVector();
    // Its own gradient is that of libtorch's products.
    const bool again = at::GradMode::is_enabled();
    Tensor d_x;
    for (size_t i = 0; i < weights.size(); ++i) {
      if (!gradients[i].defined()) continue;
      const Tensor rows = gradients[i].reshape({-1, weights[i].size(0)});
      if (!d_x.defined()) {
        d_x = rows.mm(weights[i]);
      } else if (again) {
        d_x = d_x + rows.mm(weights[i]);
      } else {
        d_x.addmm_(rows, weights[i]);
      }
    }
    return {d_x.defined() ? d_x.view(shape) : d_x, Tensor(), Tensor()};
  }
};

}  // namespace

// x · weightᵀ + bias of each weight [out, in]; a bias may be null. None where weights or biases train, or x needs no
// gradient.
extern "C" char* ln_tuning_products(
    Tensor** results, const Tensor* x, const Tensor* const* weights, const Tensor* const* biases, int64_t count) {
  return guarded([&] {
    if (!at::GradMode::is_enabled() || !x->requires_grad() || x->dim() == 0 || x->numel() == 0) return;
    variable_list all;
    std::vector<MaybeTensor> added;
    for (int64_t i = 0; i < count; ++i) {
      if (!fits({x, weights[i], biases[i]}, x->is_cuda()) || weights[i]->dim() != 2) return;
      if (weights[i]->requires_grad() || (biases[i] && biases[i]->requires_grad())) return;
      all.push_back(*weights[i]);
      added.push_back(maybe(biases[i]));
    }
    variable_list found = Products::apply(*x, &all, &added);
    for (int64_t i = 0; i < count; ++i) results[i] = new Tensor(std::move(found[i]));
  });
}

}  // namespace ln_tuning
