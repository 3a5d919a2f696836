#pragma once

#include <cstdint>

#include "cpu/dispatch.h"
#include "cpu/element.h"

namespace icckd {

// Matrices here are float64, with rows `stride` apart, a multiple of 8, and zeros from the last column to there.
struct Relations {
  int64_t count, stride;
  const double* squared;  // (count, count): squared Euclidean distances D
  const double* inverse;  // (count, count): 1/√D, and 0 where D = 0
};

ICCKD_DECLARE_KERNELS(
    // row[c] = x[c · stride], c < count.
    void read_float64(Element element, const void* x, int64_t stride, int64_t count, double* row);
    // squared[i, k] and squared[k, i], for all k > i, of the rows of x.
    void squared_distances(
        const double* x, int64_t x_stride, int64_t i, int64_t count, double* squared, int64_t stride);
    // Σ_jk smooth-L1(cos_ijk of the student − cos_ijk of the teacher). Unless null, `slope` becomes row i of a matrix W such that
    // W + Wᵀ is the derivative of Σ_i of it by the student's D.
    double angle_row(const Relations& student, const Relations& teacher, int64_t i, double* slope);
    // gradient = Σ_k pull[k] (x_i − x_k), of length x_stride.
    void pull_row(
        const double* x, int64_t x_stride, int64_t i, int64_t count, const double* pull, double* gradient);)

}  // namespace icckd
