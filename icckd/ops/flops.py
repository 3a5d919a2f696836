"""What `torch.utils.flop_counter.FlopCounterMode` counts for the losses of pairs of rows.

As it counts matrix products: 2 for a multiplication and an addition, and what backward recomputes counts again. The
other losses' work is done number by number, which it counts as 0 in PyTorch too.

    intra-class   P = Σ_c a_c (n_c + m_c) products of rows, of a_c anchors, n_c rows and m_c memory rows of class c:
                  2·P·D for the losses; for the gradient of the anchors as much again, and 2·D·Σ_c a_c n_c as negatives
    rkd_distance  2·N²·D for the distances of each network, and 2·N²·D for the gradient
    rkd_angle     as much, and 4·N³ for the cosines of each network by the law of cosines, 8·N³ for their gradient
    bank          2·B·K·D for the products, and as much for the gradient
    centres       2·N·C·D for the logits, and as much for the gradient of the rows, and for that of the centres
    hierarchical  2·A·N·D for the products of A anchors with N rows, 4·A·N·D for the gradient

P needs the labels' values. Where they may not be read (on a GPU, of fake tensors) all rows count as anchors, spread
evenly over num_classes; where that is not given, as one class: the most that it can be.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from icckd.backends.problem import IntraClassProblem

# The operators have to be there.
from icckd.ops import bank, center_contrastive, distillation, hierarchical, intra_class  # noqa: F401
from icckd.ops.values import readable


@register_flop_formula(torch.ops.icckd.intra_class_rows, get_raw=True)
def _intra_class_rows(*inputs: Any, need_anchor: bool = False, **_: object) -> int:
    problem = intra_class.problem_of(inputs)
    batch, remembered = _pairs(problem)
    products = batch + remembered
    if need_anchor:
        products += batch + remembered + batch
    return 2 * problem.anchor.shape[1] * products


@register_flop_formula(torch.ops.icckd.intra_class_sum, get_raw=True)
def _intra_class_sum(*inputs: Any, **_: object) -> int:
    return _intra_class_rows(*inputs, need_anchor=intra_class.needs_of(inputs).anchor)


@register_flop_formula(torch.ops.icckd.intra_class_rows_backward, get_raw=True)
def _intra_class_rows_backward(grad_rows: Tensor, lse: Tensor, *inputs: Any, **_: object) -> int:
    return _intra_class_sum(*inputs)


@register_flop_formula(torch.ops.icckd.rkd_distance)
def _rkd_distance(student: torch.Size, teacher: torch.Size, need_grad: bool, *_: object, **__: object) -> int:
    rows, dim = student
    return 2 * rows**2 * (dim + teacher[1] + (dim if need_grad else 0))


@register_flop_formula(torch.ops.icckd.rkd_angle)
def _rkd_angle(student: torch.Size, teacher: torch.Size, need_grad: bool, *_: object, **__: object) -> int:
    cosines = 4 * student[0] ** 3
    return _rkd_distance(student, teacher, need_grad) + cosines * (4 if need_grad else 2)


@register_flop_formula([torch.ops.icckd.bank_products, torch.ops.icckd.bank_sums])
def _bank(_given: torch.Size, rows: torch.Size, index: torch.Size, *_: object, **__: object) -> int:
    return 2 * index[0] * index[1] * rows[1]


@register_flop_formula(torch.ops.icckd.center_contrastive_rows)
def _center_contrastive_rows(features: torch.Size, centers: torch.Size, *_: object, **__: object) -> int:
    return 2 * features[0] * centers[0] * features[1]


@register_flop_formula(torch.ops.icckd.center_contrastive_sum)
def _center_contrastive_sum(features: torch.Size, centers: torch.Size, *inputs: Any, **_: object) -> int:
    need_features, need_centers, _backend = inputs[-3:]
    return (1 + need_features + need_centers) * _center_contrastive_rows(features, centers)


@register_flop_formula(torch.ops.icckd.center_contrastive_rows_backward)
def _center_contrastive_rows_backward(grad_rows: torch.Size, lse: torch.Size, *inputs: Any, **_: object) -> int:
    return _center_contrastive_sum(*inputs)


@register_flop_formula(torch.ops.icckd.hierarchical_sum)
def _hierarchical_sum(rows: torch.Size, *inputs: Any, **_: object) -> int:
    count, need_grad = inputs[5], inputs[9]
    anchors = rows[0] if count is None else count
    return 2 * anchors * rows[0] * rows[1] * (3 if need_grad else 1)


def _pairs(problem: IntraClassProblem) -> tuple[int, int]:
    """How many pairs of an anchor with a row of its class there are, and with a memory row of its class."""
    labels, weight, memory_labels = problem.labels, problem.weight, problem.memory_labels
    given = [x for x in (labels, weight, memory_labels) if x is not None]
    if not all(map(readable, given)):
        remembered = 0 if memory_labels is None else memory_labels.numel()
        classes = problem.num_classes or 1
        return labels.numel() ** 2 // classes, labels.numel() * remembered // classes
    anchors = labels[labels >= 0 if weight is None else (labels >= 0) & (weight > 0)]
    return _equal(anchors, labels), 0 if memory_labels is None else _equal(anchors, memory_labels)


def _equal(x: Tensor, y: Tensor) -> int:
    """How many pairs of an element of `x` and one of `y` are equal."""
    y = y.sort().values
    return int((torch.searchsorted(y, x, right=True) - torch.searchsorted(y, x)).sum())
