// Distances and angles between the rows x_i of a batch, in float64.
//
// With D_ij = |x_i − x_j|² and r_ij = 1/√D_ij, the cosine at vertex j between x_i − x_j and x_k − x_j follows from the law of
// cosines, without any N × D work per vertex:
//
//     c_ijk = (D_ij + D_kj − D_ik) r_ij r_kj / 2
//
// It cancels where one side is short; hence float64, and D from differences. For the gradient, with e_ijk the derivative of the
// smooth-L1 and by the symmetry of i and k:
//
//     dL = Σ_ij dD_ij Σ_k e_ijk (r_ij r_kj − c_ijk r_ij²)  −  Σ_ik dD_ik Σ_j e_ijk r_ij r_kj / 2
//
// Work: 3 D N²/2 operations for the distances, about 16 N³ for the angles, 3 D N² for the gradient. Memory: five N × N matrices.
// Everything a row i writes belongs to it, and it runs along rows j of the matrices, which the second cache holds up to N ≈ 250.
#include "cpu/relational_kernel.h"

#include "cpu/row.h"

namespace icckd::ICCKD_ISA {
namespace {

constexpr int double_width = width / 2;
typedef double DoubleVec __attribute__((vector_size(4 * width)));

DoubleVec load(const double* p) {
  DoubleVec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

void store(double* p, DoubleVec v) {
  std::memcpy(p, &v, sizeof v);
}

double sum(DoubleVec v) {
  double total = 0;
  for (int i = 0; i < double_width; ++i) total += v[i];
  return total;
}

// To [−1, 1], and NaN for NaN.
DoubleVec clamp(DoubleVec v) {
  const DoubleVec one = DoubleVec{} + 1.0;
  v = v > one ? one : v;
  return v < -one ? -one : v;
}

// Side i–j of the triangles i–j–k, for all k.
struct Side {
  double squared, half_inverse;       // D_ij, r_ij / 2
  const double *opposite, *adjacent;  // D_ik and D_jk
  const double* inverse;              // r_jk

  Side(const Relations& x, int64_t i, int64_t j)
      : squared(x.squared[i * x.stride + j]),
        half_inverse(x.inverse[i * x.stride + j] / 2),
        opposite(x.squared + i * x.stride),
        adjacent(x.squared + j * x.stride),
        inverse(x.inverse + j * x.stride) {}

  DoubleVec scale(int64_t k) const { return load(inverse + k) * half_inverse; }
  DoubleVec cosine(int64_t k, DoubleVec scale) const {
    return (squared + load(adjacent + k) - load(opposite + k)) * scale;
  }
};

template <bool with_slope>
double angles(const Relations& student, const Relations& teacher, int64_t i, double* slope) {
  DoubleVec loss{};
  for (int64_t j = 0; j < student.count; ++j) {
    const Side s(student, i, j), t(teacher, i, j);
    DoubleVec by_inverse{}, by_cosine{};  // Σ_k e r_kj and Σ_k e c
    for (int64_t k = 0; k < student.count; k += double_width) {
      const DoubleVec scale = s.scale(k), cosine = s.cosine(k, scale);
      const DoubleVec delta = cosine - t.cosine(k, t.scale(k)), e = clamp(delta);
      loss += e * (delta - 0.5 * e);
      if constexpr (with_slope) {
        by_inverse += e * load(s.inverse + k);
        by_cosine += e * cosine;
        store(slope + k, load(slope + k) - e * scale);
      }
    }
    const double r = 2 * s.half_inverse;
    if constexpr (with_slope) slope[j] += r * sum(by_inverse) - r * r * sum(by_cosine);
  }
  return sum(loss);
}

}  // namespace

void read_float64(Element element, const void* x, int64_t stride, int64_t count, double* row) {
  with_type(element, [&](auto type) {
    for (int64_t c = 0; c < count; c += width) {
      float values[width];
      const int64_t rest = std::min<int64_t>(width, count - c);
      read_row(static_cast<const decltype(type)*>(x) + c * stride, stride, rest, 0, values);
      for (int64_t i = 0; i < rest; ++i) row[c + i] = values[i];
    }
  });
}

void squared_distances(
    const double* x, int64_t x_stride, int64_t i, int64_t count, double* squared, int64_t stride) {
  for (int64_t k = i + 1; k < count; ++k) {
    DoubleVec partial[2] = {};
    for (int64_t d = 0; d < x_stride; d += double_width) {
      const DoubleVec difference = load(x + i * x_stride + d) - load(x + k * x_stride + d);
      partial[d / double_width % 2] += difference * difference;
    }
    squared[i * stride + k] = squared[k * stride + i] = sum(partial[0] + partial[1]);
  }
}

double angle_row(const Relations& student, const Relations& teacher, int64_t i, double* slope) {
  if (!slope) return angles<false>(student, teacher, i, nullptr);
  for (int64_t k = 0; k < student.stride; ++k) slope[k] = 0;
  return angles<true>(student, teacher, i, slope);
}

void pull_row(
    const double* x, int64_t x_stride, int64_t i, int64_t count, const double* pull, double* gradient) {
  for (int64_t d = 0; d < x_stride; ++d) gradient[d] = 0;
  for (int64_t k = 0; k < count; ++k)
    for (int64_t d = 0; d < x_stride; d += double_width)
      store(gradient + d, load(gradient + d) + pull[k] * (load(x + i * x_stride + d) - load(x + k * x_stride + d)));
}

}  // namespace icckd::ICCKD_ISA
