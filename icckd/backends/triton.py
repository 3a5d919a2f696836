"""The Triton backend: the kernels of `kernels/`, on NVIDIA and AMD GPUs, or in Triton's interpreter on the CPU.

The interpreter is for tests: TRITON_INTERPRET=1 in the environment, before this module is imported, chooses it.
"""

import torch

_load_error: str | None = None
_interpreted = False
try:
    from icckd.kernels.intra_class import intra_class_rows, intra_class_rows_backward, intra_class_sum
    from icckd.kernels.tables import interpreted

    _interpreted = interpreted()
except ImportError as error:
    _load_error = str(error)

DEVICE = "cpu" if _interpreted else "cuda"
# NVIDIA's first architecture with bfloat16 and cp.async: A100.
_OLDEST = (8, 0)


def why_unavailable() -> str | None:
    """None where the kernels can run, else why not."""
    if _load_error is not None:
        return f"Triton cannot be imported ({_load_error}); `pip install triton` on Linux"
    if _interpreted:
        return None
    if not torch.cuda.is_available():
        return "there is no CUDA or ROCm device that PyTorch can use"
    if torch.version.hip is None and torch.cuda.get_device_capability() < _OLDEST:
        return f"{torch.cuda.get_device_name()} is older than compute capability 8.0"
    return None


__all__ = [
    "intra_class_rows",
    "intra_class_rows_backward",
    "intra_class_sum",
]
