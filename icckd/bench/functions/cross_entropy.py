"""Cross-entropy with margin, beside PyTorch's cross-entropy and a margin computed apart."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from icckd.bench.case import Case, Contender, Function, Work, compiled, too_large
from icckd.functional import cross_entropy_with_margin


@dataclass
class Inputs:
    """logits (N, C), labels (N,)."""

    logits: Tensor
    labels: Tensor


def plain(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """PyTorch's loss, and the margin from a softmax and its two largest values."""
    with torch.no_grad():
        probabilities = logits.softmax(1)
        own = probabilities.gather(1, labels[:, None]).squeeze(1)
        largest, where = probabilities.topk(2, dim=1)
        other = torch.where(where[:, 0] == labels, largest[:, 1], largest[:, 0])
    return cross_entropy(logits, labels), own - other


@dataclass(frozen=True)
class CrossEntropy(Case):
    """N rows of C logits."""

    family: ClassVar[str] = "cross_entropy"
    differentiated: ClassVar[tuple[str, ...]] = ("logits",)
    outputs: ClassVar[tuple[str, ...]] = ("loss", "margin")
    n: int = 65536
    c: int = 1000

    def inputs(self, seed: int, device: torch.device) -> Inputs:
        random = torch.Generator(device).manual_seed(seed)
        logits = 3 * torch.randn(self.n, self.c, generator=random, device=device, dtype=self.torch_dtype)
        return Inputs(logits, torch.randint(self.c, (self.n,), generator=random, device=device))

    def ours(self, backend: str) -> Function:
        return lambda x: cross_entropy_with_margin(x.logits, x.labels, backend=backend)

    def peers(self, device: torch.device, host_compiler: str = "aot_eager") -> Sequence[Contender]:
        no_room = too_large(6 * self.n * self.c, 4, device)

        def both(x: Inputs) -> tuple[Tensor, Tensor]:
            return plain(x.logits, x.labels)

        return [
            Contender("F.cross_entropy + eager margin", both, why_not=no_room, capturable=True),
            Contender(
                "the same, torch.compile",
                compiled(both, device, host_compiler),
                why_not=no_room,
                compiles=True,
                capturable=True,
            ),
            Contender(
                "F.cross_entropy, no margin",
                lambda x: cross_entropy(x.logits, x.labels),
                why_not=no_room,
                capturable=True,
            ),
        ]

    def work(self, backward: bool) -> Work:
        """Every logit read once, its gradient written once."""
        return Work((2 if backward else 1) * self.n * self.c * self.torch_dtype.itemsize)

    def tiny(self) -> "CrossEntropy":
        return replace(self, n=6, c=40)
