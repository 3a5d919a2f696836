"""The C++ backend: the kernels of `csrc/`, through the extension `icckd._C`.

Its functions are the extension's operators (docs/architecture.md). These check shapes and dtypes only so far as to
raise RuntimeError instead of crashing; the layers above have told the user already.
"""

import importlib
from collections.abc import Callable

import torch

from icckd.backends.eager.class_memory import class_memory_push
from icckd.backends.eager.saved_gradient import scale_gradients

# PyTorch's own, which C++ would not outdo; the others are found by __getattr__.
__all__ = ["class_memory_push", "scale_gradients"]

DEVICE = "cpu"
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


def why_unavailable() -> str | None:
    """None where the extension is loaded, else why not."""
    if _load_error is None:
        return None
    return f"the extension icckd._C is not built ({_load_error}); `make setup` builds it, given a C++20 compiler"


def instruction_set() -> str:
    """The instruction set that the kernels use on this processor: avx512, avx2 or baseline."""
    return torch.ops.icckd_native.cpu_capability()
