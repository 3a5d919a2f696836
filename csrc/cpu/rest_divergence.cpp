// The operators of losses that take the label's class apart from the rest: docs/architecture.md.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "cpu/rest_divergence_kernel.h"
#include "cpu/rows.h"

namespace icckd {
namespace {

// What both operators are given; `labels` contiguous.
RestDivergenceJob job_of(
    const Tensor& student, const Tensor& teacher, const Tensor& labels, double temperature, double odds_temperature) {
  STD_TORCH_CHECK(student.dim() == 2 && student.size(1) > 0, "student should be (N, C) with C ≥ 1");
  const int64_t count = student.size(0), classes = student.size(1);
  check_shape(student, {count, classes}, "student");
  check_shape(teacher, {count, classes}, "teacher");
  check_shape(labels, {count}, "labels");
  check_dtype(labels, ScalarType::Long, "labels");
  const int64_t* label = labels.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < count; ++i)
    STD_TORCH_CHECK(label[i] >= 0 && label[i] < classes, "labels holds ", label[i]);
  return {
      .student = logits_of(student, "student"),
      .teacher = logits_of(teacher, "teacher"),
      .classes = classes,
      .labels = label,
      .temperature = static_cast<float>(temperature),
      .odds_temperature = static_cast<float>(odds_temperature),
  };
}

void compute(const RestDivergenceJob& job, int64_t count) {
  parallel_rows(count, job.classes, 3, [&](int64_t begin, int64_t end, float* scratch) {
    ICCKD_DISPATCH(rest_divergence(job, begin, end, scratch, scratch_length(job.classes)));
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> rest_divergence_rows(
    const Tensor& student, const Tensor& teacher, const Tensor& labels, double temperature, double odds_temperature) {
  const Tensor dense_labels = torch::stable::contiguous(labels);
  RestDivergenceJob job = job_of(student, teacher, dense_labels, temperature, odds_temperature);
  const int64_t count = student.size(0);
  const auto rows = [&] { return empty({count}, ScalarType::Float); };
  Tensor divergence = rows(), entropy = rows(), odds = rows(), teacher_odds = rows();
  job.divergence = divergence.mutable_data_ptr<float>();
  job.entropy = entropy.mutable_data_ptr<float>();
  job.odds = odds.mutable_data_ptr<float>();
  job.teacher_odds = teacher_odds.mutable_data_ptr<float>();
  compute(job, count);
  return {divergence, entropy, odds, teacher_odds};
}

Tensor rest_divergence_rows_backward(
    const Tensor& grad_divergence, const Tensor& grad_odds, const Tensor& student, const Tensor& teacher,
    const Tensor& labels, double temperature, double odds_temperature) {
  const Tensor dense_labels = torch::stable::contiguous(labels);
  RestDivergenceJob job = job_of(student, teacher, dense_labels, temperature, odds_temperature);
  const int64_t count = student.size(0);
  const Tensor of_divergence = per_row(grad_divergence, count, "grad_divergence");
  const Tensor of_odds = per_row(grad_odds, count, "grad_odds");
  Tensor d_student = empty({count, job.classes}, student.scalar_type());
  job.grad_divergence = of_divergence.const_data_ptr<float>();
  job.grad_odds = of_odds.const_data_ptr<float>();
  job.d_student = d_student.mutable_data_ptr();
  compute(job, count);
  return d_student;
}

}  // namespace
}  // namespace icckd

STABLE_TORCH_LIBRARY_IMPL(icckd_native, CPU, m) {
  m.impl("rest_divergence_rows", TORCH_BOX(&icckd::rest_divergence_rows));
  m.impl("rest_divergence_rows_backward", TORCH_BOX(&icckd::rest_divergence_rows_backward));
}
