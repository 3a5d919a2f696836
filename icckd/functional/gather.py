"""Rows of every rank of a process group, for losses whose pairs span the ranks."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from icckd.ops.saved_gradient import depending_once
from icckd.ops.transforms import transformed


@dataclass
class RankRows:
    """How the rows of all ranks line up: rank by rank.

    counts: The number of rows of each rank.
    own: Where this rank's rows are among them.
    group: The process group.
    """

    counts: list[int]
    own: slice
    group: dist.ProcessGroup

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

    def mean(self, value: Tensor) -> Tensor:
        """The mean over the ranks of a scalar, without gradient."""
        total = value.detach().clone()
        dist.all_reduce(total, group=self.group)
        return total / len(self.counts)

    def gather_with_gradient(self, values: Tensor) -> Tensor:
        """All ranks' values (N, …); in backward every rank receives the sum of all ranks' gradients of its values.

        It always takes part in backward: a rank whose own values need no gradient has to serve the others.
        """
        if torch.is_grad_enabled() and not values.requires_grad:
            values = values.detach().requires_grad_()
        return _Gather.apply(values, self)


def line_up(group: dist.ProcessGroup, values: Mapping[str, Tensor], *others: Tensor) -> RankRows:
    """Tell every rank of `group` how many rows this one has in each of `values`: (n, D), by the arguments' names.

    others: What is differentiated besides.

    Raises, on every rank alike: ValueError where the ranks' rows differ in D; RuntimeError where some ranks compute
    gradients and others do not, which would leave the former waiting in backward; RuntimeError within a transform.
    """
    if transformed(*values.values(), *others):
        raise RuntimeError(
            "group is given within a transform of torch.func or in forward mode, in which ranks cannot exchange rows; "
            "use ordinary autograd"
        )
    rank = dist.get_rank(group)
    if rank < 0:
        raise ValueError("group does not contain this process; it should be a process group that it is a member of")
    first = next(iter(values.values()))
    columns = [x.shape[1] for x in values.values()]
    mine = torch.tensor([len(first), torch.is_grad_enabled(), *columns], device=first.device)
    table = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(table, mine, group=group)
    counts, gradients, *dims = torch.stack(table, dim=1).tolist()
    for name, widths in zip(values, dims, strict=True):
        if len(set(widths)) > 1:
            raise ValueError(f"{name} has {widths} columns on the ranks of group; they should be equal")
    if len(set(gradients)) > 1:
        raise RuntimeError("gradients are enabled on some ranks of group only; they should be on all ranks or none")
    start = sum(counts[:rank])
    return RankRows(counts, slice(start, start + counts[rank]), group)


def gather_sides(
    student: dict[str, Tensor], teacher: dict[str, Tensor], group: dist.ProcessGroup
) -> tuple[Tensor, Tensor, RankRows]:
    """All ranks' rows of a student, with gradient, and of its teacher, without, each given as {name: (n, D)}."""
    ranks = line_up(group, student | teacher)
    (own,), (others,) = student.values(), teacher.values()
    return ranks.gather_with_gradient(own), ranks.gather(others), ranks


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, ranks: RankRows) -> Tensor:
        ctx.ranks = ranks
        return ranks.gather(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        # Summed in float32, lest every rank's term be rounded to half precision again.
        precise = torch.promote_types(gradient.dtype, torch.float32)
        total = gradient.detach().to(precise, copy=True).contiguous()
        dist.all_reduce(total, group=ctx.ranks.group)
        own = total[ctx.ranks.own].to(gradient.dtype)
        return own + depending_once(gradient) if torch.is_grad_enabled() else own, None
