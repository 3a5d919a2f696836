"""Kernels with the faults that `bench.aot` is there to find."""

from collections.abc import Iterator

import triton
import triton.language as tl

from icckd.kernels.specialization import Specialization


@triton.jit
def spilling(x, out, BLOCK: tl.constexpr):
    """Every number is used twice, by one warp: BLOCK / 32 registers."""
    i = tl.arange(0, BLOCK)
    values = tl.load(x + i)
    tl.store(out + i, values / tl.sum(values, 0))


@triton.jit
def without_matrix_unit(x, out, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i))


@triton.jit
def with_too_much_shared_memory(x, y, out, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr):
    """Both operands of one product: 4 · BLOCK · BLOCK_K bytes."""
    i, k = tl.arange(0, BLOCK), tl.arange(0, BLOCK_K)
    a = tl.load(x + i[:, None] * BLOCK_K + k[None, :])
    b = tl.load(y + k[:, None] * BLOCK + i[None, :])
    tl.store(out + i[:, None] * BLOCK + i[None, :], tl.dot(a, b))


@triton.jit
def not_compiling(x, BLOCK: tl.constexpr):
    tl.static_assert(BLOCK == 1, "BLOCK should be 1")


def specializations(architecture: str) -> Iterator[Specialization]:
    types = {"x": "*fp32", "out": "*fp32"}
    yield Specialization(spilling, types, {}, {"BLOCK": 32768, "num_warps": 1})
    yield Specialization(without_matrix_unit, types, {}, {"BLOCK": 64, "num_warps": 1}, matrix_unit=True)
    matrices = {"x": "*bf16", "y": "*bf16", "out": "*fp32"}
    options = {"BLOCK": 64, "BLOCK_K": 1024, "num_warps": 8}
    yield Specialization(with_too_much_shared_memory, matrices, {}, options, divisible=("x", "y", "out"))
    yield Specialization(not_compiling, {"x": "*fp32"}, {}, {"BLOCK": 32, "num_warps": 1})
