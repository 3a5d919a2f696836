"""Which backend computes an operator: chosen here, and nowhere else.

A backend is a module whose functions have the operators' names (docs/architecture.md).
"""

import importlib
from types import ModuleType

import torch

from icckd.errors import BackendUnavailable

BACKENDS = ("reference", "cpu", "cuda", "triton")
_MODULES = {"reference": "icckd.backends.eager", "cpu": "icckd.backends.native"}
_REDUCED_PRECISION = (torch.float32, torch.bfloat16, torch.float16)


def why_unavailable(backend: str) -> str | None:
    """None where `backend` can run on this machine, else why not and what would make it available."""
    if backend == "reference":
        return None
    if backend == "cpu":
        from icckd.backends import native

        return native.why_unavailable()
    return f"this version of icckd has no {backend} kernels; backend='reference' runs on any device"


def select(backend: str, device: torch.device, dtype: torch.dtype) -> str:
    """The name of the backend that serves tensors of `device` and `dtype` when the caller asked for `backend`.

    "auto" takes the fastest that can; a backend asked for by name that cannot raises BackendUnavailable.
    """
    if backend == "auto":
        fastest = "cpu" if device.type == "cpu" else "reference"
        return "reference" if _why_not(fastest, device, dtype) else fastest
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; it should be 'auto' or one of {', '.join(map(repr, BACKENDS))}")
    reason = _why_not(backend, device, dtype)
    if reason:
        raise BackendUnavailable(f"backend {backend!r} cannot run here: {reason}")
    return backend


def module(backend: str) -> ModuleType:
    """The module that implements `backend`, a name that `select` returned."""
    return importlib.import_module(_MODULES[backend])


def _why_not(backend: str, device: torch.device, dtype: torch.dtype) -> str | None:
    if backend == "reference":
        return None
    reason = why_unavailable(backend)
    if reason:
        return reason
    wanted = "cpu" if backend == "cpu" else "cuda"
    if device.type != wanted:
        return f"the tensors are on {device}; move them to a {wanted} device"
    if dtype not in _REDUCED_PRECISION:
        return f"it computes float32, bfloat16 and float16, not {dtype}; backend='reference' does"
    return None
