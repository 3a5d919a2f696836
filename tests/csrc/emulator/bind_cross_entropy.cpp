// csrc/cuda/cross_entropy.h for tests/csrc/test_cuda_cross_entropy.py.
#include <pybind11/stl.h>

#include <array>

#include "bind.h"
#include "cuda/cross_entropy.h"

namespace icckd::cuda {
namespace {

using namespace emulator;

template <class E>
void run(CrossEntropyParams p, int64_t classes, int shared_limit, Timing timing) {
  plan_launch(p, classes, sizeof(E), shared_limit);
  const int blocks = static_cast<int>((p.count + p.plan.rows - 1) / p.plan.rows);
  launch({.blocks = blocks, .threads = p.plan.threads, .shared_bytes = p.plan.shared_bytes}, timing, [&] {
    with_case(p.plan, [&](auto which) { cross_entropy_margin<E, decltype(which)>(p); });
  });
}

// `logits` holds the rows from element `offset` on.
template <class E>
void cross_entropy(
    Buffer logits, int64_t offset, int64_t count, int64_t classes, int64_t row_stride, int64_t class_stride, Buffer labels,
    int64_t ignore_index, float label_smoothing, bool probability, Buffer weight, Buffer rows, Buffer margin, Buffer lse, Buffer d_logits,
    int shared_limit, Timing timing) {
  const CrossEntropyParams p{
      .count = count,
      .logits = describe(logits.data<E>() + offset, count, classes, row_stride, class_stride, sizeof(E)),
      .plan = {},
      .aligned = false,
      .labels = labels.data<int64_t>(),
      .ignore_index = ignore_index,
      .label_smoothing = label_smoothing,
      .probability = probability,
      .weight = weight ? weight.data<float>() : nullptr,
      .rows = rows.mutable_data<float>(),
      .margin = margin.mutable_data<float>(),
      .lse = lse.mutable_data<float>(),
      .d_logits = d_logits ? d_logits.mutable_data<E>() : nullptr,
  };
  run<E>(p, classes, shared_limit, timing);
}

// How rows are divided: classes, chunks, slots, team, threads, rows, shared_bytes.
std::array<int, 7> plan(int classes, int width, int chunk_bytes, bool keep, int most_threads, int shared_limit) {
  const RowPlan p = plan_rows(classes, width, chunk_bytes, !keep, keep, most_threads, shared_limit);
  return {p.classes, p.chunks, p.slots, p.team, p.threads, p.rows, p.shared_bytes};
}

}  // namespace
}  // namespace icckd::cuda

ICCKD_MODULE(m) {
  m.def("plan", &icckd::cuda::plan);
  m.def("float32", &icckd::cuda::cross_entropy<float>);
  m.def("bfloat16", &icckd::cuda::cross_entropy<icckd::bfloat16>);
  m.def("float16", &icckd::cuda::cross_entropy<icckd::float16>);
}
