// wgmma: matrix products of four warps, asynchronous, with operands in shared memory. sm_90a only; included by device.h.
//
//   wgmma_fence();  wgmma_64xNx16<E, N>(d, a, b); …  wgmma_commit();  wgmma_wait<0>();
//
// All 128 threads of a warpgroup call them at the same place; d, and a in registers, are not touched between the fence and the wait.
#pragma once

#include <cstdint>

namespace icckd::cuda {

ICCKD_DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
ICCKD_DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Until all but the newest N committed groups are done.
template <int N>
ICCKD_DEVICE void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

// A tile at `shared`, in the 128-byte swizzle; see matrix_descriptor.
ICCKD_DEVICE uint64_t wgmma_descriptor(const void* shared, int leading_bytes, int stride_bytes) {
  return matrix_descriptor(shared_address(shared), leading_bytes, stride_bytes);
}

// The compiler must name every register of d, so that there is one function per width. The constraints of d, then the numbers of the
// operands that follow:
#define ICCKD_D4(j) "+f"(d[j][0]), "+f"(d[j][1]), "+f"(d[j][2]), "+f"(d[j][3])
#define ICCKD_D8(j) ICCKD_D4(j), ICCKD_D4(j + 1)
#define ICCKD_D32 ICCKD_D8(0), ICCKD_D8(2), ICCKD_D8(4), ICCKD_D8(6)
#define ICCKD_NAMES_8 "{%0, %1, %2, %3, %4, %5, %6, %7}"
#define ICCKD_NAMES_32                                                                                 \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, " \
  "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31}"

#define ICCKD_WGMMA_SHARED(n, type, names, registers, a_name, b_name, trans_name)                                             \
  asm volatile("wgmma.mma_async.sync.aligned.m64n" n "k16.f32." type "." type " " names ", " a_name ", " b_name ", 1, 1, 1, 0, " \
               trans_name ";"                                                                                                 \
               : registers                                                                                                    \
               : "l"(a), "l"(b), "n"(transposed_b)                                                                            \
               : "memory")
#define ICCKD_WGMMA_REGISTERS(n, type, names, registers, a_names, b_name, trans_name)                                              \
  asm volatile("wgmma.mma_async.sync.aligned.m64n" n "k16.f32." type "." type " " names ", " a_names ", " b_name ", 1, 1, 1, " trans_name \
               ";"                                                                                                                 \
               : registers                                                                                                         \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(transposed_b)                                             \
               : "memory")

// d += a · b: a 64 × 16, b 16 × N, d[j] the fragment of columns 8j … 8j + 7 as of mma_16x8x16, 16 rows for each warp. a is K-major in
// shared memory; b too, or N-major where `transposed_b`.
template <class E, int N, bool transposed_b = false>
ICCKD_DEVICE void wgmma_64xNx16(float (&d)[N / 8][4], uint64_t a, uint64_t b) {
  static_assert(N == 16 || N == 64);
  if constexpr (N == 16 && MatrixElement<E>::is_bfloat16)
    ICCKD_WGMMA_SHARED("16", "bf16", ICCKD_NAMES_8, ICCKD_D8(0), "%8", "%9", "%10");
  else if constexpr (N == 16)
    ICCKD_WGMMA_SHARED("16", "f16", ICCKD_NAMES_8, ICCKD_D8(0), "%8", "%9", "%10");
  else if constexpr (MatrixElement<E>::is_bfloat16)
    ICCKD_WGMMA_SHARED("64", "bf16", ICCKD_NAMES_32, ICCKD_D32, "%32", "%33", "%34");
  else
    ICCKD_WGMMA_SHARED("64", "f16", ICCKD_NAMES_32, ICCKD_D32, "%32", "%33", "%34");
}

// The same with a in registers: each warp's 16 rows as of mma_16x8x16.
template <class E, int N, bool transposed_b = false>
ICCKD_DEVICE void wgmma_64xNx16(float (&d)[N / 8][4], const uint32_t (&a)[4], uint64_t b) {
  static_assert(N == 16 || N == 64);
  if constexpr (N == 16 && MatrixElement<E>::is_bfloat16)
    ICCKD_WGMMA_REGISTERS("16", "bf16", ICCKD_NAMES_8, ICCKD_D8(0), "{%8, %9, %10, %11}", "%12", "%13");
  else if constexpr (N == 16)
    ICCKD_WGMMA_REGISTERS("16", "f16", ICCKD_NAMES_8, ICCKD_D8(0), "{%8, %9, %10, %11}", "%12", "%13");
  else if constexpr (MatrixElement<E>::is_bfloat16)
    ICCKD_WGMMA_REGISTERS("64", "bf16", ICCKD_NAMES_32, ICCKD_D32, "{%32, %33, %34, %35}", "%36", "%37");
  else
    ICCKD_WGMMA_REGISTERS("64", "f16", ICCKD_NAMES_32, ICCKD_D32, "{%32, %33, %34, %35}", "%36", "%37");
}

#undef ICCKD_D4
#undef ICCKD_D8
#undef ICCKD_D32
#undef ICCKD_NAMES_8
#undef ICCKD_NAMES_32
#undef ICCKD_WGMMA_SHARED
#undef ICCKD_WGMMA_REGISTERS

}  // namespace icckd::cuda
