// A row of logits as floats in scratch memory that fits the first cache, read and written once in its own format.
//
// Only for *_kernel.cpp. Scratch rows are padded to whole registers, so that loops over them need no tail.
#pragma once

#include <algorithm>

#include "cpu/vector.h"

namespace icckd::ICCKD_ISA {

// row[c] = x[c · stride], and `fill` from `count` on.
template <class T>
static inline void read_row(const T* x, int64_t stride, int64_t count, float fill, float* row) {
  int64_t c = 0;
  if (stride == 1)
    for (; c + width <= count; c += width) store(row + c, load(x + c));
  for (; c < count; c += width) {
    T part[width];
    const int64_t rest = std::min<int64_t>(width, count - c);
    for (int64_t i = 0; i < rest; ++i) part[i] = x[(c + i) * stride];
    store(row + c, load_first(part, rest, fill));
  }
}

// y[c] = values(c)[0], y[c + 1] = values(c)[1], …
template <class T, class Values>
static inline void write_row(T* y, int64_t count, const Values& values) {
  int64_t c = 0;
  for (; c + width <= count; c += width) store(y + c, values(c));
  if (c < count) store_first(y + c, count - c, values(c));
}

static inline void fill_padding(float* row, int64_t count, float fill) {
  for (int64_t c = count; c % width != 0; ++c) row[c] = fill;
}

// The largest element of a row padded with −∞. A NaN may be passed over.
static inline float largest(const float* row, int64_t count) {
  Vec top = load(row);
  for (int64_t c = width; c < count; c += width) top = max(top, load(row + c));
  return maximum(top);
}

// Σ values(c) over the row's registers, which begin at elements c = 0, width, 2 width …; in blocks, so that rounding errors grow
// with the number of blocks rather than of registers.
template <class Values>
static inline auto accumulate(int64_t count, const Values& values) {
  constexpr int64_t block = 64 * width;
  decltype(values(0)) all{};
  for (int64_t begin = 0; begin < count; begin += block) {
    decltype(values(0)) partial{};
    const int64_t end = std::min(count, begin + block);
    for (int64_t c = begin; c < end; c += width) partial += values(c);
    all += partial;
  }
  return all;
}

template <class Values>
static inline float total(int64_t count, const Values& values) {
  return sum(accumulate(count, values));
}

}  // namespace icckd::ICCKD_ISA
