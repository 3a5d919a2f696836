"""Wrong labels and sets of candidate labels, drawn for training images: the same whatever the seed of a run."""

import numpy as np
import torch
from torch import Tensor

from icckd.settings import LabelNoise

# First word of its seed, so that it shares no stream with orders and augmentation.
_LABEL_NOISE = 3
_DRAWN_AT_ONCE = 1 << 22


def with_noise(labels: Tensor, classes: int, noise: LabelNoise) -> tuple[Tensor, Tensor | None]:
    """The labels to train on, int64 (N,), and the candidate labels, bool (N, C), where `noise` is of them; else None.

    `labels` are the true ones, int64 (N,), in [0, C), of C = `classes` of 2 or more.
    """
    if noise.kind == "symmetric":
        return symmetric_noise(labels, classes, noise.amount), None
    candidates = candidate_labels(labels, classes, noise.amount)
    return one_of(candidates), candidates


def symmetric_noise(labels: Tensor, classes: int, share: float) -> Tensor:
    """`labels`, int64 (N,), of which that share of each class, rounded, is one of the other classes, uniformly.

    A share of exactly so many of each class is this project's reading of symmetric noise; where each label is wrong by
    chance it is so on average. A larger share changes the same labels to the same classes, and further ones.
    """
    random, true = _random(), labels.numpy()
    others = (true + random.integers(1, classes, len(true))) % classes
    noisy = true.copy()
    for label in np.unique(true):
        members = random.permutation(np.flatnonzero(true == label))
        wrong = members[: round(share * len(members))]
        noisy[wrong] = others[wrong]
    return torch.from_numpy(noisy)


def candidate_labels(labels: Tensor, classes: int, probability: float) -> Tensor:
    """Candidate labels, bool (N, C), of images whose true ones are `labels`, int64 (N,).

    Each set holds the true class and every other one with `probability` (the setting of partial-label learning; arXiv
    2505.22028). A larger probability adds to the same sets.
    """
    random, step = _random(), max(1, _DRAWN_AT_ONCE // classes)
    candidates = torch.empty(len(labels), classes, dtype=torch.bool)
    for part in candidates.split(step):
        part.copy_(torch.from_numpy(random.random(part.shape) < probability))
    return candidates.scatter_(1, labels.unsqueeze(1), True)


def one_of(candidates: Tensor) -> Tensor:
    """One of each image's candidates, bool (N, C), uniformly: int64 (N,). Which of them is the true one plays no part.

    It is what is left to methods that want one label.
    """
    drawn = torch.from_numpy(_random(1).random(len(candidates)))
    step = max(1, _DRAWN_AT_ONCE // candidates.shape[1])
    return torch.cat([_at(share, part) for share, part in zip(drawn.split(step), candidates.split(step), strict=True)])


def _at(share: Tensor, candidates: Tensor) -> Tensor:
    """The candidate at that share, in [0, 1), of each row's candidates."""
    rank = candidates.cumsum(1, dtype=torch.int32)
    return (rank > (share * rank[:, -1]).floor().unsqueeze(1)).int().argmax(1)


def _random(stream: int = 0) -> np.random.Generator:
    return np.random.default_rng([_LABEL_NOISE, stream])
