// Running work units on PyTorch's threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace icckd {

// How many workers `parallel_units` starts for `units` work units: the size of an array of per-worker scratch.
inline int64_t worker_count(int64_t units) {
  return std::max<int64_t>(1, std::min<int64_t>(units, torch::stable::get_num_threads()));
}

// Calls run(unit, worker) for every unit in [0, units). Free workers take the next unit, so put the longest first. Which worker
// gets a unit is left to chance: for the same bits on every run a unit's result must depend on the unit alone.
template <class Run>
void parallel_units(int64_t units, const Run& run) {
  std::atomic<int64_t> next{0};
  // A call from inside another parallel region gets the whole range at once, on one thread: hence no loop over it.
  torch::stable::parallel_for(0, worker_count(units), 1, [&](int64_t worker, int64_t) {
    for (int64_t unit; (unit = next.fetch_add(1, std::memory_order_relaxed)) < units;) run(unit, worker);
  });
}

}  // namespace icckd
