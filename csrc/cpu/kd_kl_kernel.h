#pragma once

#include <cstdint>

#include "cpu/dispatch.h"
#include "cpu/logits.h"

namespace icckd {

struct KdKlJob {
  Logits student, teacher;
  int64_t classes;
  float temperature, teacher_sharpness;  // T, and 1 / the teacher's
  bool standardize, weighted;
  const float* grad_rows;  // (N,), the upstream gradient of each row's loss; read for d_student only
  float* rows;             // (N,)
  void* d_student;         // (N, classes), contiguous, of the student's type; null: not wanted
};

ICCKD_DECLARE_KERNELS(
    // Computes rows [begin, end), with three rows of scratch, each `scratch_length` long.
    void kd_kl(const KdKlJob& job, int64_t begin, int64_t end, float* scratch, int64_t scratch_length);)

}  // namespace icckd
