"""Rows in the order of their classes, found on the device: nothing here waits for a GPU.

    positions   | class of rank 0, the largest | rank 1 | … | ignored rows |
    one class   | anchors (weight > 0) | other rows of the batch |          each in the order of the batch

Two ways to the same layout. With a promised number of classes C the keys 2 · class + (weight = 0) are counted, and in
the same four launches those of a memory, its classes. N rows in B blocks, so long that their table has 8 N counts:

    _count_keys     how often a block of rows has each key, and each row's place among the block's rows of its key,
                    BLOCK rows after BLOCK rows          BLOCK comparisons a row; reads 12 N, writes 4 N + 4 (2C + 1) B
    _sum_blocks     that table's running sums over the blocks            reads 4 (2C + 1) B bytes, writes as many
    _rank_classes   the order of the classes, by comparing each with every other       C² comparisons; writes 8 N
    _place_rows     every row to its position: a stable scatter      reads 16 N and 8 N scattered, writes 4 N scattered

Each of them wants all that the one before it has found. Without C, or with more classes than are worth comparing,
PyTorch's stable sort does it, of labels as narrow as C allows.

Measured on an H100 (2026-11-26; N = 65,536, C = 1000): 5.1, 6.8 and 3.5 µs; the fourth 6.3 with eight scattered
accesses a row, which are three now; the second by more keys at a time than now. N = 1,048,576, C = 10,000: 78, 12, 80
and, as before, 88.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from icckd.kernels import tables
from icckd.kernels.specialization import Specialization, specialize

# Above this many, sorting rows is faster than comparing classes.
_MOST_CLASSES = 16_384
# The table of counts has at most so many a row, or so many in all.
_COUNTS_PER_ROW, _COUNTS = 8, 1 << 21


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
    if num_classes is None or num_classes > _MOST_CLASSES:
        return sorted_layout(labels, weight, memory_labels, num_classes, limit)
    return counted_layout(labels, weight, memory_labels, num_classes, limit)


class _Keyed:
    """Rows of a batch or a memory that are counted by key, and what is found out about them.

    count, keys: How many rows and keys there are, N and K; the last key is that of rows without a class.
    blocks, rows_per_block: How the rows are divided.
    place: Of each row among its block's rows of its key (N,).
    table: Of each block how often it has each key; then how often earlier blocks have it (blocks, K).
    totals: How often there is each key (K,).
    """

    def __init__(self, labels: Tensor, keys: int, chunk: int):
        self.count, self.keys = len(labels), keys
        # √N blocks balance what is counted one after the other, within a block, and then summed over the blocks.
        blocks = min(max(_COUNTS_PER_ROW * self.count, _COUNTS) // keys, math.isqrt(self.count))
        self.rows_per_block = chunk * triton.cdiv(max(self.count, 1), chunk * max(blocks, 1))
        self.blocks = triton.cdiv(self.count, self.rows_per_block)
        self.place, self.table, self.totals = (
            torch.empty(shape, dtype=torch.int32, device=labels.device)
            for shape in ((self.count,), (self.blocks, keys), (keys,))
        )


def counted_layout(
    labels: Tensor, weight: Tensor | None, memory_labels: Tensor, num_classes: int, limit: int
) -> Layout:
    """The layout by counting; every label should be below `num_classes`, or its row is ignored."""
    device = labels.device
    options = tables.options("layout", tables.architecture(device), 4, len(labels))
    classes = {name: options[name] for name in ("CLASSES", "OTHERS")}
    batch = _Keyed(labels, 2 * num_classes + 1, options["BLOCK"])
    memory = _Keyed(memory_labels, num_classes + 1, options["BLOCK"])
    has_memory = {"HAS_MEMORY": memory.count > 0}
    order, rank, anchors = (torch.empty_like(batch.place) for _ in range(3))
    memory_order = torch.empty_like(memory.place)
    start, size, active, memory_start, memory_size, memory_start_of_class = (
        torch.empty(num_classes, dtype=torch.int32, device=device) for _ in range(6)
    )
    start_of_key = torch.empty_like(batch.totals)
    totals = torch.empty(6, dtype=torch.int32, device=device)
    scale = torch.empty(1, dtype=torch.float32, device=device)
    weight_sums = None if weight is None else torch.empty(batch.blocks, dtype=torch.float32, device=device)

    blocks = batch.blocks + memory.blocks
    if blocks:
        _count_keys[(blocks,)](
            labels, weight, batch.place, batch.table, weight_sums, memory_labels, memory.place, memory.table,
            batch.count, batch.blocks, batch.rows_per_block, memory.count, memory.rows_per_block, num_classes,
            **has_memory, BLOCK=options["BLOCK"], num_warps=options["num_warps"],
        )  # fmt: skip
    groups = [triton.cdiv(x.keys, _KEYS) for x in (batch, memory) if x is batch or x.count]
    _sum_blocks[(sum(groups),)](
        batch.table, batch.totals, memory.table, memory.totals, batch.keys, batch.blocks, memory.keys, memory.blocks,
        **has_memory, KEYS=_KEYS, BLOCKS=_BLOCKS,
    )  # fmt: skip
    _rank_classes[(triton.cdiv(num_classes, options["CLASSES"]) + 1,)](
        batch.totals, memory.totals, weight_sums, start, size, active, memory_start, memory_size, rank, anchors,
        start_of_key, memory_start_of_class, totals, scale, num_classes, batch.blocks, limit, **has_memory, **classes,
    )  # fmt: skip
    if blocks:
        programs = sum(triton.cdiv(x.count, options["PLACED"]) for x in (batch, memory))
        _place_rows[(programs,)](
            labels, weight, batch.place, batch.table, memory_labels, memory.place, memory.table, memory.totals,
            start_of_key, memory_start_of_class, rank, order, memory_order,
            batch.count, batch.rows_per_block, memory.count, memory.rows_per_block, num_classes,
            **has_memory, PLACED=options["PLACED"],
        )  # fmt: skip
    return Layout(order, rank, anchors, start, size, active, memory_order, memory_start, memory_size, totals, scale)


# Keys and blocks that one program of `_sum_blocks` holds at a time.
_KEYS, _BLOCKS = 8, 128


@triton.jit
def _keys(labels, weight, i, end, num_classes, IN_BATCH: tl.constexpr):
    """The keys of rows i and their weights: 2 · class + (weight = 0), or the class of memory rows.

    The last key where there is no class, −1 from row `end` on.
    """
    label = tl.load(labels + i, mask=i < end, other=-1)
    used = (label >= 0) & (label < num_classes)
    used_weight = used.to(tl.float32)
    if IN_BATCH:
        if weight is not None:
            used_weight = tl.load(weight + i, mask=used, other=0.0)
        key = tl.where(used, 2 * label + (1 - (used_weight > 0).to(tl.int64)), 2 * num_classes)
    else:
        key = tl.where(used, label, num_classes)
    return tl.where(i < end, key, -1).to(tl.int32), used_weight


@triton.jit
def _count_block(
    labels, weight, place, table, weight_sums, block, rows, rows_per_block, keys, num_classes,
    IN_BATCH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    counts = table + block.to(tl.int64) * keys
    for first in range(0, keys, 4 * BLOCK):
        key = first + tl.arange(0, 4 * BLOCK)
        tl.store(counts + key, 0, mask=key < keys)
    lane = tl.arange(0, BLOCK)
    begin = block.to(tl.int64) * rows_per_block
    end = tl.minimum(begin + rows_per_block, rows)
    next_key, next_weight = _keys(labels, weight, begin + lane, end, num_classes, IN_BATCH)
    sums = tl.zeros((BLOCK,), tl.float32)
    # Counts are written by some threads and read by others.
    tl.debug_barrier()
    for first in range(begin, end, BLOCK):
        key = next_key
        sums += next_weight
        # The next rows are on their way while these are compared.
        next_key, next_weight = _keys(labels, weight, first + BLOCK + lane, end, num_classes, IN_BATCH)
        count = tl.load(counts + key, mask=key >= 0, other=0)
        # Rows of the same key are 0 … BLOCK − 1 after BLOCK · key, in their order; sums over them stay within a thread.
        after = ((BLOCK * key + lane)[:, None] - BLOCK * key[None, :]).to(tl.uint32)
        before = tl.sum((after < lane[None, :].to(tl.uint32)).to(tl.int32), 0)
        equal = tl.sum((after < BLOCK).to(tl.int32), 0)
        tl.store(place + first + lane, count + before, mask=key >= 0)
        tl.debug_barrier()
        tl.store(counts + key, count + equal, mask=(key >= 0) & (before == equal - 1))
        tl.debug_barrier()
    if weight is not None:
        tl.store(weight_sums + block, tl.sum(sums, 0))


@triton.jit(
    do_not_specialize=["rows", "blocks", "rows_per_block", "memory_rows", "memory_rows_per_block", "num_classes"]
)
def _count_keys(
    labels, weight, place, table, weight_sums, memory_labels, memory_place, memory_table,
    rows, blocks, rows_per_block, memory_rows, memory_rows_per_block, num_classes,
    HAS_MEMORY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Blocks of the batch, then those of the memory."""
    block = tl.program_id(0)
    if block < blocks:
        _count_block(
            labels, weight, place, table, weight_sums, block, rows, rows_per_block, 2 * num_classes + 1, num_classes,
            True, BLOCK,
        )  # fmt: skip
    elif HAS_MEMORY:
        _count_block(
            memory_labels, None, memory_place, memory_table, None, block - blocks, memory_rows, memory_rows_per_block,
            num_classes + 1, num_classes, False, BLOCK,
        )  # fmt: skip


@triton.jit
def _sum_keys(table, totals, group, keys, blocks, KEYS: tl.constexpr, BLOCKS: tl.constexpr):
    key = group * KEYS + tl.arange(0, KEYS)
    total = tl.zeros((KEYS,), tl.int32)
    for first in range(0, blocks, BLOCKS):
        block = first + tl.arange(0, BLOCKS)
        at = table + block[:, None].to(tl.int64) * keys + key[None, :]
        mask = (block[:, None] < blocks) & (key[None, :] < keys)
        count = tl.load(at, mask=mask, other=0)
        tl.store(at, total[None, :] + tl.cumsum(count, 0) - count, mask=mask)
        total += tl.sum(count, 0)
    tl.store(totals + key, total, mask=key < keys)


@triton.jit(do_not_specialize=["keys", "blocks", "memory_keys", "memory_blocks"])
def _sum_blocks(
    table, counts, memory_table, memory_counts, keys, blocks, memory_keys, memory_blocks,
    HAS_MEMORY: tl.constexpr, KEYS: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(0)
    groups = tl.cdiv(keys, KEYS)
    if group < groups:
        _sum_keys(table, counts, group, keys, blocks, KEYS, BLOCKS)
    elif HAS_MEMORY:
        _sum_keys(memory_table, memory_counts, group - groups, memory_keys, memory_blocks, KEYS, BLOCKS)


@triton.jit
def _counts_of(counts, memory_counts, c, num_classes, HAS_MEMORY: tl.constexpr):
    """Rows, anchors and memory rows of classes c; −1, 0 and 0 where there is no such class."""
    anchors = tl.load(counts + 2 * c, mask=c < num_classes, other=0)
    rows = anchors + tl.load(counts + 2 * c + 1, mask=c < num_classes, other=-1)
    memory = tl.zeros_like(rows)
    if HAS_MEMORY:
        memory = tl.load(memory_counts + c, mask=c < num_classes, other=0)
    return rows, anchors, memory


@triton.jit(do_not_specialize=["num_classes", "blocks", "limit"])
def _rank_classes(
    counts, memory_counts, weight_sums, start, size, active, memory_start, memory_size, rank, anchors,
    start_of_key, memory_start_of_class, totals, scale, num_classes, blocks, limit,
    HAS_MEMORY: tl.constexpr, CLASSES: tl.constexpr, OTHERS: tl.constexpr,
):  # fmt: skip
    """One program for CLASSES classes, and one for what is true of all."""
    if tl.program_id(0) == tl.num_programs(0) - 1:
        _sum_classes(
            counts, memory_counts, weight_sums, start_of_key, totals, scale, num_classes, blocks, limit,
            HAS_MEMORY, OTHERS,
        )  # fmt: skip
    else:
        first_class = tl.program_id(0) * CLASSES
        c = first_class + tl.arange(0, CLASSES)
        rows, anchor_rows, memory = _counts_of(counts, memory_counts, c, num_classes, HAS_MEMORY)
        zeros = tl.zeros((CLASSES, OTHERS), tl.int32)
        rank_tile, rows_tile, anchors_tile, memory_tile = zeros, zeros, zeros, zeros
        for first in range(0, num_classes, OTHERS):
            d = first + tl.arange(0, OTHERS)
            their_rows, their_anchors, their_memory = _counts_of(counts, memory_counts, d, num_classes, HAS_MEMORY)
            # Of equally large classes those with lower numbers are first: for all but this program's own, by one bound.
            bound = their_rows + (d < first_class).to(tl.int32)
            bound = tl.where((d >= first_class) & (d < first_class + CLASSES), -1, bound)
            before = (bound[None, :] > rows[:, None]).to(tl.int32)
            rank_tile += before
            rows_tile += before * their_rows[None, :]
            anchors_tile += before * their_anchors[None, :]
            if HAS_MEMORY:
                memory_tile += before * their_memory[None, :]
        tied = (rows[None, :] == rows[:, None]) & (c[None, :] < c[:, None])
        near = ((rows[None, :] > rows[:, None]) | tied).to(tl.int32)
        own_rank = tl.sum(rank_tile, 1) + tl.sum(near, 1)
        own_start = tl.sum(rows_tile, 1) + tl.sum(near * rows[None, :], 1)
        anchor_start = tl.sum(anchors_tile, 1) + tl.sum(near * anchor_rows[None, :], 1)
        memory_before = tl.sum(memory_tile, 1) + tl.sum(near * memory[None, :], 1)
        valid = c < num_classes
        tl.store(start_of_key + 2 * c, own_start, mask=valid)
        tl.store(start_of_key + 2 * c + 1, own_start + anchor_rows, mask=valid)
        tl.store(memory_start_of_class + c, memory_before, mask=valid)
        tl.store(start + own_rank, own_start, mask=valid)
        tl.store(size + own_rank, rows, mask=valid)
        tl.store(active + own_rank, anchor_rows, mask=valid)
        tl.store(memory_start + own_rank, memory_before, mask=valid)
        tl.store(memory_size + own_rank, memory, mask=valid)
        # What does not depend on which row is where is written here, in runs.
        for first in range(0, tl.max(rows, 0), OTHERS):
            k = first + tl.arange(0, OTHERS)
            position = own_start[:, None] + k[None, :]
            tl.store(rank + position, own_rank[:, None] + k[None, :] * 0, mask=k[None, :] < rows[:, None])
            at = anchors + anchor_start[:, None] + k[None, :]
            tl.store(at, position, mask=k[None, :] < anchor_rows[:, None])


@triton.jit
def _sum_classes(
    counts, memory_counts, weight_sums, start_of_key, totals, scale, num_classes, blocks, limit,
    HAS_MEMORY: tl.constexpr, OTHERS: tl.constexpr,
):  # fmt: skip
    zeros = tl.zeros((OTHERS,), tl.int32)
    all_rows, all_anchors, large_rows, large_anchors, all_memory, classes = zeros, zeros, zeros, zeros, zeros, zeros
    for first in range(0, num_classes, OTHERS):
        c = first + tl.arange(0, OTHERS)
        rows, anchors, memory = _counts_of(counts, memory_counts, c, num_classes, HAS_MEMORY)
        rows = tl.maximum(rows, 0)
        all_rows += rows
        all_anchors += anchors
        large_rows += tl.where(rows > limit, rows, 0)
        large_anchors += tl.where(rows > limit, anchors, 0)
        all_memory += tl.where(rows > 0, memory, 0)
        classes += (rows > 0).to(tl.int32)
    tl.store(start_of_key + 2 * num_classes, tl.sum(all_rows, 0))
    tl.store(totals, tl.sum(all_rows, 0))
    tl.store(totals + 1, tl.sum(all_anchors, 0))
    tl.store(totals + 2, tl.sum(large_rows, 0))
    tl.store(totals + 3, tl.sum(large_anchors, 0))
    tl.store(totals + 4, tl.sum(all_memory, 0))
    tl.store(totals + 5, tl.sum(classes, 0))
    total_weight = tl.sum(all_rows, 0).to(tl.float32)
    if weight_sums is not None:
        sums = tl.zeros((OTHERS,), tl.float32)
        for first in range(0, blocks, OTHERS):
            block = first + tl.arange(0, OTHERS)
            sums += tl.load(weight_sums + block, mask=block < blocks, other=0.0)
        total_weight = tl.sum(sums, 0)
    tl.store(scale, tl.where(total_weight == 0, 0.0, 1.0 / total_weight))


@triton.jit
def _place(labels, weight, place, table, i, rows, rows_per_block, num_classes, IN_BATCH: tl.constexpr):
    """The keys of rows i and which row of its key each one is."""
    key, _ = _keys(labels, weight, i, rows, num_classes, IN_BATCH)
    keys = 2 * num_classes + 1 if IN_BATCH else num_classes + 1
    block = i.to(tl.int32) // rows_per_block
    earlier = tl.load(table + block.to(tl.int64) * keys + key, mask=key >= 0, other=0)
    return key, earlier + tl.load(place + i, mask=key >= 0, other=0)


@triton.jit(do_not_specialize=["rows", "rows_per_block", "memory_rows", "memory_rows_per_block", "num_classes"])
def _place_rows(
    labels, weight, place, table, memory_labels, memory_place, memory_table, memory_counts,
    start_of_key, memory_start_of_class, rank, order, memory_order,
    rows, rows_per_block, memory_rows, memory_rows_per_block, num_classes,
    HAS_MEMORY: tl.constexpr, PLACED: tl.constexpr,
):  # fmt: skip
    """PLACED rows of the batch in each program, then those of the memory."""
    program, programs = tl.program_id(0), tl.cdiv(rows, PLACED)
    if program < programs:
        i = program.to(tl.int64) * PLACED + tl.arange(0, PLACED)
        key, nth = _place(labels, weight, place, table, i, rows, rows_per_block, num_classes, True)
        position = nth + tl.load(start_of_key + key, mask=key >= 0, other=0)
        tl.store(order + position, i.to(tl.int32), mask=key >= 0)
        tl.store(rank + position, -1, mask=key == 2 * num_classes)
    elif HAS_MEMORY:
        i = (program - programs).to(tl.int64) * PLACED + tl.arange(0, PLACED)
        key, nth = _place(
            memory_labels, None, memory_place, memory_table, i, memory_rows, memory_rows_per_block, num_classes, False
        )
        used = (key >= 0) & (key < num_classes)
        labelled = memory_rows - tl.load(memory_counts + num_classes)
        position = nth + tl.load(memory_start_of_class + key, mask=used, other=0) + tl.where(used, 0, labelled)
        tl.store(memory_order + position, i.to(tl.int32), mask=key >= 0)


def sorted_layout(
    labels: Tensor, weight: Tensor | None, memory_labels: Tensor, num_classes: int | None, limit: int
) -> Layout:
    """The layout by sorting, for any labels; with one rank for every row."""
    count, dtype = len(labels), _narrowest(num_classes)
    by_label, row = _sort_keys(labels, num_classes, dtype).sort(stable=True)
    used = by_label != _NONE
    weights = used.float() if weight is None else torch.where(used, weight[row], 0.0)
    is_anchor, labelled = weights > 0, used.sum()
    new = used & torch.cat([used[:1], by_label[1:] != by_label[:-1]])
    class_of = new.cumsum(0) - 1
    position = torch.arange(count, device=labels.device)
    # Where each class begins; those that do not exist begin where the last one ends. Other rows meet in one more slot.
    first = labelled.repeat(count + 2)
    first = first.scatter_(0, torch.where(new, class_of, count + 1), position)[:-1]
    anchors_before = torch.cat([position.new_zeros(1), is_anchor.cumsum(0)])
    first_anchor = anchors_before[first]
    size, active = first.diff(), first_anchor.diff()
    size, class_at = size.sort(descending=True, stable=True)
    active = active[class_at]
    start, anchor_start = size.cumsum(0) - size, active.cumsum(0) - active
    rank_of_class = torch.empty_like(class_at).scatter_(0, class_at, position)

    rank = rank_of_class[class_of]
    nth_anchor = anchors_before[:-1] - first_anchor[class_of]
    nth_other = position - first[class_of] - nth_anchor
    place = start[rank] + torch.where(is_anchor, nth_anchor, active[rank] + nth_other)
    place = torch.where(used, place, position)
    # Rows that are no anchors meet in one more slot, which is cut off.
    anchor_place = torch.where(is_anchor, anchor_start[rank] + nth_anchor, count)
    anchors = torch.empty(count + 1, dtype=torch.int64, device=labels.device).scatter_(0, anchor_place, place)[:count]
    order = torch.empty_like(row).scatter_(0, place, row)
    ranks = torch.empty_like(row).scatter_(0, place, torch.where(used, rank, -1))

    *memory, in_batch = _sorted_memory(_sort_keys(memory_labels, num_classes, dtype), by_label, first, rank_of_class)
    large = size > limit
    totals = torch.stack([labelled, is_anchor.sum(), (size * large).sum(), (active * large).sum(), in_batch, new.sum()])
    total_weight = weights.sum(0, keepdim=True)
    scale = torch.where(total_weight == 0, 0.0, 1 / total_weight)
    parts = (order, ranks, anchors, start, size, active, *memory, totals)
    return Layout._make([*(x.int() for x in parts), scale])


def _sorted_memory(
    labels: Tensor, by_label: Tensor, first: Tensor, rank_of_class: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Memory rows of these keys by rank, where each rank's begin, how many they are, and how many there are in all."""
    if len(labels) == 0:
        none = torch.zeros_like(rank_of_class)
        return labels, none, none, labels.sum()
    count = len(by_label)
    in_memory, in_batch = _same_labels(labels, by_label, first)
    memory_rank = torch.where(in_batch, rank_of_class[in_memory], count) if count else in_memory
    by_rank, order = memory_rank.sort(stable=True)
    ends = torch.searchsorted(by_rank, torch.arange(count, device=labels.device), right=True)
    start = torch.cat([ends.new_zeros(1), ends])[:count]
    return order, start, ends - start, in_batch.sum()


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
    names = {name for kernel in (_count_keys, _sum_blocks, _rank_classes, _place_rows) for name in kernel.arg_names}
    numbers = {"rows", "keys", "blocks", "rows_per_block", "num_classes", "limit"}
    numbers |= {f"memory_{name}" for name in numbers}
    types = {name: "*i32" for name in names - numbers} | {"labels": "*i64", "memory_labels": "*i64"}
    types |= {name: "*fp32" for name in ("weight", "weight_sums", "scale")}
    weightless = {"weight": None, "weight_sums": None}
    uses = {"": (False, {}), "without weights": (False, weightless), "memory": (True, {})}
    for options in tables.entries("layout", architecture, 4).values():
        own = {_count_keys: ("BLOCK", "num_warps"), _rank_classes: ("CLASSES", "OTHERS"), _place_rows: ("PLACED",)}
        launches = {kernel: {name: options[name] for name in names} for kernel, names in own.items()}
        launches[_sum_blocks] = {"KEYS": _KEYS, "BLOCKS": _BLOCKS}
        for use, (has_memory, absent) in uses.items():
            for kernel, launch in launches.items():
                absent_here = {name: None for name in absent if name in kernel.arg_names}
                yield specialize(kernel, types, {"HAS_MEMORY": has_memory} | absent_here, launch, description=use)
