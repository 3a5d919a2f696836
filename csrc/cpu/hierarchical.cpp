// The operator of adaptive hierarchical similarity, of rows sorted by class: icckd/backends/native.py says what is left to it.
//
// Blocks of rows meet in pairs, as in a tournament: every two meet once, and none twice in one round, so that meetings of a round run in
// any order on any thread. Blocks depend on the problem alone, and so do the bits of the results.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "cpu/hierarchical_kernel.h"
#include "cpu/parallel.h"
#include "cpu/tensors.h"

namespace icckd {
namespace {

// Rows of a block: large ones read little beside their FLOP, as long as they fit into the second-level cache beside what they meet.
int64_t rows_of_blocks(int64_t count, int64_t dim) {
  constexpr int64_t floats = 1 << 16, blocks = 16, most = 4;
  const int64_t fit = floats / (hierarchical_rows * std::max<int64_t>(dim, 1)), wanted = count / (hierarchical_rows * blocks);
  return hierarchical_rows * std::clamp<int64_t>(std::min(fit, wanted), 1, most);
}

// The blocks of the rows, and every two of them of which one has an anchor, round after round.
class Tournament {
 public:
  Tournament(const float* anchor, int64_t count, int64_t size) {
    for (int64_t begin = 0; begin < count; begin += size) {
      const int64_t end = std::min(begin + size, count);
      blocks.push_back({begin, end, begin, end});
      has_anchor.push_back(std::any_of(anchor + begin, anchor + end, [](float weight) { return weight != 0; }));
    }
    const int64_t number = static_cast<int64_t>(blocks.size()), players = number + number % 2;  // an odd one sits out
    rounds.resize(std::max<int64_t>(players, 1));
    for (int64_t b = 0; b < number; ++b) add(0, b, b);
    for (int64_t round = 0; round < players - 1; ++round)
      for (int64_t k = 0; k < players / 2; ++k) {  // the last player meets `round`, the others in pairs around it
        const int64_t a = k == 0 ? players - 1 : (round + k) % (players - 1);
        const int64_t b = k == 0 ? round : (round + players - 1 - k) % (players - 1);
        if (std::max(a, b) < number) add(round + 1, std::min(a, b), std::max(a, b));
      }
  }

  std::vector<BlockMeeting> blocks;
  std::vector<std::vector<BlockMeeting>> rounds;

 private:
  void add(int64_t round, int64_t a, int64_t b) {
    if (has_anchor[a] || has_anchor[b]) rounds[round].push_back({blocks[a].begin, blocks[a].end, blocks[b].begin, blocks[b].end});
  }

  std::vector<bool> has_anchor;
};

// A matrix of float32 with these columns, contiguous.
Tensor matrix(const Tensor& x, int64_t rows, int64_t columns, const char* name) {
  check_shape(x, {rows, columns}, name);
  check_dtype(x, ScalarType::Float, name);
  return torch::stable::contiguous(x);
}

Tensor vector(const Tensor& x, int64_t count, ScalarType dtype, const char* name) {
  check_shape(x, {count}, name);
  check_dtype(x, dtype, name);
  return torch::stable::contiguous(x);
}

// The classes as 32-bit numbers, checked to be sorted and to be numbers of `classes` ones without gaps; −1 behind them.
std::vector<int32_t> checked_classes(const Tensor& given, int64_t count, int64_t classes) {
  std::vector<int32_t> result(count + hierarchical_rows, -1);
  const int64_t* c = given.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < count; ++i) {
    const bool follows = i == 0 ? c[0] == 0 : c[i] == c[i - 1] || c[i] == c[i - 1] + 1;
    STD_TORCH_CHECK(follows && c[i] < classes, "classes should be sorted, from 0 on without gaps, and below the number of centers");
    result[i] = static_cast<int32_t>(c[i]);
  }
  return result;
}

std::tuple<Tensor, Tensor, Tensor> hierarchical_sorted_sum(const Tensor& rows, const Tensor& classes, const Tensor& centers,
                                                           const Tensor& own, const Tensor& scale, const Tensor& anchor, double gamma,
                                                           double positive_scale, double negative_scale, bool need_grad) {
  STD_TORCH_CHECK(rows.dim() == 2 && centers.dim() == 2, "rows and centers should have 2 dimensions");
  const int64_t count = rows.size(0), dim = rows.size(1), number = centers.size(0);
  const Tensor z = matrix(rows, count, dim, "rows"), means = matrix(centers, number, dim, "centers");
  const Tensor own_of = vector(own, number, ScalarType::Float, "own"), margins = vector(scale, 2, ScalarType::Float, "scale");
  const Tensor weight = vector(anchor, count, ScalarType::Float, "anchor");
  const std::vector<int32_t> class_of = checked_classes(vector(classes, count, ScalarType::Long, "classes"), count, number);

  const HierarchicalSizes sizes = ICCKD_DISPATCH(hierarchical_sizes(dim));
  const int64_t padded = count + hierarchical_rows;
  const Tensor apart = empty({need_grad ? 2 : 1, padded, sizes.row_stride}, ScalarType::Float);
  const Tensor packed = empty({2, padded, sizes.padded_dim}, ScalarType::Float), state = empty({2, padded}, ScalarType::Float);
  Tensor least = empty({padded}, ScalarType::Float);
  float *of_rows = apart.mutable_data_ptr<float>(), *operands = packed.mutable_data_ptr<float>(), *sums = state.mutable_data_ptr<float>();
  const float* between = margins.const_data_ptr<float>();
  const HierarchicalJob job{
      .rows = z.const_data_ptr<float>(),
      .classes = class_of.data(),
      .centers = means.const_data_ptr<float>(),
      .own = own_of.const_data_ptr<float>(),
      .anchor = weight.const_data_ptr<float>(),
      .count = count,
      .dim = dim,
      .factor = between[0],
      .offset = between[1],
      .gamma = static_cast<float>(gamma),
      .positive_scale = static_cast<float>(positive_scale),
      .negative_scale = static_cast<float>(negative_scale),
      .z = of_rows,
      .packed = operands,
      .packed_centers = operands + padded * sizes.padded_dim,
      .own_sum = sums,
      .other_sum = sums + padded,
      .least = least.mutable_data_ptr<float>(),
      .pull = need_grad ? of_rows + padded * sizes.row_stride : nullptr,
  };

  const Tournament tournament(job.anchor, count, rows_of_blocks(count, dim));
  const int64_t blocks = static_cast<int64_t>(tournament.blocks.size()), stride = (sizes.scratch + 15) / 16 * 16;  // whole cache lines
  const Tensor memory = empty({worker_count(blocks), stride}, ScalarType::Float);
  const auto of_worker = [&](int64_t worker) { return memory.mutable_data_ptr<float>() + worker * stride; };
  const auto every_meeting = [&](const auto& run) {
    for (const std::vector<BlockMeeting>& round : tournament.rounds)
      parallel_units(static_cast<int64_t>(round.size()), [&](int64_t unit, int64_t worker) { run(round[unit], of_worker(worker)); });
  };
  parallel_units(blocks, [&](int64_t unit, int64_t worker) {
    const BlockMeeting& block = tournament.blocks[unit];
    ICCKD_DISPATCH(hierarchical_prepare(job, block.begin, block.end, of_worker(worker)));
  });
  every_meeting([&](const BlockMeeting& pair, float* scratch) { ICCKD_DISPATCH(hierarchical_add_sums(job, pair, scratch)); });
  double loss = 0;
  for (const BlockMeeting& block : tournament.blocks) loss += ICCKD_DISPATCH(hierarchical_finish(job, block.begin, block.end));
  Tensor gradient = need_grad ? empty({count, dim}, ScalarType::Float) : empty({0}, ScalarType::Float);
  if (need_grad) {
    every_meeting([&](const BlockMeeting& pair, float* scratch) { ICCKD_DISPATCH(hierarchical_add_pull(job, pair, scratch)); });
    parallel_units(blocks, [&](int64_t unit, int64_t) {
      const BlockMeeting& block = tournament.blocks[unit];
      ICCKD_DISPATCH(hierarchical_write(job, block.begin, block.end, gradient.mutable_data_ptr<float>()));
    });
  }
  return {scalar(loss), torch::stable::narrow(least, 0, 0, count), gradient};
}

}  // namespace
}  // namespace icckd

STABLE_TORCH_LIBRARY_IMPL(icckd_native, CPU, m) {
  m.impl("hierarchical_sorted_sum", TORCH_BOX(&icckd::hierarchical_sorted_sum));
}
