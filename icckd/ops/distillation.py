"""The operators of the distillation losses: what they promise to the compiler and to autograd.

Which of them runs when, and what they return, is in docs/architecture.md. No gradient flows to a teacher.
"""

from typing import Any

import torch
from torch import Tensor
from torch.library import CustomOpDef

from icckd import backends
from icckd.backends.arithmetic import accumulation_dtype
from icckd.ops.saved_gradient import along, scaled_once
from icckd.ops.transforms import call, refuse_second_derivative, register, save


@torch.library.custom_op("icckd::kd_kl_rows", mutates_args=())
def kd_kl_rows(student: Tensor, teacher: Tensor, temperature: float, standardize: bool, backend: str) -> Tensor:
    """T² KL(teacher ‖ student) of every row."""
    return backends.module(backend).kd_kl_rows(student, teacher, temperature, standardize)


@torch.library.custom_op("icckd::kd_kl_rows_backward", mutates_args=())
def kd_kl_rows_backward(
    grad_rows: Tensor, student: Tensor, teacher: Tensor, temperature: float, standardize: bool, backend: str
) -> Tensor:
    """The gradient of Σ grad_rows · rows with respect to the student's logits."""
    return backends.module(backend).kd_kl_rows_backward(grad_rows, student, teacher, temperature, standardize)


@torch.library.custom_op("icckd::kd_kl_sum", mutates_args=())
def kd_kl_sum(
    student: Tensor, teacher: Tensor, temperature: float, standardize: bool, mean: bool, backend: str
) -> tuple[Tensor, Tensor]:
    """Σ rows, or with `mean` Σ rows / N (0 for N = 0), and its gradient with respect to the student's logits."""
    # Not an argument: a graph for any number of rows would hold the number that one had.
    scale = 1 / max(len(student), 1) if mean else 1.0
    return backends.module(backend).kd_kl_sum(student, teacher, temperature, standardize, scale)


@torch.library.custom_op("icckd::transformed_teacher_rows", mutates_args=())
def transformed_teacher_rows(student: Tensor, teacher: Tensor, gamma: float, weighted: bool, backend: str) -> Tensor:
    """KL(q^γ / Z ‖ p) of every row, times Z = Σ q^γ where they are weighted."""
    return backends.module(backend).transformed_teacher_rows(student, teacher, gamma, weighted)


@torch.library.custom_op("icckd::transformed_teacher_rows_backward", mutates_args=())
def transformed_teacher_rows_backward(
    grad_rows: Tensor, student: Tensor, teacher: Tensor, gamma: float, weighted: bool, backend: str
) -> Tensor:
    """The gradient of Σ grad_rows · rows with respect to the student's logits."""
    return backends.module(backend).transformed_teacher_rows_backward(grad_rows, student, teacher, gamma, weighted)


@torch.library.custom_op("icckd::rkd_distance", mutates_args=())
def rkd_distance(student: Tensor, teacher: Tensor, need_grad: bool, backend: str) -> tuple[Tensor, Tensor]:
    """The distance-wise relational loss, and its gradient with respect to the student in the loss's dtype."""
    return backends.module(backend).rkd_distance(student, teacher, need_grad)


@torch.library.custom_op("icckd::rkd_angle", mutates_args=())
def rkd_angle(student: Tensor, teacher: Tensor, need_grad: bool, backend: str) -> tuple[Tensor, Tensor]:
    """The angle-wise relational loss, and its gradient with respect to the student in the loss's dtype."""
    return backends.module(backend).rkd_angle(student, teacher, need_grad)


@kd_kl_rows.register_fake
@transformed_teacher_rows.register_fake
def _rows_fake(student: Tensor, teacher: Tensor, *_: object) -> Tensor:
    return student.new_empty(student.shape[0], dtype=accumulation_dtype(student, teacher))


@kd_kl_rows_backward.register_fake
@transformed_teacher_rows_backward.register_fake
def _rows_backward_fake(grad_rows: Tensor, student: Tensor, *_: object) -> Tensor:
    return torch.empty_like(student, memory_format=torch.contiguous_format)


@kd_kl_sum.register_fake
def _(student: Tensor, teacher: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    loss = student.new_empty((), dtype=accumulation_dtype(student, teacher))
    return loss, torch.empty_like(student, memory_format=torch.contiguous_format)


@rkd_distance.register_fake
@rkd_angle.register_fake
def _relational_fake(student: Tensor, teacher: Tensor, need_grad: bool, backend: str) -> tuple[Tensor, Tensor]:
    loss = student.new_empty((), dtype=accumulation_dtype(student, teacher))
    return loss, loss.new_empty(student.shape if need_grad else 0)


def _save_rows(ctx: Any, inputs: tuple, output: Tensor) -> None:
    student, teacher, *ctx.settings = inputs
    save(ctx, student, teacher)


def _register_rows(operator: CustomOpDef, backward_operator: CustomOpDef) -> None:
    """Formulas for rows that each depend on their own logits, by the operator of their gradient."""

    def gradient(ctx: Any, grad_rows: Tensor) -> Tensor:
        return call(backward_operator, grad_rows, *ctx.saved_tensors, *ctx.settings)

    def backward(ctx: Any, grad_rows: Tensor) -> tuple[Tensor | None, ...]:
        return gradient(ctx, grad_rows), None, None, None, None

    def along_rows(ctx: Any, d_student: Tensor, *_: object) -> Tensor:
        student, teacher = ctx.saved_tensors
        ones = student.new_ones(student.shape[0], dtype=accumulation_dtype(student, teacher))
        return (gradient(ctx, ones) * d_student).sum(1, dtype=ones.dtype)

    register(operator, backward, _save_rows, along_rows)
    register(backward_operator, refuse_second_derivative)


def _save_gradient(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    ctx.others, ctx.backend = len(inputs) - 1, inputs[-1]
    ctx.dtype = inputs[0].dtype
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    save(ctx, *output)


def _scaled_gradient(ctx: Any, grad_loss: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    loss, d_student = ctx.saved_tensors
    (d_student,) = scaled_once([d_student], grad_loss, loss, ctx.backend)
    return None if d_student is None else d_student.to(ctx.dtype), *[None] * ctx.others


def _along_gradient(ctx: Any, d_student: Tensor, *_: object) -> tuple[Tensor, None]:
    loss, gradient = ctx.saved_tensors
    return along([gradient], [d_student], loss), None


_register_rows(kd_kl_rows, kd_kl_rows_backward)
_register_rows(transformed_teacher_rows, transformed_teacher_rows_backward)
for operator in (kd_kl_sum, rkd_distance, rkd_angle):
    register(operator, _scaled_gradient, _save_gradient, _along_gradient)
