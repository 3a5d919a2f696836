// Pushes rows into the rings of their classes, in one launch: icckd/memory.py says what a push does.
//
//   slots    | class 0: K slots | class 1 | … | one more, which stays 0 |     class c's n-th row ever goes to slot c K + n mod K
//   pushed   rows ever pushed of each class
//
// A warp owns some classes, as many as make about `wanted_warps` warps, and lane l keeps the numbers of the l-th of them. It reads all
// labels twice: forward to count its classes' rows, and backward to copy their newest K, until it has them. No two warps touch one
// class, so that nothing is ordered by chance and nothing must be zeroed before.
//
// Bytes: 8 N label reads for each warp, twice, from the caches; the D elements of each kept row are read and written once. Meant for
// batches of up to some 10⁵ rows. Measured times are owed: no GPU has run this yet.
#pragma once

#include <cstdint>

#include "cuda/device.h"
#include "cuda/element.h"

namespace icckd::cuda {

struct ClassMemoryParams {
  const void* features;   // (rows, dim) of the one dtype
  const int64_t* labels;  // (rows)
  void* slots;            // (num_classes · capacity + 1, dim) of the other
  int64_t* pushed;        // (num_classes)
  int64_t rows, dim, num_classes, capacity;
  int32_t classes_per_warp;
};

constexpr int push_threads = 128;
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

// The slot, among its class's, of the row that `newer` rows of this push follow, when `pushed` rows will have been pushed in all.
ICCKD_HOST_DEVICE constexpr int64_t ring_slot(int64_t pushed, int64_t newer, int64_t capacity) {
  return (pushed - 1 - newer) % capacity;
}

// Elements that fill whole vectors of both dtypes.
template <class From, class To>
inline constexpr int elements_at_once = per_vector<From> > per_vector<To> ? per_vector<From> : per_vector<To>;

template <class From, class To>
ICCKD_DEVICE void copy_elements(const From* from, To* to) {
  constexpr int n = elements_at_once<From, To>;
  float x[n];
#pragma unroll
  for (int part = 0; part < n; part += per_vector<From>)
    to_floats<From>(load16(from + part), reinterpret_cast<float(&)[per_vector<From>]>(x[part]));
#pragma unroll
  for (int part = 0; part < n; part += per_vector<To>)
    store16(to + part, from_floats<To>(reinterpret_cast<float(&)[per_vector<To>]>(x[part])));
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

// Labels that a lane reads at a time, so that their latencies overlap.
constexpr int labels_at_once = 8;
constexpr int push_chunk = labels_at_once * warp_size;

// Of rows begin + lane, begin + 32 + lane …: the class, counted from the warp's first, or −1 where the warp does not own it.
ICCKD_DEVICE void read_classes(const ClassMemoryParams& p, int64_t begin, int64_t first_class, int owned, int (&classes)[labels_at_once]) {
#pragma unroll
  for (int i = 0; i < labels_at_once; ++i) {
    const int64_t row = begin + i * warp_size + lane();
    const int64_t c = row < p.rows ? p.labels[row] - first_class : -1;
    classes[i] = c >= 0 && c < owned ? static_cast<int>(c) : -1;
  }
}

template <class From, class To>
ICCKD_DEVICE void class_memory_push(const ClassMemoryParams& p) {
  const int64_t first_class = (static_cast<int64_t>(block()) * (threads() / warp_size) + warp()) * p.classes_per_warp;
  if (first_class >= p.num_classes) return;
  const int64_t left = p.num_classes - first_class;
  const int owned = left < p.classes_per_warp ? static_cast<int>(left) : p.classes_per_warp;
  int classes[labels_at_once];

  int64_t count = 0;
  for (int64_t begin = 0; begin < p.rows; begin += push_chunk) {
    read_classes(p, begin, first_class, owned, classes);
#pragma unroll
    for (int i = 0; i < labels_at_once; ++i)
      for (unsigned members = ballot(classes[i] >= 0); members != 0; members &= members - 1)
        count += shuffle(classes[i], lowest_bit(members)) == lane();
  }
  const int64_t pushed = lane() < owned ? p.pushed[first_class + lane()] + count : 0;

  const auto* features = static_cast<const From*>(p.features);
  auto* slots = static_cast<To*>(p.slots);
  int64_t newer = 0;
  for (int64_t begin = (p.rows - 1) / push_chunk * push_chunk; begin >= 0; begin -= push_chunk) {
    if (ballot(newer < count && newer < p.capacity) == 0) break;
    read_classes(p, begin, first_class, owned, classes);
#pragma unroll
    for (int i = labels_at_once - 1; i >= 0; --i) {
      unsigned members = ballot(classes[i] >= 0);
      while (members != 0) {
        const int newest = highest_bit(members);
        members ^= 1u << newest;
        const int c = shuffle(classes[i], newest);
        const int64_t newer_of_class = shuffle(newer, c), slot = ring_slot(shuffle(pushed, c), newer_of_class, p.capacity);
        if (newer_of_class < p.capacity) {
          ICCKD_ASSERT(slot >= 0 && slot < p.capacity);
          const int64_t row = begin + i * warp_size + newest;
          copy_row(features + row * p.dim, slots + ((first_class + c) * p.capacity + slot) * p.dim, p.dim);
        }
        newer += c == lane();
      }
    }
  }
  if (lane() < owned) p.pushed[first_class + lane()] = pushed;
}

}  // namespace icckd::cuda
