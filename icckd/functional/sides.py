"""What the losses of two sides share, a student's and a teacher's: who computes, of which rows; unit vectors."""

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from icckd import backends
from icckd.compiling import assume_constant_result

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from icckd.exchange import Ranks


def select(backend: str, student: Tensor, teacher: Tensor, family: str) -> str:
    """The backend that serves `family` on these tensors when `backend` was asked for."""
    return backends.select(backend, student.device, torch.promote_types(student.dtype, teacher.dtype), family)


def gather_sides(
    student: dict[str, Tensor], teacher: dict[str, Tensor], group: "ProcessGroup | Ranks"
) -> "tuple[Tensor, Tensor, Ranks]":
    """All ranks' rows of a student, with gradient, and of its teacher, without, each given as {name: (n, D)}."""
    # Not every build of PyTorch has torch.distributed.
    from icckd.exchange import line_up

    ranks = line_up(group, student | teacher)
    (own,), (others,) = student.values(), teacher.values()
    return ranks.gather_with_gradient(own), ranks.gather(others), ranks


def full_precision(x: Tensor) -> AbstractContextManager:
    """No autocast, which would round products to half precision, on the device of `x`."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if _has_autocast(kind) else nullcontext()


@assume_constant_result  # The compiler of PyTorch 2.11 cannot look into it.
def _has_autocast(kind: str) -> bool:
    return torch.amp.is_autocast_available(kind)


def norm(x: Tensor, dim: int = 1) -> Tensor:
    """Euclidean norms along a dimension, kept, whose squares neither overflow nor underflow; 0 has no gradient."""
    largest = _largest(x, dim)
    squared = (x / largest).square().sum(dim, keepdim=True)
    zero = squared == 0
    return largest * squared.masked_fill(zero, 1).sqrt().masked_fill(zero, 0)


def unit(x: Tensor, dim: int = 1) -> Tensor:
    """x divided by its norms along a dimension; a zero vector stays zero, without gradient."""
    x = x / _largest(x, dim)
    squared = x.square().sum(dim, keepdim=True)
    return x * torch.where(squared == 0, 0, squared.masked_fill(squared == 0, 1).rsqrt())


def _largest(x: Tensor, dim: int) -> Tensor:
    """The largest magnitude along a dimension, and 1 where all are 0: what a norm can be divided by beforehand."""
    if x.shape[dim] == 0:
        return torch.ones_like(x.sum(dim, keepdim=True))
    largest = x.detach().abs().amax(dim, keepdim=True)
    return torch.where(largest == 0, 1, largest)
