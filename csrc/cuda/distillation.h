// The softened predictions' divergence of whole rows, student x and teacher y, at temperature T, and its gradient; g the row's weight:
//
//     a = (x − max x) / T,  P = Σ exp(a);      b = (y − max y) / T,  Q = Σ exp(b)
//     loss     = T² (1/Q Σ exp(b) (b − a) + log(P / Q))
//     gradient = g T (p − q),     p = exp(a) / P,  q = exp(b) / Q
//
// and where the rows are standardised first, x = (u − mean u) / (σ + 1e-7) with σ² = Σ (u − mean u)² / (C − 1):
//
//     gradient = g T ((p − q) / (σ + 1e-7) − x Σ (p − q) x / ((C − 1) σ)),     as Σ (p − q) = 0
//
// In one pass over memory: both rows come in while their maxima and sums are taken, and stay in shared memory.
//
//     memory   2 C logits → registers ─┬→ Range ───→ merge: maxima, means
//                                      └→ shared memory ─→ Squares → merge: σ       (standardised rows only)
//                                                       ─→ Sums ───→ merge: loss
//                                                       ─→ C numbers of the gradient → memory
//
// Bytes: 3 C sizes of an element, 2 C where only the loss is wanted; beyond the slots (row.h) both logits are read two or three times
// more. Work: four exponentials and some 25 operations per class (40 with standardisation); where only the loss is wanted, two
// exponentials. Any C; meant for 10 … 50,000. Measured times are owed.
#pragma once

#include "cuda/row.h"

namespace icckd::cuda {

struct KdKlParams {
  int64_t count;            // rows
  Matrix student, teacher;  // (count, classes) each
  RowPlan plan;
  bool aligned;         // whether the chunks of every row are, in both
  float temperature;
  bool standardize;
  const float* weight;  // (count,); null: all `scale`
  float scale;
  float* rows;          // (count,): weight · loss
  void* d_student;      // (count, classes), contiguous, of the student's type: the gradient of Σ weight · loss; null: not wanted
};

constexpr int kd_kl_threads = 256;

// Classes of a chunk: 16 bytes of the wider type.
constexpr int kd_kl_width(int student_size, int teacher_size) { return 16 / (student_size > teacher_size ? student_size : teacher_size); }

// Fills in `aligned` and `plan` of otherwise complete parameters, for elements of these sizes in bytes.
inline void plan_launch(KdKlParams& p, int64_t classes, int student_size, int teacher_size, int shared_limit) {
  const int width = kd_kl_width(student_size, teacher_size);
  p.aligned = p.student.unit >= width * student_size && p.teacher.unit >= width * teacher_size;
  p.plan = plan_rows(static_cast<int>(classes), width, width * (student_size + teacher_size), true, kd_kl_threads, shared_limit);
}

// The same of the student and of the teacher.
template <class X>
struct Both {
  X student = {}, teacher = {};

  ICCKD_DEVICE void merge(int lanes) {
    student.merge(lanes);
    teacher.merge(lanes);
  }
};

// Of some classes.
struct Range {
  float top = -infinity;
  float sum = 0;  // of the logits less the row's first, where they are standardised

  ICCKD_DEVICE void merge(int lanes) {
    top = largest_over(lanes, top);
    sum = sum_over(lanes, sum);
  }
};

// Σ (u − mean u)².
struct Squares {
  float sum = 0;

  ICCKD_DEVICE void merge(int lanes) { sum = sum_over(lanes, sum); }
};

struct Sums {
  float p = 0, q = 0;        // Σ exp(a), Σ exp(b)
  float cross = 0;           // Σ exp(b) (b − a)
  float along = 0, teacher_along = 0;  // Σ exp(a) x, Σ exp(b) x, where rows are standardised

  ICCKD_DEVICE void operator+=(const Sums& part) {
    p += part.p;
    q += part.q;
    cross += part.cross;
    along += part.along;
    teacher_along += part.teacher_along;
  }

  ICCKD_DEVICE void merge(int lanes) {
    p = sum_over(lanes, p);
    q = sum_over(lanes, q);
    cross = sum_over(lanes, cross);
    along = sum_over(lanes, along);
    teacher_along = sum_over(lanes, teacher_along);
  }
};

// What becomes of a row's logits u: exp2((u − top) · sharpness) are its softened predictions, not yet normalised.
struct Softening {
  float top, mean, std;  // mean: less top
  float inverse;         // 1 / (σ + 1e-7), 1 without standardisation
  float sharpness;       // log₂e / T · inverse

  ICCKD_DEVICE float exponent(float u) const { return (u - top) * sharpness; }
  ICCKD_DEVICE float centred(float u) const { return (u - top) - mean; }
  ICCKD_DEVICE float standardized(float u) const { return centred(u) * inverse; }
};

template <class S, class T, bool whole_block>
class KdKl {
 public:
  static constexpr int V = kd_kl_width(sizeof(S), sizeof(T));

  ICCKD_DEVICE explicit KdKl(const KdKlParams& params)
      : p(params),
        team(p.plan),
        exists(team.row < p.count),
        chunks(exists ? p.plan.chunks : 0),
        student(p.student, row_index(), p.plan, p.aligned, team.slots),
        teacher(p.teacher, row_index(), p.plan, p.aligned, team.slots + p.plan.slots * V * sizeof(S)) {}

  ICCKD_DEVICE void operator()() {
    const Both<Range> range = read();
    Softening of_student = softening(range.student), of_teacher = softening(range.teacher);
    if (p.standardize) standardize(range, of_student, of_teacher);
    const Sums sums = soften(of_student, of_teacher);
    const float weight = p.weight ? p.weight[row_index()] : p.scale;
    if (exists && team.rank == 0) {
      const float divergence = log_2 * (sums.cross / sums.q) + std::log(sums.p / sums.q);
      p.rows[team.row] = weight * (p.temperature * p.temperature * divergence);
    }
    if (p.d_student) write_gradient(of_student, of_teacher, sums, weight * p.temperature);
  }

 private:
  struct Parts {
    Chunk<S, V> student;
    Chunk<T, V> teacher;
  };

  ICCKD_DEVICE int64_t row_index() const { return exists ? team.row : 0; }
  ICCKD_DEVICE bool is_class(int j, int k) const { return j * V + k < p.plan.classes; }
  ICCKD_DEVICE float divisor() const { return p.plan.classes > 1 ? p.plan.classes - 1 : 1; }

  ICCKD_DEVICE Softening softening(const Range& range) const { return {range.top, 0, 0, 1, log2_e / p.temperature}; }

  // Calls use(j, x, y) with both rows' logits of this member's chunks.
  template <class Use>
  ICCKD_DEVICE void again(const Use& use) const {
    in_reverse(team.rank, chunks, team.size, [&](int j) {
      float x[V], y[V];
      student.again(j).read(x);
      teacher.again(j).read(y);
      use(j, x, y);
    });
  }

  ICCKD_DEVICE Both<Range> read() {
    if (exists) {
      student.stage(team.rank, team.size);
      teacher.stage(team.rank, team.size);
    }
    if (!p.aligned) team.barrier();
    const bool origins = p.standardize && exists;
    const float origin = origins ? student[0] : 0, teacher_origin = origins ? teacher[0] : 0;
    Both<Range> range;
    const auto take = [&](int j) { return Parts{student.first(j), teacher.first(j)}; };
    in_flight<2>(team.rank, chunks, team.size, take, [&](int j, const Parts& parts) {
      student.keep(j, parts.student);
      add(range.student, j, parts.student, origin);
      teacher.keep(j, parts.teacher);
      add(range.teacher, j, parts.teacher, teacher_origin);
    });
    return team.merge(range);
  }

  template <class E>
  ICCKD_DEVICE void add(Range& range, int j, const Chunk<E, V>& part, float origin) const {
    float u[V];
    part.read(u);
    range.top = max_or_nan(range.top, largest_of(u));
    if (!p.standardize) return;
    for (int k = 0; k < V; ++k) u[k] = is_class(j, k) ? u[k] - origin : 0;
    range.sum += sum_of(u);
  }

  ICCKD_DEVICE void standardize(const Both<Range>& range, Softening& of_student, Softening& of_teacher) {
    if (exists) {
      of_student.mean = range.student.sum / p.plan.classes + (student[0] - of_student.top);
      of_teacher.mean = range.teacher.sum / p.plan.classes + (teacher[0] - of_teacher.top);
    }
    Both<Squares> squares;
    again([&](int j, const float (&x)[V], const float (&y)[V]) {
      squares.student.sum += squared_deviations(of_student, j, x);
      squares.teacher.sum += squared_deviations(of_teacher, j, y);
    });
    squares = team.merge(squares);
    spread(of_student, squares.student);
    spread(of_teacher, squares.teacher);
  }

  ICCKD_DEVICE float squared_deviations(const Softening& of, int j, const float (&u)[V]) const {
    float sum = 0;
    for (int k = 0; k < V; ++k) sum += is_class(j, k) ? of.centred(u[k]) * of.centred(u[k]) : 0;
    return sum;
  }

  ICCKD_DEVICE void spread(Softening& of, const Squares& squares) const {
    of.std = std::sqrt(squares.sum / divisor());
    of.inverse = 1 / (of.std + 1e-7f);
    of.sharpness *= of.inverse;
  }

  ICCKD_DEVICE Sums soften(const Softening& of_student, const Softening& of_teacher) {
    Sums sums;
    again([&](int j, const float (&x)[V], const float (&y)[V]) {
      Sums part;
      for (int k = 0; k < V; ++k) {
        const float a = of_student.exponent(x[k]), b = of_teacher.exponent(y[k]);
        const float exp_a = exp2_fast(a), exp_b = exp2_fast(b);
        part.p += exp_a;
        part.q += exp_b;
        // A class that the teacher rules out adds 0, whatever the student says.
        part.cross += exp_b == 0 ? 0 : exp_b * (b - a);
        if (!p.standardize) continue;
        const float z = is_class(j, k) ? of_student.standardized(x[k]) : 0;
        part.along += exp_a * z;
        part.teacher_along += exp_b * z;
      }
      sums += part;
    });
    return team.merge(sums);
  }

  ICCKD_DEVICE void write_gradient(const Softening& of_student, const Softening& of_teacher, const Sums& sums, float g) {
    S* const gradient = static_cast<S*>(p.d_student) + row_index() * p.plan.classes;
    const float per_p = 1 / sums.p, per_q = 1 / sums.q, forward = g * of_student.inverse;
    const float along = sums.along * per_p - sums.teacher_along * per_q;
    const float back = of_student.std == 0 ? 0 : g * along / (divisor() * of_student.std);
    again([&](int j, float (&x)[V], const float (&y)[V]) {
      for (int k = 0; k < V; ++k) {
        const float difference =
            exp2_fast(of_student.exponent(x[k])) * per_p - exp2_fast(of_teacher.exponent(y[k])) * per_q;
        const float straight = difference * forward;
        x[k] = p.standardize ? straight - of_student.standardized(x[k]) * back : straight;
      }
      student.write(gradient, j, x);
    });
    if (!p.aligned) team.barrier();
    if (exists) student.unstage(gradient, team.rank, team.size);
  }

  const KdKlParams& p;
  Team<whole_block> team;
  const bool exists;
  const int chunks;
  const Row<S, V> student;
  const Row<T, V> teacher;
};

}  // namespace icckd::cuda
