// Adaptive hierarchical similarity by pairs of blocks of rows (hierarchical_kernel.cpp).
#pragma once

#include <cstdint>

#include "cpu/dispatch.h"

namespace icckd {

constexpr int64_t hierarchical_rows = 128;  // of a tile; blocks are of whole tiles

// T rows sorted by class. What begins where a block begins is of `sizes` numbers; nothing of it is written twice at a time.
struct HierarchicalJob {
  const float* rows;       // (T, dim)
  const int32_t* classes;  // (T + hierarchical_rows), −1 beyond T
  const float* centers;    // (C, dim), the mean rows of the classes
  const float* own;        // (C), Ŝ_aa
  const float* anchor;     // (T), 1 for an anchor, 0 for another row
  int64_t count, dim;      // T, dim
  float factor, offset;    // Ŝ_ab = factor · center_a·center_b + offset
  float gamma, positive_scale, negative_scale;

  // By `prepare`: rows apart by whole registers; rows, and the mean rows of their classes, as the right operands of products.
  float *z, *packed, *packed_centers;
  // Of each row, T + hierarchical_rows: Σ exp(x) over its own class and over others, then 1 / (1 + Σ); its least similarity.
  float *own_sum, *other_sum, *least;
  float* pull;  // as z: the gradient; null where it is not wanted
};

struct HierarchicalSizes {
  int64_t row_stride, padded_dim, scratch;  // of z and pull; of packed rows; floats that a meeting needs
};

// Rows [begin, end) and [other_begin, other_end): one block twice, or the first before the second.
struct BlockMeeting {
  int64_t begin, end, other_begin, other_end;
};

// clang-format off
ICCKD_DECLARE_KERNELS(
  HierarchicalSizes hierarchical_sizes(int64_t dim);

  // In this order: `prepare` of every block, `add_sums` of every block with itself and with every other one, `finish` of every block,
  // which returns its anchors' losses, `add_pull` of the same pairs, `write` of every block.
  void hierarchical_prepare(const HierarchicalJob&, int64_t begin, int64_t end, float* scratch);
  void hierarchical_add_sums(const HierarchicalJob&, BlockMeeting, float* scratch);
  double hierarchical_finish(const HierarchicalJob&, int64_t begin, int64_t end);
  void hierarchical_add_pull(const HierarchicalJob&, BlockMeeting, float* scratch);
  void hierarchical_write(const HierarchicalJob&, int64_t begin, int64_t end, float* gradient);
)
// clang-format on

}  // namespace icckd
