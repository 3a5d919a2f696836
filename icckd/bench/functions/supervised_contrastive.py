"""The supervised contrastive loss, beside the matrix of all pairs that published code computes, and packages."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from icckd.bench import peers
from icckd.bench.case import Case, Contender, Function, Work, compiled, missing, too_large
from icckd.functional import supervised_contrastive


@dataclass
class Inputs:
    """features (N, D), labels (N,) in [0, classes)."""

    features: Tensor
    labels: Tensor
    classes: int


def _dense(x: Inputs) -> Tensor:
    """The N×N matrix of similarities and its masks, as in the authors' code (github.com/HobbitLong/SupContrast)."""
    z = normalize(x.features, dim=1)
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    positive = (x.labels[:, None] == x.labels) & ~itself
    similarity = z @ z.T / peers.TEMPERATURE
    log_share = similarity - similarity.masked_fill(itself, -torch.inf).logsumexp(1, keepdim=True)
    count = positive.sum(1)
    rows = -log_share.masked_fill(~positive, 0).sum(1) / count.clamp(min=1)
    return rows.sum() / (count > 0).sum().clamp(min=1)


def _metric_learning(x: Inputs) -> Tensor:
    """pytorch-metric-learning's SupConLoss."""
    from pytorch_metric_learning.losses import SupConLoss

    return SupConLoss(temperature=peers.TEMPERATURE)(x.features, x.labels)


def _inf_cl(x: Inputs) -> Tensor:
    gate = torch.ones_like(x.labels, dtype=torch.bool)
    return peers.inf_cl(peers.Inputs(x.features, x.features, x.labels, gate, x.classes))


@dataclass(frozen=True)
class SupervisedContrastive(Case):
    """N rows of D numbers in C classes of equal size, at the temperature of `icckd.bench.peers`."""

    family: ClassVar[str] = "supervised_contrastive"
    differentiated: ClassVar[tuple[str, ...]] = ("features",)
    reference_waits: ClassVar[bool] = True
    n: int = 16384
    d: int = 128
    c: int = 100

    def inputs(self, seed: int, device: torch.device) -> Inputs:
        random = torch.Generator(device).manual_seed(seed)
        features = torch.randn(self.n, self.d, generator=random, device=device).to(self.torch_dtype)
        labels = torch.randperm(self.n, generator=random, device=device) % self.c
        return Inputs(features, labels, self.c)

    def ours(self, backend: str) -> Function:
        return lambda x: supervised_contrastive(
            x.features, x.labels, temperature=peers.TEMPERATURE, num_classes=x.classes, backend=backend
        )

    def peers(self, device: torch.device, host_compiler: str = "aot_eager") -> Sequence[Contender]:
        no_room = self._no_room(6, device)
        return [
            Contender("dense", _dense, why_not=no_room, capturable=True),
            Contender(
                "dense, torch.compile",
                compiled(_dense, device, host_compiler),
                why_not=no_room,
                compiles=True,
                capturable=True,
            ),
            Contender(
                "Inf-CL (all pairs, another loss)",
                _inf_cl,
                why_not=missing("inf_cl", "inf-cl"),
                checked=False,
                only_on="cuda",
            ),
        ]

    def packaged_peers(self, device: torch.device) -> Sequence[Contender]:
        why_not = missing("pytorch_metric_learning", "pytorch-metric-learning") or self._no_room(10, device)
        return [Contender("pytorch-metric-learning", _metric_learning, why_not=why_not)]

    def work(self, backward: bool) -> Work:
        """Rows read once, the gradient written once; 2 FLOP a pair and number, 4 more for the gradient."""
        rows, products = (2, 6) if backward else (1, 2)
        return Work(rows * self.n * self.d * self.torch_dtype.itemsize, products * self.n**2 * self.d)

    def tiny(self) -> "SupervisedContrastive":
        return replace(self, n=40, d=24, c=5)

    @property
    def amplification(self) -> float:
        """Similarities are divided by the temperature."""
        return 1 / peers.TEMPERATURE

    def _no_room(self, matrices: int, device: torch.device) -> str | None:
        return too_large(matrices * self.n**2, self.torch_dtype.itemsize, device)
