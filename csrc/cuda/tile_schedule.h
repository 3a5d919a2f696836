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
// What a warp keeps of a product's accumulators at a time: 8 rows × 32 columns. 8 more columns, so that rows begin at different banks.
constexpr int bounce_rows = 8, bounce_columns = 32, bounce_stride = bounce_columns + 8;

// Where the parts begin, in bytes. All but the last are of one size for a tile of `rows` rows.
//   numbers   of each row of a tile, and of the tile (RowNumbers, and TileRows twice, in whole_class.h)
//   bounce    of each warp, on the way from the matrix unit's order to that of memory
//   operand   chunks of 128 bytes of every row of the tile, in the 128-byte swizzle
ICCKD_HOST_DEVICE constexpr int round_up(int x, int multiple) { return (x + multiple - 1) / multiple * multiple; }
ICCKD_HOST_DEVICE constexpr int numbers_bytes(int rows) { return ((8 + 2 + 2 * 5) * rows + 2 * 4) * 4; }
ICCKD_HOST_DEVICE constexpr int bounce_at(int rows) { return numbers_bytes(rows); }
ICCKD_HOST_DEVICE constexpr int operand_at(int rows) {
  return round_up(bounce_at(rows) + rows / warp_rows * bounce_rows * bounce_stride * 4, swizzle_atom_bytes);
}

// A tile, how many chunks its rows have, and the bytes of shared memory that it takes.
struct WholeClassPlan {
  int rows, chunks, bytes;
};

// rows 0 where a tile of that many rows does not fit into `shared_limit` bytes.
constexpr WholeClassPlan plan_whole_class(int rows, int64_t dim, int element_bytes, int shared_limit) {
  // No row, or one so long that the number of its bytes might overflow.
  if (dim <= 0 || dim > 1 << 16) return {};
  const int chunk_columns = swizzle_row_bytes / element_bytes, chunks = (static_cast<int>(dim) + chunk_columns - 1) / chunk_columns;
  const WholeClassPlan plan{rows, chunks, operand_at(rows) + chunks * rows * swizzle_row_bytes};
  return plan.bytes <= shared_limit ? plan : WholeClassPlan{};
}

// Tiles that the kernel is compiled for.
constexpr int tile_sizes[] = {32, 64, 96, 128};

// The tile for rows of this length: the smallest one for classes of `expected` rows on average, which as counts of random labels exceed
// that by 3.5 √expected in one of some thousand cases; the largest one that fits if that is not enough, or not known (0). 0: none fits.
constexpr int tile_rows_for(int dim, int element_bytes, int shared_limit, int expected) {
  int best = 0;
  for (int rows : tile_sizes) {
    if (plan_whole_class(rows, dim, element_bytes, shared_limit).rows == 0) break;
    best = rows;
    const int room = rows - expected;
    if (expected > 0 && room > 0 && 4 * room * room >= 49 * expected) break;
  }
  return best;
}

}  // namespace icckd::cuda
