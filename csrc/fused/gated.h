// Gates of MLPs.
#pragma once

#include "tensors.h"

namespace ln_tuning {
namespace {

Tensor activated(const Tensor& x, Activation activation) {
  switch (activation) {
    case Activation::gelu: return at::gelu(x);
    case Activation::gelu_tanh: return at::gelu(x, "tanh");
    case Activation::quick_gelu: return at::sigmoid(x * 1.702) * x;
    case Activation::relu: return at::relu(x);
    case Activation::silu: return at::silu(x);
  }
  TORCH_CHECK(false, "no such activation");
}

struct GateUp : Function<GateUp> {
  // Gate and up, or both in one.
  static Tensor forward(AutogradContext* ctx, const Tensor& gate, const MaybeTensor& up, int64_t activation) {
    Gated all = parts(gate, up, activation);
    std::vector<int64_t> shape = gate.sizes().vec();
    shape.back() = all.size;
    const Tensor out = at::empty(shape, gate.options());
    all.out = out.mutable_data_ptr();
    const int64_t rows = all.size == 0 ? 0 : out.numel() / all.size;
    if (gate.is_cuda()) {
#ifdef LN_TUNING_GPU
      gpu::gated(all, rows, gate);
#endif
    } else {
      for_rows(rows, 2 * all.size, [&](int64_t begin, int64_t end) { loops().gated(all, begin, end); });
    }
    ctx->save_for_backward({gate, up.value_or(Tensor())});
    ctx->saved_data["activation"] = activation;
    return out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const variable_list saved = ctx->get_saved_variables();
    const Tensor& gate = saved[0];
    const MaybeTensor up = saved[1].defined() ? MaybeTensor(saved[1]) : std::nullopt;
    const int64_t activation = ctx->saved_data["activation"].toInt();
    if (at::GradMode::is_enabled()) {
      const auto forward = [&](const variable_list& in) {
        if (in[1].defined()) return variable_list{activated(in[0], Activation(activation)) * in[1]};
        const auto both = in[0].chunk(2, -1);
        return variable_list{activated(both[0], Activation(activation)) * both[1]};
      };
      const variable_list all = differentiable(saved, gradients, forward);
      return {all[0], all[1], Tensor()};
    }
    const Tensor d_out = gradients[0].contiguous();
    GatedBackward all = {};
    all.forward = parts(gate, up, activation);
    all.d_out = d_out.const_data_ptr();
    const Tensor d_gate = at::empty(gate.sizes(), d_out.options());
    const Tensor d_up = up ? at::empty(up->sizes(), d_out.options()) : Tensor();
    all.d_gate = d_gate.mutable_data_ptr();
    all.d_stride = d_gate.size(-1);
    all.d_up = up ? d_up.mutable_data_ptr() : (char*)all.d_gate + all.forward.size * gate.element_size();
    const int64_t size = all.forward.size, rows = size == 0 ? 0 : d_out.numel() / size;
    if (gate.is_cuda()) {
#ifdef LN_TUNING_GPU
      gpu::gated_backward(all, rows, gate);
#endif
    } else {
      for_rows(rows, 3 * size, [&](int64_t begin, int64_t end) { loops().gated_backward(all, begin, end); });
    }
    return {d_gate, d_up, Tensor()};
  }

 private:
  // They stand in rows: see `ln_tuning_gated`.
  static Gated parts(const Tensor& gate, const MaybeTensor& up, int64_t activation) {
    const Rows gates = as_rows(gate);
    Gated all = {};
    all.kind = *kind_of(gate);
    all.activation = Activation(activation);
    all.size = up ? gates.size : gates.size / 2;
    all.gate = gates.tensor.const_data_ptr();
    all.gate_stride = gates.stride;
    if (up) {
      const Rows ups = as_rows(*up);
      all.up = ups.tensor.const_data_ptr();
      all.up_stride = ups.stride;
    } else {
      all.up = (const char*)all.gate + all.size * gate.element_size();
      all.up_stride = gates.stride;
    }
    return all;
  }
};

}  // namespace

// activation(gate) * up; without `up`, gate holds both, one after the other.
extern "C" char* ln_tuning_gated(Tensor** result, const Tensor* gate, const Tensor* up, int64_t activation) {
  return guarded([&] {
    if (!fits_anywhere({gate, up}) || gate->dim() == 0) return;
    if (up ? up->sizes() != gate->sizes() : gate->size(-1) % 2 != 0) return;
    // Copied here, so that the copies are what is kept.
    const Tensor gates = as_rows(*gate).tensor;
    const MaybeTensor ups = up ? MaybeTensor(as_rows(*up).tensor) : std::nullopt;
    *result = new Tensor(GateUp::apply(gates, ups, activation));
  });
}

}  // namespace ln_tuning
