"""The operators of adaptive hierarchical similarity: what they promise to the compiler and to autograd.

The sum of the losses is computed together with its gradient, as the shares of a tile are at hand then.
"""

from typing import Any

import torch
from torch import Tensor

from icckd import backends
from icckd.ops.saved_gradient import along, scaled_once
from icckd.ops.transforms import register, save


@torch.library.custom_op("icckd::hierarchical_classes", mutates_args=())
def hierarchical_classes(rows: Tensor, labels: Tensor, backend: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The classes of a batch and their similarities, without gradient.

    Args:
        rows: (N, D) float32 or float64, of unit norm; zero where the label is negative.
        labels: int64 (N,).

    Returns:
        classes: int64 (N,), each row's class, numbered from 0 without gaps in the order of labels; −1 where negative.
        centers: (N, D), in row a the mean row of class a.
        own: (N,), at a the scaled similarity Ŝ_aa; 0 where class a has no two rows.
        scale: (2,), factor and offset: Ŝ_ab = factor · center_a·center_b + offset for a ≠ b.
    """
    return backends.module(backend).hierarchical_classes(rows, labels)


@torch.library.custom_op("icckd::hierarchical_sum", mutates_args=())
def hierarchical_sum(
    rows: Tensor,
    classes: Tensor,
    centers: Tensor,
    own: Tensor,
    scale: Tensor,
    first: int,
    count: int | None,
    gamma: float,
    positive_scale: float,
    negative_scale: float,
    need_grad: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The losses of `count` anchors from row `first` on (None: all) against all rows, summed; no augmented rows.

    The other tensors are those of `hierarchical_classes`.

    Returns:
        loss: (), of the anchors with a class.
        least: (count,), each anchor's least similarity with another row of its class; 1 where there is none.
        d_rows: (N, D), the gradient of the loss; (0,) where it is not needed.
    """
    count = rows.shape[0] if count is None else count
    return backends.module(backend).hierarchical_sum(
        rows, classes, centers, own, scale, first, count, gamma, positive_scale, negative_scale, need_grad
    )


@hierarchical_classes.register_fake
def _(rows: Tensor, labels: Tensor, backend: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    contiguous = torch.contiguous_format
    classes, centers = (torch.empty_like(x, memory_format=contiguous) for x in (labels, rows))
    return classes, centers, rows.new_empty(rows.shape[0]), rows.new_empty(2)


@hierarchical_sum.register_fake
def _(
    rows: Tensor,
    classes: Tensor,
    centers: Tensor,
    own: Tensor,
    scale: Tensor,
    first: int,
    count: int | None,
    gamma: float,
    positive_scale: float,
    negative_scale: float,
    need_grad: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    count = rows.shape[0] if count is None else count
    return rows.new_empty(()), rows.new_empty(count), rows.new_empty(rows.shape if need_grad else 0)


def _save_classes(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output)
    save(ctx)


def _no_gradient(ctx: Any, *_: object) -> tuple[None, ...]:
    return None, None, None


def _no_tangent(ctx: Any, *_: object) -> tuple[None, ...]:
    return None, None, None, None


def _save_sum(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    loss, least, d_rows = output
    ctx.others, ctx.backend = len(inputs) - 1, inputs[-1]
    ctx.mark_non_differentiable(least, d_rows)
    ctx.set_materialize_grads(False)
    save(ctx, loss, d_rows)


def _sum_backward(ctx: Any, grad_loss: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    loss, d_rows = ctx.saved_tensors
    return *scaled_once([d_rows], grad_loss, loss, ctx.backend), *[None] * ctx.others


def _sum_along(ctx: Any, d_rows: Tensor | None, *_: object) -> tuple[Tensor, None, None]:
    loss, gradient = ctx.saved_tensors
    return along([gradient], [d_rows], loss), None, None


register(hierarchical_classes, _no_gradient, _save_classes, _no_tangent)
register(hierarchical_sum, _sum_backward, _save_sum, _sum_along)
