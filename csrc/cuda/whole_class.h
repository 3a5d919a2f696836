// The intra-class loss and its gradients of classes that fit on chip whole: one read and one write of the rows.
//
//     S = Z Zᵀ,  P_ij = exp(κ S_ij − lse_i),  C_ij = u_i P_ij + u_j P_ji,  r_i = u_i Σ_j P_ij,  a_i = z_i·p_i
//     dz_i = κ [ Σ_j C_ij z_j − r_i p_i ]   dp_i = −κ r_i z_i   dκ = Σ_i [ u_i Σ_j P_ij S_ij − r_i a_i ]
//     x = f/‖f‖:  df = (dx − x (x·dx)) / ‖f‖,  where z_i · Σ_j C_ij z_j = Σ_j C_ij S_ij needs no second look at the rows
//
//     anchors ──cp.async──▶ operand (tile × D) ──S──▶ registers of the warp that owns the 16 rows
//                               │                         │ lse, loss ──▶ memory
//     positives ──norms, a_i    └──────── C Z ◀── C ──────┘
//     positives ────────────────────────▶ └─ bounce ──▶ both gradients ──▶ memory
//
// A tile is up to 32, 64, 96 or 128 rows of whole classes (tile_schedule.h says which), 16 for each warp. While one is computed, the rows
// of the next are brought into the second-level cache, where positives are read twice, into registers; other blocks of the multiprocessor,
// where there is room for them, are at another stage.
//
// z_i = scale_i · operand_i, where the operand is the row as it is given, and what is left of its norm is a float32 factor of a row or a
// column of S, of C, of the gradients. So similarities are as exact as the matrix unit's products of the given numbers, and 16-bit
// coefficients C are rounded once. A row whose norm leaves a wide range is first multiplied by a power of two, in place, which loses nothing.
//
// Bytes: 4 · N · D · element size to and from memory, and the positives once more from the second-level cache. FLOP: 4 · tile² · D for
// each tile. Meant for classes of 8 … 128 rows and rows of up to about 200 KiB / tile. Measured times are owed: no GPU has run this.
#pragma once

#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <type_traits>

#include "cuda/device.h"
#include "cuda/element.h"
#include "cuda/products.h"
#include "cuda/tile_schedule.h"

namespace icckd::cuda {

struct WholeClassParams {
  const void *anchor, *positive;  // (N, dim), rows of stride 1
  int64_t anchor_stride, positive_stride;
  int dim;
  const float *weight, *scale, *upstream;  // (N,), one number and (N,); 1 where null
  const float* temperature;                // one number
  const int32_t *order, *active, *totals;        // with `classes`: the layout
  RankedClasses classes;
  // By row; null where not wanted. Of rows in tiles only.
  float *losses, *lse, *d_kappa;
  void *d_anchor, *d_positive;  // (N, dim) contiguous
  bool normalize;
  bool aligned;  // rows_are_aligned
  bool exact;    // float32 products to float32 accuracy, not to TF32's
  WholeClassPlan plan;
};

// Whether all rows, read and written, begin and end at multiples of 16 bytes.
inline bool rows_are_aligned(const WholeClassParams& p, int64_t element_bytes) {
  uint64_t bits = static_cast<uint64_t>((p.anchor_stride | p.positive_stride | p.dim) * element_bytes);
  for (const void* rows : {p.anchor, p.positive, static_cast<const void*>(p.d_anchor), static_cast<const void*>(p.d_positive)})
    bits |= reinterpret_cast<uintptr_t>(rows);
  return bits % 16 == 0;
}

// What the layout says about a tile and its rows. Rows beyond `count` are of no class.
template <int rows>
struct alignas(16) TileRows {
  int begin, count, share_end;               // positions; kept here, since registers are few
  int row[rows];                             // in the batch
  int class_begin[rows], class_end[rows];    // the class, as rows of the tile
  int is_anchor[rows];
  float factor[rows];                        // u: weight · scale · upstream
};

// What a row's own thread needs of it. The anchor's gradient is pull Σ_j C_ij z_j + positive p + own operand, the positive's
// positive_positive p + positive_own operand.
struct alignas(16) RowFactors {
  float inverse, positive_inverse;  // 1/‖f‖
  float agreement;                  // a
  float pull, positive, own;
  float positive_positive, positive_own;
};

// What the kernel finds out about the rows of a tile.
template <int rows>
struct RowNumbers {
  RowFactors factors[rows];
  float scale[rows];      // z = scale · operand
  float log_total[rows];  // log2 of the sum of exponentials; +∞ where there is no anchor
};

constexpr float log2_e = 1.4426950408889634f, ln_2 = 0.6931471805599453f;

// ---- small pieces -------------------------------------------------------------------------------------------------------

// The four lanes of a row of a fragment.
ICCKD_DEVICE float quad_sum(float x) {
  x += shuffle_xor(x, 1);
  return x + shuffle_xor(x, 2);
}

// The eight lanes of a row that is read.
ICCKD_DEVICE float octet_sum(float x) {
  x = quad_sum(x);
  return x + shuffle_xor(x, 4);
}

ICCKD_DEVICE float quad_max(float x) {
  x = fmaxf(x, shuffle_xor(x, 1));
  return fmaxf(x, shuffle_xor(x, 2));
}

// ℓ = log(1 + 2^(negatives − own)), from log2 Σ 2^x over the negatives and x of the positive.
ICCKD_DEVICE float row_loss(float negatives, float own) {
  const float difference = (negatives - own) * ln_2;
  return fmaxf(difference, 0.0f) + log1pf(expf(-fabsf(difference)));
}

// 2^−⌊log2 x⌋; 1 where x is 0 or no finite number.
ICCKD_DEVICE float power_of_two_below_inverse(float x) {
  const uint32_t exponent = float_bits(x) >> 23;
  return exponent == 0 || exponent >= 254 ? 1.0f : bits_float((254 - exponent) << 23);
}

// 16 bytes of a row that may begin anywhere and end within them.
template <class E>
ICCKD_DEVICE Vector16 load_elements(const E* row, int column, int dim) {
  float x[per_vector<E>];
#pragma unroll
  for (int i = 0; i < per_vector<E>; ++i) x[i] = column + i < dim ? to_float(row[column + i]) : 0.0f;
  return from_floats<E>(x);
}

template <class E>
ICCKD_DEVICE void store_elements(E* row, int column, int dim, const float (&x)[per_vector<E>], bool aligned) {
  if (aligned) {
    store16_streaming(row + column, from_floats<E>(x));
  } else {
#pragma unroll
    for (int i = 0; i < per_vector<E>; ++i)
      if (column + i < dim) row[column + i] = from_float<E>(x[i]);
  }
}

// ---- the kernel ---------------------------------------------------------------------------------------------------------

// Products by wgmma, where there is one and the tile is of its 64 rows.
template <class E, int rows>
inline constexpr bool by_warpgroups = ICCKD_HAS_WGMMA && sizeof(E) == 2 && rows % 64 == 0;

// Norms of rows that are multiplied as they are: what is left of them, as a factor of C, has room in E. Others are brought to [1, 2).
template <class E>
inline constexpr float lowest_norm = std::is_same_v<E, float16> ? 0x1p-3f : 0x1p-40f;
template <class E>
inline constexpr float highest_norm = std::is_same_v<E, float16> ? 0x1p7f : 0x1p40f;

// One block: `rows` / 16 warps. `warpgroups`: products by wgmma.
template <class E, int rows, bool warpgroups>
class WholeClass {
 public:
  static constexpr int warps = rows / warp_rows, threads = warps * warp_size;
  static_assert(2 * sizeof(TileRows<rows>) + sizeof(RowNumbers<rows>) == numbers_bytes(rows));

  ICCKD_DEVICE explicit WholeClass(const WholeClassParams& params)
      : p(params),
        operand(shared_memory() + operand_at(rows)),
        bounce(reinterpret_cast<float*>(shared_memory() + bounce_at(rows)) + warp() * bounce_rows * bounce_stride),
        numbers(*reinterpret_cast<RowNumbers<rows>*>(shared_memory())),
        tiles(reinterpret_cast<TileRows<rows>*>(shared_memory() + sizeof(RowNumbers<rows>))) {}

  // All tiles of this block's share.
  ICCKD_DEVICE void run() const {
    const Positions share = share_of(block(), blocks(), p.totals[2], p.classes, p.totals[0]);
    if (share.begin == share.end) return;
    int current = 0;
    describe(tiles[current], share.begin, share.end);
    block_barrier();
    prefetch(tiles[current]);
    while (true) {
      const TileRows<rows>& tile = tiles[current];
      fetch(tile);
      // While the rows come.
      if (!is_last(tile)) describe(tiles[1 - current], tile.begin + tile.count, tile.share_end);
      take(tile);
      block_barrier();
      if (!is_last(tile)) prefetch(tiles[1 - current]);
      contrast(tile);
      if (is_last(tile)) return;
      // Before anything of this tile is overwritten.
      block_barrier();
      current = 1 - current;
    }
  }

 private:
  static ICCKD_DEVICE bool is_last(const TileRows<rows>& tile) { return tile.begin + tile.count == tile.share_end; }

  // The tile that begins at a position of a share.
  ICCKD_DEVICE void describe(TileRows<rows>& tile, int begin, int share_end) const {
    const int end = tile_end(begin, share_end, rows, p.classes), k = thread(), position = begin + k;
    ICCKD_ASSERT(begin < end && end - begin <= rows);
    if (k >= rows) return;
    const bool valid = position < end;
    const int rank = valid ? p.classes.rank[position] : 0, start = p.classes.start[rank], row = valid ? p.order[position] : 0;
    const bool is_anchor = valid && position < start + p.active[rank];
    float factor = !is_anchor ? 0.0f : p.weight ? p.weight[row] : 1.0f;
    if (is_anchor && p.scale) factor *= *p.scale;
    if (is_anchor && p.upstream) factor *= p.upstream[row];
    tile.row[k] = row;
    tile.class_begin[k] = valid ? start - begin : 0;
    tile.class_end[k] = valid ? start - begin + p.classes.size[rank] : 0;
    tile.is_anchor[k] = is_anchor;
    tile.factor[k] = factor;
    if (k > 0) return;
    tile.begin = begin;
    tile.count = end - begin;
    tile.share_end = share_end;
  }

  // ---- rows from memory into the operand. A warp takes four quads of rows: 8 lanes for each row, 16 bytes of every chunk for each lane

  static constexpr int quads = 4;

  ICCKD_DEVICE int first_of_quad(int q) const { return 4 * (warp() + q * warps); }
  ICCKD_DEVICE int row_of_quad(int q) const { return first_of_quad(q) + lane() / 8; }
  // Rows that products read: zeros beyond `count`.
  ICCKD_DEVICE int read_rows(int count) const { return warpgroups ? rows : (count + warp_rows - 1) / warp_rows * warp_rows; }

  ICCKD_DEVICE const E* anchor(int row) const { return static_cast<const E*>(p.anchor) + row * p.anchor_stride; }
  ICCKD_DEVICE const E* positive(int row) const { return static_cast<const E*>(p.positive) + row * p.positive_stride; }

  // 16 bytes, of column … of a chunk, of row k.
  ICCKD_DEVICE unsigned char* operand_piece(int k, int chunk, int column) const {
    return operand + chunk * rows * swizzle_row_bytes + swizzled(k * swizzle_row_bytes + column * static_cast<int>(sizeof(E)));
  }

  // Brings a tile's rows into the second-level cache, while the chip is still full of another.
  ICCKD_DEVICE void prefetch(const TileRows<rows>& tile) const {
    const int k = thread() / 2, bytes = p.dim * static_cast<int>(sizeof(E));
    if (!p.aligned || k >= tile.count) return;
    if (thread() % 2 == 0)
      prefetch_row(anchor(tile.row[k]), bytes);
    else if (tile.is_anchor[k])
      prefetch_row(positive(tile.row[k]), bytes);
  }

  // Begins to copy the anchors to their places, a group of copies for each quad.
  ICCKD_DEVICE void fetch(const TileRows<rows>& tile) const {
    const int in_chunk = lane() % 8 * per_vector<E>;
    for (int q = 0; q < quads; ++q) {
      const int k = row_of_quad(q);
      if (first_of_quad(q) < read_rows(tile.count)) {
        const E* const row = anchor(tile.row[k]);
        for (int chunk = 0, column = in_chunk; chunk < p.plan.chunks; ++chunk, column += chunk_columns<E>) {
          const bool inside = k < tile.count && column < p.dim;
          if (p.aligned)
            copy_async16(operand_piece(k, chunk, in_chunk), row + column, inside);
          else
            store16(operand_piece(k, chunk, in_chunk), inside ? load_elements(row, column, p.dim) : Vector16{});
        }
      }
      commit_copies();
    }
  }

  ICCKD_DEVICE void take(const TileRows<rows>& tile) const {
    if (!p.aligned)
      take_quads<1, 1>(tile);
    else if (p.plan.chunks <= 2)
      take_quads<4, 2>(tile);
    else if (p.plan.chunks <= 4)
      take_quads<2, 4>(tile);
    else
      take_quads<1, 8>(tile);
#if ICCKD_HAS_WGMMA
    if constexpr (warpgroups) fence_shared_async();
#endif
  }

  // The sums that rows and their positives give. Each lane reads what it copied. Positives are not kept: of each lane pieces of `together`
  // quads and `ahead` chunks are on their way at a time; one of rows that are not aligned.
  template <int together, int ahead>
  ICCKD_DEVICE void take_quads(const TileRows<rows>& tile) const {
    const int in_chunk = lane() % 8 * per_vector<E>;
    for (int first = 0; first < quads; first += together) {
      if (first_of_quad(first) >= read_rows(tile.count)) return;
      const E* positives[together];
#pragma unroll
      for (int q = 0; q < together; ++q) {
        const int k = row_of_quad(first + q);
        positives[q] = tile.is_anchor[k] ? positive(tile.row[k]) : nullptr;
      }
      float squares[together] = {}, positive_squares[together] = {}, products[together] = {};
      for (int chunk = 0, column = in_chunk; chunk < p.plan.chunks; chunk += ahead, column += ahead * chunk_columns<E>) {
        Vector16 y[ahead][together];
#pragma unroll
        for (int i = 0; i < ahead; ++i)
#pragma unroll
          for (int q = 0; q < together; ++q) y[i][q] = load_piece<together * ahead != 1>(positives[q], column + i * chunk_columns<E>);
        if (chunk == 0) wait_for_quads(quads - first - together);
#pragma unroll
        for (int i = 0; i < ahead; ++i) {
          if (chunk + i >= p.plan.chunks) break;
#pragma unroll
          for (int q = 0; q < together; ++q)
            add_products(load16(operand_piece(row_of_quad(first + q), chunk + i, in_chunk)), y[i][q], squares[q], positive_squares[q],
                         products[q]);
        }
      }
#pragma unroll
      for (int q = 0; q < together; ++q)
        describe_row(row_of_quad(first + q), tile.count, octet_sum(squares[q]), octet_sum(positive_squares[q]), octet_sum(products[q]));
    }
  }

  // Until all but this thread's newest quads of copies have arrived.
  ICCKD_DEVICE void wait_for_quads(int newest) const {
    if (newest == 3)
      wait_copies<3>();
    else if (newest == 2)
      wait_copies<2>();
    else if (newest == 1)
      wait_copies<1>();
    else
      wait_copies<0>();
  }

  // 16 bytes of a row; zeros beyond its end, or of no row.
  template <bool aligned>
  ICCKD_DEVICE Vector16 load_piece(const E* row, int column) const {
    if (!row || column >= p.dim) return {};
    return aligned ? load16_streaming(row + column) : load_elements(row, column, p.dim);
  }

  static ICCKD_DEVICE void add_products(const Vector16& of_row, const Vector16& of_positive, float& squares, float& positive_squares,
                                        float& products) {
    float x[per_vector<E>], y[per_vector<E>];
    to_floats<E>(of_row, x);
    to_floats<E>(of_positive, y);
#pragma unroll
    for (int i = 0; i < per_vector<E>; ++i) {
      squares = fmaf(x[i], x[i], squares);
      positive_squares = fmaf(y[i], y[i], positive_squares);
      products = fmaf(x[i], y[i], products);
    }
  }

  // Called by the 8 lanes of row k. Rows beyond the tile's are 0, and nothing must come of them.
  ICCKD_DEVICE void describe_row(int k, int count, float squares, float positive_squares, float products) const {
    const bool valid = k < count;
    const float norm = sqrtf(squares);
    const float power = norm >= lowest_norm<E> && norm < highest_norm<E> ? 1 : power_of_two_below_inverse(norm);
    if (valid && power != 1) multiply_row(k, power);
    if (lane() % 8 != 0) return;
    const float inverse = inverse_norm(norm), positive_inverse = inverse_norm(sqrtf(positive_squares));
    RowFactors& of = numbers.factors[k];
    of.inverse = valid ? inverse : 0;
    of.positive_inverse = valid ? positive_inverse : 0;
    of.agreement = valid ? products * inverse * positive_inverse : 0;
    numbers.scale[k] = valid ? inverse / power : 0;
    if (!valid) numbers.log_total[k] = INFINITY;
  }

  ICCKD_DEVICE void multiply_row(int k, float power) const {
    for (int chunk = 0; chunk < p.plan.chunks; ++chunk) {
      unsigned char* const piece = operand_piece(k, chunk, lane() % 8 * per_vector<E>);
      float x[per_vector<E>];
      to_floats<E>(load16(piece), x);
#pragma unroll
      for (int i = 0; i < per_vector<E>; ++i) x[i] *= power;
      store16(piece, from_floats<E>(x));
    }
  }

  ICCKD_DEVICE float inverse_norm(float norm) const {
    if (!p.normalize) return 1;
    return norm > 0 ? 1 / norm : 0;
  }

  // ---- from the operand to losses and gradients: each warp for 16 rows

  // The tile's row that this thread has a part of: the first or second half of the fragment's 16.
  ICCKD_DEVICE int own_row(int half) const { return warp_rows * warp() + 8 * half + lane() / 4; }
  ICCKD_DEVICE int own_column(int j) const { return 8 * j + lane() % 4 * 2; }

  ICCKD_DEVICE void contrast(const TileRows<rows>& tile) const {
    const bool has_rows = (warpgroups ? warp() / 4 * 64 : warp() * warp_rows) < tile.count;
    const Positions own = has_rows ? own_classes(tile) : Positions{};
    const float kappa = 1 / *p.temperature;
    float s[rows / 8][4] = {};
    if (has_rows) {
      multiply_rows(s, own);
      find_losses(tile, s, kappa * log2_e, own);
    }
    if (!p.d_anchor && !p.d_positive && !p.d_kappa) return;
    // Coefficients ask for the log-sum-exps of all rows.
    block_barrier();
    if (!has_rows) return;
    find_coefficients(tile, s, kappa, own);
    warp_barrier();
    if (p.d_anchor || p.d_positive) write_gradients(tile, Coefficients<E, rows>(s), own);
  }

  // The rows of all classes that this warp, or warpgroup, has rows of.
  ICCKD_DEVICE Positions own_classes(const TileRows<rows>& tile) const {
    constexpr int together = warpgroups ? 64 : warp_rows;
    const int first = warp() * warp_rows / together * together;
    const int end = first + together < tile.count ? first + together : tile.count;
    return {tile.class_begin[first], tile.class_end[end - 1]};
  }

  ICCKD_DEVICE void multiply_rows(float (&s)[rows / 8][4], const Positions& own) const {
    if constexpr (warpgroups) {
#if ICCKD_HAS_WGMMA
      add_similarities_by_warpgroup<E, rows>(s, operand, p.plan.chunks);
#endif
    } else if (p.exact || sizeof(E) == 2) {
      add_similarities<E, rows, true>(s, operand, p.plan.chunks, own);
    } else {
      add_similarities<E, rows, false>(s, operand, p.plan.chunks, own);
    }
  }

  // Similarities of the unit rows, −∞ where there is no pair; losses and log-sum-exps.
  ICCKD_DEVICE void find_losses(const TileRows<rows>& tile, float (&s)[rows / 8][4], float scale,
                                const Positions& own_classes) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int k = own_row(half), begin = tile.class_begin[k], end = tile.class_end[k];
      const float row_scale = numbers.scale[k];
      float highest = -INFINITY;
#pragma unroll
      for (int j = 0; j < rows / 8; ++j) {
        if (!meet(own_classes, 8 * j, 8)) continue;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int column = own_column(j) + i;
          float& x = s[j][2 * half + i];
          const bool pair = column >= begin && column < end && column != k;
          x = pair ? x * row_scale * numbers.scale[column] : -INFINITY;
          highest = fmaxf(highest, x);
        }
      }
      highest = quad_max(highest) * scale;
      if (highest == -INFINITY) highest = 0;
      float total = 0;
#pragma unroll
      for (int j = 0; j < rows / 8; ++j) {
        if (!meet(own_classes, 8 * j, 8)) continue;
#pragma unroll
        for (int i = 0; i < 2; ++i) total += exp2_fast(fmaf(s[j][2 * half + i], scale, -highest));
      }
      total = quad_sum(total);

      const float own = scale * numbers.factors[k].agreement, loss = row_loss(highest + log2f(total), own), log_total = own + loss * log2_e;
      const bool is_anchor = tile.is_anchor[k];
      if (lane() % 4 != 0) continue;
      numbers.log_total[k] = is_anchor ? log_total : INFINITY;
      if (p.losses && k < tile.count) {
        p.losses[tile.row[k]] = is_anchor ? tile.factor[k] * loss : 0;
        p.lse[tile.row[k]] = is_anchor ? log_total * ln_2 : 0;
      }
    }
  }

  // s becomes C_ij scale_j, divided by the largest of its row where E has no room for small numbers; and each row's part in its gradients.
  ICCKD_DEVICE void find_coefficients(const TileRows<rows>& tile, float (&s)[rows / 8][4], float kappa,
                                      const Positions& own_classes) const {
    const float scale = kappa * log2_e;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int k = own_row(half);
      const float log_total = numbers.log_total[k], factor = tile.factor[k];
      float pairs = 0, slope = 0, along = 0, largest = 0;
#pragma unroll
      for (int j = 0; j < rows / 8; ++j) {
        const bool own = meet(own_classes, 8 * j, 8);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int column = own_column(j) + i;
          float& x = s[j][2 * half + i];
          if (!own) {
            x = 0;
            continue;
          }
          const float similarity = x == -INFINITY ? 0 : x;
          const float as_anchor = factor * exp2_fast(fmaf(x, scale, -log_total));
          const float both = as_anchor + tile.factor[column] * exp2_fast(fmaf(x, scale, -numbers.log_total[column]));
          pairs += as_anchor;
          slope = fmaf(as_anchor, similarity, slope);
          along = fmaf(both, similarity, along);
          x = both * numbers.scale[column];
          largest = fmaxf(largest, fabsf(x));
        }
      }
      pairs = quad_sum(pairs);
      slope = quad_sum(slope);
      along = quad_sum(along);
      float unit = 1;
      if constexpr (std::is_same_v<E, float16>) {
        largest = quad_max(largest);
        // Else its inverse would be no number.
        unit = largest > 1e-36f ? largest : 1;
#pragma unroll
        for (int j = 0; j < rows / 8; ++j)
#pragma unroll
          for (int i = 0; i < 2; ++i) s[j][2 * half + i] *= 1 / unit;
      }

      if (lane() % 4 != 0) continue;
      RowFactors& of = numbers.factors[k];
      const float inverse = of.inverse, positive_inverse = of.positive_inverse, row_scale = numbers.scale[k];
      const float radial = pairs * of.agreement;
      of.pull = kappa * inverse * unit;
      of.positive = -kappa * inverse * pairs * positive_inverse;
      of.own = p.normalize ? -kappa * inverse * (along - radial) * row_scale : 0;
      of.positive_positive = p.normalize ? kappa * radial * positive_inverse * positive_inverse : 0;
      of.positive_own = -kappa * pairs * positive_inverse * row_scale;
      if (p.d_kappa && k < tile.count) p.d_kappa[tile.row[k]] = tile.is_anchor[k] ? slope - radial : 0;
    }
  }

  // A chunk after the other: C Z, then its gradients, 8 rows × 32 columns at a time. A thread has 8 columns of a row: of the rows that lanes
  // read shared memory for together, one is 4 below the other, so that they begin at different banks.
  ICCKD_DEVICE void write_gradients(const TileRows<rows>& tile, const Coefficients<E, rows>& c, const Positions& own) const {
    const int local = lane() / 8 + lane() / 4 % 2 * 4, first_column = lane() % 4 * 8;
    OwnRow of[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) of[half] = own_row_of(tile, warp_rows * warp() + 8 * half + local);
    for (int chunk = 0; chunk < p.plan.chunks; ++chunk) {
      const int begin = chunk * chunk_columns<E> + first_column;
      // Asked for now, so that they come while the matrix unit works.
      Vector16 positives[2][groups][octet_vectors];
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int group = 0; group < groups; ++group)
#pragma unroll
          for (int v = 0; v < octet_vectors; ++v)
            positives[half][group][v] = load_positive(of[half], begin + group * bounce_columns + v * per_vector<E>);
      float pull[chunk_columns<E> / 8][4] = {};
      if (p.d_anchor) add_pull_of(pull, c, operand + chunk * rows * swizzle_row_bytes, own);
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int group = 0; group < groups; ++group) {
          if (p.d_anchor) bounce_pull(pull, half, group);
#pragma unroll
          for (int v = 0; v < octet_vectors; ++v) {
            const int offset = first_column + v * per_vector<E>;
            write_piece(of[half], begin + group * bounce_columns + v * per_vector<E>,
                        load16(operand_piece(of[half].k, chunk, group * bounce_columns + offset)), positives[half][group][v], offset);
          }
        }
    }
  }

  // 32 columns of a chunk at a time, and of these 8 for each thread.
  static constexpr int groups = chunk_columns<E> / bounce_columns, octet_vectors = 8 / per_vector<E>;

  // What a thread writes gradients of.
  struct OwnRow {
    int k, row, anchor;  // in the tile; in the batch, −1 beyond the tile's; the same, −1 of a row that is no anchor
  };

  ICCKD_DEVICE OwnRow own_row_of(const TileRows<rows>& tile, int k) const {
    return {k, k < tile.count ? tile.row[k] : -1, tile.is_anchor[k] ? tile.row[k] : -1};
  }

  ICCKD_DEVICE Vector16 load_positive(const OwnRow& of, int column) const {
    const E* const row = of.anchor >= 0 ? positive(of.anchor) : nullptr;
    return p.aligned ? load_piece<true>(row, column) : load_piece<false>(row, column);
  }

  // A number's place in the bounce; of 4 numbers together, which begin at a multiple of 4, the place of the first.
  static constexpr ICCKD_DEVICE int bounced(int row, int column) { return row * bounce_stride + (column ^ row / 4 * 4); }

  // 8 rows and 32 columns of the fragments.
  ICCKD_DEVICE void bounce_pull(const float (&pull)[chunk_columns<E> / 8][4], int half, int group) const {
    warp_barrier();
#pragma unroll
    for (int j = 0; j < bounce_columns / 8; ++j)
#pragma unroll
      for (int i = 0; i < 2; ++i) bounce[bounced(lane() / 4, own_column(j)) + i] = pull[group * bounce_columns / 8 + j][2 * half + i];
    warp_barrier();
  }

  ICCKD_DEVICE void add_pull_of(float (&pull)[chunk_columns<E> / 8][4], const Coefficients<E, rows>& c, const unsigned char* chunk,
                                const Positions& own) const {
    if constexpr (warpgroups) {
#if ICCKD_HAS_WGMMA
      add_pull_by_warpgroup<E, rows>(pull, c, chunk);
#endif
    } else if (p.exact || sizeof(E) == 2) {
      add_pull<E, rows, true>(pull, c, chunk, own);
    } else {
      add_pull<E, rows, false>(pull, c, chunk, own);
    }
  }

  // 16 bytes of both gradients of a row, which begin at `offset` in the bounce's columns.
  ICCKD_DEVICE void write_piece(const OwnRow& of, int column, const Vector16& own, const Vector16& positive, int offset) const {
    if (of.row < 0 || column >= p.dim) return;
    const RowFactors f = numbers.factors[of.k];
    const int64_t at = static_cast<int64_t>(of.row) * p.dim;
    float z[per_vector<E>], y[per_vector<E>], d[per_vector<E>];
    to_floats<E>(own, z);
    to_floats<E>(positive, y);
    if (p.d_anchor) {
#pragma unroll
      for (int i = 0; i < per_vector<E>; i += 4) {
        float pulled[4];
        to_floats<float>(load16(bounce + bounced(of.k % bounce_rows, offset + i)), pulled);
#pragma unroll
        for (int n = 0; n < 4; ++n) d[i + n] = fmaf(f.pull, pulled[n], fmaf(f.positive, y[i + n], f.own * z[i + n]));
      }
      store_elements(static_cast<E*>(p.d_anchor) + at, column, p.dim, d, p.aligned);
    }
    if (p.d_positive) {
#pragma unroll
      for (int i = 0; i < per_vector<E>; ++i) d[i] = fmaf(f.positive_own, z[i], f.positive_positive * y[i]);
      store_elements(static_cast<E*>(p.d_positive) + at, column, p.dim, d, p.aligned);
    }
  }

  const WholeClassParams& p;
  unsigned char* const operand;
  float* const bounce;
  RowNumbers<rows>& numbers;
  TileRows<rows>* const tiles;
};

}  // namespace icckd::cuda
