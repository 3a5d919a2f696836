"""The definition of the contrast of rows with the centres of classes."""

import torch
from torch import Tensor

from icckd.reference.arithmetic import accumulated, unit


def center_contrastive(
    features: Tensor,
    centers: Tensor,
    labels: Tensor,
    *,
    scale: float = 64.0,
    margin: float = 0.2,
    weight: float = 1.0,
    reduction: str = "mean",
) -> Tensor:
    """Center contrastive loss: arXiv 2308.00458.

    With x and c the rows and centres divided by their Euclidean norm, y the labels, s the scale, m the margin and λ the
    weight,

        ℓ_i = −log( exp(s (c_y·x_i − m) + 2λ c_y·x_i) / (exp(s (c_y·x_i − m)) + Σ_{j≠y} exp(s c_j·x_i)) )

    A zero vector stays zero, without gradient; rows with a negative label have no loss: this project's choices.

    Args:
        features: (N, D) float.
        centers: (C, D) float, one for each class.
        labels: (N,) integers below C.
        scale: s.
        margin: m, what the cosine with the own centre has to exceed the others by.
        weight: λ of the term that draws a row towards its own centre.
        reduction: "none", "sum", or "mean" over the rows whose label is not negative, 0 without any.

    Returns:
        (N,) or a scalar, float32 (float64 where an input is).
    """
    dtype = torch.promote_types(accumulated(features).dtype, accumulated(centers).dtype)
    counted, index = labels >= 0, labels.long().clamp(min=0)[:, None]
    cosines = unit(features.to(dtype).masked_fill(~counted[:, None], 0)) @ unit(centers.to(dtype)).T
    own = cosines.gather(1, index)
    logits = (scale * cosines).scatter(1, index, scale * (own - margin))
    rows = logits.logsumexp(1) - (scale * (own - margin) + 2 * weight * own).squeeze(1)
    rows = torch.where(counted, rows, 0)
    if reduction == "none":
        return rows
    return rows.sum() if reduction == "sum" else rows.sum() / counted.sum().clamp(min=1)
