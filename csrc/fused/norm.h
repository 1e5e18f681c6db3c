// Norms, with the addition before them.
#pragma once

#include "tensors.h"

namespace ln_tuning {
namespace {

enum class Form : int64_t { rms, rms_from_one, layer };

Tensor in_f32(const MaybeTensor& weight, Form form, int64_t size) {
  if (!weight) return at::ones({size}, at::kFloat);
  const Tensor wide = weight->to(at::kFloat).contiguous();
  // Not in the weight's kind, in which the sum would be rounded.
  return form == Form::rms_from_one ? wide + 1 : wide;
}

// The number of parts of x that have a weight each, one after the other.
int64_t parts_of(const Tensor& weight, int64_t size) {
  return weight.defined() && weight.dim() > 1 && size > 0 ? weight.numel() / size : 1;
}

// True for one vector [size] for all rows of x, or one for each of its parts, [parts..., 1..., size].
bool suits(const Tensor& vector, const Tensor& x) {
  if (vector.dim() == 0 || vector.size(-1) != x.size(-1)) return false;
  if (vector.dim() == 1) return true;
  if (vector.dim() != x.dim()) return false;
  bool same = true;
  for (int64_t d = 0; d + 1 < x.dim(); ++d) {
    same = same && vector.size(d) == x.size(d);
    if (!same && vector.size(d) != 1) return false;
  }
  return true;
}

// The number of weights that rows of x take in turn: [heads, size], or [parts..., 1..., heads, size]. 1 for those that
// suit already, 0 for others that do not.
int64_t heads_of(const Tensor& weight, const Tensor& x) {
  if (!weight.defined() || suits(weight, x)) return 1;
  if (weight.dim() < 2 || x.dim() < 2 || weight.size(-2) != x.size(-2) || x.size(-2) == 0) return 0;
  if (weight.dim() > 2 && !suits(weight.select(-2, 0), x.select(-2, 0))) return 0;
  return weight.size(-1) == x.size(-1) ? weight.size(-2) : 0;
}

Tensor norm_of_operators(const Tensor& x, const Tensor& weight, const Tensor& bias, Form form, double eps) {
  const auto given = [](const Tensor& t) { return t.defined() ? MaybeTensor(t) : std::nullopt; };
  if (parts_of(weight, x.size(-1)) > 1 || parts_of(bias, x.size(-1)) > 1) {
    const Tensor wide = x.to(at::kFloat);
    Tensor y = form == Form::layer ? at::layer_norm(wide, {x.size(-1)}, {}, {}, eps)
                                   : at::rms_norm(wide, {x.size(-1)}, {}, eps);
    if (weight.defined()) y = y * (form == Form::rms_from_one ? weight.to(at::kFloat) + 1 : weight.to(at::kFloat));
    return (bias.defined() ? y + bias : y).to(x.scalar_type());
  }
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
    const auto options = x.options().memory_format(at::MemoryFormat::Contiguous);
    const Tensor out = at::empty(x.sizes(), options);
    const Tensor sum = added ? at::empty(x.sizes(), options) : Tensor();
    const Tensor stats = at::empty({rows.count, 2}, x.options().dtype(at::kFloat));
    if (x.is_cuda()) {
#ifdef LN_TUNING_GPU
      const MaybeTensor tensor = added ? MaybeTensor(more.tensor) : std::nullopt;
      gpu::norm(
          rows.tensor, rows.stride, tensor, more.stride, vectors_of(weight.value_or(Tensor())),
          vectors_of(bias.value_or(Tensor())), for_gpu(Form(form)), eps, sum, out, stats);
#endif
    } else {
      const int64_t heads = heads_of(weight.value_or(Tensor()), x);
      on_cpu(rows, more, added.has_value(), weight, bias, heads, Form(form), eps, sum, out, stats);
    }
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
      if (wants_x || wants_added) d_x = at::empty(x.sizes(), given.options());
      if (x.is_cuda()) {
#ifdef LN_TUNING_GPU
        if (wants_weight) d_weight = at::empty(weight.sizes(), given.options());
        if (wants_bias) d_bias = at::empty(bias.sizes(), given.options());
        gpu::norm_backward(
            rows.tensor, rows.stride, stats, vectors_of(weight), vectors_of(bias), for_gpu(form), given, also, d_x,
            {d_weight, d_bias});
#endif
      } else {
        const auto [weights, biases] =
            back_on_cpu(rows, stats, weight, bias, heads_of(weight, x), form, given, also, d_x, wants_weight, wants_bias);
        if (wants_weight) d_weight = total(weights, weight);
        if (wants_bias) d_bias = total(biases, bias);
      }
    }
    return {wants_x ? d_x : Tensor(), wants_added ? d_x : Tensor(), d_weight, d_bias, Tensor(), Tensor()};
  }

 private:
#ifdef LN_TUNING_GPU
  static gpu::NormForm for_gpu(Form form) { return {form == Form::layer, form == Form::rms_from_one}; }

  // Read where they stand if they are at one distance from each other.
  static gpu::Vectors vectors_of(const Tensor& x) {
    if (!x.defined() || x.numel() == 0) return {x, 1, 0};
    const Rows rows = as_rows(x);
    return {rows.tensor, rows.count, rows.count > 1 ? rows.stride : 0};
  }
#endif

  static void on_cpu(
      const Rows& rows,
      const Rows& more,
      bool added,
      const MaybeTensor& weight,
      const MaybeTensor& bias,
      int64_t heads,
      Form form,
      double eps,
      const Tensor& sum,
      const Tensor& out,
      const Tensor& stats) {
    const Tensor wide = in_f32(weight, form, rows.size);
    const Tensor wide_bias = bias ? bias->to(at::kFloat).contiguous() : Tensor();
    const int64_t weights = parts_of(wide, rows.size) / heads, biases = parts_of(wide_bias, rows.size);
    Norm all = {};
    all.kind = *kind_of(out);
    all.centred = form == Form::layer;
    all.size = rows.size;
    all.eps = eps;
    all.x = rows.tensor.const_data_ptr();
    all.x_stride = rows.stride;
    all.added = added ? more.tensor.const_data_ptr() : nullptr;
    all.added_stride = more.stride;
    all.sum = added ? sum.mutable_data_ptr() : nullptr;
    all.out = out.mutable_data_ptr();
    all.rows_together = std::max<int64_t>(1, rows.count / std::max<int64_t>(1, std::max(weights, biases)));
    all.weight = wide.const_data_ptr<float>();
    all.weight_stride = weights > 1 ? heads * rows.size : 0;
    all.heads = heads;
    all.bias_stride = biases > 1 ? rows.size : 0;
    all.bias = bias ? wide_bias.const_data_ptr<float>() : nullptr;
    all.stats = stats.mutable_data_ptr<float>();
    for_rows(rows.count, rows.size, [&](int64_t begin, int64_t end) { loops().norm(all, begin, end); });
  }

  // Writes `d_x` if it is defined; gives the sums for weight and bias that are wanted, [groups, size] each.
  static std::pair<Tensor, Tensor> back_on_cpu(
      const Rows& rows,
      const Tensor& stats,
      const Tensor& weight,
      const Tensor& bias,
      int64_t heads,
      Form form,
      const Tensor& d_out,
      const Tensor& d_sum,
      const Tensor& d_x,
      bool wants_weight,
      bool wants_bias) {
    const Tensor wide = in_f32(weight.defined() ? MaybeTensor(weight) : std::nullopt, form, rows.size);
    const int64_t own = parts_of(weight, rows.size) / heads, parts = std::max(own, parts_of(bias, rows.size));
    const int64_t together = std::max<int64_t>(1, rows.count / std::max<int64_t>(1, parts));
    const int64_t of_group = ROWS_TOGETHER * heads, of_part = (together + of_group - 1) / of_group;
    const int64_t groups = rows.count / together * of_part, of_weight = heads * rows.size;
    const auto sums = [&](bool wanted, int64_t size) {
      return wanted ? at::zeros({groups, size}, at::kFloat) : Tensor();
    };
    const Tensor weights = sums(wants_weight, of_weight), biases = sums(wants_bias, rows.size);
    NormBackward all = {};
    all.kind = *kind_of(d_out);
    all.centred = form == Form::layer;
    all.size = rows.size;
    all.x = rows.tensor.const_data_ptr();
    all.x_stride = rows.stride;
    all.stats = stats.const_data_ptr<float>();
    all.rows_together = together;
    all.weight = wide.const_data_ptr<float>();
    all.weight_stride = own > 1 ? of_weight : 0;
    all.heads = heads;
    all.d_out = d_out.const_data_ptr();
    all.d_sum = d_sum.defined() ? d_sum.const_data_ptr() : nullptr;
    all.d_x = d_x.defined() ? d_x.mutable_data_ptr() : nullptr;
    float* to_weights = weights.defined() ? weights.mutable_data_ptr<float>() : nullptr;
    float* to_biases = biases.defined() ? biases.mutable_data_ptr<float>() : nullptr;
    for_rows(groups, rows.size * of_group, [&](int64_t begin, int64_t end) {
      for (int64_t group = begin; group < end; ++group) {
        const int64_t part = group / of_part * together, from = part + group % of_part * of_group;
        const int64_t to = std::min(from + of_group, part + together);
        float* w = to_weights ? to_weights + group * of_weight : nullptr;
        float* b = to_biases ? to_biases + group * rows.size : nullptr;
        loops().norm_backward(all, from, to, w, b);
      }
    });
    return {weights, biases};
  }

  // The sums over the groups of each part, in halves: an order that depends on their number alone.
  static Tensor total(Tensor groups, const Tensor& like) {
    if (groups.numel() == 0) return at::zeros_like(like, at::MemoryFormat::Contiguous);
    const int64_t size = groups.size(1), parts = like.numel() / size, of_part = groups.size(0) / parts;
    for (int64_t part = 0; part < parts; ++part) {
      float* numbers = groups.mutable_data_ptr<float>() + part * of_part * size;
      for (int64_t count = of_part; count > 1;) {
        const int64_t half = (count + 1) / 2;
        at::parallel_for(0, size, 4096, [&](int64_t begin, int64_t end) {
          for (int64_t i = 0; i + half < count; ++i) {
            for (int64_t j = begin; j < end; ++j) numbers[i * size + j] += numbers[(i + half) * size + j];
          }
        });
        count = half;
      }
    }
    // Not a view, which would keep all groups.
    const Tensor sums = groups.view({parts, of_part, size}).select(1, 0);
    return sums.to(like.scalar_type(), false, true).reshape(like.sizes());
  }
};

}  // namespace

// The norm of `x`, or of x + added, which is then the first of the two results. Weight and bias are those of all rows,
// or of each part; on the CPU, weights without a bias may also be those of each head, which rows take in turn.
extern "C" char* ln_tuning_norm(
    Tensor** results,
    const Tensor* x,
    const Tensor* added,
    const Tensor* weight,
    const Tensor* bias,
    int64_t form,
    double eps) {
  return guarded([&] {
    if (!fits_anywhere({x, added, weight, bias}) || x->dim() == 0) return;
    const int64_t size = x->size(-1), heads = weight ? heads_of(*weight, *x) : 1;
    if (heads == 0 || (heads > 1 && (bias || !x->is_cpu())) || (bias && !suits(*bias, *x))) return;
    const int64_t weights = weight ? parts_of(*weight, size) : 1, biases = bias ? parts_of(*bias, size) : 1;
    if (weights != biases && weights > 1 && biases > 1) return;
    if (added && added->sizes() != x->sizes()) return;
    variable_list all = AddNorm::apply(*x, maybe(added), maybe(weight), maybe(bias), form, eps);
    for (size_t i = 0; i < all.size(); ++i) results[i] = new Tensor(std::move(all[i]));
  });
}

}  // namespace ln_tuning
