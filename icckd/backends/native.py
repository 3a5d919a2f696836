"""The C++ backend: the kernels of `csrc/`, through the extension `icckd._C`.

Its functions are the extension's operators (docs/architecture.md), except that these take every row's weight ready made
instead of `mean`: never None, and 0 in ignored rows of the intra-class loss. These check shapes and dtypes only so far
as to raise RuntimeError instead of crashing; the layers above have told the user already.
"""

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from icckd.backends.eager import bank as eager_bank
from icckd.backends.eager import hierarchical as eager_hierarchical
from icckd.backends.eager.class_memory import class_memory_push
from icckd.backends.eager.cross_entropy import sum_by_weights
from icckd.backends.eager.hierarchical import hierarchical_classes
from icckd.backends.eager.intra_class import anchor_weights
from icckd.backends.eager.saved_gradient import scale_gradients
from icckd.backends.problem import IntraClassProblem, Needs

# PyTorch's own, which C++ would not outdo; the others are found by __getattr__.
__all__ = ["class_memory_push", "hierarchical_classes", "scale_gradients"]

DEVICE = "cpu"
# Up to which the kernels of adaptive hierarchical similarity add up exponentials as they are: e⁸⁸ is float32's last.
_LARGEST_EXPONENT = 70
_load_error: str | None = None
try:
    importlib.import_module("icckd._C")
except ImportError as error:
    _load_error = str(error)


def __getattr__(name: str) -> Callable:
    operator = getattr(torch.ops.icckd_native, name, None)
    if operator is None:
        raise AttributeError(f"the native backend has no operator {name!r}")
    return operator.default


def intra_class_rows(problem: IntraClassProblem) -> tuple[Tensor, Tensor]:
    return torch.ops.icckd_native.intra_class_rows(*_with_weights(problem))


def intra_class_rows_backward(
    grad_rows: Tensor, lse: Tensor, problem: IntraClassProblem, needs: Needs
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.ops.icckd_native.intra_class_rows_backward(grad_rows, lse, *_with_weights(problem), *needs)


def intra_class_sum(problem: IntraClassProblem, needs: Needs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.ops.icckd_native.intra_class_sum(*_with_weights(problem), *needs)


def _with_weights(problem: IntraClassProblem) -> tuple[Any, ...]:
    """The problem's fields as the extension takes them, one by one."""
    x = problem
    weight = anchor_weights(x.labels, x.weight, x.num_classes, torch.float32, x.mean)
    memory_and_temperature = (x.memory, x.memory_labels, x.temperature)
    return x.anchor, x.positive, x.labels, weight, *memory_and_temperature, x.normalize, x.num_classes


@sum_by_weights
def cross_entropy_margin_sum(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    return torch.ops.icckd_native.cross_entropy_margin_sum(*arguments)


def bank_products(query: Tensor, bank: Tensor, index: Tensor) -> Tensor:
    if eager_bank.has_few_rows(bank, index):
        return eager_bank.whole_bank_products(query, bank, index)
    return torch.ops.icckd_native.bank_products(query, bank, index)


def bank_sums(weight: Tensor, bank: Tensor, index: Tensor) -> Tensor:
    if eager_bank.has_few_rows(bank, index):
        return eager_bank.whole_bank_sums(weight, bank, index)
    return torch.ops.icckd_native.bank_sums(weight, bank, index)


def hierarchical_sum(
    rows: Tensor,
    classes: Tensor,
    centers: Tensor,
    own: Tensor,
    scale: Tensor,
    first: int,
    count: int,
    gamma: float,
    positive_scale: float,
    negative_scale: float,
    need_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    settings = (gamma, positive_scale, negative_scale)
    if eager_hierarchical.largest_exponent(*settings) > _LARGEST_EXPONENT:
        return eager_hierarchical.hierarchical_sum(
            rows, classes, centers, own, scale, first, count, *settings, need_grad
        )
    sorted_ = eager_hierarchical.sort(rows, classes, centers, first, count)
    anchor = rows.new_zeros(len(sorted_.rows)).index_fill_(0, sorted_.anchors, 1)
    loss, of_sorted, gradient = torch.ops.icckd_native.hierarchical_sorted_sum(
        sorted_.rows, sorted_.classes, sorted_.centers, own[: len(sorted_.centers)], scale, anchor, *settings, need_grad
    )
    least = rows.new_ones(count).index_copy_(0, sorted_.source[sorted_.anchors] - first, of_sorted[sorted_.anchors])
    return loss, least, sorted_.unsorted(gradient, rows) if need_grad else gradient


def why_unavailable() -> str | None:
    """None where the extension is loaded, else why not."""
    if _load_error is None:
        return None
    return f"the extension icckd._C is not built ({_load_error}); `make setup` builds it, given a C++20 compiler"


def instruction_set() -> str:
    """The instruction set that the kernels use on this processor: avx512_bf16, avx512, avx2 or baseline."""
    return torch.ops.icckd_native.cpu_capability()
