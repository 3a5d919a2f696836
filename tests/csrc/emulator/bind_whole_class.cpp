// The whole-class kernel and its schedule for tests.

#include <pybind11/stl.h>

#include <tuple>
#include <vector>

#include "bind.h"
#include "cuda/whole_class.h"

namespace icckd::cuda {
namespace {

using emulator::Buffer;
using emulator::Timing;

template <class E, int rows>
void run(const WholeClassParams& params, int blocks, Timing timing) {
  using Kernel = WholeClass<E, rows, by_warpgroups<E, rows>>;
  emulator::launch({.blocks = blocks, .threads = Kernel::threads, .shared_bytes = params.plan.bytes}, timing,
                   [&] { Kernel(params).run(); });
}

template <class T>
T* wanted(Buffer& x) {
  return x ? x.mutable_data<T>() : nullptr;
}

// anchor and positive: buffers whose rows begin at `offset` and are `stride` elements apart.
template <class E>
void whole_class(Buffer anchor, Buffer positive, int offset, int64_t anchor_stride, int64_t positive_stride, int dim, Buffer weight,
                 Buffer scale, Buffer upstream, Buffer temperature, Buffer order, Buffer rank, Buffer start, Buffer size, Buffer active,
                 Buffer totals, int limit, int shared_limit, int blocks, bool normalize, bool exact, Buffer losses, Buffer lse,
                 Buffer d_anchor, Buffer d_positive, Buffer d_kappa, Timing timing) {
  WholeClassParams params{
      .anchor = anchor.data<E>() + offset,
      .positive = positive.data<E>() + offset,
      .anchor_stride = anchor_stride,
      .positive_stride = positive_stride,
      .dim = dim,
      .weight = weight.data<float>(),
      .scale = scale.data<float>(),
      .upstream = upstream.data<float>(),
      .temperature = temperature.data<float>(),
      .order = order.data<int32_t>(),
      .active = active.data<int32_t>(),
      .totals = totals.data<int32_t>(),
      .classes = {.rank = rank.data<int32_t>(), .start = start.data<int32_t>(), .size = size.data<int32_t>()},
      .losses = wanted<float>(losses),
      .lse = wanted<float>(lse),
      .d_kappa = wanted<float>(d_kappa),
      .d_anchor = wanted<E>(d_anchor),
      .d_positive = wanted<E>(d_positive),
      .normalize = normalize,
      .aligned = false,
      .exact = exact,
      .plan = plan_whole_class(limit, dim, sizeof(E), shared_limit),
  };
  params.aligned = rows_are_aligned(params, sizeof(E));
  if (params.plan.rows == 0) throw std::runtime_error("no tile of this size fits");
  if (limit == 32) run<E, 32>(params, blocks, timing);
  if (limit == 64) run<E, 64>(params, blocks, timing);
  if (limit == 96) run<E, 96>(params, blocks, timing);
  if (limit == 128) run<E, 128>(params, blocks, timing);
}

// The tiles of every block: (block, begin, end).
std::vector<std::tuple<int, int, int>> tiles(const std::vector<int>& rank, const std::vector<int>& start, const std::vector<int>& size,
                                             int first, int labelled, int rows, int blocks) {
  std::vector<std::tuple<int, int, int>> result;
  const RankedClasses classes{rank.data(), start.data(), size.data()};
  for (int block = 0; block < blocks; ++block) {
    const Positions share = share_of(block, blocks, first, classes, labelled);
    for (int begin = share.begin; begin < share.end;) {
      const int end = tile_end(begin, share.end, rows, classes);
      result.emplace_back(block, begin, end);
      if (end <= begin) throw std::runtime_error("a tile without rows");
      begin = end;
    }
  }
  return result;
}

// Where the numbers end, the other parts of shared memory begin, and its size; empty where nothing fits.
std::vector<int> plan(int rows, int dim, int element_bytes, int shared_limit) {
  const WholeClassPlan p = plan_whole_class(rows, dim, element_bytes, shared_limit);
  if (p.rows == 0) return {};
  return {numbers_bytes(rows), bounce_at(rows), operand_at(rows), p.bytes};
}

}  // namespace
}  // namespace icckd::cuda

ICCKD_MODULE(m) {
  using namespace icckd;
  using namespace icckd::cuda;
  m.def("whole_class_bfloat16", &whole_class<bfloat16>);
  m.def("whole_class_float16", &whole_class<float16>);
  m.def("whole_class_float32", &whole_class<float>);
  m.def("tiles", &tiles);
  m.def("plan", &plan);
  m.def("tile_rows_for", &tile_rows_for);
}
