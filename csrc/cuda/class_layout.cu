// The class layout as an operator: checks, memory, launches.
//
//   class_layout(labels (N,) int64, weight (N,) float32 or None, memory_labels (M,) int64 or None, num_classes, limit)
//     -> order, rank, anchors, start, size, active, memory_order, memory_start, memory_size, totals, scale: the Layout of
//     kernels/layout.py
//   class_layout_most_classes() -> the most classes that it counts
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <utility>

#include "cuda/class_layout.h"
#include "cuda/tensors.h"

namespace icckd::cuda {
namespace {

__global__ void __launch_bounds__(count_threads) count_keys_kernel(const __grid_constant__ ClassLayoutParams p) {
  count_keys(p);
}

__global__ void __launch_bounds__(rank_threads) rank_classes_kernel(const __grid_constant__ ClassLayoutParams p) {
  rank_classes(p);
}

__global__ void __launch_bounds__(place_threads) place_rows_kernel(const __grid_constant__ ClassLayoutParams p) {
  place_rows(p);
}

using LayoutTensors = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// Hands out parts of one allocation.
class Scratch {
 public:
  explicit Scratch(int32_t* begin) : next_(begin) {}
  int32_t* take(int64_t count) { return std::exchange(next_, next_ + count); }

 private:
  int32_t* next_;
};

KeyedRows keyed_rows(const int64_t* labels, const float* weight, int64_t rows, int keys, int32_t* order, bool in_batch) {
  return {labels, weight, static_cast<int32_t>(rows), keys, blocks_for(rows, keys), rows_per_block_for(rows, keys), nullptr, nullptr, nullptr, order,
          in_batch};
}

LayoutTensors class_layout(Tensor labels, std::optional<Tensor> weight, std::optional<Tensor> memory_labels, int64_t num_classes, int64_t limit) {
  constexpr int64_t most_rows = 0x7fffffff;
  labels = torch::stable::contiguous(labels);
  if (weight) weight = torch::stable::contiguous(*weight);
  if (memory_labels) memory_labels = torch::stable::contiguous(*memory_labels);
  const int64_t rows = labels.numel(), memory_rows = memory_labels ? memory_labels->numel() : 0;
  check_tensor(labels, {rows}, "labels");
  check_dtype(labels, ScalarType::Long, "labels");
  if (weight) {
    check_tensor(*weight, {rows}, "weight");
    check_dtype(*weight, ScalarType::Float, "weight");
  }
  if (memory_labels) {
    check_tensor(*memory_labels, {memory_rows}, "memory_labels");
    check_dtype(*memory_labels, ScalarType::Long, "memory_labels");
  }
  STD_TORCH_CHECK(num_classes >= 1 && num_classes <= most_classes, "num_classes is ", num_classes, "; it should be in [1, ", most_classes, "]");
  STD_TORCH_CHECK(rows <= most_rows && memory_rows <= most_rows, "there are more rows than an int32 counts");
  const int classes = static_cast<int>(num_classes);
  const auto ints = [&](int64_t count) { return empty({count}, ScalarType::Int, labels); };
  Tensor order = ints(rows), rank = ints(rows), anchors = ints(rows), memory_order = ints(memory_rows), totals = ints(6);
  Tensor start = ints(classes), size = ints(classes), active = ints(classes), memory_start = ints(classes), memory_size = ints(classes);
  Tensor scale = empty({1}, ScalarType::Float, labels);

  ClassLayoutParams p{};
  p.batch = keyed_rows(labels.const_data_ptr<int64_t>(), weight ? weight->const_data_ptr<float>() : nullptr, rows,
                       batch_keys(classes), order.mutable_data_ptr<int32_t>(), true);
  p.memory = keyed_rows(memory_labels ? memory_labels->const_data_ptr<int64_t>() : nullptr, nullptr, memory_rows, memory_keys(classes),
                        memory_order.mutable_data_ptr<int32_t>(), false);
  const int64_t all_keys = p.batch.keys + p.memory.keys;
  const int64_t counts = static_cast<int64_t>(p.batch.blocks) * p.batch.keys + static_cast<int64_t>(p.memory.blocks) * p.memory.keys;
  Tensor memory = ints(all_keys + rows + memory_rows + counts);
  Tensor weight_sums = empty({p.batch.blocks}, ScalarType::Float, labels);
  Scratch scratch(memory.mutable_data_ptr<int32_t>());
  p.batch.totals = scratch.take(p.batch.keys);
  p.memory.totals = scratch.take(p.memory.keys);
  for (KeyedRows* source : {&p.batch, &p.memory}) {
    source->place = scratch.take(source->rows);
    source->starts = scratch.take(static_cast<int64_t>(source->blocks) * source->keys);
  }
  p.num_classes = classes;
  p.limit = static_cast<int32_t>(std::min(limit, most_rows));
  p.rank = rank.mutable_data_ptr<int32_t>();
  p.anchors = anchors.mutable_data_ptr<int32_t>();
  p.start = start.mutable_data_ptr<int32_t>();
  p.size = size.mutable_data_ptr<int32_t>();
  p.active = active.mutable_data_ptr<int32_t>();
  p.memory_start = memory_start.mutable_data_ptr<int32_t>();
  p.memory_size = memory_size.mutable_data_ptr<int32_t>();
  p.totals = totals.mutable_data_ptr<int32_t>();
  p.weight_sums = weight_sums.mutable_data_ptr<float>();
  p.scale = scale.mutable_data_ptr<float>();

  const OnDevice device(labels);
  check_cuda(cudaMemsetAsync(p.batch.totals, 0, 4 * all_keys, device.stream()));
  const int blocks = p.batch.blocks + p.memory.blocks;
  if (blocks > 0) device.launch(count_keys_kernel, blocks, count_threads, count_shared_bytes(classes), p);
  device.launch(rank_classes_kernel, rank_blocks(classes), rank_threads, rank_shared_bytes, p);
  const int placing = place_blocks(rows) + place_blocks(memory_rows);
  if (placing > 0) device.launch(place_rows_kernel, placing, place_threads, 0, p);
  return {order, rank, anchors, start, size, active, memory_order, memory_start, memory_size, totals, scale};
}

int64_t class_layout_most_classes() { return most_classes; }

}  // namespace
}  // namespace icckd::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(icckd_cuda, m) {
  m.def(
      "class_layout(Tensor labels, Tensor? weight, Tensor? memory_labels, int num_classes, int limit) -> (Tensor order, Tensor rank, "
      "Tensor anchors, Tensor start, Tensor size, Tensor active, Tensor memory_order, Tensor memory_start, Tensor memory_size, "
      "Tensor totals, Tensor scale)");
  m.def("class_layout_most_classes() -> int");
}

STABLE_TORCH_LIBRARY_IMPL(icckd_cuda, CUDA, m) { m.impl("class_layout", TORCH_BOX(&icckd::cuda::class_layout)); }

STABLE_TORCH_LIBRARY_IMPL(icckd_cuda, CompositeExplicitAutograd, m) {
  m.impl("class_layout_most_classes", TORCH_BOX(&icckd::cuda::class_layout_most_classes));
}
