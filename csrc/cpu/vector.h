// One SIMD register of floats, in GCC/Clang vector extensions: `Vec` has the usual arithmetic and comparisons, element by element.
//
// Only for *_kernel.cpp, which are compiled once per instruction set: everything here is in the namespace of that set.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__SSE2__)
#include <immintrin.h>
#endif
#if !defined(__F16C__) && !defined(__AVX512F__)
#include <torch/headeronly/util/Half.h>
#endif

#include "cpu/element.h"

namespace icckd::ICCKD_ISA {

#if defined(__AVX512F__)
constexpr int width = 16;
#elif defined(__AVX2__)
constexpr int width = 8;
#else
constexpr int width = 4;
#endif

typedef float Vec __attribute__((vector_size(4 * width)));
typedef int32_t IntVec __attribute__((vector_size(4 * width)));
typedef uint16_t ShortVec __attribute__((vector_size(2 * width)));

static inline Vec splat(float x) {
  return x - Vec{};  // not 0 + x, which is no copy for −0
}

static inline Vec max(Vec a, Vec b) {
  return a > b ? a : b;
}

// ---- loads and stores, from any address -------------------------------------------------------------------------------

static inline Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

static inline void store(float* p, Vec v) {
  std::memcpy(p, &v, sizeof v);
}

static inline Vec load(const bfloat16* p) {
  ShortVec bits;
  std::memcpy(&bits, p, sizeof bits);
  return (Vec)(__builtin_convertvector(bits, IntVec) << 16);
}

static inline Vec load(const float16* p) {
#if defined(__AVX512F__)
  return _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__F16C__)
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  Vec v;
  for (int i = 0; i < width; ++i) v[i] = c10::detail::fp16_ieee_to_fp32_value(p[i].bits);
  return v;
#endif
}

// v in the format that the pointer is for.
static inline Vec converted(Vec v, const float*) {
  return v;
}

static inline ShortVec converted(Vec v, const bfloat16*) {
  const IntVec bits = (IntVec)v;
  const IntVec rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // to nearest, ties to even
  const IntVec quiet_nan = (bits >> 16) | 0x40;
  return __builtin_convertvector(v == v ? rounded : quiet_nan, ShortVec);
}

static inline ShortVec converted(Vec v, const float16*) {
#if defined(__AVX512F__)
  return (ShortVec)_mm512_maskz_cvtps_ph(0xffff, v, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__F16C__)
  return (ShortVec)_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
#else
  ShortVec half;
  for (int i = 0; i < width; ++i) half[i] = c10::detail::fp16_ieee_from_fp32_value(v[i]);
  return half;
#endif
}

template <class T>
static inline void store(T* p, Vec v) {
  const auto bits = converted(v, p);
  std::memcpy(p, &bits, sizeof bits);
}

// Stores to an aligned address past the caches, where the instruction set can, so that what is there need not be read first. Whole cache
// lines should be written together, and `stored_past_caches` called before other threads read them.
template <class T>
static inline void store_past_caches(T* p, Vec v) {
  const auto bits = converted(v, p);
#if defined(__AVX512F__)
  if constexpr (sizeof bits == 64) return _mm512_stream_si512(reinterpret_cast<__m512i*>(p), (__m512i)bits);
#endif
#if defined(__AVX__)
  if constexpr (sizeof bits == 32) return _mm256_stream_si256(reinterpret_cast<__m256i*>(p), (__m256i)bits);
#endif
#if defined(__SSE2__)
  if constexpr (sizeof bits == 16) return _mm_stream_si128(reinterpret_cast<__m128i*>(p), (__m128i)bits);
#endif
  std::memcpy(p, &bits, sizeof bits);
}

static inline void stored_past_caches() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// The first `count` < width elements; the others read as `fill`.
template <class T>
static inline Vec load_first(const T* p, int64_t count, float fill = 0) {
  T padded[width] = {};
  std::memcpy(padded, p, count * sizeof(T));
  Vec v = load(padded);
  for (int i = 0; i < width; ++i) v[i] = i < count ? v[i] : fill;
  return v;
}

template <class T>
static inline void store_first(T* p, int64_t count, Vec v) {
  T padded[width];
  store(padded, v);
  std::memcpy(p, padded, count * sizeof(T));
}

// ---- across the register ----------------------------------------------------------------------------------------------

// Elements of a and b: index i < width means a[i], else b[i − width].
#if defined(__clang__) || __GNUC__ >= 12
#define ICCKD_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define ICCKD_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, IntVec{__VA_ARGS__})
#endif

using Lanes = std::make_integer_sequence<int, width>;

// v with element i at place i ^ distance.
template <int distance, int... i>
static inline Vec exchanged(Vec v, std::integer_sequence<int, i...>) {
  return ICCKD_SHUFFLE(v, v, (i ^ distance)...);
}

template <int distance = width / 2>
static inline float sum(Vec v) {
  v += exchanged<distance>(v, Lanes{});
  if constexpr (distance > 1) return sum<distance / 2>(v);
  return v[0];
}

template <int distance = width / 2>
static inline float maximum(Vec v) {
  v = max(v, exchanged<distance>(v, Lanes{}));
  if constexpr (distance > 1) return maximum<distance / 2>(v);
  return v[0];
}

// a[0] b[0] a[1] b[1] … of the first (half = 0) or second (half = 1) halves of a and b.
template <int half, int... i>
static inline Vec interleaved(Vec a, Vec b, std::integer_sequence<int, i...>) {
  return ICCKD_SHUFFLE(a, b, (i / 2 + i % 2 * width + half * (width / 2))...);
}

// Transposes width × width elements: rows[i][j] becomes rows[j][i].
static inline void transpose(Vec* rows) {
  Vec other[width];
#pragma GCC unroll 16
  for (int stage = 1; stage < width; stage *= 2) {
#pragma GCC unroll 16
    for (int i = 0; i < width / 2; ++i) {
      other[2 * i] = interleaved<0>(rows[i], rows[i + width / 2], Lanes{});
      other[2 * i + 1] = interleaved<1>(rows[i], rows[i + width / 2], Lanes{});
    }
#pragma GCC unroll 16
    for (int i = 0; i < width; ++i) rows[i] = other[i];
  }
}

// ---- exponential ------------------------------------------------------------------------------------------------------

// e^x to about one unit in the last place for x ≤ 88; 0 below −87.3 (and at −∞), NaN for NaN. With x = n·ln 2 + r, |r| ≤ ln 2 / 2:
// 2^n times the Taylor polynomial of degree 7 in r, whose truncation error is below 6e-9.
static inline Vec exp(Vec x) {
  const Vec lowest = splat(-87.3f), highest = splat(88.0f);
  const IntVec vanishes = x < lowest;
  x = vanishes ? lowest : x;
  x = x > highest ? highest : x;
  const Vec shift = splat(12582912.0f);  // 1.5 · 2²³: adding it rounds to an integer and leaves that in the low bits
  const Vec shifted = x * 1.44269504f + shift;
  const Vec n = shifted - shift;
  const Vec r = (x - n * 0.693145752f) - n * 1.42860677e-6f;  // ln 2 in two parts, so that n·(its head) is exact
  Vec p = splat(1.0f / 5040);
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const Vec power = (Vec)((((IntVec)shifted - (IntVec)shift) + 127) << 23);
  return vanishes ? Vec{} : p * power;
}

}  // namespace icckd::ICCKD_ISA
