// The loss and the gradients of classes of any size where no constant shift will do, block by block (intra_class_rows.h has the
// mathematics).
//
// A block has block_rows of the class's rows; it meets the class's candidates block_rows at a time, once for the log-sum-exp and once
// for the gradients, and similarities are never kept: n·a + a(2n − a) of them, each 2D FLOP, and as much for P z as in
// whole_class_kernel.cpp, for n candidates of which a are anchors. The block's own rows are columns here, so that sums over candidates
// are sums of vectors.

#include "cpu/intra_class_kernel.h"
#include "cpu/intra_class_rows.h"
#include "cpu/matrix.h"

namespace icckd::ICCKD_ISA {
namespace {

struct Blocks {
  int64_t padded_dim, stride, e_stride, size;
  float *own, *packed, *other, *pull, *e;
  float *similarity, *factor, *shift, *weight, *sums, *excess;

  Blocks(int64_t dim, float* scratch) {
    padded_dim = round_up(dim, width);
    stride = row_stride(dim);
    e_stride = row_stride(block_rows);
    Scratch parts(scratch);
    for (float** matrix : {&own, &packed, &other, &pull}) *matrix = parts.take(block_rows * stride);
    e = parts.take(block_rows * e_stride);
    for (float** array : {&similarity, &factor, &shift, &weight, &sums, &excess}) *array = parts.take(block_rows);
    size = parts.taken();
  }
};

// The block's rows, plain and packed, padded with zero rows to `padded`.
void load_own(const Candidates& all, const Blocks& b, Block block, int64_t padded) {
  const int64_t count = block.end - block.begin;
  all.load(block.begin, block.end, b.own, b.stride, b.factor);
  fill(b.own + count * b.stride, (padded - count) * b.stride, 0);
  pack_transposed(b.own, padded, b.stride, b.padded_dim, b.packed);
}

// Similarities of candidates [begin, end), loaded here as rows, with the block's own rows as columns; −∞ where the two are one.
void similarities_of_block(const Candidates& all, const Blocks& b, Block block, int64_t padded, int64_t begin, int64_t end) {
  all.load(begin, end, b.other, b.stride);
  multiply(end - begin, padded / width, all.problem.dim, {b.other, b.stride, 1}, {b.packed, width, b.padded_dim * width},
           {b.e, b.e_stride, width}, false);
  for (int64_t i = begin > block.begin ? begin : block.begin; i < end && i < block.end; ++i)
    b.e[(i - begin) * b.e_stride + i - block.begin] = -INFINITY;
}

// Adds `count` candidates' exponentials to the sums of own rows [i, i + width), raising their shift where needed.
void add_exponentials(const Blocks& b, int64_t i, int64_t count, const IntraClassProblem& problem) {
  const Vec scale = splat(problem.scale), similarity = load(b.similarity + i), before = load(b.shift + i);
  Vec shift = before;
  for (int64_t j = 0; j < count; ++j) shift = max(load(b.e + j * b.e_stride + i), shift);
  const Vec fading = exp(scale * (before - shift));
  store(b.sums + i, load(b.sums + i) * fading);
  store(b.excess + i, load(b.excess + i) * fading);
  store(b.shift + i, shift);
  Vec sums{}, excess{};
  for (int64_t j = 0; j < count; ++j) {
    const Vec s = load(b.e + j * b.e_stride + i), e = exp(scale * (s - shift));
    sums += e;
    excess += e * ((e == 0 ? Vec{} : s) - similarity);
  }
  store(b.sums + i, load(b.sums + i) + sums);
  store(b.excess + i, load(b.excess + i) + excess);
}

// Similarities become P_ij for candidates j from `begin` on, as rows, and own rows i, as columns.
void weigh_block(const Blocks& b, const IntraClassProblem& problem, const AnchorStates& states, int64_t anchors, int64_t padded,
                 int64_t begin, int64_t end) {
  const Vec scale = splat(problem.scale);
  for (int64_t j = begin; j < end; ++j) {
    const Vec weight = splat(j < anchors ? states.weight[j] : 0), shift = splat(j < anchors ? states.shift[j] : 0);
    float* row = b.e + (j - begin) * b.e_stride;
    for (int64_t i = 0; i < padded; i += width) {
      const Vec similarity = load(row + i), own = load(b.weight + i);
      store(row + i, weight * exp(scale * (similarity - shift)) + own * exp(scale * (similarity - load(b.shift + i))));
    }
  }
}

}  // namespace

int64_t block_scratch(int64_t dim) {
  return Blocks(dim, nullptr).size;
}

Sums log_sum_exp_block(const IntraClassProblem& problem, const IntraClassResults& results, AnchorStates states, Block block,
                       float* scratch) {
  const Candidates all(problem, block.class_index);
  const Blocks b(problem.dim, scratch);
  states = states.of_class(problem.layout->row_begin[block.class_index]);
  const int64_t count = block.end - block.begin, padded = round_up(count, width);
  load_own(all, b, block, padded);
  fill(b.similarity, padded, 0);
  for (int64_t i = 0; i < count; ++i) b.similarity[i] = all.positive(block.begin + i, b.own + i * b.stride).similarity;
  fill(b.sums, padded, 0);
  fill(b.excess, padded, 0);
  for (int64_t i = 0; i < padded; ++i) b.shift[i] = b.similarity[i];
  for (int64_t begin = 0; begin < all.count; begin += block_rows) {
    const int64_t end = begin + block_rows < all.count ? begin + block_rows : all.count;
    similarities_of_block(all, b, block, padded, begin, end);
    for (int64_t i = 0; i < padded; i += width) add_exponentials(b, i, end - begin, problem);
  }
  Sums sums;
  for (int64_t i = 0; i < count; ++i) {
    const Anchor anchor{b.shift[i], b.similarity[i], b.sums[i], b.excess[i]};
    const Finished finished = finish(problem, results, all.rows[block.begin + i], anchor, sums);
    states.shift[block.begin + i] = anchor.shift;
    states.weight[block.begin + i] = finished.weight;
    states.push[block.begin + i] = finished.push;
  }
  return sums;
}

void gradient_block(const IntraClassProblem& problem, const IntraClassResults& results, AnchorStates states, Block block,
                    float* scratch) {
  const Candidates all(problem, block.class_index);
  const Blocks b(problem.dim, scratch);
  states = states.of_class(problem.layout->row_begin[block.class_index]);
  const int64_t count = block.end - block.begin, padded = round_up(count, width);
  load_own(all, b, block, padded);
  fill(b.weight, padded, 0);
  fill(b.shift, padded, 0);
  for (int64_t i = 0; i < count && block.begin + i < all.anchors; ++i) {
    b.weight[i] = states.weight[block.begin + i];
    b.shift[i] = states.shift[block.begin + i];
  }
  const bool has_anchors = block.begin < all.anchors;
  const int64_t candidates = has_anchors ? all.count : all.anchors;  // rows that are no anchors are negatives of anchors only
  if (results.d_anchor != nullptr)
    for (int64_t begin = 0; begin < candidates; begin += block_rows) {
      const int64_t end = begin + block_rows < candidates ? begin + block_rows : candidates;
      similarities_of_block(all, b, block, padded, begin, end);
      weigh_block(b, problem, states, all.anchors, padded, begin, end);
      multiply(count, b.padded_dim / width, end - begin, {b.e, 1, b.e_stride}, {b.other, b.stride, width},
               {b.pull, b.stride, width}, begin > 0);
    }
  for (int64_t i = 0; i < count; ++i) {
    const float* z = b.own + i * b.stride;
    const float push = block.begin + i < all.anchors ? states.push[block.begin + i] : 0;
    const Positive positive = push == 0 ? Positive{} : all.positive(block.begin + i, z);
    with_type(problem.anchor.element, [&](auto type) {
      write_gradients<decltype(type)>(problem, results, all.rows[block.begin + i], z, b.factor[i], b.pull + i * b.stride, push,
                                      positive);
    });
  }
  stored_past_caches();
}

void zero_gradients(const IntraClassProblem& problem, const IntraClassResults& results, const int64_t* order, int64_t count) {
  for (int64_t i = 0; i < count; ++i)
    with_type(problem.anchor.element, [&](auto type) {
      using T = decltype(type);
      for (void* gradient : {results.d_anchor, results.d_positive})
        if (gradient != nullptr) store_zeros(static_cast<T*>(gradient) + order[i] * problem.dim, problem.dim, results.past_caches);
    });
  stored_past_caches();
}

}  // namespace icckd::ICCKD_ISA
