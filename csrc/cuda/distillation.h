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
// In one pass over memory: both rows come in while their maxima and sums are taken, and stay on chip: in registers where each member of
// a team has at most four chunks (row.h), up to C = 4096 in 16-bit formats, else in shared memory.
//
//     memory   2 C logits → registers ─┬→ Range ───→ merge: maxima, means
//                                      └→ on chip ─→ Squares → merge: σ              (standardised rows only)
//                                                 ─→ Sums ───→ merge: loss
//                                                 ─→ Slope ──→ merge: Σ (p − q) x    (standardised rows only)
//                                                 ─→ C numbers of the gradient → memory
//
// Bytes: 3 C sizes of an element, 2 C where only the loss is wanted; beyond the slots (row.h) both logits are read two to four times
// more. Instructions in sm_90a's machine code: 34 a class at C = 1000 in bfloat16 with the gradient, 60 % of what can be issued while
// the bytes travel; exponentials: four, two where only the loss is wanted. Any C; meant for 10 … 50,000.
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
  p.plan =
      plan_rows(static_cast<int>(classes), width, width * (student_size + teacher_size), p.aligned, true, kd_kl_threads, shared_limit);
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
  float p = 0, q = 0;  // Σ exp(a), Σ exp(b)
  float cross = 0;     // Σ exp(b) (b − a)

  ICCKD_DEVICE void merge(int lanes) {
    p = sum_over(lanes, p);
    q = sum_over(lanes, q);
    cross = sum_over(lanes, cross);
  }
};

// Of standardised rows: Σ (p − q), which is 0 but for roundings that a small deviation magnifies, and Σ (p − q) (u − mean u).
struct Slope {
  float sum = 0, along = 0;

  ICCKD_DEVICE void merge(int lanes) {
    sum = sum_over(lanes, sum);
    along = sum_over(lanes, along);
  }
};

// What becomes of a row's logits u: exp2((u − top) · sharpness) are its softened predictions, not yet normalised.
struct Softening {
  float top, mean, std;  // mean: less top
  float inverse;         // 1 / (σ + 1e-7), 1 without standardisation
  float sharpness;       // log₂e / T · inverse

  ICCKD_DEVICE float exponent(float u) const { return (u - top) * sharpness; }
  ICCKD_DEVICE float centred(float u) const { return (u - top) - mean; }
};

template <class S, class T, class Case, bool standardize>
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
    if constexpr (standardize) deviate(range, of_student, of_teacher);
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

  // Calls use(j, x, y) with both rows' logits of this member's chunks, of held ones also behind the rows' ends.
  template <class Use>
  ICCKD_DEVICE void again(const Use& use) const {
    const auto read = [&](int j, const Parts& parts) {
      float x[V], y[V];
      parts.student.read(x);
      parts.teacher.read(y);
      use(j, x, y);
    };
    if constexpr (Case::held) {
      for (int k = 0; k < held_chunks; ++k) read(team.rank + k * team.size, {held_student[k], held_teacher[k]});
    } else {
      in_reverse(team.rank, chunks, team.size, [&](int j) { read(j, {student.again(j), teacher.again(j)}); });
    }
  }

  ICCKD_DEVICE Both<Range> read() {
    if (exists) {
      student.stage(team.rank, team.size);
      teacher.stage(team.rank, team.size);
    }
    if (!p.aligned) team.barrier();
    const bool origins = standardize && exists;
    const float origin = origins ? student[0] : 0, teacher_origin = origins ? teacher[0] : 0;
    Both<Range> range;
    if constexpr (Case::held) {
      student.hold(team.rank, team.size, held_student);
      teacher.hold(team.rank, team.size, held_teacher);
      again([&](int j, const float (&x)[V], const float (&y)[V]) {
        add(range.student, j, x, origin);
        add(range.teacher, j, y, teacher_origin);
      });
    } else {
      const auto take = [&](int j) { return Parts{student.first(j), teacher.first(j)}; };
      in_flight<2>(team.rank, chunks, team.size, take, [&](int j, const Parts& parts) {
        student.keep(j, parts.student);
        teacher.keep(j, parts.teacher);
        float x[V], y[V];
        parts.student.read(x);
        parts.teacher.read(y);
        add(range.student, j, x, origin);
        add(range.teacher, j, y, teacher_origin);
      });
    }
    return team.merge(range);
  }

  ICCKD_DEVICE void add(Range& range, int j, const float (&u)[V], float origin) const {
    range.top = max_or_nan(range.top, largest_of(u));
    if constexpr (standardize) {
      float above[V];
      for (int k = 0; k < V; ++k) above[k] = is_class(j, k) ? u[k] - origin : 0;
      range.sum += sum_of(above);
    }
  }

  ICCKD_DEVICE void deviate(const Both<Range>& range, Softening& of_student, Softening& of_teacher) {
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
    again([&](int, const float (&x)[V], const float (&y)[V]) {
      Sums part;
      for (int k = 0; k < V; ++k) {
        const float a = of_student.exponent(x[k]), b = of_teacher.exponent(y[k]);
        const float exp_a = exp2_fast(a), exp_b = exp2_fast(b);
        // A class that the teacher rules out adds 0, whatever the student says.
        const float rise = exp_b == 0 ? 0 : b - a;
        part.p += exp_a;
        part.q += exp_b;
        part.cross += exp_b * rise;
      }
      sums.p += part.p;
      sums.q += part.q;
      sums.cross += part.cross;
    });
    return team.merge(sums);
  }

  ICCKD_DEVICE void write_gradient(const Softening& of_student, const Softening& of_teacher, const Sums& sums, float g) {
    S* const gradient = static_cast<S*>(p.d_student) + row_index() * p.plan.classes;
    const float per_p = reciprocal_fast(sums.p), per_q = reciprocal_fast(sums.q), forward = g * of_student.inverse;
    const auto difference = [&](float x, float y) {
      return exp2_fast(of_student.exponent(x)) * per_p - exp2_fast(of_teacher.exponent(y)) * per_q;
    };
    float mean = 0, back = 0;
    if constexpr (standardize) {
      Slope slope;
      again([&](int j, const float (&x)[V], const float (&y)[V]) {
        for (int k = 0; k < V; ++k) {
          const float d = difference(x[k], y[k]);
          slope.sum += d;
          slope.along += is_class(j, k) ? d * of_student.centred(x[k]) : 0;
        }
      });
      slope = team.merge(slope);
      mean = slope.sum / p.plan.classes;
      // x is the centred logit times the inverse, in the sum as well as below.
      back = of_student.std == 0 ? 0 : forward * of_student.inverse * slope.along / (divisor() * of_student.std);
    }
    again([&](int j, float (&x)[V], const float (&y)[V]) {
      for (int k = 0; k < V; ++k) {
        const float d = difference(x[k], y[k]);
        x[k] = standardize ? (d - mean) * forward - of_student.centred(x[k]) * back : d * forward;
      }
      if (j < chunks) student.write(gradient, j, x);
    });
    if (!p.aligned) team.barrier();
    if (exists) student.unstage(gradient, team.rank, team.size);
  }

  const KdKlParams& p;
  Team<Case::kind> team;
  const bool exists;
  const int chunks;
  const Row<S, V> student;
  const Row<T, V> teacher;
  Chunk<S, V> held_student[held_chunks];
  Chunk<T, V> held_teacher[held_chunks];
};

}  // namespace icckd::cuda
