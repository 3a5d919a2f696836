"""The definition of adaptive hierarchical similarity: N × N similarities, margins by the classes' own."""

import torch
from torch import Tensor

from icckd.reference.arithmetic import accumulated, unit

# How far apart Ŝ can be.
_SPREAD = 0.2
# Similarities of classes that differ by no more roundings than this are equal.
_ROUNDINGS = 64


def hierarchical_similarity(
    features: Tensor,
    labels: Tensor,
    *,
    augmented: Tensor | None = None,
    gamma: float = 0.5,
    rho: float = 2.0,
    positive_scale: float = 2.0,
    negative_scale: float = 50.0,
) -> Tensor:
    """Adaptive hierarchical similarity: pairs are pulled and pushed past margins that the classes' similarities set.

    With z the rows divided by their Euclidean norm (a zero row stays zero, without gradient), S_ij = z_i·z_j, S_ab the
    mean of S_ij over the pairs of a row of class a and another row of class b, where there is one, and

        Ŝ_ab = 0.2 (S_ab − min S) / (max S − min S)        (0 where max = min, to 64 roundings)

    over all S_ab of the batch, a = b among them, an anchor i of class a has the loss

        ℓ_i = 1/ς log(1 + Σ_j exp(−ς (S_ij − γ − Ŝ_aa)))      j: the other rows of class a
            + 1/σ log(1 + Σ_j exp( σ (S_ij − γ + Ŝ_ab)))      j: the rows of other classes b
            + 1/ρ log(1 + exp(−ρ (z_i·z'_i − M_a)))           if it is given an augmented row z'_i

    where M_a is the least S_ij of two rows of class a, 1 where there is one row. Ŝ and M get no gradient. A sum without
    terms adds nothing. The loss is that of arXiv 2111.00006, where similarity is a Poincaré ball's; cosine similarity,
    the mean over anchors, own and other classes in one minimum and maximum, and the defaults of ρ, ς and σ are this
    project's reading.

    Args:
        features: (N, D) float.
        labels: (N,) integers. A negative label takes the row out altogether.
        augmented: (N, D) float, another view of each row, or None.
        gamma: γ, the margin between the two.
        rho, positive_scale, negative_scale: ρ, ς and σ, above 0.

    Returns:
        The mean of ℓ_i, a scalar, float32 (float64 for float64 inputs); 0 without anchors.
    """
    used = labels >= 0
    z, labels = unit(accumulated(features)[used]), labels.long()[used]
    similarity = z @ z.T
    same = labels[:, None] == labels
    pair = ~torch.eye(len(z), dtype=torch.bool, device=z.device)
    with torch.no_grad():
        classes, of_row = labels.unique(return_inverse=True)
        scaled = _similarity_of_classes(similarity, of_row, len(classes))[of_row][:, of_row]
        least = _least(_least(similarity, same & pair).expand_as(similarity), same)
    own = positive_scale * (gamma + scaled - similarity)
    other = negative_scale * (similarity - gamma + scaled)
    rows = _log_one_plus(own, same & pair) / positive_scale + _log_one_plus(other, ~same) / negative_scale
    if augmented is not None:
        agreement = (z * unit(accumulated(augmented)[used])).sum(1)
        rows = rows + torch.logaddexp(torch.zeros_like(agreement), rho * (least - agreement)) / rho
    return rows.sum() / max(len(z), 1)


def _similarity_of_classes(similarity: Tensor, of_row: Tensor, classes: int) -> Tensor:
    """Ŝ (classes, classes); 0 for a class of one row with itself."""
    member = (of_row[:, None] == torch.arange(classes, device=of_row.device)).to(similarity)
    size = member.sum(0)
    pairs = size[:, None] * size - size.diag()
    mean = member.T @ (similarity - similarity.diag().diag()) @ member / pairs.clamp(min=1)
    there = mean[pairs > 0]
    if there.numel() == 0 or there.max() - there.min() <= _ROUNDINGS * torch.finfo(mean.dtype).eps:
        return torch.zeros_like(mean)
    return (_SPREAD * (mean - there.min()) / (there.max() - there.min())).masked_fill(pairs == 0, 0)


def _least(x: Tensor, counted: Tensor) -> Tensor:
    """The least number of every row among those that are counted; 1 where there is none."""
    return torch.cat([x.new_ones(len(x), 1), x.masked_fill(~counted, 1)], dim=1).amin(1)


def _log_one_plus(exponents: Tensor, counted: Tensor) -> Tensor:
    """log(1 + Σ_j exp(exponent_ij)) of every row, over the pairs that are counted."""
    exponents = exponents.masked_fill(~counted, -torch.inf)
    return torch.cat([exponents.new_zeros(len(exponents), 1), exponents], dim=1).logsumexp(1)
