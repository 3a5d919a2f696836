"""Classes that fit in one tile: loss and both gradients from one read and one write of the rows.

    S = Z Zᵀ,  P_ij = exp(κ S_ij − lse_i),  C = u_i P_ij + u_j P_ji,  r_i = u_i Σ_j P_ij
    dz_i = κ [ Σ_j C_ij z_j − r_i p_i ]   dp_i = −κ r_i z_i   dκ = Σ_i [ u_i Σ_j P_ij S_ij − r_i a_i ]
    x = f/‖f‖:  df = (dx − x (x·dx)) / ‖f‖,  where z_i · Σ_j C_ij z_j = Σ_j C_ij S_ij needs no second look at the rows

    one program      an equal share of the positions of small classes: the classes that begin there, tile by tile
    one tile         up to BLOCK rows: as many whole classes as fit
    first sweep      S += A Aᵀ, ‖a‖², ‖p‖², a·p, over chunks of BLOCK_K columns         2 · BLOCK · D elements read
    on chip          BLOCK × BLOCK similarities → lse, loss, C
    second sweep     C Z, both gradients, chunk by chunk           the same again, from L2; 2 · BLOCK · D written

Both sweeps copy STAGES − 1 chunks ahead, anchors and positives. The gradients are sums of the rows as they are given, F
and their positives P, where C' holds the norms, too: four multiplications for each column.

    dF = C' F + β P + γ F,  dP = β F + ζ P,  C'_ij = κ C_ij / (‖f_i‖ ‖f_j‖),  β = −κ r_i / (‖f_i‖ ‖p_i‖)
    γ = κ (r_i a_i − z_i · Σ_j C_ij z_j) / ‖f_i‖²,  ζ = κ r_i a_i / ‖p_i‖²

Bytes: 4 · N · D · element size to and from memory. FLOP: 4 · BLOCK² · D a tile, of which classes of n rows use about
n / BLOCK; hence the smaller tiles where classes are promised to be small (`_likely_size`). Registers limit the tiles:
128 rows are one program a multiprocessor, 255 registers a thread. Meant for many small classes, where bytes are the
floor; a class of more than BLOCK rows is left to `large_classes`. Measured times: docs/gpu.md.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import triton
import triton.language as tl
from torch import Tensor

from icckd.kernels import tables
from icckd.kernels.contrast import (
    ALIGNED,
    LOG2_E,
    LOWEST,
    argument_types,
    half_unit,
    inverse_norm,
    load_chunk,
    number,
    product_precision_of,
    row_factor,
    row_loss,
)
from icckd.kernels.layout import class_layout
from icckd.kernels.precision import matmul, product_precision, rounded
from icckd.kernels.specialization import ELEMENTS, Specialization, specialize

if TYPE_CHECKING:
    from icckd.kernels.intra_class import Batch, Gradients

# Rows in the tiles that a multiprocessor computes at a time: its registers hold no more.
_ROWS = 128


@triton.jit
def one_tile(
    anchor, positive, weight, scale, upstream, temperature, order, rank, start, size, active, totals,
    losses, lse, d_anchor, d_positive, d_kappa,
    anchor_stride, positive_stride, dim,
    NORMALIZE: tl.constexpr, WITH_LOSS: tl.constexpr, WITH_UPSTREAM: tl.constexpr,
    NEED_ANCHOR: tl.constexpr, NEED_POSITIVE: tl.constexpr, NEED_TEMPERATURE: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Loss, lse, both gradients and dκ, by row; 0 for rows that are no anchors.

    A program computes the classes that begin in its share of the positions, which is the same for all.
    """
    labelled = tl.load(totals)
    first_small = tl.load(totals + 2)
    # Not less than what surely fits in one tile.
    share = tl.maximum(tl.cdiv(labelled - first_small, tl.num_programs(0)), BLOCK // 2)
    first = first_small + tl.program_id(0) * share
    end = tl.minimum(first + share, labelled)
    class_rank = tl.load(rank + first, mask=first < end, other=0)
    position = tl.load(start + class_rank, mask=first < end, other=end)
    position = tl.where(position < first, position + tl.load(size + class_rank, mask=first < end, other=0), position)
    # Two tiles in a row hold more than BLOCK rows. Without the option, what all have in common fills the registers.
    for _ in tl.range(0, 2 * tl.cdiv(share, BLOCK) + 1, disable_licm=True):
        if position < end:
            position += _tile(
                anchor, positive, weight, scale, upstream, temperature, order, rank, start, size, active,
                losses, lse, d_anchor, d_positive, d_kappa, anchor_stride, positive_stride, dim,
                position, end, labelled, NORMALIZE, WITH_LOSS, WITH_UPSTREAM,
                NEED_ANCHOR, NEED_POSITIVE, NEED_TEMPERATURE, PRECISION, BLOCK, BLOCK_K, STAGES,
            )  # fmt: skip


@triton.jit
def _tile(
    anchor, positive, weight, scale, upstream, temperature, order, rank, start, size, active,
    losses, lse, d_anchor, d_positive, d_kappa, anchor_stride, positive_stride, dim,
    first_position, end, labelled,
    NORMALIZE: tl.constexpr, WITH_LOSS: tl.constexpr, WITH_UPSTREAM: tl.constexpr,
    NEED_ANCHOR: tl.constexpr, NEED_POSITIVE: tl.constexpr, NEED_TEMPERATURE: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Of the class that begins at `first_position` and those after it that begin before `end`, all that fit.

    Returns how many rows they have.
    """
    HALF: tl.constexpr = anchor.dtype.element_ty == tl.float16
    VECTOR: tl.constexpr = 128 // anchor.dtype.element_ty.primitive_bitwidth
    k = tl.arange(0, BLOCK)
    position = first_position + k
    row = tl.load(order + position, mask=position < labelled, other=0)
    class_rank = tl.load(rank + position, mask=position < labelled, other=-1)
    # The class of a row, counted from the tile's first position.
    begin = tl.load(start + class_rank, mask=class_rank >= 0, other=end) - first_position
    stop = begin + tl.load(size + class_rank, mask=class_rank >= 0, other=0)
    valid = (begin < end - first_position) & (stop <= BLOCK)
    is_anchor = valid & (k < begin + tl.load(active + class_rank, mask=class_rank >= 0, other=0))
    factor = row_factor(weight, scale, row, is_anchor)

    s = tl.zeros((BLOCK, BLOCK), tl.float32)
    squares = tl.zeros((BLOCK, BLOCK_K // VECTOR), tl.float32)
    positive_squares = tl.zeros((BLOCK, BLOCK_K // VECTOR), tl.float32)
    products = tl.zeros((BLOCK, BLOCK_K // VECTOR), tl.float32)
    for first in tl.range(0, dim, BLOCK_K, num_stages=STAGES):
        a = load_chunk(anchor, anchor_stride, row, valid, first, dim, BLOCK_K)
        p = load_chunk(positive, positive_stride, row, is_anchor, first, dim, BLOCK_K).to(tl.float32)
        s = matmul(a, tl.trans(a), s, PRECISION)
        wide = a.to(tl.float32)
        squares += _sum_vectors(wide * wide, VECTOR)
        positive_squares += _sum_vectors(p * p, VECTOR)
        products += _sum_vectors(wide * p, VECTOR)
    inverse = inverse_norm(tl.sum(squares, 1), NORMALIZE)
    positive_inverse = inverse_norm(tl.sum(positive_squares, 1), NORMALIZE)
    agreement = tl.sum(products, 1) * inverse * positive_inverse
    stop = tl.where(valid, stop, 0)
    pair = (k[None, :] >= begin[:, None]) & (k[None, :] < stop[:, None]) & (k[None, :] != k[:, None])

    kappa = 1.0 / number(temperature)
    bits = kappa * LOG2_E
    # One array tells the similarities, and which pairs there are: registers are few.
    x = tl.where(pair, (s * inverse[:, None] * inverse[None, :] - agreement[:, None]) * bits, LOWEST)
    highest = tl.max(x, 1)
    highest = tl.where(highest == LOWEST, 0.0, highest)
    loss = row_loss(highest + tl.log2(tl.sum(tl.exp2(x - highest[:, None]), 1)))
    if WITH_LOSS:
        tl.store(losses + row, tl.where(is_anchor, factor * loss, 0.0), mask=valid)
        tl.store(lse + row, tl.where(is_anchor, kappa * agreement + loss, 0.0), mask=valid)

    if NEED_ANCHOR or NEED_POSITIVE or NEED_TEMPERATURE:
        if WITH_UPSTREAM:
            factor *= tl.load(upstream + row, mask=is_anchor, other=0.0)
        # +∞ makes the shares of a row that is no anchor vanish.
        loss_bits = tl.where(is_anchor, loss * LOG2_E, float("inf"))
        coefficient = factor[:, None] * tl.exp2(x - loss_bits[:, None])
        pairs = tl.sum(coefficient, 1)
        similar = coefficient * (x * (1.0 / bits) + agreement[:, None])
        slope = tl.sum(similar, 1)
        along = slope + tl.sum(similar, 0)
        if NEED_TEMPERATURE:
            tl.store(d_kappa + row, tl.where(is_anchor, slope - pairs * agreement, 0.0), mask=valid)
        # u_j P_ji are the transposed, as S is symmetric: half the exponentials, no column's numbers in registers.
        coefficient += tl.trans(coefficient)
        coefficient *= (kappa * inverse)[None, :] * inverse[:, None]
        if HALF:
            # It has no room for small numbers: bring the largest of each row near its own largest.
            unit = half_unit(tl.max(tl.abs(coefficient), 1))
            coefficient *= (1.0 / unit)[:, None]
        coefficient = rounded(coefficient, anchor.dtype.element_ty)
        beta = -kappa * pairs * inverse * positive_inverse
        gamma = kappa * (pairs * agreement - along) * inverse * inverse
        zeta = kappa * pairs * agreement * positive_inverse * positive_inverse
        for first in tl.range(0, dim, BLOCK_K, num_stages=STAGES):
            a = load_chunk(anchor, anchor_stride, row, valid, first, dim, BLOCK_K)
            p = load_chunk(positive, positive_stride, row, is_anchor, first, dim, BLOCK_K).to(tl.float32)
            wide = a.to(tl.float32)
            column = first + tl.arange(0, BLOCK_K)
            at = row.to(tl.int64)[:, None] * dim + column[None, :]
            mask = valid[:, None] & (column < dim)[None, :]
            if NEED_ANCHOR:
                d_a = matmul(coefficient, a, tl.zeros((BLOCK, BLOCK_K), tl.float32), PRECISION)
                if HALF:
                    d_a *= unit[:, None]
                d_a += beta[:, None] * p
                if NORMALIZE:
                    d_a += gamma[:, None] * wide
                tl.store(d_anchor + at, rounded(d_a, d_anchor.dtype.element_ty), mask=mask)
            if NEED_POSITIVE:
                d_p = beta[:, None] * wide
                if NORMALIZE:
                    d_p += zeta[:, None] * p
                tl.store(d_positive + at, rounded(d_p, d_positive.dtype.element_ty), mask=mask)
    return tl.sum(valid.to(tl.int32), 0)


@triton.jit
def _sum_vectors(x, VECTOR: tl.constexpr):
    """Sums of VECTOR columns that lie side by side, which one thread has loaded."""
    return tl.sum(tl.reshape(x, (x.shape[0], x.shape[1] // VECTOR, VECTOR)), 2)


@dataclass(frozen=True)
class OneTile:
    """Computes classes of up to BLOCK rows by `one_tile`: Triton's `SmallClasses`."""

    options: tables.Options

    @classmethod
    def for_rows(cls, anchor: Tensor, num_classes: int | None) -> "OneTile":
        """With the smallest tile that holds classes of the size that is likely."""
        size, architecture = _likely_size(len(anchor), num_classes), tables.architecture(anchor.device)
        return cls(tables.options("one_tile", architecture, anchor.element_size(), size))

    @property
    def limit(self) -> int:
        return self.options["BLOCK"]

    layout = staticmethod(class_layout)

    def compute(
        self, batch: "Batch", rows: Tensor | None, lse: Tensor | None, upstream: Tensor | None, gradients: "Gradients"
    ) -> None:
        layout = batch.layout
        count, dim = batch.anchor.shape
        programs = min(count, max(1, _ROWS // self.limit) * tables.multiprocessors(batch.anchor.device))
        one_tile[(programs,)](
            batch.anchor, batch.positive, batch.weight, batch.scale, upstream, batch.temperature,
            layout.order, layout.rank, layout.start, layout.size, layout.active, layout.totals,
            rows, lse, gradients.anchor, gradients.positive, gradients.kappa,
            batch.anchor.stride(0), batch.positive.stride(0), dim,
            NORMALIZE=batch.normalize, WITH_LOSS=rows is not None, WITH_UPSTREAM=upstream is not None,
            **gradients.flags, PRECISION=product_precision(), **self.options,
        )  # fmt: skip


def _likely_size(rows: int, num_classes: int | None) -> int:
    """What nearly every class will not exceed if labels are drawn alike: the mean and four standard deviations.

    Larger ones go the longer way. Nothing is known without a number of classes.
    """
    mean = rows / num_classes if num_classes else math.inf
    return math.ceil(min(mean + 4 * math.sqrt(mean), rows))


def specializations(architecture: str) -> Iterator[Specialization]:
    """Every table entry: in a step with the mean loss, and in the backward of weighted rows with everything wanted."""
    common = {
        "NORMALIZE": True,
        "NEED_ANCHOR": True,
        "NEED_POSITIVE": True,
        "PRECISION": product_precision_of(architecture),
    }
    step = {"WITH_LOSS": True, "WITH_UPSTREAM": False, "NEED_TEMPERATURE": False, "weight": None, "upstream": None}
    backward = {"WITH_LOSS": False, "WITH_UPSTREAM": True, "NEED_TEMPERATURE": True, "scale": None}
    backward |= {"losses": None, "lse": None}
    for element, size in ELEMENTS.items():
        for options in tables.entries("one_tile", architecture, size).values():
            for flags in (step, backward):
                types = argument_types(element) | ({"temperature": "fp32"} if flags is step else {})
                yield specialize(
                    one_tile,
                    types,
                    common | flags,
                    options,
                    matrix_unit=True,
                    description=f"{element}, {'step' if flags is step else 'backward'}",
                    divisible=ALIGNED,
                )
