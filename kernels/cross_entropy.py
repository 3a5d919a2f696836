"""Cross-entropy, its gradient and the classification margin of rows of logits x with label y, ε the label smoothing.

    top = max x,  e_c = exp(x_c − top),  S = Σ e_c,  lse = log S
    loss     = (1 − ε) (lse − (x_y − top)) + ε (lse − mean(x − top))
    margin   = (e_y − max_{c≠y} e_c) / S,  or x_y − max_{c≠y} x_c
    gradient = u (e_c / S − (1 − ε) [c = y] − ε / C)  =  u/S (e_c − S [c = y])  +  u ε ([c = y] − 1 / C)

                            C up to the table's longest row          beyond
    kernel                  cross_entropy_whole                      cross_entropy_swept
    a program holds         ROWS rows of BLOCK ≥ C in registers      running maxima and sums of one row in every lane
    reads of a logit        1                                        1, and 1 more for the gradient, backwards: from L2
                                                                     as far as that still holds the row
    exponentials            1                                        1, and 1 more for the gradient

Bytes: 2 · N · C · element size with the gradient, half of that without. Instructions in sm_90's machine code: 19 a
logit at C = 1000 in bfloat16 (26 with label smoothing), half of what can be issued while the bytes travel: a program is
one warp and one row, every lane holds 32 logits in loads of 16 bytes, up to 32 programs share a multiprocessor. Rows of
few classes share a warp; there what is done once a row weighs more: 63 a logit at C = 100. Sweeps: 31 a logit.
Meant for a row and more per multiprocessor. Ignored rows have a gradient of 0 whatever their logits are. A label that
names no class makes its row NaN: looking for one on the host would wait for the GPU.
Measured times: kernels/tables/sm_90.py, docs/gpu.md.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from icckd.kernels import tables, totals
from icckd.kernels.precision import rounded
from icckd.kernels.rows import (
    LOG2_E,
    LOWEST,
    VECTOR_BITS,
    columns_of,
    lane_columns,
    lane_shares,
    largest,
    load_columns,
    load_rows,
    raised,
    vector_group,
    whole_tile,
    whole_tiles,
    with_unit_columns,
)
from icckd.kernels.specialization import ELEMENTS, Specialization, specialize

# Numbers like any other: 1 is no constant, a multiple of 16 no kernel of its own.
_INTEGERS = ["stride_groups", "rows", "class_groups", "ignore_index"]


def cross_entropy_margin_rows(
    logits: Tensor, labels: Tensor, label_smoothing: float, space: str, ignore_index: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and margin of every row, and its log-sum-exp less its maximum; 0, −∞ and 0 where ignored."""
    losses, margin, lse = (torch.empty(len(logits), dtype=torch.float32, device=logits.device) for _ in range(3))
    _launch(logits, labels, None, losses, margin, lse, None, label_smoothing, space, ignore_index)
    return losses, margin, lse


def cross_entropy_margin_rows_backward(
    grad_rows: Tensor, lse: Tensor, logits: Tensor, labels: Tensor, label_smoothing: float, ignore_index: int
) -> Tensor:
    """The gradient of Σ grad_rows · rows with respect to the logits, in their dtype.

    lse: Not read: the maximum that it lacks has to be found again, and the sum comes with it.
    """
    d_logits = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    _launch(logits, labels, grad_rows, None, None, None, d_logits, label_smoothing, "probability", ignore_index)
    return d_logits


def cross_entropy_margin_sum(
    logits: Tensor, labels: Tensor, mean: bool, label_smoothing: float, space: str, ignore_index: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Σ rows or their mean over those not ignored, the margins, and the gradient with respect to the logits."""
    losses, margin = (torch.empty(len(logits), dtype=torch.float32, device=logits.device) for _ in range(2))
    d_logits = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    count = totals.count(labels, ignore_index) if mean else None
    _launch(logits, labels, None, losses, margin, None, d_logits, label_smoothing, space, ignore_index, count)
    # Where there is no row, no kernel has divided by their number.
    return (losses.mean() if mean and not len(losses) else totals.total(losses)), margin, d_logits


def _launch(
    logits: Tensor,
    labels: Tensor,
    upstream: Tensor | None,
    losses: Tensor | None,
    margin: Tensor | None,
    lse: Tensor | None,
    d_logits: Tensor | None,
    label_smoothing: float,
    space: str,
    ignore_index: int,
    count: Tensor | None = None,
) -> None:
    """Fill in what is given of the losses (times `upstream`, over `count`), margins, lse and gradients."""
    rows, classes = logits.shape
    if rows == 0:
        return
    logits, labels = with_unit_columns(logits), labels.contiguous()
    group = vector_group(logits)
    arguments = (
        logits, labels, None if upstream is None else upstream.contiguous(), count, losses, margin, lse, d_logits,
        logits.stride(0) // group, rows, classes // group, label_smoothing, ignore_index,
    )  # fmt: skip
    constants = {
        "SMOOTH": label_smoothing > 0, "PROBABILITY": space == "probability", "WITH_UPSTREAM": upstream is not None,
        "WITH_LOSS": losses is not None, "WITH_LSE": lse is not None, "WITH_GRADIENT": d_logits is not None,
        "GROUP": group,
    }  # fmt: skip
    architecture, size = tables.architecture(logits.device), logits.element_size()
    whole = whole_tile("cross_entropy_whole", architecture, size, classes)
    if whole is not None:
        cross_entropy_whole[(triton.cdiv(rows, whole["ROWS"]),)](*arguments, **constants, **whole)
    else:
        options = tables.options("cross_entropy_swept", architecture, size, classes)
        cross_entropy_swept[(rows,)](*arguments, **constants, **options)


@triton.jit
def _true_class(logits, stride, labels, row, valid, classes, ignore_index):
    """Label (−1 if it names no class), whether the row counts, and the logit of its class: NaN if there is none."""
    label = tl.load(labels + row, mask=valid, other=ignore_index)
    counted = valid & (label != ignore_index)
    named = counted & (label >= 0) & (label < classes)
    own = tl.load(logits + row * stride + label, mask=named, other=0.0).to(tl.float32)
    return tl.where(named, label, -1).to(tl.int32), counted, tl.where(counted & (named == 0), float("nan"), own)


@triton.jit
def _factor(upstream, count, row, label, counted, WITH_UPSTREAM: tl.constexpr):
    """u of these rows: 0 where ignored, NaN where the label names no class, or if `count` is 0."""
    u = counted.to(tl.float32)
    if WITH_UPSTREAM:
        u = tl.load(upstream + row, mask=counted, other=0.0)
    if count is not None:
        u = u / tl.load(count).to(tl.float32)
    return tl.where(counted & (label < 0), float("nan"), u)


@triton.jit
def _store_losses(
    losses, margin, lse, row, valid, counted, u, own_below, difference, total, mean, label_smoothing,
    SMOOTH: tl.constexpr, WITH_LSE: tl.constexpr,
):  # fmt: skip
    """From x_y − top, the margin, the sum S and the mean of x − top."""
    log_total = tl.log(total)
    loss = log_total - own_below
    # Not computed at 0, where a masked class (−∞) would make 0 · ∞.
    if SMOOTH:
        loss = (1 - label_smoothing) * loss + label_smoothing * (log_total - mean)
    tl.store(losses + row, u * tl.where(counted, loss, 0.0), mask=valid)
    tl.store(margin + row, tl.where(counted, difference, float("-inf")), mask=valid)
    if WITH_LSE:
        tl.store(lse + row, tl.where(counted, log_total, 0.0), mask=valid)


@triton.jit(do_not_specialize=_INTEGERS)
def cross_entropy_whole(
    logits, labels, upstream, count, losses, margin, lse, d_logits,
    stride_groups, rows, class_groups, label_smoothing, ignore_index,
    SMOOTH: tl.constexpr, PROBABILITY: tl.constexpr, WITH_UPSTREAM: tl.constexpr, WITH_LOSS: tl.constexpr,
    WITH_LSE: tl.constexpr, WITH_GRADIENT: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    stride, classes = stride_groups.to(tl.int64) * GROUP, class_groups * GROUP
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    valid = row < rows
    within = columns_of(classes, BLOCK)
    mask = valid[:, None] & within
    x = load_rows(logits, stride, row, mask, float("-inf"), BLOCK)
    top = tl.max(x, 1)
    below = x - top[:, None]
    mean = top
    if SMOOTH:
        mean = tl.sum(tl.where(within, below, 0.0), 1) / classes
    e = tl.exp2(below * LOG2_E)
    total = tl.sum(e, 1)
    per_total = 1 / total
    # Labels come late: nobody waits for them before the logits are there.
    label, counted, own = _true_class(logits, stride, labels, row, valid, classes, ignore_index)
    u = _factor(upstream, count, row, label, counted, WITH_UPSTREAM)
    column = tl.arange(0, BLOCK)[None, :]
    is_label = column == label[:, None]
    own_e = tl.exp2((own - top) * LOG2_E)
    # What the gradient is proportional to: at the label e_y − S. That is not above 0, so the largest is another's.
    rest = tl.where(is_label, (own_e - total)[:, None], e)
    if WITH_LOSS:
        if PROBABILITY:
            difference = (own_e - tl.max(rest, 1)) * per_total
        else:
            difference = own - largest(tl.where(is_label, float("-inf"), x), 1)
        _store_losses(
            losses, margin, lse, row, valid, counted, u, own - top, difference, total, mean, label_smoothing,
            SMOOTH, WITH_LSE,
        )  # fmt: skip
    if WITH_GRADIENT:
        gradient = rest * (u * per_total)[:, None]
        if SMOOTH:
            smoothing = u * label_smoothing
            gradient += tl.where(is_label, (smoothing - smoothing / classes)[:, None], (-smoothing / classes)[:, None])
        at = d_logits + (row * classes)[:, None] + column
        tl.store(at, rounded(gradient, d_logits.dtype.element_ty), mask=mask & counted[:, None])
        zero = tl.zeros((ROWS, BLOCK), d_logits.dtype.element_ty)
        tl.store(at, zero, mask=mask & (counted == 0)[:, None])


@triton.jit(do_not_specialize=_INTEGERS)
def cross_entropy_swept(
    logits, labels, upstream, count, losses, margin, lse, d_logits,
    stride_groups, rows, class_groups, label_smoothing, ignore_index,
    SMOOTH: tl.constexpr, PROBABILITY: tl.constexpr, WITH_UPSTREAM: tl.constexpr, WITH_LOSS: tl.constexpr,
    WITH_LSE: tl.constexpr, WITH_GRADIENT: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    stride, classes = stride_groups.to(tl.int64) * GROUP, class_groups * GROUP
    row = tl.program_id(0).to(tl.int64)
    label, counted, own = _true_class(logits, stride, labels, row, row < rows, classes, ignore_index)
    u = _factor(upstream, count, row, label, counted, WITH_UPSTREAM)
    WIDTH: tl.constexpr = VECTOR_BITS // logits.dtype.element_ty.primitive_bitwidth
    LANES: tl.constexpr = BLOCK // WIDTH
    highest = tl.full((LANES,), LOWEST, tl.float32)
    total = tl.zeros((LANES,), tl.float32)
    # Sums of x are taken from near the row's level, or large logits would lose their differences; from no masked one.
    level = tl.where(tl.abs(own) < 1e30, own, 0.0)
    sum_ = tl.zeros((LANES,), tl.float32)
    nans = tl.zeros((LANES,), tl.int32)
    logits += row * stride
    for first in tl.range(0, tl.where(counted, classes, 0), BLOCK, num_stages=STAGES):
        column = lane_columns(first, WIDTH, BLOCK)
        x = load_columns(logits, column, classes, float("-inf"))
        is_other = column != label
        if SMOOTH:
            sum_ += tl.sum(tl.where(is_other & (column < classes), x - level, 0.0), 1)
        x = tl.where(is_other, x, float("-inf"))
        # That maxima pass over NaN shows in the sums, but not in a difference of logits.
        if not PROBABILITY:
            nans += tl.sum((x != x).to(tl.int32), 1)
        highest, share = raised(highest, x, LOG2_E)
        total = total * share + tl.sum(tl.exp2((x - highest[:, None]) * LOG2_E), 1)
    other, share = lane_shares(highest, total, LOG2_E)
    if not PROBABILITY:
        other = tl.where(tl.sum(nans, 0) > 0, float("nan"), other)
    top = tl.maximum(own, other)
    own_e, other_e = tl.exp2((own - top) * LOG2_E), tl.exp2((other - top) * LOG2_E)
    total = tl.sum(total * share, 0) * other_e + own_e
    if WITH_LOSS:
        difference = (own_e - other_e) / total if PROBABILITY else own - other
        mean = (tl.sum(sum_, 0) + (own - level)) / classes + (level - top)
        _store_losses(
            losses, margin, lse, row, row < rows, counted, u, own - top, difference, total, mean, label_smoothing,
            SMOOTH, WITH_LSE,
        )  # fmt: skip
    if WITH_GRADIENT:
        scale = tl.where(counted, u / total, 0.0)
        own_gradient = (own_e - total) * scale
        chunks = tl.cdiv(classes, BLOCK)
        for chunk in tl.range(0, chunks, num_stages=STAGES):
            column = (chunks - 1 - chunk) * BLOCK + tl.arange(0, BLOCK)
            within = column < classes
            x = tl.load(logits + column, mask=within & counted, other=float("-inf"), eviction_policy="evict_first").to(
                tl.float32
            )
            is_label = column == label
            gradient = tl.where(is_label, own_gradient, tl.exp2((x - top) * LOG2_E) * scale)
            if SMOOTH:
                gradient += tl.where(is_label, u * label_smoothing, 0.0) - u * label_smoothing / classes
            gradient = rounded(gradient, d_logits.dtype.element_ty)
            tl.store(d_logits + row * classes + column, gradient, mask=within, eviction_policy="evict_first")


def specializations(architecture: str) -> Iterator[Specialization]:
    """Every tile in a training step; the longest of rows, and the sweep, also for losses alone and gradients alone."""
    for element, size in ELEMENTS.items():
        tiles = list(whole_tiles("cross_entropy_whole", architecture, size))
        for tile in tiles:
            yield _form(cross_entropy_whole, element, tile, ("losses", "count", "d_logits"))
        swept = tables.entries("cross_entropy_swept", architecture, size).values()
        for kernel, options in [(cross_entropy_whole, tiles[-1]), *((cross_entropy_swept, x) for x in swept)]:
            yield _form(kernel, element, options, ("losses", "lse"))
            yield _form(kernel, element, options, ("upstream", "d_logits"))
            yield _form(kernel, element, options, ("losses", "count", "d_logits"), group=1)
            if kernel is cross_entropy_swept:
                yield _form(kernel, element, options, ("losses", "count", "d_logits"))


def _form(
    kernel: triton.JITFunction, element: str, options: tables.Options, given: tuple[str, ...], group: int | None = None
) -> Specialization:
    """A kernel for what is `given`, with label smoothing; rows are aligned unless `group` is 1."""
    types = {name: "*fp32" for name in ("upstream", "losses", "margin", "lse")} | {"labels": "*i64", "count": "*fp32"}
    types |= {"logits": f"*{element}", "d_logits": f"*{element}", "label_smoothing": "fp32"}
    optional = {"upstream": "WITH_UPSTREAM", "losses": "WITH_LOSS", "lse": "WITH_LSE", "d_logits": "WITH_GRADIENT"}
    absent = [name for name in (*optional, "count") if name not in given] + ([] if "losses" in given else ["margin"])
    constants = {flag: name in given for name, flag in optional.items()} | dict.fromkeys(absent)
    constants |= {"SMOOTH": True, "PROBABILITY": True, "GROUP": group or 16 // ELEMENTS[element]}
    columns = f", C ≤ {options['BLOCK']}" if "ROWS" in options else ""
    return specialize(
        kernel,
        types,
        constants,
        options,
        description=f"{element}{columns}, {' and '.join(given)}" + (", any C" if group else ""),
    )
