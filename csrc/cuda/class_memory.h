// Pushes rows into the rings of their classes, in two launches: icckd/memory.py says what a push does.
//
//   label_kept_rows     a warp for each row: is it finite as the memory keeps it? Its label, or −1
//   class_memory_push   as follows
//
//   slots    | class 0: K slots | class 1 | … | one more, which stays 0 |     class c's n-th row ever goes to slot c K + n mod K
//   pushed   rows ever pushed of each class
//
// A warp owns some classes, as many as make about `wanted_warps` warps, and lane l keeps the numbers of the l-th of them. It reads all
// labels twice: forward to count its classes' rows, and backward to copy their newest K, until it has them. No two warps touch one
// class, so that nothing is ordered by chance and nothing must be zeroed before.
//
// Bytes: the D elements of each row are read, and those of each kept row once more and written; 8 N label reads for each warp, twice, from
// the caches. Meant for batches of up to some 10⁵ rows. Measured times: docs/gpu.md.
#pragma once

#include <cstdint>

#include "cuda/device.h"
#include "cuda/element.h"

namespace icckd::cuda {

struct ClassMemoryParams {
  const void* features;   // (rows, dim) of the one dtype
  const int64_t* labels;  // (rows)
  int64_t* kept_labels;   // (rows), −1 of rows that are skipped: from the first launch to the second
  void* slots;            // (num_classes · capacity + 1, dim) of the other
  int64_t* pushed;        // (num_classes)
  int64_t dim, num_classes;
  int32_t rows, capacity, classes_per_warp;
};

constexpr int push_threads = 128, rows_per_block = push_threads / warp_size;
// Of a push, and of a ring: so that the last chunk's row numbers are below 2³¹.
constexpr int64_t most_rows = 0x7fffff00;
constexpr int64_t wanted_warps = 4096;

// At most one for each lane.
constexpr int classes_per_warp_for(int64_t num_classes) {
  const int64_t classes = (num_classes + wanted_warps - 1) / wanted_warps;
  return static_cast<int>(classes < warp_size ? classes : warp_size);
}

constexpr int push_blocks(int64_t num_classes) {
  const int64_t per_block = static_cast<int64_t>(classes_per_warp_for(num_classes)) * (push_threads / warp_size);
  return static_cast<int>((num_classes + per_block - 1) / per_block);
}

// x mod divisor, for x ≥ 0 and divisors of 31 bits. The division of 64-bit numbers is a call, which would cost registers.
ICCKD_HOST_DEVICE constexpr int remainder_of(int64_t x, int divisor) {
  const uint32_t d = static_cast<uint32_t>(divisor);
  if (x >> 32 == 0) return static_cast<int>(static_cast<uint32_t>(x) % d);
  uint32_t remainder = 0;
  for (int bit = 62; bit >= 0; --bit) {
    remainder = 2 * remainder + static_cast<uint32_t>(x >> bit & 1);
    if (remainder >= d) remainder -= d;
  }
  return static_cast<int>(remainder);
}

// The slot, among its class's, of the row that `newer` rows (< capacity) of its class follow; the newest is in slot `newest`.
ICCKD_HOST_DEVICE constexpr int ring_slot(int newest, int newer, int capacity) {
  return newest >= newer ? newest - newer : newest - newer + capacity;
}

// ---- the first launch ---------------------------------------------------------------------------------------------------

constexpr int label_blocks(int rows) { return rows / rows_per_block + (rows % rows_per_block != 0); }

ICCKD_DEVICE bool is_finite(float x) { return (float_bits(x) & 0x7f800000u) != 0x7f800000u; }

// By one warp: whether a row is finite once it is converted.
template <class From, class To>
ICCKD_DEVICE bool is_finite_row(const From* row, int64_t dim) {
  bool finite = true;
  for (int64_t i = lane(); i < dim; i += warp_size) finite &= is_finite(to_float(from_float<To>(to_float(row[i]))));
  return ballot(!finite) == 0;
}

template <class From, class To>
ICCKD_DEVICE void label_kept_rows(const ClassMemoryParams& p) {
  const int64_t row = static_cast<int64_t>(block()) * rows_per_block + warp();
  if (row >= p.rows) return;
  const bool finite = is_finite_row<From, To>(static_cast<const From*>(p.features) + row * p.dim, p.dim);
  if (lane() == 0) p.kept_labels[row] = finite ? p.labels[row] : -1;
}

// ---- the second launch --------------------------------------------------------------------------------------------------

// Elements that fill whole vectors of both dtypes.
template <class From, class To>
inline constexpr int elements_at_once = per_vector<From> > per_vector<To> ? per_vector<From> : per_vector<To>;

template <class From, class To>
ICCKD_DEVICE void copy_elements(const From* from, To* to) {
  constexpr int n = elements_at_once<From, To>;
  float x[n];
#pragma unroll
  for (int part = 0; part < n; part += per_vector<From>) {
    float loaded[per_vector<From>];
    to_floats<From>(load16(from + part), loaded);
#pragma unroll
    for (int i = 0; i < per_vector<From>; ++i) x[part + i] = loaded[i];
  }
#pragma unroll
  for (int part = 0; part < n; part += per_vector<To>) {
    float stored[per_vector<To>];
#pragma unroll
    for (int i = 0; i < per_vector<To>; ++i) stored[i] = x[part + i];
    store16(to + part, from_floats<To>(stored));
  }
}

// By one warp.
template <class From, class To>
ICCKD_DEVICE void copy_row(const From* from, To* to, int64_t dim) {
  constexpr int n = elements_at_once<From, To>;
  const bool aligned = (reinterpret_cast<uintptr_t>(from) | reinterpret_cast<uintptr_t>(to)) % 16 == 0;
  if (aligned && dim % n == 0) {
    for (int64_t i = n * lane(); i < dim; i += n * warp_size) copy_elements(from + i, to + i);
  } else {
    for (int64_t i = lane(); i < dim; i += warp_size) to[i] = from_float<To>(to_float(from[i]));
  }
}

// Classes that a warp owns.
struct OwnClasses {
  int64_t first;
  int count;
};

// Labels that a lane reads at a time, so that their latencies overlap.
constexpr int labels_at_once = 8;
constexpr int push_chunk = labels_at_once * warp_size;

// Calls use(row, class, counted from the first) for those of rows begin … begin + push_chunk − 1 whose class the warp owns, the newest
// first. All lanes call it together.
template <class Use>
ICCKD_DEVICE void for_own_rows(const ClassMemoryParams& p, int begin, const OwnClasses& own, const Use& use) {
  bool is_own[labels_at_once];
#pragma unroll
  for (int i = 0; i < labels_at_once; ++i) {
    const int row = begin + i * warp_size + lane();
    is_own[i] = row < p.rows && p.kept_labels[row] >= own.first && p.kept_labels[row] < own.first + own.count;
  }
  unsigned rows = 0;  // lane i's, of 32 rows
#pragma unroll
  for (int i = 0; i < labels_at_once; ++i) {
    const unsigned members = ballot(is_own[i]);
    if (lane() == i) rows = members;
  }
  for (unsigned lanes = ballot(rows != 0); lanes != 0; lanes = ballot(rows != 0)) {
    const int i = highest_bit(lanes), newest = highest_bit(shuffle(rows, i));
    if (lane() == i) rows ^= 1u << newest;
    const int row = begin + i * warp_size + newest;
    use(row, static_cast<int>(p.kept_labels[row] - own.first));
  }
}

template <class From, class To>
ICCKD_DEVICE void class_memory_push(const ClassMemoryParams& p) {
  const int64_t first_class = (static_cast<int64_t>(block()) * (threads() / warp_size) + warp()) * p.classes_per_warp;
  if (first_class >= p.num_classes) return;
  const int64_t left = p.num_classes - first_class;
  const OwnClasses own{first_class, left < p.classes_per_warp ? static_cast<int>(left) : p.classes_per_warp};

  int count = 0;
  for (int begin = 0; begin < p.rows; begin += push_chunk)
    for_own_rows(p, begin, own, [&](int, int c) { count += c == lane(); });
  int newest_slot = 0;
  if (count > 0) newest_slot = remainder_of(p.pushed[first_class + lane()] + count - 1, p.capacity);

  const auto* features = static_cast<const From*>(p.features);
  auto* slots = static_cast<To*>(p.slots);
  int newer = 0;
  for (int begin = (p.rows - 1) / push_chunk * push_chunk; begin >= 0; begin -= push_chunk) {
    if (ballot(newer < count && newer < p.capacity) == 0) break;
    for_own_rows(p, begin, own, [&](int row, int c) {
      const int newer_of_class = shuffle(newer, c), newest_of_class = shuffle(newest_slot, c);
      newer += c == lane();
      if (newer_of_class >= p.capacity) return;
      const int64_t slot = ring_slot(newest_of_class, newer_of_class, p.capacity);
      ICCKD_ASSERT(slot >= 0 && slot < p.capacity);
      copy_row(features + row * p.dim, slots + ((first_class + c) * p.capacity + slot) * p.dim, p.dim);
    });
  }
  if (count > 0) p.pushed[first_class + lane()] += count;
}

}  // namespace icckd::cuda
