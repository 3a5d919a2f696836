// The operators of a memory bank: docs/architecture.md.
#include <torch/csrc/stable/library.h>

#include <atomic>

#include "cpu/bank_kernel.h"
#include "cpu/rows.h"

namespace icckd {
namespace {

// Products, and columns of sums, in a work unit: enough to be worth handing to a thread.
constexpr int64_t products_of_unit = 2048, columns_of_unit = 128;

// A bank and the indices of `queries` queries into it, in the layout that kernels read.
struct Bank {
  Tensor rows, index;
  BankJob job;

  Bank(const Tensor& bank, const Tensor& given, int64_t queries) {
    STD_TORCH_CHECK(bank.dim() == 2, "bank has ", bank.dim(), " dimensions; it should have 2");
    STD_TORCH_CHECK(given.dim() == 2, "index has ", given.dim(), " dimensions; it should have 2");
    check_shape(bank, {bank.size(0), bank.size(1)}, "bank");
    check_shape(given, {queries, given.size(1)}, "index");
    check_dtype(given, ScalarType::Long, "index");
    rows = bank.stride(1) == 1 ? bank : torch::stable::contiguous(bank);
    index = torch::stable::contiguous(given);
    job = {
        .element = element_of(rows, "bank"),
        .bank = rows.const_data_ptr(),
        .row_stride = rows.stride(0),
        .rows = rows.size(0),
        .dim = rows.size(1),
        .index = index.const_data_ptr<int64_t>(),
        .count = index.size(1),
    };
  }
};

// Calls run(query, part, worker) for every query and every part; where one returns false an index names no row of the bank.
template <class Run>
void parallel_parts(int64_t queries, int64_t parts, int64_t rows, const Run& run) {
  std::atomic<bool> right{true};
  parallel_units(queries * parts, [&](int64_t unit, int64_t worker) {
    if (!run(unit / parts, unit % parts, worker)) right = false;
  });
  STD_TORCH_CHECK(right, "index holds an index that is not in [0, ", rows, ")");
}

Tensor bank_products(const Tensor& query, const Tensor& bank, const Tensor& index) {
  STD_TORCH_CHECK(query.dim() == 2, "query has ", query.dim(), " dimensions; it should have 2");
  const Bank b(bank, index, query.size(0));
  check_shape(query, {query.size(0), b.job.dim}, "query");
  const Queries queries{
      .element = element_of(query, "query"),
      .data = query.const_data_ptr(),
      .row_stride = query.stride(0),
      .column_stride = query.stride(1),
  };
  Tensor products = empty({query.size(0), b.job.count}, ScalarType::Float);
  const int64_t parts = (b.job.count + products_of_unit - 1) / products_of_unit, length = scratch_length(b.job.dim);
  std::vector<float> scratch(worker_count(query.size(0) * parts) * length);
  float* result = products.mutable_data_ptr<float>();
  parallel_parts(query.size(0), parts, b.job.rows, [&](int64_t i, int64_t part, int64_t worker) {
    const int64_t begin = part * products_of_unit, end = std::min(b.job.count, begin + products_of_unit);
    return ICCKD_DISPATCH(bank_products(b.job, queries, i, begin, end, result, scratch.data() + worker * length));
  });
  return products;
}

Tensor bank_sums(const Tensor& weight, const Tensor& bank, const Tensor& index) {
  STD_TORCH_CHECK(weight.dim() == 2, "weight has ", weight.dim(), " dimensions; it should have 2");
  const Bank b(bank, index, weight.size(0));
  check_shape(weight, {weight.size(0), b.job.count}, "weight");
  check_dtype(weight, ScalarType::Float, "weight");
  const Tensor dense = torch::stable::contiguous(weight);
  Tensor sums = empty({weight.size(0), b.job.dim}, ScalarType::Float);
  const int64_t parts = (b.job.dim + columns_of_unit - 1) / columns_of_unit;
  const float* factors = dense.const_data_ptr<float>();
  float* result = sums.mutable_data_ptr<float>();
  parallel_parts(weight.size(0), parts, b.job.rows, [&](int64_t i, int64_t part, int64_t) {
    const int64_t begin = part * columns_of_unit, end = std::min(b.job.dim, begin + columns_of_unit);
    return ICCKD_DISPATCH(bank_sums(b.job, factors, i, begin, end, result));
  });
  return sums;
}

}  // namespace
}  // namespace icckd

STABLE_TORCH_LIBRARY_IMPL(icckd_native, CPU, m) {
  m.impl("bank_products", TORCH_BOX(&icckd::bank_products));
  m.impl("bank_sums", TORCH_BOX(&icckd::bank_sums));
}
