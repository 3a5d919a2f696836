"""Which batches are exchanged, and who exchanges them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from bench.distributed.all_gather import all_gather
from bench.distributed.ring import ring
from bench.distributed.together import Place
from icckd import reference
from icckd.bench.measure import Row
from icckd.bench.peers import TEMPERATURE, Inputs
from icckd.exchange import Ranks
from icckd.functional import intra_class_contrastive

# Own rows → the loss; the mean over the ranks is that of all rows.
Loss = Callable[[Inputs], Tensor]
STRATEGIES = ("gather", "owner", "auto")
LOCAL = "no exchange: own rows alone"


@dataclass(frozen=True)
class Shape:
    """Rows of every rank, classes of equal size but for the first, numbers of an embedding.

    dominating: The share of all rows that the first class has besides.
    """

    name: str
    rows: int
    classes: int
    dim: int
    dominating: float = 0.0

    def batch(self, world: int, seed: int, device: torch.device) -> Inputs:
        """The rows of all ranks, rank by rank and shuffled; each is an anchor."""
        count = self.rows * world
        random = torch.Generator().manual_seed(seed)
        anchor, positive = torch.randn(2, count, self.dim, generator=random)
        labels = torch.arange(count) % self.classes
        labels[: int(self.dominating * count)] = 0
        labels = labels[torch.randperm(count, generator=random)]
        gate = torch.ones(count, dtype=torch.bool)
        return Inputs(*(x.to(device) for x in (anchor, positive, labels, gate)), self.classes)

    @property
    def described(self) -> Row:
        sizes = {"rows_a_rank": self.rows, "c": self.classes, "d": self.dim, "dominating": self.dominating}
        return {"case": self.name, **sizes, "dtype": "float32"}


SHAPES = [
    Shape("many classes", 512, 256, 512),
    Shape("few classes", 512, 8, 512),
    Shape("one class dominates", 512, 256, 512, dominating=0.75),
]
QUICK = [Shape("many classes", 24, 12, 16)]


def contenders(place: Place, batch: Inputs) -> dict[str, Loss]:
    """Who computes the loss of `batch` from each rank's rows of it, by name.

    This project's plan each step anew, from the labels of all rows, as a run's hosts do, which know them.
    """
    counts, labels = [len(batch.labels) // place.world] * place.world, batch.labels.cpu().numpy()
    return {
        **{f"icckd, {name}": partial(_by_strategy, name, place.group, counts, labels) for name in STRATEGIES},
        "all-gather with gradients": partial(all_gather, group=place.group),
        "ring": partial(ring, group=place.group),
        LOCAL: partial(_ours, group=None),
    }


def _by_strategy(
    strategy: str, group: dist.ProcessGroup, counts: list[int], labels: NDArray[np.int64], x: Inputs
) -> Tensor:
    return _ours(x, Ranks.known(group, counts, labels, strategy))


def _ours(x: Inputs, group: Ranks | None) -> Tensor:
    return intra_class_contrastive(
        x.anchor, x.positive, x.labels, temperature=TEMPERATURE, num_classes=x.classes, group=group
    )


def step(loss: Loss, x: Inputs) -> Tensor:
    """Forward and backward; the loss."""
    x.anchor.grad = x.positive.grad = None
    value = loss(x)
    value.backward()
    return value.detach()


@dataclass(frozen=True)
class Exact:
    """The definition in float64 of the concatenated batch, for one rank.

    loss: What the ranks' losses have as their mean. d_anchor, d_positive: What own gradients are on average over the
    ranks: a rank's own rows have theirs W times, W the number of ranks.
    """

    loss: Tensor
    d_anchor: Tensor
    d_positive: Tensor

    @classmethod
    def of(cls, batch: Inputs, place: Place) -> "Exact":
        anchor, positive = (x.double().requires_grad_() for x in (batch.anchor, batch.positive))
        loss = reference.intra_class_contrastive(anchor, positive, batch.labels, temperature=TEMPERATURE)
        gradients = torch.autograd.grad(loss, (anchor, positive))
        return cls(loss.detach(), *(x.chunk(place.world)[place.rank] for x in gradients))

    def errors(self, loss: Loss, x: Inputs, place: Place) -> tuple[float, float]:
        """The relative errors of loss and gradients over all ranks, ‖computed − exact‖ / ‖exact‖."""
        mean = step(loss, x).double() / place.world
        dist.all_reduce(mean, group=place.group)
        assert x.anchor.grad is not None
        assert x.positive.grad is not None
        pairs = [(x.anchor.grad, self.d_anchor), (x.positive.grad, self.d_positive)]
        squares = torch.stack(
            [(mine.double() / place.world - exact).square().sum() for mine, exact in pairs]
            + [exact.square().sum() for _, exact in pairs]
        )
        dist.all_reduce(squares, group=place.group)
        gradients = (squares[:2] / squares[2:]).sqrt().max().item()
        return ((mean - self.loss).abs() / self.loss.abs()).item(), gradients
