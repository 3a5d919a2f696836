// Number formats in a kernel: kernels compute in float.
#pragma once

#include "cpu/element.h"
#include "cuda/device.h"

#if defined(ICCKD_EMULATED)
#include "emulated_element.h"
#else

namespace icckd::cuda {

ICCKD_DEVICE float to_float(float x) { return x; }
ICCKD_DEVICE float to_float(bfloat16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
ICCKD_DEVICE float to_float(float16 x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}

// Rounded to nearest, ties to even.
template <class E>
ICCKD_DEVICE E from_float(float x) {
  if constexpr (sizeof(E) == sizeof(float)) {
    return x;
  } else {
    E y;
    if constexpr (MatrixElement<E>::is_bfloat16)
      asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    else
      asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
  }
}

// Two 16-bit elements in a register, `low` in its lower half.
template <class E>
ICCKD_DEVICE uint32_t pack(float low, float high) {
  uint32_t bits;
  if constexpr (MatrixElement<E>::is_bfloat16)
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}

}  // namespace icckd::cuda

#endif

namespace icckd::cuda {

// Elements in 16 bytes.
template <class E>
inline constexpr int per_vector = 16 / static_cast<int>(sizeof(E));

template <class E>
ICCKD_DEVICE float low_half(uint32_t bits) {
  return to_float(E{static_cast<uint16_t>(bits)});
}

template <class E>
ICCKD_DEVICE float high_half(uint32_t bits) {
  return to_float(E{static_cast<uint16_t>(bits >> 16)});
}

template <class E>
ICCKD_DEVICE void to_floats(const Vector16& v, float (&x)[per_vector<E>]) {
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(E) == sizeof(float)) {
      x[i] = bits_float(v.word[i]);
    } else {
      x[2 * i] = low_half<E>(v.word[i]);
      x[2 * i + 1] = high_half<E>(v.word[i]);
    }
  }
}

template <class E>
ICCKD_DEVICE Vector16 from_floats(const float (&x)[per_vector<E>]) {
  Vector16 v;
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(E) == sizeof(float))
      v.word[i] = float_bits(x[i]);
    else
      v.word[i] = pack<E>(x[2 * i], x[2 * i + 1]);
  }
  return v;
}

}  // namespace icckd::cuda
