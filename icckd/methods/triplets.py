"""Triplets of rows with labels, whose negatives are drawn by how far away they are."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from icckd.backends.arithmetic import accumulation_dtype


class Distances(NamedTuple):
    """Which distances δ between unit rows a negative may have: low < δ < high.

    `clamped`: also smaller ones, which then weigh as much as `low`.
    """

    low: float
    high: float
    clamped: bool = False


def triplet_loss(
    features: Tensor,
    labels: Tensor,
    *,
    margin: float,
    distances: Distances,
    swapped: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The mean of max(0, ‖a − p‖ − ‖a − n‖ + margin) over ordered pairs (a, p) of one label, rows being normalised.

    Each pair gets one negative n, of another label, which `draw_negatives` draws. A pair whose a has no admissible one
    does not count; without any pair that does the loss is 0. `swapped`: with p and n in each other's place, so that
    rows of a label are driven apart, and negatives closer. That the pairs are averaged is this project's choice.

    Args:
        features: f(N, D), with gradient.
        labels: Integers (N,).
        margin: By how much negatives should be further away.
        distances: Which distances a negative may have.
        swapped: As said above.
        generator: Random numbers of the features' device; None: its default ones.

    Returns:
        0-dim, float32 (float64 for float64 features). Memory is O(N²).
    """
    rows = normalize(features.to(accumulation_dtype(features)))
    # By differences: a matrix product would cancel where rows are close.
    apart = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    weights = negative_weights(apart, labels, features.shape[1], distances)
    to_negative = apart.gather(1, draw_negatives(weights, generator))
    pairs = (labels[:, None] == labels) & (weights.sum(1, keepdim=True) > 0)
    pairs.fill_diagonal_(False)
    nearer, further = (to_negative, apart) if swapped else (apart, to_negative)
    return torch.where(pairs, (nearer - further + margin).relu(), 0).sum() / pairs.sum().clamp(min=1)


@torch.no_grad()
def negative_weights(apart: Tensor, labels: Tensor, dim: int, distances: Distances) -> Tensor:
    """How likely each row is as the negative of each other one: float64 (N, N), of every row the largest is 1.

    `apart` (N, N) are the distances δ of unit rows of `dim` numbers, and

        log w = (2 − dim) log δ − ((dim − 3)/2) log(1 − δ²/4)

    which is 1 over how often such rows are δ apart where their directions are random (Wu et al. 2017, arXiv
    1706.07567). Rows of the same label, and those not at admissible `distances`, have 0; of a row perhaps all.
    """
    delta = apart.double()
    allowed = (labels[:, None] != labels) & (delta < distances.high)
    if distances.clamped:
        delta = delta.clamp(min=distances.low)
    else:
        allowed &= delta > distances.low
    log_weights = (2 - dim) * delta.log() - (dim - 3) / 2 * torch.log1p(-(delta**2) / 4)
    log_weights = torch.where(allowed, log_weights, -torch.inf)
    return torch.where(allowed, (log_weights - log_weights.amax(1, keepdim=True)).exp(), 0)


def draw_negatives(weights: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """For each row N negatives, drawn with replacement in proportion to its weights, float64 (N, N): int64 (N, N).

    A row without weights gets whatever. Nothing waits for the device.
    """
    summed = weights.cumsum(1)
    total = summed[:, -1:]
    drawn = torch.rand(weights.shape, dtype=weights.dtype, device=weights.device, generator=generator) * total
    below_total = drawn.minimum(total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(summed, below_total, right=True).clamp(max=len(weights) - 1)
