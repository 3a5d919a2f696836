"""The push of a batch into the class memory."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from icckd import ClassMemory
from icckd.bench.case import Case, Contender, Function, Work
from icckd.ops.class_memory import class_memory_push


@dataclass
class Inputs:
    """features (N, D), labels (N,), and the memory that they are pushed into."""

    features: Tensor
    labels: Tensor
    memory: ClassMemory


@dataclass(frozen=True)
class MemoryPush(Case):
    """N rows of D numbers into C classes of `capacity` slots."""

    family: ClassVar[str] = "class_memory"
    differentiated: ClassVar[tuple[str, ...]] = ()
    outputs: ClassVar[tuple[str, ...]] = ("slots",)
    n: int = 4096
    d: int = 512
    c: int = 1000
    capacity: int = 64

    def inputs(self, seed: int, device: torch.device) -> Inputs:
        random = torch.Generator(device).manual_seed(seed)
        features = torch.randn(self.n, self.d, generator=random, device=device, dtype=self.torch_dtype)
        labels = torch.randint(self.c, (self.n,), generator=random, device=device)
        memory = ClassMemory(self.c, self.capacity, self.d, dtype=self.torch_dtype).to(device)
        return Inputs(features, labels, memory)

    def ours(self, backend: str) -> Function:
        def push(x: Inputs) -> Tensor:
            class_memory_push(x.memory.slots, x.memory.pushed, x.features, x.labels, backend)
            return x.memory.slots[:-1]

        return push

    def peers(self, device: torch.device, host_compiler: str = "aot_eager") -> Sequence[Contender]:
        return []

    def work(self, backward: bool) -> Work:
        """Every row read and written once."""
        return Work(2 * self.n * self.d * self.torch_dtype.itemsize)

    def tiny(self) -> "MemoryPush":
        return replace(self, n=20, d=8, c=3, capacity=4)
