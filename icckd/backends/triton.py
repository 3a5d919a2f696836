"""The Triton backend: the kernels of `kernels/`, on NVIDIA and AMD GPUs, or in Triton's interpreter on the CPU.

The interpreter is for tests: TRITON_INTERPRET=1 in the environment, before this module is imported, chooses it.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from icckd.backends.eager.class_memory import class_memory_push
from icckd.backends.eager.hierarchical import compare_classes, number_classes
from icckd.backends.problem import IntraClassProblem
from icckd.kernels import (
    bank,
    cross_entropy,
    distillation,
    hierarchical,
    intra_class,
    relational,
    rest_divergence,
    scaling,
)
from icckd.kernels.tables import interpreted

DEVICE = "cpu" if interpreted() else "cuda"
# NVIDIA's first architecture with bfloat16 and cp.async: A100.
_OLDEST = (8, 0)


def why_unavailable() -> str | None:
    """None where the kernels can run, else why not."""
    if interpreted():
        return None
    if not torch.cuda.is_available():
        return "there is no CUDA or ROCm device that PyTorch can use"
    if torch.version.hip is None and torch.cuda.get_device_capability() < _OLDEST:
        return f"{torch.cuda.get_device_name()} is older than compute capability 8.0"
    return None


def on_device_of_tensors(operator: Callable) -> Callable:
    """The operator on its tensors' device: Triton launches on the current one, whatever device the tensors are on."""

    @wraps(operator)
    def launch(first: Tensor | IntraClassProblem, *others: Any) -> Any:
        with torch.cuda.device_of(first if isinstance(first, Tensor) else first.anchor):
            return operator(first, *others)

    return launch


bank_products = on_device_of_tensors(bank.bank_products)
bank_sums = on_device_of_tensors(bank.bank_sums)
cross_entropy_margin_rows = on_device_of_tensors(cross_entropy.cross_entropy_margin_rows)
cross_entropy_margin_rows_backward = on_device_of_tensors(cross_entropy.cross_entropy_margin_rows_backward)
cross_entropy_margin_sum = on_device_of_tensors(cross_entropy.cross_entropy_margin_sum)


@on_device_of_tensors
def hierarchical_classes(rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    classes, order, size = number_classes(labels)
    return classes, *compare_classes(rows, order, size, len(labels), hierarchical.extremes)


hierarchical_sum = on_device_of_tensors(hierarchical.hierarchical_sum)
intra_class_rows = on_device_of_tensors(intra_class.intra_class_rows)
intra_class_rows_backward = on_device_of_tensors(intra_class.intra_class_rows_backward)
intra_class_sum = on_device_of_tensors(intra_class.intra_class_sum)
kd_kl_rows = on_device_of_tensors(distillation.kd_kl_rows)
kd_kl_rows_backward = on_device_of_tensors(distillation.kd_kl_rows_backward)
kd_kl_sum = on_device_of_tensors(distillation.kd_kl_sum)
rest_divergence_rows = on_device_of_tensors(rest_divergence.rest_divergence_rows)
rest_divergence_rows_backward = on_device_of_tensors(rest_divergence.rest_divergence_rows_backward)
rkd_angle = on_device_of_tensors(relational.rkd_angle)
rkd_distance = on_device_of_tensors(relational.rkd_distance)
scale_gradients = on_device_of_tensors(scaling.scale_gradients)
transformed_teacher_rows = on_device_of_tensors(distillation.transformed_teacher_rows)
transformed_teacher_rows_backward = on_device_of_tensors(distillation.transformed_teacher_rows_backward)

__all__ = ["class_memory_push"]  # PyTorch's own; the others are defined above
