// The push into a class memory as an operator.
//
//   class_memory_push(slots (C · capacity + 1, D), pushed (C,) int64, features (N, D), labels (N,) int64): writes slots and pushed.
//   Rows whose label is negative, or C or more, and rows that are not finite in the dtype of slots, are skipped. slots and features: float32, bfloat16 or float16, each its own.
#include <torch/csrc/stable/library.h>

#include "cuda/class_memory.h"
#include "cuda/tensors.h"

namespace icckd::cuda {
namespace {

// Left to itself, ptxas spills some registers so as to hold more warps than there are.
constexpr int blocks_at_least = 8;

template <class From, class To>
__global__ void __launch_bounds__(push_threads, blocks_at_least) class_memory_push_kernel(const __grid_constant__ ClassMemoryParams p) {
  class_memory_push<From, To>(p);
}

template <class From, class To>
__global__ void __launch_bounds__(push_threads) label_kept_rows_kernel(const __grid_constant__ ClassMemoryParams p) {
  label_kept_rows<From, To>(p);
}

void push(Tensor slots, Tensor pushed, Tensor features, Tensor labels) {
  STD_TORCH_CHECK(features.dim() == 2, "features has ", features.dim(), " dimensions; it should have 2");
  features = torch::stable::contiguous(features);
  labels = torch::stable::contiguous(labels);
  const int64_t rows = features.size(0), dim = features.size(1), num_classes = pushed.numel();
  STD_TORCH_CHECK(num_classes > 0 && slots.dim() == 2 && slots.size(0) > num_classes && (slots.size(0) - 1) % num_classes == 0,
                  "slots should have one row more than a multiple of the classes");
  const int64_t capacity = (slots.size(0) - 1) / num_classes;
  STD_TORCH_CHECK(rows <= most_rows && capacity <= most_rows, "features or slots have more rows than this kernel counts");
  check_tensor(slots, {slots.size(0), dim}, "slots");
  check_tensor(pushed, {num_classes}, "pushed");
  check_dtype(pushed, ScalarType::Long, "pushed");
  check_tensor(features, {rows, dim}, "features");
  check_tensor(labels, {rows}, "labels");
  check_dtype(labels, ScalarType::Long, "labels");
  if (rows == 0) return;
  const Tensor kept_labels = empty({rows}, ScalarType::Long, labels);
  ClassMemoryParams p{};
  p.features = features.const_data_ptr();
  p.labels = labels.const_data_ptr<int64_t>();
  p.kept_labels = kept_labels.mutable_data_ptr<int64_t>();
  p.slots = slots.mutable_data_ptr();
  p.pushed = pushed.mutable_data_ptr<int64_t>();
  p.rows = static_cast<int32_t>(rows);
  p.dim = dim;
  p.num_classes = num_classes;
  p.capacity = static_cast<int32_t>(capacity);
  p.classes_per_warp = classes_per_warp_for(num_classes);
  const OnDevice device(features);
  with_type(element_of(features, "features"), [&](auto from) {
    with_type(element_of(slots, "slots"), [&](auto to) {
      device.launch(label_kept_rows_kernel<decltype(from), decltype(to)>, label_blocks(p.rows), push_threads, 0, p);
      device.launch(class_memory_push_kernel<decltype(from), decltype(to)>, push_blocks(num_classes), push_threads, 0, p);
    });
  });
}

}  // namespace
}  // namespace icckd::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(icckd_cuda, m) {
  m.def("class_memory_push(Tensor(a!) slots, Tensor(b!) pushed, Tensor features, Tensor labels) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(icckd_cuda, CUDA, m) { m.impl("class_memory_push", TORCH_BOX(&icckd::cuda::push)); }
