"""Cross-entropy and classification margin in plain PyTorch: any device, float16 to float64."""

from collections.abc import Callable

import torch
from torch import Tensor


def cross_entropy_margin_rows(
    logits: Tensor, labels: Tensor, label_smoothing: float, space: str, ignore_index: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and margin of every row, and its log-sum-exp less its maximum; float32 (float64 for float64 logits)."""
    x = _accumulable(logits)
    log_p = x.log_softmax(1)
    return (
        _rows(log_p, labels, label_smoothing, ignore_index),
        _margin(x, log_p, labels, space, ignore_index),
        -log_p.amax(1),
    )


def cross_entropy_margin_rows_backward(
    grad_rows: Tensor, lse: Tensor, logits: Tensor, labels: Tensor, label_smoothing: float, ignore_index: int
) -> Tensor:
    """The gradient of Σ grad_rows · rows with respect to the logits, in their dtype."""
    x = _accumulable(logits)
    log_p = x - x.amax(1, keepdim=True) - lse[:, None]
    return _gradient(log_p, labels, grad_rows, label_smoothing, ignore_index).to(logits.dtype)


def cross_entropy_margin_sum(
    logits: Tensor, labels: Tensor, mean: bool, label_smoothing: float, space: str, ignore_index: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Σ rows or their mean over those not ignored, the margins, and the gradient with respect to the logits."""
    x = _accumulable(logits)
    log_p = x.log_softmax(1)
    rows = _rows(log_p, labels, label_smoothing, ignore_index)
    loss, weight = rows.sum(), torch.ones_like(rows)
    if mean:
        count = (labels != ignore_index).sum()
        loss, weight = loss / count, weight / count
    margin = _margin(x, log_p, labels, space, ignore_index)
    gradient = _gradient(log_p, labels, weight, label_smoothing, ignore_index)
    return loss, margin, gradient.to(logits.dtype)


def sum_by_weights(weighted_sum: Callable) -> Callable:
    """`cross_entropy_margin_sum` by a function that takes the weight of every row (N,) instead of `mean`."""

    def cross_entropy_margin_sum(
        logits: Tensor, labels: Tensor, mean: bool, label_smoothing: float, space: str, ignore_index: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        weight = torch.ones(len(labels), dtype=torch.float32, device=labels.device)
        if not mean:
            return weighted_sum(logits, labels, weight, label_smoothing, space, ignore_index)
        count = (labels != ignore_index).sum()
        loss, *others = weighted_sum(logits, labels, weight / count.clamp(min=1), label_smoothing, space, ignore_index)
        return torch.where(count > 0, loss, torch.nan), *others

    return cross_entropy_margin_sum


def _accumulable(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _rows(log_p: Tensor, labels: Tensor, label_smoothing: float, ignore_index: int) -> Tensor:
    valid, index = _index(labels, ignore_index)
    rows = -log_p.gather(1, index).squeeze(1)
    # Not computed at 0, where a masked class (log p = −inf) would make 0 · inf.
    if label_smoothing > 0:
        rows = (1 - label_smoothing) * rows - label_smoothing * log_p.mean(1)
    return torch.where(valid, rows, 0)


def _margin(x: Tensor, log_p: Tensor, labels: Tensor, space: str, ignore_index: int) -> Tensor:
    valid, index = _index(labels, ignore_index)
    values = log_p if space == "probability" else x
    true = values.gather(1, index)
    other = values.scatter(1, index, -torch.inf).amax(1, keepdim=True)
    if space == "probability":
        true, other = true.exp(), other.exp()
    return torch.where(valid, (true - other).squeeze(1), -torch.inf).float()


def _gradient(log_p: Tensor, labels: Tensor, grad_rows: Tensor, label_smoothing: float, ignore_index: int) -> Tensor:
    """grad_rows · (p − (1 − ε) one-hot − ε / C), and zero in ignored rows."""
    valid, index = _index(labels, ignore_index)
    p = log_p.exp()
    gradient = p - label_smoothing / log_p.shape[1]
    gradient = gradient.scatter(1, index, gradient.gather(1, index) - (1 - label_smoothing))
    return torch.where(valid[:, None], gradient * grad_rows[:, None], 0)


def _index(labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Which rows count, and each row's class as a column (class 0 where the row does not count)."""
    valid = labels != ignore_index
    return valid, torch.where(valid, labels, 0)[:, None]
