// A row of logits: who computes it, how it comes on chip, how its gradient leaves.
//
// A row is cut into chunks of V neighbouring classes, 16 bytes of the wider type. A team owns the row: 1, 2, 4, … 32 lanes of a
// warp where the row is short, a whole block where it is long. With a team of four:
//
//     chunk     0   1   2   3 | 4   5   6   7 | 8   9   …          member r reads, computes and writes chunks r, r + 4, r + 8, …
//     member    0   1   2   3 | 0   1   2   3 | 0   1   …
//
// Which class goes to whom depends on the number of classes alone, so that the bits of a result do not depend on where the row
// lies in memory. Rows whose chunks are aligned are read and written by their owners. Others (an odd number of classes, a slice,
// any strides) pass through shared memory: the team copies neighbouring classes side by side, then every member reads its chunks
// there, and the gradient goes the same way back.
//
// Where every member has at most `held_chunks` of a row, they stay in its registers from the first to the last time that they are
// needed. Of longer rows the first `slots` chunks stay in shared memory; the others are read again, the last one first, while the
// second-level cache still holds it.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "cuda/device.h"
#include "cuda/element.h"

namespace icckd::cuda {

constexpr float infinity = std::numeric_limits<float>::infinity();

// ---- plan -----------------------------------------------------------------------------------------------------------------

struct RowPlan {
  int classes, chunks;  // of a row
  int slots;            // chunks of a row that stay in shared memory, or pass through it: an even number
  int team;             // lanes of a row: a power of two up to 32, or all threads of the block
  bool held;            // whether a row stays in its team's registers
  int threads;          // of a block
  int rows;             // of a block
  int row_bytes;        // of the slots of a row
  int shared_bytes;     // of a block
};

// Chunks of a member that stay in its registers, at most.
constexpr int held_chunks = 4;

// Threads of a block whose teams are lanes of a warp.
constexpr int lanes_threads = 128;

// What the warps of a block tell each other (Team::merge), before the slots.
constexpr int exchange_bytes = 2048;

constexpr int power_of_two_from(int x) {
  int power = 1;
  while (power < x) power *= 2;
  return power;
}

// `most_threads`: of a block that is a team, where two share a multiprocessor; one that needs it alone has twice as many.
// `chunk_bytes`: of a chunk in every matrix that stays in shared memory. `aligned`: whether the chunks of every row are. `again`:
// whether a row is needed more than once. `shared_limit`: bytes of shared memory that a block may have.
constexpr RowPlan plan_rows(
    int classes, int width, int chunk_bytes, bool aligned, bool again, int most_threads, int shared_limit) {
  RowPlan plan{};
  plan.classes = classes;
  plan.chunks = (classes - 1) / width + 1;
  const bool whole_block = plan.chunks > held_chunks * 32;
  if (whole_block) {
    const int enough = power_of_two_from((plan.chunks + held_chunks - 1) / held_chunks);
    plan.threads = plan.team = plan.chunks > 2 * most_threads ? most_threads : enough;
  } else {
    plan.threads = lanes_threads;
    plan.team = plan.chunks > 2 * 16 ? 32 : power_of_two_from((plan.chunks + 1) / 2);
  }
  plan.held = plan.chunks <= held_chunks * plan.team;
  plan.rows = plan.threads / plan.team;
  const int exchange = whole_block ? exchange_bytes : 0;
  const int wanted = !aligned || (again && !plan.held) ? plan.chunks + plan.chunks % 2 : 0;
  const int room = (shared_limit - exchange) / (plan.rows * chunk_bytes);
  plan.slots = wanted < room ? wanted : room / 2 * 2;
  plan.row_bytes = plan.slots * chunk_bytes;
  plan.shared_bytes = exchange + plan.rows * plan.row_bytes;
  if (whole_block && !plan.held && 2 * plan.shared_bytes > shared_limit) plan.threads = plan.team = 2 * most_threads;
  return plan;
}

// What a team is: lanes of a warp, all of them, or all threads of a block. The second is a case of its own for the compiler's sake.
enum class Kind { lanes, warp, block };

template <Kind kind_, bool held_>
struct Case {
  static constexpr Kind kind = kind_;
  static constexpr bool held = held_;
};

// Calls use(Case{}) with the plan's.
template <class Use>
void with_case(const RowPlan& plan, const Use& use) {
  if (plan.team > warp_size) {
    plan.held ? use(Case<Kind::block, true>{}) : use(Case<Kind::block, false>{});
  } else {
    plan.team == warp_size ? use(Case<Kind::warp, true>{}) : use(Case<Kind::lanes, true>{});
  }
}

// ---- team -----------------------------------------------------------------------------------------------------------------

// Over neighbouring lanes, a power of two of them.
ICCKD_DEVICE float sum_over(int lanes, float x) {
  for (int mask = warp_size / 2; mask > 0; mask /= 2) {
    const float other = shuffle_xor(x, mask);
    if (mask < lanes) x += other;
  }
  return x;
}

// NaN where one of them is.
ICCKD_DEVICE float largest_over(int lanes, float x) {
  for (int mask = warp_size / 2; mask > 0; mask /= 2) {
    const float other = shuffle_xor(x, mask);
    if (mask < lanes) x = max_or_nan(x, other);
  }
  return x;
}

// One number of every member.
struct Largest {
  float value = -infinity;

  ICCKD_DEVICE void merge(int lanes) { value = largest_over(lanes, value); }
};

struct Sum {
  float value = 0;

  ICCKD_DEVICE void merge(int lanes) { value = sum_over(lanes, value); }
};

// The threads that share a row. Every thread of the block takes part in `merge` and `barrier`, with or without a row of its own.
template <Kind kind>
class Team {
  static constexpr bool whole_block = kind == Kind::block;

 public:
  ICCKD_DEVICE explicit Team(const RowPlan& plan)
      : size(kind == Kind::warp ? warp_size : plan.team), rank(whole_block ? thread() : lane() & (size - 1)), exchange_(shared_memory()) {
    const int own = whole_block ? 0 : thread() >> count_bits(size - 1);
    row = static_cast<int64_t>(block()) * plan.rows + own;
    slots = shared_memory() + (whole_block ? exchange_bytes : own * plan.row_bytes);
  }

  ICCKD_DEVICE void barrier() const {
    if constexpr (whole_block) {
      block_barrier();
    } else {
      warp_barrier();
    }
  }

  // The state of all members together, the same bits in each. State{} is that of a thread that has seen nothing, and
  // state.merge(lanes) merges the states of neighbouring lanes.
  template <class State>
  ICCKD_DEVICE State merge(State state) {
    if constexpr (!whole_block) {
      state.merge(size);
      return state;
    } else {
      State* const of_warp = reinterpret_cast<State*>(exchange_);
      exchange_ += 32 * sizeof(State);  // the next merge goes elsewhere: some warp may still be reading here
      ICCKD_ASSERT(exchange_ <= slots);
      state.merge(32);
      if (lane() == 0) of_warp[warp()] = state;
      block_barrier();
      state = lane() < size / 32 ? of_warp[lane()] : State{};
      state.merge(32);
      return state;
    }
  }

  const int size, rank;
  int64_t row;           // which row is the team's; it may lie beyond the last
  unsigned char* slots;  // the team's part of shared memory

 private:
  unsigned char* exchange_;
};

// ---- chunks ---------------------------------------------------------------------------------------------------------------

template <class E, int V>
struct alignas(V * sizeof(E)) Chunk {
  static constexpr int words = V * sizeof(E) / 4;
  uint32_t word[words];

  static ICCKD_DEVICE Chunk of(const float (&x)[V]) {
    Chunk chunk;
    for (int i = 0; i < words; ++i) {
      if constexpr (sizeof(E) == sizeof(float))
        chunk.word[i] = float_bits(x[i]);
      else
        chunk.word[i] = pack<E>(x[2 * i], x[2 * i + 1]);
    }
    return chunk;
  }

  static ICCKD_DEVICE Chunk filled(float value) {
    float x[V];
    for (int i = 0; i < V; ++i) x[i] = value;
    return of(x);
  }

  ICCKD_DEVICE void read(float (&x)[V]) const {
    for (int i = 0; i < V; ++i) {
      if constexpr (sizeof(E) == sizeof(float))
        x[i] = bits_float(word[i]);
      else
        x[i] = i % 2 == 0 ? low_half<E>(word[i / 2]) : high_half<E>(word[i / 2]);
    }
  }
};

// ---- rows -----------------------------------------------------------------------------------------------------------------

// Row i, class c: element i · row_stride + c · class_stride.
struct Matrix {
  const void* data;
  int64_t row_stride, class_stride;
  int unit;  // bytes by which every row may be copied; 0: its classes are no neighbours in memory
};

// The largest power of two that divides x.
ICCKD_HOST_DEVICE int largest_power_in(uint64_t x) { return static_cast<int>(x & -x); }

// Describes (count, classes) elements of `size` bytes.
inline Matrix describe(const void* data, int64_t count, int64_t classes, int64_t row_stride, int64_t class_stride, int size) {
  if (count == 1) row_stride = 0;
  if (classes == 1) class_stride = 1;
  const uint64_t bytes = reinterpret_cast<uint64_t>(data) | static_cast<uint64_t>((row_stride | classes) * size) | 16;
  return {data, row_stride, class_stride, class_stride == 1 ? largest_power_in(bytes) : 0};
}

// The members `rank`, … of `size` copy a row together.
template <class Unit>
ICCKD_DEVICE void copy(void* to, const void* from, int bytes, int rank, int size) {
  constexpr int depth = 4;  // loads on their way at a time
  const int count = bytes / static_cast<int>(sizeof(Unit));
  for (int begin = rank; begin < count; begin += depth * size) {
    Unit unit[depth];
    for (int i = 0; i < depth; ++i)
      if (begin + i * size < count) unit[i] = static_cast<const Unit*>(from)[begin + i * size];
    for (int i = 0; i < depth; ++i)
      if (begin + i * size < count) static_cast<Unit*>(to)[begin + i * size] = unit[i];
  }
}

ICCKD_DEVICE void copy(void* to, const void* from, int bytes, int unit, int rank, int size) {
  if (unit >= 8) {
    copy<uint64_t>(to, from, bytes, rank, size);
  } else if (unit == 4) {
    copy<uint32_t>(to, from, bytes, rank, size);
  } else {
    copy<uint16_t>(to, from, bytes, rank, size);
  }
}

// A team's row of logits. Behind the last class, chunks are filled up with −∞.
template <class E, int V>
class Row {
 public:
  using Part = Chunk<E, V>;

  // `aligned`: whether the chunks of every row of the launch are. `slots`: room for `plan.slots` chunks.
  ICCKD_DEVICE Row(const Matrix& matrix, int64_t i, const RowPlan& plan, bool aligned, unsigned char* slots)
      : logits_(static_cast<const E*>(matrix.data) + i * matrix.row_stride),
        class_stride_(matrix.class_stride),
        unit_(matrix.unit),
        classes_(plan.classes),
        chunks_(plan.chunks),
        slot_count_(plan.slots),
        aligned_(aligned),
        slot_(reinterpret_cast<Part*>(slots)) {}

  ICCKD_DEVICE float operator[](int64_t c) const { return to_float(logits_[c * class_stride_]); }

  // Copies a row that is not aligned into its slots. Members may read them after a barrier.
  ICCKD_DEVICE void stage(int rank, int size) const {
    if (aligned_) return;
    E* const held = reinterpret_cast<E*>(slot_);
    const int room = slot_count_ * V, count = classes_ < room ? classes_ : room;
    if (unit_ > 0) {
      copy(held, logits_, count * static_cast<int>(sizeof(E)), unit_, rank, size);
    } else {
      for (int c = rank; c < count; c += size) held[c] = logits_[c * class_stride_];
    }
    const int filled = (count + V - 1) / V * V;
    for (int c = count + rank; c < filled; c += size) held[c] = from_float<E>(-infinity);
  }

  // Chunk j, which its owner has not seen yet.
  ICCKD_DEVICE Part first(int j) const { return aligned_ ? load(j, j < slot_count_) : again(j); }

  // Chunks rank, rank + size, … of a row that stays in registers, −∞ behind its last one.
  ICCKD_DEVICE void hold(int rank, int size, Part (&part)[held_chunks]) const {
    for (int k = 0; k < held_chunks; ++k) part[k] = Part::filled(-infinity);
    if (aligned_) {
      for (int k = 0; k < held_chunks; ++k)
        if (rank + k * size < chunks_) part[k] = load(rank + k * size, true);
    } else {
      for (int k = 0; k < held_chunks; ++k)
        if (rank + k * size < chunks_) part[k] = again(rank + k * size);
    }
  }

  // Keeps what `first` returned.
  ICCKD_DEVICE void keep(int j, const Part& part) const {
    if (aligned_ && j < slot_count_) slot_[j] = part;
  }

  ICCKD_DEVICE Part again(int j) const {
    if (j < slot_count_) return slot_[j];
    return aligned_ ? load(j, false) : gather(j);
  }

  // Writes chunk j of the row's gradient, contiguous from `gradient` on; that of a row that is not aligned goes into its slots.
  ICCKD_DEVICE void write(E* gradient, int j, const float (&x)[V]) const {
    const Part part = Part::of(x);
    if (aligned_) {
      store(gradient + static_cast<int64_t>(j) * V, part);
    } else if (j < slot_count_) {
      slot_[j] = part;
    } else {
      for (int i = 0; i < V; ++i)
        if (j * V + i < classes_) gradient[j * V + i] = from_float<E>(x[i]);
    }
  }

  // Writes the gradient's chunks rank, rank + size, …
  ICCKD_DEVICE void write(E* gradient, int rank, int size, const float (&x)[held_chunks][V]) const {
    if (aligned_) {
      for (int k = 0; k < held_chunks; ++k)
        if (rank + k * size < chunks_) store(gradient + static_cast<int64_t>(rank + k * size) * V, Part::of(x[k]));
    } else {
      for (int k = 0; k < held_chunks; ++k)
        if (rank + k * size < chunks_) write(gradient, rank + k * size, x[k]);
    }
  }

  // Copies a gradient that lies in the slots, after a barrier, to where it belongs.
  ICCKD_DEVICE void unstage(E* gradient, int rank, int size) const {
    if (aligned_) return;
    const int room = slot_count_ * V, count = classes_ < room ? classes_ : room;
    // The gradient begins at an aligned address, and rows follow each other.
    copy(gradient, slot_, count * static_cast<int>(sizeof(E)), largest_power_in(classes_ * sizeof(E)), rank, size);
  }

 private:
  ICCKD_DEVICE Part load(int j, bool once) const {
    const E* const from = logits_ + static_cast<int64_t>(j) * V;
    if constexpr (sizeof(Part) == sizeof(Vector16)) {
      const Vector16 v = once ? load16_streaming(from) : load16(from);
      return {{v.word[0], v.word[1], v.word[2], v.word[3]}};
    } else {
      return *reinterpret_cast<const Part*>(from);
    }
  }

  static ICCKD_DEVICE void store(E* to, const Part& part) {
    if constexpr (sizeof(Part) == sizeof(Vector16)) {
      store16_streaming(to, {part.word[0], part.word[1], part.word[2], part.word[3]});
    } else {
      *reinterpret_cast<Part*>(to) = part;
    }
  }

  // A chunk that is neither aligned nor in shared memory.
  ICCKD_DEVICE Part gather(int j) const {
    float x[V];
    const E* next = logits_ + j * V * class_stride_;
    for (int i = 0; i < V; ++i, next += class_stride_) x[i] = j * V + i < classes_ ? to_float(*next) : -infinity;
    return Part::of(x);
  }

  const E* logits_;
  int64_t class_stride_;
  int unit_, classes_, chunks_, slot_count_;
  bool aligned_;
  Part* slot_;
};

// Calls use(j, take(j)) for j = first, first + step, … below `end`, with `depth` of what is taken on its way at a time.
template <int depth, class Take, class Use>
ICCKD_DEVICE void in_flight(int first, int end, int step, const Take& take, const Use& use) {
  for (int begin = first; begin < end; begin += depth * step) {
    decltype(take(begin)) taken[depth];
    for (int i = 0; i < depth; ++i)
      if (begin + i * step < end) taken[i] = take(begin + i * step);
    for (int i = 0; i < depth; ++i)
      if (begin + i * step < end) use(begin + i * step, taken[i]);
  }
}

// Calls use(j) for the same j, the last one first.
template <class Use>
ICCKD_DEVICE void in_reverse(int first, int end, int step, const Use& use) {
  if (first >= end) return;
#pragma unroll 1
  for (int j = first + (end - 1 - first) / step * step; j >= first; j -= step) use(j);
}

// Σ x, in the order of a tree.
template <int V>
ICCKD_DEVICE float sum_of(const float (&x)[V]) {
  float sum[V];
  for (int i = 0; i < V; ++i) sum[i] = x[i];
  for (int half = V / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) sum[i] += sum[i + half];
  return sum[0];
}

template <int V>
ICCKD_DEVICE float largest_of(const float (&x)[V]) {
  float largest = x[0];
  for (int i = 1; i < V; ++i) largest = max_or_nan(largest, x[i]);
  return largest;
}

constexpr float log2_e = 1.44269504088896340736f, log_2 = 0.69314718055994530942f;

}  // namespace icckd::cuda
