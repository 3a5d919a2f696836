// The operators of softened predictions on a GPU: docs/architecture.md.
#include "cuda/distillation.h"

#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>
#include <type_traits>

#include "cuda/rows.h"

namespace icckd::cuda {
namespace {

constexpr int most_threads(Kind kind, bool held) {
  if (kind != Kind::block) return lanes_threads;
  return held ? kd_kl_threads / 2 : 2 * kd_kl_threads;
}

// Blocks on a multiprocessor: what registers allow without spilling. On sm_100a a warp's standardised rows need two more than on others.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr bool three_of_warps = false;
#else
constexpr bool three_of_warps = true;
#endif

constexpr int least_blocks(Kind kind, bool held, bool standardize) {
  if (!held) return 1;
  if (!standardize) return 4;
  return kind == Kind::block || (kind == Kind::warp && three_of_warps) ? 3 : 2;
}

template <class S, class T, class Case, bool standardize>
__global__ void __launch_bounds__(most_threads(Case::kind, Case::held), least_blocks(Case::kind, Case::held, standardize))
    kd_kl_kernel(const __grid_constant__ KdKlParams params) {
  KdKl<S, T, Case, standardize>{params}();
}

template <class S, class T>
void launch_kd_kl(const Tensor& student, int64_t classes, KdKlParams params) {
  plan_launch(params, classes, sizeof(S), sizeof(T), shared_limit_of(student));
  with_case(params.plan, [&](auto which) {
    using Case = decltype(which);
    launch_rows(student, params.standardize ? kd_kl_kernel<S, T, Case, true> : kd_kl_kernel<S, T, Case, false>, params);
  });
}

struct KdKlResult {
  Tensor rows, d_student;
};

KdKlResult compute(
    const Tensor& student, const Tensor& any_teacher, double temperature, bool standardize, const std::optional<Tensor>& weight,
    double scale, bool need_grad) {
  STD_TORCH_CHECK(student.dim() == 2, "student should be (N, C)");
  const int64_t count = student.size(0), classes = student.size(1);
  element_of(any_teacher, "teacher");
  // Where the formats differ, the teacher's is float32: fewer kernels, for a copy in rare cases.
  const bool same = student.scalar_type() == any_teacher.scalar_type();
  const Tensor teacher = same ? any_teacher : torch::stable::to(any_teacher, ScalarType::Float);
  const std::optional<Tensor> dense_weight = weight ? std::optional(per_row(*weight, count, "grad_rows")) : std::nullopt;

  KdKlResult result{
      empty({count}, ScalarType::Float, student),
      need_grad ? empty({count, classes}, student.scalar_type(), student) : empty({0}, student.scalar_type(), student)};
  const KdKlParams params{
      .count = count,
      .student = matrix_of(student, count, classes, "student"),
      .teacher = matrix_of(teacher, count, classes, "teacher"),
      .plan = {},
      .aligned = false,
      .temperature = static_cast<float>(temperature),
      .standardize = standardize,
      .weight = dense_weight ? dense_weight->const_data_ptr<float>() : nullptr,
      .scale = static_cast<float>(scale),
      .rows = result.rows.mutable_data_ptr<float>(),
      .d_student = need_grad ? result.d_student.mutable_data_ptr() : nullptr,
  };
  with_type(element_of(student, "student"), [&](auto element) {
    using S = decltype(element);
    same ? launch_kd_kl<S, S>(student, classes, params) : launch_kd_kl<S, float>(student, classes, params);
  });
  return result;
}

Tensor kd_kl_rows(const Tensor& student, const Tensor& teacher, double temperature, bool standardize) {
  return compute(student, teacher, temperature, standardize, std::nullopt, 1, false).rows;
}

Tensor kd_kl_rows_backward(
    const Tensor& grad_rows, const Tensor& student, const Tensor& teacher, double temperature, bool standardize) {
  return compute(student, teacher, temperature, standardize, grad_rows, 1, true).d_student;
}

std::tuple<Tensor, Tensor> kd_kl_sum(
    const Tensor& student, const Tensor& teacher, double temperature, bool standardize, double scale) {
  const KdKlResult all = compute(student, teacher, temperature, standardize, std::nullopt, scale, true);
  return {torch::stable::sum(all.rows), all.d_student};
}

}  // namespace
}  // namespace icckd::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(icckd_cuda, m) {
  m.def("kd_kl_rows(Tensor student, Tensor teacher, float temperature, bool standardize) -> Tensor rows");
  m.def(
      "kd_kl_rows_backward(Tensor grad_rows, Tensor student, Tensor teacher, float temperature, bool standardize) "
      "-> Tensor d_student");
  m.def(
      "kd_kl_sum(Tensor student, Tensor teacher, float temperature, bool standardize, float scale) "
      "-> (Tensor loss, Tensor d_student)");
}

STABLE_TORCH_LIBRARY_IMPL(icckd_cuda, CUDA, m) {
  m.impl("kd_kl_rows", TORCH_BOX(&icckd::cuda::kd_kl_rows));
  m.impl("kd_kl_rows_backward", TORCH_BOX(&icckd::cuda::kd_kl_rows_backward));
  m.impl("kd_kl_sum", TORCH_BOX(&icckd::cuda::kd_kl_sum));
}
