// The operators of a memory bank: docs/architecture.md.
//
// A query's indices name rows anywhere in the bank, which as a rule is larger than the cache next to a processor. Where several
// queries of a work unit use the same rows, their uses are sorted by tiles of the bank, and all of a tile's are done while it is
// in that cache:
//
//     sorted      for each query            4 + 4 bytes a use, written once and read once
//     computed    for each tile, for each query its uses of that tile
//
// The order of a query's additions depends on the bank's tiles alone, neither on threads nor on other queries.
#include <torch/csrc/stable/library.h>

#include <atomic>
#include <bit>
#include <limits>

#include "cpu/bank_kernel.h"
#include "cpu/rows.h"

namespace icckd {
namespace {

// Of a tile: half of a small second-level cache; and how few uses by one query are not worth a loop of their own.
constexpr int64_t tile_bytes = 512 << 10, least_uses = 16;

int64_t element_size(Element element) {
  return element == Element::float32 ? 4 : 2;
}

// A bank and the indices of queries into it, in the layout that kernels read.
struct Bank {
  Tensor dense, index;
  BankRows rows;
  int64_t queries, count;  // and the indices of each query
  int shift;               // row i is in tile i >> shift
  int64_t tiles;

  Bank(const Tensor& bank, const Tensor& given, int64_t queries) : queries(queries) {
    STD_TORCH_CHECK(bank.dim() == 2, "bank has ", bank.dim(), " dimensions; it should have 2");
    STD_TORCH_CHECK(given.dim() == 2, "index has ", given.dim(), " dimensions; it should have 2");
    check_shape(bank, {bank.size(0), bank.size(1)}, "bank");
    check_shape(given, {queries, given.size(1)}, "index");
    check_dtype(given, ScalarType::Long, "index");
    constexpr int64_t most = std::numeric_limits<int32_t>::max();
    STD_TORCH_CHECK(bank.size(0) <= most && given.size(1) <= most, "bank and index should have at most ", most, " rows and columns");
    dense = bank.stride(1) == 1 ? bank : torch::stable::contiguous(bank);
    index = torch::stable::contiguous(given);
    count = index.size(1);
    rows = {element_of(dense, "bank"), dense.const_data_ptr(), dense.stride(0), dense.size(0), dense.size(1)};
    const int64_t row_bytes = std::max<int64_t>(1, rows.dim * element_size(rows.element));
    shift = std::bit_width(static_cast<uint64_t>(std::max<int64_t>(1, tile_bytes / row_bytes))) - 1;
    tiles = (rows.count + (int64_t{1} << shift) - 1) >> shift;
    if (count < least_uses * tiles) {
      shift = 31;
      tiles = 1;
    }
  }

  // Sorts the uses of query q by tiles: those of tile t are uses[start[t]] … uses[start[t + 1] − 1]. False where an index names
  // no row.
  bool sort(int64_t q, Use* uses, int64_t* start) const {
    const int64_t* row = index.const_data_ptr<int64_t>() + q * count;
    uint64_t highest = 0;  // a negative index is larger than any
    for (int64_t k = 0; k < count; ++k) highest = std::max(highest, static_cast<uint64_t>(row[k]));
    if (count > 0 && highest >= static_cast<uint64_t>(rows.count)) return false;
    std::fill_n(start, tiles + 1, 0);
    for (int64_t k = 0; k < count; ++k) ++start[(row[k] >> shift) + 1];
    for (int64_t t = 0; t < tiles; ++t) start[t + 1] += start[t];
    for (int64_t k = 0; k < count; ++k) uses[start[row[k] >> shift]++] = {static_cast<int32_t>(row[k]), static_cast<int32_t>(k)};
    for (int64_t t = tiles; t > 0; --t) start[t] = start[t - 1];
    start[0] = 0;
    return true;
  }
};

// Calls prepare(q, own) for every query, and then run(q, own, uses, count) for its uses of each tile. `own` numbers the queries
// that a worker has in hand at a time, from worker · queries_in_hand on.
struct Schedule {
  int64_t per_unit, units;

  explicit Schedule(int64_t queries) {
    // Two units a thread, for threads that are held up.
    const int64_t wanted = 2 * torch::stable::get_num_threads();
    per_unit = std::max<int64_t>(1, (queries + wanted - 1) / wanted);
    units = (queries + per_unit - 1) / per_unit;
  }

  int64_t in_hand() const {
    return worker_count(units) * per_unit;
  }

  template <class Prepare, class Run>
  void go(const Bank& bank, const Prepare& prepare, const Run& run) const {
    std::vector<Use> uses(in_hand() * bank.count);
    std::vector<int64_t> start(in_hand() * (bank.tiles + 1));
    std::atomic<bool> right{true};
    parallel_units(units, [&](int64_t unit, int64_t worker) {
      const int64_t first = unit * per_unit, end = std::min(bank.queries, first + per_unit), own = worker * per_unit - first;
      for (int64_t q = first; q < end; ++q) {
        if (!bank.sort(q, uses.data() + (own + q) * bank.count, start.data() + (own + q) * (bank.tiles + 1))) {
          right = false;
          return;
        }
        prepare(q, own + q);
      }
      for (int64_t t = 0; t < bank.tiles; ++t)
        for (int64_t q = first; q < end; ++q) {
          const int64_t* bounds = start.data() + (own + q) * (bank.tiles + 1) + t;
          run(q, own + q, uses.data() + (own + q) * bank.count + bounds[0], bounds[1] - bounds[0]);
        }
    });
    STD_TORCH_CHECK(right, "index holds an index that is not in [0, ", bank.rows.count, ")");
  }
};

Tensor bank_products(const Tensor& query, const Tensor& bank, const Tensor& index) {
  STD_TORCH_CHECK(query.dim() == 2, "query has ", query.dim(), " dimensions; it should have 2");
  const Bank b(bank, index, query.size(0));
  check_shape(query, {b.queries, b.rows.dim}, "query");
  const Element element = element_of(query, "query");
  const char* queries = static_cast<const char*>(query.const_data_ptr());
  const int64_t query_bytes = query.stride(0) * element_size(element), length = scratch_length(b.rows.dim);
  Tensor products = empty({b.queries, b.count}, ScalarType::Float);
  float* result = products.mutable_data_ptr<float>();
  const Schedule schedule(b.queries);
  std::vector<float> scratch(schedule.in_hand() * length);
  schedule.go(
      b,
      [&](int64_t q, int64_t own) {
        float* row = scratch.data() + own * length;
        ICCKD_DISPATCH(read_query(element, queries + q * query_bytes, query.stride(1), b.rows.dim, row));
      },
      [&](int64_t q, int64_t own, const Use* uses, int64_t count) {
        ICCKD_DISPATCH(bank_products(b.rows, scratch.data() + own * length, uses, count, result + q * b.count));
      });
  return products;
}

Tensor bank_sums(const Tensor& weight, const Tensor& bank, const Tensor& index) {
  STD_TORCH_CHECK(weight.dim() == 2, "weight has ", weight.dim(), " dimensions; it should have 2");
  const Bank b(bank, index, weight.size(0));
  check_shape(weight, {b.queries, b.count}, "weight");
  check_dtype(weight, ScalarType::Float, "weight");
  const Tensor dense = torch::stable::contiguous(weight);
  const float* factors = dense.const_data_ptr<float>();
  Tensor sums = empty({b.queries, b.rows.dim}, ScalarType::Float);
  float* result = sums.mutable_data_ptr<float>();
  Schedule(b.queries).go(
      b, [&](int64_t q, int64_t) { std::fill_n(result + q * b.rows.dim, b.rows.dim, 0.0f); },
      [&](int64_t q, int64_t, const Use* uses, int64_t count) {
        ICCKD_DISPATCH(bank_sums(b.rows, factors + q * b.count, uses, count, result + q * b.rows.dim));
      });
  return sums;
}

}  // namespace
}  // namespace icckd

STABLE_TORCH_LIBRARY_IMPL(icckd_native, CPU, m) {
  m.impl("bank_products", TORCH_BOX(&icckd::bank_products));
  m.impl("bank_sums", TORCH_BOX(&icckd::bank_sums));
}
