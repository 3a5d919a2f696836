// The operators of cross-entropy with margin on a GPU: docs/architecture.md. A label that names no class makes its row's results NaN.
#include "cuda/cross_entropy.h"

#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>
#include <tuple>

#include "cuda/rows.h"

namespace icckd::cuda {
namespace {

constexpr int most_threads(Kind kind, bool held) {
  if (kind != Kind::block) return lanes_threads;
  return held ? cross_entropy_threads / 2 : 2 * cross_entropy_threads;
}

// The second bound, of blocks on a multiprocessor, is what registers allow without spilling.
template <class E, class Case>
__global__ void __launch_bounds__(most_threads(Case::kind, Case::held), Case::kind != Kind::block ? 6 : Case::held ? 3 : 1)
    cross_entropy_kernel(const __grid_constant__ CrossEntropyParams params) {
  cross_entropy_margin<E, Case>(params);
}

struct CrossEntropy {
  Tensor rows, margin, lse, d_logits;
};

CrossEntropy compute(
    const Tensor& logits, const Tensor& labels, const std::optional<Tensor>& weight, double label_smoothing, bool probability,
    int64_t ignore_index, bool need_grad) {
  STD_TORCH_CHECK(logits.dim() == 2, "logits should be (N, C)");
  const int64_t count = logits.size(0), classes = logits.size(1);
  check_dtype(labels, ScalarType::Long, "labels");
  const Tensor dense_labels = torch::stable::contiguous(labels);
  check_tensor(dense_labels, {count}, "labels");
  const std::optional<Tensor> dense_weight = weight ? std::optional(per_row(*weight, count, "weight")) : std::nullopt;

  CrossEntropy result{
      empty({count}, ScalarType::Float, logits), empty({count}, ScalarType::Float, logits), empty({count}, ScalarType::Float, logits),
      need_grad ? empty({count, classes}, logits.scalar_type(), logits) : empty({0}, logits.scalar_type(), logits)};
  CrossEntropyParams params{
      .count = count,
      .logits = matrix_of(logits, count, classes, "logits"),
      .plan = {},
      .aligned = false,
      .labels = dense_labels.const_data_ptr<int64_t>(),
      .ignore_index = ignore_index,
      .label_smoothing = static_cast<float>(label_smoothing),
      .probability = probability,
      .weight = dense_weight ? dense_weight->const_data_ptr<float>() : nullptr,
      .rows = result.rows.mutable_data_ptr<float>(),
      .margin = result.margin.mutable_data_ptr<float>(),
      .lse = result.lse.mutable_data_ptr<float>(),
      .d_logits = need_grad ? result.d_logits.mutable_data_ptr() : nullptr,
  };
  with_type(element_of(logits, "logits"), [&](auto element) {
    using E = decltype(element);
    plan_launch(params, classes, sizeof(E), shared_limit_of(logits));
    with_case(params.plan, [&](auto which) { launch_rows(logits, cross_entropy_kernel<E, decltype(which)>, params); });
  });
  return result;
}

bool is_probability(const std::string& space) {
  STD_TORCH_CHECK(space == "probability" || space == "logit", "space is '", space, "'");
  return space == "probability";
}

std::tuple<Tensor, Tensor, Tensor> rows(
    const Tensor& logits, const Tensor& labels, double label_smoothing, std::string space, int64_t ignore_index) {
  const CrossEntropy all = compute(logits, labels, std::nullopt, label_smoothing, is_probability(space), ignore_index, false);
  return {all.rows, all.margin, all.lse};
}

// The log-sum-exp is computed again: it costs no memory traffic, and without the maximum it would not do.
Tensor rows_backward(
    const Tensor& grad_rows, const Tensor&, const Tensor& logits, const Tensor& labels, double label_smoothing, int64_t ignore_index) {
  return compute(logits, labels, grad_rows, label_smoothing, true, ignore_index, true).d_logits;
}

std::tuple<Tensor, Tensor, Tensor> sum(
    const Tensor& logits, const Tensor& labels, const Tensor& weight, double label_smoothing, std::string space,
    int64_t ignore_index) {
  const CrossEntropy all = compute(logits, labels, weight, label_smoothing, is_probability(space), ignore_index, true);
  return {torch::stable::sum(all.rows), all.margin, all.d_logits};
}

}  // namespace
}  // namespace icckd::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(icckd_cuda, m) {
  m.def(
      "cross_entropy_margin_rows(Tensor logits, Tensor labels, float label_smoothing, str space, int ignore_index) "
      "-> (Tensor rows, Tensor margin, Tensor lse)");
  m.def(
      "cross_entropy_margin_rows_backward(Tensor grad_rows, Tensor lse, Tensor logits, Tensor labels, "
      "float label_smoothing, int ignore_index) -> Tensor d_logits");
  m.def(
      "cross_entropy_margin_sum(Tensor logits, Tensor labels, Tensor weight, float label_smoothing, str space, "
      "int ignore_index) -> (Tensor loss, Tensor margin, Tensor d_logits)");
}

STABLE_TORCH_LIBRARY_IMPL(icckd_cuda, CUDA, m) {
  m.impl("cross_entropy_margin_rows", TORCH_BOX(&icckd::cuda::rows));
  m.impl("cross_entropy_margin_rows_backward", TORCH_BOX(&icckd::cuda::rows_backward));
  m.impl("cross_entropy_margin_sum", TORCH_BOX(&icckd::cuda::sum));
}
