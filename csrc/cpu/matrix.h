// Small matrix products, register-blocked: the tiles from which the intra-class kernels are made (kernels only).
#pragma once

#include "cpu/vector.h"

namespace icckd::ICCKD_ISA {

// A tile of a product has at most tile_rows × tile_vectors · width elements, which live in registers while it is computed.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int tile_rows = 8;
#else
constexpr int tile_rows = 4;
#endif
constexpr int tile_vectors = 3;

static inline int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// Where part `index` of `parts` begins, when `count` things are shared out as evenly as can be.
static inline int64_t share(int64_t count, int64_t parts, int64_t index) {
  return count * index / parts;
}

static inline int64_t parts_of_at_most(int64_t count, int64_t most) {
  return (count + most - 1) / most;
}

// The row stride of a matrix of n columns: whole vectors, an odd number of them, so that equal columns of successive rows fall
// into different sets of the cache.
static inline int64_t row_stride(int64_t n) {
  const int64_t vectors = (n + width - 1) / width;
  return (vectors | 1) * width;
}

// An operand of which single elements (r, k) are read, at data[r · row + k · step].
struct Scalars {
  const float* data;
  int64_t row, step;
};

// An operand or a result of which vectors are read or written: vector v of row k is at data[k · row + v · vector].
template <class Float>
struct Vectors {
  Float* data;
  int64_t row, vector;
};

// What a product adds up, element by element of a vector: acc + left · right …
struct Floats {
  static Vec add(Vec acc, Vec left, Vec right) { return acc + left * right; }
};

#if defined(__AVX512BF16__)
// … or, where an element is two bfloat16 in one word, the sum of two products, rounded in float32.
struct Bfloat16Pairs {
  static Vec add(Vec acc, Vec left, Vec right) {
    return (Vec)_mm512_dpbf16_ps((__m512)acc, (__m512bh)left, (__m512bh)right);
  }
};
#endif

template <class Elements, int rows, int vectors>
static void multiply_tile(Scalars a, Vectors<const float> b, int64_t depth, Vectors<float> c, bool add) {
  Vec tile[rows][vectors];
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 3
    for (int v = 0; v < vectors; ++v) tile[r][v] = add ? load(c.data + r * c.row + v * c.vector) : Vec{};
  for (int64_t k = 0; k < depth; ++k) {
    Vec right[vectors];
#pragma GCC unroll 3
    for (int v = 0; v < vectors; ++v) right[v] = load(b.data + v * b.vector);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const Vec left = splat(a.data[r * a.row]);
#pragma GCC unroll 3
      for (int v = 0; v < vectors; ++v) tile[r][v] = Elements::add(tile[r][v], left, right[v]);
    }
    a.data += a.step;
    b.data += b.row;
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 3
    for (int v = 0; v < vectors; ++v) store(c.data + r * c.row + v * c.vector, tile[r][v]);
}

// C = A B, or C += A B, for `rows` rows of A, `depth` columns of A and rows of B, and `vectors` vectors of B, in tiles: as even as can
// be, and those of the same columns of B one after the other, while these are in the nearest cache.
template <class Elements = Floats>
static void multiply(int64_t rows, int64_t vectors, int64_t depth, Scalars a, Vectors<const float> b, Vectors<float> c, bool add) {
  using Tile = void (*)(Scalars, Vectors<const float>, int64_t, Vectors<float>, bool);
#define ICCKD_TILES(r) {multiply_tile<Elements, r, 1>, multiply_tile<Elements, r, 2>, multiply_tile<Elements, r, 3>}
  static constexpr Tile tiles[tile_rows][tile_vectors] = {
      ICCKD_TILES(1), ICCKD_TILES(2), ICCKD_TILES(3), ICCKD_TILES(4),
#if defined(__AVX512F__) || defined(__aarch64__)
      ICCKD_TILES(5), ICCKD_TILES(6), ICCKD_TILES(7), ICCKD_TILES(8),
#endif
  };
#undef ICCKD_TILES
  const int64_t down = parts_of_at_most(rows, tile_rows), across = parts_of_at_most(vectors, tile_vectors);
  for (int64_t column = 0; column < across; ++column)
    for (int64_t row = 0; row < down; ++row) {
      const int64_t i = share(rows, down, row), height = share(rows, down, row + 1) - i;
      const int64_t v = share(vectors, across, column), breadth = share(vectors, across, column + 1) - v;
      tiles[height - 1][breadth - 1]({a.data + i * a.row, a.row, a.step}, {b.data + v * b.vector, b.row, b.vector}, depth,
                                     {c.data + i * c.row + v * c.vector, c.row, c.vector}, add);
    }
}

// Packs `count` rows (a multiple of width, `stride` apart, `dim` long and padded to whole vectors) for use as the right operand of
// Z Zᵀ: element d of row r goes to packed[(r / width · padded_dim + d) · width + r % width].
static void pack_transposed(const float* rows, int64_t count, int64_t stride, int64_t padded_dim, float* packed) {
  for (int64_t first = 0; first < count; first += width)
    for (int64_t d = 0; d < padded_dim; d += width) {
      Vec block[width];
#pragma GCC unroll 16
      for (int r = 0; r < width; ++r) block[r] = load(rows + (first + r) * stride + d);
      transpose(block);
#pragma GCC unroll 16
      for (int r = 0; r < width; ++r) store(packed + first * padded_dim + (d + r) * width, block[r]);
    }
}

}  // namespace icckd::ICCKD_ISA
