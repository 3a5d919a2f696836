"""The contrast of rows with the centres of classes, a chunk of logits at a time."""

import torch
from torch import Tensor

from icckd import backends
from icckd.backends.arithmetic import accumulated
from icckd.functional import checks
from icckd.functional.sides import full_precision, unit
from icckd.ops import center_contrastive as ops
from icckd.ops.transforms import call, wants_gradient

_REDUCTIONS = ("mean", "sum", "none")


def center_contrastive(
    features: Tensor,
    centers: Tensor,
    labels: Tensor,
    *,
    scale: float = 64.0,
    margin: float = 0.2,
    weight: float = 1.0,
    reduction: str = "mean",
    backend: str = "auto",
) -> Tensor:
    """Center contrastive loss (arXiv 2308.00458), for any number of classes.

    With x and c the rows and centres divided by their Euclidean norm, y the labels, s the scale, m the margin and λ the
    weight,

        ℓ_i = −log( exp(s (c_y·x_i − m) + 2λ c_y·x_i) / (exp(s (c_y·x_i − m)) + Σ_{j≠y} exp(s c_j·x_i)) )
        "none": ℓ_i (N,), 0 in ignored rows    "sum": Σ ℓ_i    "mean": Σ ℓ_i / number of rows not ignored (0 for 0)

    which is the cross-entropy of s c_j·x_i, with s m taken from the true class, less 2λ c_y·x_i. Rows with a negative
    label are ignored, and a zero vector stays zero, without gradient: this project's choices. The gradient flows to
    rows and centres, in reverse mode once (a second derivative raises RuntimeError), in forward mode but for "none".

    No N × C numbers are there at once: 64 MB of logits at a time, and their gradient, pass through the backend's
    cross-entropy, and gradients are added up together with the loss ("none" computes the logits again in backward).
    Besides, at most 7 (N + C) D numbers of the result's dtype are needed; `bench.neighbours` measures it.

    Args:
        features: (N, D) float.
        centers: (C, D) float, of any float dtype, one for each class, C ≥ 1.
        labels: (N,) integers below C; rows with a negative one are ignored.
        scale: s, above 0.
        margin: m, what the cosine with the own centre has to exceed the others by, 0 or more.
        weight: λ, 0 or more, of the term that draws a row towards its own centre.
        reduction: "mean", "sum" or "none".
        backend: Who computes the cross-entropy: "auto", "reference", "cpu", "cuda" or "triton".

    Returns:
        The loss, float32 (float64 where an input is).

    Raises:
        TypeError, ValueError: An argument has a wrong type, shape, device or value. A label that names no class is
            noticed on the CPU only: looking at a GPU's would synchronise. The kernels there make its row's loss and
            gradient NaN.
        BackendUnavailable: The backend asked for cannot run here.
    """
    checks.float_matrix("features", features)
    checks.float_matrix("centers", centers, columns=features.shape[1])
    if centers.shape[0] == 0:
        raise ValueError(f"centers has shape {tuple(centers.shape)}; it should have at least one row, a class's centre")
    checks.integer_vector("labels", labels, features.shape[0])
    checks.same_device("centers", centers, "features", features)
    checks.same_device("labels", labels, "features", features)
    checks.positive_number("scale", scale)
    checks.non_negative_number("margin", margin)
    checks.non_negative_number("weight", weight)
    checks.one_of("reduction", reduction, _REDUCTIONS)
    dtype = torch.promote_types(features.dtype, centers.dtype)
    backend = backends.select(backend, features.device, dtype, "cross_entropy")
    labels, settings = labels.long(), (float(scale), float(margin), float(weight))
    with full_precision(features):
        x, c = map(unit, accumulated(features.masked_fill((labels < 0)[:, None], 0), centers))
    needs = wants_gradient(x), wants_gradient(c)
    if reduction != "none" and any(needs):
        loss, *_ = call(ops.center_contrastive_sum, x, c, labels, *settings, reduction == "mean", *needs, backend)
        return loss
    rows, _ = call(ops.center_contrastive_rows, x, c, labels, *settings, backend)
    if reduction == "none":
        return rows
    return rows.sum() if reduction == "sum" else rows.sum() / (labels >= 0).sum().clamp(min=1)
