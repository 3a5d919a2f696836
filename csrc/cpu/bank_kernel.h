#pragma once

#include <cstdint>

#include "cpu/dispatch.h"
#include "cpu/element.h"

namespace icckd {

struct BankJob {
  Element element;
  const void* bank;  // row i, column c: element i · row_stride + c
  int64_t row_stride, rows, dim;
  const int64_t* index;  // (queries, count), contiguous
  int64_t count;
};

struct Queries {
  Element element;
  const void* data;  // query b, column c: element b · row_stride + c · column_stride
  int64_t row_stride, column_stride;
};

ICCKD_DECLARE_KERNELS(
    // products[b, k] for k in [begin, end), with a row of scratch. False, and nothing done, where an index names no row.
    bool bank_products(
        const BankJob& job, const Queries& queries, int64_t b, int64_t begin, int64_t end, float* products, float* scratch);
    // sums[b, c] of all k, for columns c in [begin, end). False, and nothing done, where an index names no row.
    bool bank_sums(const BankJob& job, const float* weight, int64_t b, int64_t begin, int64_t end, float* sums);)

}  // namespace icckd
