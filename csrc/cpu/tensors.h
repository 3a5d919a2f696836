// What the CPU operators check about their tensors, and how they allocate.
//
// The Python layer has told the user about wrong arguments already; these checks keep a wrong call from crashing.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdint>
#include <cstdlib>
#include <initializer_list>

#include "cpu/element.h"

namespace icckd {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline void check_shape(const Tensor& x, std::initializer_list<int64_t> shape, const char* name) {
  STD_TORCH_CHECK(x.is_cpu(), name, " should be on the CPU");
  STD_TORCH_CHECK(x.dim() == static_cast<int64_t>(shape.size()), name, " has ", x.dim(), " dimensions; it should have ", shape.size());
  int64_t dim = 0;
  for (int64_t wanted : shape) {
    STD_TORCH_CHECK(x.size(dim) == wanted, name, " has size ", x.size(dim), " in dimension ", dim, "; it should have ", wanted);
    ++dim;
  }
}

inline void check_dtype(const Tensor& x, ScalarType dtype, const char* name) {
  STD_TORCH_CHECK(x.scalar_type() == dtype, name, " has the wrong dtype");
}

inline Element element_of(const Tensor& x, const char* name) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return Element::float32;
    case ScalarType::BFloat16: return Element::bfloat16;
    case ScalarType::Half: return Element::float16;
    default: STD_TORCH_CHECK(false, name, " should be float32, bfloat16 or float16");
  }
}

// Lets glibc keep what tensors leave for the next ones. It gives freed memory back to the system beyond twice the largest block that
// was ever freed, of those up to 32 MiB: two gradients of one size come and go with every step, and each time anew costs page faults, which
// can take longer than the kernels. A block that is freed untouched sets its bound to 64 MiB, and costs nothing.
inline void keep_freed_memory() {
#if defined(__GLIBC__)
  [[maybe_unused]] static const bool done = [] {
    void* volatile block = std::malloc((32 << 20) - (64 << 10));
    std::free(block);
    return true;
  }();
#endif
}

// Uninitialised, on the CPU. Large memory is asked for in huge pages, as numpy does: fresh small ones cost as much time as the
// kernels that fill them.
inline Tensor empty(std::initializer_list<int64_t> shape, ScalarType dtype) {
  keep_freed_memory();
  Tensor x = torch::stable::empty({shape.begin(), shape.size()}, dtype);
#if defined(__linux__)
  constexpr uintptr_t page = 4096, large = 4 << 20;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(x.mutable_data_ptr()), bytes = x.numel() * x.element_size();
  if (bytes >= large) madvise(reinterpret_cast<void*>((begin + page - 1) / page * page), bytes - page, MADV_HUGEPAGE);
#endif
  return x;
}

// A 0-dim float32 tensor.
inline Tensor scalar(double value) {
  Tensor x = empty({}, ScalarType::Float);
  *x.mutable_data_ptr<float>() = static_cast<float>(value);
  return x;
}

}  // namespace icckd
