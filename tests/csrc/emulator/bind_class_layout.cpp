#include <memory>

#include "bind.h"
#include "cuda/class_layout.h"

namespace icckd::cuda {
namespace {

using namespace emulator;

// The launches of class_layout.cu. `scratch` is what that allocates: place, starts and totals of the batch, and of the memory.
void class_layout(Buffer labels, Buffer weight, Buffer memory_labels, int num_classes, int limit, int rows, int memory_rows,
                  std::vector<Buffer> out, std::vector<Buffer> scratch, Timing timing) {
  const auto keyed = [&](const Buffer& of, const float* weights, int count, int keys, int first, Buffer& order, bool in_batch) {
    return KeyedRows{of.data<int64_t>(), weights, count, keys, blocks_for(count, keys), rows_per_block_for(count, keys),
                     scratch[first].mutable_data<int32_t>(), scratch[first + 1].mutable_data<int32_t>(),
                     scratch[first + 2].mutable_data<int32_t>(), order.mutable_data<int32_t>(), in_batch};
  };
  ClassLayoutParams p{};
  p.batch = keyed(labels, weight ? weight.data<float>() : nullptr, rows, batch_keys(num_classes), 0, out[0], true);
  p.memory = keyed(memory_labels, nullptr, memory_rows, memory_keys(num_classes), 3, out[6], false);
  p.num_classes = num_classes;
  p.limit = limit;
  p.rank = out[1].mutable_data<int32_t>();
  p.anchors = out[2].mutable_data<int32_t>();
  p.start = out[3].mutable_data<int32_t>();
  p.size = out[4].mutable_data<int32_t>();
  p.active = out[5].mutable_data<int32_t>();
  p.memory_start = out[7].mutable_data<int32_t>();
  p.memory_size = out[8].mutable_data<int32_t>();
  p.totals = out[9].mutable_data<int32_t>();
  p.scale = out[10].mutable_data<float>();
  p.weight_sums = scratch[6].mutable_data<float>();
  const int blocks = p.batch.blocks + p.memory.blocks;
  if (blocks > 0)
    launch({.blocks = blocks, .threads = count_threads, .shared_bytes = count_shared_bytes(num_classes)}, timing, [&] { count_keys(p); });
  launch({.blocks = rank_blocks(num_classes), .threads = rank_threads, .shared_bytes = rank_shared_bytes}, timing, [&] { rank_classes(p); });
  const int placing = place_blocks(rows) + place_blocks(memory_rows);
  if (placing > 0) launch({.blocks = placing, .threads = place_threads}, timing, [&] { place_rows(p); });
}

}  // namespace
}  // namespace icckd::cuda

ICCKD_MODULE(m) {
  using namespace icckd::cuda;
  m.def("class_layout", &class_layout);
  m.def("rows_per_block", &rows_per_block_for);
  m.def("blocks", &blocks_for);
  m.def("key", &key_of);
  m.def("comes_before", &comes_before);
  m.def("count_shared_bytes", &count_shared_bytes);
  m.attr("most_classes") = most_classes;
}
