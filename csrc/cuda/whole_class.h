// The intra-class loss and its gradients of classes that fit on chip whole: one read and one write of the rows.
//
//     S = Z Zᵀ,  P_ij = exp(κ S_ij − lse_i),  C_ij = u_i P_ij + u_j P_ji,  r_i = u_i Σ_j P_ij,  a_i = z_i·p_i
//     dz_i = κ [ Σ_j C_ij z_j − r_i p_i ]   dp_i = −κ r_i z_i   dκ = Σ_i [ u_i Σ_j P_ij S_ij − r_i a_i ]
//     x = f/‖f‖:  df = (dx − x (x·dx)) / ‖f‖,  where z_i · Σ_j C_ij z_j = Σ_j C_ij S_ij needs no second look at the rows
//
//     memory ──copies──▶ ring of a warp ──norms, a_i──▶ operand (tile × D) ──S──▶ registers of the warp that owns the 16 rows
//                            ▲ next tile                    │                        │ lse, loss ──▶ memory
//                                                           └───────── C Z ◀── C ────┘
//                                                                       └─ bounce ──▶ both gradients ──▶ memory
//
// A tile is up to 32, 64 or 128 rows of whole classes (tile_schedule.h says which), 16 for each warp. Rows are multiplied by a power of
// two as they become operands, which brings their norms into [1, 2) and loses nothing: z_i = scale_i · operand_i, and all that is left
// of the norm is a float32 factor of a row or a column of S, of C, of the gradients. So similarities are as exact as the matrix unit's
// products of the given numbers, and 16-bit coefficients C are rounded once.
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

// What the layout says about the rows of a tile. Rows beyond `count` are of no class.
template <int rows>
struct TileRows {
  int row[rows];                             // in the batch
  int class_begin[rows], class_end[rows];    // the class, as rows of the tile
  int is_anchor[rows];
  float factor[rows];                        // u: weight · scale · upstream
};

// A row's gradients: the anchor's is pull Σ_j C_ij z_j + positive p + own operand, the positive's positive_positive p + positive_own operand.
struct alignas(16) GradientFactors {
  float pull, positive, own;
  float positive_positive, positive_own;
};

// What the kernel finds out about the rows of a tile.
template <int rows>
struct RowNumbers {
  GradientFactors factors[rows];
  float scale[rows];                            // z = scale · operand
  float inverse[rows], positive_inverse[rows];  // 1/‖f‖
  float agreement[rows];                        // a
  float log_total[rows];                        // log2 of the sum of exponentials; +∞ where there is no anchor
};

constexpr float log2_e = 1.4426950408889634f, ln_2 = 0.6931471805599453f;

// ---- small pieces -------------------------------------------------------------------------------------------------------

// The four lanes of a row of a fragment.
ICCKD_DEVICE float quad_sum(float x) {
  x += shuffle_xor(x, 1);
  return x + shuffle_xor(x, 2);
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

// Products by wgmma, where there is one and the tile has its 64 rows.
template <class E, int rows>
inline constexpr bool by_warpgroups = ICCKD_HAS_WGMMA && sizeof(E) == 2 && rows >= 64;

// One block: `rows` / 16 warps. `bulk`: rows come by bulk copies. `warpgroups`: products by wgmma.
template <class E, int rows, bool bulk, bool warpgroups>
class WholeClass {
 public:
  static constexpr int warps = rows / warp_rows, threads = warps * warp_size;
  static_assert(2 * sizeof(TileRows<rows>) + sizeof(RowNumbers<rows>) == numbers_of_row * rows * 4);

  ICCKD_DEVICE explicit WholeClass(const WholeClassParams& params)
      : p(params),
        operand(shared_memory()),
        ring(shared_memory() + p.plan.ring + warp() * p.plan.stages * 2 * p.plan.row_bytes),
        bounce(reinterpret_cast<float*>(shared_memory() + p.plan.bounce) + warp() * 8 * p.plan.bounce_stride),
        numbers(*reinterpret_cast<RowNumbers<rows>*>(shared_memory() + p.plan.numbers)),
        tiles(reinterpret_cast<TileRows<rows>*>(shared_memory() + p.plan.numbers + sizeof(RowNumbers<rows>))),
        barriers(reinterpret_cast<Barrier*>(shared_memory() + p.plan.barriers) + warp() * p.plan.stages) {}

  // All tiles of this block's share.
  ICCKD_DEVICE void run() {
    const Positions share = share_of(block(), blocks(), p.totals[2], p.classes, p.totals[0]);
    if (share.begin == share.end) return;
    const auto tile_from = [&](int begin) { return Positions{begin, tile_end(begin, share.end, rows, p.classes)}; };
    Positions tile = tile_from(share.begin), next = tile_from(tile.end);
    int current = 0;
    describe(tiles[current], tile);
    make_barriers();
    block_barrier();
    fetch_first(tiles[current], tile.end - tile.begin);
    while (true) {
      const bool last = tile.end == share.end;
      if (!last) describe(tiles[1 - current], next);
      // Asked for long before it is needed.
      const Positions after_next = tile_from(next.end);
      take_all(tiles[current], tile.end - tile.begin);
      block_barrier();
      if (!last) fetch_first(tiles[1 - current], next.end - next.begin);
      contrast(tiles[current], tile.end - tile.begin);
      if (last) return;
      // Before anything of this tile is overwritten.
      block_barrier();
      tile = next;
      next = after_next;
      current = 1 - current;
    }
  }

 private:
  ICCKD_DEVICE void describe(TileRows<rows>& tile, Positions positions) const {
    ICCKD_ASSERT(positions.begin < positions.end && positions.end - positions.begin <= rows);
    const int k = thread(), position = positions.begin + k;
    if (k >= rows) return;
    const bool valid = position < positions.end;
    const int rank = valid ? p.classes.rank[position] : 0, start = p.classes.start[rank], row = valid ? p.order[position] : 0;
    const bool is_anchor = valid && position < start + p.active[rank];
    float factor = !is_anchor ? 0.0f : p.weight ? p.weight[row] : 1.0f;
    if (is_anchor && p.scale) factor *= *p.scale;
    if (is_anchor && p.upstream) factor *= p.upstream[row];
    tile.row[k] = row;
    tile.class_begin[k] = valid ? start - positions.begin : 0;
    tile.class_end[k] = valid ? start - positions.begin + p.classes.size[rank] : 0;
    tile.is_anchor[k] = is_anchor;
    tile.factor[k] = factor;
  }

  // ---- rows from memory into the operand: row k of a tile is taken by warp k % warps

  ICCKD_DEVICE void make_barriers() const {
#if ICCKD_HAS_BULK
    if constexpr (bulk) {
      if (lane() == 0) {
        for (int stage = 0; stage < p.plan.stages; ++stage) barrier_init(barriers + stage, 1);
        barrier_fence_init();
      }
    }
#endif
  }

  ICCKD_DEVICE const E* anchor(int row) const { return static_cast<const E*>(p.anchor) + row * p.anchor_stride; }
  ICCKD_DEVICE const E* positive(int row) const { return static_cast<const E*>(p.positive) + row * p.positive_stride; }
  ICCKD_DEVICE unsigned char* staged(int stage) const { return ring + stage * 2 * p.plan.row_bytes; }
  ICCKD_DEVICE int pieces() const { return p.plan.row_bytes / 16; }

  // Begins to copy row k, and its positive if it is an anchor.
  ICCKD_DEVICE void fetch(const TileRows<rows>& tile, int k, int stage) const {
    const E *const a = anchor(tile.row[k]), *const b = positive(tile.row[k]);
    const bool is_anchor = tile.is_anchor[k];
    unsigned char *const to = staged(stage), *const positive_to = to + p.plan.row_bytes;
    if (!p.aligned) {
      for (int piece = lane(); piece < pieces(); piece += warp_size) {
        store16(to + piece * 16, load_elements(a, piece * per_vector<E>, p.dim));
        if (is_anchor) store16(positive_to + piece * 16, load_elements(b, piece * per_vector<E>, p.dim));
      }
      return;
    }
    if constexpr (bulk) {
#if ICCKD_HAS_BULK
      if (lane() == 0) {
        barrier_expect(barriers + stage, is_anchor ? 2 * p.plan.row_bytes : p.plan.row_bytes);
        bulk_copy(to, a, p.plan.row_bytes, barriers + stage);
        if (is_anchor) bulk_copy(positive_to, b, p.plan.row_bytes, barriers + stage);
      }
#endif
    } else {
      for (int piece = lane(); piece < pieces(); piece += warp_size) {
        copy_async16(to + piece * 16, a + piece * per_vector<E>, true);
        if (is_anchor) copy_async16(positive_to + piece * 16, b + piece * per_vector<E>, true);
      }
      commit_copies();
    }
  }

  ICCKD_DEVICE void fetch_first(const TileRows<rows>& tile, int count) const {
    for (int stage = 0; stage < p.plan.stages; ++stage)
      if (const int k = warp() + stage * warps; k < count) fetch(tile, k, stage);
  }

  // Until a row has arrived: the oldest of those on their way. `full`: every other stage is on its way too.
  ICCKD_DEVICE void wait_for(int stage, bool full) {
    if constexpr (bulk) {
#if ICCKD_HAS_BULK
      if (p.aligned) {
        barrier_wait(barriers + stage, parities >> stage & 1);
        parities ^= 1u << stage;
        return;
      }
#endif
    } else if (p.aligned) {
      if (!full)
        wait_copies<0>();
      else if (p.plan.stages == 4)
        wait_copies<3>();
      else
        wait_copies<1>();
    }
    warp_barrier();
  }

  ICCKD_DEVICE void take_all(const TileRows<rows>& tile, int count) {
    int stage = 0;
    for (int k = warp(); k < count; k += warps) {
      const int ahead = p.plan.stages * warps;
      wait_for(stage, k + ahead - warps < count);
      take(tile, k, stage);
      warp_barrier();
      if (k + ahead < count) fetch(tile, k + ahead, stage);
      stage = stage + 1 == p.plan.stages ? 0 : stage + 1;
    }
    for (int k = count + warp(); k < rows; k += warps) take_nothing(k);
#if ICCKD_HAS_WGMMA
    if constexpr (warpgroups) fence_shared_async();
#endif
  }

  // A row and its positive, from their stage: the sums of their products, then the row as an operand.
  ICCKD_DEVICE void take(const TileRows<rows>& tile, int k, int stage) const {
    const unsigned char *const a = staged(stage), *const b = a + p.plan.row_bytes;
    const bool is_anchor = tile.is_anchor[k];
    float squares = 0, positive_squares = 0, products = 0;
    for (int piece = lane(); piece < pieces(); piece += warp_size) {
      float x[per_vector<E>], y[per_vector<E>] = {};
      to_floats<E>(load16(a + piece * 16), x);
      if (is_anchor) to_floats<E>(load16(b + piece * 16), y);
#pragma unroll
      for (int i = 0; i < per_vector<E>; ++i) {
        squares = fmaf(x[i], x[i], squares);
        positive_squares = fmaf(y[i], y[i], positive_squares);
        products = fmaf(x[i], y[i], products);
      }
    }
    squares = warp_sum(squares);
    positive_squares = warp_sum(positive_squares);
    products = warp_sum(products);

    const float norm = sqrtf(squares), power = power_of_two_below_inverse(norm);
    for (int piece = lane(); piece < p.plan.chunks * 8; piece += warp_size) {
      float x[per_vector<E>] = {};
      if (piece < pieces()) to_floats<E>(load16(a + piece * 16), x);
#pragma unroll
      for (int i = 0; i < per_vector<E>; ++i) x[i] *= power;
      store16(operand_piece(k, piece), from_floats<E>(x));
    }
    if (lane() == 0) {
      const float inverse = inverse_norm(norm), positive_inverse = inverse_norm(sqrtf(positive_squares));
      numbers.scale[k] = inverse / power;
      numbers.inverse[k] = inverse;
      numbers.positive_inverse[k] = positive_inverse;
      numbers.agreement[k] = products * inverse * positive_inverse;
    }
  }

  // A zero row: products read it, and nothing must come of it.
  ICCKD_DEVICE void take_nothing(int k) const {
    for (int piece = lane(); piece < p.plan.chunks * 8; piece += warp_size) store16(operand_piece(k, piece), Vector16{});
    if (lane() == 0) {
      numbers.scale[k] = numbers.inverse[k] = numbers.positive_inverse[k] = numbers.agreement[k] = 0;
      numbers.log_total[k] = INFINITY;
    }
  }

  ICCKD_DEVICE float inverse_norm(float norm) const {
    if (!p.normalize) return 1;
    return norm > 0 ? 1 / norm : 0;
  }

  ICCKD_DEVICE unsigned char* operand_piece(int k, int piece) const {
    return operand + piece / 8 * rows * swizzle_row_bytes + swizzled(k * swizzle_row_bytes + piece % 8 * 16);
  }

  // ---- from the operand to losses and gradients: each warp for 16 rows

  // The tile's row that this thread has a part of: the first or second half of the fragment's 16.
  ICCKD_DEVICE int own_row(int half) const { return warp_rows * warp() + 8 * half + lane() / 4; }
  ICCKD_DEVICE int own_column(int j) const { return 8 * j + lane() % 4 * 2; }

  ICCKD_DEVICE void contrast(const TileRows<rows>& tile, int count) const {
    const bool has_rows = (warpgroups ? warp() / 4 * 64 : warp() * warp_rows) < count;
    const Positions own = has_rows ? own_classes(tile, count) : Positions{};
    const float kappa = 1 / *p.temperature;
    float s[rows / 8][4] = {};
    if (has_rows) {
      multiply_rows(s, own);
      find_losses(tile, count, s, kappa * log2_e, own);
    }
    if (!p.d_anchor && !p.d_positive && !p.d_kappa) return;
    // Coefficients ask for the log-sum-exps of all rows.
    block_barrier();
    if (!has_rows) return;
    find_coefficients(tile, count, s, kappa, own);
    warp_barrier();
    if (p.d_anchor || p.d_positive) write_gradients(tile, count, Coefficients<E, rows>(s), own);
  }

  // The rows of all classes that this warp, or warpgroup, has rows of.
  ICCKD_DEVICE Positions own_classes(const TileRows<rows>& tile, int count) const {
    constexpr int together = warpgroups ? 64 : warp_rows;
    const int first = warp() * warp_rows / together * together;
    return {tile.class_begin[first], tile.class_end[(first + together < count ? first + together : count) - 1]};
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
  ICCKD_DEVICE void find_losses(const TileRows<rows>& tile, int count, float (&s)[rows / 8][4], float scale,
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

      const float own = scale * numbers.agreement[k], loss = row_loss(highest + log2f(total), own), log_total = own + loss * log2_e;
      const bool is_anchor = tile.is_anchor[k];
      if (lane() % 4 != 0) continue;
      numbers.log_total[k] = is_anchor ? log_total : INFINITY;
      if (p.losses && k < count) {
        p.losses[tile.row[k]] = is_anchor ? tile.factor[k] * loss : 0;
        p.lse[tile.row[k]] = is_anchor ? log_total * ln_2 : 0;
      }
    }
  }

  // s becomes C_ij scale_j, divided by the largest of its row where E has no room for small numbers; and each row's part in its gradients.
  ICCKD_DEVICE void find_coefficients(const TileRows<rows>& tile, int count, float (&s)[rows / 8][4], float kappa,
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
      const float inverse = numbers.inverse[k], positive_inverse = numbers.positive_inverse[k];
      const float row_scale = numbers.scale[k], agreement = numbers.agreement[k];
      const float radial = pairs * agreement;
      numbers.factors[k] = {
          .pull = kappa * inverse * unit,
          .positive = -kappa * inverse * pairs * positive_inverse,
          .own = p.normalize ? -kappa * inverse * (along - radial) * row_scale : 0,
          .positive_positive = p.normalize ? kappa * radial * positive_inverse * positive_inverse : 0,
          .positive_own = -kappa * pairs * positive_inverse * row_scale,
      };
      if (p.d_kappa && k < count) p.d_kappa[tile.row[k]] = tile.is_anchor[k] ? slope - radial : 0;
    }
  }

  // A chunk after the other: C Z, then 16 bytes of 4 rows for each thread.
  ICCKD_DEVICE void write_gradients(const TileRows<rows>& tile, int count, const Coefficients<E, rows>& c, const Positions& own) const {
    const int first = warp_rows * warp(), piece = lane() % 8;
    const unsigned char* chunk = operand;
    for (int column = piece * per_vector<E>; chunk < operand + p.plan.chunks * rows * swizzle_row_bytes;
         column += chunk_columns<E>, chunk += rows * swizzle_row_bytes) {
      // Asked for now, so that they come while the matrix unit works.
      Vector16 positives[4];
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        const int k = first + 4 * q + lane() / 8;
        positives[q] = column < p.dim && tile.is_anchor[k] ? load_positive(tile.row[k], column) : Vector16{};
      }
      float pull[chunk_columns<E> / 8][4] = {};
      if (p.d_anchor) add_pull_of(pull, c, chunk, own);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (p.d_anchor) {
          warp_barrier();
#pragma unroll
          for (int j = 0; j < chunk_columns<E> / 8; ++j)
#pragma unroll
            for (int i = 0; i < 2; ++i) bounce[lane() / 4 * stride + bounced(own_column(j)) + i] = pull[j][2 * half + i];
          warp_barrier();
        }
#pragma unroll
        for (int q = 2 * half; q < 2 * half + 2; ++q) {
          const int local = 4 * q + lane() / 8, k = first + local;
          if (k < count && column < p.dim)
            write_piece(tile.row[k], k, column, load16(chunk + swizzled(k * swizzle_row_bytes + piece * 16)), positives[q],
                        bounce + local % 8 * stride + bounced(piece * per_vector<E>));
        }
      }
    }
  }

  static constexpr int stride = chunk_columns<E> + 8;
  static constexpr ICCKD_DEVICE int bounced(int column) { return column + column / 32 * 4; }

  ICCKD_DEVICE Vector16 load_positive(int row, int column) const {
    return p.aligned ? load16_streaming(positive(row) + column) : load_elements(positive(row), column, p.dim);
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

  // 16 bytes of both gradients of a row.
  ICCKD_DEVICE void write_piece(int row, int k, int column, const Vector16& own, const Vector16& positive, const float* pull) const {
    float z[per_vector<E>], y[per_vector<E>], d[per_vector<E>];
    to_floats<E>(own, z);
    to_floats<E>(positive, y);
    const GradientFactors of = numbers.factors[k];
    const int64_t at = static_cast<int64_t>(row) * p.dim;
    if (p.d_anchor) {
#pragma unroll
      for (int i = 0; i < per_vector<E>; ++i) d[i] = fmaf(of.pull, pull[i], fmaf(of.positive, y[i], of.own * z[i]));
      store_elements(static_cast<E*>(p.d_anchor) + at, column, p.dim, d, p.aligned);
    }
    if (p.d_positive) {
#pragma unroll
      for (int i = 0; i < per_vector<E>; ++i) d[i] = fmaf(of.positive_own, z[i], of.positive_positive * y[i]);
      store_elements(static_cast<E*>(p.d_positive) + at, column, p.dim, d, p.aligned);
    }
  }

  const WholeClassParams& p;
  unsigned char *const operand, *const ring;
  float* const bounce;
  RowNumbers<rows>& numbers;
  TileRows<rows>* const tiles;
  Barrier* const barriers;
  uint32_t parities = 0;
};

}  // namespace icckd::cuda
