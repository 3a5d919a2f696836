// What a kernel uses of the machine. Kernels are written against these names only, so that two compilers take them: nvcc, for
// GPUs, and a C++ compiler with -DICCKD_EMULATED, for the emulator in tests/csrc/emulator, which says the same with checks.
//
//   threads and blocks     thread, lane, warp, block, block_y, blocks, threads; shared_memory: all of it, dynamic
//   within a warp          shuffle…, ballot, match_any, warp_sum, warp_max: always all 32 lanes, at the same call
//   memory                 load16, store16, copy_async16_last (cp.async) with commit_copies and wait_copies; atomic_add of integers
//   matrix unit            load_matrix4 (ldmatrix), mma_16x8x16, mma_16x8x8_tf32
//   matrix unit of sm_90a  wgmma_64xNx16 …                               where ICCKD_HAS_WGMMA is 1: sm_90a alone
//
// Instructions and the layouts of their fragments are those of the PTX ISA.
#pragma once

#include <cmath>
#include <cstdint>

#include "cpu/element.h"
#include "cuda/swizzle.h"

namespace icckd::cuda {

constexpr int warp_size = 32;
constexpr int warpgroup_size = 128;

// 16 bytes: what one thread moves best.
struct alignas(16) Vector16 {
  uint32_t word[4];
};

}  // namespace icckd::cuda

#if defined(ICCKD_EMULATED)
#include "emulated_device.h"
#else

#include <cassert>

#define ICCKD_DEVICE __device__ __forceinline__

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define ICCKD_HAS_WGMMA 1
#else
#define ICCKD_HAS_WGMMA 0
#endif

// A condition that holds in a correct kernel; looked at where ICCKD_DEBUG is 1, which stops the kernel with file and line.
#if defined(ICCKD_DEBUG) && ICCKD_DEBUG
#define ICCKD_ASSERT(condition) assert(condition)
#else
#define ICCKD_ASSERT(condition) static_cast<void>(0)
#endif

namespace icckd::cuda {

// ---- threads and blocks -----------------------------------------------------------------------------------------------

ICCKD_DEVICE int thread() { return threadIdx.x; }
ICCKD_DEVICE int threads() { return blockDim.x; }
ICCKD_DEVICE int lane() { return threadIdx.x % warp_size; }
ICCKD_DEVICE int warp() { return threadIdx.x / warp_size; }
ICCKD_DEVICE int block() { return blockIdx.x; }
ICCKD_DEVICE int block_y() { return blockIdx.y; }
ICCKD_DEVICE int blocks() { return gridDim.x; }

// The block's shared memory, at a multiple of 1024 bytes.
ICCKD_DEVICE unsigned char* shared_memory() {
  extern __shared__ __align__(1024) unsigned char memory[];
  return memory;
}

// The address that instructions and descriptors know a place in shared memory by.
ICCKD_DEVICE uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// All threads of the block.
ICCKD_DEVICE void block_barrier() { __syncthreads(); }
ICCKD_DEVICE void warp_barrier() { __syncwarp(); }

// `count` threads, whole warps, of those that call with the same `id` (1 … 15).
ICCKD_DEVICE void group_barrier(int id, int count) {
  asm volatile("barrier.sync.aligned %0, %1;" ::"r"(id), "r"(count) : "memory");
}

// ---- within a warp ----------------------------------------------------------------------------------------------------

constexpr unsigned all_lanes = 0xffffffffu;

template <class T>
ICCKD_DEVICE T shuffle(T value, int from_lane) {
  return __shfl_sync(all_lanes, value, from_lane);
}

template <class T>
ICCKD_DEVICE T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(all_lanes, value, mask);
}

// The value of the lane `delta` below; lanes below `delta` keep their own.
template <class T>
ICCKD_DEVICE T shuffle_up(T value, int delta) {
  return __shfl_up_sync(all_lanes, value, delta);
}

ICCKD_DEVICE unsigned ballot(bool value) { return __ballot_sync(all_lanes, value); }

// The lanes whose value is the same as this lane's.
ICCKD_DEVICE unsigned match_any(int value) { return __match_any_sync(all_lanes, value); }

ICCKD_DEVICE int count_bits(unsigned bits) { return __popc(bits); }
ICCKD_DEVICE int lowest_bit(unsigned bits) { return __ffs(bits) - 1; }
ICCKD_DEVICE int highest_bit(unsigned bits) { return 31 - __clz(bits); }

// ---- arithmetic -------------------------------------------------------------------------------------------------------

// Errors from the CUDA C++ Programming Guide, "Intrinsic Functions". Subnormal arguments and results count as zero.
ICCKD_DEVICE float exp2_fast(float x) {  // 2 units in the last place
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

ICCKD_DEVICE float log2_fast(float x) {  // 1 unit in the last place; 2⁻²² absolute for x in [0.5, 2]
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

ICCKD_DEVICE float rsqrt_fast(float x) {  // 2 units in the last place
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

ICCKD_DEVICE float reciprocal_fast(float x) {  // 1 unit in the last place
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// The larger one, NaN where one of them is.
ICCKD_DEVICE float max_or_nan(float x, float y) {
  float larger;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(x), "f"(y));
  return larger;
}

// The bits of x rounded to TF32: 10 bits of mantissa, ties away from zero.
ICCKD_DEVICE uint32_t to_tf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}

ICCKD_DEVICE uint32_t float_bits(float x) { return __float_as_uint(x); }
ICCKD_DEVICE float bits_float(uint32_t bits) { return __uint_as_float(bits); }

// Adds to an integer in shared or global memory, and returns what it was.
ICCKD_DEVICE int atomic_add(int* p, int value) { return atomicAdd(p, value); }

// ---- memory -----------------------------------------------------------------------------------------------------------

ICCKD_DEVICE Vector16 load16(const void* p) {
  const uint4 v = *static_cast<const uint4*>(p);
  return {v.x, v.y, v.z, v.w};
}

// Global memory that is read once: leaves no trace in the first cache.
ICCKD_DEVICE Vector16 load16_streaming(const void* global) {
  Vector16 v;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
               : "l"(global)
               : "memory");
  return v;
}

// Global memory that is read for the last time: leaves the caches first.
ICCKD_DEVICE Vector16 load16_last(const void* global) {
  const uint4 v = __ldcs(static_cast<const uint4*>(global));
  return {v.x, v.y, v.z, v.w};
}

// Begins to bring a row into the second-level cache; a hint. Address and bytes are multiples of 16.
ICCKD_DEVICE void prefetch_row(const void* global, int bytes) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(global), "r"(bytes) : "memory");
#else
  constexpr int line = 128;
  for (int at = 0; at < bytes; at += line)
    asm volatile("prefetch.global.L2 [%0];" ::"l"(static_cast<const char*>(global) + at) : "memory");
#endif
}

ICCKD_DEVICE void store16(void* p, Vector16 v) {
  *static_cast<uint4*>(p) = make_uint4(v.word[0], v.word[1], v.word[2], v.word[3]);
}

// Global memory that nobody reads soon: leaves the caches first.
ICCKD_DEVICE void store16_streaming(void* global, Vector16 v) {
  __stcs(static_cast<uint4*>(global), make_uint4(v.word[0], v.word[1], v.word[2], v.word[3]));
}

// Begins a copy of 16 bytes that are read for the last time; of zeros where not `valid`: `global` is then not read.
ICCKD_DEVICE void copy_async16_last(void* shared, const void* global, bool valid) {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;" ::"r"(shared_address(shared)), "l"(global),
               "r"(valid ? 16 : 0), "l"(policy)
               : "memory");
}

// Makes a group of this thread's copies since the last one.
ICCKD_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until all but the newest N groups of this thread have arrived. Other threads see them after a barrier.
template <int N>
ICCKD_DEVICE void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

#if ICCKD_HAS_WGMMA

// Orders what this thread did in shared memory before what wgmma does there afterwards.
ICCKD_DEVICE void fence_shared_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

#endif

// ---- matrix unit ------------------------------------------------------------------------------------------------------

// Four 8 × 8 matrices of 16-bit elements, r[m] from the rows of 16 bytes at the addresses of lanes 8m … 8m + 7. Lane l receives
// elements 2 (l % 4) and 2 (l % 4) + 1 of row l / 4.
ICCKD_DEVICE void load_matrix4(uint32_t (&r)[4], const void* row_of_this_lane) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row_of_this_lane))
               : "memory");
}

// The same of their transposes.
ICCKD_DEVICE void load_matrix4_transposed(uint32_t (&r)[4], const void* row_of_this_lane) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row_of_this_lane))
               : "memory");
}

template <class E>
struct MatrixElement;
template <>
struct MatrixElement<bfloat16> {
  static constexpr bool is_bfloat16 = true;
};
template <>
struct MatrixElement<float16> {
  static constexpr bool is_bfloat16 = false;
};

// d += a · b: a 16 × 16 in rows, b 16 × 8 in columns.
template <class E>
ICCKD_DEVICE void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (MatrixElement<E>::is_bfloat16)
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The same of TF32 numbers: a 16 × 8, b 8 × 8. Bits that are no TF32 number's are cut off.
ICCKD_DEVICE void mma_16x8x8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

}  // namespace icckd::cuda

#if ICCKD_HAS_WGMMA
#include "cuda/warpgroup.h"
#endif

#endif  // ICCKD_EMULATED

namespace icckd::cuda {

// Sums and maxima over the warp, the same bits in every lane.
template <class T>
ICCKD_DEVICE T warp_sum(T value) {
  for (int mask = warp_size / 2; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
  return value;
}

ICCKD_DEVICE float warp_max(float value) {
  for (int mask = warp_size / 2; mask > 0; mask /= 2) value = fmaxf(value, shuffle_xor(value, mask));
  return value;
}

}  // namespace icckd::cuda
