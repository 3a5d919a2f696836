// Rows in the order of their classes: a stable counting sort. The layout is that of kernels/layout.py, number for number.
//
//   positions   | class of rank 0, the largest | rank 1 | … | rows without a class |
//   one class   | anchors (weight > 0) | other rows |                       each in the order of the batch
//
// Rows are counted by key: 2 · class + (weight = 0), or 2C without a class; rows of a memory by class, or C. With N rows in B blocks:
//
//   count_keys     each block of rows: its count of every key, and each row's place among its block's equal keys
//                  reads 12 N bytes (8 N without weights), writes 4 N + 4 (2C + 1) B
//   rank_classes   a block for 8 classes: compares them with all others for their ranks and first positions (C² comparisons, five
//                  instructions each), then turns their counts into the position of each block's first row of the key
//                  reads 12 C² / 8 (cached) + 8 (2C + 1) B bytes, writes 4 (2C + 1) B
//   place_rows     a thread for each row: to its position
//                  reads 16 N bytes and 4 N scattered, writes 12 N scattered
//
// Three launches, and one to zero the totals, whatever N, C and memory. For C up to most_classes, whose counts fit in shared memory;
// blocks are of as many rows as keep the table of counts, (2C + 1) B, below 5 N.
// Only integers are added atomically, to sums: the same bits every time. Measured times: docs/gpu.md.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cuda/device.h"

namespace icckd::cuda {

constexpr int most_classes = 12288;  // 99 KB: what a block of any GPU from sm_80 on can have

// Rows of a batch or of a memory, to be put in order.
struct KeyedRows {
  const int64_t* labels;
  const float* weight;  // null: 1 for every row
  int32_t rows, keys, blocks, rows_per_block;
  int32_t *place;   // of each row among the equal keys of its block (rows)
  int32_t *starts;  // of each key in each block: how many, then the first one's position (blocks, keys)
  int32_t *totals;  // of each key (keys); zeros at first
  int32_t *order;   // the row at each position (rows)
  bool in_batch;    // not in a memory
};

struct ClassLayoutParams {
  KeyedRows batch, memory;
  int32_t num_classes, limit;
  int32_t *rank, *anchors;                                             // (rows), as in kernels/layout.py, and so the rest:
  int32_t *start, *size, *active, *memory_start, *memory_size, *totals;
  float *weight_sums, *scale;                                          // weights of each block of the batch; (1)
};

// ---- index logic ------------------------------------------------------------------------------------------------------

constexpr int count_threads = 512;
// More blocks than this do not make a GPU faster, but the table of counts larger. That has at most so many counts a row, or in all.
constexpr int64_t most_count_blocks = 512, most_counts_per_row = 5, most_counts = 1 << 20;
constexpr int rank_threads = 512;
constexpr int classes_per_block = 8;
constexpr int place_threads = 256;

constexpr int rows_per_block_for(int64_t rows, int keys) {
  const int64_t blocks = std::clamp<int64_t>(std::max(most_counts_per_row * rows, most_counts) / keys, 1, most_count_blocks);
  return static_cast<int>((std::max<int64_t>(rows, 1) + blocks * count_threads - 1) / (blocks * count_threads) * count_threads);
}

constexpr int blocks_for(int64_t rows, int keys) {
  return static_cast<int>((rows + rows_per_block_for(rows, keys) - 1) / rows_per_block_for(rows, keys));
}

constexpr int batch_keys(int num_classes) { return 2 * num_classes + 1; }
constexpr int memory_keys(int num_classes) { return num_classes + 1; }

// One counter more, for threads without a row; the warps' sums of weights.
constexpr int count_shared_bytes(int num_classes) { return 4 * (batch_keys(num_classes) + 1 + count_threads / warp_size); }

// A class's first key, and that of rows without a class, are what comes first.
ICCKD_HOST_DEVICE constexpr int key_of(int64_t label, bool in_batch, bool anchor, int num_classes) {
  const bool used = label >= 0 && label < num_classes;
  if (!in_batch) return used ? static_cast<int>(label) : num_classes;
  return used ? 2 * static_cast<int>(label) + !anchor : 2 * num_classes;
}

// Whether class d with its rows is laid out before class c: longest first, then by number. Rows without a class come last.
ICCKD_HOST_DEVICE constexpr bool comes_before(int d_rows, int d, int c_rows, int c, int num_classes) {
  return c == num_classes || d_rows > c_rows || (d_rows == c_rows && d < c);
}

// ---- count_keys -------------------------------------------------------------------------------------------------------

ICCKD_DEVICE int key_at(const KeyedRows& source, int row, int num_classes) {
  return key_of(source.labels[row], source.in_batch, source.weight == nullptr || source.weight[row] > 0, num_classes);
}

// counts[key] + how many threads before this one have its key; counts become those after all threads. Warp after warp.
ICCKD_DEVICE int count_in_order(int key, int* counts) {
  const unsigned same = match_any(key);
  const int before = count_bits(same & ((1u << lane()) - 1));
  int first = 0;
  for (int w = 0; w < threads() / warp_size; ++w) {
    if (w == warp()) {
      first = counts[key];
      warp_barrier();
      if (before == 0) counts[key] = first + count_bits(same);
    }
    block_barrier();
  }
  return first + before;
}

// The sum over the block's threads, in thread 0, always added in the same order. `partial` has a number for each warp.
template <class T>
ICCKD_DEVICE T block_sum(T value, T* partial) {
  const T of_warp = warp_sum(value);
  if (lane() == 0) partial[warp()] = of_warp;
  block_barrier();
  T sum = 0;
  if (thread() == 0)
    for (int w = 0; w < threads() / warp_size; ++w) sum += partial[w];
  return sum;
}

ICCKD_DEVICE void count_block(const KeyedRows& source, int block_of_source, const ClassLayoutParams& p) {
  int* counts = reinterpret_cast<int*>(shared_memory());
  for (int key = thread(); key <= source.keys; key += threads()) counts[key] = 0;
  block_barrier();
  float weights = 0;
  const int64_t begin = static_cast<int64_t>(block_of_source) * source.rows_per_block;
  for (int64_t row = begin + thread(); row < begin + source.rows_per_block; row += threads()) {
    const bool valid = row < source.rows;
    const int key = valid ? key_at(source, static_cast<int>(row), p.num_classes) : source.keys;
    const int place = count_in_order(key, counts);
    if (valid) source.place[row] = place;
    if (source.weight != nullptr && key < source.keys - 1) weights += source.weight[row];
  }
  if (source.weight != nullptr) {
    const float sum = block_sum(weights, reinterpret_cast<float*>(counts + source.keys + 1));
    if (thread() == 0) p.weight_sums[block_of_source] = sum;
  }
  int32_t* of_block = source.starts + static_cast<int64_t>(block_of_source) * source.keys;
  for (int key = thread(); key < source.keys; key += threads()) {
    of_block[key] = counts[key];
    if (counts[key] != 0) atomic_add(source.totals + key, counts[key]);
  }
}

// Blocks: those of the batch, then those of the memory.
ICCKD_DEVICE void count_keys(const ClassLayoutParams& p) {
  if (block() < p.batch.blocks)
    count_block(p.batch, block(), p);
  else
    count_block(p.memory, block() - p.batch.blocks, p);
}

// ---- rank_classes -----------------------------------------------------------------------------------------------------

struct ClassCounts {
  int anchors, rows, memory;
};

ICCKD_DEVICE ClassCounts counts_of(const ClassLayoutParams& p, int c) {
  const int anchors = p.batch.totals[2 * c];
  return {anchors, anchors + p.batch.totals[2 * c + 1], p.memory.rows > 0 ? p.memory.totals[c] : 0};
}

// Adds up v[l] over the warp for lane l: each step adds half of what a lane holds to its partner's, and keeps the other half.
ICCKD_DEVICE int sum_to_lanes(int (&v)[warp_size]) {
#pragma unroll
  for (int step = 4; step >= 0; --step) {
    const int half = 1 << step;
    const bool upper = lane() & half;
#pragma unroll
    for (int i = 0; i < warp_size / 2; ++i)  // a constant number, so that v stays in registers
      if (i < half) {
        const int given = upper ? v[i] : v[i + half];
        v[i] = (upper ? v[i + half] : v[i]) + shuffle_xor(given, half);
      }
  }
  return v[0];
}

// What comes before classes_per_block classes: how many others, and their rows, anchors and memory rows.
constexpr int quantities = 4;
static_assert(quantities * classes_per_block == warp_size);

// sums[classes_per_block * quantity + k] of class first_class + k. The threads share out the others. `partial`: 32 numbers a warp.
ICCKD_DEVICE void sum_before(const ClassLayoutParams& p, int first_class, const ClassCounts (&own)[classes_per_block], int* partial,
                             int* sums) {
  int v[warp_size] = {};
  for (int d = thread(); d < p.num_classes; d += threads()) {
    const ClassCounts other = counts_of(p, d);
    const auto add_where = [&](auto before) {
#pragma unroll
      for (int k = 0; k < classes_per_block; ++k)
        if (before(k)) {
          v[k] += 1;
          v[classes_per_block + k] += other.rows;
          v[2 * classes_per_block + k] += other.anchors;
          v[3 * classes_per_block + k] += other.memory;
        }
    };
    // Of equally large classes those with lower numbers are first: for nearly all others one comparison says it.
    const int bound = other.rows + (d < first_class);
    if (d < first_class || d >= first_class + classes_per_block)
      add_where([&](int k) { return bound > own[k].rows; });
    else
      add_where([&](int k) { return comes_before(other.rows, d, own[k].rows, first_class + k, p.num_classes); });
  }
  partial[warp_size * warp() + lane()] = sum_to_lanes(v);
  block_barrier();
  if (warp() == 0) {
    int sum = 0;
    for (int w = 0; w < threads() / warp_size; ++w) sum += partial[warp_size * w + lane()];
    sums[lane()] = sum;
  }
  block_barrier();
}

// Where the keys of these classes begin: in batch_first anchors' and others' in turn, in memory_first those of the memory.
// Class C stands for rows without a class.
ICCKD_DEVICE void rank_block(const ClassLayoutParams& p, int first_class, int* partial, int* sums, int* batch_first, int* memory_first) {
  ClassCounts own[classes_per_block];
#pragma unroll
  for (int k = 0; k < classes_per_block; ++k)
    own[k] = first_class + k < p.num_classes ? counts_of(p, first_class + k) : ClassCounts{0, -1, 0};
  sum_before(p, first_class, own, partial, sums);
  const int k = thread(), c = first_class + k;
  if (k >= classes_per_block || c > p.num_classes) return;
  const int rank = sums[k], rows = sums[classes_per_block + k], memory = sums[3 * classes_per_block + k];
  batch_first[2 * k] = rows;
  memory_first[k] = memory;
  if (c == p.num_classes) return;
  const ClassCounts counts = counts_of(p, c);
  batch_first[2 * k + 1] = rows + counts.anchors;
  p.start[rank] = rows;
  p.size[rank] = counts.rows;
  p.active[rank] = counts.anchors;
  p.memory_start[rank] = memory;
  p.memory_size[rank] = counts.memory;
}

// The ranks of these classes' positions, and their anchors: both follow from where the classes begin, and are written in runs.
ICCKD_DEVICE void fill_block(const ClassLayoutParams& p, int first_class, const int* sums) {
  for (int k = 0; k < classes_per_block && first_class + k < p.num_classes; ++k) {
    const ClassCounts own = counts_of(p, first_class + k);
    const int rank = sums[k], begin = sums[classes_per_block + k], anchors_begin = sums[2 * classes_per_block + k];
    for (int i = thread(); i < own.rows; i += threads()) {
      p.rank[begin + i] = rank;
      if (i < own.anchors) p.anchors[anchors_begin + i] = begin + i;
    }
  }
}

// What is true of all classes. By one block; `partial` has a number for each warp.
ICCKD_DEVICE void sum_classes(const ClassLayoutParams& p, int* partial) {
  int sums[6] = {};
  for (int d = thread(); d < p.num_classes; d += threads()) {
    const ClassCounts counts = counts_of(p, d);
    const bool large = counts.rows > p.limit;
    sums[0] += counts.rows;
    sums[1] += counts.anchors;
    sums[2] += large ? counts.rows : 0;
    sums[3] += large ? counts.anchors : 0;
    sums[4] += counts.rows > 0 ? counts.memory : 0;
    sums[5] += counts.rows > 0;
  }
  for (int i = 0; i < 6; ++i) {
    sums[i] = block_sum(sums[i], partial);
    if (thread() == 0) p.totals[i] = sums[i];
    block_barrier();
  }
  float weights = 0;
  if (p.batch.weight != nullptr) {
    for (int b = thread(); b < p.batch.blocks; b += threads()) weights += p.weight_sums[b];
    weights = block_sum(weights, reinterpret_cast<float*>(partial));
  } else {
    weights = static_cast<float>(sums[0]);
  }
  if (thread() == 0) *p.scale = weights == 0 ? 0 : 1 / weights;
}

// For `columns` keys from first_key on, counts of blocks become positions: first[column] and all counts of the key in earlier blocks.
// Threads share out the blocks; `partial` has a number for each thread.
ICCKD_DEVICE void start_blocks(const KeyedRows& source, int first_key, int columns, const int* first, int* partial) {
  const int column = thread() % columns, slice = thread() / columns, slices = threads() / columns;
  const int begin = static_cast<int>(static_cast<int64_t>(source.blocks) * slice / slices);
  const int end = static_cast<int>(static_cast<int64_t>(source.blocks) * (slice + 1) / slices);
  const bool valid = first_key + column < source.keys;
  int32_t* counts = source.starts + first_key + column;
  int sum = 0;
  if (valid)
    for (int b = begin; b < end; ++b) sum += counts[static_cast<int64_t>(b) * source.keys];
  partial[thread()] = sum;
  block_barrier();
  if (valid) {
    int position = first[column];
    for (int s = 0; s < slice; ++s) position += partial[s * columns + column];
    for (int b = begin; b < end; ++b) {
      const int count = counts[static_cast<int64_t>(b) * source.keys];
      counts[static_cast<int64_t>(b) * source.keys] = position;
      position += count;
    }
  }
  block_barrier();
}

// Sums of each warp or counts of each thread; sums; where keys begin.
constexpr int rank_shared_bytes = 4 * (rank_threads + warp_size + 3 * classes_per_block);
// The last one is for what is true of all classes.
constexpr int rank_blocks(int num_classes) { return num_classes / classes_per_block + 2; }

ICCKD_DEVICE void rank_classes(const ClassLayoutParams& p) {
  int* partial = reinterpret_cast<int*>(shared_memory());
  int* sums = partial + rank_threads;
  int* batch_first = sums + warp_size;
  int* memory_first = batch_first + 2 * classes_per_block;
  if (block() == blocks() - 1) return sum_classes(p, partial);
  const int first_class = block() * classes_per_block;
  rank_block(p, first_class, partial, sums, batch_first, memory_first);
  block_barrier();
  fill_block(p, first_class, sums);
  start_blocks(p.batch, 2 * first_class, 2 * classes_per_block, batch_first, partial);
  start_blocks(p.memory, first_class, classes_per_block, memory_first, partial);
}

// ---- place_rows -------------------------------------------------------------------------------------------------------

ICCKD_HOST_DEVICE constexpr int place_blocks(int64_t rows) { return static_cast<int>((rows + place_threads - 1) / place_threads); }

ICCKD_DEVICE int position_of(const KeyedRows& source, int row, int key) {
  const int64_t block_of_source = row / source.rows_per_block;
  const int position = source.starts[block_of_source * source.keys + key] + source.place[row];
  ICCKD_ASSERT(position >= 0 && position < source.rows);
  return position;
}

ICCKD_DEVICE void place_batch_row(const ClassLayoutParams& p, int row) {
  const int key = key_at(p.batch, row, p.num_classes);
  const int position = position_of(p.batch, row, key);
  p.batch.order[position] = row;
  if (key == 2 * p.num_classes) p.rank[position] = -1;
}

// A thread for each row: blocks of the batch, then those of the memory.
ICCKD_DEVICE void place_rows(const ClassLayoutParams& p) {
  const int of_batch = place_blocks(p.batch.rows);
  const bool in_batch = block() < of_batch;
  const int64_t row = static_cast<int64_t>(in_batch ? block() : block() - of_batch) * threads() + thread();
  if (row >= (in_batch ? p.batch : p.memory).rows) return;
  if (in_batch)
    place_batch_row(p, static_cast<int>(row));
  else
    p.memory.order[position_of(p.memory, static_cast<int>(row), key_at(p.memory, static_cast<int>(row), p.num_classes))] =
        static_cast<int>(row);
}

}  // namespace icckd::cuda
