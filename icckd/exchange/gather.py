"""All ranks' rows on every rank."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from icckd.ops.saved_gradient import depending_once


@dataclass(eq=False)
class RankRows:
    """Rows of the ranks of a group, lined up rank by rank: N in all.

    Args:
        group: The process group.
        counts: The number of rows of each rank.
        rank: This process's place in the group.
    """

    group: dist.ProcessGroup
    counts: tuple[int, ...]
    rank: int

    @property
    def size(self) -> int:
        """The number of ranks."""
        return len(self.counts)

    @property
    def own(self) -> slice:
        """Where this rank's rows are among all."""
        start = sum(self.counts[: self.rank])
        return slice(start, start + self.counts[self.rank])

    def place(self, values: Tensor) -> Tensor:
        """This rank's values (n, …) at its rows, zero at the other ranks' (N, …)."""
        before = values.new_zeros((self.own.start, *values.shape[1:]))
        after = values.new_zeros((sum(self.counts) - self.own.stop, *values.shape[1:]))
        return torch.cat([before, values, after])

    def gather(self, values: Tensor) -> Tensor:
        """All ranks' values (N, …), without gradient."""
        padded = values.new_zeros((max(self.counts), *values.shape[1:]))
        padded[: len(values)] = values.detach()
        received = [torch.empty_like(padded) for _ in self.counts]
        dist.all_gather(received, padded, group=self.group)
        return torch.cat([x[:count] for x, count in zip(received, self.counts, strict=True)])

    def gather_with_gradient(self, values: Tensor) -> Tensor:
        """All ranks' values (N, …); in backward every rank receives the sum of all ranks' gradients of its values.

        It always takes part in backward: a rank whose own values need no gradient has to serve the others.
        """
        if torch.is_grad_enabled() and not values.requires_grad:
            values = values.detach().requires_grad_()
        return _Gather.apply(values, self)

    def sum_with_gradient(self, values: Tensor) -> Tensor:
        """The sum over the ranks of values of one shape; in backward every rank receives that of all ranks' gradients.

        So gradients that are averaged over the ranks are those of the mean over the ranks of what they compute from it.
        It always takes part in backward, and can be differentiated as often as wanted.
        """
        if torch.is_grad_enabled() and not values.requires_grad:
            values = values.detach().requires_grad_()
        return _Total.apply(values, self)

    def send_back(self, gradient: Tensor) -> "Sum":
        """The sum over the ranks of gradients (N, …) of all rows, which is under way when this returns."""
        return Sum(gradient, self)


class Sum:
    """A sum over the ranks that is under way; `wait` returns this rank's rows of it.

    It is made in float32, lest every rank's term be rounded to half precision again.
    """

    def __init__(self, terms: Tensor, rows: RankRows):
        self._dtype, self._own = terms.dtype, rows.own
        precise = torch.promote_types(terms.dtype, torch.float32)
        self._total = terms.detach().to(precise, copy=True).contiguous()
        self._work = dist.all_reduce(self._total, group=rows.group, async_op=True)

    def wait(self) -> Tensor:
        """A GPU's stream waits, not the host."""
        self._work.wait()
        return self._total[self._own].to(self._dtype)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, rows: RankRows) -> Tensor:
        ctx.rows = rows
        return rows.gather(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        own = ctx.rows.send_back(gradient).wait()
        return own + depending_once(gradient) if torch.is_grad_enabled() else own, None


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, rows: RankRows) -> Tensor:
        ctx.rows = rows
        total = values.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=rows.group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.rows.sum_with_gradient(gradient), None
