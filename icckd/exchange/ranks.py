"""How the rows of one step are spread over the ranks of a process group."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from icckd.exchange import gather
from icckd.ops.transforms import transformed

STRATEGIES = ("auto", "gather", "owner")


@dataclass
class Ranks:
    """The ranks of a group and how many rows each of them has in one step: all rows are theirs, rank by rank.

    Losses take one in place of a plain process group, which they have to ask for it by an exchange of small integers
    and a look at the answer.

    Args:
        group: The process group.
        counts: The number of rows of each rank.
        rank: This process's place in the group.
        labels: int64 (N,), the labels of all rows, where the host knows them.
        strategy: How rows travel in losses that compare rows of one class: "gather" (every rank gets all), "owner"
            (each goes to the rank that owns its class), or "auto", what is less.
    """

    group: dist.ProcessGroup
    counts: tuple[int, ...]
    rank: int
    labels: NDArray[np.int64] | None = None
    strategy: str = "auto"

    @classmethod
    def known(
        cls,
        group: dist.ProcessGroup,
        counts: Sequence[int],
        labels: NDArray[np.int64] | None = None,
        strategy: str = "auto",
    ) -> "Ranks":
        """What every rank knows of a step without asking; all of them say the same.

        Nothing then waits for a GPU. It is not checked that ranks agree on widths, nor on whether gradients are wanted,
        of which a rank without rows must say the same as the others.

        Raises ValueError where the arguments are not of this group, or not of each other.
        """
        rank, counts = _rank_in(group), tuple(counts)
        if len(counts) != dist.get_world_size(group):
            raise ValueError(
                f"counts has {len(counts)} numbers; it should have {dist.get_world_size(group)}, one a rank"
            )
        if labels is not None and labels.shape != (sum(counts),):
            raise ValueError(f"labels has shape {labels.shape}; it should be {(sum(counts),)}, as the sum of counts")
        if strategy not in STRATEGIES:
            raise ValueError(f"strategy is {strategy!r}; it should be one of {', '.join(STRATEGIES)}")
        return cls(group, counts, rank, labels, strategy)

    @property
    def size(self) -> int:
        """The number of ranks."""
        return len(self.counts)

    @property
    def own(self) -> slice:
        """Where this rank's rows are among all."""
        start = sum(self.counts[: self.rank])
        return slice(start, start + self.counts[self.rank])

    @property
    def share(self) -> float:
        """The number of ranks times this rank's share of the rows, 0 where there are none.

        A mean over a rank's own rows times this, averaged over the ranks, is the mean over all rows.
        """
        return self.size * self.counts[self.rank] / max(sum(self.counts), 1)

    def place(self, values: Tensor) -> Tensor:
        """This rank's values (n, …) at its rows, zero at the other ranks' (N, …)."""
        before = values.new_zeros((self.own.start, *values.shape[1:]))
        after = values.new_zeros((sum(self.counts) - self.own.stop, *values.shape[1:]))
        return torch.cat([before, values, after])

    def gather(self, values: Tensor) -> Tensor:
        """All ranks' values (N, …), without gradient."""
        return gather.gather(values, self.counts, self.group)

    def gather_with_gradient(self, values: Tensor) -> Tensor:
        """All ranks' values (N, …); in backward every rank receives the sum of all ranks' gradients of its values.

        It always takes part in backward: a rank whose own values need no gradient has to serve the others.
        """
        return gather.gather_with_gradient(values, self.counts, self.own, self.group)

    def mean(self, value: Tensor) -> Tensor:
        """The mean over the ranks, number by number, without gradient."""
        total = value.detach().clone()
        dist.all_reduce(total, group=self.group)
        return total / self.size


def line_up(group: dist.ProcessGroup | Ranks, values: Mapping[str, Tensor], *others: Tensor) -> Ranks:
    """Tell every rank of `group` how many rows this one has in each of `values`: (n, D), by the arguments' names.

    Where that is known already nothing is asked: `group` itself is returned.

    others: What is differentiated besides.

    Raises: RuntimeError within a transform; ValueError where this rank has other rows than `group` knows of. Where it
    is asked, on every rank alike: ValueError where the ranks' rows differ in D; RuntimeError where some ranks compute
    gradients and others do not, which would leave the former waiting in backward.
    """
    if transformed(*values.values(), *others):
        raise RuntimeError(
            "group is given within a transform of torch.func or in forward mode, in which ranks cannot exchange rows; "
            "use ordinary autograd"
        )
    if isinstance(group, Ranks):
        for name, x in values.items():
            if len(x) != group.counts[group.rank]:
                raise ValueError(f"{name} has {len(x)} rows; it should have {group.counts[group.rank]}, as group says")
        return group
    rank = _rank_in(group)
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
    return Ranks(group, tuple(counts), rank)


def _rank_in(group: dist.ProcessGroup) -> int:
    rank = dist.get_rank(group)
    if rank < 0:
        raise ValueError("group does not contain this process; it should be a process group that it is a member of")
    return rank
