"""Saved gradients times the upstream scalar of a backward, in place.

    g ← f · g, each product rounded once; nothing where f = 1

    one program      BLOCK numbers of one gradient, then those `programs` tiles further, to the last gradient's end
    launches         1 for all gradients of a loss, of no more programs than run at a time

Bytes: 4, the factor, a program where f = 1, as in the backward of a loss that is not scaled; else 2 · numbers · element
size. Meant for gradients of any size. Measured times: docs/gpu.md.
"""

from collections.abc import Iterator

import triton
import triton.language as tl
from torch import Tensor

from icckd.kernels import tables
from icckd.kernels.precision import rounded
from icckd.kernels.specialization import ELEMENTS, Specialization, specialize

# Numbers of a tile, and programs a multiprocessor: all that fit on it, for the bytes under way that bandwidth takes.
_BLOCK, _PROGRAMS, _WARPS = 2048, 8, 8


def scale_gradients(factor: Tensor, first: Tensor, second: Tensor | None = None, third: Tensor | None = None) -> None:
    """Multiply contiguous gradients, each of any shape, by `factor` () float32, in place."""
    gradients = (first, second, third)
    counts = [0 if x is None else x.numel() for x in gradients]
    tiles = sum(triton.cdiv(count, _BLOCK) for count in counts)
    if tiles:
        programs = min(tiles, _PROGRAMS * tables.multiprocessors(factor.device))
        scale[(programs,)](factor, *gradients, *counts, BLOCK=_BLOCK, num_warps=_WARPS)


@triton.jit
def scale(factor, first, second, third, first_count, second_count, third_count, BLOCK: tl.constexpr):
    by = tl.load(factor)
    if by == 1:
        return
    tile = tl.program_id(0)
    tile = _scale_tiles(first, first_count, by, tile, BLOCK)
    if second is not None:
        tile = _scale_tiles(second, second_count, by, tile, BLOCK)
    if third is not None:
        _scale_tiles(third, third_count, by, tile, BLOCK)


@triton.jit
def _scale_tiles(gradient, count, by, tile, BLOCK: tl.constexpr):
    """This program's tiles of one gradient, from `tile` on; which one of the next gradient comes first."""
    tiles = tl.cdiv(count, BLOCK)
    while tile < tiles:
        at = tile.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        g = tl.load(gradient + at, mask=at < count)
        tl.store(gradient + at, rounded(g.to(tl.float32) * by, gradient.dtype.element_ty), mask=at < count)
        tile += tl.num_programs(0)
    return tile - tiles


def specializations(architecture: str) -> Iterator[Specialization]:
    """The gradients of each loss, of rows whose numbers are multiples of 16 and of any others."""
    for element in ELEMENTS:
        types = {"factor": "*fp32", "first": f"*{element}", "second": f"*{element}", "third": "*fp32"}
        counts = ("first_count", "second_count")
        for absent in ((), ("third",), ("second", "third")):
            constants = {"BLOCK": _BLOCK} | dict.fromkeys(absent)
            for divisible in (counts, ()):
                description = f"{element}, {3 - len(absent)} gradients" + ("" if divisible else ", any size")
                yield specialize(
                    scale, types, constants, {"num_warps": _WARPS}, description=description, divisible=divisible
                )
