"""The class layout alone: what the intra-class loss does before it looks at a row."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from icckd import backends
from icckd.bench.case import Case, Contender, Function, Work
from icckd.kernels.layout import Layout, class_layout

# Classes of more rows count as large; the layout's cost does not depend on it.
_LIMIT = 128


@dataclass
class Inputs:
    """labels (N,) in [0, classes), weight (N,)."""

    labels: Tensor
    weight: Tensor
    classes: int


def _layout(backend: str) -> Callable[..., Layout]:
    return backends.module("cuda").WholeClass(_LIMIT).layout if backend == "cuda" else class_layout


@dataclass(frozen=True)
class ClassLayout(Case):
    """N rows in C classes."""

    family: ClassVar[str] = "layout"
    differentiated: ClassVar[tuple[str, ...]] = ()
    outputs: ClassVar[tuple[str, ...]] = ("order",)
    n: int = 65536
    c: int = 1000

    def inputs(self, seed: int, device: torch.device) -> Inputs:
        random = torch.Generator(device).manual_seed(seed)
        labels = torch.randint(self.c, (self.n,), generator=random, device=device)
        return Inputs(labels, torch.rand(self.n, generator=random, device=device), self.c)

    def ours(self, backend: str) -> Function:
        """Counted by Triton's kernels or by those in CUDA C++; "reference": sorted, without a promised number."""

        def order(x: Inputs) -> Tensor:
            classes = None if backend == "reference" else x.classes
            # Layouts differ in the order of the classes, by size or label: by label they are the same.
            return _layout(backend)(x.labels, x.weight, None, classes, _LIMIT).order

        return order

    def contenders(self, device: torch.device) -> list[Contender]:
        return [
            *(
                Contender(
                    f"icckd {backend}",
                    self.ours(backend),
                    is_peer=False,
                    why_not=backends.why_not(backend, device, torch.float32),
                    compiles=True,
                    capturable=True,
                )
                for backend in ("triton", "cuda")
            ),
            *self.peers(device),
        ]

    def peers(self, device: torch.device, host_compiler: str = "aot_eager") -> Sequence[Contender]:
        def sort(x: Inputs) -> Tensor:
            return x.labels.sort(stable=True)[1]

        return [
            Contender("one stable sort of the labels", sort, capturable=True, checked=False),
            Contender("the layout without num_classes", self.ours("reference"), capturable=True, checked=False),
        ]

    def work(self, backward: bool) -> Work:
        """Labels and weights read once, the order written once."""
        return Work(self.n * (8 + 4 + 4))

    def tiny(self) -> "ClassLayout":
        return replace(self, n=40, c=5)
