"""How much of the exchange a training step hides behind its arithmetic.

A step is that of a teacher: a trunk makes embeddings of two views; the intra-class loss compares the first view's with
each other and with the second's; a head and cross-entropy follow, whose forward and backward pass lie between the loss
and the moment when the trunk needs the embeddings' gradient. The head is as deep as takes about as long as the
exchange. Nothing averages the networks' gradients: that would use the same links.

hidden = 1 − (step with the exchange − step without) / (exchange alone), where "without" computes the loss of own rows,
and "exchange alone" is the loss with it less the loss of own rows: medians of differences within a round. What is
compared besides, after the exchange, counts as not hidden.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bench.distributed.cases import LOCAL, Loss, Shape, contenders, step
from bench.distributed.together import Place, Together, conditions
from icckd.bench import measure
from icckd.bench.measure import Row
from icckd.bench.peers import Inputs

_MOST_HEAD_LAYERS = 64


@dataclass
class Network:
    """Its step takes `images` (2n, D), of which the second half are the second views of the first."""

    trunk: nn.Sequential
    head: nn.Sequential
    images: Tensor
    batch: Inputs

    @classmethod
    def of(cls, batch: Inputs, head_layers: int) -> "Network":
        """For own rows `batch`: as many layers in the head, each as wide as an embedding."""
        dim, device = batch.anchor.shape[1], batch.anchor.device
        images = torch.cat([batch.anchor, batch.positive]).detach()
        classifier = nn.Linear(dim, batch.classes).to(device)
        return cls(_layers(1, dim, device), _layers(head_layers, dim, device).append(classifier), images, batch)

    def step(self, loss: Loss) -> Tensor:
        """Forward and backward; the total loss."""
        anchor, positive = self.trunk(self.images).chunk(2)
        contrast = loss(Inputs(anchor, positive, self.batch.labels, self.batch.gate, self.batch.classes))
        total = cross_entropy(self.head(anchor), self.batch.labels) + contrast
        total.backward()
        return total.detach()

    def head_only(self) -> None:
        """Forward and backward of the head and cross-entropy."""
        anchor, _ = self.images.chunk(2)
        cross_entropy(self.head(anchor.requires_grad_()), self.batch.labels).backward()


def _layers(count: int, dim: int, device: torch.device) -> nn.Sequential:
    return nn.Sequential(*(nn.Sequential(nn.Linear(dim, dim), nn.ReLU()) for _ in range(count))).to(device)


def measure_hidden(shape: Shape, place: Place, seconds: float) -> Iterator[Row]:
    """A row for each contender that exchanges anything, the same on every rank."""
    batch = shape.batch(place.world, 0, place.device)
    own, losses, clock = place.own(batch), contenders(place, batch), Together(place)
    network = Network.of(own, _head_layers(own, losses, clock, seconds / 5))
    calls: dict[tuple[str, str], measure.Contender] = {}
    for name, loss in losses.items():
        calls["alone", name] = _alone(loss, own)
        calls["step", name] = _step(network, loss)
    times = measure.interleaved(calls, clock, seconds, too_slow=float("inf"), least=15)
    for name in losses:
        if name == LOCAL:
            continue
        alone, more = (_median_difference(times[part, name], times[part, LOCAL]) for part in ("alone", "step"))
        yield {
            "benchmark": "distributed",
            "part": "hidden",
            "contender": name,
            "processes": place.world,
            **shape.described,
            **measure.quantiles(times["step", name]),
            "alone_ms": alone,
            "more_ms": more,
            "hidden": 1 - more / alone,
            **conditions(place),
        }


def _median_difference(these: list[float], others: list[float]) -> float:
    """In milliseconds, over the rounds that both took part in."""
    return measure.quantiles([x - y for x, y in zip(these, others, strict=False)])["median_ms"]


def _head_layers(own: Inputs, losses: dict[str, Loss], clock: Together, seconds: float) -> int:
    """As many as take about as long as the exchange by owners; the same on every rank, as all see the same clock."""
    network = Network.of(own, 1)
    calls = {
        "exchange": _alone(losses["icckd, owner"], own),
        "own": _alone(losses[LOCAL], own),
        "layer": lambda k: network.head_only(),
    }
    times = measure.interleaved(calls, clock, seconds, too_slow=float("inf"))
    exchange, own_rows, layer = (measure.quantiles(times[name])["median_ms"] for name in calls)
    return min(_MOST_HEAD_LAYERS, max(1, round((exchange - own_rows) / layer)))


def _alone(loss: Loss, own: Inputs) -> measure.Contender:
    return lambda k: step(loss, own)


def _step(network: Network, loss: Loss) -> measure.Contender:
    return lambda k: network.step(loss)
