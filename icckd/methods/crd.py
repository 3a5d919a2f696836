"""Contrastive representation distillation: the teacher's embedding of an image among those of other classes."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, softplus

from icckd.functional import bank_products
from icckd.methods.base import (
    Outputs,
    Pair,
    Rule,
    Samples,
    StudentMethod,
    StudentMethodSettings,
    above_zero,
    register,
)
from icckd.methods.negatives import NegativeSampler

if TYPE_CHECKING:
    from icckd.exchange import Ranks


@dataclass
class CrdSettings(StudentMethodSettings):
    """Contrastive representation distillation (Tian et al. 2020, arXiv 1910.10699).

    Args:
        weight: What the method's loss is multiplied by.
        dim: Width of the space where both networks' embeddings are compared.
        negatives: Images of other classes that each image is contrasted with.
        temperature: Temperature τ of the contrast.
        momentum: How much of an image's remembered embedding stays when it is seen again.
    """

    weight: float = 0.8
    dim: int = 128
    negatives: int = 16384
    temperature: float = 0.07
    momentum: float = 0.5

    def rules(self) -> dict[str, Rule]:
        return {
            **super().rules(),
            "dim": Rule(self.dim >= 1, "1 or more"),
            "negatives": Rule(self.negatives >= 1, "1 or more"),
            "temperature": above_zero(self.temperature),
            "momentum": Rule(0 <= self.momentum < 1, "in [0, 1)"),
        }


@register
class Crd(StudentMethod):
    """Noise-contrastive estimation against two memory banks, one of either network's embeddings of all n images.

    Embeddings are features through a linear layer (trained, the teacher's too), divided by their Euclidean norm. Each
    image's embedding v by one network meets in the other's bank its own image and K of other classes, and with
    h = exp(v·u/τ)/Z and c = K/n the loss is, averaged over the batch and summed over both networks,

        −log( h⁺ / (h⁺ + c) ) − Σ_K log( c / (h⁻ + c) )

    Z is n times the mean of exp(v·u/τ) over the first batch, then fixed, for each network. Banks begin with random
    directions and move by `momentum` at each step.
    """

    name = "crd"
    settings: CrdSettings

    def __init__(self, settings: Any, pair: Pair, backend: str):
        super().__init__(settings, pair, backend)
        dim, count = self.settings.dim, len(pair.labels)
        self.sampler = NegativeSampler(pair.labels)
        self.student = _Side(pair.student.feature_dim, dim, count)
        self.teacher = _Side(pair.teacher.feature_dim, dim, count)
        self._latest: tuple[Samples, Tensor, Tensor] | None = None

    def forward(self, student: Outputs, teacher: Outputs, samples: Samples) -> Tensor:
        ranks = samples.ranks
        part = None if ranks is None else (sum(ranks.counts), ranks.own)
        negatives = self.sampler.draw(samples.indices, self.settings.negatives, part=part)
        index = torch.cat([samples.indices[:, None], negatives], dim=1)
        own, other = self.student.embed(student.features), self.teacher.embed(teacher.features)
        self._latest = (samples, own.detach(), other.detach())
        return self._contrast(own, self.teacher.bank, index, self.student, ranks) + self._contrast(
            other, self.student.bank, index, self.teacher, ranks
        )

    def after_step(self, taken: Tensor) -> None:
        if self._latest is not None:
            samples, *embeddings = self._latest
            indices, own, other = (
                x if samples.ranks is None else samples.ranks.gather(x) for x in (samples.indices, *embeddings)
            )
            self.student.remember(own, indices, self.settings.momentum, taken)
            self.teacher.remember(other, indices, self.settings.momentum, taken)
        self._latest = None

    def _contrast(self, embedding: Tensor, bank: Tensor, index: Tensor, side: "_Side", ranks: "Ranks | None") -> Tensor:
        """The loss of one network's embeddings (B, dim) against the other's bank; `index` (B, 1 + K), the own first."""
        images, negatives = len(bank), index.shape[1] - 1
        similarity = bank_products(embedding, bank, index, backend=self.backend) / self.settings.temperature
        # log(h / c)
        excess = similarity - side.log_normalizer(similarity, ranks) - math.log(negatives / images)
        return (softplus(-excess[:, 0]) + softplus(excess[:, 1:]).sum(dim=1)).mean()


class _Side(nn.Module):
    """What crd keeps of one network: its linear layer, the bank of its embeddings (n, dim), and log Z."""

    bank: Tensor
    log_z: Tensor
    known: Tensor

    def __init__(self, features: int, dim: int, images: int):
        super().__init__()
        self.linear = nn.Linear(features, dim)
        self.register_buffer("bank", normalize(torch.randn(images, dim)))
        self.register_buffer("log_z", torch.zeros(()))
        self.register_buffer("known", torch.zeros((), dtype=torch.bool))
        self._proposed: Tensor | None = None

    def embed(self, features: Tensor) -> Tensor:
        return normalize(self.linear(features).float())

    def log_normalizer(self, similarity: Tensor, ranks: "Ranks | None") -> Tensor:
        """log Z, of (B, 1 + K) similarities v·u/τ, of all ranks, where there is none yet. No look at the device."""
        total, rows = similarity.detach().logsumexp(dim=(0, 1)), len(similarity)
        if ranks is not None:
            total, rows = ranks.mean(total.double().exp()).mul(ranks.size).log().float(), sum(ranks.counts)
        own = total + math.log(len(self.bank) / (max(rows, 1) * similarity.shape[1]))
        self._proposed = torch.where(self.known, self.log_z, own)
        return self._proposed

    def remember(self, embedding: Tensor, indices: Tensor, momentum: float, taken: Tensor) -> None:
        """Move the images' rows of the bank towards their embeddings, and keep Z, if the step was `taken`."""
        before = self.bank[indices]
        rows = normalize(momentum * before + (1 - momentum) * embedding)
        self.bank.index_copy_(0, indices, torch.where(taken, rows, before))
        if self._proposed is not None:
            self.log_z.copy_(torch.where(taken, self._proposed, self.log_z))
            self.known.logical_or_(taken)
