// Which classes a block of the whole-class kernel computes, in which tiles, and where in shared memory: index logic alone.
//
//   positions   | class of rank 0 | rank 1 | rank 2 |  …  |        rows in the order of their classes, the largest first
//   shares      |  block 0             |  block 1      …  |        as many rows for each block: a class is of the share it begins in
//   tiles       |  0   |  1   |    2   |                           of one share: as many whole classes in a row as fit
//
// Bytes are what the kernel waits for, so that rows, not classes, are shared out evenly. Nothing is searched: where a share or a tile
// ends follows from the class that stands at one position.
#pragma once

#include <cstdint>

#include "cuda/swizzle.h"

namespace icckd::cuda {

// See `Layout` in kernels/layout.py.
struct RankedClasses {
  const int32_t *rank;          // of each position
  const int32_t *start, *size;  // of each rank
};

struct Positions {
  int begin, end;
};

// The first position from this one on at which a class begins; `labelled`, where rows without a class begin, if there is none.
ICCKD_HOST_DEVICE constexpr int class_from(int position, const RankedClasses& classes, int labelled) {
  if (position >= labelled) return labelled;
  const int rank = classes.rank[position], start = classes.start[rank];
  return start == position ? position : start + classes.size[rank];
}

// The positions of a block's classes, out of those from `first` to `labelled`. A class begins at `first`.
ICCKD_HOST_DEVICE constexpr Positions share_of(int block, int blocks, int first, const RankedClasses& classes, int labelled) {
  const int64_t rows = labelled - first;
  return {class_from(static_cast<int>(first + rows * block / blocks), classes, labelled),
          class_from(static_cast<int>(first + rows * (block + 1) / blocks), classes, labelled)};
}

// Where the tile of at most `rows` rows that begins at `begin` ends, in a share that ends at `share_end`. No class has more rows.
ICCKD_HOST_DEVICE constexpr int tile_end(int begin, int share_end, int rows, const RankedClasses& classes) {
  return share_end - begin <= rows ? share_end : classes.start[classes.rank[begin + rows]];
}

// ---- shared memory ------------------------------------------------------------------------------------------------------

// Rows of a tile that one warp multiplies.
constexpr int warp_rows = 16;
// Numbers that are kept for each row of a tile (TileRows, twice, and RowNumbers in whole_class.h).
constexpr int numbers_of_row = 2 * 5 + 8 + 5;

// Where the parts begin, in bytes, and how large they are.
//   operand   chunks of 128 bytes of every row of the tile, in the 128-byte swizzle
//   ring      for each warp `stages` times a row of anchor and one of positive, on their way from memory
//   bounce    for each warp 8 rows of a chunk in float32, on their way from the matrix unit's order to that of memory
struct WholeClassPlan {
  int rows, chunks, row_bytes, stages;
  int ring, bounce, bounce_stride, numbers, barriers, bytes;
};

constexpr int round_up(int x, int multiple) { return (x + multiple - 1) / multiple * multiple; }

constexpr WholeClassPlan plan_with(int rows, int stages, int dim, int element_bytes) {
  const int warps = rows / warp_rows, chunk_columns = swizzle_row_bytes / element_bytes;
  WholeClassPlan plan{};
  plan.rows = rows;
  plan.stages = stages;
  plan.chunks = (dim + chunk_columns - 1) / chunk_columns;
  plan.row_bytes = round_up(dim * element_bytes, 16);
  plan.ring = plan.chunks * rows * swizzle_row_bytes;
  plan.bounce = plan.ring + warps * stages * 2 * plan.row_bytes;
  // 4 more before column 32 and 4 behind: then neither 8 rows of a column nor 8 pieces of a row meet in a bank.
  plan.bounce_stride = chunk_columns + 8;
  plan.numbers = plan.bounce + warps * 8 * plan.bounce_stride * 4;
  plan.barriers = plan.numbers + numbers_of_row * rows * 4;
  plan.bytes = plan.barriers + warps * stages * 8;
  return plan;
}

// With as many stages as fit into `shared_limit` bytes, 4 or 2; rows 0 where a tile of that many rows does not fit at all.
constexpr WholeClassPlan plan_whole_class(int rows, int64_t dim, int element_bytes, int shared_limit) {
  // No row, or one so long that the number of its bytes might overflow.
  if (dim <= 0 || dim > 1 << 16) return {};
  for (int stages : {4, 2})
    if (const WholeClassPlan plan = plan_with(rows, stages, static_cast<int>(dim), element_bytes); plan.bytes <= shared_limit) return plan;
  return {};
}

// Tiles that the kernel is compiled for.
constexpr int tile_sizes[] = {32, 64, 128};

// The tile for rows of this length: the smallest one for classes of about `expected` rows, where some are half as large again; the
// largest one that fits if that is not enough, or not known (0). 0: none fits.
constexpr int tile_rows_for(int dim, int element_bytes, int shared_limit, int expected) {
  int best = 0;
  for (int rows : tile_sizes) {
    if (plan_whole_class(rows, dim, element_bytes, shared_limit).rows == 0) break;
    best = rows;
    if (expected > 0 && 3 * expected <= 2 * rows) break;
  }
  return best;
}

}  // namespace icckd::cuda
