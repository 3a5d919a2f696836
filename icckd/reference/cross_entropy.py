"""The definitions of cross-entropy and the classification margin."""

import torch
import torch.nn.functional as F
from torch import Tensor

from icckd.reference.arithmetic import accumulated


def classification_margin(
    logits: Tensor, labels: Tensor, *, space: str = "probability", ignore_index: int = -100
) -> Tensor:
    """The true class's value minus the largest other class's: how safely a row is classified.

    The margin that gates the paper's loss (arXiv 2509.22053); measuring it on probabilities is this project's default.

    Args:
        logits: (N, C) float.
        labels: (N,) integers in [0, C), or `ignore_index`.
        space: Values compared: "probability" (softmax, margins in [−1, 1]) or "logit".
        ignore_index: Rows of this label have margin −inf.

    Returns:
        (N,) float32, without gradient. With a single class: +1, or +inf in logit space.
    """
    values = accumulated(logits.detach())
    if space == "probability":
        values = values.softmax(dim=1)
    labels = labels.long()
    ignored = labels == ignore_index
    own = labels.masked_fill(ignored, 0)[:, None]
    lowest = 0.0 if space == "probability" else -torch.inf
    margin = values.gather(1, own).squeeze(1) - values.scatter(1, own, lowest).amax(dim=1)
    return margin.masked_fill(ignored, -torch.inf).float()


def cross_entropy_with_margin(
    logits: Tensor,
    labels: Tensor,
    *,
    space: str = "probability",
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> tuple[Tensor, Tensor]:
    """`torch.nn.functional.cross_entropy`'s loss, and `classification_margin` of the same logits.

    Args:
        logits: (N, C) float.
        labels: (N,) integers in [0, C), or `ignore_index`.
        space: See `classification_margin`.
        label_smoothing: Share of the target spread evenly over all classes.
        ignore_index: Rows of this label have no loss.
        reduction: "none", "sum", or "mean" over the rows that are not ignored.

    Returns:
        The loss, (N,) or a scalar, float32 (float64 for float64 logits), and the margin (N,), float32.
    """
    loss = F.cross_entropy(
        accumulated(logits),
        labels.long(),
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
    )
    return loss, classification_margin(logits, labels, space=space, ignore_index=ignore_index)
