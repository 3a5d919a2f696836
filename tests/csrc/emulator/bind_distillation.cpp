// csrc/cuda/distillation.h for tests/csrc/test_cuda_distillation.py.
#include "bind.h"
#include "cuda/distillation.h"

namespace icckd::cuda {
namespace {

using namespace emulator;

template <class S, class T>
void run(KdKlParams p, int64_t classes, int shared_limit, Timing timing) {
  plan_launch(p, classes, sizeof(S), sizeof(T), shared_limit);
  const int blocks = static_cast<int>((p.count + p.plan.rows - 1) / p.plan.rows);
  launch({.blocks = blocks, .threads = p.plan.threads, .shared_bytes = p.plan.shared_bytes}, timing, [&] {
    with_case(p.plan, [&](auto which) {
      using Case = decltype(which);
      p.standardize ? KdKl<S, T, Case, true>(p)() : KdKl<S, T, Case, false>(p)();
    });
  });
}

// `student` and `teacher` hold the rows from element `…_offset` on.
template <class S, class T>
void kd_kl(
    Buffer student, int64_t student_offset, int64_t student_row_stride, int64_t student_class_stride, Buffer teacher,
    int64_t teacher_offset, int64_t teacher_row_stride, int64_t teacher_class_stride, int64_t count, int64_t classes, float temperature,
    bool standardize, Buffer weight, float scale, Buffer rows, Buffer d_student, int shared_limit, Timing timing) {
  const KdKlParams p{
      .count = count,
      .student = describe(student.data<S>() + student_offset, count, classes, student_row_stride, student_class_stride, sizeof(S)),
      .teacher = describe(teacher.data<T>() + teacher_offset, count, classes, teacher_row_stride, teacher_class_stride, sizeof(T)),
      .plan = {},
      .aligned = false,
      .temperature = temperature,
      .standardize = standardize,
      .weight = weight ? weight.data<float>() : nullptr,
      .scale = scale,
      .rows = rows.mutable_data<float>(),
      .d_student = d_student ? d_student.mutable_data<S>() : nullptr,
  };
  run<S, T>(p, classes, shared_limit, timing);
}

}  // namespace
}  // namespace icckd::cuda

ICCKD_MODULE(m) {
  using namespace icckd;
  m.def("float32_float32", &cuda::kd_kl<float, float>);
  m.def("bfloat16_bfloat16", &cuda::kd_kl<bfloat16, bfloat16>);
  m.def("float16_float16", &cuda::kd_kl<float16, float16>);
  m.def("bfloat16_float32", &cuda::kd_kl<bfloat16, float>);
  m.def("float16_float32", &cuda::kd_kl<float16, float>);
}
