"""The definition of the intra-class contrastive loss: an N × N matrix of similarities."""

import torch
from torch import Tensor

from icckd.ops.values import readable
from icckd.reference.arithmetic import accumulated, unit


def intra_class_contrastive(
    anchor: Tensor,
    positive: Tensor,
    labels: Tensor,
    *,
    gate: Tensor | None = None,
    memory: Tensor | None = None,
    memory_labels: Tensor | None = None,
    temperature: float | Tensor = 0.1,
    normalize: bool = True,
    reduction: str = "mean",
    num_classes: int | None = None,
) -> Tensor:
    """Contrast every anchor's positive with the other rows of the anchor's own class.

    With z, p, m the rows of anchor, positive and memory divided by their Euclidean norm (as they are without
    `normalize`; a zero row stays zero), κ = 1/temperature, and N_i the rows j ≠ i and the memory rows that bear i's
    label,

        ℓ_i = −log( exp(κ z_i·p_i) / ( exp(κ z_i·p_i) + Σ_{j∈N_i} exp(κ z_i·z_j) ) )
            = log( 1 + Σ_{j∈N_i} exp(κ (z_i·z_j − z_i·p_i)) ).

    Negatives from the anchor's own class and the gate are the paper's (arXiv 2509.22053, its intra-class loss); cosine
    similarity, temperature and the memory's part in N_i are this project's choice.

    Args:
        anchor: (N, D) float.
        positive: (N, D), another view of each anchor.
        labels: (N,) integers. A negative label takes the row out altogether.
        gate: (N,) weights g ≥ 0, or booleans (None: all 1). A row of weight 0 is no anchor but still a negative.
        memory: (M, D) further negatives, never differentiated.
        memory_labels: (M,) integers; a negative label marks an empty slot.
        temperature: τ > 0, a float or a 0-dim tensor.
        normalize: Compare directions (cosine similarity) rather than the rows as they are.
        reduction: "none": g_i ℓ_i (N,). "sum": Σ g_i ℓ_i. "mean": Σ g_i ℓ_i / Σ g_i, and 0 where Σ g_i = 0.
        num_classes: A bound that no label may reach.

    Returns:
        (N,) or a scalar, float32 (float64 for float64 inputs).
    """
    labels = labels.long()
    memory_labels = None if memory_labels is None else memory_labels.long()
    _check_class_bound(num_classes, labels, memory_labels)
    z, p = accumulated(anchor), accumulated(positive)
    labelled = labels >= 0
    candidates, candidate_labels = z, labels
    if memory is not None and memory_labels is not None:
        candidates = torch.cat([z, memory.detach().to(z)])
        candidate_labels = torch.cat([labels, memory_labels])
    z, p = _without(z, ~labelled), _without(p, ~labelled)
    candidates = _without(candidates, candidate_labels < 0)
    if normalize:
        z, p, candidates = unit(z), unit(p), unit(candidates)

    rows, columns = (torch.arange(len(x), device=z.device) for x in (z, candidates))
    negative = (labels[:, None] == candidate_labels[None, :]) & labelled[:, None] & (rows[:, None] != columns)
    excess = (z @ candidates.T - (z * p).sum(dim=1, keepdim=True)) / temperature
    excess = excess.masked_fill(~negative, -torch.inf)
    loss = torch.cat([torch.zeros_like(excess[:, :1]), excess], dim=1).logsumexp(dim=1)

    weight = torch.ones_like(loss) if gate is None else gate.detach().to(loss)
    weight = weight.masked_fill(~labelled, 0)
    rows = (weight * loss).masked_fill(weight == 0, 0)
    if reduction == "none":
        return rows
    if reduction == "sum":
        return rows.sum()
    total = weight.sum()
    return rows.sum() / torch.where(total > 0, total, 1)


def _without(x: Tensor, unused: Tensor) -> Tensor:
    return x.masked_fill(unused[:, None], 0)


def _check_class_bound(num_classes: int | None, *label_sets: Tensor | None) -> None:
    for labels in label_sets:
        if num_classes is None or labels is None or not readable(labels):
            continue
        if bool((labels >= num_classes).any()):
            raise ValueError(f"num_classes is {num_classes}, but labels reach {int(labels.max())}")
