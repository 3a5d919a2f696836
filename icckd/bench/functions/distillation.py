"""KD-KL and the relational losses, beside the same in plain PyTorch, eager and compiled."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from icckd import reference
from icckd.bench.case import Case, Contender, Function, Work, compiled, too_large
from icckd.functional import kd_kl, rkd_angle, rkd_distance

_TEMPERATURE = 4.0


@dataclass
class Inputs:
    """student, teacher: logits (N, C), or embeddings (N, D)."""

    student: Tensor
    teacher: Tensor


def _inputs(rows: int, columns: int, case: Case, seed: int, device: torch.device) -> Inputs:
    random = torch.Generator(device).manual_seed(seed)
    return Inputs(
        *(torch.randn(rows, columns, generator=random, device=device, dtype=case.torch_dtype) for _ in range(2))
    )


def _plain_kd_kl(x: Inputs) -> Tensor:
    student, teacher = ((logits / _TEMPERATURE).log_softmax(1) for logits in (x.student, x.teacher))
    return _TEMPERATURE**2 * kl_div(student, teacher, log_target=True, reduction="batchmean")


@dataclass(frozen=True)
class KdKl(Case):
    """N rows of C logits of student and teacher."""

    family: ClassVar[str] = "kd_kl"
    differentiated: ClassVar[tuple[str, ...]] = ("student",)
    n: int = 65536
    c: int = 1000
    standardize: bool = False

    def inputs(self, seed: int, device: torch.device) -> Inputs:
        return _inputs(self.n, self.c, self, seed, device)

    def ours(self, backend: str) -> Function:
        return lambda x: kd_kl(
            x.student, x.teacher, temperature=_TEMPERATURE, standardize=self.standardize, backend=backend
        )

    def peers(self, device: torch.device, host_compiler: str = "aot_eager") -> Sequence[Contender]:
        if self.standardize:
            return []
        no_room = too_large(8 * self.n * self.c, 4, device)
        return [
            Contender("F.kl_div", _plain_kd_kl, why_not=no_room, capturable=True),
            Contender(
                "F.kl_div, torch.compile",
                compiled(_plain_kd_kl, device, host_compiler),
                why_not=no_room,
                compiles=True,
                capturable=True,
            ),
        ]

    def work(self, backward: bool) -> Work:
        """Both logits read once, the student's gradient written once."""
        return Work((3 if backward else 2) * self.n * self.c * self.torch_dtype.itemsize)

    @property
    def amplification(self) -> float:
        """A divergence is the difference of sums that are two to four times as large here, each rounded twice."""
        return 8.0

    def tiny(self) -> "KdKl":
        return replace(self, n=6, c=40)


@dataclass(frozen=True)
class Relational(Case):
    """N rows of D numbers of student and teacher; `relation` is "distance" or "angle"."""

    family: ClassVar[str] = "relational"
    differentiated: ClassVar[tuple[str, ...]] = ("student",)
    relation: str = "distance"
    n: int = 4096
    d: int = 512

    def inputs(self, seed: int, device: torch.device) -> Inputs:
        return _inputs(self.n, self.d, self, seed, device)

    def ours(self, backend: str) -> Function:
        function = rkd_distance if self.relation == "distance" else rkd_angle
        return lambda x: function(x.student, x.teacher, backend=backend)

    def peers(self, device: torch.device, host_compiler: str = "aot_eager") -> Sequence[Contender]:
        function: Callable = getattr(reference, f"rkd_{self.relation}")
        pairs, triples = 12 * self.n**2, 12 * self.n**3
        # Compiled, the differences between rows (N, N, D) are nowhere stored.
        distance = self.relation == "distance"
        no_room = too_large(4 * self.n**2 * self.d if distance else triples, 4, device)
        no_room_compiled = too_large(pairs if distance else triples, 4, device)

        def plain(x: Inputs) -> Tensor:
            return function(x.student, x.teacher)

        return [
            Contender("plain PyTorch", plain, why_not=no_room),
            Contender(
                "plain PyTorch, torch.compile",
                compiled(plain, device, host_compiler),
                why_not=no_room_compiled,
                compiles=True,
            ),
        ]

    def numbers(self) -> int:
        return 12 * self.n * self.d + 8 * self.n**2

    def work(self, backward: bool) -> Work:
        """Two Gram matrices, and one product more for the gradient; nobody counted the N³ terms of the angles."""
        element = self.torch_dtype.itemsize
        rows, products = (3, 3) if backward else (2, 2)
        counted = self.relation == "distance"
        return Work(rows * self.n * self.d * element, products * 2 * self.n**2 * self.d) if counted else Work()

    def tiny(self) -> "Relational":
        return replace(self, n=9, d=12)
