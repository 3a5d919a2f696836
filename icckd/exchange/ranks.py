"""How the rows of one step are spread over the ranks of a process group."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from icckd.compiling import disable
from icckd.exchange.gather import RankRows
from icckd.exchange.owners import STRATEGIES, Held, Plan, rows_of_buckets
from icckd.exchange.route import Route, on_device
from icckd.ops.transforms import transformed

# What rows may be; a message of one is no message of another.
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(eq=False)
class Ranks(RankRows):
    """The ranks of a group and the rows that each of them has in one step, lined up rank by rank.

    Losses take one in place of a plain process group, of which they have to ask by an exchange of small integers, and a
    look at the answer, what `known` is told.

    Args:
        labels: int64 (N,), the labels of all rows, where the host knows them.
        indices: int64 (N,), likewise, the places of all rows' images in the training data.
        strategy: How rows travel in losses that compare rows of one class: "gather" (every rank gets all), "owner"
            (each goes to the rank that owns its class), or "auto", what is less. A loss that is given a memory that is
            divided among the ranks makes it "owner".
        arrived: What the latest loss that compares rows of one class leaves for such a memory, if all rows travelled:
            the anchors that came to this rank, the owner of their class, (M, D) without gradient, and their labels,
            int64 (M,).
    """

    labels: NDArray[np.int64] | None = None
    indices: NDArray[np.int64] | None = None
    strategy: str = "auto"
    arrived: tuple[Tensor, Tensor] | None = None
    # Of this rank's rows the labels, and of each rank the rows in each bucket of classes.
    _classes: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None
    # Whether any rank wants a gradient of each of the values that it was asked about.
    _wanted: tuple[bool, ...] = ()
    _plans: dict[str, Plan] = field(default_factory=dict)
    _images: tuple[Route, Tensor] | None = None

    @classmethod
    def known(
        cls,
        group: dist.ProcessGroup,
        counts: Sequence[int],
        labels: NDArray[np.int64] | None = None,
        strategy: str = "auto",
        indices: NDArray[np.int64] | None = None,
    ) -> "Ranks":
        """What every rank knows of a step without asking; all of them say the same.

        Nothing then waits for a GPU. It is not checked that ranks agree on widths and dtypes, nor on which of a loss's
        arguments a gradient is wanted of, of which a rank without rows must say the same as the others.

        Raises ValueError where the arguments are not of this group, or not of each other.
        """
        rank, size, rows = _rank_in(group), dist.get_world_size(group), sum(counts)
        if len(counts) != size:
            raise ValueError(f"counts has {len(counts)} numbers; it should have {size}, one for each rank of group")
        for name, values in (("labels", labels), ("indices", indices)):
            if values is not None and values.shape != (rows,):
                raise ValueError(f"{name} has shape {values.shape}; it should be ({rows},), as counts are {counts}")
        if strategy not in STRATEGIES:
            raise ValueError(f"strategy is {strategy!r}; it should be one of {', '.join(STRATEGIES)}")
        ranks = cls(group, tuple(counts), rank, labels, indices, strategy)
        if labels is not None:
            ranks._classes = labels[ranks.own], rows_of_buckets(labels, counts, size)
        return ranks

    @property
    def share(self) -> float:
        """The number of ranks times this rank's share of the rows, 0 where there are none.

        A mean over a rank's own rows times this, averaged over the ranks, is the mean over all rows.
        """
        return self.size * self.counts[self.rank] / max(sum(self.counts), 1)

    def repeated(self, times: int) -> "Ranks":
        """The ranks of these rows so many times over, on each rank one time after another."""
        labels = None
        if self.labels is not None:
            of_ranks = np.split(self.labels, np.cumsum(self.counts)[:-1])
            labels = np.concatenate([np.tile(own, times) for own in of_ranks])
        counts = tuple(times * count for count in self.counts)
        return Ranks.known(self.group, counts, labels, self.strategy)

    def mean(self, value: Tensor) -> Tensor:
        """The mean over the ranks, number by number, without gradient."""
        total = value.detach().clone()
        dist.all_reduce(total, group=self.group)
        return total / self.size

    @disable
    def labelled(self, labels: Tensor) -> int:
        """How many of all ranks' rows have a label that is not negative; `labels` (n,) are this rank's."""
        _, of_buckets = self._known_classes(labels)
        return int(of_buckets.sum())

    def plan(self, labels: Tensor, strategy: str) -> Plan:
        """How rows with these labels (n,) are compared with those of their class."""
        if strategy not in self._plans:
            self._plans[strategy] = Plan(self, *self._known_classes(labels), strategy, labels.device)
        return self._plans[strategy]

    def keep_arrived(self, plan: Plan, held: Held) -> None:
        """Remember which rows came to this rank as the owner of their class, if all did."""
        self.arrived = (held.anchor.detach(), held.labels) if plan.together is None else None

    def to_owners(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The rows (M, D) that come to this rank, the owner of their class, and their labels (M,), without gradient."""
        route = self.plan(labels, "owner").route
        assert route is not None
        with torch.no_grad():
            arrived, its_labels = route.there(features, labels)
        return arrived, its_labels

    def to_images(self, device: torch.device) -> tuple[Route, Tensor]:
        """The way of each row to the rank that keeps what is known of its image, its index mod the ranks.

        Also at which places, index // ranks, those are kept of which rows come here: int64 (M,), on `device`.
        """
        if self._images is None:
            if self.indices is None:
                raise ValueError("indices are None; they should be told to Ranks.known where images are kept by rank")
            keepers, of_ranks = self.indices % self.size, np.repeat(np.arange(self.size), self.counts)
            travelling = np.bincount(of_ranks * self.size + keepers, minlength=self.size**2)
            travelling = travelling.reshape(self.size, self.size)
            route = Route(self.group, self.rank, keepers[self.own], travelling, device)
            self._images = route, on_device(self.indices[keepers == self.rank] // self.size, device)
        return self._images

    def wants_gradient(self, place: int, value: Tensor) -> bool:
        """Whether any rank wants one of `value`, by its place among those that this was asked about."""
        return torch.is_grad_enabled() and (self._wanted[place] if self._wanted else value.requires_grad)

    def _known_classes(self, labels: Tensor) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        if self._classes is None:
            own = labels.detach().cpu().numpy()
            of_buckets = rows_of_buckets(own, [len(own)], self.size)[0]
            self._classes = own, _all_gather(self.group, of_buckets, labels.device)
        return self._classes


def line_up(
    group: dist.ProcessGroup | Ranks,
    values: Mapping[str, Tensor],
    *others: Tensor,
    labels: Tensor | None = None,
    num_classes: int | None = None,
) -> Ranks:
    """Tell every rank of `group` how many rows this one has in each of `values`: (n, D), by the arguments' names.

    Where that is known already nothing is asked: `group` itself is returned.

    Args:
        group: The process group, or what is known of its rows.
        values: What may be differentiated.
        others: What may be differentiated besides.
        labels: int64 (n,), where they will matter: then no other question is needed for them.
        num_classes: A promise that they are below it, checked on a CPU.

    Raises: RuntimeError within a transform; ValueError where this rank has other rows than `group` knows of. Where it
    is asked, on every rank alike: ValueError where the ranks' rows differ in D or dtype, or a label is wrong;
    RuntimeError where some ranks compute gradients and others do not, which would leave the former waiting in backward.
    """
    if transformed(*values.values(), *others):
        raise RuntimeError(
            "group is given within a transform of torch.func or in forward mode, in which ranks cannot exchange rows; "
            "use ordinary autograd"
        )
    if isinstance(group, Ranks):
        _check_rows(group, values, labels, num_classes)
        return group
    return _ask(group, values, labels, num_classes)


def _check_rows(ranks: Ranks, values: Mapping[str, Tensor], labels: Tensor | None, num_classes: int | None) -> None:
    expected = ranks.counts[ranks.rank]
    for name, x in values.items():
        if len(x) != expected:
            raise ValueError(f"{name} has {len(x)} rows; it should have {expected}, as group says")
    if ranks.labels is None or labels is None or labels.device.type != "cpu":
        return
    if not np.array_equal(ranks.labels[ranks.own], labels.detach().numpy()):
        raise ValueError("labels are others than group says; they should be its labels in this rank's rows")
    _check_labels(ranks.labels.max(initial=-1), num_classes)


def _ask(
    group: dist.ProcessGroup, values: Mapping[str, Tensor], labels: Tensor | None, num_classes: int | None
) -> Ranks:
    rank, size, first = _rank_in(group), dist.get_world_size(group), next(iter(values.values()))
    mine: list = [[len(first), torch.is_grad_enabled()]]
    mine += [[x.shape[1], x.requires_grad, _DTYPES.index(x.dtype)] for x in values.values()]
    if labels is not None:
        own = labels.detach().cpu().numpy()
        mine += [[own.max(initial=-1)], *rows_of_buckets(own, [len(own)], size)]
    table = _all_gather(group, np.concatenate(mine).astype(np.int64), first.device)
    counts, gradients, *of_values = table.T[: 2 + 3 * len(values)].tolist()
    for name, widths, dtypes in zip(values, of_values[::3], of_values[2::3], strict=True):
        if len(set(widths)) > 1:
            raise ValueError(f"{name} has {widths} columns on the ranks of group; they should be equal")
        if len(set(dtypes)) > 1:
            found = ", ".join(str(_DTYPES[dtype]) for dtype in dtypes)
            raise ValueError(f"{name} is {found} on the ranks of group; they should be equal")
    if len(set(gradients)) > 1:
        raise RuntimeError("gradients are enabled on some ranks of group only; they should be on all ranks or none")
    ranks = Ranks(group, tuple(counts), rank, _wanted=tuple(map(any, of_values[1::3])))
    if labels is not None:
        highest, ranks._classes = table[:, 2 + 3 * len(values)], (own, table[:, 3 + 3 * len(values) :])
        if labels.device.type == "cpu":
            _check_labels(highest.max(), num_classes)
    return ranks


def _check_labels(highest: int, num_classes: int | None) -> None:
    if num_classes is not None and highest >= num_classes:
        raise ValueError(f"labels reach {highest}; they should be below num_classes = {num_classes}")


def _all_gather(group: dist.ProcessGroup, numbers: NDArray[np.int64], device: torch.device) -> NDArray[np.int64]:
    """The integers of every rank, as many each: (ranks, …). Waits for a GPU."""
    mine = on_device(numbers, device)
    table = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(table, mine, group=group)
    return torch.stack(table).cpu().numpy()


def _rank_in(group: dist.ProcessGroup) -> int:
    rank = dist.get_rank(group)
    if rank < 0:
        raise ValueError("group does not contain this process; it should be a process group that it is a member of")
    return rank
