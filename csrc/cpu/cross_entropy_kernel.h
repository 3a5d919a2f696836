#pragma once

#include <cstdint>

#include "cpu/dispatch.h"
#include "cpu/element.h"

namespace icckd {

struct CrossEntropyJob {
  Element element;
  const void* logits;  // row i, class c: element i · row_stride + c · class_stride
  int64_t row_stride, class_stride, classes;
  const int64_t* labels;  // (N,), in [0, classes) or ignore_index
  int64_t ignore_index;
  float label_smoothing;
  bool probability;         // the margin's space: probabilities, or logits
  const float* grad_rows;   // (N,), the upstream gradient of each row's loss; read for d_logits only
  float *rows, *margin;     // (N,) each
  float* lse;               // (N,): log-sum-exp less the row's maximum
  void* d_logits;           // (N, classes), contiguous, of the logits' type; null: not wanted
};

ICCKD_DECLARE_KERNELS(
    // Computes rows [begin, end), with a row of scratch.
    void cross_entropy_margin(const CrossEntropyJob& job, int64_t begin, int64_t end, float* scratch);)

}  // namespace icckd
