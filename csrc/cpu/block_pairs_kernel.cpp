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

#include "cpu/intra_class_kernel.h"
#include "cpu/intra_class_rows.h"
#include "cpu/matrix.h"

namespace icckd::ICCKD_ISA {
namespace {

// Where the parts of the scratch lie: rows of the first block, a tile's rows of the second, and one tile of similarities.
struct Meeting {
  int64_t padded_dim, stride, e_stride, size;
  float *z, *other, *packed, *e;
  float *sums, *excess, *weight, *similarity, *factor;

  Meeting(int64_t rows, int64_t dim, float* scratch) {
    padded_dim = round_up(dim, width);
    stride = row_stride(dim);
    e_stride = row_stride(block_rows);
    Scratch parts(scratch);
    z = parts.take(rows * stride);
    other = parts.take(block_rows * stride);
    packed = parts.take(block_rows * padded_dim);
    e = parts.take(block_rows * e_stride);
    for (float** array : {&sums, &excess, &weight, &similarity}) *array = parts.take(block_rows);
    factor = parts.take(rows);
    size = parts.taken();
  }
};

// Rows [i, i_end) against columns [j, j_end) of the class's candidates; `one_way` where these are the same.
struct Tile {
  int64_t i, i_end, j, j_end;
  bool one_way;

  int64_t padded() const { return round_up(j_end - j, width); }
};

// Similarities of a tile, −∞ in the padding and where i = j.
void similarities_of_tile(const Meeting& m, const float* z, int64_t dim, const Tile& t) {
  multiply(t.i_end - t.i, t.padded() / width, dim, {z, m.stride, 1}, {m.packed, width, m.padded_dim * width},
           {m.e, m.e_stride, width}, false);
  for (int64_t i = 0; i < t.i_end - t.i; ++i) {
    float* s = m.e + i * m.e_stride;
    fill(s + t.j_end - t.j, t.padded() - (t.j_end - t.j), -INFINITY);
    if (t.one_way) s[i] = -INFINITY;
  }
}

// Calls use(tile, the tile's rows in m.z) with the similarities of every tile in m.e and the candidates of its columns in m.other. In the
// meeting of a block with itself, of two tiles that mirror each other only the one above the diagonal.
template <class Use>
void meet(const Candidates& all, const Meeting& m, const BlockPair& pair, const Use& use) {
  const bool same = pair.is_diagonal();
  all.load(pair.begin, pair.end, m.z, m.stride, m.factor);
  for (int64_t j = pair.other_begin; j < pair.other_end; j += block_rows) {
    const int64_t j_end = j + block_rows < pair.other_end ? j + block_rows : pair.other_end;
    const int64_t padded = round_up(j_end - j, width);
    all.load(j, j_end, m.other, m.stride);
    fill(m.other + (j_end - j) * m.stride, (padded - (j_end - j)) * m.stride, 0);
    pack_transposed(m.other, padded, m.stride, m.padded_dim, m.packed);
    for (int64_t i = pair.begin; i < pair.end && (!same || i <= j); i += block_rows) {
      const Tile tile{i, i + block_rows < pair.end ? i + block_rows : pair.end, j, j_end, same && i == j};
      const float* z = m.z + (i - pair.begin) * m.stride;
      similarities_of_tile(m, z, all.problem.dim, tile);
      use(tile, z);
    }
  }
}

// The elements [j, j_end) of an array of anchors' states; 0 beyond the anchors and in the padding.
void gather(const float* states, int64_t anchors, const Tile& t, float* out) {
  for (int64_t k = 0; k < t.padded(); ++k) out[k] = t.j + k < t.j_end && t.j + k < anchors ? states[t.j + k] : 0;
}

// Adds the tile's E, and E times what its anchors' gradients with respect to κ take, to the sums of its rows and its columns.
template <bool with_excess>
void add_tile(const Candidates& all, const Meeting& m, const AnchorStates& states, const Tile& t) {
  const Vec scale = splat(all.problem.scale);
  gather(states.similarity, all.anchors, t, m.similarity);
  fill(m.sums, t.padded(), 0);
  fill(m.excess, t.padded(), 0);
  for (int64_t i = t.i; i < t.i_end; ++i) {
    const Vec similarity = splat(states.similarity[i]);
    const float* row = m.e + (i - t.i) * m.e_stride;
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
void pull_tile(const Candidates& all, const Meeting& m, const AnchorStates& states, const Tile& t, const float* z, float* pull) {
  const Vec scale = splat(all.problem.scale);
  const int64_t vectors = m.padded_dim / width, rows = t.i_end - t.i, columns = t.j_end - t.j;
  gather(states.weight, all.anchors, t, m.weight);
  for (int64_t i = 0; i < rows; ++i) {
    const Vec weight = splat(states.weight[t.i + i]);
    float* row = m.e + i * m.e_stride;
    for (int64_t k = 0; k < t.padded(); k += width)
      store(row + k, (weight + load(m.weight + k)) * exp(scale * (load(row + k) - 1)));
  }
  multiply(rows, vectors, columns, {m.e, m.e_stride, 1}, {m.other, m.stride, width}, {pull + t.i * m.stride, m.stride, width}, true);
  const int64_t receivers = (t.j_end < all.row_count ? t.j_end : all.row_count) - t.j;  // a memory's rows have no gradient
  if (!t.one_way && receivers > 0)
    multiply(receivers, vectors, rows, {m.e, 1, m.e_stride}, {z, m.stride, width}, {pull + t.j * m.stride, m.stride, width}, true);
}

}  // namespace

int64_t meeting_scratch(int64_t rows, int64_t dim) {
  return Meeting(rows, dim, nullptr).size;
}

int64_t pull_stride(int64_t dim) {
  return row_stride(dim);
}

void add_sums(const IntraClassProblem& problem, const IntraClassResults& results, AnchorStates states, BlockPair pair, float* scratch) {
  const Candidates all(problem, pair.class_index);
  const Meeting m(pair.end - pair.begin, problem.dim, scratch);
  states = states.of_class(problem.layout->row_begin[pair.class_index]);
  if (pair.is_diagonal()) {
    all.load(pair.begin, pair.end, m.z, m.stride, m.factor);
    for (int64_t i = pair.begin; i < pair.end; ++i) {
      states.similarity[i] = all.positive(i, m.z + (i - pair.begin) * m.stride).similarity;
      states.negatives[i] = states.excess[i] = 0;
    }
  }
  meet(all, m, pair, [&](const Tile& tile, const float*) {
    if (results.d_scale)
      add_tile<true>(all, m, states, tile);
    else
      add_tile<false>(all, m, states, tile);
  });
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
  const Candidates all(problem, pair.class_index);
  const Meeting m(pair.end - pair.begin, problem.dim, scratch);
  states = states.of_class(problem.layout->row_begin[pair.class_index]);
  if (pair.is_diagonal()) fill(pull + pair.begin * m.stride, (pair.end - pair.begin) * m.stride, 0);
  if (pair.begin < all.anchors)
    meet(all, m, pair, [&](const Tile& tile, const float* z) { pull_tile(all, m, states, tile, z, pull); });
}

void write_block(const IntraClassProblem& problem, const IntraClassResults& results, AnchorStates states, Block block,
                 const float* pull, float* scratch) {
  const Candidates all(problem, block.class_index);
  const Meeting m(1, problem.dim, scratch);
  states = states.of_class(problem.layout->row_begin[block.class_index]);
  for (int64_t i = block.begin; i < block.end; ++i) {
    all.load(i, i + 1, m.z, m.stride, m.factor);
    const float push = i < all.anchors ? states.push[i] : 0;
    const Positive positive = push == 0 ? Positive{} : all.positive(i, m.z);
    with_type(problem.anchor.element, [&](auto type) {
      write_gradients<decltype(type)>(problem, results, all.rows[i], m.z, *m.factor, pull + i * m.stride, push, positive);
    });
  }
  stored_past_caches();
}

}  // namespace icckd::ICCKD_ISA
