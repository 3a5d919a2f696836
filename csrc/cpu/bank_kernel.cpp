// Products with rows of a memory bank, and sums of such rows, for a query q and indices i_k:
//
//     products  y_k = Σ_c q_c bank[i_k, c]
//     sums      s_c = Σ_k w_k bank[i_k, c]
//
// Memory: each row is read once per use, count · dim · element size bytes a query, from the cache as far as that holds the bank,
// and nothing of it is written. Rows lie anywhere: those of the next group are asked for while one is computed. Work: a
// multiplication and an addition per number read.
//
//     products   a group of 8 rows × all columns      8 sums in registers, each of one row
//     sums       256 rows × 8 registers of columns    8 sums in registers, each of some columns; rounding errors grow with the
//                                                     number of such blocks
#include "cpu/bank_kernel.h"

#include <algorithm>

#include "cpu/row.h"

namespace icckd::ICCKD_ISA {
namespace {

constexpr int group = 8, most_vectors = 8;
constexpr int64_t block = 256, cache_line = 64;

bool all_within(const int64_t* index, int64_t count, int64_t rows) {
  uint64_t highest = 0;  // a negative index is larger than any
  for (int64_t k = 0; k < count; ++k) highest = std::max(highest, static_cast<uint64_t>(index[k]));
  return count == 0 || highest < static_cast<uint64_t>(rows);
}

template <class T>
const T* row_of(const BankJob& job, int64_t i) {
  return static_cast<const T*>(job.bank) + i * job.row_stride;
}

template <class T>
void prefetch(const T* x, int64_t count) {
  const char* bytes = reinterpret_cast<const char*>(x);
  for (int64_t at = 0; at < count * static_cast<int64_t>(sizeof(T)); at += cache_line) __builtin_prefetch(bytes + at);
}

template <int rows, class T>
void multiply_rows(const BankJob& job, const float* query, const int64_t* index, float* products) {
  const T* row[rows];
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) row[r] = row_of<T>(job, index[r]);
  Vec total[rows] = {};
  const int64_t whole = job.dim / width * width;
  for (int64_t c = 0; c < whole; c += width) {
    const Vec q = load(query + c);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) total[r] += q * load(row[r] + c);
  }
  if (whole < job.dim)
    for (int r = 0; r < rows; ++r) total[r] += load(query + whole) * load_first(row[r] + whole, job.dim - whole);
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) products[r] = sum(total[r]);
}

template <class T>
void multiply(const BankJob& job, const float* query, const int64_t* index, int64_t count, float* products) {
  int64_t k = 0;
  for (; k + group <= count; k += group) {
    const int64_t next = std::min(count, k + 2 * group);
    for (int64_t ahead = k + group; ahead < next; ++ahead) prefetch(row_of<T>(job, index[ahead]), job.dim);
    multiply_rows<group, T>(job, query, index + k, products + k);
  }
  for (; k < count; ++k) multiply_rows<1, T>(job, query, index + k, products + k);
}

// Columns c … c + vectors · width − 1, or where `rest` is not 0 its first `rest` ones.
template <int vectors, class T>
void add_rows(const BankJob& job, const int64_t* index, const float* weight, int64_t c, int64_t rest, float* sums) {
  constexpr int64_t columns = vectors * width;
  Vec total[vectors] = {};
  for (int64_t first = 0; first < job.count; first += block) {
    Vec part[vectors] = {};
    for (int64_t k = first, end = std::min(job.count, first + block); k < end; ++k) {
      if (k + group < job.count) prefetch(row_of<T>(job, index[k + group]) + c, rest ? rest : columns);
      const T* row = row_of<T>(job, index[k]) + c;
      const Vec w = splat(weight[k]);
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) part[v] += w * (rest ? load_first(row, rest) : load(row + v * width));
    }
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) total[v] += part[v];
  }
  if (rest) return store_first(sums + c, rest, total[0]);
  for (int v = 0; v < vectors; ++v) store(sums + c + v * width, total[v]);
}

template <class T>
void add(const BankJob& job, const int64_t* index, const float* weight, int64_t begin, int64_t end, float* sums) {
  using Add = void (*)(const BankJob&, const int64_t*, const float*, int64_t, int64_t, float*);
  static constexpr Add adds[most_vectors] = {add_rows<1, T>, add_rows<2, T>, add_rows<3, T>, add_rows<4, T>,
                                             add_rows<5, T>, add_rows<6, T>, add_rows<7, T>, add_rows<8, T>};
  int64_t c = begin;
  while (c + width <= end) {
    const int64_t vectors = std::min<int64_t>(most_vectors, (end - c) / width);
    adds[vectors - 1](job, index, weight, c, 0, sums);
    c += vectors * width;
  }
  if (c < end) add_rows<1, T>(job, index, weight, c, end - c, sums);
}

}  // namespace

bool bank_products(
    const BankJob& job, const Queries& queries, int64_t b, int64_t begin, int64_t end, float* products, float* scratch) {
  const int64_t* index = job.index + b * job.count + begin;
  if (!all_within(index, end - begin, job.rows)) return false;
  with_type(queries.element, [&](auto element) {
    const auto* query = static_cast<const decltype(element)*>(queries.data) + b * queries.row_stride;
    read_row(query, queries.column_stride, job.dim, 0, scratch);
  });
  with_type(job.element, [&](auto element) {
    multiply<decltype(element)>(job, scratch, index, end - begin, products + b * job.count + begin);
  });
  return true;
}

bool bank_sums(const BankJob& job, const float* weight, int64_t b, int64_t begin, int64_t end, float* sums) {
  const int64_t* index = job.index + b * job.count;
  if (!all_within(index, job.count, job.rows)) return false;
  with_type(job.element, [&](auto element) {
    add<decltype(element)>(job, index, weight + b * job.count, begin, end, sums + b * job.dim);
  });
  return true;
}

}  // namespace icckd::ICCKD_ISA
