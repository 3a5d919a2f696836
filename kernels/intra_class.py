"""The operators of the intra-class contrastive loss in Triton: what is launched, with which tiles.

    class_layout ─┬─ classes of up to LIMIT rows ─────── one_tile ───────────────────────────┬─ sums
                  └─ larger ones, or with a memory ───── prepare → log_sum_exp → gradient ───┘

Which class goes which way is read on the device: both kinds of kernels are launched, and programs without work end
at once. A training step without a memory takes nine launches: four for the layout, one for small classes, three for
large ones, one for the sum; its backward takes one more (`scaling`).

Products take rows in the inputs' dtype, memory rows in that of the batch; sums are float32. A row whose squared norm
is no float32 number (norms beyond 10^±19) counts as zero or gives NaN. NaN makes its class NaN, and may do so to
classes in the same tile.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from icckd.kernels import tables
from icckd.kernels.large_classes import MARGIN, add_splits, gradient, log_sum_exp, memory_norms, prepare, row_losses
from icckd.kernels.layout import Layout
from icckd.kernels.one_tile import OneTile
from icckd.kernels.precision import product_precision
from icckd.kernels.totals import total

if TYPE_CHECKING:
    from icckd.backends.problem import IntraClassProblem, Needs

# Rows that one program of `row_losses` takes.
_ROWS = 256
# Programs per multiprocessor that a split of the memory aims at, and the most splits.
_WAVES, _MOST_SPLITS = 2, 64
# Programs per multiprocessor that share the tiles of `prepare`, and those of a pass: at least as many as run at once.
_ROW_PROGRAMS, _TILE_PROGRAMS = 16, 4


def intra_class_rows(
    problem: "IntraClassProblem", small_classes: "SmallClassesFor" = OneTile.for_rows
) -> tuple[Tensor, Tensor]:
    """The weighted loss of every row and its log-sum-exp, both (N,), 0 where a row is no anchor."""
    batch = Batch.of(problem, small_classes, need_temperature=False)
    rows, lse = batch.per_row(), batch.per_row()
    nothing = Gradients.of(batch, False, False, False)
    batch.compute_small(rows, lse, None, nothing)
    if len(rows):
        _losses(batch, _prepare(batch, rows, lse, None), rows, lse)
    return rows, lse


def intra_class_rows_backward(
    grad_rows: Tensor,
    lse: Tensor,
    problem: "IntraClassProblem",
    needs: "Needs",
    small_classes: "SmallClassesFor" = OneTile.for_rows,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of Σ grad_rows · rows; an empty tensor for each that is not needed."""
    batch = Batch.of(problem, small_classes, needs.temperature)
    gradients = Gradients.of(batch, *needs)
    grad_rows = grad_rows.contiguous()
    batch.compute_small(None, None, grad_rows, gradients)
    if len(lse):
        _gradient(batch, _prepare(batch, None, lse.contiguous(), grad_rows), gradients)
    return gradients.of_inputs(batch)


def intra_class_sum(
    problem: "IntraClassProblem", needs: "Needs", small_classes: "SmallClassesFor" = OneTile.for_rows
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The weighted sum of the losses, and its gradients; an empty tensor for each that is not needed."""
    batch = Batch.of(problem, small_classes, needs.temperature)
    gradients = Gradients.of(batch, *needs)
    rows, lse = batch.per_row(), batch.per_row()
    batch.compute_small(rows, lse, None, gradients)
    if len(rows):
        prepared = _prepare(batch, rows, lse, None)
        _losses(batch, prepared, rows, lse)
        _gradient(batch, prepared, gradients)
    return total(rows), *gradients.of_inputs(batch)


class SmallClasses(Protocol):
    """Who lays out the rows, and computes the classes that fit on chip: `OneTile`, or another backend's.

    limit: The rows of the largest class that it computes; 0 for none.
    """

    @property
    def limit(self) -> int: ...

    def layout(
        self, labels: Tensor, weight: Tensor | None, memory_labels: Tensor | None, num_classes: int | None, limit: int
    ) -> Layout:
        """The layout of rows with these labels (N,) and weights (N,) or 1 each, and of memory rows with theirs (M,)."""

    def compute(
        self, batch: "Batch", rows: Tensor | None, lse: Tensor | None, upstream: Tensor | None, gradients: "Gradients"
    ) -> None:
        """Fill in rows and lse (N,) unless None, and `gradients`: those of Σ upstream · rows, or of Σ rows without."""


# From the anchors (N, D) and the number of classes, if it is known.
SmallClassesFor = Callable[[Tensor, int | None], SmallClasses]


@dataclass
class Batch:
    """A problem as kernels take it, and the layout of its rows.

    weight, scale: Losses are multiplied by both, (N,) and (1,); 1 where None.
    temperature: Where it lies on the device, or the number itself.
    """

    anchor: Tensor
    positive: Tensor
    weight: Tensor | None
    scale: Tensor | None
    memory: Tensor | None
    temperature: Tensor | float
    normalize: bool
    small_classes: "SmallClasses"
    layout: Layout

    @classmethod
    def of(cls, problem: "IntraClassProblem", small_classes: "SmallClassesFor", need_temperature: bool) -> "Batch":
        anchor, positive = _with_unit_columns(problem.anchor), _with_unit_columns(problem.positive)
        memory, memory_labels, num_classes = problem.memory, problem.memory_labels, problem.num_classes
        if memory is not None and len(memory):
            memory = _with_unit_columns(memory)
        else:
            memory = memory_labels = None
        labels = problem.labels.contiguous()
        weight = None if problem.weight is None else problem.weight.contiguous()
        small = small_classes(anchor, num_classes)
        limit = small.limit if memory is None else 0
        layout = small.layout(labels, weight, memory_labels, num_classes, limit)
        scale = layout.scale if problem.mean else None
        # What the host knows kernels get as a number: nothing has to fill memory on the device.
        known = problem.temperature.device.type == "cpu" and not need_temperature
        tau = problem.temperature.item() if known else problem.temperature
        return cls(anchor, positive, weight, scale, memory, tau, problem.normalize, small, layout)

    def compute_small(
        self, rows: Tensor | None, lse: Tensor | None, upstream: Tensor | None, gradients: "Gradients"
    ) -> None:
        """Loss and gradients of the classes that fit on chip."""
        if self.memory is None and self.small_classes.limit and len(self.anchor):
            self.small_classes.compute(self, rows, lse, upstream, gradients)

    def options(self, kernel: str) -> tables.Options:
        """The launch options of a kernel for rows of this length."""
        return _options(kernel, self.anchor, self.anchor.shape[1])

    def options_of_pass(self, kernel: str) -> tables.Options:
        """The launch options of `log_sum_exp` or `gradient`, which have other ones with a memory."""
        return self.options(kernel if self.memory is None else f"{kernel}_memory")

    def per_row(self) -> Tensor:
        """Room for a number of every row, or of every position (N,)."""
        return torch.empty(len(self.anchor), dtype=torch.float32, device=self.anchor.device)

    @property
    def temperature_on_device(self) -> Tensor:
        """The temperature for kernels that read it there."""
        if isinstance(self.temperature, Tensor):
            return self.temperature
        return torch.full((), self.temperature, dtype=torch.float32, device=self.anchor.device)


@dataclass
class _Prepared:
    """What `prepare` and `memory_norms` write, and lse · log2 e.

    z: Scaled rows by position (N, padded D).
    inverse, positive_inverse, agreement: 1/norms and a_i by position (N,).
    mantissas, factor, lse_bits: Of 1/norms; u_i, and lse_i log2 e, by position, with room for a tile behind the last.
    memory_inverse: 1/norms of the memory rows (M,).
    """

    z: Tensor
    inverse: Tensor
    mantissas: Tensor
    positive_inverse: Tensor
    agreement: Tensor
    factor: Tensor
    lse_bits: Tensor
    memory_inverse: Tensor | None

    def tiles(self, rows: int, columns: int) -> TensorDescriptor:
        """The scaled rows in tiles of this size, 0 beyond their edges."""
        return TensorDescriptor.from_tensor(self.z, [rows, columns])


@dataclass
class Gradients:
    """Room for the gradients that are wanted, (0,) for others; dκ by row (N,)."""

    anchor: Tensor
    positive: Tensor
    kappa: Tensor
    needed: tuple[bool, bool, bool]

    @classmethod
    def of(cls, batch: Batch, *needed: bool) -> "Gradients":
        anchor, positive = (
            torch.empty(x.shape if need else (0,), dtype=x.dtype, device=x.device)
            for x, need in zip((batch.anchor, batch.positive), needed[:2], strict=True)
        )
        kappa = torch.empty(len(batch.anchor) if needed[2] else 0, dtype=torch.float32, device=batch.anchor.device)
        return cls(anchor, positive, kappa, (needed[0], needed[1], needed[2]))

    def of_inputs(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of anchor, positive and temperature: dτ = −κ² dκ."""
        need_temperature = self.needed[2]
        temperature = -total(self.kappa) / batch.temperature**2 if need_temperature else self.kappa
        return self.anchor, self.positive, temperature

    @property
    def flags(self) -> dict[str, bool]:
        return dict(zip(("NEED_ANCHOR", "NEED_POSITIVE", "NEED_TEMPERATURE"), self.needed, strict=True))


def _prepare(batch: Batch, rows: Tensor | None, lse: Tensor, upstream: Tensor | None) -> _Prepared:
    """What the passes want. Fills in rows and lse of rows that are no anchors; with `upstream` lse is given."""
    layout, memory, (count, dim) = batch.layout, batch.memory, batch.anchor.shape
    options = batch.options("prepare")
    chunk = max(batch.options_of_pass(kernel)["BLOCK_K"] for kernel in ("log_sum_exp", "gradient"))
    padded = triton.cdiv(max(dim, 1), chunk) * chunk
    z = torch.empty(count, padded, dtype=batch.anchor.dtype, device=batch.anchor.device)
    inverse, positive_inverse, agreement = (batch.per_row() for _ in range(3))
    mantissas, factor, lse_bits = (lse.new_empty(count + MARGIN.value) for _ in range(3))
    if _is_half(batch.anchor):
        # `gradient` wants the largest factor of float16: it then looks at those of small classes, too.
        factor.zero_()
    prepare[(_programs(batch, triton.cdiv(count + MARGIN.value, options["BLOCK"]), _ROW_PROGRAMS),)](
        batch.anchor, batch.positive, layout.order, layout.rank, layout.start, layout.active, layout.totals,
        batch.weight, batch.scale, upstream,
        z, inverse, mantissas, positive_inverse, agreement, factor, lse_bits, rows, lse,
        batch.anchor.stride(0), batch.positive.stride(0), count, dim, padded, NORMALIZE=batch.normalize, **options,
    )  # fmt: skip
    memory_inverse = None
    if memory is not None:
        options = batch.options("memory_norms")
        memory_inverse = torch.empty(len(memory), dtype=torch.float32, device=memory.device)
        memory_norms[(triton.cdiv(len(memory), options["BLOCK"]),)](
            memory, layout.memory_order, layout.totals, memory_inverse, memory.stride(0), len(memory), dim,
            NORMALIZE=batch.normalize, **options,
        )  # fmt: skip
    return _Prepared(z, inverse, mantissas, positive_inverse, agreement, factor, lse_bits, memory_inverse)


def _losses(batch: Batch, prepared: _Prepared, rows: Tensor, lse: Tensor) -> None:
    """Fill in loss, lse and lse · log2 e of the anchors in large classes."""
    layout, options = batch.layout, batch.options_of_pass("log_sum_exp")
    (count, dim), padded = batch.anchor.shape, prepared.z.shape[1]
    tiles = triton.cdiv(count, options["BLOCK_M"])
    splits = _splits(batch, tiles, options["BLOCK_N"])
    negatives = torch.empty(splits, count, dtype=torch.float32, device=rows.device) if splits > 1 else None
    log_sum_exp[(_programs(batch, tiles, _TILE_PROGRAMS), splits)](
        prepared.z, prepared.tiles(options["BLOCK_N"], options["BLOCK_K"]), prepared.mantissas, prepared.agreement,
        layout.anchors, layout.order, layout.rank, layout.start, layout.size, layout.totals, batch.temperature,
        prepared.factor, rows, lse, prepared.lse_bits, negatives,
        batch.memory, layout.memory_order, layout.memory_start, layout.memory_size, prepared.memory_inverse,
        _row_stride(batch.memory), count, dim, padded, splits,
        HAS_MEMORY=batch.memory is not None, SPLIT=splits > 1, ONE_CHUNK=padded == options["BLOCK_K"],
        PRECISION=product_precision(), **options,
    )  # fmt: skip
    if splits > 1:
        row_losses[(triton.cdiv(count, _ROWS),)](
            layout.anchors, layout.order, layout.totals, batch.temperature, prepared.agreement, prepared.factor,
            rows, lse, prepared.lse_bits, negatives, count, splits, BLOCK=_ROWS,
        )  # fmt: skip


def _gradient(batch: Batch, prepared: _Prepared, gradients: Gradients) -> None:
    """The gradients of the rows of large classes, and zeros for ignored rows."""
    if not any(gradients.needed):
        return
    layout, options, factor = batch.layout, batch.options_of_pass("gradient"), prepared.factor
    (count, dim), padded = batch.anchor.shape, prepared.z.shape[1]
    block_m, block_n, block_k, block_v = (options[f"BLOCK_{x}"] for x in "MNKV")
    tiles, chunks = triton.cdiv(count, block_m), triton.cdiv(max(dim, 1), block_v)
    splits = _splits(batch, tiles * chunks, block_n)
    pulls = sums = None
    if splits > 1:
        pulls = torch.empty(splits, count, dim, dtype=torch.float32, device=factor.device)
        sums = torch.empty(3, splits, count, dtype=torch.float32, device=factor.device)
    largest = factor.abs().amax() if _is_half(batch.anchor) else None
    gradient[(_programs(batch, tiles, _TILE_PROGRAMS), chunks, splits)](
        batch.anchor, batch.positive, prepared.tiles(block_m, block_k), prepared.tiles(block_n, block_k),
        prepared.tiles(block_n, block_v), layout.order, layout.rank, layout.start, layout.size, layout.active,
        layout.totals, batch.temperature, prepared.lse_bits, factor, largest,
        prepared.inverse, prepared.mantissas, prepared.positive_inverse, prepared.agreement,
        batch.memory, layout.memory_order, layout.memory_start, layout.memory_size, prepared.memory_inverse,
        gradients.anchor, gradients.positive, gradients.kappa, pulls, sums,
        batch.anchor.stride(0), batch.positive.stride(0), _row_stride(batch.memory), count, dim, padded, splits,
        NORMALIZE=batch.normalize, HAS_MEMORY=batch.memory is not None, SPLIT=splits > 1,
        ONE_CHUNK=padded == block_k == block_v, **gradients.flags, PRECISION=product_precision(), **options,
    )  # fmt: skip
    if splits > 1:
        options = batch.options("add_splits")
        add_splits[(triton.cdiv(count, options["BLOCK"]), triton.cdiv(max(dim, 1), options["BLOCK_K"]))](
            batch.anchor, batch.positive, layout.order, layout.rank, layout.start, layout.active, layout.totals,
            batch.temperature, prepared.inverse, prepared.positive_inverse, prepared.agreement,
            gradients.anchor, gradients.positive, gradients.kappa, pulls, sums,
            batch.anchor.stride(0), batch.positive.stride(0), count, dim, splits,
            NORMALIZE=batch.normalize, **gradients.flags, **options,
        )  # fmt: skip


def _splits(batch: Batch, programs: int, block_n: int) -> int:
    """Into how many parts the columns of a tile are split: more than one where few tiles meet a long memory.

    Kernels count splits · N in 32 bits: with more than one split there are few tiles, and so few rows.
    """
    if batch.memory is None:
        return 1
    wanted = triton.cdiv(_WAVES * tables.multiprocessors(batch.anchor.device), programs)
    return max(1, min(wanted, _MOST_SPLITS, triton.cdiv(len(batch.memory), block_n)))


def _programs(batch: Batch, tiles: int, most: int) -> int:
    """How many programs share tiles, of which the device knows how many have work: `most` per multiprocessor."""
    return max(1, min(tiles, most * tables.multiprocessors(batch.anchor.device)))


def _options(kernel: str, rows: Tensor, size: int) -> tables.Options:
    return tables.options(kernel, tables.architecture(rows.device), rows.element_size(), size)


def _is_half(x: Tensor) -> bool:
    return x.dtype == torch.float16


def _row_stride(x: Tensor | None) -> int:
    return 0 if x is None else x.stride(0)


def _with_unit_columns(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()
