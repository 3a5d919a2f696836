"""What the row-wise kernels share: how many rows a program holds, and sums of exponentials in one sweep over a row.

A sweep keeps a running maximum and sums in every lane, which takes WIDTH neighbours at a time, with one exponential a
number and one for all of them, and brings the lanes together once at the end:

    BLOCK = 8, WIDTH = 2      x₀ x₁ | x₂ x₃ | x₄ x₅ | x₆ x₇ ‖ x₈ …      lane l: of x₂ₗ, x₂ₗ₊₁, x₂ₗ₊₈, x₂ₗ₊₉, x₂ₗ₊₁₆ …
"""

import math
from collections.abc import Iterator

import triton
import triton.language as tl
from torch import Tensor

from icckd.kernels import tables

# Where a running maximum begins: finite, as −∞ − (−∞) is not a number.
LOWEST = tl.constexpr(-3.4028234663852886e38)
LOG2_E = tl.constexpr(1.4426950408889634)
# The narrowest tile.
_NARROWEST = tl.constexpr(16)
# Bits of the widest load of a thread.
VECTOR_BITS = tl.constexpr(128)


def whole_tile(kernel: str, architecture: str, element_size: int, length: int) -> tables.Options | None:
    """The launch options for rows of `length` held whole in registers, several to a program; None if they are too long.

    The table gives the numbers in a program's registers, TILE, by the length of its rows.
    """
    longest = max(tables.entries(kernel, architecture, element_size))
    return None if length > longest else _tile(kernel, architecture, element_size, length)


def whole_tiles(kernel: str, architecture: str, element_size: int) -> Iterator[tables.Options]:
    """Every launch option that `whole_tile` can give."""
    length, longest = _NARROWEST.value, max(tables.entries(kernel, architecture, element_size))
    while length <= longest:
        yield _tile(kernel, architecture, element_size, length)
        length *= 2


def _tile(kernel: str, architecture: str, element_size: int, length: int) -> tables.Options:
    options = tables.options(kernel, architecture, element_size, length)
    block = max(_NARROWEST.value, triton.next_power_of_2(length))
    return {"ROWS": max(1, options["TILE"] // block), "BLOCK": block, "num_warps": options["num_warps"]}


def vector_group(*rows: Tensor) -> int:
    """How many numbers of these rows one load can take: a power of two that divides all strides and lengths.

    Kernels get strides and lengths in such groups: the compiler then sees what they are divisible by.
    """
    widest = VECTOR_BITS.value // (8 * min(x.element_size() for x in rows))
    return math.gcd(widest, *(size for x in rows for size in (x.stride(0), x.shape[1])))


def with_unit_columns(x: Tensor) -> Tensor:
    """x, or a copy whose rows are contiguous."""
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()


@triton.jit
def columns_of(length, BLOCK: tl.constexpr):
    """Which columns of a tile its rows have (1, BLOCK): of a tile's first half all, and the compiler knows."""
    if BLOCK > _NARROWEST:
        tl.assume(length > BLOCK // 2)
    return (tl.arange(0, BLOCK) < length)[None, :]


@triton.jit
def load_rows(x, stride, row, mask, beyond, BLOCK: tl.constexpr):
    """Whole rows in float32 (rows, BLOCK); `beyond` outside of the mask."""
    at = x + (row * stride)[:, None] + tl.arange(0, BLOCK)[None, :]
    return tl.load(at, mask=mask, other=beyond).to(tl.float32)


@triton.jit
def largest(x, axis: tl.constexpr):
    """The maximum, and NaN where one is among the numbers; Triton's own passes over them."""
    return tl.where(tl.max((x != x).to(tl.int32), axis) > 0, float("nan"), tl.max(x, axis))


@triton.jit
def lane_columns(first, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """BLOCK columns from `first` on: (BLOCK / WIDTH lanes, WIDTH neighbours)."""
    return first + tl.arange(0, BLOCK // WIDTH)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]


@triton.jit
def load_columns(row, column, length, beyond):
    """These columns of one row in float32; `beyond` behind its end."""
    return tl.load(row + column, mask=column < length, other=beyond).to(tl.float32)


@triton.jit
def raised(highest, x, factor):
    """The running maximum of every lane after x, and what its sums so far are multiplied by.

    NaN changes no maximum: it is in the sums, as x = −∞ adds 0 to them.
    """
    higher = tl.maximum(highest, tl.max(x, 1))
    return higher, tl.exp2((highest - higher) * factor)


@triton.jit
def lane_shares(highest, total, factor):
    """The maximum over all lanes (−∞ without a number above), and what the sums of each lane are multiplied by."""
    highest = tl.where(total == 0, float("-inf"), highest)
    top = tl.max(highest, 0)
    return top, tl.where(total == 0, 0.0, tl.exp2((highest - top) * factor))


@triton.jit
def times(x, share):
    """share · x, and 0 for a share of 0, whatever x is."""
    return tl.where(share == 0, 0.0, x * share)
