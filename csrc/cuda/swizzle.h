// Where bytes of a matrix tile are in shared memory, so that neither rows nor columns of it meet in one bank.
//
//   atom: 8 rows × 128 bytes, at a multiple of 1024 bytes; in row r, piece p of 16 bytes is kept in place p ^ (r % 8)
//
// It is the 128-byte swizzle of bulk tensor copies and of wgmma (PTX ISA, "Asynchronous Warpgroup Level Matrix Shared Memory Layout").
#pragma once

#include <cstdint>

#if defined(ICCKD_EMULATED)
#define ICCKD_HOST_DEVICE inline
#else
#define ICCKD_HOST_DEVICE __host__ __device__ inline
#endif

namespace icckd::cuda {

constexpr int swizzle_row_bytes = 128, swizzle_atom_rows = 8, swizzle_atom_bytes = 1024;

// The place of a byte whose place without swizzle is `offset`, in bytes from a multiple of 1024.
ICCKD_HOST_DEVICE constexpr uint32_t swizzled(uint32_t offset) {
  return offset ^ (offset >> 3 & 0x70);
}

// The matrix descriptor of wgmma for a tile with this swizzle (PTX ISA, "Matrix Descriptor Format").
//   K-major: rows of 64 elements of K; `stride_bytes` from 8 rows to the next 8. `leading_bytes` is not used.
//   MN-major: rows of 64 elements of M or N; `stride_bytes` from 8 rows (of K) to the next 8, `leading_bytes` from 64 elements
//   of M or N to the next 64.
// Steps along the columns of K-major rows are made by adding their bytes to `shared_address`.
ICCKD_HOST_DEVICE constexpr uint64_t matrix_descriptor(uint32_t shared_address, uint32_t leading_bytes, uint32_t stride_bytes) {
  constexpr uint64_t swizzle_128_bytes = 1;
  return (shared_address & 0x3ffff) >> 4 | uint64_t{(leading_bytes & 0x3ffff) >> 4} << 16 | uint64_t{(stride_bytes & 0x3ffff) >> 4} << 32 |
         swizzle_128_bytes << 62;
}

}  // namespace icckd::cuda
