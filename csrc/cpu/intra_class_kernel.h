// The intra-class loss of one class (whole_class_kernel.cpp), of two blocks of a class (block_pairs_kernel.cpp), or of one block at any
// shift (class_blocks_kernel.cpp).
#pragma once

#include <cmath>
#include <cstdint>

#include "cpu/class_layout.h"
#include "cpu/dispatch.h"
#include "cpu/element.h"

namespace icckd {

// A matrix of `element`s whose rows are contiguous.
struct Rows {
  const void* data = nullptr;
  Element element = Element::float32;
  int64_t stride = 0;
};

struct IntraClassProblem {
  Rows anchor, positive, memory;
  int64_t dim;
  const float* weight;  // of every row's loss
  float largest_weight;
  float scale;          // κ = 1 / temperature
  bool normalize;
  const ClassLayout* layout;

  // Whether 1 can be every anchor's shift: similarities are at most 1, exp(−2κ), which an anchor's sum of exponentials may be, does
  // not underflow, and two weights over it, which may carry the scale of a loss, do not overflow: log of the largest float is 88.7.
  bool constant_shift() const { return normalize && scale <= 40 && std::log(largest_weight) + 2 * scale <= 87; }
};

// What is wanted; null where something is not. In rows and lse, only anchors' elements are written.
struct IntraClassResults {
  float* rows;       // weight · loss
  float* lse;        // log-sum-exp
  void* d_anchor;    // contiguous, of the anchor's element
  void* d_positive;  // contiguous, of the anchor's element
  bool d_scale;      // whether Sums::d_scale is wanted
  bool past_caches;  // whether to write the gradients past the caches: their rows are whole cache lines then

  bool any_gradient_of_rows() const { return d_anchor != nullptr || d_positive != nullptr; }
};

// What a work unit adds to the results.
struct Sums {
  double loss = 0, d_scale = 0;
};

// What a class's blocks leave for each other, by position in ClassLayout::rows: in an anchor's gradient, the negative z' has the factor
// κ · weight · exp(κ (z·z' − shift)), and the positive κ · push. The others are those of struct Anchor, for pairs of blocks only.
struct AnchorStates {
  float *shift, *weight, *push;
  float *similarity, *negatives, *excess;

  // The same from a class's first row on.
  AnchorStates of_class(int64_t first) const {
    return {shift + first, weight + first, push + first, similarity + first, negatives + first, excess + first};
  }
};

constexpr int64_t block_rows = 128;  // rows of the blocks into which large classes are cut

struct Block {
  int64_t class_index, begin, end;  // positions in the class
};

// Blocks [begin, end) and [other_begin, other_end) of a class's candidates: one block twice, or the first before the second. The first
// has anchors only, but for a block twice, which may be of other rows.
struct BlockPair {
  int64_t class_index, begin, end, other_begin, other_end;

  bool is_diagonal() const { return begin == other_begin; }
};

// clang-format off
ICCKD_DECLARE_KERNELS(
  // Floats of scratch that the functions below need.
  int64_t whole_class_scratch(int64_t anchors, int64_t candidates, int64_t dim);
  int64_t block_scratch(int64_t dim);

  // Everything about one class, if constant_shift() holds. Every similarity is computed once and kept.
  Sums whole_class(const IntraClassProblem&, const IntraClassResults&, int64_t class_index, float* scratch);

  // The same, if constant_shift() holds, by pairs of blocks. In this order: `add_sums` of every block of anchors with itself, which also
  // begins its sums; of every block of anchors with every other block; `finish_block` of every block of anchors; `add_pull` of every
  // block of rows with itself, which also begins its pull; of the same pairs as before; `write_block` of every block of rows. `pull`:
  // Σ_j P_ij z_j of the class's rows i, pull_stride(dim) apart.
  int64_t meeting_scratch(const IntraClassProblem&, int64_t rows);
  int64_t pull_stride(int64_t dim);
  void add_sums(const IntraClassProblem&, const IntraClassResults&, AnchorStates, BlockPair, float* scratch);
  Sums finish_block(const IntraClassProblem&, const IntraClassResults&, AnchorStates, Block);
  void add_pull(const IntraClassProblem&, AnchorStates, BlockPair, float* pull, float* scratch);
  void write_block(const IntraClassProblem&, const IntraClassResults&, AnchorStates, Block, const float* pull, float* scratch);

  // The losses of a block of a class's anchors at any shift, then, when all of these are done, the gradients of a block of its rows.
  Sums log_sum_exp_block(const IntraClassProblem&, const IntraClassResults&, AnchorStates, Block, float* scratch);
  void gradient_block(const IntraClassProblem&, const IntraClassResults&, AnchorStates, Block, float* scratch);

  // Zero gradients for rows that take no part: order[0 … count).
  void zero_gradients(const IntraClassProblem&, const IntraClassResults&, const int64_t* order, int64_t count);
)
// clang-format on

}  // namespace icckd
