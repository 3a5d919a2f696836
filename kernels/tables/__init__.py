"""Tile sizes, warps and pipeline stages of every kernel on every architecture, searched by `bench.tune` only.

An architecture's file holds what sets it apart, and what has been measured on it, with a comment that says so; `shared`
holds the rest. All size classes of a kernel and width come from one of the two. `interpreter` says everything itself.

A table maps kernel → width of the elements ("half": 2 bytes, "float": 4 bytes) → size class → launch options. A size
class is the largest size that it serves, the last one serves all larger ones too; what "size" is, is said where the
kernel is launched. Options in capitals are the kernel's constants, the others Triton's.
"""

from collections.abc import Mapping
from functools import cache
from importlib import import_module

import torch
import triton

Options = Mapping[str, int]
Table = dict[str, dict[str, Mapping[int, Options]]]

ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "gfx942")


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on the CPU."""
    return bool(triton.knobs.runtime.interpret)


def architecture(device: torch.device) -> str:
    """The table that serves `device`: that of its own architecture or of the nearest one before it."""
    if interpreted():
        return "interpreter"
    if torch.version.hip is not None:
        return "gfx942"
    major, _ = torch.cuda.get_device_capability(device)
    return {8: "sm_80", 9: "sm_90"}.get(major, "sm_100")


def multiprocessors(device: torch.device) -> int:
    """How many multiprocessors `device` has; in the interpreter so few that tests of a few rows see one loop."""
    return 4 if interpreted() else torch.cuda.get_device_properties(device).multi_processor_count


@cache
def options(kernel: str, architecture: str, element_size: int, size: int) -> Options:
    """The launch options of `kernel` for elements of `element_size` bytes in the size class of `size`."""
    classes = entries(kernel, architecture, element_size)
    return classes[min((bound for bound in classes if bound >= size), default=max(classes))]


def entries(kernel: str, architecture: str, element_size: int) -> Mapping[int, Options]:
    """All size classes of `kernel` for elements of `element_size` bytes."""
    return table(architecture)[kernel]["half" if element_size == 2 else "float"]


@cache
def table(architecture: str) -> Table:
    """The whole table of `architecture`."""
    own, shared = (import_module(f"icckd.kernels.tables.{name}").TABLE for name in (architecture, "shared"))
    return {kernel: {**shared.get(kernel, {}), **own.get(kernel, {})} for kernel in {**shared, **own}}
