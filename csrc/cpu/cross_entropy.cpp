// The operators of cross-entropy with margin: docs/architecture.md.
#include <torch/csrc/stable/library.h>

#include <string>
#include <tuple>

#include "cpu/cross_entropy_kernel.h"
#include "cpu/rows.h"

namespace icckd {
namespace {

struct CrossEntropy {
  Tensor rows, margin, lse, d_logits;
};

// `grad_rows`: the upstream gradient of every row's loss, read only where the gradient of the logits is wanted.
CrossEntropy compute(
    const Tensor& logits, const Tensor& labels, double label_smoothing, bool probability, int64_t ignore_index,
    bool need_grad, const float* grad_rows) {
  STD_TORCH_CHECK(logits.dim() == 2 && logits.size(1) > 0, "logits should be (N, C) with C ≥ 1");
  const int64_t count = logits.size(0), classes = logits.size(1);
  check_shape(logits, {count, classes}, "logits");
  check_shape(labels, {count}, "labels");
  check_dtype(labels, ScalarType::Long, "labels");
  const Tensor dense_labels = torch::stable::contiguous(labels);
  const int64_t* label = dense_labels.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < count; ++i)
    STD_TORCH_CHECK(label[i] == ignore_index || (label[i] >= 0 && label[i] < classes), "labels holds ", label[i]);

  CrossEntropy result{
      empty({count}, ScalarType::Float), empty({count}, ScalarType::Float), empty({count}, ScalarType::Float),
      need_grad ? empty({count, classes}, logits.scalar_type()) : empty({0}, logits.scalar_type())};
  const CrossEntropyJob job{
      .element = element_of(logits, "logits"),
      .logits = logits.const_data_ptr(),
      .row_stride = logits.stride(0),
      .class_stride = logits.stride(1),
      .classes = classes,
      .labels = label,
      .ignore_index = ignore_index,
      .label_smoothing = static_cast<float>(label_smoothing),
      .probability = probability,
      .grad_rows = grad_rows,
      .rows = result.rows.mutable_data_ptr<float>(),
      .margin = result.margin.mutable_data_ptr<float>(),
      .lse = result.lse.mutable_data_ptr<float>(),
      .d_logits = need_grad ? result.d_logits.mutable_data_ptr() : nullptr,
  };
  parallel_rows(count, classes, 1, [&](int64_t begin, int64_t end, float* scratch) {
    ICCKD_DISPATCH(cross_entropy_margin(job, begin, end, scratch));
  });
  return result;
}

bool is_probability(const std::string& space) {
  STD_TORCH_CHECK(space == "probability" || space == "logit", "space is '", space, "'");
  return space == "probability";
}

std::tuple<Tensor, Tensor, Tensor> rows(
    const Tensor& logits, const Tensor& labels, double label_smoothing, std::string space, int64_t ignore_index) {
  const CrossEntropy all = compute(logits, labels, label_smoothing, is_probability(space), ignore_index, false, nullptr);
  return {all.rows, all.margin, all.lse};
}

// The log-sum-exp is computed again: the exponentials, which the gradient needs anyway, give it for nothing.
Tensor rows_backward(
    const Tensor& grad_rows, const Tensor&, const Tensor& logits, const Tensor& labels, double label_smoothing,
    int64_t ignore_index) {
  const Tensor upstream = per_row(grad_rows, logits.size(0), "grad_rows");
  return compute(logits, labels, label_smoothing, true, ignore_index, true, upstream.const_data_ptr<float>()).d_logits;
}

std::tuple<Tensor, Tensor, Tensor> sum(
    const Tensor& logits, const Tensor& labels, const Tensor& weight, double label_smoothing, std::string space,
    int64_t ignore_index) {
  const Tensor dense_weight = per_row(weight, logits.size(0), "weight");
  const float* factor = dense_weight.const_data_ptr<float>();
  const CrossEntropy all = compute(logits, labels, label_smoothing, is_probability(space), ignore_index, true, factor);
  const float* row = all.rows.const_data_ptr<float>();
  double total = 0;
  for (int64_t i = 0; i < logits.size(0); ++i) total += static_cast<double>(factor[i]) * row[i];
  return {scalar(total), all.margin, all.d_logits};
}

}  // namespace
}  // namespace icckd

STABLE_TORCH_LIBRARY_IMPL(icckd_native, CPU, m) {
  m.impl("cross_entropy_margin_rows", TORCH_BOX(&icckd::rows));
  m.impl("cross_entropy_margin_rows_backward", TORCH_BOX(&icckd::rows_backward));
  m.impl("cross_entropy_margin_sum", TORCH_BOX(&icckd::sum));
}
