"""The operators of the contrast with centres: what they promise to the compiler and to autograd.

What they return is in docs/architecture.md.
"""

from typing import Any

import torch
from torch import Tensor

from icckd import backends
from icckd.backends import center_contrastive as chunked
from icckd.backends.center_contrastive import CenterProblem
from icckd.ops.saved_gradient import along, scaled_once
from icckd.ops.transforms import call, refuse_forward_mode, refuse_second_derivative, register, save
from icckd.ops.values import labels_below_classes

# The places of features and centers, the first of the arguments.
_DIFFERENTIATED = 2


@torch.library.custom_op("icckd::center_contrastive_rows", mutates_args=())
def center_contrastive_rows(
    features: Tensor, centers: Tensor, labels: Tensor, scale: float, margin: float, weight: float, backend: str
) -> tuple[Tensor, Tensor]:
    """Loss of every row (0 where the label is negative), and the log-sum-exp of its logits less their maximum."""
    problem = CenterProblem(features, centers, labels, scale, margin, weight)
    labels_below_classes("labels", labels, len(centers), "centers")
    with _full_precision(features):
        return chunked.center_contrastive_rows(backends.module(backend), problem)


@torch.library.custom_op("icckd::center_contrastive_rows_backward", mutates_args=())
def center_contrastive_rows_backward(
    grad_rows: Tensor,
    lse: Tensor,
    features: Tensor,
    centers: Tensor,
    labels: Tensor,
    scale: float,
    margin: float,
    weight: float,
    need_features: bool,
    need_centers: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """The gradients of Σ grad_rows · rows with respect to features and centers; empty if not needed."""
    problem = CenterProblem(features, centers, labels, scale, margin, weight)
    needs = need_features, need_centers
    with _full_precision(features):
        return chunked.center_contrastive_rows_backward(backends.module(backend), grad_rows, lse, problem, *needs)


@torch.library.custom_op("icckd::center_contrastive_sum", mutates_args=())
def center_contrastive_sum(
    features: Tensor,
    centers: Tensor,
    labels: Tensor,
    scale: float,
    margin: float,
    weight: float,
    mean: bool,
    need_features: bool,
    need_centers: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Σ rows, or their mean over those that count, and its gradients with respect to features and centers."""
    problem = CenterProblem(features, centers, labels, scale, margin, weight)
    labels_below_classes("labels", labels, len(centers), "centers")
    with _full_precision(features):
        return chunked.center_contrastive_sum(backends.module(backend), problem, mean, need_features, need_centers)


@center_contrastive_rows.register_fake
def _(features: Tensor, centers: Tensor, labels: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return features.new_empty(labels.shape), features.new_empty(labels.shape)


@center_contrastive_rows_backward.register_fake
def _(grad_rows: Tensor, lse: Tensor, features: Tensor, centers: Tensor, *inputs: Any) -> tuple[Tensor, Tensor]:
    return _empty_gradients(features, centers, *inputs[-3:-1])


@center_contrastive_sum.register_fake
def _(features: Tensor, centers: Tensor, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    return features.new_empty(()), *_empty_gradients(features, centers, *inputs[-3:-1])


def _empty_gradients(
    features: Tensor, centers: Tensor, need_features: bool, need_centers: bool
) -> tuple[Tensor, Tensor]:
    return (
        features.new_empty(features.shape if need_features else (0,)),
        centers.new_empty(centers.shape if need_centers else (0,)),
    )


def _save_rows(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    features, centers, labels, *ctx.settings, ctx.backend = inputs
    ctx.mark_non_differentiable(output[1])
    save(ctx, output[1], features, centers, labels)


def _rows_backward(ctx: Any, grad_rows: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    settings = *ctx.settings, *_needs(ctx), ctx.backend
    gradients = call(center_contrastive_rows_backward, grad_rows, *ctx.saved_tensors, *settings)
    wanted = (gradient if need else None for gradient, need in zip(gradients, _needs(ctx), strict=True))
    return *wanted, None, None, None, None, None


def _save_sum(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.backend = inputs[-1]
    save(ctx, *output)


def _sum_backward(ctx: Any, grad_loss: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    loss, *gradients = ctx.saved_tensors
    needed = [gradient for gradient, need in zip(gradients, _needs(ctx), strict=True) if need]
    scaled = iter(scaled_once(needed, grad_loss, loss, ctx.backend))
    return *(next(scaled) if need else None for need in _needs(ctx)), *[None] * 8


def _sum_along(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
    loss, *gradients = ctx.saved_tensors
    return along(gradients, tangents[:_DIFFERENTIATED], loss), None, None


def _needs(ctx: Any) -> tuple[bool, bool]:
    """Whether features and centers need a gradient."""
    return ctx.needs_input_grad[:_DIFFERENTIATED]


register(center_contrastive_rows, _rows_backward, _save_rows, refuse_forward_mode)
register(center_contrastive_rows_backward, refuse_second_derivative)
register(center_contrastive_sum, _sum_backward, _save_sum, _sum_along)


def _full_precision(x: Tensor) -> torch.autocast:
    # The products are of float32 numbers: autocast would round them to half precision.
    return torch.autocast(x.device.type, enabled=False)
