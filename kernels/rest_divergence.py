"""The divergence of rows without their label's class y: student's logits x, teacher's z, all sums over c ≠ y.

    a = (x − max x) / T,  p = exp(a) / A,  A = Σ exp(a);      b = (z − max z) / T,  q = exp(b) / B,  B = Σ exp(b)
    divergence = 1/B Σ exp(b) (b − a) + log A/B
    entropy    = log B − 1/B Σ exp(b) b
    odds       = (x_y − max x) / U − log Σ exp((x − max x) / U), and the same of the teacher; A and B serve where U = T
    gradient   = g/T (p − q) + h/U ([c = y] − p'),               p' the student's at U

                            C up to the table's longest row          beyond
    kernel                  rest_divergence_whole                    rest_divergence_swept
    a program holds         ROWS rows of BLOCK ≥ C in registers      running maxima and sums of one row in every lane
    reads of a logit        1                                        1, and 1 more for the gradient

Bytes: 2 · N · C · element size for the results, 3 · N · C for the gradient: what kd_kl moves, by the tiles of kd_kl's
kernels in the tables. A row whose label names no class becomes NaN. Compiled and interpreted; not yet timed.
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

# Numbers like any other: 1 is no constant, a multiple of 16 no kernel of its own.
_INTEGERS = ["student_groups", "teacher_groups", "rows", "class_groups"]
# Rows of the same two matrices lie in the same tiles.
_WHOLE_TILES, _SWEPT_TILES = "kd_kl_whole", "kd_kl_swept"


def rest_divergence_rows(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, odds_temperature: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """KL(q̂ ‖ p̂), entropy of q̂, and log-odds of either network, of every row (N,), float32."""
    first = torch.empty(len(student), dtype=torch.float32, device=student.device)
    results = first, torch.empty_like(first), torch.empty_like(first), torch.empty_like(first)
    _launch(student, teacher, labels, results, (None, None, None), temperature, odds_temperature)
    return results


def rest_divergence_rows_backward(
    grad_divergence: Tensor,
    grad_odds: Tensor,
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    temperature: float,
    odds_temperature: float,
) -> Tensor:
    """The gradient of Σ grad_divergence · divergence + grad_odds · odds, in the student's dtype."""
    d_student = torch.empty(student.shape, dtype=student.dtype, device=student.device)
    gradient = grad_divergence.contiguous(), grad_odds.contiguous(), d_student
    _launch(student, teacher, labels, (None,) * 4, gradient, temperature, odds_temperature)
    return d_student


def _launch(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    results: tuple[Tensor | None, ...],
    gradient: tuple[Tensor | None, ...],
    temperature: float,
    odds_temperature: float,
) -> None:
    """Fill in the results of rows, or the last of `gradient` by the two before it."""
    rows, classes = student.shape
    if rows == 0:
        return
    student, teacher = with_unit_columns(student), with_unit_columns(teacher)
    group = vector_group(student, teacher)
    arguments = (
        student, teacher, labels.contiguous(), *results, *gradient, student.stride(0) // group,
        teacher.stride(0) // group, rows, classes // group, temperature, odds_temperature,
    )  # fmt: skip
    constants = {
        "SAME": temperature == odds_temperature, "WITH_GRADIENT": gradient[-1] is not None, "GROUP": group,
    }  # fmt: skip
    architecture, size = tables.architecture(student.device), max(student.element_size(), teacher.element_size())
    whole = whole_tile(_WHOLE_TILES, architecture, size, classes)
    if whole is not None:
        rest_divergence_whole[(triton.cdiv(rows, whole["ROWS"]),)](*arguments, **constants, **whole)
    else:
        options = tables.options(_SWEPT_TILES, architecture, size, classes)
        rest_divergence_swept[(rows,)](*arguments, **constants, **options)


@triton.jit
def _column_of(label, classes):
    """The label in 32 bits, as columns are; −1, which is none, where it names no class."""
    return tl.where((label >= 0) & (label < classes), label, -1).to(tl.int32)


@triton.jit
def _finite(top):
    """0 for the maximum of nothing: −∞ less it is −∞ then, and no NaN."""
    return tl.where(top == float("-inf"), 0.0, top)


@triton.jit
def _part(factor, total):
    """factor / total, and 0 without a total."""
    return tl.where(total == 0, 0.0, factor / total)


@triton.jit
def _divergence(cross, total, teacher_total):
    """∞ where the student leaves no class, 0 where the teacher leaves none."""
    divergence = cross / LOG2_E / teacher_total + tl.log(total / teacher_total)
    divergence = tl.where(total == 0, float("inf"), divergence)
    return tl.where(teacher_total == 0, 0.0, divergence)


@triton.jit
def _entropy(own_cross, teacher_total):
    entropy = tl.log(teacher_total) - own_cross / LOG2_E / teacher_total
    return tl.where(teacher_total == 0, 0.0, entropy)


@triton.jit(do_not_specialize=_INTEGERS)
def rest_divergence_whole(
    student, teacher, labels, divergence, entropy, odds, teacher_odds, grad_divergence, grad_odds, d_student,
    student_groups, teacher_groups, rows, class_groups, temperature, odds_temperature,
    SAME: tl.constexpr, WITH_GRADIENT: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    classes = class_groups * GROUP
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    valid, within = row < rows, columns_of(classes, BLOCK)
    mask = valid[:, None] & within
    label = tl.load(labels + row, mask=valid, other=0)
    label = _column_of(label, classes)
    is_own = tl.arange(0, BLOCK)[None, :] == label[:, None]
    x = load_rows(student, student_groups.to(tl.int64) * GROUP, row, mask, float("-inf"), BLOCK)
    y = load_rows(teacher, teacher_groups.to(tl.int64) * GROUP, row, mask, float("-inf"), BLOCK)
    own = tl.sum(tl.where(is_own, x, 0.0), 1)
    teacher_own = tl.sum(tl.where(is_own, y, 0.0), 1)
    x = tl.where(is_own, float("-inf"), x)
    y = tl.where(is_own, float("-inf"), y)
    top, teacher_top = _finite(tl.max(x, 1)), _finite(tl.max(y, 1))
    factor, odds_factor = LOG2_E / temperature, LOG2_E / odds_temperature
    a, b = (x - top[:, None]) * factor, (y - teacher_top[:, None]) * factor
    p, q = tl.exp2(a), tl.exp2(b)
    total, teacher_total = tl.sum(p, 1), tl.sum(q, 1)
    if SAME:
        odds_p = p
        odds_total, teacher_odds_total = total, teacher_total
    else:
        odds_p = tl.exp2((x - top[:, None]) * odds_factor)
        odds_total = tl.sum(odds_p, 1)
        if not WITH_GRADIENT:
            teacher_odds_total = tl.sum(tl.exp2((y - teacher_top[:, None]) * odds_factor), 1)
    if WITH_GRADIENT:
        g = tl.load(grad_divergence + row, mask=valid, other=0.0) / temperature
        h = tl.load(grad_odds + row, mask=valid, other=0.0) / odds_temperature
        g = tl.where(label >= 0, tl.where(teacher_total == 0, 0.0, g), float("nan"))
        per_student, per_teacher, per_odds = _part(g, total), _part(g, teacher_total), _part(h, odds_total)
        if SAME:
            gradient = p * (per_student - per_odds)[:, None] - q * per_teacher[:, None]
        else:
            gradient = p * per_student[:, None] - q * per_teacher[:, None] - odds_p * per_odds[:, None]
        # Read again, lest a flag for every number be kept from before: that spills.
        label = _column_of(tl.load(labels + row, mask=valid, other=0, volatile=True), classes)
        gradient = tl.where(tl.arange(0, BLOCK)[None, :] == label[:, None], h[:, None], gradient)
        at = d_student + (row * classes)[:, None] + tl.arange(0, BLOCK)[None, :]
        tl.store(at, rounded(gradient, d_student.dtype.element_ty), mask=mask)
    else:
        # A class that the teacher rules out adds 0, whatever the student says.
        cross, own_cross = tl.sum(times(b - a, q), 1), tl.sum(times(b, q), 1)
        wrong = tl.where(label >= 0, 0.0, float("nan"))
        tl.store(divergence + row, _divergence(cross, total, teacher_total) + wrong, mask=valid)
        tl.store(entropy + row, _entropy(own_cross, teacher_total) + wrong, mask=valid)
        tl.store(odds + row, (own - top) / odds_temperature - tl.log(odds_total) + wrong, mask=valid)
        teacher_odds_row = (teacher_own - teacher_top) / odds_temperature - tl.log(teacher_odds_total)
        tl.store(teacher_odds + row, teacher_odds_row + wrong, mask=valid)


@triton.jit(do_not_specialize=_INTEGERS)
def rest_divergence_swept(
    student, teacher, labels, divergence, entropy, odds, teacher_odds, grad_divergence, grad_odds, d_student,
    student_groups, teacher_groups, rows, class_groups, temperature, odds_temperature,
    SAME: tl.constexpr, WITH_GRADIENT: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    classes = class_groups * GROUP
    row = tl.program_id(0).to(tl.int64)
    WIDTH: tl.constexpr = VECTOR_BITS // student.dtype.element_ty.primitive_bitwidth
    LANES: tl.constexpr = BLOCK // WIDTH
    student += row * (student_groups.to(tl.int64) * GROUP)
    teacher += row * (teacher_groups.to(tl.int64) * GROUP)
    label = _column_of(tl.load(labels + row), classes)
    factor, odds_factor = LOG2_E / temperature, LOG2_E / odds_temperature
    highest = tl.full((LANES,), LOWEST, tl.float32)
    teacher_highest = tl.full((LANES,), LOWEST, tl.float32)
    total = tl.zeros((LANES,), tl.float32)
    teacher_total = tl.zeros((LANES,), tl.float32)
    odds_total = tl.zeros((LANES,), tl.float32)
    teacher_odds_total = tl.zeros((LANES,), tl.float32)
    # Σ exp(b) (b − a) and Σ exp(b) b below the maxima so far, a and b to base 2.
    cross = tl.zeros((LANES,), tl.float32)
    own_cross = tl.zeros((LANES,), tl.float32)
    for first in tl.range(0, classes, BLOCK, num_stages=STAGES):
        column = lane_columns(first, WIDTH, BLOCK)
        x = load_columns(student, column, classes, float("-inf"))
        y = load_columns(teacher, column, classes, float("-inf"))
        x = tl.where(column == label, float("-inf"), x)
        y = tl.where(column == label, float("-inf"), y)
        before, teacher_before = highest, teacher_highest
        highest, share = raised(highest, x, factor)
        teacher_highest, teacher_share = raised(teacher_highest, y, factor)
        a = (x - highest[:, None]) * factor
        b = (y - teacher_highest[:, None]) * factor
        p, q = tl.exp2(a), tl.exp2(b)
        if not WITH_GRADIENT:
            # A class that the teacher rules out adds 0, whatever the student says.
            teacher_rise = (teacher_highest - teacher_before) * factor
            rise = (highest - before) * factor - teacher_rise
            cross = times(cross + times(rise, teacher_total), teacher_share) + tl.sum(times(b - a, q), 1)
            own_cross = times(own_cross - times(teacher_rise, teacher_total), teacher_share)
            own_cross += tl.sum(times(b, q), 1)
        if not SAME:
            odds_total *= tl.exp2((before - highest) * odds_factor)
            odds_total += tl.sum(tl.exp2((x - highest[:, None]) * odds_factor), 1)
            if not WITH_GRADIENT:
                teacher_odds_total *= tl.exp2((teacher_before - teacher_highest) * odds_factor)
                teacher_odds_total += tl.sum(tl.exp2((y - teacher_highest[:, None]) * odds_factor), 1)
        total = total * share + tl.sum(p, 1)
        teacher_total = teacher_total * teacher_share + tl.sum(q, 1)
    top, share = lane_shares(highest, total, factor)
    teacher_top, teacher_share = lane_shares(teacher_highest, teacher_total, factor)
    if not WITH_GRADIENT:
        teacher_rise = (teacher_top - teacher_highest) * factor
        rise = (top - highest) * factor - teacher_rise
        cross = tl.sum(times(cross + times(rise, teacher_total), teacher_share), 0)
        own_cross = tl.sum(times(own_cross - times(teacher_rise, teacher_total), teacher_share), 0)
    if not SAME:
        _, odds_share = lane_shares(highest, odds_total, odds_factor)
        odds_total = tl.sum(odds_total * odds_share, 0)
        if not WITH_GRADIENT:
            _, teacher_odds_share = lane_shares(teacher_highest, teacher_odds_total, odds_factor)
            teacher_odds_total = tl.sum(teacher_odds_total * teacher_odds_share, 0)
    total = tl.sum(total * share, 0)
    teacher_total = tl.sum(teacher_total * teacher_share, 0)
    if SAME:
        odds_total, teacher_odds_total = total, teacher_total
    top, teacher_top = _finite(top), _finite(teacher_top)
    if WITH_GRADIENT:
        g = tl.load(grad_divergence + row) / temperature
        h = tl.load(grad_odds + row) / odds_temperature
        g = tl.where(label >= 0, tl.where(teacher_total == 0, 0.0, g), float("nan"))
        per_student, per_teacher, per_odds = _part(g, total), _part(g, teacher_total), _part(h, odds_total)
        chunks = tl.cdiv(classes, BLOCK)
        for chunk in tl.range(0, chunks, num_stages=STAGES):
            column = (chunks - 1 - chunk) * BLOCK + tl.arange(0, BLOCK)
            x = load_columns(student, column, classes, float("-inf"))
            y = load_columns(teacher, column, classes, float("-inf"))
            p, q = tl.exp2((x - top) * factor), tl.exp2((y - teacher_top) * factor)
            odds_p = p if SAME else tl.exp2((x - top) * odds_factor)
            gradient = p * per_student - q * per_teacher - odds_p * per_odds
            gradient = rounded(tl.where(column == label, h, gradient), d_student.dtype.element_ty)
            at = d_student + row * classes + column
            tl.store(at, gradient, mask=column < classes, eviction_policy="evict_first")
    else:
        wrong = tl.where(label >= 0, 0.0, float("nan"))
        own = tl.load(student + label, mask=label >= 0, other=0.0).to(tl.float32)
        teacher_own = tl.load(teacher + label, mask=label >= 0, other=0.0).to(tl.float32)
        tl.store(divergence + row, _divergence(cross, total, teacher_total) + wrong)
        tl.store(entropy + row, _entropy(own_cross, teacher_total) + wrong)
        tl.store(odds + row, (own - top) / odds_temperature - tl.log(odds_total) + wrong)
        teacher_odds_row = (teacher_own - teacher_top) / odds_temperature - tl.log(teacher_odds_total)
        tl.store(teacher_odds + row, teacher_odds_row + wrong)


def specializations(architecture: str) -> Iterator[Specialization]:
    """Every tile for results and gradients at one temperature; the longest of rows, and the sweep, also at two."""
    for element, size in ELEMENTS.items():
        tiles = list(whole_tiles(_WHOLE_TILES, architecture, size))
        swept = tables.entries(_SWEPT_TILES, architecture, size).values()
        for gradient in (False, True):
            for tile in tiles:
                yield _form(rest_divergence_whole, element, tile, gradient)
            for kernel, options in [(rest_divergence_whole, tiles[-1]), *((rest_divergence_swept, x) for x in swept)]:
                yield _form(kernel, element, options, gradient, same=False)
                yield _form(kernel, element, options, gradient, group=1)
                if kernel is rest_divergence_swept:
                    yield _form(kernel, element, options, gradient)


def _form(
    kernel: triton.JITFunction,
    element: str,
    options: tables.Options,
    gradient: bool,
    same: bool = True,
    group: int | None = None,
) -> Specialization:
    """A kernel for results or gradients; rows are aligned unless `group` is 1."""
    given = ("student", "teacher", "d_student") if gradient else ("student", "teacher")
    rows = ("grad_divergence", "grad_odds") if gradient else ("divergence", "entropy", "odds", "teacher_odds")
    absent = (
        ("divergence", "entropy", "odds", "teacher_odds") if gradient else ("grad_divergence", "grad_odds", "d_student")
    )
    types = dict.fromkeys(given, f"*{element}") | dict.fromkeys(rows, "*fp32")
    types |= {"labels": "*i64", "temperature": "fp32", "odds_temperature": "fp32"}
    constants = dict.fromkeys(absent) | {"SAME": same, "WITH_GRADIENT": gradient}
    constants |= {"GROUP": group or 16 // ELEMENTS[element]}
    columns = f", C ≤ {options['BLOCK']}" if "ROWS" in options else ""
    wanted = "gradient" if gradient else "results"
    description = (
        f"{element}{columns}, {wanted}" + ("" if same else ", two temperatures") + (", any C" if group else "")
    )
    return specialize(kernel, types, constants, options, description=description)
