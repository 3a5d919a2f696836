// Cross-entropy, its gradient and the classification margin of whole rows of logits x with label y, ε the label smoothing:
//
//     top = max x,  e_c = exp(x_c − top),  S = Σ e_c,  lse = log S
//     loss     = (1 − ε) (lse − (x_y − top)) + ε (lse − mean(x − top))
//     margin   = (e_y − max_{c≠y} e_c) / S,  or x_y − max_{c≠y} x_c
//     gradient = g (e_c / S − (1 − ε) [c = y] − ε / C)
//
// Memory: each logit is read once and its gradient written once; between the two the row lies in scratch as floats (4 C bytes: the
// first cache up to C ≈ 8,000, the second to C ≈ 250,000). Work: one exponential per logit; everything else is a few operations.
#include "cpu/cross_entropy_kernel.h"

#include <cmath>
#include <limits>

#include "cpu/row.h"

namespace icckd::ICCKD_ISA {
namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

template <class T>
const T* logits_of(const CrossEntropyJob& job, int64_t i) {
  return static_cast<const T*>(job.logits) + i * job.row_stride;
}

template <class T>
T* gradient_of(const CrossEntropyJob& job, int64_t i) {
  return static_cast<T*>(job.d_logits) + i * job.classes;
}

template <class T>
void ignore_row(const CrossEntropyJob& job, int64_t i) {
  job.rows[i] = job.lse[i] = 0;
  job.margin[i] = -infinity;
  if (job.d_logits) write_row(gradient_of<T>(job, i), job.classes, [](int64_t) { return Vec{}; });
}

// x_y − max_{c≠y} x_c, NaN where a NaN is among them: `largest` may pass over it.
float careful_logit_margin(const float* x, int64_t classes, int64_t label) {
  float other = -infinity;
  for (int64_t c = 0; c < classes; ++c)
    if (c != label && !(x[c] <= other) && !std::isnan(other)) other = x[c];
  return x[label] - other;
}

// Σ (x_c − top), without the padding.
float sum_below_top(const float* x, int64_t classes, float top) {
  const int64_t whole = classes / width * width;
  float rest = 0;
  for (int64_t c = whole; c < classes; ++c) rest += x[c] - top;
  return rest + total(whole, [&](int64_t c) { return load(x + c) - top; });
}

template <class T>
void compute_row(const CrossEntropyJob& job, int64_t i, float* x) {
  const int64_t classes = job.classes, label = job.labels[i];
  read_row(logits_of<T>(job, i), job.class_stride, classes, -infinity, x);
  const float own = x[label];
  x[label] = -infinity;
  const float other = largest(x, classes);
  x[label] = own;
  const float top = own < other ? other : own;
  const float mean = job.label_smoothing > 0 ? sum_below_top(x, classes, top) / classes : 0;
  const float s = total(classes, [&](int64_t c) {
    const Vec e = exp(load(x + c) - top);
    store(x + c, e);
    return e;
  });
  const float lse = std::log(s), smoothing = job.label_smoothing;
  const float hard = lse - (own - top);
  job.rows[i] = smoothing > 0 ? (1 - smoothing) * hard + smoothing * (lse - mean) : hard;
  job.lse[i] = lse;
  job.margin[i] = job.probability ? (x[label] - exp(splat(other - top))[0]) / s : own - other;
  if (!job.probability && std::isnan(s)) {
    read_row(logits_of<T>(job, i), job.class_stride, classes, -infinity, x);
    job.margin[i] = careful_logit_margin(x, classes, label);
  }
  if (!job.d_logits) return;
  // The label's share goes in before the rounding to T.
  x[label] -= (1 - smoothing) * s;
  const float g = job.grad_rows[i], scale = g / s, uniform = g * smoothing / classes;
  write_row(gradient_of<T>(job, i), classes, [&](int64_t c) { return load(x + c) * scale - uniform; });
}

}  // namespace

void cross_entropy_margin(const CrossEntropyJob& job, int64_t begin, int64_t end, float* scratch) {
  with_type(job.element, [&](auto element) {
    using T = decltype(element);
    for (int64_t i = begin; i < end; ++i)
      if (job.labels[i] == job.ignore_index) {
        ignore_row<T>(job, i);
      } else {
        compute_row<T>(job, i, scratch);
      }
  });
}

}  // namespace icckd::ICCKD_ISA
