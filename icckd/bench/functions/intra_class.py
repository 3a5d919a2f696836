"""The intra-class loss, beside the ways of `icckd.bench.peers`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from icckd.bench import peers
from icckd.bench.case import Case, Contender, Function, Work, compiled, missing, too_large
from icckd.bench.peers import Inputs
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


@dataclass(frozen=True)
class IntraClass(Case):
    """N rows of D numbers in C classes, a share `active` of them anchors; M = `slots`.

    shape: "equal" classes, "skewed" ones whose sizes fall as 1/rank, or "half" of all rows in one.

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
        random = torch.Generator(device).manual_seed(seed)
        anchor, positive = (
            torch.randn(self.n, self.d, generator=random, device=device).to(self.torch_dtype) for _ in range(2)
        )
        labels = self._class_labels().to(device)[torch.randperm(self.n, generator=random, device=device)]
        gate = torch.rand(self.n, generator=random, device=device).argsort() < self.active * self.n
        x = Inputs(anchor, positive, labels, gate, self.c)
        if not self.normalize:
            # Similarities of unit size.
            x.anchor, x.positive = (rows / self.d**0.5 for rows in (x.anchor, x.positive))
        if self.slots:
            random = torch.Generator(device).manual_seed(seed + 1000)
            x.memory = torch.randn(self.slots, self.d, generator=random, device=device).to(self.torch_dtype)
            x.memory_labels = torch.randint(self.c, (self.slots,), generator=random, device=device)
        return x

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

    def peers(self, device: torch.device, host_compiler: str = "aot_eager") -> Sequence[Contender]:
        if not self._is_for_peers:
            return []
        from torch.nn.attention.flex_attention import flex_attention

        flex: Callable[..., Any] = flex_attention
        if device.type == "cuda":
            # Compiled, it does not run on a CPU.
            flex = compiled(flex, device, host_compiler)
        no_dense = (
            "its N×N matrix takes seconds" if self.n > _MOST_DENSE_ROWS else self._too_large(5 * self.n**2, device)
        )
        no_loop = "a loop over so many classes takes seconds" if self.c > _MOST_LOOPS else None
        no_padding = self._too_large(self._padded_numbers(), device)
        not_there = missing("inf_cl", "inf-cl")
        small_tiles = partial(flex, **_SMALL_TILES)
        return [
            Contender("dense", peers.dense, why_not=no_dense, capturable=True),
            Contender(
                "dense, torch.compile",
                compiled(peers.dense, device, host_compiler),
                why_not=no_dense,
                compiles=self.n <= _MOST_ROWS_COMPILED_AHEAD,
                capturable=True,
            ),
            Contender("FlexAttention", peers.flex_attention(flex), compiles=True, only_on="cuda"),
            Contender("FlexAttention, small tiles", peers.flex_attention(small_tiles), compiles=True, only_on="cuda"),
            Contender("loop over classes", peers.loop_over_classes, why_not=no_loop),
            Contender("padded bmm", peers.padded_bmm, why_not=no_padding),
            Contender("padded bmm, gradient by hand", peers.padded_by_hand, why_not=no_padding),
            Contender("chunks, gradient by hand", peers.chunked_by_hand),
            Contender(
                "Inf-CL (all pairs, another loss)",
                peers.inf_cl,
                why_not=not_there or no_dense,
                checked=False,
                only_on="cuda",
            ),
        ]

    def packaged_peers(self, device: torch.device) -> Sequence[Contender]:
        if not self._is_for_peers:
            return []
        float32_only = None if self.dtype == "float32" else "it computes float32 only"
        # Every anchor beside every listed pair: 6.3 GB at N = 4096, C = 100 with 70 % anchors.
        no_room = too_large(5 * self.active**2 * self.n * self._pairs(), 4, device)
        return [
            Contender("KeOps", peers.keops, why_not=missing("pykeops", "pykeops") or float32_only, compiles=True),
            Contender(
                "pytorch-metric-learning",
                peers.metric_learning,
                why_not=missing("pytorch_metric_learning", "pytorch-metric-learning") or no_room,
            ),
        ]

    def work(self, backward: bool) -> Work:
        """Rows read once, gradients written once; 2 FLOP a pair and number, 4 more for the gradients."""
        element = self.torch_dtype.itemsize
        rows = (4 if backward else 2) * self.n + self.slots
        pairs = self._pairs() + round(self.n * self.slots / self.c)
        return Work(rows * self.d * element, (6 if backward else 2) * pairs * self.d)

    def tiny(self) -> "IntraClass":
        shape = "equal" if self.shape == "equal" else "skewed"
        return replace(self, n=40, d=24, c=5, shape=shape, slots=12 if self.slots else 0)

    @property
    def amplification(self) -> float:
        """Similarities are divided by the temperature."""
        return 1 / self.temperature

    def class_sizes(self) -> Tensor:
        """The number of rows of every class (C,)."""
        return self._class_labels().bincount(minlength=self.c)

    @property
    def _is_for_peers(self) -> bool:
        return not self.slots and self.normalize and self.temperature == peers.TEMPERATURE

    def _class_labels(self) -> Tensor:
        """The label of every row (N,), class by class."""
        if self.shape == "equal":
            return torch.arange(self.n) * self.c // self.n
        shares = 1 / torch.arange(1, self.c + 1, dtype=torch.float64)
        if self.shape == "half":
            shares = torch.full((self.c,), 1 / (self.c - 1), dtype=torch.float64)
            shares[0] = 1
        ends = (shares.cumsum(0) / shares.sum() * self.n).round()
        return torch.searchsorted(ends, torch.arange(self.n, dtype=torch.float64), right=True).clamp(max=self.c - 1)

    def _pairs(self) -> int:
        """Pairs of rows of one class, in both orders, and of each row with itself."""
        return int(self.class_sizes().square().sum())

    def _padded_numbers(self) -> float:
        largest = int(self.class_sizes().max())
        return 4 * self.c * largest**2 + 6 * self.c * largest * self.d

    def _too_large(self, numbers: float, device: torch.device) -> str | None:
        return too_large(numbers, self.torch_dtype.itemsize, device)
