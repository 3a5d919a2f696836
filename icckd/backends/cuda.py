"""The CUDA backend: the kernels of `csrc/cuda/`, and Triton's for what those leave to them.

Its library is a file of its own, loaded only where PyTorch is built with CUDA and finds a device that the library holds
code for. Triton's kernels compute classes that are too large for one multiprocessor, memories, and relational losses.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from icckd.backends import triton
from icckd.backends.eager.cross_entropy import sum_by_weights
from icckd.backends.triton import on_device_of_tensors, rkd_angle, rkd_distance, scale_gradients
from icckd.kernels import intra_class
from icckd.kernels.layout import Layout, class_layout
from icckd.kernels.precision import product_precision

DEVICE = "cuda"
LIBRARY = Path(__file__).parents[1] / "_cuda.so"
# Compute capabilities whose machine code `setup.py` builds by default: 8.x runs that of 8.0.
_MAJORS = (8, 9, 10)


def why_unavailable() -> str | None:
    """None where the kernels can run, else why not."""
    if torch.version.cuda is None:
        return "this PyTorch is built without CUDA"
    if not torch.cuda.is_available():
        return "there is no CUDA device that PyTorch can use"
    if torch.cuda.get_device_capability()[0] not in _MAJORS:
        return f"it holds no code for {torch.cuda.get_device_name()}; its code is for sm_80, sm_90a and sm_100a"
    return _why_not_loaded() or triton.why_unavailable()


@cache
def _why_not_loaded() -> str | None:
    """Load the library; None, or why it cannot be loaded."""
    if not LIBRARY.exists():
        return f"{LIBRARY.name} is not built; installing icckd where nvcc is found builds it"
    try:
        torch.ops.load_library(LIBRARY)
    except OSError as error:
        return f"{LIBRARY.name} cannot be loaded ({error}); install icckd again with this PyTorch"
    return None


def __getattr__(name: str) -> Callable:
    """An operator that the library computes alone."""
    operator = getattr(torch.ops.icckd_cuda, name, None)
    if operator is None:
        raise AttributeError(f"the cuda backend has no operator {name!r}")
    return operator.default


@dataclass(frozen=True)
class WholeClass:
    """Computes classes of up to `limit` rows by csrc/cuda/whole_class.h: the `SmallClasses` of this backend."""

    limit: int

    @classmethod
    def for_rows(cls, anchor: Tensor, num_classes: int | None) -> "WholeClass":
        return cls(torch.ops.icckd_cuda.whole_class_limit(anchor, num_classes))

    def layout(
        self, labels: Tensor, weight: Tensor | None, memory_labels: Tensor | None, num_classes: int | None, limit: int
    ) -> Layout:
        if num_classes is None or num_classes > torch.ops.icckd_cuda.class_layout_most_classes():
            return class_layout(labels, weight, memory_labels, num_classes, limit)
        return Layout(*torch.ops.icckd_cuda.class_layout(labels, weight, memory_labels, num_classes, limit))

    def compute(
        self,
        batch: intra_class.Batch,
        rows: Tensor | None,
        lse: Tensor | None,
        upstream: Tensor | None,
        gradients: intra_class.Gradients,
    ) -> None:
        layout = batch.layout
        wanted = zip((gradients.anchor, gradients.positive, gradients.kappa), gradients.needed, strict=True)
        torch.ops.icckd_cuda.whole_class(
            batch.anchor,
            batch.positive,
            batch.weight,
            batch.scale,
            upstream,
            batch.temperature_on_device,
            layout.order,
            layout.rank,
            layout.start,
            layout.size,
            layout.active,
            layout.totals,
            self.limit,
            batch.normalize,
            product_precision() == "tf32",
            rows,
            lse,
            *(gradient if needed else None for gradient, needed in wanted),
        )


def _with_whole_class(operator: Callable) -> Callable:
    return on_device_of_tensors(partial(operator, small_classes=WholeClass.for_rows))


intra_class_rows = _with_whole_class(intra_class.intra_class_rows)
intra_class_rows_backward = _with_whole_class(intra_class.intra_class_rows_backward)
intra_class_sum = _with_whole_class(intra_class.intra_class_sum)


@sum_by_weights
def cross_entropy_margin_sum(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    return torch.ops.icckd_cuda.cross_entropy_margin_sum(*arguments)


# Triton's; the others are defined above, or found by __getattr__.
__all__ = ["rkd_angle", "rkd_distance", "scale_gradients"]
