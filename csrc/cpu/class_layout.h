// Rows in the order of their classes: the layout that makes the pairwise work block-diagonal.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace icckd {

// Class c holds rows[row_begin[c]] … rows[row_begin[c + 1]], first its `active[c]` anchors, each part in the order of the input,
// and likewise memory[memory_begin[c]] … of the memory's rows. Rows without a class are in `ignored`.
struct ClassLayout {
  std::vector<int64_t> rows, row_begin, active;
  std::vector<int64_t> memory, memory_begin;
  std::vector<int64_t> ignored;

  int64_t classes() const { return static_cast<int64_t>(active.size()); }
  int64_t row_count(int64_t c) const { return row_begin[c + 1] - row_begin[c]; }
  int64_t memory_count(int64_t c) const { return memory_begin[c + 1] - memory_begin[c]; }
};

// The layout of rows with these labels, by counting: O(row_count + memory_count) whatever the labels. A row is an anchor if its
// weight is not 0. Negative labels have no class, and neither have memory rows whose label no row bears.
// Throws std::runtime_error where a label is not below `num_classes`.
ClassLayout class_layout(const int64_t* labels, const float* weight, int64_t row_count, const int64_t* memory_labels,
                         int64_t memory_count, std::optional<int64_t> num_classes);

}  // namespace icckd
