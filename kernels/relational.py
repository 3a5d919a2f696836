"""The relational losses of the distances and angles between the rows x_i of a batch, computed in float64.

With H_ij = |x_i − x_j|² / 2 and r_ij = 1 / |x_i − x_j| (0 between equal rows), the cosine at vertex j between x_i − x_j
and x_k − x_j follows from the law of cosines, without a product of rows for every vertex:

    c_ijk = (H_ij + H_kj − H_ik) r_ij r_kj

It cancels where one side is short: hence float64, and H from differences. With L the sum of the smooth-L1 function over
all triples and e its derivative at each corner of the triangle a, b, t,

    dL/dH_ab = 2 r_ab Σ_t [ e_a (r_at − c_a r_ab) + e_b (r_bt − c_b r_ab) ] − 2 Σ_t e_t r_at r_bt
    dL/dx_a  = Σ_b dL/dH_ab (x_a − x_b)

    kernel                 a program owns                  and runs along     operations          reads
    squared_distances      a tile of pairs a ≤ b           columns of x       3/2 · N² · D        N · D
    compare_distances      a tile of pairs a ≤ b                              some 10 · N²        N²
    compare_angles         a tile of pairs a ≤ b           corners t          some 20 · N³        N², from L2
    pull                   BLOCK rows, BLOCK_K columns     other rows         3 · N² · D          N² + N · D

Memory: 8 · (5 N² + N · D) bytes. Every sum stays in one program: the same bits every time. Products of unit vectors
would put the angles on the matrix unit, but at D times the work and with float32's loss of short sides. Meant for GPUs
whose float64 runs at half the rate of float32 (A100, H100, B200, MI300), and N up to a few thousand. Measured times:
docs/gpu.md.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from icckd.kernels import tables
from icckd.kernels.rows import with_unit_columns
from icckd.kernels.specialization import ELEMENTS, Specialization, specialize


def rkd_distance(student: Tensor, teacher: Tensor, need_grad: bool) -> tuple[Tensor, Tensor]:
    """The distance-wise relational loss (), and its gradient with respect to the student (N, D) or (0,); float32."""
    own, wanted, count = _Relations.of(student), _Relations.of(teacher), len(student)
    options = _options("compare_distances", student)
    slope, sums = _slope(student, need_grad), _tile_sums(student, 2, options)
    if count:
        compare_distances[tuple(sums.shape[1:])](
            own.half, own.inverse, own.per_unit, wanted.half, wanted.per_unit, slope, sums, count,
            WITH_GRADIENT=need_grad, **options,
        )  # fmt: skip
    loss, by_mean = sums.sum((1, 2)).unbind()
    # Every distance also moves the mean that all are divided by.
    through_mean = by_mean * own.per_unit.square() / own.pairs.clamp(min=1)
    return _mean(loss, count**2), _pull(student, own.inverse, slope, through_mean, count**2)


def rkd_angle(student: Tensor, teacher: Tensor, need_grad: bool) -> tuple[Tensor, Tensor]:
    """The angle-wise relational loss (), and its gradient with respect to the student (N, D) or (0,); float32."""
    own, wanted, count = _Relations.of(student), _Relations.of(teacher), len(student)
    options = _options("compare_angles", student)
    slope, sums = _slope(student, need_grad), _tile_sums(student, 1, options)
    if count:
        compare_angles[tuple(sums.shape[1:])](
            own.half, own.inverse, wanted.half, wanted.inverse, slope, sums, count,
            WITH_GRADIENT=need_grad, **options,
        )  # fmt: skip
    return _mean(sums.sum(), count**3), _pull(student, own.inverse, slope, None, count**3)


@dataclass
class _Relations:
    """H and r of a batch (N, N), the sum of its distances and how many are not zero (), all float64."""

    half: Tensor
    inverse: Tensor
    distances: Tensor
    pairs: Tensor

    @classmethod
    def of(cls, x: Tensor) -> "_Relations":
        count, options = len(x), _options("squared_distances", x)
        half, inverse = (torch.empty(count, count, dtype=torch.float64, device=x.device) for _ in range(2))
        sums = _tile_sums(x, 2, options)
        if count:
            columns = x.T.to(torch.float64, memory_format=torch.contiguous_format)
            squared_distances[tuple(sums.shape[1:])](columns, half, inverse, sums, count, x.shape[1], **options)
        return cls(half, inverse, *sums.sum((1, 2)).unbind())

    @property
    def per_unit(self) -> Tensor:
        """1 / the mean of the distances that are not zero; 0 if there is none."""
        return torch.where(self.pairs > 0, self.pairs / self.distances, 0)


def _slope(student: Tensor, need_grad: bool) -> Tensor | None:
    """Room for dL/dH / 2."""
    return torch.empty(len(student), len(student), dtype=torch.float64, device=student.device) if need_grad else None


def _tile_sums(x: Tensor, kinds: int, options: tables.Options) -> Tensor:
    """Room for every tile's sums; those of tiles with a > b stay 0."""
    tiles = triton.cdiv(len(x), options["BLOCK"])
    return torch.zeros(kinds, tiles, tiles, dtype=torch.float64, device=x.device)


def _mean(total: Tensor, entries: int) -> Tensor:
    return (total / max(entries, 1)).float()


def _pull(student: Tensor, inverse: Tensor, slope: Tensor | None, through_mean: Tensor | None, entries: int) -> Tensor:
    """The gradient of the mean over `entries` (N, D); (0,) without slopes."""
    shape = (0,) if slope is None else student.shape
    gradient = torch.empty(shape, dtype=torch.float32, device=student.device)
    if gradient.numel():
        student, options = with_unit_columns(student), _options("pull", student)
        (rows, dim), (block, block_k) = student.shape, (options["BLOCK"], options["BLOCK_K"])
        pull[(triton.cdiv(rows, block), triton.cdiv(dim, block_k))](
            student, inverse, slope, through_mean, gradient, student.stride(0), rows, dim, 2 / entries,
            WITH_MEAN=through_mean is not None, **options,
        )  # fmt: skip
    return gradient


def _options(kernel: str, x: Tensor) -> tables.Options:
    """The launch options for so many rows."""
    return tables.options(kernel, tables.architecture(x.device), 4, len(x))


@triton.jit
def _tile(count, BLOCK: tl.constexpr):
    """The rows a and b of this program's tile, and how often its pairs count: twice off the diagonal."""
    first, second = tl.program_id(0), tl.program_id(1)
    k = tl.arange(0, BLOCK)
    return first * BLOCK + k, second * BLOCK + k, tl.where(first == second, 1.0, 2.0)


@triton.jit
def _load_tile(matrix, a, b, count):
    mask = (a < count)[:, None] & (b < count)[None, :]
    return tl.load(matrix + a.to(tl.int64)[:, None] * count + b[None, :], mask=mask, other=0.0)


@triton.jit
def _store_twice(matrix, a, b, count, values):
    """A tile of a symmetric matrix, and its mirror image."""
    mask = (a < count)[:, None] & (b < count)[None, :]
    tl.store(matrix + a.to(tl.int64)[:, None] * count + b[None, :], values, mask=mask)
    tl.store(matrix + b.to(tl.int64)[:, None] * count + a[None, :], tl.trans(values), mask=tl.trans(mask))


@triton.jit
def _store_sum(sums, kind, values):
    tiles = tl.num_programs(0)
    at = kind * tiles * tiles + tl.program_id(0) * tiles + tl.program_id(1)
    tl.store(sums + at, tl.sum(tl.sum(values, 1), 0))


@triton.jit
def _clamped(delta):
    """The derivative of smooth-L1; NaN stays."""
    return tl.where(delta > 1, 1.0, tl.where(delta < -1, -1.0, delta))


@triton.jit
def squared_distances(columns, half, inverse, sums, count, dim, BLOCK: tl.constexpr, UNROLL: tl.constexpr):
    """H and r (N, N) from `columns` (D, N); Σ |x_a − x_b| and how many of them are not zero, by tile (2, T, T)."""
    if tl.program_id(1) < tl.program_id(0):
        return
    a, b, weight = _tile(count, BLOCK)
    squared = tl.zeros((BLOCK, BLOCK), tl.float64)
    for _ in tl.range(0, dim, loop_unroll_factor=UNROLL):
        x, y = tl.load(columns + a, mask=a < count, other=0.0), tl.load(columns + b, mask=b < count, other=0.0)
        difference = x[:, None] - y[None, :]
        squared += difference * difference
        columns += count
    squared = tl.where((a < count)[:, None] & (b < count)[None, :], squared, 0.0)
    distance = tl.sqrt(squared)
    _store_twice(half, a, b, count, squared * 0.5)
    _store_twice(inverse, a, b, count, tl.where(squared == 0, 0.0, 1 / tl.where(squared == 0, 1.0, distance)))
    _store_sum(sums, 0, distance * weight)
    _store_sum(sums, 1, tl.where(squared == 0, 0.0, weight).to(tl.float64))


@triton.jit
def compare_distances(
    half, inverse, per_unit, teacher_half, teacher_per_unit, slope, sums, count,
    WITH_GRADIENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Σ of smooth-L1 and Σ e |x_a − x_b| by tile (2, T, T); dL/dH / 2 without what goes through the mean (N, N)."""
    if tl.program_id(1) < tl.program_id(0):
        return
    a, b, weight = _tile(count, BLOCK)
    unit = tl.load(per_unit)
    distance = tl.sqrt(2 * _load_tile(half, a, b, count))
    wanted = tl.sqrt(2 * _load_tile(teacher_half, a, b, count)) * tl.load(teacher_per_unit)
    delta = distance * unit - wanted
    e = _clamped(delta)
    _store_sum(sums, 0, e * (delta - 0.5 * e) * weight)
    _store_sum(sums, 1, e * distance * weight)
    if WITH_GRADIENT:
        _store_twice(slope, a, b, count, e * unit * _load_tile(inverse, a, b, count))


@triton.jit
def _side(matrix, rows, count):
    """Entries of one row of a symmetric matrix."""
    return tl.load(matrix + rows, mask=rows < count, other=0.0)


@triton.jit
def compare_angles(
    half, inverse, teacher_half, teacher_inverse, slope, sums, count,
    WITH_GRADIENT: tl.constexpr, BLOCK: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Σ of smooth-L1 by tile (1, T, T); dL/dH / 2 (N, N)."""
    if tl.program_id(1) < tl.program_id(0):
        return
    a, b, weight = _tile(count, BLOCK)
    h, r = _load_tile(half, a, b, count), _load_tile(inverse, a, b, count)
    teacher_h, teacher_r = _load_tile(teacher_half, a, b, count), _load_tile(teacher_inverse, a, b, count)
    loss = tl.zeros((BLOCK, BLOCK), tl.float64)
    along = tl.zeros((BLOCK, BLOCK), tl.float64)
    across = tl.zeros((BLOCK, BLOCK), tl.float64)
    for _ in tl.range(0, count, loop_unroll_factor=UNROLL):
        h_a, h_b = _side(half, a, count)[:, None], _side(half, b, count)[None, :]
        r_a, r_b = _side(inverse, a, count)[:, None], _side(inverse, b, count)[None, :]
        teacher_h_a, teacher_h_b = _side(teacher_half, a, count)[:, None], _side(teacher_half, b, count)[None, :]
        teacher_r_a = _side(teacher_inverse, a, count)[:, None]
        teacher_r_b = _side(teacher_inverse, b, count)[None, :]
        opposite = r_a * r_b
        delta = (h_a + h_b - h) * opposite - (teacher_h_a + teacher_h_b - teacher_h) * (teacher_r_a * teacher_r_b)
        e = _clamped(delta)
        loss += e * (delta - 0.5 * e)
        if WITH_GRADIENT:
            across += e * opposite
            more, teacher_more = h_a - h_b, teacher_h_a - teacher_h_b
            cosine = (h + more) * (r * r_a)
            e = _clamped(cosine - (teacher_h + teacher_more) * (teacher_r * teacher_r_a))
            along += e * (r_a - cosine * r)
            cosine = (h - more) * (r * r_b)
            e = _clamped(cosine - (teacher_h - teacher_more) * (teacher_r * teacher_r_b))
            along += e * (r_b - cosine * r)
        half += count
        inverse += count
        teacher_half += count
        teacher_inverse += count
    _store_sum(sums, 0, loss * weight)
    if WITH_GRADIENT:
        _store_twice(slope, a, b, count, r * along - across)


@triton.jit
def pull(
    student, inverse, slope, through_mean, gradient, stride, count, dim, factor,
    WITH_MEAN: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """factor · Σ_b (slope_ab − through_mean · r_ab) (x_a − x_b), of BLOCK rows a and BLOCK_K columns."""
    a = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    column = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    mask = (a < count)[:, None] & (column < dim)[None, :]
    own = tl.load(student + a.to(tl.int64)[:, None] * stride + column[None, :], mask=mask, other=0.0).to(tl.float64)
    total = tl.zeros((BLOCK, BLOCK_K), tl.float64)
    for _ in tl.range(0, count, loop_unroll_factor=UNROLL):
        x = tl.load(student + column, mask=column < dim, other=0.0).to(tl.float64)
        weight = _side(slope, a, count)
        if WITH_MEAN:
            weight -= tl.load(through_mean) * _side(inverse, a, count)
        total += weight[:, None] * (own - x[None, :])
        student += stride
        slope += count
        inverse += count
    tl.store(gradient + a.to(tl.int64)[:, None] * dim + column[None, :], (total * factor).to(tl.float32), mask=mask)


def specializations(architecture: str) -> Iterator[Specialization]:
    """Every table entry, with and without the gradient."""
    names = ("columns", "half", "inverse", "sums", "per_unit", "teacher_half", "teacher_inverse", "teacher_per_unit")
    types = {name: "*fp64" for name in (*names, "slope", "through_mean")} | {"gradient": "*fp32", "factor": "fp32"}
    for options in tables.entries("squared_distances", architecture, 4).values():
        yield specialize(squared_distances, types, {}, options)
    for kernel in (compare_distances, compare_angles):
        for options in tables.entries(kernel.__name__, architecture, 4).values():
            yield specialize(kernel, types, {"WITH_GRADIENT": True}, options, description="gradient")
            yield specialize(kernel, types, {"WITH_GRADIENT": False, "slope": None}, options, description="loss")
    for element in ELEMENTS:
        for options in tables.entries("pull", architecture, 4).values():
            rows = types | {"student": f"*{element}"}
            yield specialize(pull, rows, {"WITH_MEAN": True}, options, description=f"{element}, distances")
            without = {"WITH_MEAN": False, "through_mean": None}
            yield specialize(pull, rows, without, options, description=f"{element}, angles")
