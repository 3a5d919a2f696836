"""The backward of operators that compute their gradients together with their loss: it only scales what was saved."""

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from icckd import backends


def refuse_second_derivative(ctx: Any, *_: Tensor | None) -> NoReturn:
    """The autograd formula of operators that compute a gradient."""
    raise RuntimeError("icckd's losses can be differentiated once only; icckd.reference's as often as wanted")


def scaled_once(
    gradients: Sequence[Tensor], grad_loss: Tensor | None, loss: Tensor, backend: str
) -> Sequence[Tensor | None]:
    """grad_loss · each gradient, for an operator whose first output is `loss` and whose gradients autograd knows not.

    In place where nobody can come back for them, so that a factor of 1 costs nothing. None where the loss takes no part
    in what is differentiated (grad_loss is None: the operator's context should not materialise zeros). Where autograd
    may come to differentiate the result (create_graph=True), it depends on `loss`, and so on the operator's inputs, by
    a function that refuses: an operator holds no formula for the derivative of its gradient.
    """
    if grad_loss is None:
        return [None] * len(gradients)
    if torch.is_grad_enabled():
        return [_Scaled.apply(gradient, grad_loss, loss) for gradient in gradients]
    # A graph that is kept may come back for the same tensor, after its receiver has added to it in place.
    if not _has_values(grad_loss) or torch._C._autograd._get_current_graph_task_keep_graph():
        return [gradient * grad_loss for gradient in gradients]
    backends.module(backend).scale_gradients(grad_loss, *gradients)
    return gradients


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: Tensor, grad_loss: Tensor, loss: Tensor) -> Tensor:
        return gradient * grad_loss

    backward = staticmethod(refuse_second_derivative)


def _has_values(x: Tensor) -> bool:
    """Whether a kernel can read it: not so under vmap, and while a compiler traces, which fuses a plain product."""
    return type(x) is Tensor and not torch.compiler.is_compiling() and torch._C._has_storage(x)
