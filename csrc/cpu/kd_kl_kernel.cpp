// The softened predictions' divergence of whole rows, student x and teacher y, at temperatures T and U:
//
//     a = (x − max x) / T,  p = exp(a) / A,  A = Σ exp(a);      b = (y − max y) / U,  q = exp(b) / B,  B = Σ exp(b)
//     loss     = T² (1/B Σ exp(b) (b − a) + log A − log B)
//     gradient = g T (p − q)
//
// both times Z = B (Σ exp(y − max y))^(−1/U), the sum of the (1/U)-th powers of softmax(y), where rows are weighted,
// and where the rows are standardised first, x = (u − mean u) / (σ + 1e-7) with σ² = Σ (u − mean u)² / (C − 1):
//
//     gradient = g T ((p − q) / (σ + 1e-7) − x Σ (p − q) x / ((C − 1) σ)),     as Σ (p − q) = 0
//
// Memory: each logit is read once and the student's gradient written once; between, three rows of scratch lie in cache. Work: two
// exponentials per class, three where rows are weighted.
#include "cpu/kd_kl_kernel.h"

#include <cmath>
#include <limits>

#include "cpu/row.h"

namespace icckd::ICCKD_ISA {
namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

struct Scratch {
  float *x, *p, *q;  // the student's logits; then exp(a) and exp(b), the latter in place of the teacher's logits
};

// Σ exp(a), Σ exp(b) and Σ exp(b) (b − a).
struct Sums {
  Vec student, teacher, cross;

  void operator+=(const Sums& other) {
    student += other.student;
    teacher += other.teacher;
    cross += other.cross;
  }
};

void read(const Logits& logits, int64_t i, int64_t classes, float* row) {
  with_type(logits.element, [&](auto element) {
    using T = decltype(element);
    read_row(static_cast<const T*>(logits.data) + i * logits.row_stride, logits.class_stride, classes, 0, row);
  });
}

// Σ u v of rows whose padding is not to count.
float dot(const float* u, const float* v, int64_t count) {
  const int64_t whole = count / width * width;
  float rest = 0;
  for (int64_t c = whole; c < count; ++c) rest += u[c] * v[c];
  return rest + total(whole, [&](int64_t c) { return load(u + c) * load(v + c); });
}

float divisor(int64_t classes) {
  return static_cast<float>(std::max<int64_t>(classes - 1, 1));
}

// Standardises a row padded with zeros, in place, and returns its standard deviation (0 for a single class).
float standardize(float* x, int64_t classes) {
  const float mean = total(classes, [&](int64_t c) { return load(x + c); }) / classes;
  for (int64_t c = 0; c < classes; c += width) store(x + c, load(x + c) - mean);
  const float std = std::sqrt(dot(x, x, classes) / divisor(classes));
  for (int64_t c = 0; c < classes; c += width) store(x + c, load(x + c) / (std + 1e-7f));
  return std;
}

template <class T>
void compute_row(const KdKlJob& job, int64_t i, const Scratch& row) {
  const int64_t classes = job.classes;
  read(job.student, i, classes, row.x);
  read(job.teacher, i, classes, row.q);
  float std = 0;
  if (job.standardize) {
    std = standardize(row.x, classes);
    standardize(row.q, classes);
  }
  fill_padding(row.x, classes, -infinity);
  fill_padding(row.q, classes, -infinity);

  const float top = largest(row.x, classes), teacher_top = largest(row.q, classes);
  const float sharpness = 1 / job.temperature, teacher_sharpness = job.teacher_sharpness;
  const float whole = job.weighted ? total(classes, [&](int64_t c) { return exp(load(row.q + c) - teacher_top); }) : 0;
  const Sums sums = accumulate(classes, [&](int64_t c) {
    const Vec a = (load(row.x + c) - top) * sharpness, b = (load(row.q + c) - teacher_top) * teacher_sharpness;
    const Vec p = exp(a), q = exp(b);
    store(row.p + c, p);
    store(row.q + c, q);
    // A class that the teacher rules out adds 0, whatever the student says.
    return Sums{p, q, q == Vec{} ? Vec{} : q * (b - a)};
  });
  const float student_total = sum(sums.student), teacher_total = sum(sums.teacher), temperature = job.temperature;
  const double log_ratio = std::log(static_cast<double>(student_total) / teacher_total);
  const double divergence = sum(sums.cross) / teacher_total + log_ratio;
  const float weight = job.weighted ? teacher_total * std::exp(-teacher_sharpness * std::log(whole)) : 1;
  job.rows[i] = static_cast<float>(divergence * temperature * temperature * weight);
  if (!job.d_student) return;

  T* gradient = static_cast<T*>(job.d_student) + i * classes;
  const float g = job.grad_rows[i] * temperature * weight;
  const auto difference = [&](int64_t c) { return load(row.p + c) / student_total - load(row.q + c) / teacher_total; };
  if (!job.standardize) {
    write_row(gradient, classes, [&](int64_t c) { return difference(c) * g; });
    return;
  }
  for (int64_t c = 0; c < classes; c += width) store(row.p + c, difference(c));
  const float forward = g / (std + 1e-7f), back = std == 0 ? 0 : g * dot(row.p, row.x, classes) / (divisor(classes) * std);
  write_row(gradient, classes, [&](int64_t c) { return load(row.p + c) * forward - load(row.x + c) * back; });
}

}  // namespace

void kd_kl(const KdKlJob& job, int64_t begin, int64_t end, float* scratch, int64_t scratch_length) {
  const Scratch row{scratch, scratch + scratch_length, scratch + 2 * scratch_length};
  with_type(job.student.element, [&](auto element) {
    for (int64_t i = begin; i < end; ++i) compute_row<decltype(element)>(job, i, row);
  });
}

}  // namespace icckd::ICCKD_ISA
