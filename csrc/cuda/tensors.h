// What the CUDA operators check about their tensors, how they allocate, and how they start a kernel. For the host's side of *.cu.
//
// Nothing here waits for the GPU, and memory comes from PyTorch's allocator, so that operators can be captured in a CUDA graph.
// Tensors are contiguous; the Python layer has told the user about wrong arguments already.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <initializer_list>

#include "cpu/element.h"

namespace icckd::cuda {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline void check_cuda(cudaError_t error) {
  STD_TORCH_CHECK(error == cudaSuccess, "CUDA: ", cudaGetErrorString(error));
}

inline void check_dtype(const Tensor& x, ScalarType dtype, const char* name) {
  STD_TORCH_CHECK(x.scalar_type() == dtype, name, " has the wrong dtype");
}

// Contiguous, on a GPU, and of this shape.
inline void check_tensor(const Tensor& x, std::initializer_list<int64_t> shape, const char* name) {
  STD_TORCH_CHECK(x.is_cuda(), name, " should be on a CUDA device");
  STD_TORCH_CHECK(x.is_contiguous(), name, " should be contiguous");
  STD_TORCH_CHECK(x.dim() == static_cast<int64_t>(shape.size()), name, " has ", x.dim(), " dimensions; it should have ", shape.size());
  int64_t dim = 0;
  for (int64_t wanted : shape) {
    STD_TORCH_CHECK(x.size(dim) == wanted, name, " has size ", x.size(dim), " in dimension ", dim, "; it should have ", wanted);
    ++dim;
  }
}

inline Element element_of(const Tensor& x, const char* name) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return Element::float32;
    case ScalarType::BFloat16: return Element::bfloat16;
    case ScalarType::Half: return Element::float16;
    default: STD_TORCH_CHECK(false, name, " should be float32, bfloat16 or float16");
  }
}

// Uninitialised, on the device of `like`.
inline Tensor empty(std::initializer_list<int64_t> shape, ScalarType dtype, const Tensor& like) {
  return torch::stable::empty({shape.begin(), shape.size()}, dtype, std::nullopt, like.device());
}

inline int device_attribute(cudaDeviceAttr attribute, const Tensor& x) {
  int value = 0;
  check_cuda(cudaDeviceGetAttribute(&value, attribute, x.get_device_index()));
  return value;
}

// Makes the device of `x` the current one for a scope, and knows the stream to work on.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& x) : guard_(x.get_device_index()) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  cudaStream_t stream() const { return stream_; }

  template <class Params>
  void launch(void (*kernel)(Params), dim3 blocks, int threads, int shared_bytes, const Params& params) const {
    constexpr int without_asking = 48 << 10;
    if (shared_bytes > without_asking)
      check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
    kernel<<<blocks, threads, shared_bytes, stream_>>>(params);
    check_cuda(cudaGetLastError());
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
};

}  // namespace icckd::cuda
