"""Probabilistic knowledge transfer: how likely images of a batch are each other's neighbours."""

from dataclasses import dataclass

from torch import Tensor

from icckd.functional import pkt
from icckd.methods.base import Outputs, Samples, StudentMethod, StudentMethodSettings, register


@dataclass
class PktSettings(StudentMethodSettings):
    """Probabilistic knowledge transfer (Passalis & Tefas 2018, arXiv 1803.10837).

    Args:
        weight: What the method's loss is multiplied by.
    """

    weight: float = 30000.0


@register
class Pkt(StudentMethod):
    """`icckd.functional.pkt` of both networks' features."""

    name = "pkt"
    spans_ranks = True
    settings: PktSettings

    def forward(self, student: Outputs, teacher: Outputs, samples: Samples) -> Tensor:
        return pkt(student.features, teacher.features, group=samples.ranks, backend=self.backend)
