// The whole-class kernel as an operator: checks, the tile, the launch.
//
//   whole_class_limit   the largest class that a tile holds, hence the limit that the layout is made with; 0: rows are too long
//   whole_class         outputs of all rows in classes of up to `limit` rows; others are left as they are
//
// An output that is null is not wanted. losses and lse are written together: the weighted loss and the log-sum-exp of anchors, 0 of other
// rows. Gradients are those of Σ upstream · losses, or of Σ losses without upstream; d_kappa is κ's by row. No losses with upstream.

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <initializer_list>
#include <optional>

#include "cuda/whole_class.h"

namespace icckd::cuda {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// What registers suffice for without spilling: C of the largest tile takes many, less so where wgmma shares out its columns.
template <class E, int rows>
constexpr int blocks_at_least = rows == 32 ? 6 : rows == 64 ? 3 : by_warpgroups<E, rows> ? 2 : 1;

template <class E, int rows>
__global__ void __launch_bounds__(2 * rows, blocks_at_least<E, rows>) whole_class_kernel(const __grid_constant__ WholeClassParams params) {
  WholeClass<E, rows, ICCKD_HAS_BULK, by_warpgroups<E, rows>>(params).run();
}

using Kernel = void (*)(WholeClassParams);

template <class E>
Kernel kernel_for(int rows) {
  switch (rows) {
    case 32: return whole_class_kernel<E, 32>;
    case 64: return whole_class_kernel<E, 64>;
    default: return whole_class_kernel<E, 128>;
  }
}

Kernel kernel_for(ScalarType element, int rows) {
  switch (element) {
    case ScalarType::BFloat16: return kernel_for<bfloat16>(rows);
    case ScalarType::Half: return kernel_for<float16>(rows);
    default: return kernel_for<float>(rows);
  }
}

void check(cudaError_t error) { STD_TORCH_CHECK(error == cudaSuccess, "whole_class: ", cudaGetErrorString(error)); }

int attribute_of(int device, cudaDeviceAttr attribute) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, attribute, device));
  return value;
}

int shared_limit_of(const Tensor& x) { return attribute_of(x.get_device_index(), cudaDevAttrMaxSharedMemoryPerBlockOptin); }

void check_tensor(const Tensor& x, ScalarType type, std::initializer_list<int64_t> shape, const char* name) {
  STD_TORCH_CHECK(x.is_cuda(), name, " should be on a GPU");
  STD_TORCH_CHECK(x.scalar_type() == type, name, " has the wrong dtype");
  STD_TORCH_CHECK(x.dim() == static_cast<int64_t>(shape.size()), name, " has ", x.dim(), " dimensions; it should have ", shape.size());
  int64_t dim = 0;
  for (int64_t wanted : shape) {
    STD_TORCH_CHECK(x.size(dim) == wanted, name, " has size ", x.size(dim), " in dimension ", dim, "; it should have ", wanted);
    ++dim;
  }
}

// The data of a contiguous tensor of this shape, or null of none.
template <class T>
T* data_of(const OptionalTensor& x, ScalarType type, std::initializer_list<int64_t> shape, const char* name) {
  if (!x) return nullptr;
  check_tensor(*x, type, shape, name);
  STD_TORCH_CHECK(x->is_contiguous(), name, " should be contiguous");
  return static_cast<T*>(x->data_ptr());
}

void launch(Kernel kernel, const WholeClassParams& params, int64_t row_count, int device) {
  const int threads = params.plan.rows * 2;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, params.plan.bytes));
  int per_multiprocessor = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_multiprocessor, kernel, threads, params.plan.bytes));
  STD_TORCH_CHECK(per_multiprocessor > 0, "whole_class: no multiprocessor has room for a tile of ", params.plan.rows, " rows");
  const int64_t resident = per_multiprocessor * attribute_of(device, cudaDevAttrMultiProcessorCount);
  // No more blocks than have 16 rows each: of few rows, many multiprocessors compute a few.
  const int64_t blocks = std::min(resident, (row_count + warp_rows - 1) / warp_rows);
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  kernel<<<static_cast<unsigned>(blocks), threads, params.plan.bytes, static_cast<cudaStream_t>(stream)>>>(params);
  check(cudaGetLastError());
}

int64_t whole_class_limit(const Tensor& anchor, std::optional<int64_t> num_classes) {
  STD_TORCH_CHECK(anchor.is_cuda() && anchor.dim() == 2, "anchor should be a matrix on a GPU");
  const int64_t expected = num_classes && *num_classes > 0 ? (anchor.size(0) + *num_classes - 1) / *num_classes : 0;
  const int dim = static_cast<int>(std::min<int64_t>(anchor.size(1), INT32_MAX));
  return tile_rows_for(dim, static_cast<int>(anchor.element_size()), shared_limit_of(anchor),
                       static_cast<int>(std::min<int64_t>(expected, 1 << 20)));
}

void whole_class(const Tensor& anchor, const Tensor& positive, const Tensor& weight, const OptionalTensor& upstream,
                 const Tensor& temperature, const Tensor& order, const Tensor& rank, const Tensor& start, const Tensor& size,
                 const Tensor& active, const Tensor& totals, int64_t limit, bool normalize, bool allow_tf32, OptionalTensor losses,
                 OptionalTensor lse, OptionalTensor d_anchor, OptionalTensor d_positive, OptionalTensor d_kappa) {
  STD_TORCH_CHECK(anchor.dim() == 2, "anchor has ", anchor.dim(), " dimensions; it should have 2");
  const int64_t rows = anchor.size(0), dim = anchor.size(1), ranks = start.size(0);
  const ScalarType element = anchor.scalar_type();
  STD_TORCH_CHECK(element == ScalarType::Float || element == ScalarType::BFloat16 || element == ScalarType::Half,
                  "anchor should be float32, bfloat16 or float16");
  STD_TORCH_CHECK(rows <= INT32_MAX, "anchor has too many rows");
  for (const Tensor* x : {&anchor, &positive}) {
    check_tensor(*x, element, {rows, dim}, "a matrix of features");
    STD_TORCH_CHECK(x->stride(1) == 1 || dim == 1, "rows of features should be contiguous");
  }
  STD_TORCH_CHECK(losses.has_value() == lse.has_value(), "losses and lse are wanted together");
  STD_TORCH_CHECK(!losses || !upstream, "losses are not computed with upstream");
  const std::initializer_list<int64_t> per_row = {rows}, per_rank = {ranks};
  WholeClassParams params{
      .anchor = anchor.data_ptr(),
      .positive = positive.data_ptr(),
      .anchor_stride = anchor.stride(0),
      .positive_stride = positive.stride(0),
      .dim = static_cast<int>(std::min<int64_t>(dim, INT32_MAX)),
      .weight = data_of<float>(weight, ScalarType::Float, per_row, "weight"),
      .upstream = data_of<float>(upstream, ScalarType::Float, per_row, "upstream"),
      .temperature = data_of<float>(temperature, ScalarType::Float, {}, "temperature"),
      .order = data_of<int32_t>(order, ScalarType::Int, per_row, "order"),
      .active = data_of<int32_t>(active, ScalarType::Int, per_rank, "active"),
      .totals = data_of<int32_t>(totals, ScalarType::Int, {4}, "totals"),
      .classes = {.rank = data_of<int32_t>(rank, ScalarType::Int, per_row, "rank"),
                  .start = data_of<int32_t>(start, ScalarType::Int, per_rank, "start"),
                  .size = data_of<int32_t>(size, ScalarType::Int, per_rank, "size")},
      .losses = data_of<float>(losses, ScalarType::Float, per_row, "losses"),
      .lse = data_of<float>(lse, ScalarType::Float, per_row, "lse"),
      .d_kappa = data_of<float>(d_kappa, ScalarType::Float, per_row, "d_kappa"),
      .d_anchor = data_of<void>(d_anchor, element, {rows, dim}, "d_anchor"),
      .d_positive = data_of<void>(d_positive, element, {rows, dim}, "d_positive"),
      .normalize = normalize,
      .aligned = false,
      .exact = !allow_tf32,
      .plan = {},
  };
  const int64_t element_bytes = static_cast<int64_t>(anchor.element_size());
  params.aligned = rows_are_aligned(params, element_bytes);
  params.plan = plan_whole_class(static_cast<int>(limit), params.dim, static_cast<int>(element_bytes), shared_limit_of(anchor));
  STD_TORCH_CHECK(std::ranges::count(tile_sizes, limit) == 1 && params.plan.rows > 0, "limit is ", limit,
                  "; it should be what whole_class_limit says");
  if (rows == 0 || ranks == 0) return;
  const torch::stable::accelerator::DeviceGuard guard(anchor.get_device_index());
  launch(kernel_for(element, params.plan.rows), params, rows, anchor.get_device_index());
}

}  // namespace
}  // namespace icckd::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(icckd_cuda, m) {
  m.def("whole_class_limit(Tensor anchor, int? num_classes) -> int");
  m.def(
      "whole_class(Tensor anchor, Tensor positive, Tensor weight, Tensor? upstream, Tensor temperature, Tensor order, Tensor rank, "
      "Tensor start, Tensor size, Tensor active, Tensor totals, int limit, bool normalize, bool allow_tf32, "
      "Tensor(a!)? losses, Tensor(b!)? lse, Tensor(c!)? d_anchor, Tensor(d!)? d_positive, Tensor(e!)? d_kappa) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(icckd_cuda, CUDA, m) {
  m.impl("whole_class_limit", TORCH_BOX(&icckd::cuda::whole_class_limit));
  m.impl("whole_class", TORCH_BOX(&icckd::cuda::whole_class));
}
