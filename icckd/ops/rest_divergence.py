"""The operators of losses that take the label's class apart from the rest, dkd and nkd.

What they return is in docs/architecture.md. No gradient flows to a teacher.
"""

from typing import Any

import torch
from torch import Tensor

from icckd import backends
from icckd.backends.arithmetic import accumulation_dtype
from icckd.ops.transforms import call, refuse_second_derivative, register, save
from icckd.ops.values import labels_name_classes


@torch.library.custom_op("icckd::rest_divergence_rows", mutates_args=())
def rest_divergence_rows(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, odds_temperature: float, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """KL(q̂ ‖ p̂) of every row, the teacher's entropy −Σ q̂ log q̂, and the log-odds of the label by either network.

    p̂, q̂: the softmax over all classes but the label's at `temperature`; without such a class (for q̂ also where the
    teacher rules all of them out), divergence and entropy are 0. Log-odds are taken at `odds_temperature`.
    """
    labels_name_classes("labels", labels, student.shape[1])
    return backends.module(backend).rest_divergence_rows(student, teacher, labels, temperature, odds_temperature)


@torch.library.custom_op("icckd::rest_divergence_rows_backward", mutates_args=())
def rest_divergence_rows_backward(
    grad_divergence: Tensor,
    grad_odds: Tensor,
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    temperature: float,
    odds_temperature: float,
    backend: str,
) -> Tensor:
    """The gradient of Σ grad_divergence · divergence + grad_odds · log-odds with respect to the student's logits."""
    return backends.module(backend).rest_divergence_rows_backward(
        grad_divergence, grad_odds, student, teacher, labels, temperature, odds_temperature
    )


@rest_divergence_rows.register_fake
def _(student: Tensor, teacher: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    first = student.new_empty(student.shape[0], dtype=accumulation_dtype(student, teacher))
    return first, torch.empty_like(first), torch.empty_like(first), torch.empty_like(first)


@rest_divergence_rows_backward.register_fake
def _(grad_divergence: Tensor, grad_odds: Tensor, student: Tensor, *_: object) -> Tensor:
    return torch.empty_like(student, memory_format=torch.contiguous_format)


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    student, teacher, labels, *ctx.settings = inputs
    _, entropy, _, teacher_odds = output
    ctx.mark_non_differentiable(entropy, teacher_odds)
    save(ctx, student, teacher, labels)


def _backward(ctx: Any, grad_divergence: Tensor, _: object, grad_odds: Tensor, *__: object) -> tuple:
    return _gradient(ctx, grad_divergence, grad_odds), None, None, None, None, None


def _along(ctx: Any, d_student: Tensor, *_: object) -> tuple[Tensor | None, ...]:
    student, teacher, _ = ctx.saved_tensors
    # A row's results depend on its own logits only.
    ones = student.new_ones(student.shape[0], dtype=accumulation_dtype(student, teacher))
    of_divergence, of_odds = (
        (_gradient(ctx, *factors) * d_student).sum(1, dtype=ones.dtype)
        for factors in ((ones, torch.zeros_like(ones)), (torch.zeros_like(ones), ones))
    )
    return of_divergence, None, of_odds, None


def _gradient(ctx: Any, grad_divergence: Tensor, grad_odds: Tensor) -> Tensor:
    return call(rest_divergence_rows_backward, grad_divergence, grad_odds, *ctx.saved_tensors, *ctx.settings)


register(rest_divergence_rows, _backward, _save, _along)
register(rest_divergence_rows_backward, refuse_second_derivative)
