// Fused functions with gradients of their own, behind a C ABI: norms with the addition before them, gates, rotary
// embeddings, attention with all scores at once, and cross entropy. The loops are in loops.cpp.
//
// Each takes pointers to tensors and leaves new ones, or none where libtorch's own operators are to be used. It gives
// the message of an error, which the caller frees, or null.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/jit/frontend/tracer.h>

#include <cstring>

#include "loops.h"

namespace ln_tuning {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;
using MaybeTensor = std::optional<Tensor>;

// The loops for this processor, as libtorch chooses its own: ATEN_CPU_CAPABILITY counts here too.
const Loops& loops() {
  static const Loops& chosen = []() -> const Loops& {
#ifdef LN_TUNING_X86
    const std::string capability = at::get_cpu_capability();
    if (capability.rfind("AVX512", 0) == 0) return loops_avx512;
    if (capability == "AVX2") return loops_avx2;
#endif
    return loops_plain;
  }();
  return chosen;
}

std::optional<Kind> kind_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case at::kFloat: return Kind::f32;
    case at::kBFloat16: return Kind::bf16;
    case at::kHalf: return Kind::f16;
    default: return std::nullopt;
  }
}

bool is_plain(const Tensor& x) {
  return x.defined() && x.is_cpu() && x.layout() == at::kStrided && !x.is_neg() && !x._is_zerotensor() &&
      kind_of(x).has_value();
}

// True for tensors of one kind that the loops can read. A trace would not see what they do.
bool fits(std::initializer_list<const Tensor*> tensors) {
  const Tensor* first = nullptr;
  for (const Tensor* x : tensors) {
    if (!x) continue;
    if (!is_plain(*x) || (first && x->scalar_type() != first->scalar_type())) return false;
    if (!first) first = x;
  }
  return first && !torch::jit::tracer::isTracing();
}

// Calls `work` for parts of the rows, in several threads if there is enough to do.
template <class Work>
void for_rows(int64_t rows, int64_t row_size, const Work& work) {
  const int64_t enough = 1 << 14;
  at::parallel_for(0, rows, std::max<int64_t>(1, enough / std::max<int64_t>(1, row_size)), work);
}

// Rows of the last dimension at one distance from each other.
struct Rows {
  Tensor tensor;
  int64_t count, size, stride;
};

// Copied if they are not so.
Rows as_rows(const Tensor& x) {
  const int64_t size = x.size(-1), count = size == 0 ? 0 : x.numel() / size;
  int64_t stride = size, expected = 0;
  bool even = x.stride(-1) == 1 || size == 1;
  for (int64_t d = x.dim() - 2; d >= 0 && even; --d) {
    if (x.size(d) == 1) continue;
    if (expected == 0) {
      stride = x.stride(d);
      expected = stride * x.size(d);
    } else {
      even = x.stride(d) == expected;
      expected *= x.size(d);
    }
  }
  if (even) return {x, count, size, stride};
  return {x.contiguous(), count, size, size};
}

// A gradient that shall exist, or none.
bool wants(AutogradContext* ctx, size_t edge) { return ctx->needs_input_grad(edge); }

// Gradients of `forward`, which consists of libtorch's operators, as a graph of their own: for second derivatives.
template <class Forward>
variable_list differentiable(const variable_list& inputs, const variable_list& gradients, const Forward& forward) {
  variable_list aliases, wanted;
  for (const Tensor& x : inputs) {
    aliases.push_back(x.defined() ? x.alias() : x);
    if (x.defined() && x.requires_grad()) wanted.push_back(aliases.back());
  }
  const variable_list outputs = forward(aliases);
  variable_list used, given;
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (!gradients[i].defined()) continue;
    used.push_back(outputs[i]);
    given.push_back(gradients[i]);
  }
  const variable_list found = torch::autograd::grad(used, wanted, given, true, true, true);
  variable_list all;
  size_t at = 0;
  for (const Tensor& x : inputs) all.push_back(x.defined() && x.requires_grad() ? found[at++] : Tensor());
  return all;
}

// ---- Norms.

enum class Form : int64_t { rms, rms_from_one, layer };

Tensor in_f32(const MaybeTensor& weight, Form form, int64_t size) {
  if (!weight) return at::ones({size}, at::kFloat);
  const Tensor wide = weight->to(at::kFloat).contiguous();
  // Not in the weight's kind, in which the sum would be rounded.
  return form == Form::rms_from_one ? wide + 1 : wide;
}

Tensor norm_of_operators(const Tensor& x, const Tensor& weight, const Tensor& bias, Form form, double eps) {
  const auto given = [](const Tensor& t) { return t.defined() ? MaybeTensor(t) : std::nullopt; };
  if (form == Form::layer) return at::layer_norm(x, {x.size(-1)}, given(weight), given(bias), eps);
  if (form == Form::rms) return at::rms_norm(x, {x.size(-1)}, given(weight), eps);
  return at::rms_norm(x.to(at::kFloat), {x.size(-1)}, weight.to(at::kFloat) + 1, eps).to(x.scalar_type());
}

// Rows whose sums for the gradient of a weight stand together. It does not depend on the number of threads, and so
// neither do the sums.
constexpr int64_t ROWS_TOGETHER = 32;

struct AddNorm : Function<AddNorm> {
  static variable_list forward(
      AutogradContext* ctx,
      const Tensor& x,
      const MaybeTensor& added,
      const MaybeTensor& weight,
      const MaybeTensor& bias,
      int64_t form,
      double eps) {
    const Rows rows = as_rows(x);
    const Rows more = added ? as_rows(*added) : rows;
    const Tensor wide = in_f32(weight, Form(form), rows.size);
    const Tensor wide_bias = bias ? bias->to(at::kFloat).contiguous() : Tensor();
    const auto options = x.options().memory_format(at::MemoryFormat::Contiguous);
    const Tensor out = at::empty(x.sizes(), options);
    const Tensor sum = added ? at::empty(x.sizes(), options) : Tensor();
    const Tensor stats = at::empty({rows.count, 2}, at::kFloat);
    Norm all = {};
    all.kind = *kind_of(x);
    all.centred = Form(form) == Form::layer;
    all.size = rows.size;
    all.eps = eps;
    all.x = rows.tensor.const_data_ptr();
    all.x_stride = rows.stride;
    all.added = added ? more.tensor.const_data_ptr() : nullptr;
    all.added_stride = more.stride;
    all.sum = added ? sum.mutable_data_ptr() : nullptr;
    all.out = out.mutable_data_ptr();
    all.weight = wide.const_data_ptr<float>();
    all.bias = bias ? wide_bias.const_data_ptr<float>() : nullptr;
    all.stats = stats.mutable_data_ptr<float>();
    for_rows(rows.count, rows.size, [&](int64_t begin, int64_t end) { loops().norm(all, begin, end); });
    ctx->set_materialize_grads(false);
    ctx->save_for_backward({added ? sum : x, weight.value_or(Tensor()), bias.value_or(Tensor()), stats});
    ctx->saved_data["form"] = form;
    ctx->saved_data["eps"] = eps;
    ctx->saved_data["added"] = added.has_value();
    return added ? variable_list{sum, out} : variable_list{out};
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1], &bias = saved[2], &stats = saved[3];
    const Form form = Form(ctx->saved_data["form"].toInt());
    const double eps = ctx->saved_data["eps"].toDouble();
    const bool added = ctx->saved_data["added"].toBool();
    const Tensor d_sum = added ? gradients[0] : Tensor(), d_out = gradients.back();
    // Edges stand for the tensors that there are.
    size_t edge = 0;
    const bool wants_x = wants(ctx, edge++);
    const bool wants_added = added && wants(ctx, edge++);
    const bool wants_weight = weight.defined() && wants(ctx, edge++);
    const bool wants_bias = bias.defined() && wants(ctx, edge++);
    Tensor d_x, d_weight, d_bias;
    if (!d_out.defined()) {
      d_x = d_sum;
    } else if (at::GradMode::is_enabled()) {
      const auto forward = [&](const variable_list& in) {
        return variable_list{norm_of_operators(in[0], in[1], in[2], form, eps)};
      };
      variable_list all = differentiable({x, weight, bias}, {d_out}, forward);
      d_x = d_sum.defined() && all[0].defined() ? all[0] + d_sum : all[0];
      d_weight = all[1];
      d_bias = all[2];
    } else {
      const Rows rows = as_rows(x);
      const Tensor given = d_out.contiguous();
      const Tensor also = d_sum.defined() ? d_sum.contiguous() : Tensor();
      const Tensor wide = in_f32(weight.defined() ? MaybeTensor(weight) : std::nullopt, form, rows.size);
      if (wants_x || wants_added) d_x = at::empty(x.sizes(), given.options());
      const int64_t groups = (rows.count + ROWS_TOGETHER - 1) / ROWS_TOGETHER;
      const auto sums = [&](bool wanted) { return wanted ? at::zeros({groups, rows.size}, at::kFloat) : Tensor(); };
      const Tensor weights = sums(wants_weight), biases = sums(wants_bias);
      NormBackward all = {};
      all.kind = *kind_of(x);
      all.centred = form == Form::layer;
      all.size = rows.size;
      all.x = rows.tensor.const_data_ptr();
      all.x_stride = rows.stride;
      all.stats = stats.const_data_ptr<float>();
      all.weight = wide.const_data_ptr<float>();
      all.d_out = given.const_data_ptr();
      all.d_sum = also.defined() ? also.const_data_ptr() : nullptr;
      all.d_x = d_x.defined() ? d_x.mutable_data_ptr() : nullptr;
      float* to_weights = weights.defined() ? weights.mutable_data_ptr<float>() : nullptr;
      float* to_biases = biases.defined() ? biases.mutable_data_ptr<float>() : nullptr;
      for_rows(groups, rows.size * ROWS_TOGETHER, [&](int64_t begin, int64_t end) {
        for (int64_t group = begin; group < end; ++group) {
          const int64_t from = group * ROWS_TOGETHER, to = std::min(from + ROWS_TOGETHER, rows.count);
          float* w = to_weights ? to_weights + group * rows.size : nullptr;
          float* b = to_biases ? to_biases + group * rows.size : nullptr;
          loops().norm_backward(all, from, to, w, b);
        }
      });
      if (wants_weight) d_weight = total(weights).to(weight.scalar_type());
      if (wants_bias) d_bias = total(biases).to(bias.scalar_type());
    }
    return {wants_x ? d_x : Tensor(), wants_added ? d_x : Tensor(), d_weight, d_bias, Tensor(), Tensor()};
  }

 private:
  // The sum over the groups, in halves: an order that depends on their number alone.
  static Tensor total(Tensor groups) {
    float* numbers = groups.mutable_data_ptr<float>();
    const int64_t size = groups.size(1);
    for (int64_t count = groups.size(0); count > 1;) {
      const int64_t half = (count + 1) / 2;
      at::parallel_for(0, size, 4096, [&](int64_t begin, int64_t end) {
        for (int64_t i = 0; i + half < count; ++i) {
          for (int64_t j = begin; j < end; ++j) numbers[i * size + j] += numbers[(i + half) * size + j];
        }
      });
      count = half;
    }
    return groups.size(0) == 0 ? at::zeros({size}, at::kFloat) : groups.select(0, 0).clone();
  }
};

// ---- Gates.

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
    for_rows(rows, 2 * all.size, [&](int64_t begin, int64_t end) { loops().gated(all, begin, end); });
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
    for_rows(rows, 3 * size, [&](int64_t begin, int64_t end) { loops().gated_backward(all, begin, end); });
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

// ---- Rotary embeddings.

// x [batch, length, heads, dim] by tables [length, 1, turned] or [batch, length, 1, turned].
Tensor turned(const Tensor& input, const Tensor& cos, const Tensor& sin, bool side_by_side, bool backward) {
  const Tensor x = input.stride(-1) == 1 ? input : input.contiguous();
  const Tensor out = at::empty(x.sizes(), x.options());
  if (x.numel() == 0) return out;
  Rope all = {};
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
  for_rows(x.size(0) * x.size(1), all.heads * all.dim, [&](int64_t begin, int64_t end) {
    loops().rope(all, begin, end);
  });
  return out;
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
    return {turned(q, cos, sin, side_by_side, false), turned(k, cos, sin, side_by_side, false)};
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const variable_list saved = ctx->get_saved_variables();
    const bool side_by_side = ctx->saved_data["side_by_side"].toBool();
    variable_list all(5);
    for (size_t i = 0; i < 2; ++i) {
      if (!gradients[i].defined() || !wants(ctx, i)) continue;
      if (at::GradMode::is_enabled()) {
        // A rotation is linear: its gradient is the gradient of any input.
        const Tensor any = at::zeros_like(gradients[i]).requires_grad_(true);
        const auto forward = [&](const variable_list& in) {
          return variable_list{turned_by_operators(in[0], saved[0], saved[1], side_by_side)};
        };
        all[i] = differentiable({any}, {gradients[i]}, forward)[0];
      } else {
        all[i] = turned(gradients[i], saved[0], saved[1], side_by_side, true);
      }
    }
    return all;
  }
};

// ---- Attention, with all scores at once.

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

// ---- The border.

template <class Work>
char* guarded(const Work& work) noexcept {
  const char* message = "an unknown exception";
  try {
    work();
    return nullptr;
  } catch (const c10::Error& error) {
    return strdup(error.what_without_backtrace());
  } catch (const std::exception& error) {
    message = error.what();
    return strdup(message);
  } catch (...) {
    return strdup(message);
  }
}

MaybeTensor maybe(const Tensor* x) { return x ? MaybeTensor(*x) : std::nullopt; }

}  // namespace
}  // namespace ln_tuning

using namespace ln_tuning;

// The norm of `x`, or of x + added, which is then the first of the two results.
extern "C" char* ln_tuning_norm(
    Tensor** results,
    const Tensor* x,
    const Tensor* added,
    const Tensor* weight,
    const Tensor* bias,
    int64_t form,
    double eps) {
  return guarded([&] {
    if (!fits({x, added, weight, bias}) || x->dim() == 0) return;
    const int64_t size = x->size(-1);
    for (const Tensor* w : {weight, bias}) {
      if (w && (w->dim() != 1 || w->size(0) != size)) return;
    }
    if (added && added->sizes() != x->sizes()) return;
    variable_list all = AddNorm::apply(*x, maybe(added), maybe(weight), maybe(bias), form, eps);
    for (size_t i = 0; i < all.size(); ++i) results[i] = new Tensor(std::move(all[i]));
  });
}

// activation(gate) * up; without `up`, gate holds both, one after the other.
extern "C" char* ln_tuning_gated(Tensor** result, const Tensor* gate, const Tensor* up, int64_t activation) {
  return guarded([&] {
    if (!fits({gate, up}) || gate->dim() == 0) return;
    if (up ? up->sizes() != gate->sizes() : gate->size(-1) % 2 != 0) return;
    // Copied here, so that the copies are what is kept.
    const Tensor gates = as_rows(*gate).tensor;
    const MaybeTensor ups = up ? MaybeTensor(as_rows(*up).tensor) : std::nullopt;
    *result = new Tensor(GateUp::apply(gates, ups, activation));
  });
}

// Queries and keys turned by the angles of their places.
extern "C" char* ln_tuning_turned(
    Tensor** results,
    const Tensor* q,
    const Tensor* k,
    const Tensor* cos,
    const Tensor* sin,
    int64_t side_by_side) {
  return guarded([&] {
    if (!fits({q, k, cos, sin}) || cos->requires_grad() || sin->requires_grad()) return;
    if (cos->dim() < 3 || cos->dim() > 4 || sin->sizes() != cos->sizes() || sin->strides() != cos->strides()) return;
    const int64_t dim = cos->size(-1);
    for (const Tensor* x : {q, k}) {
      if (x->dim() != 4 || dim > x->size(3) || cos->size(-2) != 1) return;
      if (cos->size(-3) != 1 && cos->size(-3) != x->size(1)) return;
      if (cos->dim() == 4 && cos->size(0) != 1 && cos->size(0) != x->size(0)) return;
    }
    if (dim % 2 != 0 || (dim > 1 && cos->stride(-1) != 1)) return;
    variable_list all = Turn::apply(*q, *k, *cos, *sin, side_by_side != 0);
    for (size_t i = 0; i < 2; ++i) results[i] = new Tensor(std::move(all[i]));
  });
}

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

// The loss of logits [rows, classes], which their gradient overwrites if it is wanted; outside any graph. The three
// columns [rows, 1] in f32 are written. Sets `done` if it was computed.
extern "C" char* ln_tuning_cross_entropy(
    int64_t* done,
    Tensor* logits,
    const Tensor* bias,
    const Tensor* targets,
    Tensor* largest,
    Tensor* peak,
    Tensor* target,
    double scale,
    double cap,
    double smoothing,
    double z_loss,
    int64_t wanted) {
  return guarded([&] {
    if (!fits({logits}) || logits->dim() != 2 || !logits->is_contiguous() || logits->size(1) == 0) return;
    const int64_t rows = logits->size(0), classes = logits->size(1);
    if (bias && (bias->scalar_type() != at::kFloat || bias->numel() != classes || !bias->is_contiguous())) return;
    if (targets->scalar_type() != at::kLong || targets->numel() != rows || !targets->is_contiguous()) return;
    for (const Tensor* column : {largest, peak, target}) {
      if (!fits({column}) || column->scalar_type() != at::kFloat || column->numel() != rows) return;
      if (!column->is_contiguous()) return;
    }
    CrossEntropy all = {};
    all.kind = *kind_of(*logits);
    all.wanted = wanted != 0;
    all.classes = classes;
    all.logits = logits->mutable_data_ptr();
    all.bias = bias ? bias->const_data_ptr<float>() : nullptr;
    all.targets = targets->const_data_ptr<int64_t>();
    for (int64_t row = 0; row < rows; ++row) {
      TORCH_CHECK(
          all.targets[row] >= 0 && all.targets[row] < classes,
          "the target ", all.targets[row], " is not one of ", classes, " classes");
    }
    all.scale = (float)scale;
    all.cap = (float)cap;
    all.smoothing = (float)smoothing;
    all.z_loss = (float)z_loss;
    all.largest = largest->mutable_data_ptr<float>();
    all.peak = peak->mutable_data_ptr<float>();
    all.target = target->mutable_data_ptr<float>();
    for_rows(rows, 4 * classes, [&](int64_t begin, int64_t end) { loops().cross_entropy(all, begin, end); });
    *done = 1;
  });
}
