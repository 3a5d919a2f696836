"""Sums of all rows' numbers, by one program: the same bits each time, in a launch that is over before others' begin.

    total    Σ x_i             count    how many labels are not the ignored one

    lanes    x₀ … x_B−1 | x_B … | …    lane l: x_l + x_l+B + …; then a tree over the lanes

Bytes: 4 · N, or 8 · N of labels, from the second-level cache at the rate of one multiprocessor. Meant for up to `_MOST`
rows; more are left to PyTorch, whose programs are many. Its sum of 65,536 numbers took 12 to 15 µs on an H100.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from icckd.kernels.specialization import Specialization, specialize

_MOST = 1 << 18
# Numbers of a load, and how many loads are under way: what a multiprocessor gets from the cache in their latency.
_BLOCK, _STAGES, _WARPS = 2048, 5, 16


def total(values: Tensor) -> Tensor:
    """Σ values (), of contiguous numbers (N,) float32."""
    return _add_up(values, None) if len(values) <= _MOST else values.sum()


def count(labels: Tensor, ignored: int) -> Tensor:
    """How many of the labels (N,) are not `ignored` (); float32 where that is exact."""
    return _add_up(labels.contiguous(), ignored) if len(labels) <= _MOST else (labels != ignored).sum()


def _add_up(values: Tensor, ignored: int | None) -> Tensor:
    result = torch.empty((), dtype=torch.float32, device=values.device)
    add_up[(1,)](values, result, len(values), ignored, BLOCK=_BLOCK, STAGES=_STAGES, num_warps=_WARPS)
    return result


@triton.jit
def add_up(values, result, count, ignored, BLOCK: tl.constexpr, STAGES: tl.constexpr):
    """Σ of the values, or how many are not `ignored` unless that is None."""
    sums = tl.zeros((BLOCK,), tl.float32)
    for first in tl.range(0, count, BLOCK, num_stages=STAGES):
        i = first + tl.arange(0, BLOCK)
        x = tl.load(values + i, mask=i < count, other=0)
        if ignored is not None:
            x = ((i < count) & (x != ignored)).to(tl.float32)
        sums += x
    tl.store(result, tl.sum(sums, 0))


def specializations(architecture: str) -> Iterator[Specialization]:
    """Both sums, of numbers of rows that are multiples of 16 and of any others."""
    for divisible in (("count",), ()):
        any_size = "" if divisible else ", any size"
        options, block = {"num_warps": _WARPS}, {"BLOCK": _BLOCK, "STAGES": _STAGES}
        types = {"values": "*fp32", "result": "*fp32"}
        yield specialize(
            add_up, types, block | {"ignored": None}, options, description=f"total{any_size}", divisible=divisible
        )
        types = {"values": "*i64", "result": "*fp32"}
        yield specialize(add_up, types, block, options, description=f"count{any_size}", divisible=divisible)
