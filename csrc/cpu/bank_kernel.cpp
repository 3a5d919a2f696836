// Products of a query q with rows of a memory bank, and sums of such rows, over uses u = (row, place):
//
//     products  y[u.place] = Σ_c q_c bank[u.row, c]
//     sums      s_c += Σ_u w[u.place] bank[u.row, c]
//
// Memory: each row is read once per use, dim · element size bytes, and nothing of it is written. Rows lie anywhere: those of the
// next uses are asked for while one is computed. Work: a multiplication and an addition per number read.
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

template <class T>
const T* row_of(const BankRows& bank, const Use& use) {
  return static_cast<const T*>(bank.data) + use.row * bank.stride;
}

template <class T>
void prefetch(const T* x, int64_t count) {
  const char* bytes = reinterpret_cast<const char*>(x);
  for (int64_t at = 0; at < count * static_cast<int64_t>(sizeof(T)); at += cache_line) __builtin_prefetch(bytes + at);
}

template <int rows, class T>
void multiply_rows(const BankRows& bank, const float* query, const Use* uses, float* products) {
  const T* row[rows];
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) row[r] = row_of<T>(bank, uses[r]);
  Vec total[rows] = {};
  const int64_t whole = bank.dim / width * width;
  for (int64_t c = 0; c < whole; c += width) {
    const Vec q = load(query + c);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) total[r] += q * load(row[r] + c);
  }
  if (whole < bank.dim)
    for (int r = 0; r < rows; ++r) total[r] += load(query + whole) * load_first(row[r] + whole, bank.dim - whole);
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) products[uses[r].place] = sum(total[r]);
}

template <class T>
void multiply(const BankRows& bank, const float* query, const Use* uses, int64_t count, float* products) {
  int64_t k = 0;
  for (; k + group <= count; k += group) {
    const int64_t next = std::min(count, k + 2 * group);
    for (int64_t ahead = k + group; ahead < next; ++ahead) prefetch(row_of<T>(bank, uses[ahead]), bank.dim);
    multiply_rows<group, T>(bank, query, uses + k, products);
  }
  for (; k < count; ++k) multiply_rows<1, T>(bank, query, uses + k, products);
}

// Columns c … c + vectors · width − 1, or where `rest` is not 0 its first `rest` ones.
template <int vectors, class T>
void add_rows(const BankRows& bank, const Use* uses, int64_t count, const float* weight, int64_t c, int64_t rest, float* sums) {
  constexpr int64_t columns = vectors * width;
  Vec total[vectors] = {};
  for (int64_t first = 0; first < count; first += block) {
    Vec part[vectors] = {};
    for (int64_t k = first, end = std::min(count, first + block); k < end; ++k) {
      if (k + group < count) prefetch(row_of<T>(bank, uses[k + group]) + c, rest ? rest : columns);
      const T* row = row_of<T>(bank, uses[k]) + c;
      const Vec w = splat(weight[uses[k].place]);
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) part[v] += w * (rest ? load_first(row, rest) : load(row + v * width));
    }
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) total[v] += part[v];
  }
  if (rest) return store_first(sums + c, rest, load_first(sums + c, rest) + total[0]);
  for (int v = 0; v < vectors; ++v) store(sums + c + v * width, load(sums + c + v * width) + total[v]);
}

template <class T>
void add(const BankRows& bank, const Use* uses, int64_t count, const float* weight, float* sums) {
  using Add = void (*)(const BankRows&, const Use*, int64_t, const float*, int64_t, int64_t, float*);
  static constexpr Add adds[most_vectors] = {add_rows<1, T>, add_rows<2, T>, add_rows<3, T>, add_rows<4, T>,
                                             add_rows<5, T>, add_rows<6, T>, add_rows<7, T>, add_rows<8, T>};
  int64_t c = 0;
  while (c + width <= bank.dim) {
    const int64_t vectors = std::min<int64_t>(most_vectors, (bank.dim - c) / width);
    adds[vectors - 1](bank, uses, count, weight, c, 0, sums);
    c += vectors * width;
  }
  if (c < bank.dim) add_rows<1, T>(bank, uses, count, weight, c, bank.dim - c, sums);
}

}  // namespace

void read_query(Element element, const void* query, int64_t stride, int64_t dim, float* row) {
  with_type(element, [&](auto type) { read_row(static_cast<const decltype(type)*>(query), stride, dim, 0, row); });
}

void bank_products(const BankRows& bank, const float* query, const Use* uses, int64_t count, float* products) {
  with_type(bank.element, [&](auto type) { multiply<decltype(type)>(bank, query, uses, count, products); });
}

void bank_sums(const BankRows& bank, const float* weight, const Use* uses, int64_t count, float* sums) {
  with_type(bank.element, [&](auto type) { add<decltype(type)>(bank, uses, count, weight, sums); });
}

}  // namespace icckd::ICCKD_ISA
