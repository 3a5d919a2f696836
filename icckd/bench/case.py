"""What a benchmark case is: inputs, contenders, and the least work that any of them must do."""

import gc
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from icckd import backends
from icckd.bench.measure import Row
from icckd.environment import free_memory

# Inputs → the tensor that is differentiated, alone or before others.
Function = Callable[[Any], Any]
# The project's backends on a GPU.
BACKENDS = ("triton", "cuda", "reference")
# The share of a device's memory that a contender may be expected to take, and what counts of a CPU's.
_MEMORY_SHARE, _HOST_MEMORY = 0.7, 12e9


@dataclass(frozen=True)
class Contender:
    """Who computes a case.

    function: Computes it.
    is_peer: Whether it is somebody else's way.
    why_not: Why it cannot be tried here, if it cannot.
    compiles: Whether its first call compiles something that is worth while to be compiled ahead.
    capturable: Whether a CUDA graph can hold it: it never synchronises.
    checked: Whether it computes what the case defines.
    only_on: The kind of device that it is meant for, where its time elsewhere says nothing.
    """

    name: str
    function: Function
    is_peer: bool = True
    why_not: str | None = None
    compiles: bool = False
    capturable: bool = False
    checked: bool = True
    only_on: str | None = None


@dataclass(frozen=True)
class Work:
    """The least that computing a case takes, None where nobody counted: memory traffic, and matrix operations."""

    bytes: int | None = None
    flop: int | None = None


@dataclass(frozen=True)
class Case(ABC):
    """One size of one family of operators; subclasses add the sizes as fields.

    Inputs are a dataclass. The tensors named in `differentiated` get gradients; none: there is no backward. `outputs`
    are the names of what contenders return.
    """

    family: ClassVar[str]
    differentiated: ClassVar[tuple[str, ...]]
    outputs: ClassVar[tuple[str, ...]] = ("loss",)
    # Whether the `reference` backend waits for the device.
    reference_waits: ClassVar[bool] = False
    dtype: str

    @property
    def sizes(self) -> Row:
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "dtype"}

    @property
    def name(self) -> str:
        """Family, dtype, numbers of rows, columns and classes, and what else is not as usual."""
        usual = {field.name: field.default for field in fields(self) if field.name not in "ndc"}
        sizes = (f"{key}={value}" for key, value in self.sizes.items() if usual.get(key) != value)
        return " ".join([self.family, self.dtype, *sizes])

    @property
    def amplification(self) -> float:
        """By how much the function amplifies roundings of its intermediate results."""
        return 1.0

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @abstractmethod
    def inputs(self, seed: int, device: torch.device) -> Any:
        """Fresh random inputs."""

    @abstractmethod
    def ours(self, backend: str) -> Function:
        """The project's function on this backend."""

    @abstractmethod
    def peers(self, device: torch.device, host_compiler: str = "aot_eager") -> Sequence[Contender]:
        """Everybody else who needs little more than PyTorch; `host_compiler` as `compiled` takes it."""

    def packaged_peers(self, device: torch.device) -> Sequence[Contender]:
        """Those of further packages."""
        return []

    @abstractmethod
    def work(self, backward: bool) -> Work:
        """The least work of the loss alone, or with its gradients."""

    def numbers(self) -> int:
        """How many numbers of float64 are held at once where it is checked and timed: several times the inputs."""
        return 6 * (self.work(backward=False).bytes or 0) // self.torch_dtype.itemsize

    @abstractmethod
    def tiny(self) -> "Case":
        """The same with sizes for Triton's interpreter."""

    def own(self, device: torch.device, names: Sequence[str] = BACKENDS) -> list[Contender]:
        """The project's backends of these names."""
        return [
            Contender(
                f"icckd {backend}",
                self.ours(backend),
                is_peer=False,
                why_not=backends.why_not(backend, device, self.torch_dtype),
                compiles=backend == "triton",
                capturable=not (backend == "reference" and self.reference_waits),
            )
            for backend in names
        ]

    def contenders(self, device: torch.device) -> list[Contender]:
        """Those that a visit to a GPU measures: the project's backends, then the peers."""
        return [*self.own(device), *self.peers(device)]


def compiled(function: Callable[..., Any], device: torch.device, host_compiler: str) -> Callable[..., Any]:
    """`function` through torch.compile; on a CPU by this backend of it, "aot_eager" where no code is to be made."""
    return torch.compile(function, dynamic=False, backend="inductor" if device.type == "cuda" else host_compiler)


def missing(module: str, package: str) -> str | None:
    """Why a peer from a package cannot be tried, and what adds it; None where it is installed."""
    return None if importlib.util.find_spec(module) else f"{package} is not installed (pip install {package})"


def too_large(numbers: float, element_size: int, device: torch.device) -> str | None:
    """Why a contender that holds so many numbers at once should not be tried; None where it fits."""
    total = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else min(_HOST_MEMORY, free_memory(device))
    taken = numbers * element_size
    return f"it would take about {taken / 1e9:.0f} GB" if taken > _MEMORY_SHARE * total else None


def with_leaves(case: Case, x: Any) -> Any:
    """Inputs whose tensors named in `differentiated` record what is computed from them."""
    return replace(x, **{name: getattr(x, name).detach().requires_grad_() for name in case.differentiated})


def widened(x: Any) -> Any:
    """Inputs with every float tensor in float64."""
    tensors = {field.name: getattr(x, field.name) for field in fields(x)}
    return replace(
        x, **{name: t.double() for name, t in tensors.items() if isinstance(t, Tensor) and t.is_floating_point()}
    )


def release(device: torch.device) -> None:
    """Give back a GPU's memory that nothing refers to any more."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


@torch.no_grad()
def forward(function: Function, x: Any) -> Any:
    """The outputs alone."""
    return function(x)


def step(case: Case, function: Function, x: Any) -> tuple[Tensor, ...]:
    """The outputs, then the gradients of the first one; `x` as `with_leaves` gives it."""
    outputs = function(x)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    if not case.differentiated:
        return outputs
    return *outputs, *torch.autograd.grad(outputs[0], [getattr(x, name) for name in case.differentiated])
