// The whole-class kernel as operators.
//
//   whole_class_limit   the rows of a tile, and so the largest class that the kernel computes; 0: rows are too long for it
//   whole_class         computes the rows of classes of up to `limit` rows, which the layout was made with; leaves others alone
//
// An output that is None is not wanted. losses, weight · scale · loss of anchors, and lse, their log-sum-exp, are wanted together; both are
// 0 of other rows. The gradients are those of Σ losses, or of Σ upstream · losses; losses are not computed with upstream. A weight, (N,),
// a scale, (1,), or an upstream, (N,), that is None is 1.
#include "cuda/whole_class.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <iterator>
#include <limits>
#include <optional>

#include "cuda/tensors.h"

namespace icckd::cuda {
namespace {

using OptionalTensor = std::optional<Tensor>;

// At most 128 registers a thread, or what leaves room for two blocks of 96 rows; more where C, in float32, takes them.
template <class E, int rows>
constexpr int blocks_at_least = sizeof(E) == 2 ? 256 / rows : rows > 64 ? 1 : 192 / rows;

template <class E, int rows>
__global__ void __launch_bounds__(2 * rows, blocks_at_least<E, rows>) whole_class_kernel(const __grid_constant__ WholeClassParams params) {
  WholeClass<E, rows, by_warpgroups<E, rows>>(params).run();
}

using Kernel = void (*)(WholeClassParams);

template <class E>
Kernel kernel_for(int rows) {
  switch (rows) {
    case 32: return whole_class_kernel<E, 32>;
    case 64: return whole_class_kernel<E, 64>;
    case 96: return whole_class_kernel<E, 96>;
    default: return whole_class_kernel<E, 128>;
  }
}

int shared_limit(const Tensor& x) { return device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, x); }

// The data of a tensor of this shape, or null of none.
template <class T>
T* data_of(const OptionalTensor& x, ScalarType dtype, std::initializer_list<int64_t> shape, const char* name) {
  if (!x) return nullptr;
  check_dtype(*x, dtype, name);
  check_tensor(*x, shape, name);
  return static_cast<T*>(x->mutable_data_ptr());
}

// Rows that may be far apart, but are not scattered themselves.
void check_rows(const Tensor& x, const Tensor& like, const char* name) {
  STD_TORCH_CHECK(x.is_cuda() && x.dim() == 2, name, " should be a matrix on a CUDA device");
  STD_TORCH_CHECK(x.size(0) == like.size(0) && x.size(1) == like.size(1), name, " should have the shape of anchor");
  STD_TORCH_CHECK(x.stride(1) == 1 || x.size(1) == 1, name, " should have stride 1 along its rows");
  check_dtype(x, like.scalar_type(), name);
}

void launch(const Tensor& anchor, const WholeClassParams& params) {
  Kernel kernel = nullptr;
  with_type(element_of(anchor, "anchor"), [&](auto element) { kernel = kernel_for<decltype(element)>(params.plan.rows); });
  const int threads = params.plan.rows / warp_rows * warp_size;
  const OnDevice device(anchor);
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, params.plan.bytes));
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared));
  int resident = 0;
  check_cuda(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, threads, params.plan.bytes));
  resident *= device_attribute(cudaDevAttrMultiProcessorCount, anchor);
  // A few rows each for many blocks, where rows are few.
  const int64_t busy = (anchor.size(0) + warp_rows - 1) / warp_rows;
  device.launch(kernel, dim3(static_cast<unsigned>(std::min<int64_t>(std::max(resident, 1), busy))), threads, params.plan.bytes, params);
}

int64_t whole_class_limit(const Tensor& anchor, std::optional<int64_t> num_classes) {
  check_rows(anchor, anchor, "anchor");
  constexpr int64_t most = 1 << 20;  // far more than any tile holds
  const int64_t expected = num_classes.value_or(0) > 0 ? (anchor.size(0) + *num_classes - 1) / *num_classes : 0;
  return tile_rows_for(static_cast<int>(std::min(anchor.size(1), most)), static_cast<int>(anchor.element_size()), shared_limit(anchor),
                       static_cast<int>(std::min(expected, most)));
}

void whole_class(const Tensor& anchor, const Tensor& positive, const OptionalTensor& weight, const OptionalTensor& scale,
                 const OptionalTensor& upstream, const Tensor& temperature, const Tensor& order, const Tensor& rank, const Tensor& start,
                 const Tensor& size, const Tensor& active, const Tensor& totals, int64_t limit, bool normalize, bool allow_tf32,
                 const OptionalTensor& losses, const OptionalTensor& lse, const OptionalTensor& d_anchor, const OptionalTensor& d_positive,
                 const OptionalTensor& d_kappa) {
  check_rows(anchor, anchor, "anchor");
  check_rows(positive, anchor, "positive");
  STD_TORCH_CHECK(losses.has_value() == lse.has_value(), "losses and lse should be wanted together");
  STD_TORCH_CHECK(!losses || !upstream, "losses are not computed with upstream");
  const int64_t count = anchor.size(0), dim = anchor.size(1), ranks = start.numel();
  STD_TORCH_CHECK(count <= std::numeric_limits<int32_t>::max(), "there are too many rows: ", count);
  const int element_bytes = static_cast<int>(anchor.element_size());
  const bool compiled = std::find(std::begin(tile_sizes), std::end(tile_sizes), limit) != std::end(tile_sizes);
  const WholeClassPlan plan = compiled ? plan_whole_class(static_cast<int>(limit), dim, element_bytes, shared_limit(anchor)) : WholeClassPlan{};
  STD_TORCH_CHECK(plan.rows > 0, "limit is ", limit, "; it should be what whole_class_limit says, and not 0");
  WholeClassParams params{
      .anchor = anchor.const_data_ptr(),
      .positive = positive.const_data_ptr(),
      .anchor_stride = anchor.stride(0),
      .positive_stride = positive.stride(0),
      .dim = static_cast<int>(dim),
      .weight = data_of<float>(weight, ScalarType::Float, {count}, "weight"),
      .scale = data_of<float>(scale, ScalarType::Float, {1}, "scale"),
      .upstream = data_of<float>(upstream, ScalarType::Float, {count}, "upstream"),
      .temperature = data_of<float>(temperature, ScalarType::Float, {}, "temperature"),
      .order = data_of<int32_t>(order, ScalarType::Int, {count}, "order"),
      .active = data_of<int32_t>(active, ScalarType::Int, {ranks}, "active"),
      .totals = data_of<int32_t>(totals, ScalarType::Int, {6}, "totals"),
      .classes = {.rank = data_of<int32_t>(rank, ScalarType::Int, {count}, "rank"),
                  .start = data_of<int32_t>(start, ScalarType::Int, {ranks}, "start"),
                  .size = data_of<int32_t>(size, ScalarType::Int, {ranks}, "size")},
      .losses = data_of<float>(losses, ScalarType::Float, {count}, "losses"),
      .lse = data_of<float>(lse, ScalarType::Float, {count}, "lse"),
      .d_kappa = data_of<float>(d_kappa, ScalarType::Float, {count}, "d_kappa"),
      .d_anchor = data_of<void>(d_anchor, anchor.scalar_type(), {count, dim}, "d_anchor"),
      .d_positive = data_of<void>(d_positive, anchor.scalar_type(), {count, dim}, "d_positive"),
      .normalize = normalize,
      .aligned = false,
      .exact = !allow_tf32,
      .plan = plan,
  };
  params.aligned = rows_are_aligned(params, element_bytes);
  if (count > 0 && ranks > 0) launch(anchor, params);
}

}  // namespace
}  // namespace icckd::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(icckd_cuda, m) {
  m.def("whole_class_limit(Tensor anchor, int? num_classes) -> int");
  m.def(
      "whole_class(Tensor anchor, Tensor positive, Tensor? weight, Tensor? scale, Tensor? upstream, Tensor temperature, Tensor order, "
      "Tensor rank, Tensor start, Tensor size, Tensor active, Tensor totals, int limit, bool normalize, bool allow_tf32, "
      "Tensor(a!)? losses, Tensor(b!)? lse, Tensor(c!)? d_anchor, Tensor(d!)? d_positive, Tensor(e!)? d_kappa) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(icckd_cuda, CUDA, m) {
  m.impl("whole_class_limit", TORCH_BOX(&icckd::cuda::whole_class_limit));
  m.impl("whole_class", TORCH_BOX(&icckd::cuda::whole_class));
}
