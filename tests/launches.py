"""What a step launches on a GPU, and which numbers its kernels touch: found on the CPU, in Triton's interpreter.

    with launches() as seen:
        step()
    assert seen.names == ["prepare", "aten.sum"]

Counted are Triton's kernels, and PyTorch's operations unless they only make a view or room for a tensor, or return an
empty one. PyTorch may launch more than one kernel for an operation, as for a sort. Arguments' values are not checked,
as they are not on a GPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import pytest
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from icckd import backends
from icckd.functional import checks
from icckd.ops import values

interpreter = pytest.importorskip("triton.runtime.interpreter")

# Neither a kernel nor a view.
_NO_KERNEL = ("empty", "new_empty", "detach", "set_", "_local_scalar_dense", "is_same_size")


@dataclass
class Launches:
    """names: Kernels and operations, in order. loaded, stored: The addresses that Triton's kernels read and wrote."""

    names: list[str] = field(default_factory=list)
    loaded: list[np.ndarray] = field(default_factory=list)
    stored: list[np.ndarray] = field(default_factory=list)

    def read(self, x: Tensor) -> int:
        """How often Triton's kernels read a number of x."""
        return _within(self.loaded, x)

    def written(self, x: Tensor) -> int:
        """How often they wrote one."""
        return _within(self.stored, x)


def _within(addresses: list[np.ndarray], x: Tensor) -> int:
    assert x.is_contiguous()
    first, end = x.data_ptr(), x.data_ptr() + x.nbytes
    return sum(int(((first <= at) & (at < end)).sum()) for at in addresses)


@contextmanager
def launches() -> Iterator[Launches]:
    """Note what is launched meanwhile."""
    seen = Launches()
    count = _Count(seen)
    load, store, launch, module = (
        interpreter._interpreter.load,
        interpreter._interpreter.store,
        interpreter.GridExecutor.__call__,
        backends.module,
    )

    def load_and_note(address: np.ndarray, mask: np.ndarray, *others: Any) -> np.ndarray:
        seen.loaded.append(address[mask])
        return load(address, mask, *others)

    def store_and_note(address: np.ndarray, value: np.ndarray, mask: np.ndarray) -> None:
        seen.stored.append(address[mask])
        store(address, value, mask)

    def launch_and_note(executor: Any, *args: Any, **kwargs: Any) -> None:
        seen.names.append(executor.fn.__name__)
        # What the interpreter does with tensors is no part of the step.
        with mock.patch.object(count, "paused", True):
            launch(executor, *args, **kwargs)

    with (
        mock.patch.object(interpreter._interpreter, "load", load_and_note),
        mock.patch.object(interpreter._interpreter, "store", store_and_note),
        mock.patch.object(interpreter.GridExecutor, "__call__", launch_and_note),
        mock.patch.object(checks, "readable", return_value=False),
        mock.patch.object(values, "readable", return_value=False),
        # Within an operator PyTorch has put the mode aside.
        mock.patch.object(backends, "module", lambda name: _Watched(module(name), count)),
        count,
    ):
        yield seen


class _Count(TorchDispatchMode):
    def __init__(self, seen: Launches):
        super().__init__()
        self.seen, self.paused = seen, False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if not self.paused and _launches(function, result):
            self.seen.names.append(f"{function.namespace}.{function._opname}")
        return result


def _launches(function: Any, result: Any) -> bool:
    if function.namespace == "icckd" or function._opname.startswith(_NO_KERNEL):
        return False
    is_view = any(x.alias_info is not None and not x.alias_info.is_write for x in function._schema.returns)
    tensors = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
    return not is_view and any(x.numel() for x in tensors)


class _Watched:
    """A backend whose operators run within the mode."""

    def __init__(self, module: ModuleType, mode: TorchDispatchMode):
        self.module, self.mode = module, mode

    def __getattr__(self, name: str) -> Any:
        operator = getattr(self.module, name)
        if not callable(operator):
            return operator

        def run(*args: Any, **kwargs: Any) -> Any:
            with self.mode:
                return operator(*args, **kwargs)

        return run
