#include "bind.h"
#include "cuda/class_memory.h"

namespace icckd::cuda {
namespace {

using namespace emulator;

template <class From, class To>
void push(Buffer slots, Buffer pushed, Buffer features, Buffer labels, Buffer kept_labels, int rows, int64_t dim, int64_t num_classes, int capacity,
          int classes_per_warp, Timing timing) {
  const ClassMemoryParams p{features.data<unsigned char>(), labels.data<int64_t>(), kept_labels.mutable_data<int64_t>(),
                            slots.mutable_data<unsigned char>(), pushed.mutable_data<int64_t>(), dim, num_classes, rows, capacity,
                            classes_per_warp};
  const int64_t per_block = int64_t{classes_per_warp} * (push_threads / warp_size);
  const int blocks = static_cast<int>((num_classes + per_block - 1) / per_block);
  launch({.blocks = label_blocks(rows), .threads = push_threads}, timing, [&] { label_kept_rows<From, To>(p); });
  launch({.blocks = blocks, .threads = push_threads}, timing, [&] { class_memory_push<From, To>(p); });
}

}  // namespace
}  // namespace icckd::cuda

ICCKD_MODULE(m) {
  using namespace icckd;
  using namespace icckd::cuda;
  m.def("push_float32_float32", &push<float, float>);
  m.def("push_float32_bfloat16", &push<float, bfloat16>);
  m.def("push_float32_float16", &push<float, float16>);
  m.def("push_bfloat16_float32", &push<bfloat16, float>);
  m.def("push_bfloat16_bfloat16", &push<bfloat16, bfloat16>);
  m.def("push_bfloat16_float16", &push<bfloat16, float16>);
  m.def("push_float16_float32", &push<float16, float>);
  m.def("push_float16_bfloat16", &push<float16, bfloat16>);
  m.def("push_float16_float16", &push<float16, float16>);
  m.def("ring_slot", &ring_slot);
  m.def("remainder", &remainder_of);
  m.def("classes_per_warp", &classes_per_warp_for);
  m.def("blocks", &push_blocks);
}
