"""Contrast with the centres of classes, for every backend: matrix products around its own cross-entropy.

    z_ij = s x_i·c_j, less s m where j = y_i            the logits, of some rows at a time
    ℓ_i  = −log softmax(z_i)[y_i] − 2λ x_i·c_{y_i}
    dz_i = softmax(z_i) − (1 + 2λ/s) e_{y_i},   dx_i = s Σ_j dz_ij c_j,   dc_j = s Σ_i dz_ij x_i

The losses take 2·N·C·D operations, both gradients 4·N·C·D more. Beside inputs and gradients there are never more than
2·CHUNK numbers, or 2·C where that is more: a chunk's logits and their gradient.
"""

from collections.abc import Iterator
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

# Logits that are there at a time: 64 MB in float32.
CHUNK = 2**24
_IGNORED = -1
# Of cross-entropy: no label smoothing, margins of logits, which take no exponential.
_SETTINGS = 0.0, "logit", _IGNORED


class CenterProblem(NamedTuple):
    """Rows x (N, D) and centres c (C, D), float32 or float64, taken as they are; labels int64 (N,); s, m and λ."""

    features: Tensor
    centers: Tensor
    labels: Tensor
    scale: float
    margin: float
    weight: float


def center_contrastive_rows(kernels: ModuleType, problem: CenterProblem) -> tuple[Tensor, Tensor]:
    """ℓ (N,), 0 where the label is negative, and the log-sum-exp of each row's logits less their maximum (N,)."""
    rows = problem.features.new_empty(len(problem.labels))
    lse = torch.empty_like(rows)
    for part in _chunks(problem):
        logits, labels, own = _logits(problem, part)
        rows[part], _, lse[part] = kernels.cross_entropy_margin_rows(logits, labels, *_SETTINGS)
        rows[part] -= 2 * problem.weight * own
    return rows, lse


def center_contrastive_rows_backward(
    kernels: ModuleType, grad_rows: Tensor, lse: Tensor, problem: CenterProblem, need_features: bool, need_centers: bool
) -> tuple[Tensor, Tensor]:
    """The gradients of Σ grad_rows · ℓ with respect to rows and centres; empty if not needed."""
    gradients = _zeros(problem, need_features, need_centers)
    for part in _chunks(problem):
        logits, labels, _ = _logits(problem, part)
        d_logits = kernels.cross_entropy_margin_rows_backward(grad_rows[part], lse[part], logits, labels, 0.0, _IGNORED)
        _pass_on(problem, part, d_logits, grad_rows[part], problem.scale, *gradients)
    return gradients


def center_contrastive_sum(
    kernels: ModuleType, problem: CenterProblem, mean: bool, need_features: bool, need_centers: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Σ ℓ, or its mean over the rows whose label is not negative (0 without any), and its gradients as above."""
    counted = (problem.labels >= 0).to(problem.features.dtype)
    share = 1 / counted.sum().clamp(min=1) if mean else counted.new_ones(())
    loss, gradients = counted.new_zeros(()), _zeros(problem, need_features, need_centers)
    for part in _chunks(problem):
        logits, labels, own = _logits(problem, part)
        entropy, _, d_logits = kernels.cross_entropy_margin_sum(logits, labels, False, *_SETTINGS)
        loss += entropy - 2 * problem.weight * own.sum()
        _pass_on(problem, part, d_logits, torch.ones_like(own), problem.scale * share, *gradients)
    return loss * share, *gradients


def _chunks(problem: CenterProblem) -> Iterator[slice]:
    rows = max(1, CHUNK // len(problem.centers))
    for start in range(0, len(problem.labels), rows):
        yield slice(start, start + rows)


def _logits(problem: CenterProblem, part: slice) -> tuple[Tensor, Tensor, Tensor]:
    """A chunk's logits, its labels with one number for all that are ignored, and c_y·x (n,), 0 in ignored rows."""
    labels = problem.labels[part]
    logits = (problem.features[part] * problem.scale) @ problem.centers.T
    index = _index(labels, logits)
    own = logits.gather(1, index)
    logits.scatter_(1, index, own - problem.scale * problem.margin)
    cosine = torch.where(labels >= 0, own.squeeze(1) / problem.scale, 0)
    return logits, labels.clamp(min=_IGNORED), cosine


def _pass_on(
    problem: CenterProblem,
    part: slice,
    d_logits: Tensor,
    grad_rows: Tensor,
    factor: float | Tensor,
    d_features: Tensor,
    d_centers: Tensor,
) -> None:
    """Add what a chunk's cross-entropy and its own centres' term, of these rows' upstream gradient, give."""
    labels = problem.labels[part]
    pull = torch.where(labels >= 0, grad_rows * (2 * problem.weight / problem.scale), 0)
    index = _index(labels, d_logits)
    d_logits.scatter_(1, index, d_logits.gather(1, index) - pull[:, None])
    if d_features.dim() == 2:
        d_features[part] = d_logits @ problem.centers * factor
    if d_centers.dim() == 2:
        d_centers.addmm_(d_logits.T, problem.features[part] * factor)


def _index(labels: Tensor, logits: Tensor) -> Tensor:
    """Each row's class as a column; some class where it has none, which kernels answer with NaN."""
    return labels.clamp(0, logits.shape[1] - 1)[:, None]


def _zeros(problem: CenterProblem, need_features: bool, need_centers: bool) -> tuple[Tensor, Tensor]:
    features, centers = problem.features, problem.centers
    return (
        features.new_zeros(features.shape if need_features else (0,)),
        centers.new_zeros(centers.shape if need_centers else (0,)),
    )
