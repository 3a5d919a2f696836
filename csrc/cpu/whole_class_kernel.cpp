// The loss and the gradients of a class whose z and E fit into a core's cache (intra_class_rows.h has the mathematics).
//
// Reads each input once and writes each gradient once. E is symmetric under a constant shift, so only its upper triangle is computed,
// in tiles of rows: n·a − a²/2 similarities of 2D FLOP for n candidates of which a are anchors, then a(2n − a) additions of 2D FLOP
// for P z.
//
//         columns (candidates)
//        ┌──┬───────────────────┐  The rows of a tile of anchors begin at its diagonal block. The sums of E over its columns are what
//        │  └──┬────────────────│  the later anchors' N lack, left of their own diagonal blocks. P z reads what is above a tile's
//        │ P by└──┬── P by rows │  diagonal block by columns, the rest by rows.
//        │ columns└──┬──────────│
//        └───────────┴──────────┘

#include "cpu/intra_class_kernel.h"
#include "cpu/intra_class_rows.h"
#include "cpu/matrix.h"

namespace icckd::ICCKD_ISA {
namespace {

// Where the parts of the scratch lie. Candidates are padded with zero rows to whole vectors.
struct WholeClass {
  int64_t padded, padded_dim, stride, e_stride, size;
  float *z, *packed, *pull, *e;
  float *similarity, *positive_factor, *factor, *column_sums, *column_excess, *weight, *push;

  WholeClass(int64_t anchors, int64_t candidates, int64_t dim, float* scratch) {
    padded = round_up(candidates, width);
    padded_dim = round_up(dim, width);
    stride = row_stride(dim);
    e_stride = row_stride(padded);
    Scratch parts(scratch);
    z = parts.take(padded * stride);
    packed = pull = parts.take(padded * stride);  // packed is no longer needed when pull is computed
    e = parts.take(anchors * e_stride);
    for (float** array : {&similarity, &positive_factor, &factor, &column_sums, &column_excess, &weight, &push})
      *array = parts.take(padded);
    size = parts.taken();
  }
};

// E_ij = exp(κ (s_ij − 1)) in place for one row and the columns from `first` on, a multiple of width; adds to the anchor's sums and
// to the columns'.
template <bool with_excess>
void exponentiate(float* s, int64_t first, const WholeClass& w, float scale, Anchor& anchor) {
  const Vec factor = splat(scale), similarity = splat(anchor.similarity);
  Vec sums{}, excess{};
  for (int64_t j = first; j < w.padded; j += width) {
    const Vec cosine = load(s + j), e = exp(factor * (cosine - 1));
    store(s + j, e);
    sums += e;
    store(w.column_sums + j, load(w.column_sums + j) + e);
    if constexpr (with_excess) {
      const Vec finite = e == 0 ? Vec{} : cosine;  // not 0 · −∞
      excess += e * (finite - similarity);
      store(w.column_excess + j, load(w.column_excess + j) + e * (finite - load(w.similarity + j)));
    }
  }
  anchor.negatives += sum(sums);
  anchor.excess += sum(excess);
}

// Similarities of anchors [begin, end) with all candidates in the vectors from `begin` on: −∞, so that E will be 0, where i = j, left
// of the diagonal block, and in the padding.
void similarities_of_tile(const WholeClass& w, int64_t dim, int64_t candidates, int64_t begin, int64_t end) {
  const int64_t first = begin / width * width;
  multiply(end - begin, (w.padded - first) / width, dim, {w.z + begin * w.stride, w.stride, 1},
           {w.packed + first * w.padded_dim, width, w.padded_dim * width}, {w.e + begin * w.e_stride + first, w.e_stride, width}, false);
  for (int64_t i = begin; i < end; ++i) {
    float* s = w.e + i * w.e_stride;
    fill(s + first, begin - first, -INFINITY);
    fill(s + candidates, w.padded - candidates, -INFINITY);
    s[i] = -INFINITY;
  }
}

// E and its sums, tile by tile of anchors; each anchor is finished with its tile.
Sums losses_of_class(const IntraClassProblem& problem, const IntraClassResults& results, const Candidates& all,
                     const WholeClass& w) {
  Sums sums;
  const int64_t tiles = parts_of_at_most(all.anchors, tile_rows);
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t begin = share(all.anchors, tiles, tile), end = share(all.anchors, tiles, tile + 1);
    similarities_of_tile(w, problem.dim, all.count, begin, end);
    Anchor anchors[tile_rows];
    // The columns of this tile's own anchors are complete now; what its rows add to them is for nobody.
    for (int64_t i = begin; i < end; ++i)
      anchors[i - begin] = {1, w.similarity[i], w.column_sums[i], w.column_excess[i]};
    for (int64_t i = begin; i < end; ++i) {
      float* s = w.e + i * w.e_stride;
      const int64_t first = begin / width * width;
      if (results.d_scale)
        exponentiate<true>(s, first, w, problem.scale, anchors[i - begin]);
      else
        exponentiate<false>(s, first, w, problem.scale, anchors[i - begin]);
      const Finished finished = finish(problem, results, all.rows[i], anchors[i - begin], sums);
      w.weight[i] = finished.weight;
      w.push[i] = finished.push;
    }
  }
  return sums;
}

// E becomes P in place.
void weigh_pairs(const Candidates& all, const WholeClass& w) {
  const int64_t tiles = parts_of_at_most(all.anchors, tile_rows);
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t begin = share(all.anchors, tiles, tile), end = share(all.anchors, tiles, tile + 1);
    for (int64_t i = begin; i < end; ++i) {
      float* e = w.e + i * w.e_stride;
      for (int64_t j = begin / width * width; j < w.padded; j += width)
        store(e + j, load(e + j) * (w.weight[i] + load(w.weight + j)));
    }
  }
}

// pull = P z, some vectors of z at a time, which stay in the nearest cache from tile to tile.
void pull_class(const Candidates& all, const WholeClass& w) {
  const int64_t vectors = w.padded_dim / width, chunks = parts_of_at_most(vectors, tile_vectors);
  const int64_t tiles = parts_of_at_most(all.anchors, tile_rows);
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int64_t v = share(vectors, chunks, chunk), breadth = share(vectors, chunks, chunk + 1) - v;
    const auto z_from = [&](int64_t j) { return Vectors<const float>{w.z + j * w.stride + v * width, w.stride, width}; };
    const auto pull_from = [&](int64_t i) { return Vectors<float>{w.pull + i * w.stride + v * width, w.stride, width}; };
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t i = share(all.anchors, tiles, tile), height = share(all.anchors, tiles, tile + 1) - i;
      multiply(height, breadth, i, {w.e + i, 1, w.e_stride}, z_from(0), pull_from(i), false);
      multiply(height, breadth, all.count - i, {w.e + i * w.e_stride + i, w.e_stride, 1}, z_from(i), pull_from(i), true);
    }
    multiply(all.row_count - all.anchors, breadth, all.anchors, {w.e + all.anchors, 1, w.e_stride}, z_from(0), pull_from(all.anchors),
             false);
  }
}

}  // namespace

int64_t whole_class_scratch(int64_t anchors, int64_t candidates, int64_t dim) {
  return WholeClass(anchors, candidates, dim, nullptr).size;
}

Sums whole_class(const IntraClassProblem& problem, const IntraClassResults& results, int64_t class_index, float* scratch) {
  const Candidates all(problem, class_index);
  const WholeClass w(all.anchors, all.count, problem.dim, scratch);
  all.load(0, all.row_count, w.z, w.stride, w.factor);
  all.load(all.row_count, all.count, w.z + all.row_count * w.stride, w.stride);
  fill(w.z + all.count * w.stride, (w.padded - all.count) * w.stride, 0);
  for (int64_t i = 0; i < all.anchors; ++i) {
    const Positive positive = all.positive(i, w.z + i * w.stride);
    w.similarity[i] = positive.similarity;
    w.positive_factor[i] = positive.factor;
  }
  pack_transposed(w.z, w.padded, w.stride, w.padded_dim, w.packed);
  fill(w.similarity + all.anchors, w.padded - all.anchors, 0);
  fill(w.column_sums, w.padded, 0);
  fill(w.column_excess, w.padded, 0);
  fill(w.weight, w.padded, 0);
  fill(w.push, w.padded, 0);

  const Sums sums = losses_of_class(problem, results, all, w);
  if (!results.any_gradient_of_rows()) return sums;
  if (results.d_anchor != nullptr) {
    weigh_pairs(all, w);
    pull_class(all, w);
  }
  for (int64_t i = 0; i < all.row_count; ++i)
    with_type(problem.anchor.element, [&](auto type) {
      write_gradients<decltype(type)>(problem, results, all.rows[i], w.z + i * w.stride, w.factor[i], w.pull + i * w.stride,
                                      w.push[i], {w.positive_factor[i], w.similarity[i]});
    });
  stored_past_caches();
  return sums;
}

}  // namespace icckd::ICCKD_ISA
