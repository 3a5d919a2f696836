"""The intra-class loss as people compute it today, each in the way of its kind: (Inputs) → scalar, by autograd.

All but `inf_cl` are the mean of docs/method.md at temperature 0.1 over unit rows; what they compute is compared with
float64 before it is timed.
"""

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

TEMPERATURE = 0.1


@dataclass
class Inputs:
    """anchor, positive (N, D), labels (N,) in [0, classes), gate (N,) of booleans, memory (M, D), memory_labels (M,).

    Peers know of no memory.
    """

    anchor: Tensor
    positive: Tensor
    labels: Tensor
    gate: Tensor
    classes: int
    memory: Tensor | None = None
    memory_labels: Tensor | None = None


Loss = Callable[[Inputs], Tensor]


def dense(x: Inputs) -> Tensor:
    """The N×N matrix of similarities, masked."""
    z, p = normalize(x.anchor, dim=1), normalize(x.positive, dim=1)
    same = (x.labels[:, None] == x.labels[None, :]).fill_diagonal_(False)
    similarity = (z @ z.T / TEMPERATURE).masked_fill(~same, -torch.inf)
    return _mean(similarity.logsumexp(1), (z * p).sum(1) / TEMPERATURE, x.gate)


def loop_over_classes(x: Inputs) -> Tensor:
    """A dense loss for each class in turn, over rows sorted by class."""
    order, sizes = _sorted_by_class(x)
    z, p = (normalize(rows, dim=1).index_select(0, order) for rows in (x.anchor, x.positive))
    negatives = []
    for rows in z.split(sizes.tolist()):
        itself = torch.eye(len(rows), dtype=torch.bool, device=z.device)
        negatives.append((rows @ rows.T / TEMPERATURE).masked_fill(itself, -torch.inf).logsumexp(1))
    return _mean(torch.cat(negatives), (z * p).sum(1) / TEMPERATURE, x.gate[order])


def padded_bmm(x: Inputs) -> Tensor:
    """All classes padded to the largest one's size, as one batch of matrix products."""
    z, p = normalize(x.anchor, dim=1), normalize(x.positive, dim=1)
    slot, sizes = _slots(x)
    longest = int(sizes.max())
    blocks = _blocks(z, slot, len(sizes), longest)
    similarity = torch.bmm(blocks, blocks.mT) / TEMPERATURE
    itself = torch.eye(longest, dtype=torch.bool, device=z.device)
    empty = torch.arange(longest, device=z.device) >= sizes[:, None, None]
    negatives = similarity.masked_fill(itself | empty, -torch.inf).logsumexp(2).flatten().index_select(0, slot)
    return _mean(negatives, (z * p).sum(1) / TEMPERATURE, x.gate)


def padded_by_hand(x: Inputs) -> Tensor:
    """The same with the gradient of docs/method.md in closed form, in place: the fastest eager version we know."""
    return _PaddedByHand.apply(x.anchor, x.positive, x)


class _PaddedByHand(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, anchor: Tensor, positive: Tensor, x: Inputs) -> Tensor:
        kappa = 1 / TEMPERATURE
        slot, sizes = _slots(x)
        longest = int(sizes.max())
        anchor_norm, positive_norm = (t.norm(dim=1, keepdim=True) for t in (anchor, positive))
        z, p = anchor / anchor_norm, positive / positive_norm
        blocks = _blocks(z, slot, len(sizes), longest)
        # Shifted by κ, the largest exponent that unit rows can reach.
        e = torch.bmm(blocks, blocks.mT).sub_(1).mul_(kappa).exp_()
        e.mul_(torch.arange(longest, device=z.device) < sizes[:, None, None])
        e.diagonal(dim1=1, dim2=2).zero_()
        own = kappa * ((z * p).sum(1) - 1)
        total = own.exp() + e.sum(2).flatten().index_select(0, slot)
        gate = x.gate / x.gate.sum()
        weight = gate / total
        loss = (gate * (total.log() - own)).sum()
        if not any(ctx.needs_input_grad):
            return loss
        by_slot = _blocks(weight[:, None], slot, len(sizes), longest)
        e.mul_(by_slot + by_slot.mT)
        agreement = (weight * own.exp() - gate)[:, None]
        dz = torch.bmm(e, blocks).flatten(0, 1).index_select(0, slot).addcmul_(agreement, p).mul_(kappa)
        dp = agreement * z * kappa
        ctx.save_for_backward(
            (dz - z * (z * dz).sum(1, keepdim=True)) / anchor_norm,
            (dp - p * (p * dp).sum(1, keepdim=True)) / positive_norm,
        )
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        d_anchor, d_positive = ctx.saved_tensors
        return grad_loss * d_anchor, grad_loss * d_positive, None


def chunked_by_hand(x: Inputs) -> Tensor:
    """Rows sorted by class, in chunks against the columns of their classes; matrix products by the tuned library.

    The gradient is that of docs/method.md in closed form, from a second pass over the chunks.
    """
    return _ChunkedByHand.apply(x.anchor, x.positive, x)


class _ChunkedByHand(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, anchor: Tensor, positive: Tensor, x: Inputs) -> Tensor:
        kappa = 1 / TEMPERATURE
        order, sizes = _sorted_by_class(x)
        labels, gate = x.labels[order], x.gate[order] / x.gate.sum()
        anchor_norm, positive_norm = (t.norm(dim=1, keepdim=True)[order] for t in (anchor, positive))
        z, p = anchor[order] / anchor_norm, positive[order] / positive_norm
        chunks = _chunks(sizes.tolist())
        own = kappa * (_wide((z * p).sum(1)) - 1)
        total = own.exp()
        for rows, columns in chunks:
            total[rows] += _exponentials(z, labels, rows, columns).sum(1)
        loss = (gate * (total.log() - own)).sum()
        if not any(ctx.needs_input_grad):
            return loss
        weight = gate / total
        dz = torch.empty_like(z)
        for rows, columns in chunks:
            e = _exponentials(z, labels, rows, columns).mul_(weight[rows, None] + weight[columns])
            torch.mm(e.to(z.dtype), z[columns], out=dz[rows])
        agreement = (weight * own.exp() - gate)[:, None]
        dz, dp = kappa * (dz + agreement * p), kappa * agreement * z
        d_anchor = (dz - z * (z * dz).sum(1, keepdim=True)) / anchor_norm
        d_positive = (dp - p * (p * dp).sum(1, keepdim=True)) / positive_norm
        ctx.save_for_backward(*(torch.empty_like(d).index_copy_(0, order, d) for d in (d_anchor, d_positive)))
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        d_anchor, d_positive = ctx.saved_tensors
        return grad_loss * d_anchor, grad_loss * d_positive, None


def _exponentials(z: Tensor, labels: Tensor, rows: slice, columns: slice) -> Tensor:
    """exp(κ (S − 1)) of a chunk; 0 between classes, and where a row meets itself."""
    e = _wide(torch.mm(z[rows], z[columns].T)).sub_(1).mul_(1 / TEMPERATURE).exp_()
    e.mul_(labels[rows, None] == labels[columns])
    itself = torch.arange(rows.start, rows.stop, device=z.device)
    e[itself - rows.start, itself - columns.start] = 0
    return e


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _chunks(sizes: list[int]) -> list[tuple[slice, slice]]:
    """Rows of about the largest class, but 1024 to 4096, and all rows of the classes that they belong to."""
    ends = list(accumulate(sizes))
    length = min(4096, max(1024, *sizes))
    chunks = []
    for first in range(0, ends[-1], length):
        last = min(first + length, ends[-1])
        low, high = bisect_right(ends, first), bisect_right(ends, last - 1)
        chunks.append((slice(first, last), slice(ends[low] - sizes[low], ends[high])))
    return chunks


def flex_attention(attention: Callable[..., Any]) -> Loss:
    """The loss from the log-sum-exp of PyTorch's FlexAttention, which `attention` is, compiled or not.

    Rows are sorted by class, so that the block mask is one range of blocks for each block of rows. The values that
    attention would average are as narrow as can be.
    """
    from torch.nn.attention.flex_attention import AuxRequest

    def loss(x: Inputs) -> Tensor:
        order, sizes = _sorted_by_class(x)
        z, p = (normalize(rows, dim=1).index_select(0, order) for rows in (x.anchor, x.positive))
        nothing = z.new_zeros(1, 1, len(z), _NARROWEST)
        mask = _block_mask(x.labels[order], sizes)
        _, aux = attention(
            z[None, None], z[None, None], nothing,
            block_mask=mask, scale=1 / TEMPERATURE, return_aux=AuxRequest(lse=True),
        )  # fmt: skip
        return _mean(aux.lse[0, 0], (z * p).sum(1) / TEMPERATURE, x.gate[order])

    return loss


# Columns of FlexAttention's values at least, and rows of a block of its mask.
_NARROWEST, _MASK_BLOCK = 16, 128


def _block_mask(labels: Tensor, sizes: Tensor) -> Any:
    """Pairs of one class, but no row with itself, among rows sorted by class."""
    from torch.nn.attention.flex_attention import BlockMask

    rows = len(labels)
    ends = sizes.cumsum(0)
    blocks = torch.arange(-(-rows // _MASK_BLOCK), device=labels.device)
    first_row = blocks * _MASK_BLOCK
    last_row = (first_row + _MASK_BLOCK - 1).clamp(max=rows - 1)
    low = (ends - sizes)[labels[first_row]] // _MASK_BLOCK
    high = (ends[labels[last_row]] - 1) // _MASK_BLOCK
    indices = (low[:, None] + blocks) % len(blocks)

    def same_class(_: Tensor, __: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (labels[i] == labels[j]) & (i != j)

    return BlockMask.from_kv_blocks(
        (high - low + 1).int()[None, None], indices.int()[None, None],
        BLOCK_SIZE=_MASK_BLOCK, mask_mod=same_class, seq_lengths=(rows, rows),
    )  # fmt: skip


def inf_cl(x: Inputs) -> Tensor:
    """Inf-CL's loss of all N² pairs of anchors and positives (package inf-cl): this loss's neighbour, not the same."""
    from inf_cl import cal_inf_loss

    z, p = normalize(x.anchor, dim=1), normalize(x.positive, dim=1)
    return cal_inf_loss(z, p, scale=torch.tensor(1 / TEMPERATURE, device=z.device))


def _sorted_by_class(x: Inputs) -> tuple[Tensor, Tensor]:
    """The order of the rows (N,) and the sizes of the classes (C,)."""
    return x.labels.argsort(stable=True), x.labels.bincount(minlength=x.classes)


def _diagonal_blocks(row_labels: Tensor, column_labels: Tensor, classes: int) -> tuple[Tensor, ...]:
    """KeOps' six range tensors: rows of class c meet columns of class c, both sorted by class."""
    rows, columns = (_class_ranges(labels, classes) for labels in (row_labels, column_labels))
    each_once = torch.arange(1, classes + 1, dtype=torch.int32, device=row_labels.device)
    return rows, each_once, columns, columns, each_once, rows


def _class_ranges(labels: Tensor, classes: int) -> Tensor:
    """(first, last + 1) of every class (C, 2) among rows sorted by class."""
    sizes = labels.bincount(minlength=classes)
    ends = sizes.cumsum(0)
    return torch.stack([ends - sizes, ends], dim=1).int()


def _slots(x: Inputs) -> tuple[Tensor, Tensor]:
    """Where each row (N,) goes when classes are padded to one size and laid end to end; the classes' sizes (C,)."""
    order, sizes = _sorted_by_class(x)
    labels = x.labels[order]
    place = torch.arange(len(order), device=order.device) - (sizes.cumsum(0) - sizes)[labels]
    return torch.empty_like(order).index_copy_(0, order, labels * sizes.max() + place), sizes


def _blocks(rows: Tensor, slot: Tensor, classes: int, longest: int) -> Tensor:
    """(N, D) as (classes, longest, D), zero where a class has no more rows."""
    return rows.new_zeros(classes * longest, rows.shape[1]).index_copy(0, slot, rows).view(classes, longest, -1)


def keops(x: Inputs) -> Tensor:
    """KeOps: similarities that are never stored, each class's block alone by block-sparse ranges (package pykeops)."""
    import pykeops
    from pykeops.torch import LazyTensor

    pykeops.set_verbose(False)
    order, _ = _sorted_by_class(x)
    z, p = (normalize(rows, dim=1).index_select(0, order) for rows in (x.anchor, x.positive))
    anchors = x.gate[order].nonzero().squeeze(1)
    active = z.index_select(0, anchors)
    place = torch.arange(len(order), dtype=z.dtype, device=z.device)
    similarity = (LazyTensor(active[:, None]) * LazyTensor(z[None])).sum(-1) / TEMPERATURE
    distance = (LazyTensor(place[anchors][:, None, None]) - LazyTensor(place[None, :, None])).square()
    # Far below any similarity where a row meets itself, unchanged elsewhere.
    similarity = similarity - 1e6 * (0.5 - distance).step()
    similarity.ranges = _diagonal_blocks(x.labels[order][anchors], x.labels, x.classes)
    negatives = similarity.logsumexp(dim=1)[:, 0]
    return _excess(negatives, (active * p.index_select(0, anchors)).sum(1) / TEMPERATURE).mean()


def metric_learning(x: Inputs) -> Tensor:
    """pytorch-metric-learning's NTXentLoss with every pair listed (package pytorch-metric-learning)."""
    from pytorch_metric_learning.losses import NTXentLoss

    count = len(x.labels)
    anchors = x.gate.nonzero().squeeze(1)
    same = (x.labels[:, None] == x.labels[None, :]).fill_diagonal_(False) & x.gate[:, None]
    first, negative = same.nonzero(as_tuple=True)
    pairs = (anchors, anchors + count, first, negative)
    embeddings = torch.cat([x.anchor, x.positive])
    labels = torch.arange(2 * count, device=embeddings.device)
    return NTXentLoss(temperature=TEMPERATURE)(embeddings, labels, indices_tuple=pairs)


def _excess(negatives: Tensor, own: Tensor) -> Tensor:
    return torch.nn.functional.softplus(negatives - own)


def _mean(negatives: Tensor, own: Tensor, gate: Tensor) -> Tensor:
    return (gate * _excess(negatives, own)).sum() / gate.sum().clamp(min=1)
