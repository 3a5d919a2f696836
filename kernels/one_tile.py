"""Classes that fit in one tile: loss and both gradients from one read and one write of the rows.

    S = Z Zᵀ,  P_ij = exp(κ S_ij − lse_i),  C = u_i P_ij + u_j P_ji,  r_i = u_i Σ_j P_ij
    dz_i = κ [ Σ_j C_ij z_j − r_i p_i ]   dp_i = −κ r_i z_i   dκ = Σ_i [ u_i Σ_j P_ij S_ij − r_i a_i ]
    x = f/‖f‖:  df = (dx − x (x·dx)) / ‖f‖,  where z_i · Σ_j C_ij z_j = Σ_j C_ij S_ij needs no second look at the rows

    one program      an equal share of the positions of small classes: the classes that begin there, tile by tile
    one tile         up to BLOCK rows: as many whole classes as fit
    first sweep      S += A Aᵀ, ‖a‖², ‖p‖², a·p, over chunks of BLOCK_K columns         2 · BLOCK · D elements read
    on chip          BLOCK × BLOCK similarities → lse, loss, C
    second sweep     C Z, both gradients, chunk by chunk           the same again, from L2; 2 · BLOCK · D written

Bytes: 4 · N · D · element size to and from memory. FLOP: 4 · BLOCK² · D a tile, of which classes of n rows use about
n / BLOCK; hence the smaller tiles where classes are promised to be small (`_likely_size`). Meant for many small
classes, where bytes are the floor; a class of more than BLOCK rows is left to `large_classes`. Measured times are owed:
no GPU has run this yet.
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
    HALF_UNIT,
    LOG2_E,
    argument_types,
    finite,
    inverse_norm,
    load_chunk,
    mantissa,
    number,
    power_of_two,
    product_precision_of,
    row_factor,
    row_loss,
    store_gradients,
)
from icckd.kernels.layout import class_layout
from icckd.kernels.precision import matmul, product_precision, rounded
from icckd.kernels.specialization import ELEMENTS, Specialization, specialize

if TYPE_CHECKING:
    from icckd.kernels.intra_class import Batch, Gradients

# Programs per multiprocessor: more than run there at once, so that those that end early make room for others.
_PROGRAMS = 8


@triton.jit
def one_tile(
    anchor, positive, weight, scale, upstream, temperature, order, rank, start, size, active, totals,
    losses, lse, d_anchor, d_positive, d_kappa,
    anchor_stride, positive_stride, dim,
    NORMALIZE: tl.constexpr, WITH_LOSS: tl.constexpr, WITH_UPSTREAM: tl.constexpr,
    NEED_ANCHOR: tl.constexpr, NEED_POSITIVE: tl.constexpr, NEED_TEMPERATURE: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
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
                NEED_ANCHOR, NEED_POSITIVE, NEED_TEMPERATURE, PRECISION, BLOCK, BLOCK_K,
            )  # fmt: skip


@triton.jit
def _tile(
    anchor, positive, weight, scale, upstream, temperature, order, rank, start, size, active,
    losses, lse, d_anchor, d_positive, d_kappa, anchor_stride, positive_stride, dim,
    first_position, end, labelled,
    NORMALIZE: tl.constexpr, WITH_LOSS: tl.constexpr, WITH_UPSTREAM: tl.constexpr,
    NEED_ANCHOR: tl.constexpr, NEED_POSITIVE: tl.constexpr, NEED_TEMPERATURE: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Of the class that begins at `first_position` and those after it that begin before `end`, all that fit.

    Returns how many rows they have.
    """
    k = tl.arange(0, BLOCK)
    position = first_position + k
    class_rank = tl.load(rank + position, mask=position < labelled, other=-1)
    # The class of a row, counted from the tile's first position.
    begin = tl.load(start + class_rank, mask=class_rank >= 0, other=end) - first_position
    stop = begin + tl.load(size + class_rank, mask=class_rank >= 0, other=0)
    valid = (begin < end - first_position) & (stop <= BLOCK)
    is_anchor = valid & (k < begin + tl.load(active + class_rank, mask=valid, other=0))
    row = tl.load(order + position, mask=valid, other=0)
    factor = row_factor(weight, scale, row, is_anchor)

    s = tl.zeros((BLOCK, BLOCK), tl.float32)
    squares = tl.zeros((BLOCK,), tl.float32)
    positive_squares = tl.zeros((BLOCK,), tl.float32)
    products = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, dim, BLOCK_K):
        a = load_chunk(anchor, anchor_stride, row, valid, first, dim, BLOCK_K)
        p = load_chunk(positive, positive_stride, row, is_anchor, first, dim, BLOCK_K).to(tl.float32)
        s = matmul(a, tl.trans(a), s, PRECISION)
        wide = a.to(tl.float32)
        squares += tl.sum(wide * wide, 1)
        positive_squares += tl.sum(p * p, 1)
        products += tl.sum(wide * p, 1)
    inverse = inverse_norm(squares, NORMALIZE)
    positive_inverse = inverse_norm(positive_squares, NORMALIZE)
    agreement = products * inverse * positive_inverse
    pair = (k[None, :] >= begin[:, None]) & (k[None, :] < stop[:, None]) & (k[None, :] != k[:, None]) & valid[:, None]
    # One array holds similarities and says which pairs there are: registers are few.
    s = tl.where(pair, s * inverse[:, None] * inverse[None, :], float("-inf"))

    kappa = 1.0 / number(temperature)
    bits = kappa * LOG2_E
    highest = (tl.max(s, 1) - agreement) * bits
    highest = tl.where(highest == float("-inf"), 0.0, highest)
    exponents = (s - agreement[:, None]) * bits
    loss = row_loss(highest + tl.log2(tl.sum(tl.exp2(exponents - highest[:, None]), 1)))
    if WITH_LOSS:
        tl.store(losses + row, tl.where(is_anchor, factor * loss, 0.0), mask=valid)
        tl.store(lse + row, tl.where(is_anchor, kappa * agreement + loss, 0.0), mask=valid)

    if NEED_ANCHOR or NEED_POSITIVE or NEED_TEMPERATURE:
        if WITH_UPSTREAM:
            factor *= tl.load(upstream + row, mask=is_anchor, other=0.0)
        # +∞ makes the shares of a row that is no anchor vanish.
        loss_bits = tl.where(is_anchor, loss * LOG2_E, float("inf"))
        coefficient = factor[:, None] * tl.exp2((s - agreement[:, None]) * bits - loss_bits[:, None])
        pairs = tl.sum(coefficient, 1)
        # u_j P_ji are the transposed, as S is symmetric: half the exponentials, no column's numbers in registers.
        products = coefficient * finite(s)
        slope = tl.sum(products, 1)
        along = slope + tl.sum(products, 0)
        if NEED_TEMPERATURE:
            tl.store(d_kappa + row, tl.where(is_anchor, slope - pairs * agreement, 0.0), mask=valid)
        coefficient += tl.trans(coefficient)
        largest = tl.full((BLOCK,), 1.0, tl.float32)
        if anchor.dtype.element_ty == tl.float16:
            # It has no room for small numbers: bring the largest of each row near its own largest.
            largest = tl.max(tl.abs(coefficient), 1) * HALF_UNIT
            largest = tl.where(largest > 0, largest, 1.0)
            coefficient = coefficient * (1.0 / largest)[:, None]
        coefficient = rounded(coefficient * mantissa(inverse)[None, :], anchor.dtype.element_ty)
        ignored = k < 0
        for first in range(0, dim, BLOCK_K):
            a = load_chunk(anchor, anchor_stride, row, valid, first, dim, BLOCK_K)
            pull = tl.zeros((BLOCK, BLOCK_K), tl.float32)
            if NEED_ANCHOR:
                z = rounded(a.to(tl.float32) * power_of_two(inverse)[:, None], anchor.dtype.element_ty)
                pull = matmul(coefficient, z, pull, PRECISION) * largest[:, None]
            store_gradients(
                anchor, positive, anchor_stride, positive_stride, d_anchor, d_positive, row, valid, is_anchor, ignored,
                first, dim, pull, along, pairs, agreement, inverse, positive_inverse, kappa,
                NORMALIZE, NEED_ANCHOR, NEED_POSITIVE, BLOCK_K,
            )  # fmt: skip
    return tl.sum(valid.to(tl.int32), 0)


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
        programs = min(count, _PROGRAMS * tables.multiprocessors(batch.anchor.device))
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
