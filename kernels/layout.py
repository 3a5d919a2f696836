"""Rows in the order of their classes, found on the device: nothing here waits for a GPU.

    positions   | class of rank 0, the largest | rank 1 | … | ignored rows |
    one class   | anchors (weight > 0) | other rows of the batch |          each in the order of the batch

Two ways to the same layout. With a promised number of classes C the keys 2 · class + (weight = 0) are counted, in four
launches, seven with a memory:

    _count_keys     a block of rows: its histogram, and each row's place among the equal keys    BLOCK² comparisons
    _sum_blocks     the histograms' running sums over the blocks                    (2C + 1) · N / BLOCK counts
    _rank_classes   the order of the classes, by comparing each with every other             C² comparisons
    _place_rows     every row to its position: a stable scatter                              2 · N labels read

Without C, or where these would be too many, PyTorch's stable sort does it, of labels as narrow as C allows.

Measured times are owed: no GPU has run this yet.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from icckd.kernels import tables
from icckd.kernels.specialization import Specialization, specialize

# Above these, sorting is the faster way: comparisons between classes, and counts per row.
_MOST_CLASSES = 8192
_MOST_COUNTS_PER_ROW = 32


class Layout(NamedTuple):
    """Where rows are, on the rows' device; all int32 but `scale`. R ranks: at least as many as classes with a row.

    order: The row at each position (N,).
    rank: The class rank of each position (N,), −1 for ignored rows.
    anchors: The positions of the anchors, in order (N,); only the first `totals[1]` are defined.
    start, size, active: First position, rows and anchors of the class of each rank (R,); size 0 where there is none.
    memory_order: The memory rows by class rank (M,); those of no class come last.
    memory_start, memory_size: Where in it the rows of each rank's class are (R,).
    totals: Labelled rows, anchors; both in classes of more than `limit` rows, which come first; memory rows of classes
        that have rows; classes that have rows (6,).
    scale: One over the sum of the labelled rows' weights, 0 where that is 0; float32 (1,).
    """

    order: Tensor
    rank: Tensor
    anchors: Tensor
    start: Tensor
    size: Tensor
    active: Tensor
    memory_order: Tensor
    memory_start: Tensor
    memory_size: Tensor
    totals: Tensor
    scale: Tensor


def class_layout(
    labels: Tensor, weight: Tensor | None, memory_labels: Tensor | None, num_classes: int | None, limit: int
) -> Layout:
    """The layout of rows with these labels (N,) and weights ≥ 0 (N,) or 1 each, and of memory rows with theirs (M,)."""
    if memory_labels is None:
        memory_labels = labels.new_empty(0)
    if num_classes is None or not _worth_counting(max(len(labels), len(memory_labels)), num_classes, labels.device):
        return sorted_layout(labels, weight, memory_labels, num_classes, limit)
    return counted_layout(labels, weight, memory_labels, num_classes, limit)


def _worth_counting(rows: int, num_classes: int, device: torch.device) -> bool:
    counts = (2 * num_classes + 1) * triton.cdiv(rows, _options(device, rows)["BLOCK"])
    return num_classes <= _MOST_CLASSES and counts <= max(_MOST_COUNTS_PER_ROW * rows, 1 << 16)


def _options(device: torch.device, rows: int) -> tables.Options:
    return tables.options("layout", tables.architecture(device), 4, rows)


def counted_layout(
    labels: Tensor, weight: Tensor | None, memory_labels: Tensor, num_classes: int, limit: int
) -> Layout:
    """The layout by counting; every label should be below `num_classes`, or its row is ignored."""
    device, rows, memory_rows = labels.device, len(labels), len(memory_labels)
    options = _options(device, max(rows, memory_rows))
    block, launch = options["BLOCK"], {"BLOCK": options["BLOCK"], "num_warps": options["num_warps"]}
    blocks = triton.cdiv(rows, block)
    weight_sums = None if weight is None else torch.empty(blocks, dtype=torch.float32, device=device)
    place, table, counts = _count(labels, weight, weight_sums, num_classes, options, in_batch=True)
    memory_place, memory_table, memory_counts = (
        _count(memory_labels, None, None, num_classes, options, in_batch=False) if memory_rows else (None, None, None)
    )
    start, size, active, anchor_start, memory_start, memory_size, rank_of_class = (
        torch.empty(num_classes, dtype=torch.int32, device=device) for _ in range(7)
    )
    totals = torch.empty(6, dtype=torch.int32, device=device)
    scale = torch.empty(1, dtype=torch.float32, device=device)
    order, rank, anchors = (torch.empty(rows, dtype=torch.int32, device=device) for _ in range(3))
    memory_order = torch.empty(memory_rows, dtype=torch.int32, device=device)
    _rank_classes[(triton.cdiv(num_classes, _CLASSES),)](
        counts, memory_counts, weight_sums, start, size, active, anchor_start, memory_start, memory_size, rank_of_class,
        totals, scale, num_classes, blocks, limit, HAS_MEMORY=memory_rows > 0, BLOCK=_CLASSES, SUMS=_SUMS,
    )  # fmt: skip
    if rows:
        _place_rows[(blocks,)](
            labels, weight, place, table, rank_of_class, start, active, anchor_start, totals, order, rank, anchors,
            rows, num_classes, **launch,
        )  # fmt: skip
    if memory_rows:
        _place_memory[(triton.cdiv(memory_rows, block),)](
            memory_labels, memory_place, memory_table, rank_of_class, memory_start, memory_counts, memory_order,
            memory_rows, num_classes, **launch,
        )  # fmt: skip
    return Layout(order, rank, anchors, start, size, active, memory_order, memory_start, memory_size, totals, scale)


def _count(
    labels: Tensor,
    weight: Tensor | None,
    weight_sums: Tensor | None,
    num_classes: int,
    options: tables.Options,
    *,
    in_batch: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Each row's place among those of its key in its block; keys before each block (blocks, keys); keys in all."""
    rows, block = len(labels), options["BLOCK"]
    keys, blocks = 2 * num_classes + 1 if in_batch else num_classes + 1, triton.cdiv(rows, block)
    place = torch.empty(rows, dtype=torch.int32, device=labels.device)
    table = torch.empty(blocks, keys, dtype=torch.int32, device=labels.device)
    counts = torch.empty(keys, dtype=torch.int32, device=labels.device)
    if rows:
        _count_keys[(blocks,)](
            labels, weight, place, table, weight_sums, rows, num_classes, keys, IN_BATCH=in_batch, **options
        )
    _sum_blocks[(triton.cdiv(keys, _KEYS),)](table, counts, keys, blocks, KEYS=_KEYS, BLOCKS=_BLOCKS)
    return place, table, counts


# Keys and blocks that one program of `_sum_blocks` holds at a time, and classes one of `_rank_classes` compares.
_KEYS, _BLOCKS = 32, 64
_CLASSES = 32
# Blocks whose sums of weights are added at a time.
_SUMS = 256


@triton.jit
def _key(labels, weight, i, rows, num_classes, IN_BATCH: tl.constexpr):
    """The keys of rows i: 2 · class + (weight = 0), or the class of memory rows; the last key where it has none."""
    label = tl.load(labels + i, mask=i < rows, other=-1)
    used = (label >= 0) & (label < num_classes)
    if IN_BATCH:
        key = tl.where(used, 2 * label, 2 * num_classes)
        if weight is not None:
            idle = used & ~(tl.load(weight + i, mask=i < rows, other=0.0) > 0)
            key += idle.to(tl.int64)
    else:
        key = tl.where(used, label, num_classes)
    return key.to(tl.int32)


@triton.jit(do_not_specialize=["rows", "num_classes", "keys"])
def _count_keys(
    labels, weight, place, table, weight_sums, rows, num_classes, keys,
    IN_BATCH: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    counts = table + block.to(tl.int64) * keys
    for first in range(0, keys, BLOCK):
        key = first + tl.arange(0, BLOCK)
        tl.store(counts + key, 0, mask=key < keys)
    i = block * BLOCK + tl.arange(0, BLOCK)
    key = _key(labels, weight, i, rows, num_classes, IN_BATCH)
    if weight is not None:
        tl.store(weight_sums + block, tl.sum(tl.load(weight + i, mask=(i < rows) & (key < keys - 1), other=0.0), 0))
    before = tl.zeros((BLOCK,), tl.int32)
    total = tl.zeros((BLOCK,), tl.int32)
    for first in range(0, BLOCK, CHUNK):
        j = block * BLOCK + first + tl.arange(0, CHUNK)
        other = _key(labels, weight, j, rows, num_classes, IN_BATCH)
        same = ((key[:, None] == other[None, :]) & (j[None, :] < rows)).to(tl.int32)
        total += tl.sum(same, 1)
        before += tl.sum(tl.where(j[None, :] < i[:, None], same, 0), 1)
    tl.store(place + i, before, mask=i < rows)
    # Other threads wrote the zeros.
    tl.debug_barrier()
    # Only the last row of its key in the block writes, so that no two write one count.
    tl.store(counts + key, total, mask=(i < rows) & (before == total - 1))


@triton.jit(do_not_specialize=["keys", "blocks"])
def _sum_blocks(table, counts, keys, blocks, KEYS: tl.constexpr, BLOCKS: tl.constexpr):
    key = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    total = tl.zeros((KEYS,), tl.int32)
    for first in range(0, blocks, BLOCKS):
        block = first + tl.arange(0, BLOCKS)
        at = table + block[:, None].to(tl.int64) * keys + key[None, :]
        mask = (block[:, None] < blocks) & (key[None, :] < keys)
        count = tl.load(at, mask=mask, other=0)
        tl.store(at, total[None, :] + tl.cumsum(count, 0) - count, mask=mask)
        total += tl.sum(count, 0)
    tl.store(counts + key, total, mask=key < keys)


@triton.jit(do_not_specialize=["num_classes", "blocks", "limit"])
def _rank_classes(
    counts, memory_counts, weight_sums, start, size, active, anchor_start, memory_start, memory_size, rank_of_class,
    totals, scale, num_classes, blocks, limit, HAS_MEMORY: tl.constexpr, BLOCK: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = c < num_classes
    anchors = tl.load(counts + 2 * c, mask=valid, other=0)
    rows = anchors + tl.load(counts + 2 * c + 1, mask=valid, other=0)
    rank, row_start, first_anchor, first_memory = (
        tl.zeros((BLOCK,), tl.int32), tl.zeros((BLOCK,), tl.int32),
        tl.zeros((BLOCK,), tl.int32), tl.zeros((BLOCK,), tl.int32),
    )  # fmt: skip
    all_rows, all_anchors, large_rows, large_anchors, all_memory, all_classes = 0, 0, 0, 0, 0, 0
    for first in range(0, num_classes, BLOCK):
        d = first + tl.arange(0, BLOCK)
        their_anchors = tl.load(counts + 2 * d, mask=d < num_classes, other=0)
        their_rows = their_anchors + tl.load(counts + 2 * d + 1, mask=d < num_classes, other=0)
        larger = their_rows[None, :] > rows[:, None]
        tied = (their_rows[None, :] == rows[:, None]) & (d[None, :] < c[:, None])
        earlier = ((larger | tied) & (d[None, :] < num_classes)).to(tl.int32)
        rank += tl.sum(earlier, 1)
        row_start += tl.sum(earlier * their_rows[None, :], 1)
        first_anchor += tl.sum(earlier * their_anchors[None, :], 1)
        if HAS_MEMORY:
            their_memory = tl.load(memory_counts + d, mask=d < num_classes, other=0)
            first_memory += tl.sum(earlier * their_memory[None, :], 1)
            all_memory += tl.sum(tl.where(their_rows > 0, their_memory, 0), 0)
        large = (their_rows > limit).to(tl.int32)
        all_classes += tl.sum((their_rows > 0).to(tl.int32), 0)
        all_rows += tl.sum(their_rows, 0)
        all_anchors += tl.sum(their_anchors, 0)
        large_rows += tl.sum(large * their_rows, 0)
        large_anchors += tl.sum(large * their_anchors, 0)
    tl.store(rank_of_class + c, rank, mask=valid)
    tl.store(start + rank, row_start, mask=valid)
    tl.store(size + rank, rows, mask=valid)
    tl.store(active + rank, anchors, mask=valid)
    tl.store(anchor_start + rank, first_anchor, mask=valid)
    tl.store(memory_start + rank, first_memory, mask=valid)
    memory_rows = tl.zeros((BLOCK,), tl.int32)
    if HAS_MEMORY:
        memory_rows = tl.load(memory_counts + c, mask=valid, other=0)
    tl.store(memory_size + rank, memory_rows, mask=valid)
    if tl.program_id(0) == 0:
        tl.store(totals, all_rows)
        tl.store(totals + 1, all_anchors)
        tl.store(totals + 2, large_rows)
        tl.store(totals + 3, large_anchors)
        tl.store(totals + 4, all_memory)
        tl.store(totals + 5, all_classes)
        weights = all_rows.to(tl.float32)
        if weight_sums is not None:
            sums = tl.zeros((SUMS,), tl.float32)
            for first in range(0, blocks, SUMS):
                block = first + tl.arange(0, SUMS)
                sums += tl.load(weight_sums + block, mask=block < blocks, other=0.0)
            weights = tl.sum(sums, 0)
        tl.store(scale, tl.where(weights == 0, 0.0, 1.0 / weights))


@triton.jit(do_not_specialize=["rows", "num_classes"])
def _place_rows(
    labels, weight, place, table, rank_of_class, start, active, anchor_start, totals, order, rank, anchors,
    rows, num_classes, BLOCK: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    i = block * BLOCK + tl.arange(0, BLOCK)
    valid = i < rows
    key = _key(labels, weight, i, rows, num_classes, True)
    used = valid & (key < 2 * num_classes)
    r = tl.load(rank_of_class + key // 2, mask=used, other=-1)
    nth = tl.load(place + i, mask=valid, other=0)
    nth += tl.load(table + block.to(tl.int64) * (2 * num_classes + 1) + key, mask=valid, other=0)
    is_anchor = used & (key % 2 == 0)
    begin = tl.load(start + r, mask=used, other=0)
    begin += tl.load(active + r, mask=used & ~is_anchor, other=0)
    position = tl.where(used, begin, tl.load(totals)) + nth
    tl.store(order + position, i, mask=valid)
    tl.store(rank + position, r, mask=valid)
    tl.store(anchors + tl.load(anchor_start + r, mask=is_anchor, other=0) + nth, position, mask=is_anchor)


@triton.jit(do_not_specialize=["rows", "num_classes"])
def _place_memory(
    labels, place, table, rank_of_class, memory_start, counts, memory_order,
    rows, num_classes, BLOCK: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    i = block * BLOCK + tl.arange(0, BLOCK)
    valid = i < rows
    key = _key(labels, labels, i, rows, num_classes, False)
    used = valid & (key < num_classes)
    r = tl.load(rank_of_class + key, mask=used, other=0)
    nth = tl.load(place + i, mask=valid, other=0)
    nth += tl.load(table + block.to(tl.int64) * (num_classes + 1) + key, mask=valid, other=0)
    # Rows of no class are counted under the last key; they come after all others.
    labelled = rows - tl.load(counts + num_classes)
    begin = tl.where(used, tl.load(memory_start + r, mask=used, other=0), labelled)
    tl.store(memory_order + begin + nth, i, mask=valid)


def sorted_layout(
    labels: Tensor, weight: Tensor | None, memory_labels: Tensor, num_classes: int | None, limit: int
) -> Layout:
    """The layout by sorting, for any labels; with one rank for every row."""
    count, dtype = len(labels), _narrowest(num_classes)
    labels, memory_labels = (_sort_keys(x, num_classes, dtype) for x in (labels, memory_labels))
    by_label, row = labels.sort(stable=True)
    used = by_label != _NONE
    weights = used.float() if weight is None else torch.where(used, weight[row], 0.0)
    is_anchor = weights > 0
    new = used & torch.cat([used[:1], by_label[1:] != by_label[:-1]])
    class_of = (new.cumsum(0) - 1).clamp(min=0)
    position = torch.arange(count, device=labels.device)
    # Where each class begins; those that do not exist begin where the last one ends.
    first = used.sum().expand(count + 1).clone()
    first.scatter_(0, torch.where(new, class_of, count), torch.where(new, position, used.sum()))
    first[count:] = used.sum()
    anchors_before = torch.cat([position.new_zeros(1), is_anchor.cumsum(0)])
    size, active = first.diff(), anchors_before[first].diff()
    size, class_at = size.sort(descending=True, stable=True)
    active = active[class_at]
    start, anchor_start = size.cumsum(0) - size, active.cumsum(0) - active
    rank_of_class = torch.empty_like(class_at).scatter_(0, class_at, position)

    rank = rank_of_class[class_of]
    nth_anchor = anchors_before[:-1] - anchors_before[first[class_of]]
    nth_other = position - first[class_of] - nth_anchor
    place = start[rank] + torch.where(is_anchor, nth_anchor, active[rank] + nth_other)
    place = torch.where(used, place, position)
    # Rows that are no anchors meet in one more slot, which is cut off.
    anchor_place = torch.where(is_anchor, anchor_start[rank] + nth_anchor, count)
    anchors = torch.empty(count + 1, dtype=torch.int64, device=labels.device).scatter_(0, anchor_place, place)[:count]
    order = torch.empty_like(row).scatter_(0, place, row)
    ranks = torch.empty_like(row).scatter_(0, place, torch.where(used, rank, -1))

    in_memory, in_batch = _same_labels(memory_labels, by_label, first)
    memory_rank = torch.where(in_batch, rank_of_class[in_memory], count) if count else in_memory
    by_rank, memory_order = memory_rank.sort(stable=True)
    memory_start = torch.searchsorted(by_rank, position)
    memory_size = torch.searchsorted(by_rank, position, right=True) - memory_start
    large = size > limit
    totals = torch.stack(
        [size.sum(), active.sum(), (size * large).sum(), (active * large).sum(), in_batch.sum(), (size > 0).sum()]
    )
    total_weight = weights.sum(0, keepdim=True)
    scale = torch.where(total_weight == 0, 0.0, 1 / total_weight)
    parts = (order, ranks, anchors, start, size, active, memory_order, memory_start, memory_size, totals)
    return Layout(*(x.int() for x in parts), scale=scale)


def _narrowest(num_classes: int | None) -> torch.dtype:
    """The type that sorts fastest and has a negative number for every class."""
    fitting = (x for x in (torch.int16, torch.int32) if num_classes is not None and num_classes <= torch.iinfo(x).max)
    return next(fitting, torch.int64)


# The sort key of rows without a class.
_NONE = 0


def _sort_keys(labels: Tensor, num_classes: int | None, dtype: torch.dtype) -> Tensor:
    """Negative numbers in the order of the labels, however large; _NONE for those that take their rows out."""
    used = labels >= 0
    if num_classes is not None:
        used &= labels < num_classes
    return torch.where(used, labels + torch.iinfo(dtype).min, _NONE).to(dtype)


def _same_labels(labels: Tensor, by_label: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    """Which class of the batch, whose sorted keys are `by_label`, bears each key; and whether there is one."""
    if len(by_label) == 0:
        return torch.zeros_like(labels), torch.zeros_like(labels, dtype=torch.bool)
    at = torch.searchsorted(by_label, labels).clamp(max=len(by_label) - 1)
    found = (by_label[at] == labels) & (labels != _NONE)
    return torch.searchsorted(first[:-1].contiguous(), at, right=True).sub(1).clamp(min=0), found


def specializations(architecture: str) -> Iterator[Specialization]:
    """What the kernels of this file are compiled for."""
    types = {name: "*i32" for name in ("place", "table", "counts", "memory_counts", *Layout._fields)}
    types |= {name: "*i32" for name in ("anchor_start", "rank_of_class")} | {"labels": "*i64"}
    types |= {name: "*fp32" for name in ("weight", "weight_sums", "scale")}
    unweighted = {"weight": None, "weight_sums": None}
    for options in tables.entries("layout", architecture, 4).values():
        block = {name: options[name] for name in ("BLOCK", "num_warps")}
        yield specialize(_count_keys, types, {"IN_BATCH": True}, options)
        yield specialize(_count_keys, types, {"IN_BATCH": True} | unweighted, options, description="without weights")
        yield specialize(_count_keys, types, {"IN_BATCH": False} | unweighted, options, description="memory")
        yield specialize(_place_rows, types, {}, block)
        yield specialize(_place_memory, types, {}, block)
    yield specialize(_sum_blocks, types, {"KEYS": _KEYS, "BLOCKS": _BLOCKS}, {})
    for memory in (False, True):
        flags = {"HAS_MEMORY": memory, "BLOCK": _CLASSES, "SUMS": _SUMS}
        absent = {} if memory else {"memory_counts": None}
        yield specialize(_rank_classes, types, flags | absent, {}, description="memory" if memory else "")
