// What the operators over rows of logits share.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/logits.h"
#include "cpu/parallel.h"
#include "cpu/tensors.h"

namespace icckd {

// One float32 number for every row, contiguous.
inline Tensor per_row(const Tensor& x, int64_t count, const char* name) {
  check_shape(x, {count}, name);
  check_dtype(x, ScalarType::Float, name);
  return torch::stable::contiguous(x);
}

inline Logits logits_of(const Tensor& x, const char* name) {
  return {element_of(x, name), x.const_data_ptr(), x.stride(0), x.stride(1)};
}

// How long a row of scratch is: whole registers of any instruction set.
inline int64_t scratch_length(int64_t classes) {
  return (classes + 15) / 16 * 16;
}

// Calls run(begin, end, scratch) for blocks of rows that cover [0, count), each of enough work to be worth handing to a thread.
// `scratch` holds `scratch_rows` rows.
template <class Run>
void parallel_rows(int64_t count, int64_t classes, int64_t scratch_rows, const Run& run) {
  const int64_t block = std::max<int64_t>(1, 32768 / classes), units = (count + block - 1) / block;
  const int64_t length = scratch_rows * scratch_length(classes);
  std::vector<float> scratch(worker_count(units) * length);
  parallel_units(units, [&](int64_t unit, int64_t worker) {
    run(unit * block, std::min(count, (unit + 1) * block), scratch.data() + worker * length);
  });
}

}  // namespace icckd
