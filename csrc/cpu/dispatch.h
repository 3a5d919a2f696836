// Kernels are compiled once per instruction set (setup.py) and chosen at run time.
//
// A kernel lives in NAME_kernel.cpp, inside `namespace icckd::ICCKD_ISA`, and is declared in NAME_kernel.h by
//
//     ICCKD_DECLARE_KERNELS(void halve(const float* x, float* y, int64_t n);)
//
// which callers, compiled once and without special flags, reach by
//
//     ICCKD_DISPATCH(halve(x, y, n));
#pragma once

namespace icckd {

enum class Capability { baseline, avx2, avx512, avx512_bf16 };

// The best instruction set of this processor, or the one that the environment variable ICCKD_CPU_CAPABILITY names (baseline,
// avx2, avx512, avx512_bf16). Throws std::runtime_error where that is no instruction set of this processor.
Capability cpu_capability();

}  // namespace icckd

#if defined(__x86_64__)
#define ICCKD_DECLARE_KERNELS(...)     \
  namespace baseline { __VA_ARGS__ }   \
  namespace avx2 { __VA_ARGS__ }       \
  namespace avx512 { __VA_ARGS__ }     \
  namespace avx512_bf16 { __VA_ARGS__ }
#define ICCKD_DISPATCH(...)                                                   \
  [&] {                                                                       \
    switch (::icckd::cpu_capability()) {                                      \
      case ::icckd::Capability::avx512_bf16: return avx512_bf16::__VA_ARGS__; \
      case ::icckd::Capability::avx512: return avx512::__VA_ARGS__;           \
      case ::icckd::Capability::avx2: return avx2::__VA_ARGS__;               \
      default: return baseline::__VA_ARGS__;                                  \
    }                                                                         \
  }()
#else
#define ICCKD_DECLARE_KERNELS(...) namespace baseline { __VA_ARGS__ }
#define ICCKD_DISPATCH(...) baseline::__VA_ARGS__
#endif
