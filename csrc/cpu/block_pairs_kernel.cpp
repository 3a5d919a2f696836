// The loss and the gradients of a class too large to be computed whole, under a constant shift, by pairs of its blocks
// (intra_class_rows.h has the mathematics).
//
// E is symmetric then, so the tile in which two blocks meet serves both: its sums over columns and over rows, and the products
// P z of both blocks. Similarities are never kept but computed twice, for the sums and for the gradients: for n candidates of which a
// are anchors, twice n·a − a²/2 of them, each 2D FLOP, then a(2n − a) additions of 2D FLOP for P z. The other way
// (class_blocks_kernel.cpp) has n·a + a(2n − a) similarities. A meeting reads its blocks' rows, D numbers each, once for each 128 or more of
// the rows that they meet, and so little beside its FLOP.
//
// A block adds to its own sums and to its own P z only while it meets one other: who meets whom and when (intra_class.cpp) keeps
// meetings that have a block in common apart, and in one order, whoever runs them.

#include "cpu/bfloat16_operands.h"
#include "cpu/intra_class_kernel.h"
#include "cpu/intra_class_rows.h"
#include "cpu/matrix.h"

namespace icckd::ICCKD_ISA {
namespace {

// The row stride of a tile of similarities.
int64_t tile_stride() {
  return row_stride(block_rows);
}

// Two blocks' rows as operands of products in float32: all of the first block's, a tile's of the second.
struct FloatOperands {
  int64_t padded_dim, stride;
  float *own, *other, *packed;

  FloatOperands(int64_t rows, int64_t dim, Scratch& parts) {
    padded_dim = round_up(dim, width);
    stride = row_stride(dim);
    own = parts.take(rows * stride);
    other = parts.take(block_rows * stride);
    packed = parts.take(block_rows * padded_dim);
  }

  void load_own(const Candidates& all, int64_t begin, int64_t end) { all.load(begin, end, own, stride); }

  void load_other(const Candidates& all, int64_t begin, int64_t end) {
    const int64_t count = end - begin, padded = round_up(count, width);
    all.load(begin, end, other, stride);
    fill(other + count * stride, (padded - count) * stride, 0);
    pack_transposed(other, padded, stride, padded_dim, packed);
  }

  // e = similarities of `rows` own rows, from `first` on, with the other's.
  void similarities(int64_t first, int64_t rows, int64_t columns, int64_t dim, float* e) {
    multiply(rows, parts_of_at_most(columns, width), dim, {own + first * stride, stride, 1}, {packed, width, padded_dim * width},
             {e, tile_stride(), width}, false);
  }

  // pull_own += P other and, for the first `receivers` of the others, pull_other += Pᵀ own.
  void pull(const float* p, int64_t first, int64_t rows, int64_t columns, int64_t receivers, float* pull_own, float* pull_other) {
    const int64_t vectors = padded_dim / width, e_stride = tile_stride();
    multiply(rows, vectors, columns, {p, e_stride, 1}, {other, stride, width}, {pull_own, stride, width}, true);
    if (receivers > 0)
      multiply(receivers, vectors, rows, {p, 1, e_stride}, {own + first * stride, stride, width}, {pull_other, stride, width}, true);
  }
};

// Where the parts of the scratch lie.
template <class Operands>
struct Meeting {
  int64_t size, stride;
  Scratch parts;
  Operands operands;
  float *e, *row;
  float *sums, *excess, *weight, *similarity;

  Meeting(int64_t rows, int64_t dim, float* scratch) : stride(row_stride(dim)), parts(scratch), operands(rows, dim, parts) {
    e = parts.take(block_rows * tile_stride());
    row = parts.take(stride);
    for (float** array : {&sums, &excess, &weight, &similarity}) *array = parts.take(block_rows);
    size = parts.taken();
  }
};

// Rows [i, i_end) against columns [j, j_end) of the class's candidates; `one_way` where these are the same.
struct Tile {
  int64_t i, i_end, j, j_end;
  bool one_way;

  int64_t padded() const { return round_up(j_end - j, width); }
};

// Calls use(tile) with the similarities of every tile in m.e, −∞ in the padding and where i = j. In the meeting of a block with itself, of
// two tiles that mirror each other only the one above the diagonal.
template <class M, class Use>
void meet(const Candidates& all, M& m, const BlockPair& pair, const Use& use) {
  const bool same = pair.is_diagonal();
  m.operands.load_own(all, pair.begin, pair.end);
  for (int64_t j = pair.other_begin; j < pair.other_end; j += block_rows) {
    const int64_t j_end = j + block_rows < pair.other_end ? j + block_rows : pair.other_end;
    m.operands.load_other(all, j, j_end);
    for (int64_t i = pair.begin; i < pair.end && (!same || i <= j); i += block_rows) {
      const Tile tile{i, i + block_rows < pair.end ? i + block_rows : pair.end, j, j_end, same && i == j};
      m.operands.similarities(i - pair.begin, tile.i_end - i, j_end - j, all.problem.dim, m.e);
      for (int64_t k = 0; k < tile.i_end - i; ++k) {
        float* s = m.e + k * tile_stride();
        fill(s + j_end - j, tile.padded() - (j_end - j), -INFINITY);
        if (tile.one_way) s[k] = -INFINITY;
      }
      use(tile);
    }
  }
}

// The elements [j, j_end) of an array of anchors' states; 0 beyond the anchors and in the padding.
void gather(const float* states, int64_t anchors, const Tile& t, float* out) {
  for (int64_t k = 0; k < t.padded(); ++k) out[k] = t.j + k < t.j_end && t.j + k < anchors ? states[t.j + k] : 0;
}

// Adds the tile's E, and E times what its anchors' gradients with respect to κ take, to the sums of its rows and its columns.
template <bool with_excess, class M>
void add_tile(const Candidates& all, const M& m, const AnchorStates& states, const Tile& t) {
  const Vec scale = splat(all.problem.scale);
  gather(states.similarity, all.anchors, t, m.similarity);
  fill(m.sums, t.padded(), 0);
  fill(m.excess, t.padded(), 0);
  for (int64_t i = t.i; i < t.i_end; ++i) {
    const Vec similarity = splat(states.similarity[i]);
    const float* row = m.e + (i - t.i) * tile_stride();
    Vec sums{}, excess{};
    for (int64_t k = 0; k < t.padded(); k += width) {
      const Vec s = load(row + k), e = exp(scale * (s - 1));
      sums += e;
      store(m.sums + k, load(m.sums + k) + e);
      if constexpr (with_excess) {
        const Vec finite = e == 0 ? Vec{} : s;  // not 0 · −∞
        excess += e * (finite - similarity);
        store(m.excess + k, load(m.excess + k) + e * (finite - load(m.similarity + k)));
      }
    }
    states.negatives[i] += sum(sums);
    states.excess[i] += sum(excess);
  }
  for (int64_t j = t.j; j < t.j_end && j < all.anchors && !t.one_way; ++j) {
    states.negatives[j] += m.sums[j - t.j];
    states.excess[j] += m.excess[j - t.j];
  }
}

// E becomes P, and P z is added to the pull of the tile's rows and of its columns.
template <class M>
void pull_tile(const Candidates& all, M& m, const AnchorStates& states, const BlockPair& pair, const Tile& t, float* pull) {
  const Vec scale = splat(all.problem.scale);
  gather(states.weight, all.anchors, t, m.weight);
  for (int64_t i = t.i; i < t.i_end; ++i) {
    const Vec weight = splat(states.weight[i]);
    float* row = m.e + (i - t.i) * tile_stride();
    for (int64_t k = 0; k < t.padded(); k += width)
      store(row + k, (weight + load(m.weight + k)) * exp(scale * (load(row + k) - 1)));
  }
  const int64_t with_gradient = (t.j_end < all.row_count ? t.j_end : all.row_count) - t.j;  // not a memory's rows
  m.operands.pull(m.e, t.i - pair.begin, t.i_end - t.i, t.j_end - t.j, t.one_way ? 0 : with_gradient, pull + t.i * m.stride,
                  pull + t.j * m.stride);
}

template <class Operands>
void add_sums_by(const IntraClassProblem& problem, const IntraClassResults& results, AnchorStates states, BlockPair pair,
                 float* scratch) {
  const Candidates all(problem, pair.class_index);
  Meeting<Operands> m(pair.end - pair.begin, problem.dim, scratch);
  states = states.of_class(problem.layout->row_begin[pair.class_index]);
  for (int64_t i = pair.begin; pair.is_diagonal() && i < pair.end; ++i) {
    all.load(i, i + 1, m.row, m.stride);
    states.similarity[i] = all.positive(i, m.row).similarity;
    states.negatives[i] = states.excess[i] = 0;
  }
  meet(all, m, pair, [&](const Tile& tile) {
    if (results.d_scale)
      add_tile<true>(all, m, states, tile);
    else
      add_tile<false>(all, m, states, tile);
  });
}

template <class Operands>
void add_pull_by(const IntraClassProblem& problem, AnchorStates states, BlockPair pair, float* pull, float* scratch) {
  const Candidates all(problem, pair.class_index);
  Meeting<Operands> m(pair.end - pair.begin, problem.dim, scratch);
  states = states.of_class(problem.layout->row_begin[pair.class_index]);
  if (pair.is_diagonal()) fill(pull + pair.begin * m.stride, (pair.end - pair.begin) * m.stride, 0);
  if (pair.begin < all.anchors) meet(all, m, pair, [&](const Tile& tile) { pull_tile(all, m, states, pair, tile, pull); });
}

template <class T>
struct Tag {
  using Type = T;
};

// Calls run(Tag<T>{}) with the operands T that serve the problem fastest.
template <class Run>
auto with_operands([[maybe_unused]] const IntraClassProblem& problem, const Run& run) {
#if defined(__AVX512BF16__)
  if (Bfloat16Operands::can(problem)) return run(Tag<Bfloat16Operands>{});
#endif
  return run(Tag<FloatOperands>{});
}

}  // namespace

int64_t meeting_scratch(const IntraClassProblem& problem, int64_t rows) {
  return with_operands(problem, [&](auto type) { return Meeting<typename decltype(type)::Type>(rows, problem.dim, nullptr).size; });
}

int64_t pull_stride(int64_t dim) {
  return row_stride(dim);
}

void add_sums(const IntraClassProblem& problem, const IntraClassResults& results, AnchorStates states, BlockPair pair, float* scratch) {
  with_operands(problem, [&](auto type) { add_sums_by<typename decltype(type)::Type>(problem, results, states, pair, scratch); });
}

Sums finish_block(const IntraClassProblem& problem, const IntraClassResults& results, AnchorStates states, Block block) {
  const Candidates all(problem, block.class_index);
  states = states.of_class(problem.layout->row_begin[block.class_index]);
  Sums sums;
  for (int64_t i = block.begin; i < block.end; ++i) {
    const Anchor anchor{1, states.similarity[i], states.negatives[i], states.excess[i]};
    const Finished finished = finish(problem, results, all.rows[i], anchor, sums);
    states.weight[i] = finished.weight;
    states.push[i] = finished.push;
  }
  return sums;
}

void add_pull(const IntraClassProblem& problem, AnchorStates states, BlockPair pair, float* pull, float* scratch) {
  with_operands(problem, [&](auto type) { add_pull_by<typename decltype(type)::Type>(problem, states, pair, pull, scratch); });
}

void write_block(const IntraClassProblem& problem, const IntraClassResults& results, AnchorStates states, Block block,
                 const float* pull, float* scratch) {
  const Candidates all(problem, block.class_index);
  const int64_t stride = row_stride(problem.dim);
  states = states.of_class(problem.layout->row_begin[block.class_index]);
  for (int64_t i = block.begin; i < block.end; ++i) {
    float *z = scratch, factor;
    all.load(i, i + 1, z, stride, &factor);
    const float push = i < all.anchors ? states.push[i] : 0;
    const Positive positive = push == 0 ? Positive{} : all.positive(i, z);
    with_type(problem.anchor.element, [&](auto type) {
      write_gradients<decltype(type)>(problem, results, all.rows[i], z, factor, pull + i * stride, push, positive);
    });
  }
  stored_past_caches();
}

}  // namespace icckd::ICCKD_ISA
