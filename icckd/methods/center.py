"""A teacher whose embeddings are contrasted with the centres of all classes."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from icckd.functional import center_contrastive, cross_entropy_with_margin
from icckd.methods.base import MethodSettings, Network, Outputs, Rule, Samples, TeacherMethod, above_zero, register


@dataclass
class CenterSettings(MethodSettings):
    """Cross-entropy + weight · centre contrast (arXiv 2308.00458).

    Args:
        weight: Weight of the centre contrast of the features.
        scale: What similarities are multiplied by, s.
        margin: What is taken from the similarity to the own centre, m.
        pull: How much more the own centre attracts, λ.
        centers: Learned as the network's weights are, or moving averages of their classes' features.
        momentum: How much of a moving average stays at each step that its class is part of.
    """

    weight: float = 1.0
    scale: float = 64.0
    margin: float = 0.2
    pull: float = 1.0
    centers: Literal["learned", "average"] = "learned"
    momentum: float = 0.9

    def rules(self) -> dict[str, Rule]:
        return {
            **super().rules(),
            "scale": above_zero(self.scale),
            "momentum": Rule(0 <= self.momentum < 1, "in [0, 1)"),
        }


@register
class Center(TeacherMethod):
    """The centre contrast of the features beside the cross-entropy: their sum, and moving averages, are this project's.

    A class that has not been met yet has no moving average: its centre is zero, as far from any row as orthogonal ones.
    """

    name = "center"
    settings: CenterSettings
    centers: Tensor

    def __init__(self, settings: CenterSettings, network: Network, backend: str):
        super().__init__(settings, network, backend)
        shape = (network.classes, network.feature_dim)
        if settings.centers == "learned":
            self.centers = nn.Parameter(normalize(torch.randn(shape)))
        else:
            self.register_buffer("centers", torch.zeros(shape))
        self._latest: tuple[Tensor, Samples] | None = None

    def forward(self, outputs: Outputs, samples: Samples) -> dict[str, Tensor]:
        settings, labels = self.settings, samples.labels
        if settings.centers == "average":
            self._latest = outputs.features.detach(), samples
        cross_entropy, _ = cross_entropy_with_margin(outputs.logits, labels, backend=self.backend)
        contrast = center_contrastive(
            outputs.features,
            self.centers.to(outputs.features.dtype),
            labels,
            scale=settings.scale,
            margin=settings.margin,
            weight=settings.pull,
            backend=self.backend,
        )
        loss = cross_entropy + settings.weight * contrast
        return {"loss": loss, "cross_entropy": cross_entropy, "center_contrast": contrast}

    def after_step(self, taken: Tensor) -> None:
        if self._latest is None:
            return
        (features, samples), self._latest = self._latest, None
        rows = normalize(features.to(self.centers.dtype))
        sums = torch.cat([rows, torch.ones_like(rows[:, :1])], dim=1)
        sums = sums.new_zeros(len(self.centers), sums.shape[1]).index_add_(0, samples.labels, sums)
        if samples.ranks is not None:
            sums = samples.ranks.mean(sums)
        means, met = normalize(sums[:, :-1]), sums[:, -1:] > 0
        momentum = torch.where(self.centers.any(dim=1, keepdim=True), self.settings.momentum, 0.0)
        moved = normalize(momentum * self.centers + (1 - momentum) * means)
        self.centers.copy_(torch.where(met & taken, moved, self.centers))
