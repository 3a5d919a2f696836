"""Adaptive hierarchical similarity in PyTorch operations, on any device, float32 and float64.

With c_a the mean row of class a, S_ab = c_a·c_b for a ≠ b, so that the margins of a chunk of anchors are a product of
its rows' classes with all classes: neither N × N nor C × C numbers are held. Rows are sorted by class: an anchor's own
class then lies in a narrow band of columns, and only that is looked at twice. A chunk has about _TILE similarities, so
that the memory used is O(N·D).

With the shares p_ij = exp(exponent_ij − log(1 + Σ_j exp(exponent_ij))) of an anchor's terms, the gradient of the sum of
the losses with respect to S_ij is −p_ij for a row of its own class, p_ij for another's: the scales cancel.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

# Similarities in one chunk, enough for matrix products at their full speed; and anchors that it has at least.
_TILE, _MIN_ANCHORS = 1 << 21, 32
# The least and the largest product of the mean rows (C, D) of two classes of so many rows (C,).
Extremes = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
# How far apart Ŝ can be, and how many roundings apart similarities of classes still are equal.
_SPREAD, _ROUNDINGS = 0.2, 64


def hierarchical_classes(rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The classes of the batch, numbered without gaps: of every row, mean rows, Ŝ_aa, and how Ŝ_ab comes from means."""
    classes, order, size = number_classes(labels)
    # Looking at a GPU's would wait for it: there are then N classes, most of them without rows.
    count = len(size) if rows.device.type != "cpu" else int((size > 0).sum())
    return classes, *compare_classes(rows, order, size, count, extremes)


def compare_classes(
    rows: Tensor, order: Tensor, size: Tensor, count: int, extremes: Extremes
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean rows, Ŝ_aa, and how Ŝ_ab comes from means, of up to `count` classes that have `size` rows each.

    order: The rows by class, ignored ones first.
    """
    centers, own = rows.new_zeros(rows.shape), rows.new_zeros(len(rows))
    if centers.numel() == 0 or count == 0:
        return centers, own, rows.new_zeros(2)
    size = size[:count]
    # One bag a class, in one order: a scatter on a GPU would add in any. The first has the ignored rows too, zeros.
    begins = (len(rows) - size.sum() + size.cumsum(0) - size).long()
    begins[:1].zero_()  # begins[0] = 0 would copy the number from the host, which waits for a GPU.
    size = size.to(rows.dtype)
    sums = embedding_bag(order, rows, begins, mode="sum")
    squares = embedding_bag(order, rows.square().sum(1, keepdim=True), begins, mode="sum").squeeze(1)
    centers[:count] = sums / size.clamp(min=1)[:, None]
    similarity = (sums.square().sum(1) - squares) / (size * (size - 1)).clamp(min=1)
    between = extremes(centers[:count], size)
    lowest = torch.minimum(torch.where(size > 1, similarity, torch.inf).amin(), between[0])
    highest = torch.maximum(torch.where(size > 1, similarity, -torch.inf).amax(), between[1])
    width = highest - lowest
    factor = torch.where(width > _ROUNDINGS * torch.finfo(rows.dtype).eps, _SPREAD / width, 0)
    offset = torch.where(factor > 0, -factor * lowest, 0)
    own[:count] = torch.where(size > 1, factor * similarity + offset, 0)
    return centers, own, torch.stack([factor, offset])


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
    with torch.autocast(rows.device.type, enabled=False):
        sorted_ = sort(rows, classes, centers, first, count)
        loss, least = rows.new_zeros(()), rows.new_ones(count)
        gradient = torch.zeros_like(sorted_.rows) if need_grad else None
        factor, offset = scale
        step = max(_MIN_ANCHORS, _TILE // max(len(sorted_.rows), 1))
        for anchor in sorted_.anchors.split(step) if len(sorted_.anchors) else ():
            z, of_class = sorted_.rows[anchor], sorted_.classes[anchor]
            band = sorted_.band(of_class)
            same = of_class[:, None] == sorted_.classes[band]
            exponents = torch.addmm(offset - gamma, centers[of_class] * factor, sorted_.centers.T).mul_(negative_scale)
            exponents = exponents.index_select(1, sorted_.classes).addmm_(z * negative_scale, sorted_.rows.T)
            exponents[:, band].masked_fill_(same, -torch.inf)
            other, other_share, other_total = _log_one_plus(exponents)

            similarity = z @ sorted_.rows[band].T
            same &= anchor[:, None] != torch.arange(band.start, band.stop, device=rows.device)
            least[sorted_.source[anchor] - first] = similarity.masked_fill(~same, 1).amin(1)
            exponents = similarity.sub_(gamma + own[of_class][:, None]).mul_(-positive_scale)
            own_loss, own_share, own_total = _log_one_plus(exponents.masked_fill_(~same, -torch.inf))
            loss += own_loss.sum() / positive_scale + other.sum() / negative_scale
            if gradient is not None:
                gradient.addmm_(other_share.T, z / other_total[:, None])
                gradient[band].addmm_(own_share.T, z / -own_total[:, None])
                pull = (other_share @ sorted_.rows).div_(other_total[:, None])
                pull -= (own_share @ sorted_.rows[band]).div_(own_total[:, None])
                gradient.index_add_(0, anchor, pull)
        return loss, least, sorted_.unsorted(gradient, rows) if gradient is not None else rows.new_empty(0)


def largest_exponent(gamma: float, positive_scale: float, negative_scale: float) -> float:
    """No term is the exponential of a larger number: similarities are in [−1, 1], and Ŝ in [0, 0.2]."""
    return max(positive_scale * (1 + gamma + _SPREAD), negative_scale * (1 - gamma + _SPREAD))


class Sorted(NamedTuple):
    """The T labelled rows sorted by class.

    rows, classes: (T, D) and (T,).
    source: Which of the given rows each is (T,).
    anchors: Which of them are anchors (A,).
    centers: The mean rows of their classes (C, D).
    begins: Where each class begins, and the end: C + 1 numbers.
    """

    rows: Tensor
    classes: Tensor
    source: Tensor
    anchors: Tensor
    centers: Tensor
    begins: list[int]

    def band(self, of_class: Tensor) -> slice:
        """Where the rows of these classes, sorted ones, are."""
        lowest, highest = of_class[[0, -1]].tolist()
        return slice(self.begins[lowest], self.begins[highest + 1])

    def unsorted(self, gradient: Tensor, rows: Tensor) -> Tensor:
        return rows.new_zeros(rows.shape).index_copy_(0, self.source, gradient)


def sort(rows: Tensor, classes: Tensor, centers: Tensor, first: int, count: int) -> Sorted:
    """The rows with a class in order; anchors are `count` of the given ones from `first` on."""
    labelled = (classes >= 0).nonzero().squeeze(1)
    source = labelled[classes[labelled].argsort(stable=True)]
    sorted_classes = classes[source]
    size = sorted_classes.bincount()
    anchors = ((source >= first) & (source < first + count)).nonzero().squeeze(1)
    begins = [0, *size.cumsum(0).tolist()]
    return Sorted(rows[source], sorted_classes, source, anchors, centers[: len(size)], begins)


def _log_one_plus(exponents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log(1 + Σ_j exp(exponent_ij)); the shares times a total, in the exponents' place; that total."""
    highest = exponents.amax(1).clamp_(min=0)
    share = exponents.sub_(highest[:, None]).exp_()
    # Less one: the logarithm of a sum near 1 would lose it.
    beyond = share.sum(1) + torch.expm1(-highest)
    return highest + beyond.log1p(), share, beyond + 1


def number_classes(labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each row's class (N,), −1 if it is ignored; rows by class, ignored ones first; how many each class has (N,)."""
    value, order = labels.clamp(min=-1).sort(stable=True)
    labelled = value >= 0
    begins = labelled.clone()
    begins[1:] &= value[1:] != value[:-1]
    number = begins.cumsum(0) - 1
    classes = labels.new_empty(labels.shape).index_copy_(0, order, number)
    size = torch.zeros_like(labels).scatter_add_(0, number.clamp(min=0), labelled.long())
    return classes, order, size


def extremes(centers: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the largest product of the mean rows of two classes that have rows; ∞ and −∞ without any."""
    lowest, highest = centers.new_full((), torch.inf), centers.new_full((), -torch.inf)
    missing = size == 0
    place = torch.arange(len(size), device=size.device)
    with torch.autocast(centers.device.type, enabled=False):
        for some in place.split(max(1, _TILE // len(size))):
            similarity = centers[some] @ centers.T
            no_pair = (some[:, None] == place) | missing[some][:, None] | missing
            lowest = torch.minimum(lowest, similarity.masked_fill(no_pair, torch.inf).amin())
            highest = torch.maximum(highest, similarity.masked_fill_(no_pair, -torch.inf).amax())
    return lowest, highest
