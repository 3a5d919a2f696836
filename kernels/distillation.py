"""The softened predictions' divergence of rows of student's logits x and teacher's y, at temperatures T and U.

    a = (x − max x) / T,  p = exp(a) / A,  A = Σ exp(a);      b = (y − max y) / U,  q = exp(b) / B,  B = Σ exp(b)
    loss     = T² (1/B Σ exp(b) (b − a) + log A/B)
    gradient = u T (p − q)

both times Z = B (Σ exp(y − max y))^(−1/U), the sum of the (1/U)-th powers of softmax(y), where rows are weighted; and
where rows are standardised first, x = (v − mean v) / (σ + 1e-7) with σ² = Σ (v − mean v)² / (C − 1):

    gradient = u T ((p − q) / (σ + 1e-7) − x Σ (p − q) x / ((C − 1) σ)),     as Σ (p − q) = 0

                            C up to the table's longest row          beyond
    kernel                  kd_kl_whole                              kd_kl_swept
    a program holds         ROWS rows of BLOCK ≥ C in registers      running maxima and sums of one row in every lane
    reads of a logit        1                                        1, and 1 more each to standardise and for the
                                                                     gradient: from L2 as far as it holds the row

Bytes: 3 · N · C · element size with the gradient, 2 · N · C without. Instructions in sm_90's machine code, in bfloat16:
27 a class at C = 1000 where a warp holds a row, 41 with standardisation (by two warps 37 and 66); sweeps 47 and 85. The
bytes leave time for some 57. Meant for a row and more per multiprocessor.
Measured times: kernels/tables/sm_90.py, docs/gpu.md.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from icckd.kernels import tables
from icckd.kernels.precision import rounded
from icckd.kernels.rows import (
    LOG2_E,
    LOWEST,
    VECTOR_BITS,
    columns_of,
    lane_columns,
    lane_shares,
    load_columns,
    load_rows,
    raised,
    times,
    vector_group,
    whole_tile,
    whole_tiles,
    with_unit_columns,
)
from icckd.kernels.specialization import ELEMENTS, Specialization, specialize
from icckd.kernels.totals import total

# Numbers like any other: 1 is no constant, a multiple of 16 no kernel of its own.
_INTEGERS = ["student_groups", "teacher_groups", "rows", "class_groups"]


def kd_kl_rows(student: Tensor, teacher: Tensor, temperature: float, standardize: bool) -> Tensor:
    """T² KL(softmax(teacher / T) ‖ softmax(student / T)) of every row (N,), float32."""
    losses = torch.empty(len(student), dtype=torch.float32, device=student.device)
    _launch(student, teacher, None, losses, None, temperature, standardize, 1.0)
    return losses


def kd_kl_rows_backward(
    grad_rows: Tensor, student: Tensor, teacher: Tensor, temperature: float, standardize: bool
) -> Tensor:
    """The gradient of Σ grad_rows · rows with respect to the student's logits, in their dtype."""
    d_student = torch.empty(student.shape, dtype=student.dtype, device=student.device)
    _launch(student, teacher, grad_rows, None, d_student, temperature, standardize, 1.0)
    return d_student


def kd_kl_sum(
    student: Tensor, teacher: Tensor, temperature: float, standardize: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """scale · Σ rows, and its gradient with respect to the student's logits."""
    losses = torch.empty(len(student), dtype=torch.float32, device=student.device)
    d_student = torch.empty(student.shape, dtype=student.dtype, device=student.device)
    _launch(student, teacher, None, losses, d_student, temperature, standardize, scale)
    return total(losses), d_student


def transformed_teacher_rows(student: Tensor, teacher: Tensor, gamma: float, weighted: bool) -> Tensor:
    """KL(q^γ / Z ‖ p) of every row (N,), float32, times Z = Σ q^γ where they are weighted."""
    losses = torch.empty(len(student), dtype=torch.float32, device=student.device)
    _launch(student, teacher, None, losses, None, 1.0, False, 1.0, 1 / gamma, weighted)
    return losses


def transformed_teacher_rows_backward(
    grad_rows: Tensor, student: Tensor, teacher: Tensor, gamma: float, weighted: bool
) -> Tensor:
    """The gradient of Σ grad_rows · rows with respect to the student's logits, in their dtype."""
    d_student = torch.empty(student.shape, dtype=student.dtype, device=student.device)
    _launch(student, teacher, grad_rows, None, d_student, 1.0, False, 1.0, 1 / gamma, weighted)
    return d_student


def _launch(
    student: Tensor,
    teacher: Tensor,
    upstream: Tensor | None,
    losses: Tensor | None,
    d_student: Tensor | None,
    temperature: float,
    standardize: bool,
    scale: float,
    teacher_temperature: float | None = None,
    weighted: bool = False,
) -> None:
    """Fill in what is given of the losses and the gradients, both times `scale`.

    teacher_temperature: U, if it is not the student's T.
    """
    rows, classes = student.shape
    if rows == 0:
        return
    student, teacher = with_unit_columns(student), with_unit_columns(teacher)
    group = vector_group(student, teacher)
    arguments = (
        student, teacher, None if upstream is None else upstream.contiguous(), losses, d_student,
        student.stride(0) // group, teacher.stride(0) // group, rows, classes // group, temperature,
        temperature if teacher_temperature is None else teacher_temperature, scale,
    )  # fmt: skip
    constants = {
        "STANDARDIZE": standardize, "WEIGHTED": weighted, "WITH_UPSTREAM": upstream is not None,
        "WITH_LOSS": losses is not None, "WITH_GRADIENT": d_student is not None, "GROUP": group,
    }  # fmt: skip
    architecture, size = tables.architecture(student.device), max(student.element_size(), teacher.element_size())
    whole = whole_tile("kd_kl_whole", architecture, size, classes)
    if whole is not None:
        kd_kl_whole[(triton.cdiv(rows, whole["ROWS"]),)](*arguments, **constants, **whole)
    else:
        kd_kl_swept[(rows,)](*arguments, **constants, **tables.options("kd_kl_swept", architecture, size, classes))


@triton.jit
def _degrees(classes):
    """What σ² divides by: 1 for a single class, whose deviation is 0."""
    return tl.maximum(classes - 1, 1).to(tl.float32)


@triton.jit
def _centred(x, within, classes):
    """Rows less their means, 0 beyond their ends, where x is 0, too; their standard deviations."""
    x = tl.where(within, x - (tl.sum(x, 1) / classes)[:, None], 0.0)
    return x, tl.sqrt(tl.sum(x * x, 1) / _degrees(classes))


@triton.jit
def _exponents(x, within, factor, STANDARDIZE: tl.constexpr):
    """(x − max x) · factor, −∞ beyond the rows' ends."""
    top = tl.max(x, 1)
    if STANDARDIZE:
        # Some deviations from 0, x may be multiplied before the difference is taken. The largest is no less than 0.
        exponents = tl.where(within, x * factor[:, None] - (top * factor)[:, None], float("-inf"))
    else:
        exponents = (x - top[:, None]) * factor
    return exponents


@triton.jit
def _weight(whole, teacher_total, teacher_temperature):
    """Σ q^γ, γ = 1/teacher_temperature, by Σ exp(y − max y) and Σ exp(γ (y − max y))."""
    return teacher_total * tl.exp2(-tl.log2(whole) / teacher_temperature)


@triton.jit(do_not_specialize=_INTEGERS)
def kd_kl_whole(
    student, teacher, upstream, losses, d_student,
    student_groups, teacher_groups, rows, class_groups, temperature, teacher_temperature, scale,
    STANDARDIZE: tl.constexpr, WEIGHTED: tl.constexpr, WITH_UPSTREAM: tl.constexpr, WITH_LOSS: tl.constexpr,
    WITH_GRADIENT: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    classes = class_groups * GROUP
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    valid, within = row < rows, columns_of(classes, BLOCK)
    mask = valid[:, None] & within
    beyond: tl.constexpr = 0.0 if STANDARDIZE else float("-inf")
    x = load_rows(student, student_groups.to(tl.int64) * GROUP, row, mask, beyond, BLOCK)
    y = load_rows(teacher, teacher_groups.to(tl.int64) * GROUP, row, mask, beyond, BLOCK)
    factor = LOG2_E / temperature
    teacher_factor = LOG2_E / teacher_temperature
    if STANDARDIZE:
        x, deviation = _centred(x, within, classes)
        y, teacher_deviation = _centred(y, within, classes)
        per_deviation = 1 / (deviation + 1e-7)
        factor *= per_deviation
        teacher_factor /= teacher_deviation + 1e-7
    a = _exponents(x, within, factor, STANDARDIZE)
    b = _exponents(y, within, teacher_factor, STANDARDIZE)
    rise, p, q = b - a, tl.exp2(a), tl.exp2(b)
    if WITH_LOSS:
        # A class that the teacher rules out adds 0, whatever the student says.
        cross = tl.sum(q * tl.where(q == 0, 0.0, rise), 1) / LOG2_E
    student_total, teacher_total = tl.sum(p, 1), tl.sum(q, 1)
    per_student, per_teacher = 1 / student_total, 1 / teacher_total
    if WEIGHTED:
        weight = _weight(tl.sum(tl.exp2((y - tl.max(y, 1)[:, None]) * LOG2_E), 1), teacher_total, teacher_temperature)
    if WITH_LOSS:
        divergence = cross * per_teacher + tl.log(student_total * per_teacher)
        if WEIGHTED:
            divergence *= weight
        tl.store(losses + row, divergence * (temperature * temperature * scale), mask=valid)
    if WITH_GRADIENT:
        u = tl.full((ROWS,), temperature * scale, tl.float32)
        if WITH_UPSTREAM:
            u *= tl.load(upstream + row, mask=valid, other=0.0)
        if WEIGHTED:
            u *= weight
        if STANDARDIZE:
            u *= per_deviation
        gradient = p * (u * per_student)[:, None] - q * (u * per_teacher)[:, None]
        if STANDARDIZE:
            along = tl.sum(gradient * x, 1) * per_deviation / _degrees(classes)
            along = tl.where(deviation == 0, 0.0, along / deviation)
            # Σ (p − q) is 0 but for roundings, which a small deviation magnifies.
            gradient = (gradient - (tl.sum(gradient, 1) / classes)[:, None]) - x * along[:, None]
        at = d_student + (row * classes)[:, None] + tl.arange(0, BLOCK)[None, :]
        tl.store(at, rounded(gradient, d_student.dtype.element_ty), mask=mask)


@triton.jit
def _moments(logits, classes, WIDTH: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr):
    """Mean and standard deviation of one row: those of WIDTH neighbours join their lane's, then the lanes each other.

    Of x − x_0, so that large logits keep their differences.
    """
    LANES: tl.constexpr = BLOCK // WIDTH
    level = tl.load(logits).to(tl.float32)
    count = tl.zeros((LANES,), tl.float32)
    mean = tl.zeros((LANES,), tl.float32)
    squares = tl.zeros((LANES,), tl.float32)
    for first in tl.range(0, classes, BLOCK, num_stages=STAGES):
        column = lane_columns(first, WIDTH, BLOCK)
        x = load_columns(logits, column, classes, 0.0)
        within = column < classes
        new = tl.minimum(tl.maximum(classes - first - tl.arange(0, LANES) * WIDTH, 0), WIDTH).to(tl.float32)
        x = tl.where(within, x - level, 0.0)
        new_mean = tl.sum(x, 1) / tl.maximum(new, 1.0)
        x = tl.where(within, x - new_mean[:, None], 0.0)
        step = new_mean - mean
        share = new / tl.maximum(count + new, 1.0)
        mean += step * share
        squares += tl.sum(x * x, 1) + step * step * count * share
        count += new
    overall = tl.sum(count * mean, 0) / classes
    distance = mean - overall
    return level + overall, tl.sqrt(tl.sum(squares + count * distance * distance, 0) / _degrees(classes))


@triton.jit
def _scale(
    logits, classes, temperature, STANDARDIZE: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """What differences of logits are multiplied by to get exponents of 2; mean and deviation, if standardised."""
    mean, deviation = 0.0, 1.0
    factor = LOG2_E / temperature
    if STANDARDIZE:
        mean, deviation = _moments(logits, classes, WIDTH, BLOCK, STAGES)
        factor /= deviation + 1e-7
    return factor, mean, deviation


@triton.jit(do_not_specialize=_INTEGERS)
def kd_kl_swept(
    student, teacher, upstream, losses, d_student,
    student_groups, teacher_groups, rows, class_groups, temperature, teacher_temperature, scale,
    STANDARDIZE: tl.constexpr, WEIGHTED: tl.constexpr, WITH_UPSTREAM: tl.constexpr, WITH_LOSS: tl.constexpr,
    WITH_GRADIENT: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    classes = class_groups * GROUP
    row = tl.program_id(0).to(tl.int64)
    WIDTH: tl.constexpr = VECTOR_BITS // student.dtype.element_ty.primitive_bitwidth
    LANES: tl.constexpr = BLOCK // WIDTH
    student += row * (student_groups.to(tl.int64) * GROUP)
    teacher += row * (teacher_groups.to(tl.int64) * GROUP)
    factor, mean, deviation = _scale(student, classes, temperature, STANDARDIZE, WIDTH, BLOCK, STAGES)
    teacher_factor, _, _ = _scale(teacher, classes, teacher_temperature, STANDARDIZE, WIDTH, BLOCK, STAGES)
    highest = tl.full((LANES,), LOWEST, tl.float32)
    teacher_highest = tl.full((LANES,), LOWEST, tl.float32)
    total = tl.zeros((LANES,), tl.float32)
    teacher_total = tl.zeros((LANES,), tl.float32)
    whole = tl.zeros((LANES,), tl.float32)
    # Σ exp(b) (b − a) below the maxima so far, a and b to base 2; for the standardised gradient Σ exp(a) x, Σ exp(b) x.
    cross = tl.zeros((LANES,), tl.float32)
    own_along = tl.zeros((LANES,), tl.float32)
    teacher_along = tl.zeros((LANES,), tl.float32)
    for first in tl.range(0, classes, BLOCK, num_stages=STAGES):
        column = lane_columns(first, WIDTH, BLOCK)
        x = load_columns(student, column, classes, float("-inf"))
        y = load_columns(teacher, column, classes, float("-inf"))
        before, teacher_before = highest, teacher_highest
        highest, share = raised(highest, x, factor)
        teacher_highest, teacher_share = raised(teacher_highest, y, teacher_factor)
        a = (x - highest[:, None]) * factor
        b = (y - teacher_highest[:, None]) * teacher_factor
        p, q = tl.exp2(a), tl.exp2(b)
        # A class that the teacher rules out adds 0, whatever the student says.
        rise = (highest - before) * factor - (teacher_highest - teacher_before) * teacher_factor
        cross = times(cross + times(rise, teacher_total), teacher_share) + tl.sum(times(b - a, q), 1)
        if STANDARDIZE and WITH_GRADIENT:
            centred = (x - mean) * (factor * temperature)
            own_along = own_along * share + tl.sum(times(centred, p), 1)
            teacher_along = teacher_along * teacher_share + tl.sum(times(centred, q), 1)
        if WEIGHTED:
            whole = whole * tl.exp2((teacher_before - teacher_highest) * LOG2_E)
            whole += tl.sum(tl.exp2((y - teacher_highest[:, None]) * LOG2_E), 1)
        total = total * share + tl.sum(p, 1)
        teacher_total = teacher_total * teacher_share + tl.sum(q, 1)
    top, share = lane_shares(highest, total, factor)
    teacher_top, teacher_share = lane_shares(teacher_highest, teacher_total, teacher_factor)
    if WITH_LOSS:
        rise = (top - highest) * factor - (teacher_top - teacher_highest) * teacher_factor
        cross = times(cross + times(rise, teacher_total), teacher_share)
    total = tl.sum(total * share, 0)
    teacher_total = tl.sum(teacher_total * teacher_share, 0)
    if WEIGHTED:
        _, whole_share = lane_shares(teacher_highest, whole, LOG2_E)
        weight = _weight(tl.sum(whole * whole_share, 0), teacher_total, teacher_temperature)
    if WITH_LOSS:
        divergence = tl.sum(cross, 0) / LOG2_E / teacher_total + tl.log(total / teacher_total)
        if WEIGHTED:
            divergence *= weight
        tl.store(losses + row, divergence * (temperature * temperature * scale))
    if WITH_GRADIENT:
        u = temperature * scale
        if WITH_UPSTREAM:
            u *= tl.load(upstream + row)
        if WEIGHTED:
            u *= weight
        if STANDARDIZE:
            along = tl.sum(own_along * share, 0) / total - tl.sum(teacher_along * teacher_share, 0) / teacher_total
            along = tl.where(deviation == 0, 0.0, along / (deviation * _degrees(classes)))
        per_student, per_teacher = u / total, u / teacher_total
        if STANDARDIZE:
            per_student /= deviation + 1e-7
            per_teacher /= deviation + 1e-7
            along *= u / ((deviation + 1e-7) * LOG2_E)
        chunks = tl.cdiv(classes, BLOCK)
        for chunk in tl.range(0, chunks, num_stages=STAGES):
            column = (chunks - 1 - chunk) * BLOCK + tl.arange(0, BLOCK)
            x = load_columns(student, column, classes, float("-inf"))
            y = load_columns(teacher, column, classes, float("-inf"))
            p, q = tl.exp2((x - top) * factor), tl.exp2((y - teacher_top) * teacher_factor)
            gradient = p * per_student - q * per_teacher
            if STANDARDIZE:
                gradient -= (x - mean) * along
            gradient = rounded(gradient, d_student.dtype.element_ty)
            at = d_student + row * classes + column
            tl.store(at, gradient, mask=column < classes, eviction_policy="evict_first")


def specializations(architecture: str) -> Iterator[Specialization]:
    """Every tile in a training step; the longest of rows, and the sweep, also for losses alone and gradients alone."""
    for element, size in ELEMENTS.items():
        tiles = list(whole_tiles("kd_kl_whole", architecture, size))
        for tile in tiles:
            yield _form(kd_kl_whole, element, tile, ("losses", "d_student"), standardize=True)
        swept = tables.entries("kd_kl_swept", architecture, size).values()
        for kernel, options in [(kd_kl_whole, tiles[-1]), *((kd_kl_swept, x) for x in swept)]:
            for standardize in (False, True):
                yield _form(kernel, element, options, ("losses",), standardize)
                yield _form(kernel, element, options, ("upstream", "d_student"), standardize)
            yield _form(kernel, element, options, ("losses", "d_student"), True, group=1)
            for given in (("losses",), ("upstream", "d_student")):
                yield _form(kernel, element, options, given, False, weighted=True)
            if kernel is kd_kl_swept:
                yield _form(kernel, element, options, ("losses", "d_student"), True)


def _form(
    kernel: triton.JITFunction,
    element: str,
    options: tables.Options,
    given: tuple[str, ...],
    standardize: bool,
    group: int | None = None,
    weighted: bool = False,
) -> Specialization:
    """A kernel for what is `given`; rows are aligned unless `group` is 1."""
    types = {name: f"*{element}" for name in ("student", "teacher", "d_student")}
    types |= {"upstream": "*fp32", "losses": "*fp32", "scale": "fp32"}
    types |= {"temperature": "fp32", "teacher_temperature": "fp32"}
    optional = {"upstream": "WITH_UPSTREAM", "losses": "WITH_LOSS", "d_student": "WITH_GRADIENT"}
    absent = [name for name in optional if name not in given]
    constants = {flag: name in given for name, flag in optional.items()} | dict.fromkeys(absent)
    constants |= {"STANDARDIZE": standardize, "WEIGHTED": weighted, "GROUP": group or 16 // ELEMENTS[element]}
    columns = f", C ≤ {options['BLOCK']}" if "ROWS" in options else ""
    description = f"{element}{columns}, {' and '.join(given)}" + (", any C" if group else "")
    description += standardize * ", standardised" + weighted * ", weighted"
    return specialize(kernel, types, constants, options, description=description)
