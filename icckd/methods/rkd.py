"""Relational knowledge distillation: distances and angles between the images of a batch."""

from dataclasses import dataclass

from torch import Tensor

from icckd.functional import rkd_angle, rkd_distance
from icckd.methods.base import Outputs, Samples, StudentMethod, StudentMethodSettings, register


@dataclass
class RkdSettings(StudentMethodSettings):
    """Relational knowledge distillation (Park et al. 2019, arXiv 1904.05068).

    Args:
        distance: Weight of the distances between two images' embeddings.
        angle: Weight of the angles between three images' embeddings.
    """

    distance: float = 25.0
    angle: float = 50.0


@register
class Rkd(StudentMethod):
    """`icckd.functional.rkd_distance` and `rkd_angle` of both networks' features."""

    name = "rkd"
    spans_ranks = True
    settings: RkdSettings

    def forward(self, student: Outputs, teacher: Outputs, samples: Samples) -> Tensor:
        ranks, backend = samples.ranks, self.backend
        distance = rkd_distance(student.features, teacher.features, group=ranks, backend=backend)
        angle = rkd_angle(student.features, teacher.features, group=ranks, backend=backend)
        return self.settings.distance * distance + self.settings.angle * angle
