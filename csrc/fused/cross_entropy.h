// Cross entropy, which overwrites logits with their gradient.
#pragma once

#include "tensors.h"

namespace ln_tuning {

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

}  // namespace ln_tuning
