"""A teacher that learns from noisy labels, or from sets of candidates, with weakly supervised spectral contrast."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax, normalize

from icckd.backends.arithmetic import accumulation_dtype
from icckd.functional import weak_spectral
from icckd.methods.base import MethodSettings, Network, Outputs, Rule, Samples, TeacherMethod, TrainingSet, register
from icckd.methods.projection import projection


@dataclass
class WscSettings(MethodSettings):
    """Weakly supervised spectral contrast (arXiv 2505.22028).

    Args:
        weight: Weight of the contrast at the end of the training; it rises linearly from 0, epoch by epoch.
        alpha: How much two views of an image attract each other, α.
        beta: How much images of like posteriors do, β.
        kappa: How much all repel each other, κ.
        volume: Weight of log |det T|, which keeps the transition matrix T of the labels' noise small.
        balance: Weight of the cross-entropy of the mean prediction with equal classes, which keeps all in use.
        dim: Width of the projection that is contrasted; it is dropped after training.
    """

    weight: float = 1.0
    alpha: float = 1.0
    beta: float = 12.0
    kappa: float = 3.0
    volume: float = 1e-4
    balance: float = 0.1
    dim: int = 128

    def rules(self) -> dict[str, Rule]:
        return {**super().rules(), "dim": Rule(self.dim >= 1, "1 or more")}


@register
class Wsc(TeacherMethod):
    """One weakly and two strongly augmented views of each image, with predictions p_w, p_1, p_2 of their classes.

    Of noisy labels ỹ, with T[c, ỹ] the probability that class c is labelled ỹ:

        −log (p_w T)[ỹ] + CE(p_1, p_w) + CE(p_2, p_w) + volume · log |det T| − balance · Σ_c log(mean p_w)[c] / C
        + progress · weight · contrast of the strong views' projections (unit rows), posteriors p_w

    T = I + sigmoid(W) off the diagonal, its rows divided by their sums; each begins with half of its sum on the
    diagonal, two thirds of two classes, where half would tell nothing (this project's choice). Where labels are sets S
    of candidates:

        −(mean over the views) Σ_{c ∉ S} log(1 − p[c]) + progress · (weight · contrast + Σ over the views KL(q ‖ p))

    with q uniform on S at first, then, from each time that an image is seen, the cube root of p_w p_1 p_2 on S divided
    by its sum. Neither p_w as a target nor q has a gradient. progress: the share of the epochs that are over.
    """

    name = "wsc"
    spans_ranks = True
    views = 3
    strong_views = 2
    settings: WscSettings
    candidates: Tensor | None
    confidence: Tensor | None

    def __init__(self, settings: WscSettings, network: Network, backend: str):
        super().__init__(settings, network, backend)
        self.projection = projection(network.feature_dim, settings.dim)
        self.transition = Transition(network.classes)
        self.register_buffer("candidates", None)
        self.register_buffer("confidence", None)
        self._latest: tuple[Tensor, Tensor] | None = None

    def prepare(self, known: TrainingSet) -> None:
        if known.candidates is None:
            return
        device = next(self.parameters()).device
        self.candidates = known.candidates.to(device)
        self.confidence = (self.candidates / self.candidates.sum(dim=1, keepdim=True)).float()

    def forward(self, outputs: Outputs, samples: Samples) -> dict[str, Tensor]:
        logits = _precise(outputs.logits).unflatten(0, (self.views, len(samples.labels)))
        contrast = self._contrast(outputs, logits[0], samples)
        if self.candidates is not None:
            losses = self._of_candidates(logits, samples)
            ramped = self.settings.weight * contrast + losses["consistency"]
            loss = losses["cross_entropy"] + samples.progress * ramped
        else:
            losses = self._of_noisy_labels(logits, samples)
            loss = losses["cross_entropy"] + losses["consistency"] + samples.progress * self.settings.weight * contrast
            loss = loss + self.settings.volume * losses["volume"] + self.settings.balance * losses["balance"]
        return {"loss": loss, **losses, "contrast": contrast}

    def after_step(self, taken: Tensor) -> None:
        if self._latest is not None and self.confidence is not None:
            indices, latest = self._latest
            self.confidence.index_copy_(0, indices, torch.where(taken, latest, self.confidence[indices]))
        self._latest = None

    def _contrast(self, outputs: Outputs, weak: Tensor, samples: Samples) -> Tensor:
        rows = normalize(_precise(self.projection(outputs.features[len(weak) :])))
        first, second = rows.unflatten(0, (self.strong_views, len(weak)))
        settings, posterior = self.settings, weak.detach().softmax(dim=1)
        return weak_spectral(
            first,
            second,
            posterior,
            alpha=settings.alpha,
            beta=settings.beta,
            kappa=settings.kappa,
            group=samples.ranks,
            backend=self.backend,
        )

    def _of_noisy_labels(self, logits: Tensor, samples: Samples) -> dict[str, Tensor]:
        weak, first, second = log_softmax(logits, dim=2)
        log_noise = self.transition.matrix().log()
        # log Σ_c p[c] T[c, ỹ]
        labelled = (weak + log_noise.T[samples.labels]).logsumexp(dim=1)
        target = weak.detach().exp()
        mean = samples.mean(weak.exp().sum(dim=0))
        if samples.ranks is not None:
            mean = samples.ranks.sum_with_gradient(mean) / samples.ranks.size
        return {
            "cross_entropy": samples.mean(-labelled.sum()),
            "consistency": samples.mean(-(target * (first + second)).sum()),
            "volume": torch.linalg.slogdet(log_noise.double().exp()).logabsdet.to(weak.dtype),
            "balance": -mean.log().mean(),
        }

    def _of_candidates(self, logits: Tensor, samples: Samples) -> dict[str, Tensor]:
        assert self.candidates is not None
        assert self.confidence is not None
        confidence, allowed = self.confidence[samples.indices], self.candidates[samples.indices]
        log_p = log_softmax(logits, dim=2)
        self._latest = self._seen(log_p.detach(), allowed, samples)
        excluded = log_one_minus_softmax(logits).masked_fill(allowed, 0)
        divergence = (confidence * (confidence.clamp(min=1e-30).log() - log_p)).sum()
        return {
            "cross_entropy": samples.mean(-excluded.sum() / self.views),
            "consistency": samples.mean(divergence),
        }

    def _seen(self, log_p: Tensor, allowed: Tensor, samples: Samples) -> tuple[Tensor, Tensor]:
        """The images of all ranks, and how sure the network is by now of each of their candidates (B, C)."""
        confidence = log_p.mean(dim=0).masked_fill(~allowed, -math.inf).softmax(dim=1)
        if samples.ranks is None:
            return samples.indices, confidence
        return samples.ranks.gather(samples.indices), samples.ranks.gather(confidence)


class Transition(nn.Module):
    """Which label an image of each class gets, with which probability."""

    def __init__(self, classes: int):
        super().__init__()
        # Weights decay towards where they begin.
        self.change = nn.Parameter(torch.zeros(classes, classes))
        self.begin = -math.log(max(classes - 2, 1))

    def matrix(self) -> Tensor:
        """T (C, C), each row a distribution."""
        others = (self.change + self.begin).sigmoid()
        matrix = others - torch.diag_embed(others.diagonal()) + torch.eye(len(others), device=others.device)
        return matrix / matrix.sum(dim=1, keepdim=True)


def _precise(x: Tensor) -> Tensor:
    return x.to(accumulation_dtype(x))


def log_one_minus_softmax(logits: Tensor) -> Tensor:
    """log(1 − softmax) of (…, C) logits, without cancellation: of the most probable class by the sum of the others."""
    top = logits.argmax(dim=-1, keepdim=True)
    rest = logits.scatter(-1, top, -math.inf).logsumexp(dim=-1, keepdim=True) - logits.logsumexp(dim=-1, keepdim=True)
    return torch.log1p(-logits.softmax(dim=-1).scatter(-1, top, 0)).scatter(-1, top, rest)
