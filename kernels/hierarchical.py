"""Adaptive hierarchical similarity: all pairs of rows of a batch, with margins by their classes' mean rows.

With rows z, c_a the mean row of class a, factor and offset those of Ŝ_ab = factor · c_a·c_b + offset, the terms are

    x_ij = −ς (z_i·z_j − γ − Ŝ_aa)              j ≠ i of the class a of i          all times log2(e), for powers of two
    x_ij =  σ (z_i·z_j − γ + factor · c_a·c_b + offset)     j of another class b
    L_i  = log2(1 + Σ_j 2^x_ij), of its own class and of others apart; ℓ_i = ln 2 (own L_i / ς + other L_i / σ)
    dL/dz_i = Σ_j ∓(2^(x_ij − L_i) + 2^(x_ij − L_j)) z_j,  − within a class,  of those two that are anchors

x is symmetric, so that a tile of rows finds its gradients as anchors and as others' pairs in one pass over its columns:
nothing is added atomically.

    columns     all rows j, BLOCK_N at a time
    rows  tile  [s = z zᵀ][c = c cᵀ] → x → running Σ 2^x, own and other           anchors only
    of i  tile  [s = z zᵀ][c = c cᵀ] → x → weights → += weights · z               every BLOCK_V columns of D again

    extremes_of_classes      classes × classes: min, max of c_a·c_b, a ≠ b        2 · C² · D FLOP
    log_sum_exp_of_classes   anchors × rows: losses, least similarities, L        4 · A · N · D FLOP
    gradient_of_classes      rows × rows: the gradient                            6 · N² · D FLOP, for D up to BLOCK_V

Bytes: N · D · 4 for each of the N / BLOCK_M tiles of rows, from the second-level cache (8 MB of 16,384 rows of 128),
and as much of mean rows; what is written is N · D numbers. Rows are float32, unit rows as the loss has them: a product
is three TF32 ones unless the user allows one. The product of mean rows is computed with every tile, as a table of all
pairs of classes is N × N where each row has a class of its own, and how many there are is known on the device only.
Meant for thousands of rows, of which there are enough tiles to fill a device. Tiles are the same on every architecture:
two tiles of float32 sums and what three TF32 products are made of leave registers for no larger ones. Measured times:
owed.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from icckd.kernels.contrast import LOG2_E, load_chunk, product_precision_of
from icckd.kernels.precision import matmul, product_precision
from icckd.kernels.specialization import Specialization, specialize
from icckd.kernels.totals import total

_TILE = {"BLOCK_M": 64, "BLOCK_N": 32, "BLOCK_K": 16, "num_warps": 8, "num_stages": 2}
# Columns of D that a program of `gradient_of_classes` owns.
_COLUMNS = {"BLOCK_V": 128}
_INTEGERS = ["rows", "first", "count"]


def extremes(centers: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the largest product of the mean rows of two classes that have rows; ∞ and −∞ without any.

    centers: (N, D) float32 of more classes than there are. size: How many rows each has (N,): none behind the last one.
    """
    count, dim = centers.shape
    lowest = torch.full((count,), torch.inf, dtype=torch.float32, device=centers.device)
    highest = torch.full((count,), -torch.inf, dtype=torch.float32, device=centers.device)
    options = _TILE | {"PRECISION": product_precision()}
    grid = (triton.cdiv(count, _TILE["BLOCK_M"]),)
    extremes_of_classes[grid](centers.contiguous(), (size > 0).sum(), lowest, highest, dim, **options)
    return lowest.amin(), highest.amax()


def hierarchical_sum(
    rows: Tensor,
    classes: Tensor,
    centers: Tensor,
    own: Tensor,
    scale: Tensor,
    first: int,
    count: int,
    gamma: float,
    positive_scale: float,
    negative_scale: float,
    need_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The anchors' losses summed, their least similarities in their own class, and the gradient of the rows."""
    rows, classes, centers = rows.contiguous(), classes.contiguous(), centers.contiguous()
    device, (size, dim) = rows.device, rows.shape
    losses, least = (torch.empty(count, dtype=torch.float32, device=device) for _ in range(2))
    # Of rows that are no anchors: 2 to the power of −∞ is 0.
    own_lse, other_lse = (torch.full((size,), torch.inf, dtype=torch.float32, device=device) for _ in range(2))
    bits = LOG2_E.value * positive_scale, LOG2_E.value * negative_scale
    given = rows, classes, centers, own.contiguous(), scale.contiguous(), own_lse, other_lse
    options = _TILE | {"PRECISION": product_precision()}
    if count:
        log_sum_exp_of_classes[(triton.cdiv(count, _TILE["BLOCK_M"]),)](
            *given, losses, least, size, first, count, dim, gamma, *bits, **options
        )
    if not need_grad:
        return total(losses), least, rows.new_empty(0)
    gradient = torch.empty_like(rows)
    if gradient.numel():
        grid = triton.cdiv(size, _TILE["BLOCK_M"]), triton.cdiv(dim, _COLUMNS["BLOCK_V"])
        gradient_of_classes[grid](*given, gradient, size, dim, gamma, *bits, **options, **_COLUMNS)
    return total(losses), least, gradient


@triton.jit
def _products(
    rows, centers, i, class_i, j, class_j, dim,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """z_i·z_j of a tile, and the products of the mean rows of their classes; 0 where either has no class."""
    s = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    c = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(0, dim, BLOCK_K):
        zi = load_chunk(rows, dim, i, class_i >= 0, k, dim, BLOCK_K)
        zj = load_chunk(rows, dim, j, class_j >= 0, k, dim, BLOCK_K)
        s = matmul(zi, tl.trans(zj), s, PRECISION)
        ci = load_chunk(centers, dim, class_i, class_i >= 0, k, dim, BLOCK_K)
        cj = load_chunk(centers, dim, class_j, class_j >= 0, k, dim, BLOCK_K)
        c = matmul(ci, tl.trans(cj), c, PRECISION)
    return s, c


@triton.jit
def _exponents(s, c, same, own_i, scale, gamma, own_bits, other_bits):
    """x_ij of a tile, whatever pairs there are."""
    between = tl.load(scale) * c + tl.load(scale + 1)
    return tl.where(same, own_bits * (gamma + own_i[:, None] - s), other_bits * (s - gamma + between))


@triton.jit
def extremes_of_classes(
    centers, number, lowest, highest, dim,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Each class's least and largest product with another one, of as many as there are; the rest is left as it is."""
    classes = tl.load(number).to(tl.int32)
    a = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    low = tl.full((BLOCK_M,), float("inf"), tl.float32)
    high = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    if tl.program_id(0) * BLOCK_M < classes:
        for begin in range(0, classes, BLOCK_N):
            b = begin + tl.arange(0, BLOCK_N)
            c = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
            for k in range(0, dim, BLOCK_K):
                ca = load_chunk(centers, dim, a, a < classes, k, dim, BLOCK_K)
                cb = load_chunk(centers, dim, b, b < classes, k, dim, BLOCK_K)
                c = matmul(ca, tl.trans(cb), c, PRECISION)
            pair = (b < classes)[None, :] & (a[:, None] != b[None, :])
            low = tl.minimum(low, tl.min(tl.where(pair, c, float("inf")), 1))
            high = tl.maximum(high, tl.max(tl.where(pair, c, float("-inf")), 1))
        tl.store(lowest + a, low, mask=a < classes)
        tl.store(highest + a, high, mask=a < classes)


@triton.jit(do_not_specialize=_INTEGERS)
def log_sum_exp_of_classes(
    z, classes, centers, own, scale, own_lse, other_lse, losses, least,
    rows, first, count, dim, gamma, own_bits, other_bits,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Loss and least similarity of the anchors, by number; L by row."""
    anchor = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    i = first + anchor
    class_i = tl.load(classes + i, mask=anchor < count, other=-1)
    own_i = tl.load(own + class_i, mask=class_i >= 0, other=0.0)
    # The 1 of log(1 + …), as if it were a pair of exponent 0.
    own_highest = tl.zeros((BLOCK_M,), tl.float32)
    other_highest = tl.zeros((BLOCK_M,), tl.float32)
    own_total = tl.full((BLOCK_M,), 1.0, tl.float32)
    other_total = tl.full((BLOCK_M,), 1.0, tl.float32)
    lowest = tl.full((BLOCK_M,), 1.0, tl.float32)
    for begin in range(0, rows, BLOCK_N):
        j = begin + tl.arange(0, BLOCK_N)
        class_j = tl.load(classes + j, mask=j < rows, other=-1)
        s, c = _products(z, centers, i, class_i, j, class_j, dim, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K)
        same = class_i[:, None] == class_j[None, :]
        pair = (class_j >= 0)[None, :] & (i[:, None] != j[None, :])
        x = tl.where(pair, _exponents(s, c, same, own_i, scale, gamma, own_bits, other_bits), float("-inf"))
        lowest = tl.minimum(lowest, tl.min(tl.where(same & pair, s, 1.0), 1))
        own_higher = tl.maximum(own_highest, tl.max(tl.where(same, x, float("-inf")), 1))
        other_higher = tl.maximum(other_highest, tl.max(tl.where(same, float("-inf"), x), 1))
        share = tl.exp2(x - tl.where(same, own_higher[:, None], other_higher[:, None]))
        own_total = own_total * tl.exp2(own_highest - own_higher) + tl.sum(tl.where(same, share, 0.0), 1)
        other_total = other_total * tl.exp2(other_highest - other_higher) + tl.sum(tl.where(same, 0.0, share), 1)
        own_highest, other_highest = own_higher, other_higher
    own_sum, other_sum = own_highest + tl.log2(own_total), other_highest + tl.log2(other_total)
    has_class = class_i >= 0
    loss = tl.where(has_class, own_sum / own_bits + other_sum / other_bits, 0.0)
    tl.store(losses + anchor, loss, mask=anchor < count)
    tl.store(least + anchor, tl.where(has_class, lowest, 1.0), mask=anchor < count)
    tl.store(own_lse + i, own_sum, mask=has_class)
    tl.store(other_lse + i, other_sum, mask=has_class)


@triton.jit(do_not_specialize=_INTEGERS[:1])
def gradient_of_classes(
    z, classes, centers, own, scale, own_lse, other_lse, gradient, rows, dim, gamma, own_bits, other_bits,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """The gradient of a tile of rows, BLOCK_V columns of D; 0 for rows without a class."""
    i = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    first = tl.program_id(1) * BLOCK_V
    class_i = tl.load(classes + i, mask=i < rows, other=-1)
    own_i = tl.load(own + class_i, mask=class_i >= 0, other=0.0)
    own_lse_i = tl.load(own_lse + i, mask=i < rows, other=float("inf"))
    other_lse_i = tl.load(other_lse + i, mask=i < rows, other=float("inf"))
    pull = tl.zeros((BLOCK_M, BLOCK_V), tl.float32)
    for begin in range(0, rows, BLOCK_N):
        j = begin + tl.arange(0, BLOCK_N)
        class_j = tl.load(classes + j, mask=j < rows, other=-1)
        s, c = _products(z, centers, i, class_i, j, class_j, dim, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K)
        same = class_i[:, None] == class_j[None, :]
        pair = (class_i >= 0)[:, None] & (class_j >= 0)[None, :] & (i[:, None] != j[None, :])
        x = _exponents(s, c, same, own_i, scale, gamma, own_bits, other_bits)
        own_lse_j = tl.load(own_lse + j, mask=j < rows, other=float("inf"))
        other_lse_j = tl.load(other_lse + j, mask=j < rows, other=float("inf"))
        weight = tl.exp2(x - tl.where(same, own_lse_i[:, None], other_lse_i[:, None]))
        weight += tl.exp2(x - tl.where(same, own_lse_j[None, :], other_lse_j[None, :]))
        weight = tl.where(pair, tl.where(same, -weight, weight), 0.0)
        pull = matmul(weight, load_chunk(z, dim, j, class_j >= 0, first, dim, BLOCK_V), pull, PRECISION)
    column = first + tl.arange(0, BLOCK_V)
    at = i.to(tl.int64)[:, None] * dim + column[None, :]
    tl.store(gradient + at, pull, mask=(i < rows)[:, None] & (column < dim)[None, :])


def specializations(architecture: str) -> Iterator[Specialization]:
    """Each kernel, for rows of a multiple of 16 numbers."""
    types = dict.fromkeys(("z", "centers", "own", "scale", "own_lse", "other_lse", "losses", "least"), "*fp32")
    types |= {"gradient": "*fp32", "classes": "*i64"} | dict.fromkeys(("gamma", "own_bits", "other_bits"), "fp32")
    constants = {"PRECISION": product_precision_of(architecture)}
    aligned = ("dim",)
    between = {"centers": "*fp32", "number": "*i64", "lowest": "*fp32", "highest": "*fp32"}
    yield specialize(extremes_of_classes, between, constants, _TILE, matrix_unit=True, divisible=aligned)
    yield specialize(log_sum_exp_of_classes, types, constants, _TILE, matrix_unit=True, divisible=aligned)
    yield specialize(gradient_of_classes, types, constants, _TILE | _COLUMNS, matrix_unit=True, divisible=aligned)
