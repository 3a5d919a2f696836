// Rows in the order of their classes: a stable counting sort. The layout is that of kernels/layout.py, number for number.
//
//   positions   | class of rank 0, the largest | rank 1 | … | rows without a class |
//   one class   | anchors (weight > 0) | other rows |                       each in the order of the batch
//
// Rows are counted by key: 2 · class + (weight = 0), or 2C without a class; rows of a memory by class, or C. With N rows in B blocks:
//
//   count_keys     each block of rows: its count of every key, and each row's place among its block's equal keys
//                  reads 12 N bytes (8 N without weights), writes 4 N + 4 (2C + 1) B
//   rank_classes   a warp for each class: compares it with all others for its rank and first position (C² comparisons); the block
//                  turns its classes' counts into the position of each block's first row of the key
//                  reads 24 C² / 32 (cached) + 8 (2C + 1) B bytes, writes 4 (2C + 1) B
//   place_rows     each row to its position
//                  reads 16 N bytes and 4 N scattered, writes 12 N scattered
//
// Three launches, and one to zero the totals, whatever N, C and memory. For C up to most_classes, whose counts fit in shared memory.
// Only integers are added atomically, to sums: the same bits every time. Measured times are owed: no GPU has run this yet.
#pragma once

#include <cstdint>

#include "cuda/device.h"

namespace icckd::cuda {

constexpr int most_classes = 8192;

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
  int32_t *rank_of_class, *anchor_shift;                               // (C): a class's rank, and from its positions to its anchors'
  int32_t *rank, *anchors;                                             // (rows), as in kernels/layout.py, and so the rest:
  int32_t *start, *size, *active, *memory_start, *memory_size, *totals;
  float *weight_sums, *scale;                                          // weights of each block of the batch; (1)
};

// ---- index logic ------------------------------------------------------------------------------------------------------

constexpr int count_threads = 512;
// More blocks than this do not make a GPU faster, but the table of counts larger.
constexpr int most_count_blocks = 512;
constexpr int rank_threads = 1024;
constexpr int classes_per_block = rank_threads / warp_size;

constexpr int rows_per_block_for(int64_t rows) {
  const int64_t per_block = (rows + most_count_blocks - 1) / most_count_blocks;
  return static_cast<int>((per_block + count_threads - 1) / count_threads * count_threads);
}

constexpr int blocks_for(int64_t rows) {
  return rows == 0 ? 0 : static_cast<int>((rows + rows_per_block_for(rows) - 1) / rows_per_block_for(rows));
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
ICCKD_DEVICE float block_sum(float value, float* partial) {
  const float of_warp = warp_sum(value);
  if (lane() == 0) partial[warp()] = of_warp;
  block_barrier();
  float sum = 0;
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
  return {anchors, anchors + p.batch.totals[2 * c + 1], p.memory.totals[c]};
}

// Where the keys of one class begin: rows that are anchors, other rows, rows of the memory.
struct KeyStarts {
  int anchors, others, memory;
};

// By one warp; c = C stands for rows without a class.
ICCKD_DEVICE KeyStarts rank_class(const ClassLayoutParams& p, int c) {
  const bool is_class = c < p.num_classes;
  const ClassCounts own = is_class ? counts_of(p, c) : ClassCounts{};
  int rank = 0, rows = 0, anchors = 0, memory = 0;
  for (int d = lane(); d < p.num_classes; d += warp_size) {
    const ClassCounts other = counts_of(p, d);
    if (!comes_before(other.rows, d, own.rows, c, p.num_classes)) continue;
    rank += 1;
    rows += other.rows;
    anchors += other.anchors;
    memory += other.memory;
  }
  rank = warp_sum(rank);
  rows = warp_sum(rows);
  anchors = warp_sum(anchors);
  memory = warp_sum(memory);
  if (is_class && lane() == 0) {
    p.rank_of_class[c] = rank;
    p.anchor_shift[c] = anchors - rows;
    p.start[rank] = rows;
    p.size[rank] = own.rows;
    p.active[rank] = own.anchors;
    p.memory_start[rank] = memory;
    p.memory_size[rank] = own.memory;
  }
  // Rows without a class have one key in the batch, where those of a class have their anchors'.
  return {rows, rows + own.anchors, memory};
}

// By one warp.
ICCKD_DEVICE void sum_classes(const ClassLayoutParams& p) {
  int sums[6] = {};
  for (int d = lane(); d < p.num_classes; d += warp_size) {
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
    sums[i] = warp_sum(sums[i]);
    if (lane() == 0) p.totals[i] = sums[i];
  }
  float weights = 0;
  for (int b = lane(); p.batch.weight != nullptr && b < p.batch.blocks; b += warp_size) weights += p.weight_sums[b];
  weights = p.batch.weight != nullptr ? warp_sum(weights) : static_cast<float>(sums[0]);
  if (lane() == 0) *p.scale = weights == 0 ? 0 : 1 / weights;
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

constexpr int rank_shared_bytes = 4 * (3 * classes_per_block + rank_threads);
constexpr int rank_blocks(int num_classes) { return num_classes / classes_per_block + 1; }

ICCKD_DEVICE void rank_classes(const ClassLayoutParams& p) {
  int* batch_first = reinterpret_cast<int*>(shared_memory());
  int* memory_first = batch_first + 2 * classes_per_block;
  int* partial = memory_first + classes_per_block;
  const int first_class = block() * classes_per_block, c = first_class + warp();
  if (c <= p.num_classes) {
    const KeyStarts starts = rank_class(p, c);
    if (lane() == 0) {
      batch_first[2 * warp()] = starts.anchors;
      batch_first[2 * warp() + 1] = starts.others;
      memory_first[warp()] = starts.memory;
    }
  }
  if (c == p.num_classes) sum_classes(p);
  block_barrier();
  start_blocks(p.batch, 2 * first_class, 2 * classes_per_block, batch_first, partial);
  start_blocks(p.memory, first_class, classes_per_block, memory_first, partial);
}

// ---- place_rows -------------------------------------------------------------------------------------------------------

ICCKD_DEVICE int position_of(const KeyedRows& source, int block_of_source, int row, int key) {
  const int position = source.starts[static_cast<int64_t>(block_of_source) * source.keys + key] + source.place[row];
  ICCKD_ASSERT(position >= 0 && position < source.rows);
  return position;
}

ICCKD_DEVICE void place_batch_row(const ClassLayoutParams& p, int row) {
  const int key = key_at(p.batch, row, p.num_classes), c = key / 2;
  const int position = position_of(p.batch, block(), row, key);
  p.batch.order[position] = row;
  p.rank[position] = c < p.num_classes ? p.rank_of_class[c] : -1;
  if (c < p.num_classes && key % 2 == 0) p.anchors[position + p.anchor_shift[c]] = position;
}

// Blocks as in count_keys.
ICCKD_DEVICE void place_rows(const ClassLayoutParams& p) {
  const bool in_batch = block() < p.batch.blocks;
  const KeyedRows& source = in_batch ? p.batch : p.memory;
  const int block_of_source = in_batch ? block() : block() - p.batch.blocks;
  const int64_t begin = static_cast<int64_t>(block_of_source) * source.rows_per_block;
  for (int64_t i = begin + thread(); i < begin + source.rows_per_block && i < source.rows; i += threads()) {
    const int row = static_cast<int>(i);
    if (in_batch)
      place_batch_row(p, row);
    else
      p.memory.order[position_of(source, block_of_source, row, key_at(source, row, p.num_classes))] = row;
  }
}

}  // namespace icckd::cuda
