"""Which samples are anchors of the intra-class loss, and with which weight."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from icckd.compiling import disable

if TYPE_CHECKING:
    from icckd.exchange import Ranks

GATES = ("margin", "quantile", "soft")


def soft_gate(margin: Tensor, labelled: Tensor, threshold: float, width: float) -> Tensor:
    """sigmoid((margin − threshold) / width) in labelled rows, 0 in others: float (N,), of float (N,) and bool (N,).

    This project's choice: the limit of a small width is the gate margin > threshold of arXiv 2509.22053. As of that, a
    row is no anchor whose margin is not a number: its step is to be skipped, not to end in an error.
    """
    weight = torch.sigmoid((margin - threshold) / width)
    return torch.where(labelled & ~weight.isnan(), weight, 0)


def most_confident(margin: Tensor, labelled: Tensor, share: float, ranks: "Ranks | None" = None) -> Tensor:
    """Which labelled rows are the `share` of all labelled ones, rounded to whole rows, with the largest margins.

    This project's choice. bool (N,), of float (N,) and bool (N,); of equal margins earlier rows come first. With
    `ranks` these are one rank's rows, and all ranks' compete.
    """
    margins, are_labelled = (margin, labelled) if ranks is None else _everyone(margin, labelled, ranks)
    order = torch.where(are_labelled, margins, -torch.inf).argsort(descending=True, stable=True)
    place = order.argsort()
    chosen = are_labelled & (place < (share * are_labelled.sum(dtype=torch.float64) + 0.5).floor())
    return chosen if ranks is None else chosen[ranks.own]


@disable
def _everyone(margin: Tensor, labelled: Tensor, ranks: "Ranks") -> tuple[Tensor, Tensor]:
    margins, labelled = ranks.gather(torch.stack([margin, labelled.to(margin.dtype)], 1)).unbind(1)
    return margins, labelled > 0
