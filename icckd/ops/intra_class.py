"""The operators of the intra-class contrastive loss: what they promise to the compiler and to autograd.

Which of them runs when, and what they return, is in docs/architecture.md.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from icckd import backends
from icckd.backends.arithmetic import accumulation_dtype
from icckd.backends.problem import IntraClassProblem, Needs
from icckd.ops.saved_gradient import along, scaled_once
from icckd.ops.transforms import call, refuse_forward_mode, refuse_second_derivative, register, save
from icckd.ops.values import finite_weights, labels_below

# How many arguments the operators share, and the places among them of anchor, positive and temperature.
_SHARED = len(IntraClassProblem._fields)
_DIFFERENTIATED = tuple(IntraClassProblem._fields.index(name) for name in Needs._fields)


@torch.library.custom_op("icckd::intra_class_rows", mutates_args=())
def intra_class_rows(
    anchor: Tensor,
    positive: Tensor,
    labels: Tensor,
    weight: Tensor | None,
    memory: Tensor | None,
    memory_labels: Tensor | None,
    temperature: Tensor,
    mean: bool,
    normalize: bool,
    num_classes: int | None,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """The weighted loss of every row, and its log-sum-exp: 0 in both where a row is no anchor.

    A weight that is None is 1. `mean` divides by the sum of the labelled rows' weights, and gives 0 where that is 0.
    """
    problem = IntraClassProblem(
        anchor, positive, labels, weight, memory, memory_labels, temperature, mean, normalize, num_classes
    )
    _check_values(problem)
    return backends.module(backend).intra_class_rows(problem)


@torch.library.custom_op("icckd::intra_class_rows_backward", mutates_args=())
def intra_class_rows_backward(
    grad_rows: Tensor,
    lse: Tensor,
    anchor: Tensor,
    positive: Tensor,
    labels: Tensor,
    weight: Tensor | None,
    memory: Tensor | None,
    memory_labels: Tensor | None,
    temperature: Tensor,
    mean: bool,
    normalize: bool,
    num_classes: int | None,
    need_anchor: bool,
    need_positive: bool,
    need_temperature: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of Σ grad_rows · rows with respect to anchor, positive and temperature; empty if not needed."""
    problem = IntraClassProblem(
        anchor, positive, labels, weight, memory, memory_labels, temperature, mean, normalize, num_classes
    )
    needs = Needs(need_anchor, need_positive, need_temperature)
    return backends.module(backend).intra_class_rows_backward(grad_rows, lse, problem, needs)


@torch.library.custom_op("icckd::intra_class_sum", mutates_args=())
def intra_class_sum(
    anchor: Tensor,
    positive: Tensor,
    labels: Tensor,
    weight: Tensor | None,
    memory: Tensor | None,
    memory_labels: Tensor | None,
    temperature: Tensor,
    mean: bool,
    normalize: bool,
    num_classes: int | None,
    need_anchor: bool,
    need_positive: bool,
    need_temperature: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The weighted sum of the losses and its gradients with respect to anchor, positive and temperature."""
    problem = IntraClassProblem(
        anchor, positive, labels, weight, memory, memory_labels, temperature, mean, normalize, num_classes
    )
    _check_values(problem)
    return backends.module(backend).intra_class_sum(problem, Needs(need_anchor, need_positive, need_temperature))


@intra_class_rows.register_fake
def _(anchor: Tensor, positive: Tensor, labels: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    rows = anchor.new_empty(labels.shape, dtype=accumulation_dtype(anchor))
    return rows, torch.empty_like(rows)


@intra_class_rows_backward.register_fake
def _(grad_rows: Tensor, lse: Tensor, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_gradients(problem_of(inputs), needs_of(inputs))


@intra_class_sum.register_fake
def _(*inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    problem = problem_of(inputs)
    loss = problem.anchor.new_empty((), dtype=accumulation_dtype(problem.anchor))
    return loss, *_empty_gradients(problem, needs_of(inputs))


def problem_of(inputs: Sequence[Any]) -> IntraClassProblem:
    """The record of an operator's arguments from `anchor` on."""
    return IntraClassProblem(*inputs[:_SHARED])


def needs_of(inputs: Sequence[Any]) -> Needs:
    """The needed gradients among the same arguments."""
    return Needs(*inputs[_SHARED : _SHARED + len(Needs._fields)])


def _empty_gradients(problem: IntraClassProblem, needs: Needs) -> tuple[Tensor, Tensor, Tensor]:
    anchor, positive, temperature = problem.anchor, problem.positive, problem.temperature
    return (
        anchor.new_empty(anchor.shape if needs.anchor else (0,)),
        positive.new_empty(positive.shape if needs.positive else (0,)),
        temperature.new_empty(() if needs.temperature else (0,)),
    )


def _save_rows(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.mean, ctx.normalize, ctx.num_classes, ctx.backend = inputs
    ctx.mark_non_differentiable(output[1])
    save(ctx, output[1], *tensors)


def _rows_backward(ctx: Any, grad_rows: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    settings = ctx.mean, ctx.normalize, ctx.num_classes, *_needs(ctx), ctx.backend
    gradients = call(intra_class_rows_backward, grad_rows, *ctx.saved_tensors, *settings)
    return _to_inputs(ctx, gradients)


def _save_sum(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    # Else backward would be handed a tensor of zeros for each gradient.
    ctx.set_materialize_grads(False)
    ctx.backend = inputs[-1]
    save(ctx, *output)


def _sum_backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    loss, *gradients = ctx.saved_tensors
    # One that nobody needs may not even be on the loss's device: the temperature can be the host's.
    needed = [gradient for gradient, need in zip(gradients, _needs(ctx), strict=True) if need]
    scaled = iter(scaled_once(needed, grad_loss, loss, ctx.backend))
    return _to_inputs(ctx, [next(scaled) if need else None for need in _needs(ctx)])


def _sum_along(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
    loss, *gradients = ctx.saved_tensors
    return along(gradients, [tangents[place] for place in _DIFFERENTIATED], loss), None, None, None


def _needs(ctx: Any) -> Needs:
    """Whether anchor, positive and temperature need a gradient."""
    return Needs(*[ctx.needs_input_grad[place] for place in _DIFFERENTIATED])


def _to_inputs(ctx: Any, gradients: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """The gradients of anchor, positive and temperature in the places of these arguments."""
    inputs: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
    for place, gradient, needed in zip(_DIFFERENTIATED, gradients, _needs(ctx), strict=True):
        inputs[place] = gradient if needed else None
    return tuple(inputs)


register(intra_class_rows, _rows_backward, _save_rows, refuse_forward_mode)
register(intra_class_rows_backward, refuse_second_derivative)
register(intra_class_sum, _sum_backward, _save_sum, _sum_along)


def _check_values(problem: IntraClassProblem) -> None:
    labels_below("labels", problem.labels, problem.num_classes)
    labels_below("memory_labels", problem.memory_labels, problem.num_classes)
    finite_weights("gate", problem.weight)
