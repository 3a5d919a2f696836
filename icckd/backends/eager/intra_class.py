"""The intra-class contrastive loss in PyTorch operations, on any device, float16 to float64.

Rows are sorted by class, so that the work is Σ_c n_c² and not N². Classes of similar size are padded to one size and
multiplied as a batch; a large class is cut into chunks of anchors. No tile holds more than max(_TILE, _MIN_ANCHORS ·
rows of the largest class) similarities, so that the memory used is O(N·D + M·D).

With x_ij = κ z_i·z_j, a_i = z_i·p_i, P_ij = g_i exp(x_ij − lse_i) and r_i = Σ_j P_ij, the gradients are

    dL/dz_i = κ [ Σ_j P_ij z_j + Σ_j P_ji z_j − r_i p_i ]        dL/dp_i = −κ r_i z_i
    dL/dκ   = Σ_i [ z_i · Σ_j P_ij z_j − r_i a_i ]

and for x = f/‖f‖: df = (dx − x (x·dx)) / ‖f‖. Reading the sizes of the classes synchronises with a GPU.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from icckd.backends.problem import IntraClassProblem, Needs

# Numbers in one tile of similarities, or in the rows gathered for it: what a CPU's cache holds a few times.
_TILE = 1 << 18
# Anchors that a chunk of a large class has at least: fewer would make the matrix products slow.
_MIN_ANCHORS = 64
# Classes are padded together down to this share of the largest one's size.
_SIMILAR = 0.75


def intra_class_rows(problem: IntraClassProblem) -> tuple[Tensor, Tensor]:
    """The weighted loss of every row and its log-sum-exp, both (N,), 0 where a row is no anchor."""
    with torch.autocast(problem.anchor.device.type, enabled=False):
        layout = _sort(problem)
        kappa = 1 / problem.temperature
        negatives = torch.full_like(layout.weight, -torch.inf)
        for block in layout.blocks:
            similarity, _ = _similarity(layout, block, kappa)
            negatives[block.anchors] = similarity.logsumexp(-1)
        own, negatives = kappa * layout.agreement, negatives[layout.anchors]
        rows = layout.weight[layout.anchors] * _excess(negatives, own)
        return layout.unsorted(rows), layout.unsorted(torch.logaddexp(negatives, own))


def intra_class_rows_backward(
    grad_rows: Tensor, lse: Tensor, problem: IntraClassProblem, needs: Needs
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of Σ grad_rows · rows; an empty tensor for each that is not needed."""
    with torch.autocast(problem.anchor.device.type, enabled=False):
        layout = _sort(problem)
        gradient = _Gradient(layout, 1 / problem.temperature, needs)
        upstream = layout.weight * layout.sorted(grad_rows)
        # +inf makes the shares of a row that is no anchor vanish.
        lse = layout.sorted(lse, fill=torch.inf)
        for block in layout.blocks:
            similarity, rows = _similarity(layout, block, gradient.kappa)
            share = similarity.sub_(lse[block.anchors].unsqueeze(-1)).exp_()
            gradient.add(block, rows, share, share.sum(-1), upstream[block.anchors])
        return gradient.of_inputs(problem)


def intra_class_sum(problem: IntraClassProblem, needs: Needs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The weighted sum of the losses, and its gradients; an empty tensor for each that is not needed."""
    with torch.autocast(problem.anchor.device.type, enabled=False):
        layout = _sort(problem)
        gradient = _Gradient(layout, 1 / problem.temperature, needs)
        own = layout.spread(gradient.kappa * layout.agreement)
        negatives = torch.full_like(own, -torch.inf)
        for block in layout.blocks:
            similarity, rows = _similarity(layout, block, gradient.kappa)
            # A finite maximum also where there is no negative: −inf − (−inf) is not a number.
            highest = similarity.amax(-1).clamp_(min=torch.finfo(own.dtype).min)
            share = similarity.sub_(highest.unsqueeze(-1)).exp_()
            total = share.sum(-1)
            log_total = total.log() + highest
            negatives[block.anchors] = log_total
            scale = (highest - torch.logaddexp(log_total, own[block.anchors])).exp()
            gradient.add(block, rows, share, total, layout.weight[block.anchors] * scale)
        excess = _excess(negatives[layout.anchors], own[layout.anchors])
        loss = layout.weight[layout.anchors].dot(excess)
        return loss, *gradient.of_inputs(problem)


@dataclass
class _Block:
    """A tile: some anchors of one class, or all anchors of several classes padded to one size.

    rows: Where the rows of the class (k,), or of each class (B, k), are in the layout; padded with its zero row.
    first, last: Which of them are the anchors. In a padded class some may be no anchors; their weight is 0.
    trained: So many of the first rows may need a gradient; the others are memory.
    padding: Which of the rows are padding (B, 1, k).
    """

    rows: slice | Tensor
    first: int
    last: int
    trained: int
    padding: Tensor | None = None

    @property
    def anchors(self) -> slice | Tensor:
        """Where the anchors (q,) or (B, q) are in the layout."""
        if isinstance(self.rows, slice):
            return slice(self.rows.start + self.first, self.rows.start + self.last)
        return self.rows[:, self.first : self.last]


@dataclass
class _Layout:
    """The T labelled rows of batch and memory sorted by class; within a class anchors first, memory last.

    z: Their unit vectors (T + 1, D); the last row is zero.
    inverse_norm: What they were multiplied by (T + 1, 1); None where rows are taken as they are.
    source: Which row each is (T,): of the batch, or N + that of the memory.
    anchors: Where the A anchors are among them (A,).
    positive, positive_inverse_norm: The same as above of the anchors' positives, (A, D) and (A, 1).
    agreement: a_i = z_i·p_i of the anchors (A,).
    weight: Their weight (T + 1,), 0 where a row is no anchor.
    blocks: Tiles that hold every pair of an anchor and a row of its class exactly once.
    batch_size: N.
    """

    z: Tensor
    inverse_norm: Tensor | None
    source: Tensor
    anchors: Tensor
    positive: Tensor
    positive_inverse_norm: Tensor | None
    agreement: Tensor
    weight: Tensor
    blocks: list[_Block]
    batch_size: int

    def spread(self, values: Tensor, fill: float = 0.0) -> Tensor:
        """The anchors' values (A,) in the layout's order (T + 1,), `fill` where a row is no anchor."""
        return values.new_full((len(self.z),), fill).index_copy_(0, self.anchors, values)

    def sorted(self, values: Tensor, fill: float = 0.0) -> Tensor:
        """The same, from values of the batch (N,)."""
        return self.spread(values[self.source[self.anchors]], fill)

    def unsorted(self, values: Tensor) -> Tensor:
        """The anchors' values (A, …) in the batch's order (N, …), 0 where a row is no anchor."""
        result = values.new_zeros(self.batch_size, *values.shape[1:])
        return result.index_copy_(0, self.source[self.anchors], values)


class _Gradient:
    """The gradients, gathered tile by tile."""

    def __init__(self, layout: _Layout, kappa: Tensor, needs: Needs):
        self.layout, self.kappa, self.needs = layout, kappa, needs
        self.d_z = torch.zeros_like(layout.z) if needs.anchor else None
        self.d_kappa = torch.zeros_like(kappa) if needs.temperature else None
        self.r = torch.zeros_like(layout.weight)

    def add(self, block: _Block, rows: Tensor, share: Tensor, total: Tensor, factor: Tensor) -> None:
        """Add a tile with P = factor · share, given the sum `total` of each row of `share`, which is overwritten."""
        self.r[block.anchors] = factor * total
        if self.d_z is None and self.d_kappa is None:
            return
        p = share.mul_(factor.unsqueeze(-1))
        anchors, attraction = rows[..., block.first : block.last, :], p @ rows
        if self.d_kappa is not None:
            self.d_kappa += (attraction * anchors).sum()
        if self.d_z is None:
            return
        to_rows = p[..., : block.trained].mT
        if isinstance(block.rows, slice):
            d_z = self.d_z[block.rows]
            d_z[: block.trained].addmm_(to_rows, anchors)
            d_z[block.first : block.last] += attraction
        else:
            d_z = to_rows @ anchors
            d_z[:, block.first : block.last] += attraction
            self.d_z.index_copy_(0, block.rows[:, : block.trained].flatten(), d_z.flatten(0, 1))

    def of_inputs(self, problem: IntraClassProblem) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of anchor, positive and temperature, once every tile has been added."""
        r = self.r[self.layout.anchors]
        d_anchor, d_positive = problem.anchor.new_empty(0), problem.positive.new_empty(0)
        d_temperature = self.kappa.new_empty(0)
        if self.d_z is not None:
            d_anchor = self._of_anchor(self.d_z, r, problem.anchor)
        if self.needs.positive:
            d_positive = self._of_positive(r).to(problem.positive.dtype)
        if self.d_kappa is not None:
            d_temperature = (r.dot(self.layout.agreement) - self.d_kappa) * self.kappa * self.kappa
        return d_anchor, d_positive, d_temperature

    def _of_anchor(self, d_z: Tensor, r: Tensor, anchor: Tensor) -> Tensor:
        layout, factor = self.layout, self.kappa
        d_z.index_add_(0, layout.anchors, layout.positive * -r[:, None])
        if layout.inverse_norm is not None:
            d_z.addcmul_(layout.z, (layout.z * d_z).sum(1, keepdim=True), value=-1)
            factor = self.kappa * layout.inverse_norm
        d_anchor = anchor.new_zeros(anchor.shape)
        trained = (layout.source < layout.batch_size).nonzero().squeeze(1)
        return d_anchor.index_copy_(0, layout.source[trained], (d_z * factor)[trained].to(anchor.dtype))

    def _of_positive(self, r: Tensor) -> Tensor:
        layout, factor = self.layout, -self.kappa * r[:, None]
        d_p = layout.z[layout.anchors]
        if layout.positive_inverse_norm is not None:
            d_p.addcmul_(layout.agreement[:, None], layout.positive, value=-1)
            factor = factor * layout.positive_inverse_norm
        return layout.unsorted(d_p * factor)


def _similarity(layout: _Layout, block: _Block, kappa: Tensor) -> tuple[Tensor, Tensor]:
    """x of a tile's anchors with the rows of their class, −inf where they make no pair; and those rows."""
    rows = layout.z[block.rows]
    x = (rows[..., block.first : block.last, :] * kappa) @ rows.mT
    x.diagonal(block.first, -2, -1).fill_(-torch.inf)
    if block.padding is not None:
        x.masked_fill_(block.padding, -torch.inf)
    return x, rows


def _excess(negatives: Tensor, own: Tensor) -> Tensor:
    """ℓ = log(1 + exp(negatives − own)), from the log-sum-exp of the negatives and κ a."""
    return torch.logaddexp(torch.zeros_like(own), negatives - own)


def _sort(problem: IntraClassProblem) -> _Layout:
    anchor, labels, num_classes = problem.anchor, problem.labels, problem.num_classes
    batch_size, dtype = len(labels), torch.promote_types(anchor.dtype, torch.float32)
    weight = anchor_weights(labels, problem.weight, num_classes, dtype, problem.mean)
    is_anchor, candidates = weight > 0, anchor
    if problem.memory is not None and problem.memory_labels is not None:
        candidates = torch.cat([anchor.to(dtype), problem.memory.to(dtype)])
        labels = torch.cat([labels, problem.memory_labels])
        is_anchor = torch.cat([is_anchor, is_anchor.new_zeros(len(problem.memory))])
    labelled = labels >= 0
    if num_classes is not None:
        labelled &= labels < num_classes

    anchors_first = torch.cat([(labelled & is_anchor).nonzero(), (labelled & ~is_anchor).nonzero()]).squeeze(1)
    source = anchors_first[labels[anchors_first].argsort(stable=True)]
    anchors = is_anchor[source].nonzero().squeeze(1)
    anchor_source = source[anchors]
    z = anchor.new_zeros((len(source) + 1, anchor.shape[1]), dtype=dtype)
    z[:-1] = candidates[source]
    z, inverse_norm = _unit(z) if problem.normalize else (z, None)
    p = problem.positive[anchor_source].to(dtype)
    p, positive_inverse_norm = _unit(p) if problem.normalize else (p, None)
    layout = _Layout(
        z=z,
        inverse_norm=inverse_norm,
        source=source,
        anchors=anchors,
        positive=p,
        positive_inverse_norm=positive_inverse_norm,
        agreement=(z[anchors] * p).sum(1),
        weight=weight,
        blocks=list(_blocks(labels[source], source < batch_size, is_anchor[source], anchor.shape[1])),
        batch_size=batch_size,
    )
    layout.weight = layout.sorted(weight)
    return layout


def anchor_weights(
    labels: Tensor, weight: Tensor | None, num_classes: int | None, dtype: torch.dtype, mean: bool = False
) -> Tensor:
    """The weight of every row as an anchor (N,): 1 where there are none, 0 where the row's label takes it out.

    mean: Divided by their sum, unless that is 0.
    """
    used = labels >= 0
    if num_classes is not None:
        used = used & (labels < num_classes)
    weight = used.to(dtype) if weight is None else torch.where(used, weight, 0)
    if not mean:
        return weight
    total = weight.sum()
    return weight / torch.where(total > 0, total, 1)


def _unit(x: Tensor) -> tuple[Tensor, Tensor]:
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    inverse = torch.where(norm > 0, 1 / norm, 0)
    return x * inverse, inverse


def _blocks(labels: Tensor, in_batch: Tensor, is_anchor: Tensor, dim: int) -> Iterator[_Block]:
    """Tiles of the rows with these sorted labels; `dim` numbers a row."""
    _, class_of, sizes = torch.unique_consecutive(labels, return_inverse=True, return_counts=True)
    trained = class_of[in_batch].bincount(minlength=len(sizes))
    anchors = class_of[is_anchor].bincount(minlength=len(sizes))
    starts = sizes.cumsum(0) - sizes
    table = torch.stack([starts, sizes, trained, anchors]).cpu()
    table = table[:, table[3] > 0]
    table = table[:, table[1].argsort(descending=True, stable=True)]
    # The most anchors of a class that is no larger.
    most = table[3].flip(0).cummax(0).values.flip(0).tolist() if table.numel() else []
    starts_, sizes_, trained_, anchors_ = table.tolist()
    negated = [-size for size in sizes_]
    at = 0
    while at < len(sizes_):
        room = _TILE // (sizes_[at] * max(most[at], dim))
        together = min(room, bisect_right(negated, -_SIMILAR * sizes_[at]) - at)
        if together > 1:
            yield _padded(table[:, at : at + together], len(labels), labels.device)
            at += together
            continue
        chunk = max(_MIN_ANCHORS, _TILE // sizes_[at])
        rows = slice(starts_[at], starts_[at] + sizes_[at])
        for first in range(0, anchors_[at], chunk):
            yield _Block(rows, first, min(first + chunk, anchors_[at]), trained_[at])
        at += 1


def _padded(table: Tensor, zero_row: int, device: torch.device) -> _Block:
    """The tile of the classes whose start, size, trained rows and anchors are the columns of `table`."""
    starts, sizes = table[0, :, None], table[1, :, None]
    place = torch.arange(int(sizes.max()))
    padding = place >= sizes
    rows = torch.where(padding, zero_row, starts + place).to(device)
    last, trained = int(table[3].max()), int(table[2].max())
    return _Block(rows, 0, last, trained, padding[:, None].to(device) if padding.any() else None)
