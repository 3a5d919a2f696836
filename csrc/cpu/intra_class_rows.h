// The rows of the intra-class loss: reading them, the loss of an anchor, writing gradients (kernels only).
//
// With unit rows z (anchors) and p (positives), weights g_i, κ = 1/temperature and any shift m_i, the loss of arXiv 2509.22053 is
//
//     E_ij = exp(κ (z_i·z_j − m_i))    N_i = Σ_{j≠i} E_ij    e_i = exp(κ (z_i·p_i − m_i))    ℓ_i = log(1 + N_i / e_i)
//     w_i = g_i / (e_i + N_i)        P_ij = w_i E_ij + w_j E_ji                          push_i = −w_i N_i
//     dL/dz_i = κ (Σ_j P_ij z_j + push_i p_i)    dL/dp_i = κ push_i z_i    dL/dκ = Σ_i w_i Σ_j E_ij (z_i·z_j − z_i·p_i)
//
// where j runs over the class's other rows and its memory rows. These have no loss: their w is 0, as is that of rows which are no
// anchors. A class's candidates are numbered in this order: anchors, other rows, memory rows.
#pragma once

#include <math.h>

#include "cpu/intra_class_kernel.h"
#include "cpu/vector.h"

namespace icckd::ICCKD_ISA {
namespace {

// ---- rows -------------------------------------------------------------------------------------------------------------

template <class T>
inline const T* row_of(const Rows& rows, int64_t index) {
  return static_cast<const T*>(rows.data) + index * rows.stride;
}

// Calls run(vector of x, position, elements) along a row, `elements` being width but for the last.
template <class T, class Run>
inline void along(const T* x, int64_t dim, const Run& run) {
  int64_t d = 0;
  for (; d + width <= dim; d += width) run(load(x + d), d, int64_t{width});
  if (d < dim) run(load_first(x + d, dim - d), d, dim - d);
}

template <class T>
inline void store_up_to(T* p, int64_t elements, Vec v, bool past_caches) {
  if (elements < width)
    store_first(p, elements, v);
  else if (past_caches)
    store_past_caches(p, v);
  else
    store(p, v);
}

template <class T>
inline void store_zeros(T* p, int64_t dim, bool past_caches) {
  for (int64_t d = 0; d < dim; d += width) store_up_to(p + d, dim - d < width ? dim - d : width, Vec{}, past_caches);
}

// 1/‖x‖ given ‖x‖² in float, which may have over- or underflown; 0 for a zero row.
template <class T>
inline float inverse_norm(const T* x, int64_t dim, float squared) {
  if (squared > 1e-30f && squared < 1e30f) return 1 / sqrtf(squared);
  double exact = 0;
  along(x, dim, [&](Vec v, int64_t, int64_t) {
    for (int i = 0; i < width; ++i) exact += static_cast<double>(v[i]) * v[i];
  });
  return exact < 1e-76 ? 0 : static_cast<float>(1 / sqrt(exact));
}

// Writes a row of T as floats, divided by its norm if wanted and padded with zeros to whole vectors; returns the factor.
template <class T>
inline float load_row(const T* x, int64_t dim, bool normalize, float* z) {
  Vec squares{};
  along(x, dim, [&](Vec v, int64_t d, int64_t) {
    squares += v * v;
    store(z + d, v);
  });
  if (!normalize) return 1;
  const float factor = inverse_norm(x, dim, sum(squares));
  for (int64_t d = 0; d < dim; d += width) store(z + d, load(z + d) * factor);
  return factor;
}

struct Positive {
  float factor;      // 1/‖p‖, or 1
  float similarity;  // z·p
};

template <class T>
inline Positive compare(const T* p, const float* z, int64_t dim, bool normalize) {
  Vec squares{}, products{};
  along(p, dim, [&](Vec v, int64_t d, int64_t) {
    squares += v * v;
    products += v * load(z + d);
  });
  const float factor = normalize ? inverse_norm(p, dim, sum(squares)) : 1;
  return {factor, sum(products) * factor};
}
// ---- one class --------------------------------------------------------------------------------------------------------

// A class's candidates: anchors, other rows, memory rows.
struct Candidates {
  const IntraClassProblem& problem;
  const int64_t* rows;
  const int64_t* memory;
  int64_t anchors, row_count, count;

  Candidates(const IntraClassProblem& problem, int64_t c) : problem(problem) {
    const ClassLayout& layout = *problem.layout;
    rows = layout.rows.data() + layout.row_begin[c];
    memory = layout.memory.data() + layout.memory_begin[c];
    anchors = layout.active[c];
    row_count = layout.row_count(c);
    count = row_count + layout.memory_count(c);
  }

  // Which matrix holds candidate i, and in which row.
  std::pair<const Rows*, int64_t> place(int64_t i) const {
    return i < row_count ? std::pair(&problem.anchor, rows[i]) : std::pair(&problem.memory, memory[i - row_count]);
  }

  // Loads candidates [begin, end) to z, `stride` apart, and their factors (load_row) if wanted.
  void load(int64_t begin, int64_t end, float* z, int64_t stride, float* factors = nullptr) const {
    for (int64_t i = begin; i < end; ++i) {
      const Rows* source = place(i).first;
      const int64_t index = place(i).second;
      with_type(source->element, [&](auto type) {
        const auto* x = row_of<decltype(type)>(*source, index);
        const float factor = load_row(x, problem.dim, problem.normalize, z + (i - begin) * stride);
        if (factors != nullptr) factors[i - begin] = factor;
      });
    }
  }

  // Compares anchor i, loaded at z, with its positive.
  Positive positive(int64_t i, const float* z) const {
    Positive result{};
    with_type(problem.positive.element, [&](auto type) {
      result = compare(row_of<decltype(type)>(problem.positive, rows[i]), z, problem.dim, problem.normalize);
    });
    return result;
  }
};

// An anchor's sums over its candidates.
struct Anchor {
  float shift, similarity;  // m_i, z_i·p_i
  float negatives, excess;  // N_i, Σ_j E_ij (z_i·z_j − z_i·p_i)
};

struct Finished {
  float weight, push;  // w_i, push_i
};

// The loss of an anchor, and what its gradients need.
inline Finished finish(const IntraClassProblem& problem, const IntraClassResults& results, int64_t row, const Anchor& anchor,
                       Sums& sums) {
  const float exponent = problem.scale * (anchor.similarity - anchor.shift);
  const float positive = expf(exponent), total = positive + anchor.negatives, g = problem.weight[row];
  // The first form keeps a small loss exact, the second holds where e_i underflows.
  const float loss = anchor.negatives <= positive ? log1pf(anchor.negatives / positive) : logf(total) - exponent;
  if (results.rows != nullptr) results.rows[row] = g * loss;
  if (results.lse != nullptr) results.lse[row] = problem.scale * anchor.shift + logf(total);
  const float weight = g / total;
  sums.loss += static_cast<double>(g) * loss;
  sums.d_scale += static_cast<double>(weight) * anchor.excess;
  return {weight, -weight * anchor.negatives};
}

// Writes the gradients of row `row`, given z, its factor, its positive if push ≠ 0, and pull = Σ_j P_ij z_j. Through
// x ↦ z = x/‖x‖ the gradient is (dz − z (z·dz)) / ‖x‖.
template <class T>
inline void write_gradients(const IntraClassProblem& problem, const IntraClassResults& results, int64_t row, const float* z,
                            float factor, const float* pull, float push, Positive positive) {
  const int64_t dim = problem.dim;
  const T* p = row_of<T>(problem.positive, row);
  const bool normalize = problem.normalize, past_caches = results.past_caches;
  if (results.d_anchor != nullptr) {
    T* out = static_cast<T*>(results.d_anchor) + row * dim;
    Vec products{};
    for (int64_t d = 0; d < dim; d += width) products += load(z + d) * load(pull + d);
    const Vec outer = splat(problem.scale * factor), along_p = splat(push * positive.factor);
    const Vec along_z = splat(normalize ? sum(products) + push * positive.similarity : 0);
    if (push == 0)
      for (int64_t d = 0; d < dim; d += width)
        store_up_to(out + d, dim - d < width ? dim - d : width, outer * (load(pull + d) - along_z * load(z + d)), past_caches);
    else
      along(p, dim, [&](Vec v, int64_t d, int64_t elements) {
        store_up_to(out + d, elements, outer * (load(pull + d) + along_p * v - along_z * load(z + d)), past_caches);
      });
  }
  if (results.d_positive != nullptr) {
    T* out = static_cast<T*>(results.d_positive) + row * dim;
    const Vec outer = splat(problem.scale * push * positive.factor);
    const Vec along_p = splat(normalize ? positive.similarity * positive.factor : 0);
    if (push == 0)
      store_zeros(out, dim, past_caches);
    else
      along(p, dim, [&](Vec v, int64_t d, int64_t elements) {
        store_up_to(out + d, elements, outer * (load(z + d) - along_p * v), past_caches);
      });
  }
}

// Hands out a kernel's scratch part by part; without memory, only counts.
class Scratch {
 public:
  explicit Scratch(float* memory) : memory_(memory) {}

  float* take(int64_t floats) {
    float* part = memory_ == nullptr ? nullptr : memory_ + taken_;
    taken_ += floats;
    return part;
  }

  int64_t taken() const { return taken_; }

 private:
  float* memory_;
  int64_t taken_ = 0;
};

inline void fill(float* x, int64_t count, float value) {
  for (int64_t i = 0; i < count; ++i) x[i] = value;
}

}  // namespace
}  // namespace icckd::ICCKD_ISA
