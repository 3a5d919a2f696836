"""The operators of cross-entropy with margin: what they promise to the compiler and to autograd.

Which of them runs when, and what they return, is in docs/architecture.md.
"""

from typing import Any

import torch
from torch import Tensor

from icckd import backends
from icckd.backends.arithmetic import accumulation_dtype
from icckd.ops.saved_gradient import along, scaled_once
from icckd.ops.transforms import call, refuse_second_derivative, register, save
from icckd.ops.values import readable


@torch.library.custom_op("icckd::cross_entropy_margin_rows", mutates_args=())
def cross_entropy_margin_rows(
    logits: Tensor, labels: Tensor, label_smoothing: float, space: str, ignore_index: int, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of every row (0 where ignored), margin (−inf where ignored), log-sum-exp less the row's maximum."""
    _check_labels(labels, logits.shape[1], ignore_index)
    return backends.module(backend).cross_entropy_margin_rows(logits, labels, label_smoothing, space, ignore_index)


@torch.library.custom_op("icckd::cross_entropy_margin_rows_backward", mutates_args=())
def cross_entropy_margin_rows_backward(
    grad_rows: Tensor,
    lse: Tensor,
    logits: Tensor,
    labels: Tensor,
    label_smoothing: float,
    ignore_index: int,
    backend: str,
) -> Tensor:
    """The gradient of Σ grad_rows · rows with respect to the logits."""
    return backends.module(backend).cross_entropy_margin_rows_backward(
        grad_rows, lse, logits, labels, label_smoothing, ignore_index
    )


@torch.library.custom_op("icckd::cross_entropy_margin_sum", mutates_args=())
def cross_entropy_margin_sum(
    logits: Tensor,
    labels: Tensor,
    mean: bool,
    label_smoothing: float,
    space: str,
    ignore_index: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Σ rows, the margins, and the sum's gradient with respect to the logits.

    `mean` divides by the number of rows that are not ignored; the loss of none is NaN, its gradient 0.
    """
    _check_labels(labels, logits.shape[1], ignore_index)
    return backends.module(backend).cross_entropy_margin_sum(logits, labels, mean, label_smoothing, space, ignore_index)


@cross_entropy_margin_rows.register_fake
def _(logits: Tensor, labels: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    rows = logits.new_empty(labels.shape, dtype=accumulation_dtype(logits))
    return rows, torch.empty_like(rows, dtype=torch.float32), torch.empty_like(rows)


@cross_entropy_margin_rows_backward.register_fake
def _(grad_rows: Tensor, lse: Tensor, logits: Tensor, *_: object) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


@cross_entropy_margin_sum.register_fake
def _(logits: Tensor, labels: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    return (
        logits.new_empty((), dtype=accumulation_dtype(logits)),
        logits.new_empty(labels.shape, dtype=torch.float32),
        torch.empty_like(logits, memory_format=torch.contiguous_format),
    )


def _save_rows(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, labels, ctx.label_smoothing, _, ctx.ignore_index, ctx.backend = inputs
    _, margin, lse = output
    ctx.mark_non_differentiable(margin, lse)
    save(ctx, lse, logits, labels)


def _rows_backward(ctx: Any, grad_rows: Tensor, *_: object) -> tuple[Tensor | None, ...]:
    return _rows_gradient(ctx, grad_rows), None, None, None, None, None


def _rows_along(ctx: Any, d_logits: Tensor, *_: object) -> tuple[Tensor | None, ...]:
    lse, *_ = ctx.saved_tensors
    # A row's loss depends on its own logits only.
    return (_rows_gradient(ctx, torch.ones_like(lse)) * d_logits).sum(1), None, None


def _rows_gradient(ctx: Any, grad_rows: Tensor) -> Tensor:
    settings = ctx.label_smoothing, ctx.ignore_index, ctx.backend
    return call(cross_entropy_margin_rows_backward, grad_rows, *ctx.saved_tensors, *settings)


def _save_sum(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    loss, margin, d_logits = output
    ctx.mark_non_differentiable(margin, d_logits)
    ctx.set_materialize_grads(False)
    ctx.backend = inputs[-1]
    save(ctx, loss, d_logits)


def _sum_backward(ctx: Any, grad_loss: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    loss, d_logits = ctx.saved_tensors
    (d_logits,) = scaled_once([d_logits], grad_loss, loss, ctx.backend)
    return d_logits, None, None, None, None, None, None


def _sum_along(ctx: Any, d_logits: Tensor, *_: object) -> tuple[Tensor | None, ...]:
    loss, gradient = ctx.saved_tensors
    return along([gradient], [d_logits], loss), None, None


register(cross_entropy_margin_rows, _rows_backward, _save_rows, _rows_along)
register(cross_entropy_margin_rows_backward, refuse_second_derivative)
register(cross_entropy_margin_sum, _sum_backward, _save_sum, _sum_along)


def _check_labels(labels: Tensor, classes: int, ignore_index: int) -> None:
    """Raise ValueError for a label that names no class."""
    if not readable(labels) or labels.numel() == 0:
        return
    valid = labels[labels != ignore_index]
    if valid.numel() and not 0 <= (lowest := int(valid.min())) <= (highest := int(valid.max())) < classes:
        wrong = lowest if lowest < 0 else highest
        raise ValueError(
            f"labels holds {wrong}; each should be in [0, {classes}), the classes of logits, "
            f"or ignore_index = {ignore_index}"
        )
