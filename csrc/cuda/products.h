// The two products of the whole-class kernel, of a tile of rows that stand in shared memory as operands:
//
//     S = Z Zᵀ    add_similarities    S in registers, 16 rows of the tile for each warp: the accumulators of the matrix unit
//     C Z         add_pull            C in registers, the same ones, as the first operand; 128 bytes of the columns of Z at a time
//
// By mma.sync, one warp at a time, or by wgmma, four together: both have the same accumulators. The operand is cut into chunks of 128
// bytes of every row, in the 128-byte swizzle (swizzle.h), which serves ldmatrix and the descriptors of wgmma alike.
#pragma once

#include <cstdint>

#include "cuda/device.h"
#include "cuda/element.h"
#include "cuda/tile_schedule.h"

namespace icckd::cuda {

// d += a · b, of fragments of 32 bytes along the sum. Float32 numbers are multiplied as the sum of two TF32 numbers each if `exact`.
template <class E, bool exact>
ICCKD_DEVICE void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (sizeof(E) == 2) {
    mma_16x8x16<E>(d, a, b);
  } else {
    uint32_t high_a[4], high_b[2], low_a[4], low_b[2];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      high_a[i] = to_tf32(bits_float(a[i]));
      low_a[i] = to_tf32(bits_float(a[i]) - bits_float(high_a[i]));
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      high_b[i] = to_tf32(bits_float(b[i]));
      low_b[i] = to_tf32(bits_float(b[i]) - bits_float(high_b[i]));
    }
    if constexpr (exact) {
      mma_16x8x8_tf32(d, low_a, high_b);
      mma_16x8x8_tf32(d, high_a, low_b);
    }
    mma_16x8x8_tf32(d, high_a, high_b);
  }
}

// Whether any of `count` columns is one of `own`: the columns of the classes that a warp has rows of. Others are left out.
ICCKD_DEVICE bool meet(const Positions& own, int first, int count) { return first < own.end && first + count > own.begin; }

// The product of a chunk of a warp's 16 rows with one of 16 · pairs rows, into as many columns of S. b: where this lane reads the first of
// those, for each 32 bytes. Independent sums hide the matrix unit's latency.
template <class E, bool exact, int pairs>
ICCKD_DEVICE void multiply_chunk(float (*s)[4], const uint32_t (&a)[4][4], const unsigned char* const (&b)[4], int offset) {
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    uint32_t of_b[pairs][4];
#pragma unroll
    for (int pair = 0; pair < pairs; ++pair) load_matrix4(of_b[pair], b[k] + offset + pair * 16 * swizzle_row_bytes);
#pragma unroll
    for (int pair = 0; pair < pairs; ++pair) {
      multiply<E, exact>(s[2 * pair], a[k], {of_b[pair][0], of_b[pair][1]});
      multiply<E, exact>(s[2 * pair + 1], a[k], {of_b[pair][2], of_b[pair][3]});
    }
  }
}

// S of a warp's 16 rows with the rows of their classes: s[j] the fragment of columns 8j … 8j + 7.
template <class E, int rows, bool exact>
ICCKD_DEVICE void add_similarities(float (&s)[rows / 8][4], const unsigned char* operand, int chunks, const Positions& own) {
  const int matrix = lane() / 8, row = lane() % 8;
  const int a_at = (warp_rows * warp() + matrix % 2 * 8 + row) * swizzle_row_bytes + matrix / 2 * 16;
  const int b_at = (matrix / 2 * 8 + row) * swizzle_row_bytes + matrix % 2 * 16;
  for (int chunk = 0; chunk < chunks; ++chunk, operand += rows * swizzle_row_bytes) {
    uint32_t a[4][4];
    const unsigned char* b[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      load_matrix4(a[k], operand + swizzled(a_at + k * 32));
      b[k] = operand + swizzled(b_at + k * 32);
    }
#pragma unroll
    for (int pair = 0; pair < rows / 16; pair += 2) {
      const bool first = meet(own, 16 * pair, 16), second = meet(own, 16 * pair + 16, 16);
      constexpr int pair_bytes = 16 * swizzle_row_bytes;
      if (first && second)
        multiply_chunk<E, exact, 2>(s + 2 * pair, a, b, pair * pair_bytes);
      else if (first)
        multiply_chunk<E, exact, 1>(s + 2 * pair, a, b, pair * pair_bytes);
      else if (second)
        multiply_chunk<E, exact, 1>(s + 2 * pair + 2, a, b, (pair + 1) * pair_bytes);
    }
  }
}

// C as the first operand of a product: registers of the accumulator's fragment, which become those of the operand's.
template <class E, int rows>
struct Coefficients;

// 16 columns of C make one: a[k] that of columns 16k … 16k + 15.
template <class E, int rows>
  requires(sizeof(E) == 2)
struct Coefficients<E, rows> {
  uint32_t a[rows / 16][4];

  ICCKD_DEVICE explicit Coefficients(const float (&c)[rows / 8][4]) {
#pragma unroll
    for (int k = 0; k < rows / 16; ++k)
#pragma unroll
      for (int i = 0; i < 4; ++i) a[k][i] = pack<E>(c[2 * k + i / 2][i % 2 * 2], c[2 * k + i / 2][i % 2 * 2 + 1]);
  }
};

// 8 columns make one. Columns 2t and 2t + 1 are a thread's: they stand for the sum's terms t and t + 4.
template <class E, int rows>
  requires(sizeof(E) == 4)
struct Coefficients<E, rows> {
  uint32_t a[rows / 8][4];

  ICCKD_DEVICE explicit Coefficients(const float (&c)[rows / 8][4]) {
#pragma unroll
    for (int k = 0; k < rows / 8; ++k)
#pragma unroll
      for (int i = 0; i < 4; ++i) a[k][i] = float_bits(c[k][i % 2 * 2 + i / 2]);
  }
};

// Columns of a chunk of the operand.
template <class E>
inline constexpr int chunk_columns = swizzle_row_bytes / static_cast<int>(sizeof(E));

// C Z of a warp's rows and one chunk of Z.
template <class E, int rows, bool exact>
ICCKD_DEVICE void add_pull(float (&pull)[chunk_columns<E> / 8][4], const Coefficients<E, rows>& c, const unsigned char* chunk,
                            const Positions& own) {
  if constexpr (sizeof(E) == 2) {
    const int matrix = lane() / 8, at = (matrix % 2 * 8 + lane() % 8) * swizzle_row_bytes + matrix / 2 * 16;
    const unsigned char* columns[4];
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) columns[pair] = chunk + swizzled(at + pair * 32);
#pragma unroll
    for (int k = 0; k < rows / 16; ++k) {
      if (!meet(own, 16 * k, 16)) continue;
#pragma unroll
      for (int pair = 0; pair < 4; ++pair) {
        uint32_t b[4];
        load_matrix4_transposed(b, columns[pair] + k * 16 * swizzle_row_bytes);
        multiply<E, exact>(pull[2 * pair], c.a[k], {b[0], b[1]});
        multiply<E, exact>(pull[2 * pair + 1], c.a[k], {b[2], b[3]});
      }
    }
  } else {
    const int at = lane() % 4 * 2 * swizzle_row_bytes + lane() / 4 * 4;
#pragma unroll
    for (int k = 0; k < rows / 8; ++k) {
      if (!meet(own, 8 * k, 8)) continue;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const unsigned char* const z = chunk + k * 8 * swizzle_row_bytes;
        const uint32_t even = *reinterpret_cast<const uint32_t*>(z + swizzled(at + j * 32));
        const uint32_t odd = *reinterpret_cast<const uint32_t*>(z + swizzled(at + swizzle_row_bytes + j * 32));
        multiply<E, exact>(pull[j], c.a[k], {even, odd});
      }
    }
  }
}

#if ICCKD_HAS_WGMMA

// The compiler moves nothing that touches these registers past this line. Without it, it takes some of them for results of other
// instructions between the products, and makes each product wait for the one before.
template <int n>
ICCKD_DEVICE void keep_order(float (&d)[n][4]) {
#pragma unroll
  for (int j = 0; j < n; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#if !defined(ICCKD_EMULATED)
      asm volatile("" : "+f"(d[j][i])::"memory");
#endif
    }
}

// The same two by warpgroups: 64 rows at a time, with all rows of the tile, Z always from shared memory. Columns of other classes are not
// left out: ptxas makes all products wait for one another where one is conditional.
template <class E, int rows>
ICCKD_DEVICE void add_similarities_by_warpgroup(float (&s)[rows / 8][4], const unsigned char* operand, int chunks) {
  constexpr int group_bytes = 64 * swizzle_row_bytes;
  const int own = warp() / 4 * group_bytes;
  keep_order(s);
  wgmma_fence();
  for (int chunk = 0; chunk < chunks; ++chunk, operand += rows * swizzle_row_bytes)
#pragma unroll
    for (int k = 0; k < swizzle_row_bytes; k += 32) {
      const uint64_t a = wgmma_descriptor(operand + own + k, 0, swizzle_atom_bytes);
#pragma unroll
      for (int group = 0; group < rows / 64; ++group)
        wgmma_64xNx16<E, 64>(reinterpret_cast<float(&)[8][4]>(s[8 * group]), a,
                             wgmma_descriptor(operand + group * group_bytes + k, 0, swizzle_atom_bytes));
    }
  wgmma_commit();
  wgmma_wait<0>();
  keep_order(s);
}

template <class E, int rows>
ICCKD_DEVICE void add_pull_by_warpgroup(float (&pull)[8][4], const Coefficients<E, rows>& c, const unsigned char* chunk) {
  keep_order(pull);
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < rows / 16; ++k)
    wgmma_64xNx16<E, 64, true>(pull, c.a[k], wgmma_descriptor(chunk + k * 16 * swizzle_row_bytes, 0, swizzle_atom_bytes));
  wgmma_commit();
  wgmma_wait<0>();
  keep_order(pull);
}

#endif

}  // namespace icckd::cuda
