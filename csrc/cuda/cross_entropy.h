// Cross-entropy, its gradient and the classification margin of whole rows of logits x with label y, ε the label smoothing, g the
// row's weight:
//
//     top = max x,  S = Σ exp(x_c − top),  lse = log S
//     loss     = (1 − ε) (lse − (x_y − top)) + ε (lse − mean(x − top))
//     margin   = (exp(x_y − top) − max_{c≠y} exp(x_c − top)) / S,  or x_y − max_{c≠y} x_c
//     gradient = g (exp(x_c − top) / S − (1 − ε) [c = y] − ε / C)
//
// In one pass over memory: while a row comes in, each member of its team keeps the largest of the other classes that it has seen and
// their sum below it (Partial); merged, these give the row's numbers, and a second pass over what is on chip gives the gradient.
//
//     memory   C logits → registers ─┬→ Partial → merge → loss, margin, lse
//                                    └→ shared memory ────→ again ──────────→ C numbers of the gradient → memory
//
// Bytes: 2 C sizes of an element, C where only the loss is wanted; beyond the slots (row.h) a class is read once more. Work: two
// exponentials and some 20 operations per class, one exponential where only the loss is wanted. Any C; meant for 10 … 262,144.
// Measured times are owed.
#pragma once

#include "cuda/row.h"

namespace icckd::cuda {

struct CrossEntropyParams {
  int64_t count;   // rows
  Matrix logits;   // (count, classes)
  RowPlan plan;
  bool aligned;    // whether the chunks of every row are
  const int64_t* labels;  // (count,), in [0, classes) or ignore_index; another makes its row NaN
  int64_t ignore_index;
  float label_smoothing;
  bool probability;      // the margin's space: probabilities, or logits
  const float* weight;   // (count,); null: all 1
  float *rows, *margin;  // (count,) each; rows: weight · loss
  float* lse;            // (count,): log-sum-exp less the row's maximum
  void* d_logits;        // (count, classes), contiguous, of the logits' type: the gradient of Σ weight · loss; null: not wanted
};

constexpr int cross_entropy_threads = 512;

// Fills in `aligned` and `plan` of otherwise complete parameters, for elements of `size` bytes.
inline void plan_launch(CrossEntropyParams& p, int64_t classes, int size, int shared_limit) {
  p.aligned = p.logits.unit == 16;
  // Where no gradient is wanted, an aligned row is looked at once.
  p.plan = plan_rows(static_cast<int>(classes), 16 / size, 16, p.d_logits || !p.aligned, cross_entropy_threads, shared_limit);
}

ICCKD_DEVICE float exp_fast(float x) { return exp2_fast(x * log2_e); }

// Σ exp(x − to) from Σ exp(x − from): exact where nothing changes, −∞ and all.
ICCKD_DEVICE float moved(float sum, float from, float to) { return from == to ? sum : sum * exp_fast(from - to); }

// Of some classes, without the label's.
struct Partial {
  float top = -infinity;  // their maximum
  float sum = 0;          // Σ exp(x − top)
  float offset = 0;       // Σ (x − reference), for label smoothing

  template <int V>
  ICCKD_DEVICE void add(const float (&x)[V]) {
    const float now = max_or_nan(top, largest_of(x));
    const float below = now == -infinity ? 0 : now;
    float e[V];
    for (int i = 0; i < V; ++i) e[i] = exp_fast(x[i] - below);
    sum = moved(sum, top, now) + sum_of(e);
    top = now;
  }

  ICCKD_DEVICE void merge(int lanes) {
    const float now = largest_over(lanes, top);
    sum = sum_over(lanes, moved(sum, top, now));
    offset = sum_over(lanes, offset);
    top = now;
  }
};

template <class E, bool whole_block>
ICCKD_DEVICE void cross_entropy_margin(const CrossEntropyParams& p) {
  constexpr int V = per_vector<E>;
  Team<whole_block> team(p.plan);
  const bool exists = team.row < p.count;
  const int64_t i = exists ? team.row : 0, label = p.labels[i];
  const bool counts = exists && label != p.ignore_index;
  const Row<E, V> row(p.logits, i, p.plan, p.aligned, team.slots);
  const int classes = p.plan.classes, chunks = p.plan.chunks;
  const bool valid = label >= 0 && label < classes;
  const int own_class = valid ? static_cast<int>(label) : -V;
  const float own = !valid ? NAN : counts ? row[own_class] : 0, smoothing = p.label_smoothing;
  const float reference = std::isfinite(own) ? own : 0;

  if (counts) row.stage(team.rank, team.size);
  if (!p.aligned) team.barrier();
  Partial partial;
  const auto take = [&](int j) { return row.first(j); };
  in_flight<4>(team.rank, counts ? chunks : 0, team.size, take, [&](int j, const Chunk<E, V>& part) {
    row.keep(j, part);
    float x[V];
    part.read(x);
    if (smoothing > 0)
      for (int k = 0; k < V; ++k)
        if (j * V + k < classes && j * V + k != own_class) partial.offset += x[k] - reference;
    if (j == own_class / V)
      for (int k = 0; k < V; ++k)
        if (j * V + k == own_class) x[k] = -infinity;
    partial.add(x);
  });
  partial = team.merge(partial);

  const float other = partial.top, top = max_or_nan(own, other), own_share = exp_fast(own - top);
  const float s = moved(partial.sum, other, top) + own_share, lse = std::log(s);
  if (exists && team.rank == 0) {
    const float hard = lse - (own - top), mean = (partial.offset + (own - reference)) / classes + (reference - top);
    const float loss = smoothing > 0 ? (1 - smoothing) * hard + smoothing * (lse - mean) : hard;
    const float margin = p.probability ? (own_share - exp_fast(other - top)) / s : own - other;
    p.rows[i] = counts ? (p.weight ? p.weight[i] * loss : loss) : 0;
    p.lse[i] = counts ? lse : 0;
    p.margin[i] = counts ? margin : -infinity;
  }
  if (!p.d_logits) return;

  E* const gradient = static_cast<E*>(p.d_logits) + i * classes;
  const float g = p.weight ? p.weight[i] : 1, scale = g / s, uniform = g * smoothing / classes;
  in_reverse(team.rank, exists ? chunks : 0, team.size, [&](int j) {
    float x[V] = {};
    if (counts) {
      row.again(j).read(x);
      for (int k = 0; k < V; ++k) {
        x[k] = exp_fast(x[k] - top);
        // Before the rounding to E.
        if (j * V + k == own_class) x[k] -= (1 - smoothing) * s;
        x[k] = x[k] * scale - uniform;
      }
    }
    row.write(gradient, j, x);
  });
  if (!p.aligned) team.barrier();
  if (exists) row.unstage(gradient, team.rank, team.size);
}

}  // namespace icckd::cuda
