"""The intra-class loss, beside the ways of `bench.peers`."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from bench import intra_class_cases, peers
from bench.gpu.case import Case, Contender, Function, Work, compiled, too_large
from icckd.functional import intra_class_contrastive

# For rows so long that FlexAttention's own tiles do not fit on a multiprocessor.
_SMALL_TILES = {
    "kernel_options": {
        "fwd_BLOCK_M": 64,
        "fwd_BLOCK_N": 32,
        "bwd_BLOCK_M1": 32,
        "bwd_BLOCK_N1": 32,
        "bwd_BLOCK_M2": 32,
        "bwd_BLOCK_N2": 32,
        "num_stages": 1,
    }
}
# Beyond these, calls take seconds: a loop over more classes, a matrix of more rows.
_MOST_LOOPS, _MOST_DENSE_ROWS = 2000, 131072
# Beyond this a matrix of all pairs takes gigabytes, of which several processes that compile have too few.
_MOST_ROWS_COMPILED_AHEAD = 16384


@dataclass
class Inputs(peers.Inputs):
    """Those of the peers, and a memory (M, D) with its labels (M,)."""

    memory: Tensor | None = None
    memory_labels: Tensor | None = None


@dataclass(frozen=True)
class IntraClass(Case):
    """N rows of D numbers in C classes of `shape` (`Case` of `bench.intra_class_cases`), `active` anchors; M = `slots`.

    Peers are asked only where there is no memory, and temperature and normalisation are theirs.
    """

    family: ClassVar[str] = "intra_class"
    differentiated: ClassVar[tuple[str, ...]] = ("anchor", "positive")
    reference_waits: ClassVar[bool] = True
    n: int = 65536
    d: int = 512
    c: int = 1000
    shape: str = "equal"
    active: float = 1.0
    slots: int = 0
    temperature: float = peers.TEMPERATURE
    normalize: bool = True

    def inputs(self, seed: int, device: torch.device) -> Inputs:
        x = intra_class_cases.make_inputs(self._rows, seed, device, self.torch_dtype, self.active)
        if not self.normalize:
            # Similarities of unit size.
            x.anchor, x.positive = (rows / self.d**0.5 for rows in (x.anchor, x.positive))
        memory = memory_labels = None
        if self.slots:
            random = torch.Generator(device).manual_seed(seed + 1000)
            memory = torch.randn(self.slots, self.d, generator=random, device=device).to(self.torch_dtype)
            memory_labels = torch.randint(self.c, (self.slots,), generator=random, device=device)
        return Inputs(**vars(x), memory=memory, memory_labels=memory_labels)

    def ours(self, backend: str) -> Function:
        def loss(x: Inputs) -> Tensor:
            return intra_class_contrastive(
                x.anchor,
                x.positive,
                x.labels,
                gate=x.gate,
                memory=x.memory,
                memory_labels=x.memory_labels,
                temperature=self.temperature,
                normalize=self.normalize,
                num_classes=x.classes,
                backend=backend,
            )

        return loss

    def peers(self, device: torch.device) -> Sequence[Contender]:
        if self.slots or not self.normalize or self.temperature != peers.TEMPERATURE:
            return []
        from torch.nn.attention.flex_attention import flex_attention

        # Compiled, it does not run on a CPU.
        flex = compiled(flex_attention, device) if device.type == "cuda" else flex_attention
        no_dense = (
            "its N×N matrix takes seconds" if self.n > _MOST_DENSE_ROWS else self._too_large(5 * self.n**2, device)
        )
        no_loop = "a loop over so many classes takes seconds" if self.c > _MOST_LOOPS else None
        no_padding = self._too_large(self._padded_numbers(), device)
        missing = None if importlib.util.find_spec("inf_cl") else "inf-cl is not installed"
        return [
            Contender("dense", peers.dense, why_not=no_dense, capturable=True),
            Contender(
                "dense, torch.compile",
                compiled(peers.dense, device),
                why_not=no_dense,
                compiles=self.n <= _MOST_ROWS_COMPILED_AHEAD,
                capturable=True,
            ),
            Contender("FlexAttention", peers.flex_attention(flex), compiles=True),
            Contender("FlexAttention, small tiles", peers.flex_attention(partial(flex, **_SMALL_TILES)), compiles=True),
            Contender("loop over classes", peers.loop_over_classes, why_not=no_loop),
            Contender("padded bmm", peers.padded_bmm, why_not=no_padding),
            Contender("padded bmm, gradient by hand", peers.padded_by_hand, why_not=no_padding),
            Contender("chunks, gradient by hand", peers.chunked_by_hand),
            Contender("Inf-CL (all pairs, another loss)", peers.inf_cl, why_not=missing or no_dense, checked=False),
        ]

    def work(self, backward: bool) -> Work:
        """Rows read once, gradients written once; 2 FLOP a pair and number, 4 more for the gradients."""
        element = self.torch_dtype.itemsize
        rows = (4 if backward else 2) * self.n + self.slots
        sizes = intra_class_cases.class_labels(self._rows).bincount(minlength=self.c)
        pairs = int(sizes.square().sum()) + round(self.n * self.slots / self.c)
        return Work(rows * self.d * element, (6 if backward else 2) * pairs * self.d)

    def tiny(self) -> "IntraClass":
        shape = "equal" if self.shape == "equal" else "skewed"
        return replace(self, n=40, d=24, c=5, shape=shape, slots=12 if self.slots else 0)

    @property
    def amplification(self) -> float:
        """Similarities are divided by the temperature."""
        return 1 / self.temperature

    @property
    def _rows(self) -> intra_class_cases.Case:
        return intra_class_cases.Case(self.n, self.d, self.c, self.shape)

    def _padded_numbers(self) -> float:
        largest = int(intra_class_cases.class_labels(self._rows).bincount().max())
        return 4 * self.c * largest**2 + 6 * self.c * largest * self.d

    def _too_large(self, numbers: float, device: torch.device) -> str | None:
        return too_large(numbers, self.torch_dtype.itemsize, device)
