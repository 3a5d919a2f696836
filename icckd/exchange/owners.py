"""Classes have owners: rank c mod ranks owns class c, and rows travel there to be compared with those of their class.

Each row travels once and its gradient once back: O(N·D / ranks) a rank, where gathering all rows on all ranks takes
O(N·D). But a class that holds much of the batch would leave its owner with most of the work: its rows stay where they
are, and every rank gets all of them. Which classes those are is found from counts of rows in buckets, as classes may be
many: class c is in bucket c mod buckets, and the number of buckets is a multiple of that of ranks, so that all classes
of a bucket have one owner. Where classes are few all are split so, where they are many none is. All of this is this
project's choice.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from icckd.exchange.gather import RankRows, Sum
from icckd.exchange.route import Return, Route, on_device

STRATEGIES = ("auto", "gather", "owner")
# Buckets, where ranks are no more: enough that a bucket is a class or few, and their counts are a short message.
_BUCKETS = 512
# The rows of a bucket that is split, as a multiple of a rank's fair share of all rows.
_DOMINATING = 2


def rows_of_buckets(labels: NDArray[np.int64], counts: Sequence[int], ranks: int) -> NDArray[np.int64]:
    """How many rows each bucket of classes holds of each part of `labels`, of `counts` rows each: (parts, buckets).

    Buckets are those of so many ranks. Negative labels name no class.
    """
    parts, buckets = len(counts), ranks * max(1, _BUCKETS // ranks)
    places = np.repeat(np.arange(parts), counts) * buckets + labels % buckets
    return np.bincount(places[labels >= 0], minlength=parts * buckets).reshape(parts, buckets)


class Held(NamedTuple):
    """The rows that a rank compares, M of them: those that arrived, then those that every rank has.

    Of the latter other ranks' have weight 0, and a positive that is 0.
    """

    anchor: Tensor
    positive: Tensor
    labels: Tensor
    weight: Tensor


class Plan:
    """Which of a step's rows travel to the owner of their class, and which are gathered on all ranks.

    Rows with a negative label are neither.

    Args:
        rows: All rows of the step.
        labels: int64 (n,), of this rank's rows.
        of_buckets: (ranks, buckets) how many rows of each rank are in each bucket of classes.
        strategy: "owner": all travel; "gather": all are gathered; "auto": those of dominating buckets are gathered.
        device: Where rows are.

    Attributes:
        route: Of the rows that travel; None where all are gathered.
        together: The rows that are gathered; None where there are none.
        staying: Which of this rank's rows the latter are, int64.
    """

    route: Route | None
    together: RankRows | None

    def __init__(
        self,
        rows: RankRows,
        labels: NDArray[np.int64],
        of_buckets: NDArray[np.int64],
        strategy: str,
        device: torch.device,
    ):
        ranks, buckets = of_buckets.shape
        split = _split(of_buckets, strategy)
        owners = np.arange(buckets) % ranks
        bucket_of = labels % buckets
        stays = (labels >= 0) & split[bucket_of]
        travelling = np.where(split, 0, of_buckets).reshape(ranks, -1, ranks).sum(1)
        gathered = of_buckets[:, split].sum(1)
        destinations = np.where((labels >= 0) & ~stays, owners[bucket_of], -1)
        self.count = len(labels)
        self.route = self.together = None
        if gathered.any():
            self.together = RankRows(rows.group, tuple(gathered.tolist()), rows.rank)
        if travelling.any() or self.together is None:
            self.route = Route(rows.group, rows.rank, destinations, travelling, device)
        self.staying = on_device(np.flatnonzero(stays), device)

    def there(self, anchor: Tensor, positive: Tensor, labels: Tensor, weight: Tensor, need_positive: bool) -> Held:
        """What this rank holds of all ranks' rows, each (n, …), with gradient to anchors and, if needed, positives."""
        parts = []
        if self.route is not None:
            if need_positive:
                parts.append(Held(*self.route.there(anchor, positive, constants=(labels, weight))))
            else:
                parts.append(Held(*self.route.there(anchor, constants=(positive, labels, weight))))
        if self.together is not None:
            gather, place = self.together.gather, self.together.place
            rows = [x[self.staying] for x in (anchor, positive, labels, weight)]
            parts.append(
                Held(self.together.gather_with_gradient(rows[0]), place(rows[1]), gather(rows[2]), place(rows[3]))
            )
        return parts[0] if len(parts) == 1 else Held(*map(torch.cat, zip(*parts, strict=True)))

    def arrived(self, held: Tensor) -> Tensor:
        """Those of the rows that a rank holds (M, …) that came to their class's owner."""
        return held[: self._arriving]

    def home(self, held: Tensor) -> Tensor:
        """What was found of each row that this rank's rows came to (M, …), at home (n, …), with gradient."""
        if self.route is None:
            result = held.new_zeros((self.count, *held.shape[1:]))
        else:
            (result,) = self.route.back(self.arrived(held))
        if self.together is None:
            return result
        return result.index_copy(0, self.staying, held[self._arriving :][self.together.own])

    def send_back(self, d_anchor: Tensor, d_positive: Tensor | None) -> "Gradients":
        """Gradients of what this rank holds, (M, D) each, on their way home; d_positive is None if it is unwanted."""
        return Gradients(self, d_anchor, d_positive)

    @property
    def _arriving(self) -> int:
        return 0 if self.route is None else sum(self.route.received)


class Gradients:
    """Gradients on their way home, whatever runs meanwhile; `wait` returns them, and the same if asked again."""

    def __init__(self, plan: Plan, d_anchor: Tensor, d_positive: Tensor | None):
        self._plan = plan
        both = [d_anchor] if d_positive is None else [d_anchor, d_positive]
        self._home: list[Tensor] = []
        self._travelling: Return | None = None
        self._gathered: Sum | None = None
        if plan.route is not None:
            self._travelling = plan.route.send_back(*map(plan.arrived, both))
        else:
            self._home = [x.new_zeros((plan.count, *x.shape[1:])) for x in both]
        if plan.together is not None:
            d_anchor, *rest = [x[len(plan.arrived(x)) :] for x in both]
            self._gathered = plan.together.send_back(d_anchor)
            # Positives are compared with their own anchors only.
            self._own = [x[plan.together.own] for x in rest]

    def wait(self) -> list[Tensor]:
        """(n, D) each, 0 in rows that are neither compared nor gathered. A GPU's stream waits, not the host."""
        if self._travelling is not None:
            self._home = list(self._travelling.wait())
        if self._gathered is not None:
            for home, own in zip(self._home, [self._gathered.wait(), *self._own], strict=True):
                home.index_copy_(0, self._plan.staying, own)
        self._travelling = self._gathered = None
        return self._home


def _split(of_buckets: NDArray[np.int64], strategy: str) -> NDArray[np.bool_]:
    """Which buckets' rows are gathered on all ranks."""
    ranks, buckets = of_buckets.shape
    if strategy != "auto":
        return np.full(buckets, strategy == "gather")
    return of_buckets.sum(0) > _DOMINATING * of_buckets.sum() / ranks
