// Cross-entropy, its gradient and the classification margin of whole rows of logits x with label y, ε the label smoothing, g the
// row's weight:
//
//     top = max x,  S = Σ exp(x_c − top),  lse = log S
//     loss     = (1 − ε) (lse − (x_y − top)) + ε (lse − mean(x − top))
//     margin   = (exp(x_y − top) − max_{c≠y} exp(x_c − top)) / S,  or x_y − max_{c≠y} x_c
//     gradient = g (exp(x_c − top) / S − (1 − ε) [c = y] − ε / C)
//
// In one pass over memory. Where each member of a team has at most four chunks of a row (row.h), up to C = 8192 in 16-bit formats, they
// stay in its registers, first as logits, then as shares exp(x − top):
//
//     memory   C logits → registers → merge: top → shares → merge: S → merge: largest other share → loss, margin, lse
//                                                     └───────────────────────────────────────────→ C numbers of the gradient → memory
//
// Of longer rows each member keeps the largest of the other classes that it has seen and their sum below it (Partial) while the row
// comes in; merged, these give the row's numbers, and a second pass over what is on chip gives the gradient:
//
//     memory   C logits → registers ─┬→ Partial → merge → loss, margin, lse
//                                    └→ shared memory ────→ again ──────────→ C numbers of the gradient → memory
//
// Bytes: 2 C sizes of an element, C where only the loss is wanted; beyond the slots a class is read once more. Instructions in sm_90a's
// machine code: 22 a class at C = 1000 in bfloat16 with the gradient, half of what can be issued while the bytes travel; of longer rows
// two exponentials a class instead of one. Any C; meant for 10 … 262,144.
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
  p.plan = plan_rows(static_cast<int>(classes), 16 / size, 16, p.aligned, p.d_logits != nullptr, cross_entropy_threads, shared_limit);
}

ICCKD_DEVICE float exp_fast(float x) { return exp2_fast(x * log2_e); }

// A row's label.
struct OwnClass {
  bool counts;  // whether the row exists and is not ignored
  int index;    // its class; in no chunk if it names none
  float logit;  // its class's: NaN if it names none, 0 if the row does not count
};

template <class E, int V>
ICCKD_DEVICE OwnClass own_class(const CrossEntropyParams& p, const Row<E, V>& row, int64_t i, bool exists) {
  const int64_t label = p.labels[i];
  const bool counts = exists && label != p.ignore_index, valid = label >= 0 && label < p.plan.classes;
  const int index = valid ? static_cast<int>(label) : -V;
  return {counts, index, !valid ? NAN : counts ? row[index] : 0};
}

// What one member writes about a row of weight g. `below`: x_y − top; `mean`: of x − top.
ICCKD_DEVICE void write_row(
    const CrossEntropyParams& p, int64_t i, bool counts, float g, float below, float lse, float mean, float margin) {
  const float hard = lse - below, smoothing = p.label_smoothing;
  p.rows[i] = counts ? g * (smoothing > 0 ? (1 - smoothing) * hard + smoothing * (lse - mean) : hard) : 0;
  p.lse[i] = counts ? lse : 0;
  p.margin[i] = counts ? margin : -infinity;
}

// ---- rows in registers ----------------------------------------------------------------------------------------------------

// Of some classes.
struct Shares {
  float sum = 0;     // Σ exp(x − top)
  float offset = 0;  // Σ (x − top), for label smoothing

  ICCKD_DEVICE void merge(int lanes) {
    sum = sum_over(lanes, sum);
    offset = sum_over(lanes, offset);
  }
};

// Nothing waits for a label before the row is on its way.
template <class E, Kind kind>
ICCKD_DEVICE void cross_entropy_of_held_rows(const CrossEntropyParams& p) {
  constexpr int V = per_vector<E>;
  Team<kind> team(p.plan);
  const bool exists = team.row < p.count;
  const int64_t i = exists ? team.row : 0;
  const Row<E, V> row(p.logits, i, p.plan, p.aligned, team.slots);
  if (exists) row.stage(team.rank, team.size);
  if (!p.aligned) team.barrier();
  Chunk<E, V> part[held_chunks];
  row.hold(team.rank, team.size, part);
  const OwnClass own = own_class(p, row, i, exists);
  const float g = p.weight ? p.weight[i] : 1, smoothing = p.label_smoothing;
  const int classes = p.plan.classes;
  const float per_class = reciprocal_fast(static_cast<float>(classes));

  float x[held_chunks][V];
  for (int k = 0; k < held_chunks; ++k) part[k].read(x[k]);
  const auto chunk = [&](int k) { return team.rank + k * team.size; };
  const auto largest = [&] {
    Largest of;
    for (int k = 0; k < held_chunks; ++k) of.value = max_or_nan(of.value, largest_of(x[k]));
    return team.merge(of).value;
  };
  // Makes the label's x what use(x) returns, where this member holds it.
  const auto at_label = [&](const auto& use) {
    for (int k = 0; k < held_chunks; ++k)
      if (own.index / V == chunk(k))
        for (int v = 0; v < V; ++v) x[k][v] = own.index % V == v ? use(x[k][v]) : x[k][v];
  };

  const float top = largest();
  float other = 0;
  if (!p.probability) {
    at_label([](float) { return -infinity; });
    other = largest();
    at_label([&](float) { return own.logit; });
  }
  Shares shares;
  if (smoothing > 0)
    for (int k = 0; k < held_chunks; ++k)
      for (int v = 0; v < V; ++v) shares.offset += chunk(k) * V + v < classes ? x[k][v] - top : 0;
  for (int k = 0; k < held_chunks; ++k) {
    for (int v = 0; v < V; ++v) x[k][v] = exp_fast(x[k][v] - top);
    shares.sum += sum_of(x[k]);
  }
  shares = team.merge(shares);

  // A label that names no class makes all of its row NaN.
  const float s = own.index < 0 ? NAN : shares.sum, per_s = reciprocal_fast(s), own_share = exp_fast(own.logit - top);
  // What the gradient there is proportional to without smoothing. It is not above 0: the largest is another class's.
  at_label([&](float) { return own_share - s; });
  const float margin = p.probability ? (own_share - largest()) * per_s : own.logit - other;
  if (exists && team.rank == 0)
    write_row(p, i, own.counts, g, own.logit - top, std::log(s), shares.offset * per_class, margin);
  if (!p.d_logits) return;

  E* const gradient = static_cast<E*>(p.d_logits) + i * classes;
  const float scale = g * per_s, uniform = g * smoothing * per_class;
  if (smoothing > 0) at_label([&](float share) { return share + smoothing * s; });
  for (int k = 0; k < held_chunks; ++k)
    for (int v = 0; v < V; ++v) x[k][v] = own.counts ? x[k][v] * scale - uniform : 0;
  if (exists) row.write(gradient, team.rank, team.size, x);
  if (!p.aligned) team.barrier();
  if (exists) row.unstage(gradient, team.rank, team.size);
}

// ---- longer rows ----------------------------------------------------------------------------------------------------------

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

template <class E>
ICCKD_DEVICE void cross_entropy_of_long_rows(const CrossEntropyParams& p) {
  constexpr int V = per_vector<E>;
  Team<Kind::block> team(p.plan);
  const int64_t i = team.row;
  const Row<E, V> row(p.logits, i, p.plan, p.aligned, team.slots);
  const OwnClass own = own_class(p, row, i, true);
  const float g = p.weight ? p.weight[i] : 1, smoothing = p.label_smoothing;
  const float reference = std::isfinite(own.logit) ? own.logit : 0;
  const int classes = p.plan.classes, chunks = p.plan.chunks;

  if (own.counts) row.stage(team.rank, team.size);
  if (!p.aligned) team.barrier();
  Partial partial;
  const auto take = [&](int j) { return row.first(j); };
  in_flight<4>(team.rank, own.counts ? chunks : 0, team.size, take, [&](int j, const Chunk<E, V>& part) {
    row.keep(j, part);
    float x[V];
    part.read(x);
    if (smoothing > 0)
      for (int k = 0; k < V; ++k)
        if (j * V + k < classes && j * V + k != own.index) partial.offset += x[k] - reference;
    if (j == own.index / V)
      for (int k = 0; k < V; ++k)
        if (j * V + k == own.index) x[k] = -infinity;
    partial.add(x);
  });
  partial = team.merge(partial);

  const float other = partial.top, top = max_or_nan(own.logit, other), own_share = exp_fast(own.logit - top);
  const float s = moved(partial.sum, other, top) + own_share;
  if (team.rank == 0) {
    const float mean = (partial.offset + (own.logit - reference)) / classes + (reference - top);
    const float margin = p.probability ? (own_share - exp_fast(other - top)) / s : own.logit - other;
    write_row(p, i, own.counts, g, own.logit - top, std::log(s), mean, margin);
  }
  if (!p.d_logits) return;

  E* const gradient = static_cast<E*>(p.d_logits) + i * classes;
  const float scale = g / s, uniform = g * smoothing / classes;
  in_reverse(team.rank, chunks, team.size, [&](int j) {
    float x[V] = {};
    if (own.counts) {
      row.again(j).read(x);
      for (int k = 0; k < V; ++k) {
        x[k] = exp_fast(x[k] - top);
        // Before the rounding to E.
        if (j * V + k == own.index) x[k] -= (1 - smoothing) * s;
        x[k] = x[k] * scale - uniform;
      }
    }
    row.write(gradient, j, x);
  });
  if (!p.aligned) team.barrier();
  row.unstage(gradient, team.rank, team.size);
}

template <class E, class Case>
ICCKD_DEVICE void cross_entropy_margin(const CrossEntropyParams& p) {
  if constexpr (Case::held) {
    cross_entropy_of_held_rows<E, Case::kind>(p);
  } else {
    cross_entropy_of_long_rows<E>(p);
  }
}

}  // namespace icckd::cuda
