"""The Triton backend: the kernels of `kernels/`, on NVIDIA and AMD GPUs, or in Triton's interpreter on the CPU.

The interpreter is for tests: TRITON_INTERPRET=1 in the environment, before this module is imported, chooses it.
"""

import torch

from icckd.backends.eager.class_memory import class_memory_push
from icckd.kernels.cross_entropy import (
    cross_entropy_margin_rows,
    cross_entropy_margin_rows_backward,
    cross_entropy_margin_sum,
)
from icckd.kernels.distillation import kd_kl_rows, kd_kl_rows_backward, kd_kl_sum
from icckd.kernels.intra_class import intra_class_rows, intra_class_rows_backward, intra_class_sum
from icckd.kernels.relational import rkd_angle, rkd_distance
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


__all__ = [
    "class_memory_push",
    "cross_entropy_margin_rows",
    "cross_entropy_margin_rows_backward",
    "cross_entropy_margin_sum",
    "intra_class_rows",
    "intra_class_rows_backward",
    "intra_class_sum",
    "kd_kl_rows",
    "kd_kl_rows_backward",
    "kd_kl_sum",
    "rkd_angle",
    "rkd_distance",
]
