"""Classes of more rows than one tile, and any class with a memory: a log-sum-exp pass, then a gradient pass.

Formulas and names are those of `one_tile`. Rows come in the order of their classes (`layout`), so that the pairs of a
tile of rows are one range of columns, whatever number of classes the tile touches:

    columns     | class A          | class B |          | memory of A | memory of B |
    rows  of A    [#######]
    tile  of B             [#######]                         masked where labels differ, and on the diagonal

    prepare         read a, p; write scaled rows in order, padded; ‖a‖, ‖p‖, a_i, u_i    3 · N · D elements
    memory_norms    only with a memory: ‖m‖ of the rows of the batch's classes          up to M · D elements
    log_sum_exp     anchors × columns: running maximum and Σ 2^x → loss, lse            2 · pairs · D FLOP
    row_losses      only where columns were split: the same, over the splits            splits · N numbers
    gradient        rows × columns: S again, C Z, both gradients                        4 · pairs · D FLOP
    add_splits      only where columns were split: Σ over the splits                    splits · N · D · 4 bytes

`pairs` counts anchors only in the first product. A tile of `gradient` owns its rows and BLOCK_V columns of D: nothing
is read, changed and written again, nothing added atomically; D beyond BLOCK_V recomputes S for each chunk. Scaled rows
(`contrast`) are written once so that the tiles of both passes come through tensor descriptors (TMA on NVIDIA from
sm_90). Rows of the memory are read where they are and scaled as they are loaded, since a second memory would be a large
one; many of them against few anchors are split over programs.

How many rows there are to do is known on the device only: there are as many programs as run at once, each takes every
so many'th tile, and without large classes all end at once.

Meant for compute-bound shapes: 6 · pairs · D FLOP against 7 · N · D elements. Measured times: docs/gpu.md.
"""

from collections.abc import Iterator

import triton
import triton.language as tl

from icckd.kernels import tables
from icckd.kernels.contrast import (
    ALIGNED,
    LOG2_E,
    add_exponents,
    argument_types,
    half_unit,
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
from icckd.kernels.precision import matmul, rounded
from icckd.kernels.specialization import ELEMENTS, Specialization, specialize

# Positions that `prepare` fills in behind the last row of large classes: no tile of columns is larger.
MARGIN = tl.constexpr(256)
# The product of two rows that are no pair: 2 to its power is 0, and 0 times it is 0.
NO_PAIR = tl.constexpr(-1e38)


@triton.jit
def _tiles(large, labelled, rows, BLOCK: tl.constexpr):
    """Tiles with rows of large classes; those without work behind them, before the ignored rows; all with work."""
    busy = tl.cdiv(large, BLOCK)
    idle = tl.maximum(labelled // BLOCK - busy, 0)
    return busy, idle, tl.maximum(tl.cdiv(rows, BLOCK) - idle, busy)


@triton.jit(do_not_specialize=["rows"])
def prepare(
    anchor, positive, order, rank, start, active, totals, weight, scale, upstream,
    z, inverse, mantissas, positive_inverse, agreement, factor, lse_bits, losses, lse,
    anchor_stride, positive_stride, rows, dim, padded,
    NORMALIZE: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The scaled rows of large classes, in order; 1/norms, a_i and the weight u_i in the gradient, by position.

    Of rows that are no anchors u_i = 0, `lse_bits` is +∞, and losses and lse are 0, those of ignored rows too. With
    `upstream` lse is given, and so all `lse_bits`. Behind the last row MARGIN positions are filled in alike.
    """
    labelled, large = tl.load(totals), tl.load(totals + 2)
    # Where there are rows: a tile of columns may reach beyond the last one.
    written = large + tl.where(large > 0, MARGIN, 0)
    busy, idle, tiles = _tiles(written, labelled, rows, BLOCK)
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), disable_licm=True):
        position = tl.where(tile < busy, tile, tile + idle) * BLOCK + tl.arange(0, BLOCK)
        valid, ignored = position < large, (position >= labelled) & (position < rows)
        row = tl.load(order + position, mask=valid | ignored, other=0)
        class_rank = tl.load(rank + position, mask=valid, other=0)
        is_anchor = valid & (position < tl.load(start + class_rank) + tl.load(active + class_rank))
        squares = tl.zeros((BLOCK,), tl.float32)
        positive_squares = tl.zeros((BLOCK,), tl.float32)
        products = tl.zeros((BLOCK,), tl.float32)
        for first in range(0, dim, BLOCK_K):
            a = load_chunk(anchor, anchor_stride, row, valid, first, dim, BLOCK_K).to(tl.float32)
            p = load_chunk(positive, positive_stride, row, is_anchor, first, dim, BLOCK_K).to(tl.float32)
            squares += tl.sum(a * a, 1)
            positive_squares += tl.sum(p * p, 1)
            products += tl.sum(a * p, 1)
        norm, positive_norm = inverse_norm(squares, NORMALIZE), inverse_norm(positive_squares, NORMALIZE)
        tl.store(inverse + position, norm, mask=valid)
        tl.store(mantissas + position, mantissa(norm), mask=position < written)
        tl.store(positive_inverse + position, positive_norm, mask=valid)
        tl.store(agreement + position, products * norm * positive_norm, mask=valid)
        u = row_factor(weight, scale, row, is_anchor)
        if upstream is None:
            tl.store(losses + row, tl.zeros((BLOCK,), tl.float32), mask=(valid & ~is_anchor) | ignored)
            tl.store(lse + row, tl.zeros((BLOCK,), tl.float32), mask=(valid & ~is_anchor) | ignored)
            infinity = tl.full((BLOCK,), float("inf"), tl.float32)
            tl.store(lse_bits + position, infinity, mask=(position < written) & ~is_anchor)
        else:
            u *= tl.load(upstream + row, mask=is_anchor, other=0.0)
            lse_i = tl.load(lse + row, mask=is_anchor, other=float("inf"))
            tl.store(lse_bits + position, lse_i * LOG2_E, mask=position < written)
        tl.store(factor + position, u, mask=position < written)
        for first in range(0, padded, BLOCK_K):
            a = load_chunk(anchor, anchor_stride, row, valid, first, dim, BLOCK_K).to(tl.float32)
            a *= power_of_two(norm)[:, None]
            column = first + tl.arange(0, BLOCK_K)
            at = z + position.to(tl.int64)[:, None] * padded + column[None, :]
            mask = (position < tl.minimum(written, rows))[:, None] & (column < padded)[None, :]
            tl.store(at, rounded(a, z.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows"])
def memory_norms(
    memory, memory_order, totals, memory_inverse, memory_stride, rows, dim,
    NORMALIZE: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """1/norms of the memory rows of the batch's classes, by their position."""
    used = tl.load(totals + 4)
    if tl.program_id(0) * BLOCK >= used:
        return
    position = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = position < used
    squares = tl.zeros((BLOCK,), tl.float32)
    if NORMALIZE:
        row = tl.load(memory_order + position, mask=valid, other=0)
        for first in range(0, dim, BLOCK_K):
            m = load_chunk(memory, memory_stride, row, valid, first, dim, BLOCK_K).to(tl.float32)
            squares += tl.sum(m * m, 1)
    tl.store(memory_inverse + position, inverse_norm(squares, NORMALIZE), mask=valid)


@triton.jit
def _columns(low, high, memory_low, memory_high, split, splits, BLOCK_N: tl.constexpr, HAS_MEMORY: tl.constexpr):
    """This split's share of the tiles: first and last column of the batch, then of the memory."""
    if not HAS_MEMORY:
        # One tile at least, if of no pairs: wgmma would wait for every single one in a loop that may be empty.
        return low, tl.maximum(high, low + 1), low, low
    tiles = tl.cdiv(high - low, BLOCK_N)
    share = tl.cdiv(tiles + tl.cdiv(memory_high - memory_low, BLOCK_N), splits)
    begin, end = split * share, (split + 1) * share
    return (
        low + tl.minimum(begin, tiles) * BLOCK_N,
        tl.minimum(low + tl.minimum(end, tiles) * BLOCK_N, high),
        memory_low + tl.maximum(begin - tiles, 0) * BLOCK_N,
        tl.minimum(memory_low + tl.maximum(end - tiles, 0) * BLOCK_N, memory_high),
    )


@triton.jit
def _scaled_chunk(memory, stride, row, valid, inverse, first, dim, dtype: tl.constexpr, BLOCK_K: tl.constexpr):
    """Columns first … first + BLOCK_K of memory rows, scaled as they are loaded."""
    m = load_chunk(memory, stride, row, valid, first, dim, BLOCK_K).to(tl.float32)
    return rounded(m * power_of_two(inverse)[:, None], dtype)


@triton.jit
def _lanes(x, HALVES: tl.constexpr):
    """Columns by which of 8 · HALVES sums they enter (rows, sums / 8, columns / sums, 8): one thread has all of a sum.

    wgmma and mma give a thread two of every eight columns. HALVES: 2 where there are twice as many warps as rows ask
    for (16 a warp), each then having half of the columns; 1 otherwise.
    """
    return tl.reshape(x, (x.shape[0], HALVES, x.shape[1] // (8 * HALVES), 8))


@triton.jit
def _over_lanes(sums):
    """The sums of rows, from those of lanes."""
    return tl.sum(tl.sum(sums, 2), 1)


@triton.jit
def _add_similarities(highest, total, x, scale):
    """Every lane's running maximum and Σ 2^((x − maximum) · scale) after one more tile; x = −∞ where no pair is."""
    x = _lanes(x, 1)
    higher = tl.maximum(highest, tl.max(x, 2))
    # Finite also where there has been no pair: −∞ − (−∞) is not a number.
    shift = tl.where(higher == float("-inf"), 0.0, higher) * scale
    total = total * tl.exp2(highest * scale - shift) + tl.sum(tl.exp2(x * scale - shift[:, :, None, :]), 2)
    return higher, total


@triton.jit
def _store_losses(order, factor, losses, lse, lse_bits, position, valid, negatives, own):
    """Anchors' losses and lse, by row, lse · log2 e by position; from log2 Σ 2^x_ij over all negatives, and κ a_i."""
    row = tl.load(order + position, mask=valid, other=0)
    loss = row_loss(negatives)
    tl.store(losses + row, tl.load(factor + position, mask=valid, other=0.0) * loss, mask=valid)
    tl.store(lse + row, own + loss, mask=valid)
    tl.store(lse_bits + position, (own + loss) * LOG2_E, mask=valid)


@triton.jit(do_not_specialize=["rows", "splits"])
def log_sum_exp(
    z, z_tiles, mantissas, agreement, anchors, order, rank, start, size, totals, temperature, factor,
    losses, lse, lse_bits, negatives,
    memory, memory_order, memory_start, memory_size, memory_inverse, memory_stride,
    rows, dim, padded, splits,
    HAS_MEMORY: tl.constexpr, SPLIT: tl.constexpr, ONE_CHUNK: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Loss and lse of the anchors, by row; lse · log2 e by position.

    SPLIT: log2 Σ 2^x_ij over this split's negatives into `negatives` (splits, N) instead, for `row_losses`.
    """
    count = tl.load(totals + 3)
    scale = LOG2_E / number(temperature)
    split = tl.program_id(1)
    for tile in range(tl.program_id(0), tl.cdiv(count, BLOCK_M), tl.num_programs(0)):
        first = tile * BLOCK_M
        i = first + tl.arange(0, BLOCK_M)
        valid = i < count
        position = tl.load(anchors + i, mask=valid, other=0)
        first_position = tl.load(anchors + first)
        last_position = tl.load(anchors + tl.minimum(first + BLOCK_M, count) - 1)
        first_rank, last_rank = tl.load(rank + first_position), tl.load(rank + last_position)
        one_class = (first_rank == last_rank) & (first + BLOCK_M <= count)
        class_rank = tl.load(rank + position, mask=valid, other=0)
        begin = tl.load(start + class_rank)
        end = tl.where(valid, begin + tl.load(size + class_rank), begin)
        low, high = tl.load(start + first_rank), tl.load(start + last_rank) + tl.load(size + last_rank)
        memory_low, memory_high = low, low
        if HAS_MEMORY:
            memory_low = tl.load(memory_start + first_rank)
            memory_high = tl.load(memory_start + last_rank) + tl.load(memory_size + last_rank)
        low, high, memory_low, memory_high = _columns(
            low, high, memory_low, memory_high, split, splits, BLOCK_N, HAS_MEMORY
        )

        mantissa_i = tl.load(mantissas + position, mask=valid, other=1.0)
        a = tl.load(agreement + position, mask=valid, other=0.0)
        highest = tl.full((BLOCK_M, 1, 8), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK_M, 1, 8), tl.float32)
        zi = load_chunk(z, padded, position, valid, 0, padded, BLOCK_K)
        for first_column in range(low, high, BLOCK_N):
            j = first_column + tl.arange(0, BLOCK_N)
            s = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
            if ONE_CHUNK:
                s = matmul(zi, z_tiles.load([first_column, 0]).T, s, PRECISION)
            else:
                for k in range(0, padded, BLOCK_K):
                    chunk = load_chunk(z, padded, position, valid, k, padded, BLOCK_K)
                    s = matmul(chunk, z_tiles.load([first_column, k]).T, s, PRECISION)
            mantissa_j = tl.load(mantissas + j)
            x = s * mantissa_j[None, :] * mantissa_i[:, None] - a[:, None]
            beside = (first_column + BLOCK_N <= first_position) | (first_column > last_position)
            if not (one_class & beside & (first_column + BLOCK_N <= high)):
                pair = (j[None, :] >= begin[:, None]) & (j[None, :] < end[:, None]) & (j[None, :] != position[:, None])
                x = tl.where(pair, x, float("-inf"))
            highest, total = _add_similarities(highest, total, x, scale)
        if HAS_MEMORY:
            begin = tl.load(memory_start + class_rank)
            end = tl.where(valid, begin + tl.load(memory_size + class_rank), begin)
            for first_column in range(memory_low, memory_high, BLOCK_N):
                j = first_column + tl.arange(0, BLOCK_N)
                row = tl.load(memory_order + j, mask=j < memory_high, other=0)
                m_inverse = tl.load(memory_inverse + j, mask=j < memory_high, other=0.0)
                s = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
                for k in range(0, padded, BLOCK_K):
                    chunk = load_chunk(z, padded, position, valid, k, padded, BLOCK_K)
                    m = _scaled_chunk(
                        memory, memory_stride, row, j < memory_high, m_inverse, k, dim, chunk.dtype, BLOCK_K
                    )
                    s = matmul(chunk, tl.trans(m), s, PRECISION)
                x = s * mantissa(m_inverse)[None, :] * mantissa_i[:, None] - a[:, None]
                pair = (j[None, :] >= begin[:, None]) & (j[None, :] < end[:, None])
                highest, total = _add_similarities(highest, total, tl.where(pair, x, float("-inf")), scale)
        top = tl.max(tl.max(highest, 2), 1)
        shift = tl.where(top == float("-inf"), 0.0, top) * scale
        # No pair at all leaves −∞ + log2 0 = −∞.
        sum_ = top * scale + tl.log2(_over_lanes(total * tl.exp2(highest * scale - shift[:, None, None])))
        if SPLIT:
            tl.store(negatives + split * rows + position, sum_, mask=valid)
        else:
            _store_losses(order, factor, losses, lse, lse_bits, position, valid, sum_, a / number(temperature))


@triton.jit(do_not_specialize=["rows", "splits"])
def row_losses(
    anchors, order, totals, temperature, agreement, factor, losses, lse, lse_bits, negatives, rows, splits,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """What `log_sum_exp` leaves to do where it split the columns."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = i < tl.load(totals + 3)
    position = tl.load(anchors + i, mask=valid, other=0)
    highest = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for split in range(0, splits):
        x = tl.load(negatives + split * rows + position, mask=valid, other=float("-inf"))
        highest, total = add_exponents(highest, total, x[:, None])
    own = tl.load(agreement + position, mask=valid, other=0.0) / number(temperature)
    _store_losses(order, factor, losses, lse, lse_bits, position, valid, highest + tl.log2(total), own)


@triton.jit(do_not_specialize=["rows", "splits"])
def gradient(
    anchor, positive, z_rows, z_columns, z_chunk, order, rank, start, size, active, totals, temperature,
    lse_bits, factor, largest_factor, inverse, mantissas, positive_inverse, agreement,
    memory, memory_order, memory_start, memory_size, memory_inverse,
    d_anchor, d_positive, d_kappa, pulls, sums,
    anchor_stride, positive_stride, memory_stride, rows, dim, padded, splits,
    NORMALIZE: tl.constexpr, HAS_MEMORY: tl.constexpr, SPLIT: tl.constexpr, ONE_CHUNK: tl.constexpr,
    NEED_ANCHOR: tl.constexpr, NEED_POSITIVE: tl.constexpr, NEED_TEMPERATURE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Both gradients of a tile of rows, BLOCK_V columns of D; of ignored rows 0. dκ by row.

    SPLIT: into `pulls` (splits, N, D) and `sums` (3, splits, N) instead, for `add_splits`.
    """
    # Registers for so many accumulators are those of eight warps.
    HALVES: tl.constexpr = 2 if BLOCK_M == 64 and BLOCK_V == 512 else 1
    labelled, large = tl.load(totals), tl.load(totals + 2)
    split, first_v = tl.program_id(2), tl.program_id(1) * BLOCK_V
    kappa = 1.0 / number(temperature)
    unit = 1.0
    if d_anchor.dtype.element_ty == tl.float16:
        # It has no room for small numbers: bring the largest near its own largest.
        unit = half_unit(tl.load(largest_factor))
    busy, idle, tiles = _tiles(large, labelled, rows, BLOCK_M)
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), disable_licm=True):
        first = tl.where(tile < busy, tile, tile + idle) * BLOCK_M
        position = first + tl.arange(0, BLOCK_M)
        valid, ignored = position < large, (position >= labelled) & (position < rows)
        class_rank = tl.load(rank + position, mask=valid, other=0)
        begin = tl.load(start + class_rank)
        last_anchor = begin + tl.load(active + class_rank)
        end = tl.where(valid, begin + tl.load(size + class_rank), begin)
        is_anchor = valid & (position < last_anchor)
        lse_i = tl.load(lse_bits + position, mask=valid, other=float("inf"))
        factor_i = tl.load(factor + position, mask=valid, other=0.0) * (1.0 / unit)

        # The class of a tile without anchors pulls by its anchors only, which come first in it.
        low, high, memory_low, memory_high, one_class = 0, 0, 0, 0, False
        if first < large:
            first_rank, last_rank = tl.load(rank + first), tl.load(rank + tl.minimum(first + BLOCK_M, large) - 1)
            one_class = (first_rank == last_rank) & (first + BLOCK_M <= large)
            some = tl.max(is_anchor.to(tl.int32), 0) > 0
            low = tl.load(start + first_rank)
            rows_of_last = tl.where(some, tl.load(size + last_rank), tl.load(active + last_rank))
            high = tl.load(start + last_rank) + rows_of_last
            if HAS_MEMORY:
                memory_low = tl.load(memory_start + first_rank)
                memory_high = tl.load(memory_start + last_rank) + tl.load(memory_size + last_rank)
                memory_high = tl.where(some, memory_high, memory_low)
        low, high, memory_low, memory_high = _columns(
            low, high, memory_low, memory_high, split, splits, BLOCK_N, HAS_MEMORY
        )

        pull = tl.zeros((BLOCK_M, BLOCK_V), tl.float32)
        pairs = tl.zeros((BLOCK_M, HALVES, 8), tl.float32)
        along = tl.zeros((BLOCK_M, HALVES, 8), tl.float32)
        slope = tl.zeros((BLOCK_M, HALVES, 8), tl.float32)
        mantissa_i = tl.load(mantissas + position, mask=valid, other=1.0)
        scale_i = mantissa_i * (kappa * LOG2_E)
        if not HAS_MEMORY:
            tl.assume(low < high)
        zi = z_rows.load([first, 0])
        for first_column in range(low, high, BLOCK_N):
            j = first_column + tl.arange(0, BLOCK_N)
            s = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
            if ONE_CHUNK:
                zj = z_columns.load([first_column, 0])
                s = matmul(zi, zj.T, s, PRECISION)
            else:
                for k in range(0, padded, BLOCK_K):
                    s = matmul(z_rows.load([first, k]), z_columns.load([first_column, k]).T, s, PRECISION)
            beside = (first_column + BLOCK_N <= first) | (first_column >= first + BLOCK_M)
            if not (one_class & beside & (first_column + BLOCK_N <= high)):
                pair = (j[None, :] >= begin[:, None]) & (j[None, :] < end[:, None]) & (j[None, :] != position[:, None])
                s = tl.where(pair, s, NO_PAIR)
            mantissa_j = tl.load(mantissas + j)
            bits = s * (scale_i[:, None] * mantissa_j[None, :])
            share = tl.exp2(bits - lse_i[:, None])
            pairs += tl.sum(_lanes(share, HALVES), 2)
            if NEED_TEMPERATURE:
                slope += tl.sum(_lanes(share * (s * mantissa_j[None, :]), HALVES), 2)
            if NEED_ANCHOR:
                lse_j, factor_j = tl.load(lse_bits + j), tl.load(factor + j) * (1.0 / unit)
                c = factor_i[:, None] * share + factor_j[None, :] * tl.exp2(bits - lse_j[None, :])
                c *= mantissa_j[None, :]
                if NORMALIZE:
                    along += tl.sum(_lanes(c * s, HALVES), 2)
                c = rounded(c, zi.dtype)
                if ONE_CHUNK:
                    pull = matmul(c, zj, pull, PRECISION)
                else:
                    pull = matmul(c, z_chunk.load([first_column, first_v]), pull, PRECISION)
        if HAS_MEMORY:
            begin = tl.load(memory_start + class_rank)
            end = tl.where(is_anchor, begin + tl.load(memory_size + class_rank), begin)
            for first_column in range(memory_low, memory_high, BLOCK_N):
                j = first_column + tl.arange(0, BLOCK_N)
                row = tl.load(memory_order + j, mask=j < memory_high, other=0)
                m_inverse = tl.load(memory_inverse + j, mask=j < memory_high, other=0.0)
                s = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
                for k in range(0, padded, BLOCK_K):
                    m = _scaled_chunk(memory, memory_stride, row, j < memory_high, m_inverse, k, dim, zi.dtype, BLOCK_K)
                    s = matmul(z_rows.load([first, k]), tl.trans(m), s, PRECISION)
                pair = (j[None, :] >= begin[:, None]) & (j[None, :] < end[:, None])
                mantissa_j = mantissa(m_inverse)
                s = tl.where(pair, s, NO_PAIR)
                share = tl.exp2(s * (scale_i[:, None] * mantissa_j[None, :]) - lse_i[:, None])
                pairs += tl.sum(_lanes(share, HALVES), 2)
                if NEED_TEMPERATURE:
                    slope += tl.sum(_lanes(share * (s * mantissa_j[None, :]), HALVES), 2)
                if NEED_ANCHOR:
                    c = factor_i[:, None] * share * mantissa_j[None, :]
                    if NORMALIZE:
                        along += tl.sum(_lanes(c * s, HALVES), 2)
                    c = rounded(c, zi.dtype)
                    m = _scaled_chunk(
                        memory, memory_stride, row, j < memory_high, m_inverse, first_v, dim, c.dtype, BLOCK_V
                    )
                    pull = matmul(c, m, pull, PRECISION)

        pairs = factor_i * _over_lanes(pairs) * unit
        slope = factor_i * _over_lanes(slope) * mantissa_i * unit
        along, pull = _over_lanes(along) * mantissa_i * unit, pull * unit
        if SPLIT:
            at = split * rows + position
            column = first_v + tl.arange(0, BLOCK_V)
            place = at.to(tl.int64)[:, None] * dim + column[None, :]
            tl.store(pulls + place, pull, mask=valid[:, None] & (column < dim)[None, :])
            if first_v == 0:
                tl.store(sums + at, pairs, mask=valid)
                tl.store(sums + splits * rows + at, along, mask=valid)
                tl.store(sums + 2 * splits * rows + at, slope, mask=valid)
        else:
            _finish(
                anchor, positive, anchor_stride, positive_stride, order, inverse, positive_inverse, agreement,
                d_anchor, d_positive, d_kappa, position, valid, is_anchor, ignored, first_v, dim,
                pull, pairs, along, slope, kappa,
                NORMALIZE, NEED_ANCHOR, NEED_POSITIVE, NEED_TEMPERATURE, BLOCK_V,
            )  # fmt: skip


@triton.jit(do_not_specialize=["rows", "splits"])
def add_splits(
    anchor, positive, order, rank, start, active, totals, temperature, inverse, positive_inverse, agreement,
    d_anchor, d_positive, d_kappa, pulls, sums, anchor_stride, positive_stride, rows, dim, splits,
    NORMALIZE: tl.constexpr,
    NEED_ANCHOR: tl.constexpr, NEED_POSITIVE: tl.constexpr, NEED_TEMPERATURE: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The gradients from what the splits of `gradient` left, added in their order."""
    labelled, large = tl.load(totals), tl.load(totals + 2)
    position = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid, ignored = position < large, (position >= labelled) & (position < rows)
    class_rank = tl.load(rank + position, mask=valid, other=0)
    is_anchor = valid & (position < tl.load(start + class_rank) + tl.load(active + class_rank))
    first_v = tl.program_id(1) * BLOCK_K
    column = first_v + tl.arange(0, BLOCK_K)
    pull = tl.zeros((BLOCK, BLOCK_K), tl.float32)
    pairs = tl.zeros((BLOCK,), tl.float32)
    along = tl.zeros((BLOCK,), tl.float32)
    slope = tl.zeros((BLOCK,), tl.float32)
    for split in range(0, splits):
        at = split * rows + position
        place = at.to(tl.int64)[:, None] * dim + column[None, :]
        pull += tl.load(pulls + place, mask=valid[:, None] & (column < dim)[None, :], other=0.0)
        pairs += tl.load(sums + at, mask=valid, other=0.0)
        along += tl.load(sums + splits * rows + at, mask=valid, other=0.0)
        slope += tl.load(sums + 2 * splits * rows + at, mask=valid, other=0.0)
    _finish(
        anchor, positive, anchor_stride, positive_stride, order, inverse, positive_inverse, agreement,
        d_anchor, d_positive, d_kappa, position, valid, is_anchor, ignored, first_v, dim,
        pull, pairs, along, slope, 1.0 / number(temperature),
        NORMALIZE, NEED_ANCHOR, NEED_POSITIVE, NEED_TEMPERATURE, BLOCK_K,
    )  # fmt: skip


@triton.jit
def _finish(
    anchor, positive, anchor_stride, positive_stride, order, inverse, positive_inverse, agreement,
    d_anchor, d_positive, d_kappa, position, valid, is_anchor, ignored, first, dim,
    pull, pairs, along, slope, kappa,
    NORMALIZE: tl.constexpr, NEED_ANCHOR: tl.constexpr, NEED_POSITIVE: tl.constexpr, NEED_TEMPERATURE: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    row = tl.load(order + position, mask=valid | ignored, other=0)
    a = tl.load(agreement + position, mask=valid, other=0.0)
    if NEED_TEMPERATURE:
        tl.store(d_kappa + row, tl.where(is_anchor, slope - pairs * a, 0.0), mask=(valid | ignored) & (first == 0))
    store_gradients(
        anchor, positive, anchor_stride, positive_stride, d_anchor, d_positive, row, valid, is_anchor, ignored,
        first, dim, pull, along, pairs, a,
        tl.load(inverse + position, mask=valid, other=0.0), tl.load(positive_inverse + position, mask=valid, other=0.0),
        kappa, NORMALIZE, NEED_ANCHOR, NEED_POSITIVE, BLOCK_K,
    )  # fmt: skip


def specializations(architecture: str) -> Iterator[Specialization]:
    """Every table entry: in a training step; with a memory also split columns and a temperature to be trained."""
    for element, size in ELEMENTS.items():
        types = argument_types(element)
        common = {"PRECISION": product_precision_of(architecture)}
        wanted = {"NEED_ANCHOR": True, "NEED_POSITIVE": True, "NEED_TEMPERATURE": True}
        step = {"weight": None, "upstream": None}
        backward = {"scale": None, "losses": None}
        for kernel, flags in ((prepare, step), (prepare, backward), (memory_norms, {}), (add_splits, wanted)):
            for options in tables.entries(kernel.__name__, architecture, size).values():
                yield specialize(
                    kernel, types, {"NORMALIZE": True} | flags, options, description=element, divisible=ALIGNED
                )
        for kernel, form in ((log_sum_exp, _log_sum_exp_form), (gradient, _gradient_form)):
            for table, memory in ((kernel.__name__, False), (f"{kernel.__name__}_memory", True)):
                for dim, options in tables.entries(table, architecture, size).items():
                    tiles, constants = form(element, dim, options, memory)
                    yield specialize(
                        kernel,
                        types | tiles | ({} if memory else {"temperature": "fp32"}),
                        common | constants,
                        options,
                        matrix_unit=True,
                        description=f"{element}, D = {dim}" + (", memory" if memory else ""),
                        divisible=ALIGNED,
                    )
    yield specialize(row_losses, argument_types("fp32"), {"BLOCK": 256}, {})


def _log_sum_exp_form(element: str, dim: int, options: tables.Options, memory: bool) -> tuple[dict, dict]:
    """The types of its tiles, and its constants."""
    tiles = {"z_tiles": f"tensordesc<{element}[{options['BLOCK_N']}, {options['BLOCK_K']}]>"}
    absent = ("losses", "lse", "lse_bits") if memory else ("memory", "memory_inverse", "negatives")
    return tiles, {
        "HAS_MEMORY": memory,
        "SPLIT": memory,
        "ONE_CHUNK": dim == options["BLOCK_K"],
        **dict.fromkeys(absent),
    }


def _gradient_form(element: str, dim: int, options: tables.Options, memory: bool) -> tuple[dict, dict]:
    block_m, block_n, block_k, block_v = (options[f"BLOCK_{x}"] for x in "MNKV")
    shapes = {"z_rows": (block_m, block_k), "z_columns": (block_n, block_k), "z_chunk": (block_n, block_v)}
    tiles = {name: f"tensordesc<{element}[{rows}, {columns}]>" for name, (rows, columns) in shapes.items()}
    absent = () if memory else ("memory", "memory_inverse", "pulls", "sums")
    return tiles, {
        "NORMALIZE": True,
        "HAS_MEMORY": memory,
        "SPLIT": memory,
        "ONE_CHUNK": dim == block_k == block_v,
        "NEED_ANCHOR": True,
        "NEED_POSITIVE": True,
        "NEED_TEMPERATURE": memory,
        **dict.fromkeys((*absent, *(() if element == "fp16" else ("largest_factor",)))),
    }
