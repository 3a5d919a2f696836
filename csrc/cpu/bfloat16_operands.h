// Two blocks' bfloat16 rows as operands of products in AVX512-BF16 (block_pairs_kernel.cpp only), twice the FLOP of float32 an instruction.
//
// Similarities lose nothing: the products are of the rows as they are, but for a power of two that takes their norms near 1, are exact in
// float32 and added up there, and z_i·z_j = f_i f_j x_i·x_j. P is rounded to bfloat16, relatively by 2⁻⁹ at most, as the gradient is that
// it goes into.
//
// An instruction adds up two products: elements of operands are words of two bfloat16, that is to say of two successive numbers of a row
// where the sum is over these, and of the numbers that two successive rows have in one place where the sum is over rows.
#pragma once

#include "cpu/intra_class_rows.h"
#include "cpu/matrix.h"

#if defined(__AVX512BF16__)
namespace icckd::ICCKD_ISA {
namespace {

struct Bfloat16Operands {
  int64_t words, word_stride, stride, padded_dim, p_stride, e_stride;
  float *own, *own_pairs, *own_factor, *other, *other_pairs, *other_factor, *packed, *p_rows, *p_columns;

  // Whether the problem's rows are all of bfloat16.
  static bool can(const IntraClassProblem& problem) {
    const bool memory = problem.memory.data == nullptr || problem.memory.element == Element::bfloat16;
    return problem.anchor.element == Element::bfloat16 && memory;
  }

  Bfloat16Operands(int64_t rows, int64_t dim, Scratch& parts) {
    rows = round_up(rows, width);
    words = parts_of_at_most(dim, 2);
    word_stride = row_stride(words);
    stride = row_stride(dim);
    padded_dim = round_up(dim, width);
    p_stride = row_stride(block_rows / 2);
    e_stride = row_stride(block_rows);
    own = parts.take(rows * word_stride);
    own_pairs = parts.take(rows / 2 * stride);
    own_factor = parts.take(rows);
    other = parts.take(block_rows * word_stride);
    other_pairs = parts.take(block_rows / 2 * stride);
    other_factor = parts.take(block_rows);
    packed = parts.take(block_rows * word_stride);
    p_rows = parts.take(block_rows * p_stride);
    p_columns = parts.take(block_rows / 2 * e_stride);
  }

  void load_own(const Candidates& all, int64_t begin, int64_t end) { load_rows(all, begin, end, own, own_pairs, own_factor); }

  void load_other(const Candidates& all, int64_t begin, int64_t end) {
    load_rows(all, begin, end, other, other_pairs, other_factor);
    pack_transposed(other, round_up(end - begin, width), word_stride, round_up(words, width), packed);
  }

  // e = similarities of `rows` own rows, from `first` on, with the other's.
  void similarities(int64_t first, int64_t rows, int64_t columns, int64_t, float* e) {
    multiply<Bfloat16Pairs>(rows, parts_of_at_most(columns, width), words, {own + first * word_stride, word_stride, 1},
                            {packed, width, round_up(words, width) * width}, {e, e_stride, width}, false);
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < columns; j += width) {
        float* s = e + i * e_stride + j;
        store(s, load(s) * (own_factor[first + i] * load(other_factor + j)));
      }
  }

  // pull_own += P z of the other's rows and, for the first `receivers` of these, pull_other += Pᵀ z of the own rows.
  void pull(const float* p, int64_t first, int64_t rows, int64_t columns, int64_t receivers, float* pull_own, float* pull_other) {
    const int64_t vectors = padded_dim / width;
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < columns; j += width) {
        const ShortVec half = rounded(load(p + i * e_stride + j) * load(other_factor + j));
        std::memcpy(reinterpret_cast<bfloat16*>(p_rows + i * p_stride) + j, &half, sizeof half);
      }
    multiply<Bfloat16Pairs>(rows, vectors, parts_of_at_most(columns, 2), {p_rows, p_stride, 1}, {other_pairs, stride, width},
                            {pull_own, stride, width}, true);
    if (receivers <= 0) return;
    for (int64_t i = 0; i < rows; i += 2)
      for (int64_t j = 0; j < receivers; j += width) {
        const auto half = [&](int64_t k) {
          return k < rows ? rounded(load(p + k * e_stride + j) * own_factor[first + k]) : ShortVec{};
        };
        store(p_columns + i / 2 * e_stride + j, pairs(half(i), half(i + 1)));
      }
    multiply<Bfloat16Pairs>(receivers, vectors, parts_of_at_most(rows, 2), {p_columns, 1, e_stride},
                            {own_pairs + first / 2 * stride, stride, width}, {pull_other, stride, width}, true);
  }

 private:
  static ShortVec rounded(Vec v) { return (ShortVec)_mm512_cvtneps_pbh((__m512)v); }

  static Vec pairs(ShortVec low, ShortVec high) {
    return (Vec)(__builtin_convertvector(low, IntVec) | __builtin_convertvector(high, IntVec) << 16);
  }

  // Rows and what their dot products are to be multiplied by, with zero rows up to whole vectors of rows; and the rows pair by pair.
  void load_rows(const Candidates& all, int64_t begin, int64_t end, float* rows, float* pairs_of_rows, float* factors) const {
    const int64_t count = end - begin, padded = round_up(count, width);
    fill(rows, padded * word_stride, 0);
    fill(factors, padded, 0);
    for (int64_t i = 0; i < count; ++i) {
      const auto [source, index] = all.place(begin + i);
      factors[i] = load_row_near_one(row_of<bfloat16>(*source, index), all.problem.dim, rows + i * word_stride);
    }
    for (int64_t i = 0; i < padded; i += 2)
      for (int64_t k = 0; 2 * k < padded_dim; k += width) {
        const IntVec a = (IntVec)load(rows + i * word_stride + k), b = (IntVec)load(rows + (i + 1) * word_stride + k);
        const Vec even = (Vec)((a & 0xffff) | b << 16), odd = (Vec)((a >> 16 & 0xffff) | (b & ~0xffff));
        float* out = pairs_of_rows + i / 2 * stride + 2 * k;
        store(out, interleaved<0>(even, odd, Lanes{}));
        if (2 * k + width < padded_dim) store(out + width, interleaved<1>(even, odd, Lanes{}));
      }
  }

  // Writes a row times the power of two that takes its norm into (1/2, 1], which rounds nothing; returns 1 over that norm, 0 for a zero row.
  static float load_row_near_one(const bfloat16* x, int64_t dim, float* words_of_row) {
    Vec squares{};
    along(x, dim, [&](Vec v, int64_t, int64_t) { squares += v * v; });
    const float factor = inverse_norm(x, dim, sum(squares));
    uint32_t bits;
    std::memcpy(&bits, &factor, sizeof bits);
    bits &= 0x7f800000;
    float power;
    std::memcpy(&power, &bits, sizeof bits);
    if (power == 0) power = factor;  // 0, or the norm is close to the largest number
    along(x, dim, [&](Vec v, int64_t d, int64_t) { store(reinterpret_cast<bfloat16*>(words_of_row) + d, v * power); });
    return factor == 0 ? 0 : factor / power;
  }
};

}  // namespace
}  // namespace icckd::ICCKD_ISA
#endif
