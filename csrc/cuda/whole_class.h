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
// coefficients C are rounded once. A row whose norm is beyond a wide range is first multiplied by a power of two, which loses nothing.
//
// Bytes: 4 · N · D · element size to and from memory, and the positives once more from the second-level cache. FLOP: 4 · tile² · D for
// each tile. Meant for classes of 8 … 128 rows and rows of up to about 200 KiB / tile. Measured times: docs/gpu.md.
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

// 16 bytes of a row, of which `left` numbers are left and more than 0; they may begin anywhere.
template <class E>
ICCKD_DEVICE Vector16 load_elements(const E* row, int left) {
  float x[per_vector<E>];
#pragma unroll
  for (int i = 0; i < per_vector<E>; ++i) x[i] = i < left ? to_float(row[i]) : 0.0f;
  return from_floats<E>(x);
}

template <class E>
ICCKD_DEVICE void store_elements(E* row, int left, const float (&x)[per_vector<E>], bool aligned) {
  if (aligned) {
    store16_streaming(row, from_floats<E>(x));
  } else {
#pragma unroll
    for (int i = 0; i < per_vector<E>; ++i)
      if (i < left) row[i] = from_float<E>(x[i]);
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
        const E* from = anchor(tile.row[k]) + in_chunk;
        unsigned char* to = operand_piece(k, 0, in_chunk);
        const int columns = k < tile.count ? p.dim - in_chunk : 0;
        for (int column = 0; column < p.plan.chunks * chunk_columns<E>; column += chunk_columns<E>) {
          if (p.aligned)
            copy_async16_last(to, from + column, column < columns);
          else
            store16(to, column < columns ? load_elements(from + column, columns - column) : Vector16{});
          to += rows * swizzle_row_bytes;
        }
      }
      commit_copies();
    }
  }

  ICCKD_DEVICE void take(const TileRows<rows>& tile) const {
    if (first_of_quad(0) >= read_rows(tile.count)) return;
    RowSums sums;
    if (!p.aligned)
      sums = take_quads<1, 1>(tile);
    else if (p.plan.chunks <= 2)
      sums = take_quads<4, 2>(tile);
    else if (p.plan.chunks <= 4)
      sums = take_quads<2, 4>(tile);
    else
      sums = take_quads<1, 8>(tile);
    describe_rows(tile, sums);
#if ICCKD_HAS_WGMMA
    if constexpr (warpgroups) fence_shared_async();
#endif
  }

  // ‖f‖², ‖p‖² and f·p.
  struct RowSums {
    float squares = 0, positive_squares = 0, products = 0;

    ICCKD_DEVICE void add(const Vector16& row, const Vector16& positive) {
      float x[per_vector<E>], y[per_vector<E>];
      to_floats<E>(row, x);
      to_floats<E>(positive, y);
#pragma unroll
      for (int i = 0; i < per_vector<E>; ++i) {
        squares = fmaf(x[i], x[i], squares);
        positive_squares = fmaf(y[i], y[i], positive_squares);
        products = fmaf(x[i], y[i], products);
      }
    }

    // Of the eight lanes of a row.
    ICCKD_DEVICE RowSums total() const { return {octet_sum(squares), octet_sum(positive_squares), octet_sum(products)}; }
  };

  // The sums that rows and their positives give: of quad q in lane q of a row's. Each lane reads what it copied. Positives are not kept: of
  // each lane pieces of `together` quads and `ahead` chunks are on their way at a time; one of rows that are not aligned.
  template <int together, int ahead>
  ICCKD_DEVICE RowSums take_quads(const TileRows<rows>& tile) const {
    const int in_chunk = lane() % 8 * per_vector<E>;
    RowSums own;
    for (int first = 0; first < quads && first_of_quad(first) < read_rows(tile.count); first += together) {
      const E* positives[together];
#pragma unroll
      for (int q = 0; q < together; ++q) {
        const int k = row_of_quad(first + q);
        positives[q] = tile.is_anchor[k] ? positive(tile.row[k]) : nullptr;
      }
      RowSums sums[together];
      for (int chunk = 0; chunk < p.plan.chunks; chunk += ahead) {
        Vector16 y[ahead][together], x[ahead][together];
#pragma unroll
        for (int i = 0; i < ahead; ++i)
#pragma unroll
          for (int q = 0; q < together; ++q)
            y[i][q] = load_piece<together * ahead != 1>(positives[q], (chunk + i) * chunk_columns<E> + in_chunk);
        if (chunk == 0) wait_for_quads(quads - first - together);
#pragma unroll
        for (int i = 0; i < ahead; ++i)
#pragma unroll
          for (int q = 0; q < together; ++q) {
            const bool there = chunk + i < p.plan.chunks;
            x[i][q] = there ? load16(operand_piece(row_of_quad(first + q), chunk + i, in_chunk)) : Vector16{};
          }
#pragma unroll
        for (int i = 0; i < ahead; ++i)
#pragma unroll
          for (int q = 0; q < together; ++q) sums[q].add(x[i][q], y[i][q]);
      }
#pragma unroll
      for (int q = 0; q < together; ++q) {
        const RowSums total = sums[q].total();
        if (lane() % 8 == first + q) own = total;
      }
    }
    return own;
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
    return aligned ? load16_streaming(row + column) : load_elements(row + column, p.dim - column);
  }

  // Lane q of a row's eight for the row of quad q.
  ICCKD_DEVICE void describe_rows(const TileRows<rows>& tile, const RowSums& sums) const {
    const int q = lane() % 8;
    const float norm = sqrtf(sums.squares);
    const float power = norm >= lowest_norm<E> && norm < highest_norm<E> ? 1 : power_of_two_below_inverse(norm);
    multiply_rows_by(power);
    if (q >= quads) return;
    const int k = row_of_quad(q);
    if (k >= tile.count) {
      // Nothing must come of it.
      numbers.factors[k] = {};
      numbers.scale[k] = 0;
      numbers.log_total[k] = INFINITY;
      return;
    }
    const float inverse = inverse_norm(norm), positive_inverse = inverse_norm(sqrtf(sums.positive_squares));
    RowFactors& of = numbers.factors[k];
    of.inverse = inverse;
    of.positive_inverse = positive_inverse;
    of.agreement = sums.products * inverse * positive_inverse;
    numbers.scale[k] = inverse / power;
  }

  // Multiplies the rows in place. Rarely by another power than 1.
  ICCKD_DEVICE void multiply_rows_by(float own_power) const {
#pragma unroll 1
    for (int q = 0; q < quads; ++q) {
      const float power = shuffle(own_power, lane() / 8 * 8 + q);
      if (power == 1) continue;
#pragma unroll 1
      for (int chunk = 0; chunk < p.plan.chunks; ++chunk) {
        unsigned char* const piece = operand_piece(row_of_quad(q), chunk, lane() % 8 * per_vector<E>);
        float x[per_vector<E>];
        to_floats<E>(load16(piece), x);
#pragma unroll
        for (int i = 0; i < per_vector<E>; ++i) x[i] *= power;
        store16(piece, from_floats<E>(x));
      }
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

  // Similarities of the unit rows, −∞ where there is no pair; losses and log-sum-exps. Both halves together, 16 columns at a time.
  ICCKD_DEVICE void find_losses(const TileRows<rows>& tile, float (&s)[rows / 8][4], float scale, const Positions& own_classes) const {
    float row_scale[2], highest[2] = {-INFINITY, -INFINITY}, total[2] = {};
    Positions pairs[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int k = own_row(half);
      row_scale[half] = numbers.scale[k];
      pairs[half] = {tile.class_begin[k], tile.class_end[k]};
    }
#pragma unroll
    for (int first = 0; first < rows; first += 16) {
      if (!meet(own_classes, first, 16)) continue;
#pragma unroll
      for (int j = first / 8; j < first / 8 + 2; ++j)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int column = own_column(j) + i;
          const float column_scale = numbers.scale[column];
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            float& x = s[j][2 * half + i];
            const bool pair = column >= pairs[half].begin && column < pairs[half].end && column != own_row(half);
            x = pair ? x * row_scale[half] * column_scale : -INFINITY;
            highest[half] = fmaxf(highest[half], x);
          }
        }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      highest[half] = quad_max(highest[half]) * scale;
      if (highest[half] == -INFINITY) highest[half] = 0;
    }
#pragma unroll
    for (int first = 0; first < rows; first += 16) {
      if (!meet(own_classes, first, 16)) continue;
#pragma unroll
      for (int j = first / 8; j < first / 8 + 2; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) total[i / 2] += exp2_fast(fmaf(s[j][i], scale, -highest[i / 2]));
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int k = own_row(half);
      const float own = scale * numbers.factors[k].agreement, loss = row_loss(highest[half] + log2f(quad_sum(total[half])), own);
      const float log_total = own + loss * log2_e;
      const bool is_anchor = tile.is_anchor[k];
      if (lane() % 4 != 0) continue;
      numbers.log_total[k] = is_anchor ? log_total : INFINITY;
      if (p.losses && k < tile.count) {
        p.losses[tile.row[k]] = is_anchor ? tile.factor[k] * loss : 0;
        p.lse[tile.row[k]] = is_anchor ? log_total * ln_2 : 0;
      }
    }
  }

  // What a row's coefficients add up to.
  struct CoefficientSums {
    float pairs = 0;    // Σ_j u_i P_ij
    float slope = 0;    // Σ_j u_i P_ij S_ij
    float along = 0;    // Σ_j C_ij S_ij
    float largest = 0;  // of |C_ij scale_j|
  };

  // s becomes C_ij scale_j, divided by the largest of its row where E has no room for small numbers; and each row's part in its gradients.
  ICCKD_DEVICE void find_coefficients(const TileRows<rows>& tile, float (&s)[rows / 8][4], float kappa,
                                      const Positions& own_classes) const {
    const float scale = kappa * log2_e;
    float log_total[2], factor[2];
    CoefficientSums sums[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      log_total[half] = numbers.log_total[own_row(half)];
      factor[half] = tile.factor[own_row(half)];
    }
#pragma unroll
    for (int first = 0; first < rows; first += 16) {
      if (!meet(own_classes, first, 16)) {
#pragma unroll
        for (int j = first / 8; j < first / 8 + 2; ++j)
#pragma unroll
          for (int i = 0; i < 4; ++i) s[j][i] = 0;
        continue;
      }
#pragma unroll
      for (int j = first / 8; j < first / 8 + 2; ++j)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int column = own_column(j) + i;
          const float column_scale = numbers.scale[column], column_total = numbers.log_total[column], column_factor = tile.factor[column];
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            float& x = s[j][2 * half + i];
            CoefficientSums& of = sums[half];
            const float similarity = x == -INFINITY ? 0 : x;
            const float as_anchor = factor[half] * exp2_fast(fmaf(x, scale, -log_total[half]));
            const float both = as_anchor + column_factor * exp2_fast(fmaf(x, scale, -column_total));
            of.pairs += as_anchor;
            of.slope = fmaf(as_anchor, similarity, of.slope);
            of.along = fmaf(both, similarity, of.along);
            x = both * column_scale;
            of.largest = fmaxf(of.largest, fabsf(x));
          }
        }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float unit = 1;
      if constexpr (std::is_same_v<E, float16>) {
        const float largest = quad_max(sums[half].largest);
        // Else its inverse would be no number.
        unit = largest > 1e-36f ? largest : 1;
#pragma unroll
        for (int j = 0; j < rows / 8; ++j)
#pragma unroll
          for (int i = 0; i < 2; ++i) s[j][2 * half + i] *= 1 / unit;
      }
      find_factors(tile, own_row(half), quad_sum(sums[half].pairs), quad_sum(sums[half].slope), quad_sum(sums[half].along), kappa, unit);
    }
  }

  // Of row k, from the sums of its coefficients, which were divided by `unit`. Called by its four lanes.
  ICCKD_DEVICE void find_factors(const TileRows<rows>& tile, int k, float pairs, float slope, float along, float kappa,
                                 float unit) const {
    if (lane() % 4 != 0) return;
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

  // A chunk after the other: C Z, then its gradients, 8 rows × 32 columns at a time. A thread has 8 columns of a row. Of the two rows that
  // shared memory is read for at once, one is 4 below the other, so that they begin at different banks.
  ICCKD_DEVICE void write_gradients(const TileRows<rows>& tile, const Coefficients<E, rows>& c, const Positions& own) const {
    const int first = warp_rows * warp() + lane() / 8 + lane() / 4 % 2 * 4, first_column = lane() % 4 * 8;
    for (int chunk = 0; chunk < p.plan.chunks; ++chunk) {
      const int column = chunk * chunk_columns<E> + first_column;
      // Asked for now, so that they come while the matrix unit works.
      Vector16 positives[2][pieces];
#pragma unroll
      for (int half = 0; half < 2; ++half) load_pieces(positives[half], tile, first + 8 * half, column);
      float pull[chunk_columns<E> / 8][4] = {};
      if (p.d_anchor) add_pull_of(pull, c, operand + chunk * rows * swizzle_row_bytes, own);
#pragma unroll
      for (int half = 0; half < 2; ++half) write_pieces(tile, first + 8 * half, chunk, column, positives[half], pull, half);
    }
  }

  // A thread's 16 bytes of a row in a chunk: 8 of each 32 columns.
  static constexpr int pieces = chunk_columns<E> / bounce_columns * 8 / per_vector<E>;
  static constexpr ICCKD_DEVICE int piece_column(int piece) {
    return piece * per_vector<E> / 8 * bounce_columns + piece * per_vector<E> % 8;
  }

  ICCKD_DEVICE void load_pieces(Vector16 (&to)[pieces], const TileRows<rows>& tile, int k, int column) const {
    const E* const row = positive(tile.row[k]) + column;
    const bool is_anchor = tile.is_anchor[k];
#pragma unroll
    for (int piece = 0; piece < pieces; ++piece) {
      const E* const from = row + piece_column(piece);
      const int left = p.dim - column - piece_column(piece);
      to[piece] = !is_anchor || left <= 0 ? Vector16{} : p.aligned ? load16_last(from) : load_elements(from, left);
    }
  }

  // A number's place in the bounce; of 4 numbers together, which begin at a multiple of 4, the place of the first.
  static constexpr ICCKD_DEVICE int bounced(int row, int column) { return row * bounce_stride + (column ^ row / 4 * 4); }

  // 8 rows and 32 columns of the fragments.
  ICCKD_DEVICE void bounce_pull(const float (&pull)[chunk_columns<E> / 8][4], int half, int first_column) const {
    float* const to = bounce + bounced(lane() / 4, own_column(0));
    warp_barrier();
#pragma unroll
    for (int j = 0; j < bounce_columns / 8; ++j)
#pragma unroll
      for (int i = 0; i < 2; ++i) to[8 * j + i] = pull[first_column / 8 + j][2 * half + i];
    warp_barrier();
  }

  // This thread's pieces of both gradients of row k of the tile.
  ICCKD_DEVICE void write_pieces(const TileRows<rows>& tile, int k, int chunk, int column, const Vector16 (&positives)[pieces],
                                 const float (&pull)[chunk_columns<E> / 8][4], int half) const {
    const RowFactors f = numbers.factors[k];
    const int64_t at = static_cast<int64_t>(tile.row[k]) * p.dim + column;
    const unsigned char* const own = operand + chunk * rows * swizzle_row_bytes;
#pragma unroll
    for (int piece = 0; piece < pieces; ++piece) {
      const int offset = piece_column(piece), in_bounce = offset % bounce_columns;
      if (p.d_anchor && in_bounce == 0) bounce_pull(pull, half, offset);
      const int left = p.dim - column - offset;
      if (k >= tile.count || left <= 0) continue;
      float z[per_vector<E>], y[per_vector<E>], d[per_vector<E>];
      to_floats<E>(load16(own + swizzled(k * swizzle_row_bytes + (lane() % 4 * 8 + offset) * static_cast<int>(sizeof(E)))), z);
      to_floats<E>(positives[piece], y);
      if (p.d_anchor) {
#pragma unroll
        for (int i = 0; i < per_vector<E>; i += 4) {
          float pulled[4];
          to_floats<float>(load16(bounce + bounced(k % bounce_rows, lane() % 4 * 8 + in_bounce + i)), pulled);
#pragma unroll
          for (int n = 0; n < 4; ++n) d[i + n] = fmaf(f.pull, pulled[n], fmaf(f.positive, y[i + n], f.own * z[i + n]));
        }
        store_elements(static_cast<E*>(p.d_anchor) + at + offset, left, d, p.aligned);
      }
      if (p.d_positive) {
#pragma unroll
        for (int i = 0; i < per_vector<E>; ++i) d[i] = fmaf(f.positive_own, z[i], f.positive_positive * y[i]);
        store_elements(static_cast<E*>(p.d_positive) + at + offset, left, d, p.aligned);
      }
    }
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

  const WholeClassParams& p;
  unsigned char* const operand;
  float* const bounce;
  RowNumbers<rows>& numbers;
  TileRows<rows>* const tiles;
};

}  // namespace icckd::cuda
