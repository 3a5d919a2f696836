"""Cross-entropy and the classification margin, from one pass over the logits."""

import torch
from torch import Tensor

from icckd import backends
from icckd.functional import checks
from icckd.ops import cross_entropy as ops
from icckd.ops.transforms import call, differentiable, wants_gradient

_SPACES = ("probability", "logit")
_REDUCTIONS = ("mean", "sum", "none")


def cross_entropy_with_margin(
    logits: Tensor,
    labels: Tensor,
    *,
    space: str = "probability",
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """`torch.nn.functional.cross_entropy`'s loss and `classification_margin`, without a second pass over the logits.

    With p = softmax(logits), y the labels and ε the label smoothing (Szegedy et al. 2016, arXiv 1512.00567),

        ℓ_i = −(1 − ε) log p_i[y_i] − ε/C Σ_c log p_i[c]
        "none": ℓ_i (N,), 0 in ignored rows    "sum": Σ ℓ_i    "mean": Σ ℓ_i / number of rows not ignored (NaN for 0)

    The loss can be differentiated in reverse and in forward mode, once: a second derivative raises RuntimeError.

    Args:
        logits: (N, C) float, C ≥ 1.
        labels: (N,) integers in [0, C), or `ignore_index`.
        space: What the margin compares: "probability" or "logit".
        label_smoothing: ε in [0, 1].
        ignore_index: Rows of this label have no loss and no gradient.
        reduction: "mean", "sum" or "none".
        backend: Who computes: "auto", "reference", "cpu", "cuda" or "triton".

    Returns:
        The loss, float32 (float64 for float64 logits), and the margin (N,) float32, which has no gradient.

    Raises:
        TypeError, ValueError: An argument has a wrong type, shape, device or value. A label that names no class is
            noticed on the CPU only: looking at a GPU's would synchronise. The kernels there make its row's loss, margin
            and gradient NaN.
        BackendUnavailable: The backend asked for cannot run here.
    """
    _check(logits, labels, space, ignore_index)
    checks.one_of("reduction", reduction, _REDUCTIONS)
    checks.number_within("label_smoothing", label_smoothing, 0, 1)
    backend = backends.select(backend, logits.device, logits.dtype, "cross_entropy")
    (logits,), labels = differentiable(logits), labels.long()
    settings = label_smoothing, space, ignore_index, backend
    # A float16 gradient of a mean could underflow before the loss scale is applied: it is computed in backward, scaled.
    if reduction == "none" or not wants_gradient(logits) or logits.dtype == torch.float16:
        rows, margin, _ = call(ops.cross_entropy_margin_rows, logits, labels, *settings)
        if reduction == "none":
            return rows, margin
        return (rows.sum() if reduction == "sum" else rows.sum() / (labels != ignore_index).sum()), margin
    loss, margin, _ = call(ops.cross_entropy_margin_sum, logits, labels, reduction == "mean", *settings)
    return loss, margin


def classification_margin(
    logits: Tensor, labels: Tensor, *, space: str = "probability", ignore_index: int = -100
) -> Tensor:
    """How safely each row is classified: the true class's value minus the largest other class's.

    The margin that gates the paper's loss (arXiv 2509.22053); measuring it on probabilities is this project's default.

    Args:
        logits: (N, C) float, C ≥ 1.
        labels: (N,) integers in [0, C), or `ignore_index`.
        space: What is compared: softmax probabilities ("probability", margins in [−1, 1]) or the logits ("logit").
        ignore_index: Rows of this label have margin −inf.

    Returns:
        (N,) float32, without gradient. With a single class +1, or +inf in logit space.

    Raises:
        TypeError, ValueError: As for `cross_entropy_with_margin`.
    """
    _check(logits, labels, space, ignore_index)
    backend = backends.select("auto", logits.device, logits.dtype, "cross_entropy")
    settings = 0.0, space, ignore_index, backend
    _, margin, _ = call(ops.cross_entropy_margin_rows, logits.detach(), labels.long(), *settings)
    return margin


def _check(logits: Tensor, labels: Tensor, space: str, ignore_index: int) -> None:
    checks.float_matrix("logits", logits)
    if logits.shape[1] == 0:
        raise ValueError(f"logits has shape {tuple(logits.shape)}; it should have at least one class")
    checks.integer_vector("labels", labels, logits.shape[0])
    checks.same_device("labels", labels, "logits", logits)
    checks.one_of("space", space, _SPACES)
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
        raise TypeError(f"ignore_index is {ignore_index!r}; it should be an integer")
