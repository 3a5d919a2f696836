// Adaptive hierarchical similarity: the sums of every row's terms and the gradients, by pairs of blocks of rows sorted by class.
//
//     x_ij = −ς (z_i·z_j − γ − Ŝ_aa)    j ≠ i of the class a of i         x_ij = σ (z_i·z_j − γ + Ŝ_ab)    j of another class b
//     N_i = Σ_j exp(x_ij), of its own class and of others apart            ℓ_i = log(1 + own N_i) / ς + log(1 + other N_i) / σ
//     P_ij = ∓exp(x_ij) (w_i / (1 + N_i) + w_j / (1 + N_j)), − within a class        dL/dz_i = Σ_j P_ij z_j
//
// with w 1 for an anchor and 0 for another row. x is symmetric, so the tile in which two blocks meet serves both, as in the intra-class
// loss (block_pairs_kernel.cpp): N² D FLOP for the sums, 3 N² D for the gradient, N² exponentials. No maximum is subtracted: the operator
// asks for exponents that do not overflow, and those that underflow are nothing beside the 1.
//
// A tile's margins are products of the few classes of its rows with the mean rows of its columns' classes, D FLOP each; nothing of C × C
// numbers is kept. Only tiles of columns whose first class is the last one of the rows have pairs within a class.
#include "cpu/hierarchical_kernel.h"

#include <math.h>

#include <algorithm>

#include "cpu/matrix.h"

namespace icckd::ICCKD_ISA {
namespace {

constexpr int64_t rows_of_tile = hierarchical_rows;

struct Tile {
  int64_t i, i_end, j, j_end;
  bool one_way;   // rows and columns are the same
  bool overlaps;  // it may have pairs within a class

  int64_t padded() const { return round_up(j_end - j, width); }
};

// Where the parts of the scratch lie: similarities and margins of a tile, and what it adds to its columns.
struct Parts {
  int64_t stride;
  float *s, *margins, *own, *other, *least;

  explicit Parts(float* scratch) {
    stride = row_stride(rows_of_tile);
    s = scratch;
    margins = s + rows_of_tile * stride;
    own = margins + rows_of_tile * stride;
    other = own + rows_of_tile;
    least = other + rows_of_tile;
  }

  static int64_t size() { return 2 * rows_of_tile * row_stride(rows_of_tile) + 3 * rows_of_tile; }
};

void fill(float* x, int64_t count, float value) {
  for (int64_t i = 0; i < count; ++i) x[i] = value;
}

IntVec load_classes(const int32_t* classes) {
  IntVec c;
  std::memcpy(&c, classes, sizeof c);
  return c;
}

IntVec lanes() {
  IntVec lane;
  for (int i = 0; i < width; ++i) lane[i] = i;
  return lane;
}

// Calls use(tile) with its similarities in m.s and, of each class of its rows, σ (Ŝ − γ) with its columns in m.margins, −∞ in the padding.
template <class Use>
void meet(const HierarchicalJob& job, const Parts& m, const BlockMeeting& pair, const Use& use) {
  const bool same = pair.begin == pair.other_begin;
  const int64_t padded_dim = round_up(job.dim, width), z_stride = row_stride(job.dim);
  const float scale = job.negative_scale * job.factor, shift = job.negative_scale * (job.offset - job.gamma);
  for (int64_t j = pair.other_begin; j < pair.other_end; j += rows_of_tile)
    for (int64_t i = pair.begin; i < pair.end && (!same || i <= j); i += rows_of_tile) {
      const int64_t i_end = i + rows_of_tile < pair.end ? i + rows_of_tile : pair.end;
      const int64_t j_end = j + rows_of_tile < pair.other_end ? j + rows_of_tile : pair.other_end;
      const int32_t first = job.classes[i], last = job.classes[i_end - 1];
      const Tile tile{i, i_end, j, j_end, i == j, last >= job.classes[j]};
      const int64_t vectors = tile.padded() / width;
      multiply(i_end - i, vectors, job.dim, {job.z + i * z_stride, z_stride, 1}, {job.packed + j * padded_dim, width, padded_dim * width},
               {m.s, m.stride, width}, false);
      multiply(last - first + 1, vectors, job.dim, {job.centers + first * job.dim, job.dim, 1},
               {job.packed_centers + j * padded_dim, width, padded_dim * width}, {m.margins, m.stride, width}, false);
      for (int64_t a = 0; a <= last - first; ++a) {
        float* margin = m.margins + a * m.stride;
        for (int64_t k = 0; k < tile.padded(); k += width) store(margin + k, load(margin + k) * scale + shift);
        fill(margin + (j_end - j), tile.padded() - (j_end - j), -INFINITY);
      }
      use(tile);
    }
}

// The terms of row i with a register of columns from j + k on, 0 where a pair is none; which columns are pairs within its class.
struct Terms {
  Vec other, own;
  IntVec pair;
};

template <bool overlaps>
Terms terms(const HierarchicalJob& job, const Tile& t, int64_t i, int64_t k, Vec s, Vec margin) {
  const Vec other = exp(job.negative_scale * s + margin);
  if constexpr (!overlaps) return {other, Vec{}, IntVec{}};
  const int32_t a = job.classes[i];
  const IntVec same = load_classes(job.classes + t.j + k) == a;
  const IntVec itself = lanes() == static_cast<int32_t>(i - t.j - k);
  const IntVec pair = same & ~itself;
  const Vec own = exp(job.positive_scale * ((job.gamma + job.own[a]) - s));
  return {same ? Vec{} : other, pair ? own : Vec{}, pair};
}

template <bool overlaps>
void add_tile(const HierarchicalJob& job, const Parts& m, const Tile& t) {
  fill(m.own, t.padded(), 0);
  fill(m.other, t.padded(), 0);
  fill(m.least, t.padded(), 1);
  for (int64_t i = t.i; i < t.i_end; ++i) {
    const float *row = m.s + (i - t.i) * m.stride, *margin = m.margins + (job.classes[i] - job.classes[t.i]) * m.stride;
    Vec own{}, other{}, least = splat(1);
    for (int64_t k = 0; k < t.padded(); k += width) {
      const Vec s = load(row + k);
      const Terms x = terms<overlaps>(job, t, i, k, s, load(margin + k));
      other += x.other;
      store(m.other + k, load(m.other + k) + x.other);
      if constexpr (overlaps) {
        own += x.own;
        store(m.own + k, load(m.own + k) + x.own);
        const Vec within = x.pair ? s : splat(1), column = load(m.least + k);
        least = within < least ? within : least;
        store(m.least + k, within < column ? within : column);
      }
    }
    job.other_sum[i] += sum(other);
    if constexpr (overlaps) {
      job.own_sum[i] += sum(own);
      const float lowest = -maximum(-least);
      job.least[i] = lowest < job.least[i] ? lowest : job.least[i];
    }
  }
  for (int64_t j = t.j; j < t.j_end && !t.one_way; ++j) {
    job.own_sum[j] += m.own[j - t.j];
    job.other_sum[j] += m.other[j - t.j];
    job.least[j] = m.least[j - t.j] < job.least[j] ? m.least[j - t.j] : job.least[j];
  }
}

// Similarities become P, and P z is added to the pull of the tile's rows and of its columns.
template <bool overlaps>
void pull_tile(const HierarchicalJob& job, const Parts& m, const Tile& t) {
  for (int64_t i = t.i; i < t.i_end; ++i) {
    float* row = m.s + (i - t.i) * m.stride;
    const float* margin = m.margins + (job.classes[i] - job.classes[t.i]) * m.stride;
    const Vec own = splat(job.own_sum[i]), other = splat(job.other_sum[i]);
    for (int64_t k = 0; k < t.padded(); k += width) {
      const Terms x = terms<overlaps>(job, t, i, k, load(row + k), load(margin + k));
      Vec p = x.other * (other + load(job.other_sum + t.j + k));
      if constexpr (overlaps) p -= x.own * (own + load(job.own_sum + t.j + k));
      store(row + k, p);
    }
  }
  const int64_t stride = row_stride(job.dim), vectors = round_up(job.dim, width) / width, rows = t.i_end - t.i, columns = t.j_end - t.j;
  multiply(rows, vectors, columns, {m.s, m.stride, 1}, {job.z + t.j * stride, stride, width}, {job.pull + t.i * stride, stride, width},
           true);
  if (t.one_way) return;
  multiply(columns, vectors, rows, {m.s, 1, m.stride}, {job.z + t.i * stride, stride, width}, {job.pull + t.j * stride, stride, width},
           true);
}

}  // namespace

HierarchicalSizes hierarchical_sizes(int64_t dim) {
  const int64_t padded_dim = round_up(dim, width), preparing = width * padded_dim;
  return {row_stride(dim), padded_dim, Parts::size() > preparing ? Parts::size() : preparing};
}

void hierarchical_prepare(const HierarchicalJob& job, int64_t begin, int64_t end, float* scratch) {
  const int64_t stride = row_stride(job.dim), padded_dim = round_up(job.dim, width);
  for (int64_t first = begin; first < end; first += width) {
    fill(job.z + first * stride, width * stride, 0);
    if (job.pull != nullptr) fill(job.pull + first * stride, width * stride, 0);
    fill(scratch, width * padded_dim, 0);
    for (int64_t i = first; i < first + width && i < end; ++i) {
      std::copy_n(job.rows + i * job.dim, job.dim, job.z + i * stride);
      std::copy_n(job.centers + job.classes[i] * job.dim, job.dim, scratch + (i - first) * padded_dim);
    }
    pack_transposed(job.z + first * stride, width, stride, padded_dim, job.packed + first * padded_dim);
    pack_transposed(scratch, width, padded_dim, padded_dim, job.packed_centers + first * padded_dim);
    fill(job.own_sum + first, width, 0);
    fill(job.other_sum + first, width, 0);
    fill(job.least + first, width, 1);
  }
}

void hierarchical_add_sums(const HierarchicalJob& job, BlockMeeting pair, float* scratch) {
  const Parts m(scratch);
  meet(job, m, pair, [&](const Tile& tile) {
    if (tile.overlaps)
      add_tile<true>(job, m, tile);
    else
      add_tile<false>(job, m, tile);
  });
}

double hierarchical_finish(const HierarchicalJob& job, int64_t begin, int64_t end) {
  double loss = 0;
  for (int64_t i = begin; i < end; ++i) {
    const float anchor = job.anchor[i], own = job.own_sum[i], other = job.other_sum[i];
    loss += anchor * (log1p(static_cast<double>(own)) / job.positive_scale + log1p(static_cast<double>(other)) / job.negative_scale);
    job.own_sum[i] = anchor / (1 + own);
    job.other_sum[i] = anchor / (1 + other);
  }
  return loss;
}

void hierarchical_add_pull(const HierarchicalJob& job, BlockMeeting pair, float* scratch) {
  const Parts m(scratch);
  meet(job, m, pair, [&](const Tile& tile) {
    if (tile.overlaps)
      pull_tile<true>(job, m, tile);
    else
      pull_tile<false>(job, m, tile);
  });
}

void hierarchical_write(const HierarchicalJob& job, int64_t begin, int64_t end, float* gradient) {
  const int64_t stride = row_stride(job.dim);
  for (int64_t i = begin; i < end; ++i) std::copy_n(job.pull + i * stride, job.dim, gradient + i * job.dim);
}

}  // namespace icckd::ICCKD_ISA
