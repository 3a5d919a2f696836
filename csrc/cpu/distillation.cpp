// The operators of the distillation losses: docs/architecture.md.
#include <torch/csrc/stable/library.h>

#include <cmath>
#include <tuple>
#include <vector>

#include "cpu/kd_kl_kernel.h"
#include "cpu/relational_kernel.h"
#include "cpu/rows.h"

namespace icckd {
namespace {

// ---- kd_kl --------------------------------------------------------------------------------------------------------------

struct KdKl {
  Tensor rows, d_student;
};

// How the two sides are compared; what each is, KdKlJob says.
struct Settings {
  double temperature, teacher_sharpness;
  bool standardize = false, weighted = false;
};

Settings softened(double temperature, bool standardize) {
  return {.temperature = temperature, .teacher_sharpness = 1 / temperature, .standardize = standardize};
}

Settings transformed_teacher(double gamma, bool weighted) {
  return {.temperature = 1, .teacher_sharpness = gamma, .weighted = weighted};
}

// `grad_rows`: the upstream gradient of every row's loss, read only where the student's gradient is wanted.
KdKl compute_kd_kl(
    const Tensor& student, const Tensor& teacher, const Settings& settings, bool need_grad, const float* grad_rows) {
  STD_TORCH_CHECK(student.dim() == 2 && student.size(1) > 0, "student should be (N, C) with C ≥ 1");
  const int64_t count = student.size(0), classes = student.size(1);
  check_shape(student, {count, classes}, "student");
  check_shape(teacher, {count, classes}, "teacher");
  KdKl result{
      empty({count}, ScalarType::Float),
      need_grad ? empty({count, classes}, student.scalar_type()) : empty({0}, student.scalar_type())};
  const KdKlJob job{
      .student = logits_of(student, "student"),
      .teacher = logits_of(teacher, "teacher"),
      .classes = classes,
      .temperature = static_cast<float>(settings.temperature),
      .teacher_sharpness = static_cast<float>(settings.teacher_sharpness),
      .standardize = settings.standardize,
      .weighted = settings.weighted,
      .grad_rows = grad_rows,
      .rows = result.rows.mutable_data_ptr<float>(),
      .d_student = need_grad ? result.d_student.mutable_data_ptr() : nullptr,
  };
  parallel_rows(count, classes, 3, [&](int64_t begin, int64_t end, float* scratch) {
    ICCKD_DISPATCH(kd_kl(job, begin, end, scratch, scratch_length(classes)));
  });
  return result;
}

Tensor kd_kl_rows(const Tensor& student, const Tensor& teacher, double temperature, bool standardize) {
  return compute_kd_kl(student, teacher, softened(temperature, standardize), false, nullptr).rows;
}

Tensor kd_kl_rows_backward(
    const Tensor& grad_rows, const Tensor& student, const Tensor& teacher, double temperature, bool standardize) {
  const Tensor upstream = per_row(grad_rows, student.size(0), "grad_rows");
  const Settings settings = softened(temperature, standardize);
  return compute_kd_kl(student, teacher, settings, true, upstream.const_data_ptr<float>()).d_student;
}

std::tuple<Tensor, Tensor> kd_kl_sum(
    const Tensor& student, const Tensor& teacher, double temperature, bool standardize, double scale) {
  const std::vector<float> upstream(student.size(0), static_cast<float>(scale));
  const KdKl all = compute_kd_kl(student, teacher, softened(temperature, standardize), true, upstream.data());
  const float* row = all.rows.const_data_ptr<float>();
  double total = 0;
  for (int64_t i = 0; i < student.size(0); ++i) total += row[i];
  return {scalar(scale * total), all.d_student};
}

Tensor transformed_teacher_rows(const Tensor& student, const Tensor& teacher, double gamma, bool weighted) {
  return compute_kd_kl(student, teacher, transformed_teacher(gamma, weighted), false, nullptr).rows;
}

Tensor transformed_teacher_rows_backward(
    const Tensor& grad_rows, const Tensor& student, const Tensor& teacher, double gamma, bool weighted) {
  const Tensor upstream = per_row(grad_rows, student.size(0), "grad_rows");
  const Settings settings = transformed_teacher(gamma, weighted);
  return compute_kd_kl(student, teacher, settings, true, upstream.const_data_ptr<float>()).d_student;
}

// ---- relational ---------------------------------------------------------------------------------------------------------

int64_t aligned(int64_t count) {
  return (count + 7) / 8 * 8;
}

// The rows of a batch in float64, and their squared distances.
struct Batch {
  int64_t count, dim, x_stride, stride;
  std::vector<double> x, squared, inverse;

  Batch(const Tensor& features, const char* name)
      : count(features.size(0)),
        dim(features.size(1)),
        x_stride(aligned(dim)),
        stride(aligned(count)),
        x(count * x_stride),
        squared(count * stride),
        inverse(count * stride) {
    check_shape(features, {count, dim}, name);
    const Element element = element_of(features, name);
    const char* data = static_cast<const char*>(features.const_data_ptr());
    const int64_t row_bytes = features.stride(0) * static_cast<int64_t>(features.element_size());
    parallel_units(count, [&](int64_t i, int64_t) {
      ICCKD_DISPATCH(read_float64(element, data + i * row_bytes, features.stride(1), dim, x.data() + i * x_stride));
    });
    parallel_units(count, [&](int64_t i, int64_t) {
      ICCKD_DISPATCH(squared_distances(x.data(), x_stride, i, count, squared.data(), stride));
    });
    for (size_t entry = 0; entry < squared.size(); ++entry)
      inverse[entry] = squared[entry] == 0 ? 0 : 1 / std::sqrt(squared[entry]);
  }

  Relations relations() const { return {count, stride, squared.data(), inverse.data()}; }
};

double ordered_sum(const std::vector<double>& values) {
  double total = 0;
  for (const double value : values) total += value;
  return total;
}

// Σ_k scale (W + Wᵀ)_ik · 2 (x_i − x_k), for W the derivative of a loss by the squared distances.
Tensor gradient(const Batch& batch, const std::vector<double>& slope, double scale) {
  Tensor result = empty({batch.count, batch.dim}, ScalarType::Float);
  float* out = result.mutable_data_ptr<float>();
  parallel_units(batch.count, [&](int64_t i, int64_t) {
    std::vector<double> pull(batch.count), row(batch.x_stride);
    for (int64_t k = 0; k < batch.count; ++k)
      pull[k] = 2 * scale * (slope[i * batch.stride + k] + slope[k * batch.stride + i]);
    ICCKD_DISPATCH(pull_row(batch.x.data(), batch.x_stride, i, batch.count, pull.data(), row.data()));
    for (int64_t d = 0; d < batch.dim; ++d) out[i * batch.dim + d] = static_cast<float>(row[d]);
  });
  return result;
}

// Distances in units of the mean of those that are not zero.
struct RelativeDistances {
  double pairs = 0, per_unit = 0;  // how many are not zero, and 1/mean

  explicit RelativeDistances(const Batch& batch) {
    double total = 0;
    for (const double squared : batch.squared) {
      pairs += squared != 0;
      total += std::sqrt(squared);
    }
    per_unit = pairs > 0 ? pairs / total : 0;
  }
};

std::tuple<Tensor, Tensor> rkd_distance(const Tensor& student, const Tensor& teacher, bool need_grad) {
  const Batch s(student, "student"), t(teacher, "teacher");
  STD_TORCH_CHECK(s.count == t.count, "student has ", s.count, " rows, teacher ", t.count);
  const RelativeDistances own(s), target(t);
  const double entries = std::max<double>(1, static_cast<double>(s.count) * s.count);
  double loss = 0, by_mean = 0;
  std::vector<double> slope(s.squared.size());
  for (size_t entry = 0; entry < slope.size(); ++entry) {
    const double distance = std::sqrt(s.squared[entry]);
    const double delta = distance * own.per_unit - std::sqrt(t.squared[entry]) * target.per_unit;
    const double e = delta > 1 ? 1 : delta < -1 ? -1 : delta;
    loss += e * (delta - 0.5 * e);
    slope[entry] = e;
    by_mean += e * distance;
  }
  if (!need_grad) return {scalar(loss / entries), empty({0}, ScalarType::Float)};
  // By a distance d: e/mean from its own entry, and −Σ e d/(mean² pairs) from all entries through the mean.
  const double through_mean = own.pairs > 0 ? by_mean * own.per_unit * own.per_unit / own.pairs : 0;
  for (size_t entry = 0; entry < slope.size(); ++entry)
    slope[entry] = (slope[entry] * own.per_unit - through_mean) * 0.5 * s.inverse[entry];
  return {scalar(loss / entries), gradient(s, slope, 1 / entries)};
}

std::tuple<Tensor, Tensor> rkd_angle(const Tensor& student, const Tensor& teacher, bool need_grad) {
  const Batch s(student, "student"), t(teacher, "teacher");
  STD_TORCH_CHECK(s.count == t.count, "student has ", s.count, " rows, teacher ", t.count);
  const double entries = std::max(1.0, std::pow(static_cast<double>(s.count), 3));
  std::vector<double> rows(s.count), slope(need_grad ? s.squared.size() : 0);
  parallel_units(s.count, [&](int64_t i, int64_t) {
    double* own = need_grad ? &slope[i * s.stride] : nullptr;
    rows[i] = ICCKD_DISPATCH(angle_row(s.relations(), t.relations(), i, own));
  });
  const Tensor loss = scalar(ordered_sum(rows) / entries);
  return {loss, need_grad ? gradient(s, slope, 1 / entries) : empty({0}, ScalarType::Float)};
}

}  // namespace
}  // namespace icckd

STABLE_TORCH_LIBRARY_IMPL(icckd_native, CPU, m) {
  m.impl("kd_kl_rows", TORCH_BOX(&icckd::kd_kl_rows));
  m.impl("kd_kl_rows_backward", TORCH_BOX(&icckd::kd_kl_rows_backward));
  m.impl("kd_kl_sum", TORCH_BOX(&icckd::kd_kl_sum));
  m.impl("transformed_teacher_rows", TORCH_BOX(&icckd::transformed_teacher_rows));
  m.impl("transformed_teacher_rows_backward", TORCH_BOX(&icckd::transformed_teacher_rows_backward));
  m.impl("rkd_distance", TORCH_BOX(&icckd::rkd_distance));
  m.impl("rkd_angle", TORCH_BOX(&icckd::rkd_angle));
}
