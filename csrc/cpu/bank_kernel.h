#pragma once

#include <cstdint>

#include "cpu/dispatch.h"
#include "cpu/element.h"

namespace icckd {

struct BankRows {
  Element element;
  const void* data;  // row i, column c: element i · stride + c
  int64_t stride, count, dim;
};

// That a query uses a row of the bank, as which of its indices.
struct Use {
  int32_t row, place;
};

ICCKD_DECLARE_KERNELS(
    // A query as floats, padded by zeros to whole registers.
    void read_query(Element element, const void* query, int64_t stride, int64_t dim, float* row);
    // products[use.place] = query · the row of each use.
    void bank_products(const BankRows& bank, const float* query, const Use* uses, int64_t count, float* products);
    // sums[c] += Σ weight[use.place] · column c of the row of each use.
    void bank_sums(const BankRows& bank, const float* weight, const Use* uses, int64_t count, float* sums);)

}  // namespace icckd
