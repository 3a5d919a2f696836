"""Which backend computes an operator: chosen here, and nowhere else.

A backend is a module whose functions have the operators' names (docs/architecture.md). On CUDA tensors "auto" takes
what a recorded run has proven to be the fastest on that architecture (`icckd.backends.proven`); where none is recorded
yet, Triton's kernels, whose tests also pass in Triton's interpreter.
"""

import importlib
from types import ModuleType
from typing import NamedTuple

import torch

from icckd.backends.proven import PROVEN
from icckd.compiling import assume_constant_result
from icckd.errors import BackendUnavailable

BACKENDS = ("reference", "cpu", "cuda", "triton")
# Operators that are proven together, and chosen together; every backend computes these.
FAMILIES = ("intra_class", "cross_entropy", "kd_kl", "relational", "class_memory")
# Further families, which not every backend computes: those that do, besides "reference".
PARTLY_SERVED: dict[str, tuple[str, ...]] = {
    "rest_divergence": ("cpu", "triton"),
    "transformed_teacher": ("cpu", "triton"),
    "dist": (),
    "similarity_preserving": (),
    "pkt": (),
    "weak_spectral": (),
    "attention_transfer": (),
    "bank": ("cpu", "triton"),
    "hierarchical": ("cpu", "triton"),
}
_MODULES = {
    "reference": "icckd.backends.eager",
    "cpu": "icckd.backends.native",
    "cuda": "icckd.backends.cuda",
    "triton": "icckd.backends.triton",
}
_REDUCED_PRECISION = (torch.float32, torch.bfloat16, torch.float16)


class Choice(NamedTuple):
    """What "auto" takes, and why."""

    backend: str
    reason: str


def why_unavailable(backend: str) -> str | None:
    """None where `backend` can run on this machine, else why not and what would make it available."""
    if backend == "reference":
        return None
    try:
        return module(backend).why_unavailable()
    except ImportError as error:
        if (error.name or "").startswith("icckd.kernels"):
            return f"{error}: icckd/kernels should be a link to ../kernels, which this copy of the tree has lost"
        return f"it needs Triton, which cannot be imported ({error}); `pip install triton` on Linux"


@assume_constant_result
def select(backend: str, device: torch.device, dtype: torch.dtype, family: str) -> str:
    """The name of the backend that serves `family` on tensors of `device` and `dtype` when `backend` was asked for.

    "auto" takes the fastest that can; a backend asked for by name that cannot raises BackendUnavailable.
    """
    if backend == "auto":
        return automatic(device, dtype, family).backend
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; it should be 'auto' or one of {', '.join(map(repr, BACKENDS))}")
    reason = why_not(backend, device, dtype, family)
    if reason:
        raise BackendUnavailable(f"backend {backend!r} cannot run here: {reason}")
    return backend


def automatic(device: torch.device, dtype: torch.dtype, family: str) -> Choice:
    """What backend="auto" takes for `family` on tensors of `device` and `dtype`."""
    wanted = _fastest(device, family)
    reason = why_not(wanted.backend, device, dtype, family)
    return Choice("reference", f"{wanted.backend} cannot run: {reason}") if reason else wanted


def module(backend: str) -> ModuleType:
    """The module that implements `backend`, one of BACKENDS."""
    return importlib.import_module(_MODULES[backend])


def architecture(device: torch.device) -> str:
    """The architecture of a CUDA or ROCm device: "sm_90", "gfx942"."""
    if torch.version.hip is not None:
        return torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def _fastest(device: torch.device, family: str) -> Choice:
    if device.type == "cpu":
        return Choice("cpu", "the C++ kernels are the fastest on a CPU")
    if device.type != "cuda":
        return Choice("reference", f"no kernels run on {device.type}")
    if not torch.cuda.is_available():
        return Choice("triton", "its tests pass in Triton's interpreter, and there is no device to prove another on")
    name = architecture(device)
    if family in PROVEN.get(name, {}):
        return Choice(PROVEN[name][family], f"the fastest in the run recorded on {name}")
    return Choice("triton", f"no run on {name} is recorded yet; Triton's kernels pass their tests in its interpreter")


def why_not(backend: str, device: torch.device, dtype: torch.dtype, family: str | None = None) -> str | None:
    """None where `backend` serves these tensors, and `family` if given."""
    if backend == "reference":
        return None
    reason = why_unavailable(backend)
    if reason:
        return reason
    wanted = module(backend).DEVICE
    if device.type != wanted:
        return f"the tensors are on {device}; move them to a {wanted} device"
    if dtype not in _REDUCED_PRECISION:
        return f"it computes float32, bfloat16 and float16, not {dtype}; backend='reference' does"
    if family is not None and backend not in PARTLY_SERVED.get(family, BACKENDS):
        others = ", ".join(map(repr, (*PARTLY_SERVED[family], "reference")))
        return f"it has no kernel for {family}; {others} can compute it"
    return None
