"""The CUDA backend: the kernels of `csrc/cuda/`, and Triton's for what those leave to them.

Its library is a file of its own, loaded only where PyTorch is built with CUDA and finds a device that the library holds
code for. Triton's kernels compute classes that are too large for one multiprocessor, memories, and relational losses.
"""

from functools import cache
from pathlib import Path

import torch

from icckd.backends import triton

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
