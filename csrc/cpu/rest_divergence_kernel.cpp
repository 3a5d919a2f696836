// The divergence of whole rows without their label's class y, of student's logits x from teacher's z, all sums over c ≠ y:
//
//     a = (x − max x) / T,  p = exp(a) / A,  A = Σ exp(a);      b = (z − max z) / T,  q = exp(b) / B,  B = Σ exp(b)
//     divergence = 1/B Σ exp(b) (b − a) + log A − log B
//     entropy    = log B − 1/B Σ exp(b) b
//     odds       = (x_y − max x) / T' − log Σ exp((x − max x) / T'),  and the same of the teacher; A and B serve where T' = T
//     gradient   = g/T (p − q) + h/T' ([c = y] − p'),                 p' the student's at T'
//
// Memory: each logit is read once and the student's gradient written once; between, rows of scratch lie in cache. Work: two
// exponentials per class, four where T' ≠ T (three with the gradient).
#include "cpu/rest_divergence_kernel.h"

#include <cmath>
#include <limits>

#include "cpu/row.h"

namespace icckd::ICCKD_ISA {
namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

struct Scratch {
  float *x, *p, *q;
};

// Σ exp(a), Σ exp(b), Σ exp(b) (b − a) and Σ exp(b) b.
struct Sums {
  Vec student, teacher, cross, own;

  void operator+=(const Sums& other) {
    student += other.student;
    teacher += other.teacher;
    cross += other.cross;
    own += other.own;
  }
};

// The row without the label's class, whose logit is returned.
float read_apart(const Logits& logits, int64_t i, int64_t classes, int64_t label, float* row) {
  with_type(logits.element, [&](auto element) {
    using T = decltype(element);
    read_row(static_cast<const T*>(logits.data) + i * logits.row_stride, logits.class_stride, classes, -infinity, row);
  });
  const float own = row[label];
  row[label] = -infinity;
  return own;
}

// The maximum, and 0 where there is no other class: −∞ less it is then −∞, and no NaN.
float finite_top(const float* row, int64_t classes) {
  const float top = largest(row, classes);
  return top == -infinity ? 0 : top;
}

float sum_of_exponentials(const float* row, int64_t classes, float top, float sharpness) {
  return total(classes, [&](int64_t c) { return exp((load(row + c) - top) * sharpness); });
}

template <class T>
void compute_row(const RestDivergenceJob& job, int64_t i, const Scratch& row) {
  const int64_t classes = job.classes, label = job.labels[i];
  const float own = read_apart(job.student, i, classes, label, row.x);
  const float teacher_own = read_apart(job.teacher, i, classes, label, row.q);
  const float top = finite_top(row.x, classes), teacher_top = finite_top(row.q, classes);
  const float sharpness = 1 / job.temperature, odds_sharpness = 1 / job.odds_temperature;
  const bool same = job.temperature == job.odds_temperature;
  float odds_total = 0, teacher_odds_total = 0;
  if (!same) {
    odds_total = sum_of_exponentials(row.x, classes, top, odds_sharpness);
    if (!job.d_student) teacher_odds_total = sum_of_exponentials(row.q, classes, teacher_top, odds_sharpness);
  }
  const Sums sums = accumulate(classes, [&](int64_t c) {
    const Vec a = (load(row.x + c) - top) * sharpness, b = (load(row.q + c) - teacher_top) * sharpness;
    const Vec p = exp(a), q = exp(b);
    store(row.p + c, p);
    store(row.q + c, q);
    // A class that the teacher rules out adds 0, whatever the student says.
    return Sums{p, q, q == Vec{} ? Vec{} : q * (b - a), q == Vec{} ? Vec{} : q * b};
  });
  const float student_total = sum(sums.student), teacher_total = sum(sums.teacher);
  if (same) {
    odds_total = student_total;
    teacher_odds_total = teacher_total;
  }
  if (!job.d_student) {
    const bool nothing = teacher_total == 0;
    const double log_ratio = std::log(static_cast<double>(student_total) / teacher_total);
    const double divergence = student_total == 0 ? infinity : sum(sums.cross) / teacher_total + log_ratio;
    job.divergence[i] = nothing ? 0 : static_cast<float>(divergence);
    job.entropy[i] = nothing ? 0 : std::log(teacher_total) - sum(sums.own) / teacher_total;
    job.odds[i] = (own - top) * odds_sharpness - std::log(odds_total);
    job.teacher_odds[i] = (teacher_own - teacher_top) * odds_sharpness - std::log(teacher_odds_total);
    return;
  }

  T* gradient = static_cast<T*>(job.d_student) + i * classes;
  // Without a share there is nothing to differ from, or to differ.
  const auto part = [](float factor, float total) { return total == 0 ? 0 : factor / total; };
  const float g = teacher_total == 0 ? 0 : job.grad_divergence[i] * sharpness, h = job.grad_odds[i] * odds_sharpness;
  const float per_student = part(same ? g - h : g, student_total), per_teacher = part(g, teacher_total);
  const float per_odds = part(h, odds_total);
  for (int64_t c = 0; c < classes; c += width) {
    Vec d = load(row.p + c) * per_student - load(row.q + c) * per_teacher;
    if (!same) d -= exp((load(row.x + c) - top) * odds_sharpness) * per_odds;
    store(row.p + c, d);
  }
  row.p[label] = h;
  write_row(gradient, classes, [&](int64_t c) { return load(row.p + c); });
}

}  // namespace

void rest_divergence(const RestDivergenceJob& job, int64_t begin, int64_t end, float* scratch, int64_t scratch_length) {
  const Scratch row{scratch, scratch + scratch_length, scratch + 2 * scratch_length};
  with_type(job.student.element, [&](auto element) {
    for (int64_t i = begin; i < end; ++i) compute_row<decltype(element)>(job, i, row);
  });
}

}  // namespace icckd::ICCKD_ISA
