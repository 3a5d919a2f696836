"""What adjusts the weight of the intra-class loss to the spread within classes that comes of it."""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from icckd.functional.sides import unit

if TYPE_CHECKING:
    from icckd.exchange import Ranks

SMALLEST_WEIGHT, LARGEST_WEIGHT = 1e-4, 10.0
# What a class's next image leaves of the weights of earlier ones: as good as the mean of 63 images.
_KEPT = 1 - 1 / 32
# How far the logarithm of the level moves in an epoch for each unit of the error, and how far that of the weight is
# from that of the level.
_RATE, _GAIN = 1.0, 8.0
# A ratio of collapsed classes is taken for this.
_SMALLEST_RATIO = 1e-4


class RatioControl(nn.Module):
    """A weight λ, moved after every step so that intra-class over inter-class distance of the features settles at R.

    The distances are those of the report, estimated of the training images' first views as they were in training: with
    û the unit features, each class c keeps sums of them in which every further image of the class multiplies earlier
    ones' weights by 31/32. With w these weights, q = Σ w² / (Σ w)² and m_c = Σ w û / Σ w,

        intra = mean over c of (1 − |m_c|²) / (1 − q_c)                    the mean of 1 − cos over distinct pairs
        v_c = m_c / √((|m_c|² − q_c) / (1 − q_c)),  |Σ v_c|² − Σ |v_c|² = Σ over pairs of the cosine, so
        inter = 1 − (|Σ v_c|² − Σ |v_c|²) / (C (C − 1))

    over the classes with q_c ≤ 1/2, those met three times, or twice in one step. The corrections by q make both free of
    how few images were seen. Then, with e = log R − log(intra / inter) in [−1, 1], a level l and the share B/N of the
    training images in this step,

        log l ← log l + B/N · e,    log λ = log l + 8 e,    l and λ in [1e-4, 10],

    where the step was taken and had an anchor: without one λ has no effect. A spread once lost or gained is kept for
    long, which is why λ answers the error at once, and the level, which takes the rest of it away, moves slowly. All is
    this project's choice.

    The buffers are all that it remembers; `ratio` is 0 as long as there is no estimate. `images`, N, is to be set.
    """

    weight: Tensor
    level: Tensor
    ratio: Tensor
    sums: Tensor
    counts: Tensor
    squares: Tensor

    def __init__(self, target: float, weight: float, classes: int, dim: int):
        super().__init__()
        self.target = target
        self.images: int | None = None
        self.register_buffer("weight", torch.tensor(weight, dtype=torch.float32))
        self.register_buffer("level", torch.tensor(weight, dtype=torch.float32))
        self.register_buffer("ratio", torch.zeros(()))
        self.register_buffer("sums", torch.zeros(classes, dim))
        self.register_buffer("counts", torch.zeros(classes, 1))
        self.register_buffer("squares", torch.zeros(classes, 1))

    @torch.no_grad()
    def follow(self, features: Tensor, labels: Tensor, active: Tensor, taken: Tensor, ranks: "Ranks | None") -> None:
        """Take notice of a step.

        Args:
            features: (B, D), of first views.
            labels: int64 (B,).
            active: 0-dim, above 0 where there was an anchor.
            taken: 0-dim bool, whether the step was taken: nothing changes if not.
            ranks: Of several processes, how their rows are spread; all of them then have the same weight.

        Raises ValueError where `images` is not set.
        """
        if self.images is None:
            raise ValueError("images is None; it should be the number of training images, which prepare() is told")
        added, new, active = _of_batch(unit(features.to(self.sums.dtype)), labels, active, len(self.sums), ranks)
        kept = _KEPT**new
        sums = kept * self.sums + added
        counts = kept * self.counts + new
        squares = kept.square() * self.squares + new
        ratio, known = _distance_ratio(sums, counts, squares)
        error = (math.log(self.target) - ratio.log()).clamp(-1, 1)
        rate = _RATE * (len(labels) if ranks is None else sum(ranks.counts)) / self.images
        level = _within_bounds(self.level * (rate * error).exp())
        moves = taken & known & (active > 0)
        self.level.copy_(torch.where(moves, level, self.level))
        self.weight.copy_(torch.where(moves, _within_bounds(level * (_GAIN * error).exp()), self.weight))
        self.ratio.copy_(torch.where(taken & known, ratio, self.ratio))
        for buffer, value in ((self.sums, sums), (self.counts, counts), (self.squares, squares)):
            buffer.copy_(torch.where(taken, value, buffer))


def _of_batch(
    rows: Tensor, labels: Tensor, active: Tensor, classes: int, ranks: "Ranks | None"
) -> tuple[Tensor, Tensor, Tensor]:
    """By class the sums (C, D) of rows (B, D) and how many there are (C, 1), and `active`: the sums over all ranks."""
    rows = torch.cat([rows, torch.ones_like(rows[:, :1])], 1)
    # index_put adds in the same order every time, which index_add does not on a GPU.
    sums = rows.new_zeros(classes, rows.shape[1]).index_put((labels,), rows, accumulate=True)
    if ranks is not None:
        together = ranks.mean(torch.cat([sums.flatten(), active.to(sums.dtype).reshape(1)])) * ranks.size
        sums, active = together[:-1].view_as(sums), together[-1]
    return sums[:, :-1], sums[:, -1:], active


def _within_bounds(weight: Tensor) -> Tensor:
    return weight.clamp(SMALLEST_WEIGHT, LARGEST_WEIGHT)


def _distance_ratio(sums: Tensor, counts: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
    """Intra- over inter-class distance of classes with these weighted sums (C, D), and whether there is one: 0-dim.

    counts, squares: Sums of the weights and of their squares (C, 1).
    """
    share = squares / counts.square().clamp(min=1)
    met = (counts > 0) & (share <= 0.5)
    share = torch.where(met, share, 0)
    means = torch.where(met, sums / torch.where(met, counts, 1), 0)
    length = means.square().sum(1, keepdim=True)
    classes = met.sum()
    intra = torch.where(met, (1 - length) / (1 - share), 0).sum() / classes.clamp(min=1)
    # A class whose images point everywhere has no direction: it is given as little as can be told apart from that.
    true_length = ((length - share) / (1 - share)).maximum(length / 16)
    means = means * torch.where(true_length > 0, true_length, 1).rsqrt()
    pairs = (classes * (classes - 1)).clamp(min=1)
    inter = 1 - (means.sum(0).square().sum() - means.square().sum()) / pairs
    ratio = intra / inter.clamp(min=_SMALLEST_RATIO)
    return ratio.clamp(min=_SMALLEST_RATIO), classes > 1
