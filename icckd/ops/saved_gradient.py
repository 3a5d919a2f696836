"""Differentiation of operators that compute their gradients together with their loss: what was saved is only scaled."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from icckd import backends
from icckd.ops.transforms import refuse_second_derivative, transformed
from icckd.ops.values import has_values


def scaled_once(
    gradients: Sequence[Tensor], grad_loss: Tensor | None, loss: Tensor, backend: str
) -> Sequence[Tensor | None]:
    """grad_loss · each gradient, for an operator whose first output is `loss` and whose gradients autograd knows not.

    In place where nobody can come back for them, so that a factor of 1 costs nothing. None where the loss takes no part
    in what is differentiated (grad_loss is None: the operator's context should not materialise zeros). Where autograd
    may come to differentiate the result (create_graph=True, a transform, a loss with a tangent), it depends on `loss`,
    and so on the operator's inputs, by a function that refuses: an operator holds no formula for the derivative of its
    gradient. One-dimensional is what stands for a gradient that was not computed.
    """
    if grad_loss is None:
        return [None] * len(gradients)
    if any(gradient.dim() == 1 for gradient in gradients):
        raise RuntimeError(
            "a gradient of icckd's loss is wanted that was not when its graph was recorded; record it, by make_fx or "
            "torch.export, with inputs that require grad"
        )
    if torch.is_grad_enabled() or transformed(loss):
        return [gradient * grad_loss + depending_once(loss).to(gradient.dtype) for gradient in gradients]
    # A graph that is kept may come back for the same tensor, after its receiver has added to it in place.
    if not has_values(grad_loss) or torch._C._autograd._get_current_graph_task_keep_graph():
        return [gradient * grad_loss for gradient in gradients]
    backends.module(backend).scale_gradients(grad_loss, *gradients)
    return gradients


def along(gradients: Sequence[Tensor], tangents: Sequence[Tensor | None], loss: Tensor) -> Tensor:
    """Σ ⟨gradient, tangent⟩: the derivative of `loss` in forward mode, which cannot be differentiated itself."""
    derivative = depending_once(loss)
    for gradient, tangent in zip(gradients, tangents, strict=True):
        if tangent is not None:
            derivative = derivative + (gradient.to(loss.dtype) * tangent).sum()
    return derivative


def depending_once(x: Tensor) -> Tensor:
    """0, which depends on `x` in a way that refuses to be differentiated."""
    return _Once.apply(x)


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.new_zeros(())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        return None

    @staticmethod
    def vmap(info: Any, in_dims: tuple, x: Tensor) -> tuple[Tensor, None]:
        return depending_once(x), None

    backward = jvp = staticmethod(refuse_second_derivative)
