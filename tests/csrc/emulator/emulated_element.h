// csrc/cuda/element.h for the emulator.
#pragma once

#include <torch/headeronly/util/Half.h>

namespace icckd::cuda {

inline float to_float(float x) { return x; }
inline float to_float(bfloat16 x) { return bits_float(static_cast<uint32_t>(x.bits) << 16); }
inline float to_float(float16 x) { return c10::detail::fp16_ieee_to_fp32_value(x.bits); }

template <class E>
E from_float(float x);

template <>
inline float from_float<float>(float x) {
  return x;
}

template <>
inline bfloat16 from_float<bfloat16>(float x) {
  const uint32_t bits = float_bits(x);
  if (x != x) return {0x7fff};
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

template <>
inline float16 from_float<float16>(float x) {
  if (x != x) return {0x7fff};
  return {c10::detail::fp16_ieee_from_fp32_value(x)};
}

template <class E>
uint32_t pack(float low, float high) {
  return from_float<E>(low).bits | static_cast<uint32_t>(from_float<E>(high).bits) << 16;
}

}  // namespace icckd::cuda
