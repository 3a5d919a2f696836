#pragma once

#include <cstdint>

#include "cpu/dispatch.h"
#include "cpu/logits.h"

namespace icckd {

struct RestDivergenceJob {
  Logits student, teacher;
  int64_t classes;
  const int64_t* labels;  // (N,), each a class
  float temperature, odds_temperature;
  // Either these are wanted, (N,) each,
  float *divergence = nullptr, *entropy = nullptr, *odds = nullptr, *teacher_odds = nullptr;
  // or the gradient (N, classes), contiguous, of the student's type, by the upstream gradients (N,).
  const float *grad_divergence = nullptr, *grad_odds = nullptr;
  void* d_student = nullptr;
};

ICCKD_DECLARE_KERNELS(
    // Computes rows [begin, end), with three rows of scratch, each `scratch_length` long.
    void rest_divergence(
        const RestDivergenceJob& job, int64_t begin, int64_t end, float* scratch, int64_t scratch_length);)

}  // namespace icckd
