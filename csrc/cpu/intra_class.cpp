// The intra-class operators on the CPU: checks, the plan of the work, and its run over the threads.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "cpu/class_layout.h"
#include "cpu/intra_class_kernel.h"
#include "cpu/parallel.h"
#include "cpu/tensors.h"

namespace icckd {
namespace {

// ---- the plan ---------------------------------------------------------------------------------------------------------

// A class is computed whole if its scratch stays below the first number of floats (1 MiB), or below the second (16 MiB) where other
// classes keep the other threads busy. Whole classes take 0.6 of the time of blocks even beyond the second-level cache (measured
// at 400 to 1600 rows a class, D = 256 to 1024, on a server with 2 MiB of it per core).
constexpr int64_t small_class_floats = 1 << 18, whole_class_floats = 1 << 22;
// Small classes are handed out together, and rows without gradients in lots, so that handing out costs nothing.
constexpr double least_cost = 1 << 18;
constexpr int64_t lot = 1024;

struct Unit {
  enum Kind { whole_classes, log_sum_exp, gradients, add_sums, finish, add_pull, write, no_gradients } kind;
  double cost;
  Block block;  // begin and end are classes for whole_classes, and indices into ClassLayout::ignored for no_gradients
  BlockPair pair = {};
  int64_t pull = 0;  // where in Plan::pull the class's begins
};

// The work units, round after round, of each round the longest first. They depend on the problem and the number of threads only, and so
// do the bits of the results.
struct Plan {
  std::vector<std::vector<Unit>> rounds;
  int64_t scratch = 0, pull = 0;  // floats

  std::vector<Unit>& round(int64_t index) {
    if (index >= static_cast<int64_t>(rounds.size())) rounds.resize(index + 1);
    return rounds[index];
  }
};

// Proportional to the time that a row of class c takes.
double row_cost(const IntraClassProblem& problem, int64_t c) {
  const int64_t candidates = problem.layout->row_count(c) + problem.layout->memory_count(c);
  return static_cast<double>(problem.dim + 1) * static_cast<double>(candidates + 32);
}

double class_cost(const IntraClassProblem& problem, int64_t c) {
  return row_cost(problem, c) * static_cast<double>(problem.layout->row_count(c));
}

// The scratch for computing class c whole, or nothing where it is better cut into blocks.
std::optional<int64_t> scratch_if_whole(const IntraClassProblem& problem, int64_t c, double total_cost) {
  const ClassLayout& layout = *problem.layout;
  const int64_t candidates = layout.row_count(c) + layout.memory_count(c);
  const int64_t scratch = ICCKD_DISPATCH(whole_class_scratch(layout.active[c], candidates, problem.dim));
  const bool is_small_share = 2 * torch::stable::get_num_threads() * class_cost(problem, c) <= total_cost;
  const bool fits = scratch <= small_class_floats || (scratch <= whole_class_floats && is_small_share);
  return problem.constant_shift() && fits ? std::optional(scratch) : std::nullopt;
}

// A class in blocks at any shift: their log-sum-exp, then their gradients.
void plan_blocks(Plan& plan, const IntraClassProblem& problem, const IntraClassResults& results, int64_t c) {
  plan.scratch = std::max(plan.scratch, ICCKD_DISPATCH(block_scratch(problem.dim)));
  const int64_t rows = problem.layout->row_count(c), anchors = problem.layout->active[c];
  const auto add = [&](std::vector<Unit>& units, Unit::Kind kind, int64_t begin, int64_t end, double cost_per_row) {
    for (; begin < end; begin += block_rows) {
      const int64_t stop = std::min(begin + block_rows, end);
      units.push_back({kind, cost_per_row * static_cast<double>(stop - begin), {c, begin, stop}});
    }
  };
  add(plan.round(0), Unit::log_sum_exp, 0, anchors, row_cost(problem, c));
  if (!results.any_gradient_of_rows()) return;
  add(plan.round(1), Unit::gradients, 0, anchors, 2 * row_cost(problem, c));
  add(plan.round(1), Unit::gradients, anchors, rows, 2 * row_cost(problem, c));
}

// Rows of the blocks of a class that meet in pairs: enough blocks to give every thread several meetings at a time, but large ones, which
// read little beside their FLOP, as long as their rows fit into the second-level cache beside what they meet.
int64_t rows_of_meeting_blocks(const IntraClassProblem& problem, int64_t candidates) {
  constexpr int64_t floats = 1 << 16, blocks_per_thread = 8, most = 4;
  const int64_t fit = floats / (block_rows * std::max<int64_t>(problem.dim, 1));
  const int64_t wanted = candidates / (block_rows * blocks_per_thread * torch::stable::get_num_threads());
  return block_rows * std::clamp<int64_t>(std::min(fit, wanted), 1, most);
}

// A class by pairs of blocks, under a constant shift. As in a tournament, every two blocks meet once, and none twice in one round:
// meetings of a round can run in any order.
void plan_pairs(Plan& plan, const IntraClassProblem& problem, const IntraClassResults& results, int64_t c) {
  const ClassLayout& layout = *problem.layout;
  const int64_t anchors = layout.active[c], rows = layout.row_count(c), candidates = rows + layout.memory_count(c);
  const int64_t size = rows_of_meeting_blocks(problem, candidates);
  std::vector<Block> blocks;  // first of anchors, then of other rows, then of the memory
  for (const auto& [begin, end] : {std::pair(int64_t{0}, anchors), {anchors, rows}, {rows, candidates}})
    for (int64_t i = begin; i < end; i += size) blocks.push_back({c, i, std::min(i + size, end)});
  const int64_t count = static_cast<int64_t>(blocks.size()), players = count + count % 2;  // an odd one sits out
  plan.scratch = std::max(plan.scratch, ICCKD_DISPATCH(meeting_scratch(problem, size)));

  const auto add_meeting = [&](int64_t round, Unit::Kind kind, int64_t a, int64_t b) {
    const Block &own = blocks[std::min(a, b)], &other = blocks[std::max(a, b)];
    const double cost = static_cast<double>((own.end - own.begin) * (other.end - other.begin) * (problem.dim + 1));
    plan.round(round).push_back({kind, cost, own, {c, own.begin, own.end, other.begin, other.end}, plan.pull});
  };
  const auto add_tournament = [&](int64_t first_round, Unit::Kind kind) {
    for (int64_t round = 0; round < players - 1; ++round)
      for (int64_t k = 0; k < players / 2; ++k) {  // the last player meets `round`, the others in pairs around it
        const int64_t a = k == 0 ? players - 1 : (round + k) % (players - 1);
        const int64_t b = k == 0 ? round : (round + players - 1 - k) % (players - 1);
        if (std::max(a, b) < count && blocks[std::min(a, b)].begin < anchors) add_meeting(first_round + round, kind, a, b);
      }
  };
  const int64_t finish = players, write = 2 * players + 1;
  for (int64_t b = 0; b < count && blocks[b].begin < anchors; ++b) {
    add_meeting(0, Unit::add_sums, b, b);
    plan.round(finish).push_back({Unit::finish, 0, blocks[b]});
  }
  add_tournament(1, Unit::add_sums);
  if (!results.any_gradient_of_rows()) return;
  for (int64_t b = 0; b < count && blocks[b].begin < rows; ++b) {
    if (results.d_anchor != nullptr) add_meeting(finish + 1, Unit::add_pull, b, b);
    plan.round(write).push_back({Unit::write, 0, blocks[b], {}, plan.pull});
  }
  if (results.d_anchor != nullptr) add_tournament(finish + 2, Unit::add_pull);
  plan.pull += rows * ICCKD_DISPATCH(pull_stride(problem.dim));
}

Plan make_plan(const IntraClassProblem& problem, const IntraClassResults& results) {
  const ClassLayout& layout = *problem.layout;
  double total_cost = 0;
  for (int64_t c = 0; c < layout.classes(); ++c) total_cost += class_cost(problem, c);
  Plan plan;
  Unit batch{Unit::whole_classes, 0, {0, 0, 0}};
  const auto finish_batch = [&](int64_t next_class) {
    if (batch.cost > 0) plan.round(0).push_back(batch);
    batch = {Unit::whole_classes, 0, {0, next_class, next_class}};
  };
  for (int64_t c = 0; c < layout.classes(); ++c) {
    const std::optional<int64_t> scratch = layout.active[c] == 0 ? 0 : scratch_if_whole(problem, c, total_cost);
    if (scratch) {
      plan.scratch = std::max(plan.scratch, *scratch);
      batch.block.end = c + 1;
      batch.cost += class_cost(problem, c);
      if (batch.cost >= least_cost) finish_batch(c + 1);
      continue;
    }
    finish_batch(c + 1);
    if (problem.constant_shift())
      plan_pairs(plan, problem, results, c);
    else
      plan_blocks(plan, problem, results, c);
  }
  finish_batch(layout.classes());
  const int64_t ignored = static_cast<int64_t>(layout.ignored.size());
  if (results.any_gradient_of_rows())
    for (int64_t begin = 0; begin < ignored; begin += lot)
      plan.round(0).push_back({Unit::no_gradients, 0, {0, begin, std::min(begin + lot, ignored)}});
  for (std::vector<Unit>& units : plan.rounds)
    std::stable_sort(units.begin(), units.end(), [](const Unit& a, const Unit& b) { return a.cost > b.cost; });
  return plan;
}

// ---- its run ----------------------------------------------------------------------------------------------------------

Sums run_classes(const IntraClassProblem& problem, const IntraClassResults& results, int64_t begin, int64_t end, float* scratch) {
  const ClassLayout& layout = *problem.layout;
  Sums total;
  for (int64_t c = begin; c < end; ++c) {
    if (layout.active[c] > 0) {
      const Sums sums = ICCKD_DISPATCH(whole_class(problem, results, c, scratch));
      total.loss += sums.loss;
      total.d_scale += sums.d_scale;
    } else {
      ICCKD_DISPATCH(zero_gradients(problem, results, layout.rows.data() + layout.row_begin[c], layout.row_count(c)));
    }
  }
  return total;
}

struct Memory {
  AnchorStates states;
  float *pull, *scratch;
};

Sums run_unit(const IntraClassProblem& problem, const IntraClassResults& results, const Unit& unit, const Memory& memory) {
  const Block& block = unit.block;
  const AnchorStates& states = memory.states;
  float *scratch = memory.scratch, *pull = memory.pull + unit.pull;
  switch (unit.kind) {
    case Unit::whole_classes: return run_classes(problem, results, block.begin, block.end, scratch);
    case Unit::log_sum_exp: return ICCKD_DISPATCH(log_sum_exp_block(problem, results, states, block, scratch));
    case Unit::gradients: ICCKD_DISPATCH(gradient_block(problem, results, states, block, scratch)); break;
    case Unit::add_sums: ICCKD_DISPATCH(add_sums(problem, results, states, unit.pair, scratch)); break;
    case Unit::finish: return ICCKD_DISPATCH(finish_block(problem, results, states, block));
    case Unit::add_pull: ICCKD_DISPATCH(add_pull(problem, states, unit.pair, pull, scratch)); break;
    case Unit::write: ICCKD_DISPATCH(write_block(problem, results, states, block, pull, scratch)); break;
    case Unit::no_gradients: {
      const int64_t* ignored = problem.layout->ignored.data();
      ICCKD_DISPATCH(zero_gradients(problem, results, ignored + block.begin, block.end - block.begin));
    }
  }
  return {};
}

Sums run(const IntraClassProblem& problem, const IntraClassResults& results) {
  const Plan plan = make_plan(problem, results);
  int64_t longest = 0;
  for (const std::vector<Unit>& units : plan.rounds) longest = std::max(longest, static_cast<int64_t>(units.size()));
  const int64_t scratch_stride = (plan.scratch + 15) / 16 * 16;  // whole cache lines
  const Tensor scratch = empty({worker_count(longest), scratch_stride}, ScalarType::Float), pull = empty({plan.pull}, ScalarType::Float);
  const int64_t rows = static_cast<int64_t>(problem.layout->rows.size());
  const Tensor state = empty({6, rows}, ScalarType::Float);
  float* of = state.mutable_data_ptr<float>();
  const AnchorStates states{of, of + rows, of + 2 * rows, of + 3 * rows, of + 4 * rows, of + 5 * rows};

  Sums total;
  for (const std::vector<Unit>& units : plan.rounds) {
    std::vector<Sums> sums(units.size());
    parallel_units(static_cast<int64_t>(units.size()), [&](int64_t unit, int64_t worker) {
      float* own = scratch.mutable_data_ptr<float>() + worker * scratch_stride;
      sums[unit] = run_unit(problem, results, units[unit], {states, pull.mutable_data_ptr<float>(), own});
    });
    for (const Sums& part : sums) {
      total.loss += part.loss;
      total.d_scale += part.d_scale;
    }
  }
  return total;
}

// ---- the operators ----------------------------------------------------------------------------------------------------

using OptionalTensor = std::optional<Tensor>;

// Rows are read in place, whatever their distance, if each is contiguous in itself.
Tensor with_contiguous_rows(const Tensor& x) {
  return x.size(1) <= 1 || x.stride(1) == 1 ? x : torch::stable::contiguous(x);
}

Rows rows_of(const Tensor& x, const char* name) {
  return {x.const_data_ptr(), element_of(x, name), x.stride(0)};
}

float largest_magnitude(const float* x, int64_t count) {
  float result = 0;
  for (int64_t i = 0; i < count; ++i) result = std::max(result, std::fabs(x[i]));
  return result;
}

// The operators' arguments, checked and made contiguous where the kernels need it.
class Arguments {
 public:
  Arguments(const Tensor& anchor, const Tensor& positive, const Tensor& labels, const Tensor& weight, const OptionalTensor& memory,
            const OptionalTensor& memory_labels, const Tensor& temperature, bool normalize, std::optional<int64_t> num_classes) {
    STD_TORCH_CHECK(anchor.dim() == 2, "anchor should have 2 dimensions");
    const int64_t rows = anchor.size(0), dim = anchor.size(1);
    check_shape(anchor, {rows, dim}, "anchor");
    check_shape(positive, {rows, dim}, "positive");
    check_dtype(positive, anchor.scalar_type(), "positive");
    check_shape(labels, {rows}, "labels");
    check_dtype(labels, ScalarType::Long, "labels");
    check_shape(weight, {rows}, "weight");
    check_dtype(weight, ScalarType::Float, "weight");
    check_shape(temperature, {}, "temperature");
    check_dtype(temperature, ScalarType::Float, "temperature");
    anchor_ = with_contiguous_rows(anchor);
    positive_ = with_contiguous_rows(positive);
    weight_ = torch::stable::contiguous(weight);
    problem.anchor = rows_of(anchor_, "anchor");
    problem.positive = rows_of(positive_, "positive");
    problem.dim = dim;
    problem.weight = weight_.const_data_ptr<float>();
    problem.largest_weight = largest_magnitude(problem.weight, rows);
    problem.scale = 1 / *temperature.const_data_ptr<float>();
    problem.normalize = normalize;

    const Tensor row_labels = torch::stable::contiguous(labels);
    Tensor remembered_labels = row_labels;  // unless there is a memory: nothing is read from it
    int64_t remembered = 0;
    STD_TORCH_CHECK(memory.has_value() == memory_labels.has_value(), "memory and memory_labels belong together");
    if (memory) {
      remembered = memory_labels->dim() == 1 ? memory_labels->size(0) : -1;
      check_shape(*memory_labels, {remembered}, "memory_labels");
      check_dtype(*memory_labels, ScalarType::Long, "memory_labels");
      check_shape(*memory, {remembered, dim}, "memory");
      memory_ = with_contiguous_rows(*memory);
      problem.memory = rows_of(*memory_, "memory");
      remembered_labels = torch::stable::contiguous(*memory_labels);
    }
    layout_ = class_layout(row_labels.const_data_ptr<int64_t>(), problem.weight, rows, remembered_labels.const_data_ptr<int64_t>(),
                           remembered, num_classes);
    problem.layout = &layout_;
  }
  Arguments(const Arguments&) = delete;

  Tensor empty_gradient(bool wanted) const {
    return wanted ? empty({anchor_.size(0), problem.dim}, anchor_.scalar_type()) : empty({0}, anchor_.scalar_type());
  }

  // Gradients that no core's own cache could hold are written past the caches, if their rows are whole cache lines.
  bool writes_past_caches(const Tensor& d_anchor, const Tensor& d_positive) const {
    constexpr uintptr_t line = 64, large = 1 << 20;
    const uintptr_t row = problem.dim * anchor_.element_size();
    const auto begins_line = [](const Tensor& x) { return reinterpret_cast<uintptr_t>(x.const_data_ptr()) % line == 0; };
    return row % line == 0 && begins_line(d_anchor) && begins_line(d_positive) &&
           (d_anchor.numel() + d_positive.numel()) * anchor_.element_size() >= large;
  }

  IntraClassProblem problem{};

 private:
  Tensor anchor_, positive_, weight_;
  OptionalTensor memory_;
  ClassLayout layout_;
};

Tensor zeros(int64_t count) {
  Tensor x = empty({count}, ScalarType::Float);
  std::fill_n(x.mutable_data_ptr<float>(), count, 0.0f);
  return x;
}

struct Gradients {
  Tensor anchor, positive, temperature;
  double loss;
};

Gradients sum_and_gradients(const Arguments& arguments, bool need_anchor, bool need_positive, bool need_temperature) {
  Gradients gradients{arguments.empty_gradient(need_anchor), arguments.empty_gradient(need_positive), empty({0}, ScalarType::Float), 0};
  const Sums sums = run(arguments.problem, {
      nullptr,
      nullptr,
      need_anchor ? gradients.anchor.mutable_data_ptr() : nullptr,
      need_positive ? gradients.positive.mutable_data_ptr() : nullptr,
      need_temperature,
      arguments.writes_past_caches(gradients.anchor, gradients.positive),
  });
  const double scale = arguments.problem.scale;
  if (need_temperature) gradients.temperature = scalar(-scale * scale * sums.d_scale);
  gradients.loss = sums.loss;
  return gradients;
}

std::tuple<Tensor, Tensor> intra_class_rows(Tensor anchor, Tensor positive, Tensor labels, Tensor weight, OptionalTensor memory,
                                            OptionalTensor memory_labels, Tensor temperature, bool normalize,
                                            std::optional<int64_t> num_classes) {
  const Arguments arguments(anchor, positive, labels, weight, memory, memory_labels, temperature, normalize, num_classes);
  Tensor rows = zeros(anchor.size(0)), lse = zeros(anchor.size(0));
  run(arguments.problem, {rows.mutable_data_ptr<float>(), lse.mutable_data_ptr<float>(), nullptr, nullptr, false, false});
  return {rows, lse};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> intra_class_sum(Tensor anchor, Tensor positive, Tensor labels, Tensor weight,
                                                           OptionalTensor memory, OptionalTensor memory_labels, Tensor temperature,
                                                           bool normalize, std::optional<int64_t> num_classes, bool need_anchor,
                                                           bool need_positive, bool need_temperature) {
  const Arguments arguments(anchor, positive, labels, weight, memory, memory_labels, temperature, normalize, num_classes);
  const Gradients gradients = sum_and_gradients(arguments, need_anchor, need_positive, need_temperature);
  return {scalar(gradients.loss), gradients.anchor, gradients.positive, gradients.temperature};
}

// The gradients of Σ grad_rows · weight · ℓ are those of a sum with other weights. The log-sum-exp is computed anew: while the
// similarities are at hand that costs almost nothing.
std::tuple<Tensor, Tensor, Tensor> intra_class_rows_backward(Tensor grad_rows, Tensor /*lse*/, Tensor anchor, Tensor positive,
                                                             Tensor labels, Tensor weight, OptionalTensor memory,
                                                             OptionalTensor memory_labels, Tensor temperature, bool normalize,
                                                             std::optional<int64_t> num_classes, bool need_anchor,
                                                             bool need_positive, bool need_temperature) {
  check_shape(grad_rows, {anchor.size(0)}, "grad_rows");
  check_dtype(grad_rows, ScalarType::Float, "grad_rows");
  check_shape(weight, {anchor.size(0)}, "weight");
  check_dtype(weight, ScalarType::Float, "weight");
  Tensor product = empty({anchor.size(0)}, ScalarType::Float);
  const Tensor upstream = torch::stable::contiguous(grad_rows), own = torch::stable::contiguous(weight);
  const float *factor = upstream.const_data_ptr<float>(), *of_row = own.const_data_ptr<float>();
  float* out = product.mutable_data_ptr<float>();
  for (int64_t i = 0; i < anchor.size(0); ++i) out[i] = factor[i] * of_row[i];
  const Arguments arguments(anchor, positive, labels, product, memory, memory_labels, temperature, normalize, num_classes);
  const Gradients gradients = sum_and_gradients(arguments, need_anchor, need_positive, need_temperature);
  return {gradients.anchor, gradients.positive, gradients.temperature};
}

}  // namespace
}  // namespace icckd

STABLE_TORCH_LIBRARY_IMPL(icckd_native, CPU, m) {
  m.impl("intra_class_rows", TORCH_BOX(&icckd::intra_class_rows));
  m.impl("intra_class_rows_backward", TORCH_BOX(&icckd::intra_class_rows_backward));
  m.impl("intra_class_sum", TORCH_BOX(&icckd::intra_class_sum));
}
