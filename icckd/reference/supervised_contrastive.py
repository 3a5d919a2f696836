"""The definition of the supervised contrastive loss: an N × N matrix of similarities."""

import torch
from torch import Tensor

from icckd.ops.values import labels_below
from icckd.reference.arithmetic import accumulated, unit


def supervised_contrastive(
    features: Tensor,
    labels: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    reduction: str = "mean",
    num_classes: int | None = None,
) -> Tensor:
    """Supervised contrast (Khosla et al. 2020, arXiv 2004.11362, its L_out).

    With z the rows divided by their Euclidean norm (a zero row stays zero), κ = 1/temperature, A_i the other rows and
    P_i those of them that bear the label of i,

        ℓ_i = log Σ_{a∈A_i} exp(κ z_i·z_a) − κ/|P_i| Σ_{p∈P_i} z_i·z_p

    Args:
        features: (N, D) float; in the paper two views of every image.
        labels: (N,) integers. A negative label takes the row out altogether.
        temperature: τ > 0, a float or a 0-dim tensor.
        reduction: "none": ℓ (N,), 0 where there is no P_i. "sum"; "mean": over the rows that have one, 0 without any.
        num_classes: A bound that no label may reach.

    Returns:
        (N,) or a scalar, float32 (float64 for float64 inputs).
    """
    labels_below("labels", labels, num_classes)
    labels, labelled = labels.long(), labels >= 0
    z = unit(accumulated(features).masked_fill(~labelled[:, None], 0))
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    others = labelled[:, None] & labelled & ~itself
    positive = others & (labels[:, None] == labels)
    count = positive.sum(dim=1)
    is_anchor = count > 0

    similarity = z @ z.T / temperature
    # A row that is no anchor may be alone: the logarithm of an empty sum has no gradient.
    total = similarity.masked_fill(~others & is_anchor[:, None], -torch.inf).logsumexp(dim=1)
    attraction = similarity.masked_fill(~positive, 0).sum(dim=1) / count.clamp(min=1)
    rows = (total - attraction).masked_fill(~is_anchor, 0)
    if reduction == "none":
        return rows
    return rows.sum() if reduction == "sum" else rows.sum() / is_anchor.sum().clamp(min=1)
