// What the operators over rows of logits share on the host's side.
#pragma once

#include "cuda/row.h"
#include "cuda/tensors.h"

namespace icckd::cuda {

// One float32 number for every row, contiguous.
inline Tensor per_row(const Tensor& x, int64_t count, const char* name) {
  check_dtype(x, ScalarType::Float, name);
  const Tensor dense = torch::stable::contiguous(x);
  check_tensor(dense, {count}, name);
  return dense;
}

// (count, classes) logits of any strides.
inline Matrix matrix_of(const Tensor& x, int64_t count, int64_t classes, const char* name) {
  constexpr int64_t most_classes = 1 << 30;  // the kernels count them in 32 bits
  STD_TORCH_CHECK(x.is_cuda(), name, " should be on a CUDA device");
  STD_TORCH_CHECK(x.dim() == 2 && x.size(0) == count && x.size(1) == classes, name, " should be (", count, ", ", classes, ")");
  STD_TORCH_CHECK(classes > 0 && classes <= most_classes, name, " has ", classes, " classes; it should have 1 … ", most_classes);
  return describe(x.const_data_ptr(), count, classes, x.stride(0), x.stride(1), static_cast<int>(x.element_size()));
}

inline int shared_limit_of(const Tensor& x) {
  return device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, x);
}

// One block for every `plan.rows` rows.
template <class Params>
void launch_rows(const Tensor& on, void (*kernel)(Params), const Params& params) {
  if (params.count == 0) return;
  const int64_t blocks = (params.count - 1) / params.plan.rows + 1;
  STD_TORCH_CHECK(blocks <= std::numeric_limits<int32_t>::max(), "there are too many rows: ", params.count);
  const OnDevice device(on);
  device.launch(kernel, dim3(static_cast<unsigned>(blocks)), params.plan.threads, params.plan.shared_bytes, params);
}

}  // namespace icckd::cuda
