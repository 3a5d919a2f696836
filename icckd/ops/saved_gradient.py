"""The backward of operators that compute their gradients together with their loss: it only scales what was saved."""

from typing import Any, NoReturn

import torch
from torch import Tensor


def refuse_second_derivative(ctx: Any, *_: Tensor | None) -> NoReturn:
    """The autograd formula of operators that compute a gradient."""
    raise RuntimeError("icckd's losses can be differentiated once only; icckd.reference's as often as wanted")


def scaled_once(gradient: Tensor, grad_loss: Tensor | None, loss: Tensor) -> Tensor | None:
    """grad_loss · gradient, for an operator whose first output is `loss` and whose gradients autograd knows nothing of.

    None where the loss takes no part in what is differentiated (grad_loss is None: the operator's context should not
    materialise zeros). Where autograd may come to differentiate the result (create_graph=True), it depends on `loss`,
    and so on the operator's inputs, by a function that refuses: an operator holds no formula for the derivative of its
    gradient.
    """
    if grad_loss is None:
        return None
    if torch.is_grad_enabled():
        return _Scaled.apply(gradient, grad_loss, loss)
    # A graph that is kept may come back for the same tensor, after its receiver has added to it in place.
    if _is_one(grad_loss) and not torch._C._autograd._get_current_graph_task_keep_graph():
        return gradient
    return gradient * grad_loss


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: Tensor, grad_loss: Tensor, loss: Tensor) -> Tensor:
        return gradient * grad_loss

    backward = staticmethod(refuse_second_derivative)


def _is_one(grad_loss: Tensor) -> bool:
    """Whether the factor is seen to be 1. Looking would synchronise with a GPU, and a tracer has no values."""
    traced = type(grad_loss) is not Tensor or torch.compiler.is_compiling()
    return grad_loss.device.type == "cpu" and not traced and grad_loss.item() == 1
