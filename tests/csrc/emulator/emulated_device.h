// csrc/cuda/device.h for the emulator: the same names, on the CPU, with checks. Each function is that of the PTX ISA, written from its
// documentation and not from the kernels' idea of it.
//
// ICCKD_EMULATED is the architecture: 80, or 90, with wgmma.
#pragma once

#include <bit>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include <torch/headeronly/util/Half.h>

#include "emulator.h"

#define ICCKD_DEVICE inline
#define ICCKD_HAS_WGMMA (ICCKD_EMULATED == 90)
#define ICCKD_ASSERT(condition) \
  ((condition) ? static_cast<void>(0) : emulator::fail("ICCKD_ASSERT(" #condition ") failed", emulator::Place::current()))

namespace icckd::cuda {

using emulator::Place;

// ---- threads and blocks -----------------------------------------------------------------------------------------------

inline int thread() { return emulator::position().thread; }
inline int threads() { return emulator::position().threads; }
inline int lane() { return thread() % warp_size; }
inline int warp() { return thread() / warp_size; }
inline int block() { return emulator::position().block; }
inline int block_y() { return emulator::position().block_y; }
inline int blocks() { return emulator::position().blocks; }

inline unsigned char* shared_memory() { return emulator::shared_memory(); }

// Where dynamic shared memory begins among a block's shared addresses; any multiple of 1024.
constexpr uint32_t shared_window = 1024;

inline uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(static_cast<const unsigned char*>(shared) - shared_memory()) + shared_window;
}

inline void block_barrier(Place place = Place::current()) { emulator::block_barrier(place); }
inline void group_barrier(int id, int count, Place place = Place::current()) { emulator::group_barrier(id, count, place); }

inline void warp_barrier(Place place = Place::current()) {
  emulator::warp_collective("warp_barrier", place, nullptr, [](void* const (&)[32]) {});
}

// ---- within a warp ----------------------------------------------------------------------------------------------------

template <class T>
struct Exchange {
  T value, result;
  int source;  // lane
};

// Each lane receives the value of the lane that it names.
template <class T>
T exchange(const char* what, T value, int source, Place place) {
  if (source < 0 || source >= warp_size) emulator::fail("shuffle from lane " + std::to_string(source), place);
  Exchange<T> mine{value, value, source};
  emulator::warp_collective(what, place, &mine, [](void* const (&lanes)[32]) {
    for (void* lane : lanes) {
      auto* to = static_cast<Exchange<T>*>(lane);
      to->result = static_cast<Exchange<T>*>(lanes[to->source])->value;
    }
  });
  return mine.result;
}

template <class T>
T shuffle(T value, int from_lane, Place place = Place::current()) {
  return exchange("shuffle", value, from_lane, place);
}

template <class T>
T shuffle_xor(T value, int mask, Place place = Place::current()) {
  return exchange("shuffle_xor", value, lane() ^ mask, place);
}

template <class T>
T shuffle_up(T value, int delta, Place place = Place::current()) {
  return exchange("shuffle_up", value, lane() < delta ? lane() : lane() - delta, place);
}

struct Vote {
  int value;
  unsigned result;
};

inline unsigned ballot(bool value, Place place = Place::current()) {
  Vote mine{value, 0};
  emulator::warp_collective("ballot", place, &mine, [](void* const (&lanes)[32]) {
    unsigned result = 0;
    for (int i = 0; i < 32; ++i) result |= static_cast<unsigned>(static_cast<Vote*>(lanes[i])->value) << i;
    for (void* lane : lanes) static_cast<Vote*>(lane)->result = result;
  });
  return mine.result;
}

inline unsigned match_any(int value, Place place = Place::current()) {
  Vote mine{value, 0};
  emulator::warp_collective("match_any", place, &mine, [](void* const (&lanes)[32]) {
    for (int i = 0; i < 32; ++i)
      for (int j = 0; j < 32; ++j)
        if (static_cast<Vote*>(lanes[i])->value == static_cast<Vote*>(lanes[j])->value) static_cast<Vote*>(lanes[i])->result |= 1u << j;
  });
  return mine.result;
}

inline int count_bits(unsigned bits) { return std::popcount(bits); }
inline int lowest_bit(unsigned bits) { return bits ? std::countr_zero(bits) : -1; }
inline int highest_bit(unsigned bits) { return 31 - std::countl_zero(bits); }

// ---- arithmetic -------------------------------------------------------------------------------------------------------

inline float without_subnormals(float x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x; }
inline float exp2_fast(float x) { return without_subnormals(std::exp2(without_subnormals(x))); }
inline float log2_fast(float x) { return without_subnormals(std::log2(without_subnormals(x))); }
inline float rsqrt_fast(float x) { return static_cast<float>(1 / std::sqrt(static_cast<double>(without_subnormals(x)))); }
inline float reciprocal_fast(float x) { return without_subnormals(1 / without_subnormals(x)); }
inline float max_or_nan(float x, float y) { return x != x || x > y ? x : y; }

inline uint32_t float_bits(float x) { return std::bit_cast<uint32_t>(x); }
inline float bits_float(uint32_t bits) { return std::bit_cast<float>(bits); }

constexpr uint32_t tf32_bits = 0xffffe000;

inline uint32_t to_tf32(float x) { return std::isfinite(x) ? (float_bits(x) + 0x1000) & tf32_bits : float_bits(x); }

inline int atomic_add(int* p, int value, Place place = Place::current()) {
  emulator::check_either(p, sizeof(int), sizeof(int), place);
  const int old = *p;
  *p += value;
  return old;
}

// ---- memory -----------------------------------------------------------------------------------------------------------

inline Vector16 load16(const void* p, Place place = Place::current()) {
  emulator::check_either(p, 16, 16, place);
  Vector16 v;
  std::memcpy(&v, p, 16);
  return v;
}

inline Vector16 load16_streaming(const void* global, Place place = Place::current()) {
  emulator::check_global(global, 16, place);
  return load16(global, place);
}

inline Vector16 load16_last(const void* global, Place place = Place::current()) { return load16_streaming(global, place); }

inline void prefetch_row(const void* global, int bytes, Place place = Place::current()) {
  emulator::check_global(global, 16, place);
  if (bytes <= 0 || bytes % 16) emulator::fail("prefetch of " + std::to_string(bytes) + " bytes", place);
}

inline void store16(void* p, Vector16 v, Place place = Place::current()) {
  emulator::check_either(p, 16, 16, place);
  std::memcpy(p, &v, 16);
}

inline void store16_streaming(void* global, Vector16 v, Place place = Place::current()) {
  emulator::check_global(global, 16, place);
  store16(global, v, place);
}

inline void copy_async16_last(void* shared, const void* global, bool valid, Place place = Place::current()) {
  emulator::check_shared(shared, 16, 16, place);
  emulator::check_global(global, 16, place);
  emulator::enqueue(emulator::Queue::copies, thread(), [=] { valid ? std::memcpy(shared, global, 16) : std::memset(shared, 0, 16); });
}

inline void commit_copies() { emulator::commit(emulator::Queue::copies, thread()); }

template <int N>
void wait_copies() {
  emulator::wait(emulator::Queue::copies, thread(), N);
}

// ---- matrix unit ------------------------------------------------------------------------------------------------------

template <class E>
float element(uint16_t bits);

template <>
inline float element<bfloat16>(uint16_t bits) {
  return bits_float(static_cast<uint32_t>(bits) << 16);
}

template <>
inline float element<float16>(uint16_t bits) {
  return c10::detail::fp16_ieee_to_fp32_value(bits);
}

struct MatrixLoad {
  const unsigned char* row;
  uint32_t* registers;
};

// The 16 bits at row and column of matrix `m`, whose rows lanes 8m … 8m + 7 point at.
inline uint32_t matrix_bits(void* const (&lanes)[32], int m, int row, int column) {
  uint16_t bits;
  std::memcpy(&bits, static_cast<MatrixLoad*>(lanes[8 * m + row])->row + 2 * column, 2);
  return bits;
}

inline void load_matrix4(uint32_t (&r)[4], const void* row_of_this_lane, Place place = Place::current()) {
  emulator::check_shared(row_of_this_lane, 16, 16, place);
  MatrixLoad mine{static_cast<const unsigned char*>(row_of_this_lane), r};
  emulator::warp_collective("load_matrix4", place, &mine, [](void* const (&lanes)[32]) {
    for (int i = 0; i < 32; ++i)
      for (int m = 0; m < 4; ++m) {
        const int row = i / 4, column = i % 4 * 2;
        static_cast<MatrixLoad*>(lanes[i])->registers[m] =
            matrix_bits(lanes, m, row, column) | matrix_bits(lanes, m, row, column + 1) << 16;
      }
  });
}

inline void load_matrix4_transposed(uint32_t (&r)[4], const void* row_of_this_lane, Place place = Place::current()) {
  emulator::check_shared(row_of_this_lane, 16, 16, place);
  MatrixLoad mine{static_cast<const unsigned char*>(row_of_this_lane), r};
  emulator::warp_collective("load_matrix4_transposed", place, &mine, [](void* const (&lanes)[32]) {
    for (int i = 0; i < 32; ++i)
      for (int m = 0; m < 4; ++m) {
        const int column = i / 4, row = i % 4 * 2;
        static_cast<MatrixLoad*>(lanes[i])->registers[m] =
            matrix_bits(lanes, m, row, column) | matrix_bits(lanes, m, row + 1, column) << 16;
      }
  });
}

struct MatrixProduct {
  float* d;
  const uint32_t *a, *b;
};

// The fragments of a warp, by the PTX ISA's tables for mma.m16n8k16 and .m16n8k8: lane l is in group l / 4, and number l % 4 in it.
template <class E>
float a_16x16(const uint32_t* const (&a)[32], int row, int column) {
  const int lane = row % 8 * 4 + column % 8 / 2, reg = row / 8 + column / 8 * 2;
  return element<E>(static_cast<uint16_t>(a[lane][reg] >> column % 2 * 16));
}

template <class E>
float b_16x8(void* const (&lanes)[32], int row, int column) {
  const int lane = column * 4 + row % 8 / 2, reg = row / 8;
  return element<E>(static_cast<uint16_t>(static_cast<MatrixProduct*>(lanes[lane])->b[reg] >> row % 2 * 16));
}

inline float& d_16x8(void* const (&lanes)[32], int row, int column) {
  const int lane = row % 8 * 4 + column / 2;
  return static_cast<MatrixProduct*>(lanes[lane])->d[row / 8 * 2 + column % 2];
}

inline float a_16x8(void* const (&lanes)[32], int row, int column) {
  return bits_float(static_cast<MatrixProduct*>(lanes[row % 8 * 4 + column % 4])->a[row / 8 + column / 4 * 2] & tf32_bits);
}

inline float b_8x8(void* const (&lanes)[32], int row, int column) {
  return bits_float(static_cast<MatrixProduct*>(lanes[column * 4 + row % 4])->b[row / 4] & tf32_bits);
}

// The unit's own rounding of sums is not documented; here they are exact to float64 and rounded once.
template <class E>
void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Place place = Place::current()) {
  MatrixProduct mine{d, a, b};
  emulator::warp_collective("mma_16x8x16", place, &mine, [](void* const (&lanes)[32]) {
    const uint32_t* of_a[32];
    for (int i = 0; i < 32; ++i) of_a[i] = static_cast<MatrixProduct*>(lanes[i])->a;
    float wide_a[16][16], wide_b[16][8];
    for (int i = 0; i < 16; ++i)
      for (int k = 0; k < 16; ++k) wide_a[i][k] = a_16x16<E>(of_a, i, k);
    for (int k = 0; k < 16; ++k)
      for (int j = 0; j < 8; ++j) wide_b[k][j] = b_16x8<E>(lanes, k, j);
    for (int i = 0; i < 16; ++i)
      for (int j = 0; j < 8; ++j) {
        double sum = d_16x8(lanes, i, j);
        for (int k = 0; k < 16; ++k) sum += static_cast<double>(wide_a[i][k]) * wide_b[k][j];
        d_16x8(lanes, i, j) = static_cast<float>(sum);
      }
  });
}

inline void mma_16x8x8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Place place = Place::current()) {
  MatrixProduct mine{d, a, b};
  emulator::warp_collective("mma_16x8x8_tf32", place, &mine, [](void* const (&lanes)[32]) {
    for (int i = 0; i < 16; ++i)
      for (int j = 0; j < 8; ++j) {
        double sum = d_16x8(lanes, i, j);
        for (int k = 0; k < 8; ++k) sum += static_cast<double>(a_16x8(lanes, i, k)) * b_8x8(lanes, k, j);
        d_16x8(lanes, i, j) = static_cast<float>(sum);
      }
  });
}

// ---- wgmma ------------------------------------------------------------------------------------------------------------

#if ICCKD_HAS_WGMMA

// Plain stores are not seen by the emulator: that this call is there cannot be checked.
inline void fence_shared_async() {}

inline void wgmma_fence(Place place = Place::current()) {
  emulator::wgmma_fenced() = true;
  emulator::warp_collective("wgmma_fence", place, nullptr, [](void* const (&)[32]) {});
}

inline void wgmma_commit(Place place = Place::current()) {
  emulator::commit(emulator::Queue::products, thread());
  emulator::warp_collective("wgmma_commit", place, nullptr, [](void* const (&)[32]) {});
}

template <int N>
void wgmma_wait(Place place = Place::current()) {
  emulator::wgmma_fenced() = false;
  emulator::warp_collective("wgmma_wait", place, nullptr, [](void* const (&)[32]) {
    for (int i = 0; i < 32; ++i) emulator::wait(emulator::Queue::products, warp() * 32 + i, N);
  });
}

inline uint64_t wgmma_descriptor(const void* shared, int leading_bytes, int stride_bytes, Place place = Place::current()) {
  emulator::check_shared(shared, 16, 16, place);
  return matrix_descriptor(shared_address(shared), leading_bytes, stride_bytes);
}

// An operand in shared memory, from the bits of its descriptor ("Matrix Descriptor Format" and "Strides" of the PTX ISA).
class SharedOperand {
 public:
  SharedOperand(uint64_t descriptor, bool k_major, Place place) : k_major_(k_major), place_(place) {
    const auto field = [&](int bit) { return static_cast<uint32_t>(descriptor >> bit & 0x3fff) << 4; };
    start_ = field(0);
    leading_ = field(16);
    stride_ = field(32);
    if (descriptor >> 62 != 1) emulator::fail("descriptor of another swizzle than 128 bytes", place);
    if (descriptor >> 49 & 7) emulator::fail("descriptor with a base offset", place);
    // Only the steps along K-major columns begin elsewhere than an atom of 1024 bytes, and they stay in its first row.
    if (start_ % 1024 >= (k_major ? 128u : 1u)) emulator::fail("descriptor of a tile that begins inside of an atom", place);
  }

  // Of M or N, and K.
  uint16_t bits(uint32_t outer, uint32_t k) const {
    const uint32_t linear = k_major_ ? start_ + outer / 8 * stride_ + outer % 8 * 128 + 2 * k
                                     : start_ + outer / 64 * leading_ + outer % 64 * 2 + k / 8 * stride_ + k % 8 * 128;
    const uint32_t address = linear ^ (linear / 128 % 8) << 4;
    const unsigned char* p = shared_memory() + (static_cast<int64_t>(address) - shared_window);
    emulator::check_shared(p, 2, 2, place_);
    uint16_t bits;
    std::memcpy(&bits, p, 2);
    return bits;
  }

 private:
  uint32_t start_, leading_, stride_;
  bool k_major_;
  Place place_;
};

struct WarpgroupProduct {
  float* d;
  uint64_t a;                   // a descriptor, or
  const uint32_t* a_registers;  // a fragment
  uint64_t b;
  Place place;
};

// What one lane accumulates, read from shared memory when it is called.
template <class E, int N, bool transposed_b, class A>
void multiply_lane(float* d, int lane, const A& a, uint64_t b, Place place) {
  const SharedOperand operand(b, !transposed_b, place);
  float rows[2][16];
  for (int half = 0; half < 2; ++half)
    for (int k = 0; k < 16; ++k) rows[half][k] = a(lane / 4 + 8 * half, k);
  for (int column = 0; column < N; ++column) {
    if (column % 8 / 2 != lane % 4) continue;
    float of_b[16];
    for (int k = 0; k < 16; ++k) of_b[k] = element<E>(operand.bits(column, k));
    for (int half = 0; half < 2; ++half) {
      float& to = d[column / 8 * 4 + half * 2 + column % 2];
      double sum = to;
      for (int k = 0; k < 16; ++k) sum += static_cast<double>(rows[half][k]) * of_b[k];
      to = static_cast<float>(sum);
    }
  }
}

template <class E, int N, bool transposed_b>
void multiply_warp(void* const (&lanes)[32]) {
  const auto& first = *static_cast<WarpgroupProduct*>(lanes[0]);
  emulator::check_warpgroup(first.a, first.b, first.place);
  auto registers = std::make_shared<std::vector<float>>();
  if (first.a_registers) {
    const uint32_t* of_a[32];
    for (int i = 0; i < 32; ++i) of_a[i] = static_cast<WarpgroupProduct*>(lanes[i])->a_registers;
    for (int row = 0; row < 16; ++row)
      for (int k = 0; k < 16; ++k) registers->push_back(a_16x16<E>(of_a, row, k));
  }
  const int first_row = warp() % 4 * 16;
  for (int i = 0; i < 32; ++i) {
    const WarpgroupProduct lane = *static_cast<WarpgroupProduct*>(lanes[i]);
    if (lane.a != first.a || lane.b != first.b) emulator::fail("lanes with different descriptors", lane.place);
    emulator::enqueue(emulator::Queue::products, warp() * 32 + i, [=] {
      if (!registers->empty())
        return multiply_lane<E, N, transposed_b>(lane.d, i, [&](int row, int k) { return (*registers)[row * 16 + k]; }, lane.b, lane.place);
      const SharedOperand operand(lane.a, true, lane.place);
      const auto a = [&](int row, int k) { return element<E>(operand.bits(first_row + row, k)); };
      multiply_lane<E, N, transposed_b>(lane.d, i, a, lane.b, lane.place);
    });
  }
}

template <class E, int N, bool transposed_b = false>
void wgmma_64xNx16(float (&d)[N / 8][4], uint64_t a, uint64_t b, Place place = Place::current()) {
  if (!emulator::wgmma_fenced()) emulator::fail("wgmma without wgmma_fence", place);
  WarpgroupProduct mine{&d[0][0], a, nullptr, b, place};
  emulator::warp_collective("wgmma_64xNx16", place, &mine, multiply_warp<E, N, transposed_b>);
}

template <class E, int N, bool transposed_b = false>
void wgmma_64xNx16(float (&d)[N / 8][4], const uint32_t (&a)[4], uint64_t b, Place place = Place::current()) {
  if (!emulator::wgmma_fenced()) emulator::fail("wgmma without wgmma_fence", place);
  WarpgroupProduct mine{&d[0][0], 0, a, b, place};
  emulator::warp_collective("wgmma_64xNx16", place, &mine, multiply_warp<E, N, transposed_b>);
}

#endif

}  // namespace icckd::cuda
