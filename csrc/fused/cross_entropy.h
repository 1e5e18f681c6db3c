// Cross entropy, which overwrites logits with their gradient.
#pragma once

#include "tensors.h"

namespace ln_tuning {

namespace {

bool is_dense(const Tensor& x, at::ScalarType kind, int64_t count) {
  return x.scalar_type() == kind && x.numel() == count && x.is_contiguous();
}

}  // namespace

// The loss of logits [rows, classes]; outside any graph. If it is wanted, their gradient overwrites them, or goes to
// `gradient`, which on CUDA may be of another kind. Logits on CUDA are f32; a target there that is no class makes the
// loss NaN. The three columns [rows, 1] in f32 are written. Sets `done` if it was computed.
extern "C" char* ln_tuning_cross_entropy(
    int64_t* done,
    Tensor* logits,
    Tensor* gradient,
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
    if (!fits({logits}, logits->is_cuda()) || logits->dim() != 2 || !logits->is_contiguous()) return;
    const int64_t rows = logits->size(0), classes = logits->size(1);
    if (classes == 0 || !is_dense(*targets, at::kLong, rows) || targets->device() != logits->device()) return;
    if (bias && (!is_dense(*bias, at::kFloat, classes) || bias->device() != logits->device())) return;
    for (const Tensor* column : {largest, peak, target}) {
      if (!is_plain(*column) || column->device() != logits->device() || !is_dense(*column, at::kFloat, rows)) return;
    }
    // The same on every device.
    const auto shared = [&](auto& all) {
      all.classes = classes;
      all.bias = bias ? bias->const_data_ptr<float>() : nullptr;
      all.scale = (float)scale;
      all.cap = (float)cap;
      all.smoothing = (float)smoothing;
      all.z_loss = (float)z_loss;
      all.largest = largest->mutable_data_ptr<float>();
      all.peak = peak->mutable_data_ptr<float>();
      all.target = target->mutable_data_ptr<float>();
    };
#ifdef LN_TUNING_GPU
    if (logits->is_cuda()) {
      Tensor* to = gradient ? gradient : logits;
      if (logits->scalar_type() != at::kFloat || !fits({to}, true)) return;
      if (!is_dense(*to, to->scalar_type(), rows * classes) || to->device() != logits->device()) return;
      gpu::CrossEntropyArguments all = {};
      all.rows = rows;
      all.logits = logits->const_data_ptr<float>();
      all.gradient = wanted ? to->mutable_data_ptr() : nullptr;
      all.targets = (const long long*)targets->const_data_ptr<int64_t>();
      shared(all);
      gpu::cross_entropy(all, *to);
      *done = 1;
      return;
    }
#endif
    if (gradient) return;
    CrossEntropy all = {};
    all.kind = *kind_of(*logits);
    all.wanted = wanted != 0;
    all.logits = logits->mutable_data_ptr();
    all.targets = targets->const_data_ptr<int64_t>();
    for (int64_t row = 0; row < rows; ++row) {
      TORCH_CHECK(
          all.targets[row] >= 0 && all.targets[row] < classes,
          "the target ", all.targets[row], " is not one of ", classes, " classes");
    }
    shared(all);
    for_rows(rows, 4 * classes, [&](int64_t begin, int64_t end) { loops().cross_entropy(all, begin, end); });
    *done = 1;
  });
}

}  // namespace ln_tuning
