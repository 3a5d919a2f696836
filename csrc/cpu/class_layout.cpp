#include "cpu/class_layout.h"

#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <utility>

namespace icckd {
namespace {

constexpr int64_t no_class = -1;

// Numbers arbitrary labels 0, 1, 2, … in the order of their first appearance: a hash table with linear probing.
class LabelNumbers {
 public:
  explicit LabelNumbers(int64_t labels) {
    while (mask_ < 2 * labels) mask_ = 2 * mask_ + 1;
    slots_.resize(mask_ + 1, {0, no_class});
  }

  int64_t insert(int64_t label) {
    Slot& slot = find_slot(label);
    if (slot.number == no_class) slot = {label, count_++};
    return slot.number;
  }

  int64_t find(int64_t label) { return find_slot(label).number; }
  int64_t count() const { return count_; }

 private:
  struct Slot {
    int64_t label, number;
  };

  Slot& find_slot(int64_t label) {
    uint64_t hash = static_cast<uint64_t>(label) * 0x9e3779b97f4a7c15u;  // 2⁶⁴ / golden ratio: spreads consecutive labels
    hash ^= hash >> 32;
    for (int64_t i = static_cast<int64_t>(hash & mask_);; i = (i + 1) & mask_)
      if (slots_[i].number == no_class || slots_[i].label == label) return slots_[i];
  }

  int64_t mask_ = 15, count_ = 0;
  std::vector<Slot> slots_;
};

int64_t largest(const int64_t* labels, int64_t count, int64_t so_far) {
  for (int64_t i = 0; i < count; ++i) so_far = std::max(so_far, labels[i]);
  return so_far;
}

struct ClassNumbers {
  std::vector<int64_t> rows, memory;  // no_class where there is none
  int64_t classes;
};

ClassNumbers number_classes(const int64_t* labels, int64_t row_count, const int64_t* memory_labels, int64_t memory_count,
                            int64_t highest) {
  ClassNumbers numbers{std::vector<int64_t>(row_count), std::vector<int64_t>(memory_count), 0};
  if (highest < 4 * (row_count + memory_count) + 1024) {  // few enough to serve as class numbers themselves
    for (int64_t i = 0; i < row_count; ++i) numbers.rows[i] = std::max(labels[i], no_class);
    for (int64_t i = 0; i < memory_count; ++i) numbers.memory[i] = std::max(memory_labels[i], no_class);
    numbers.classes = highest + 1;
    return numbers;
  }
  LabelNumbers known(row_count);
  for (int64_t i = 0; i < row_count; ++i) numbers.rows[i] = labels[i] < 0 ? no_class : known.insert(labels[i]);
  for (int64_t i = 0; i < memory_count; ++i)
    numbers.memory[i] = memory_labels[i] < 0 ? no_class : known.find(memory_labels[i]);
  numbers.classes = known.count();
  return numbers;
}

// Turns counts into starts: {3, 1, 2, 0} into {0, 3, 4, 6}.
void running_total(std::vector<int64_t>& counts) {
  int64_t total = 0;
  for (int64_t& count : counts) total += std::exchange(count, total);
}

void place_rows(ClassLayout& layout, const std::vector<int64_t>& numbers, const float* weight) {
  const int64_t count = static_cast<int64_t>(numbers.size());
  for (int64_t i = 0; i < count; ++i) {
    if (numbers[i] == no_class) {
      layout.ignored.push_back(i);
      continue;
    }
    ++layout.row_begin[numbers[i]];
    layout.active[numbers[i]] += weight[i] != 0;
  }
  running_total(layout.row_begin);
  layout.rows.resize(count - layout.ignored.size());
  std::vector<int64_t> next_active = layout.row_begin, next_inactive = layout.row_begin;
  for (int64_t c = 0; c < layout.classes(); ++c) next_inactive[c] += layout.active[c];
  for (int64_t i = 0; i < count; ++i)
    if (numbers[i] != no_class) layout.rows[(weight[i] != 0 ? next_active : next_inactive)[numbers[i]]++] = i;
}

void place_memory(ClassLayout& layout, const std::vector<int64_t>& numbers) {
  for (int64_t number : numbers)
    if (number != no_class) ++layout.memory_begin[number];
  running_total(layout.memory_begin);
  layout.memory.resize(layout.memory_begin.back());
  std::vector<int64_t> next = layout.memory_begin;
  for (int64_t i = 0; i < static_cast<int64_t>(numbers.size()); ++i)
    if (numbers[i] != no_class) layout.memory[next[numbers[i]]++] = i;
}

}  // namespace

ClassLayout class_layout(const int64_t* labels, const float* weight, int64_t row_count, const int64_t* memory_labels,
                         int64_t memory_count, std::optional<int64_t> num_classes) {
  const int64_t highest = largest(memory_labels, memory_count, largest(labels, row_count, no_class));
  STD_TORCH_CHECK(!num_classes || highest < *num_classes, "num_classes is ", num_classes.value_or(0), ", but labels reach ", highest);
  const ClassNumbers numbers = number_classes(labels, row_count, memory_labels, memory_count, highest);
  ClassLayout layout;
  layout.row_begin.resize(numbers.classes + 1);
  layout.active.resize(numbers.classes);
  layout.memory_begin.resize(numbers.classes + 1);
  place_rows(layout, numbers.rows, weight);
  place_memory(layout, numbers.memory);
  return layout;
}

}  // namespace icckd
