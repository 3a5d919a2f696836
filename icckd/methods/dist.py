"""Distillation from a stronger teacher: correlation of predictions, by image and by class."""

from dataclasses import dataclass

from torch import Tensor

from icckd.functional import dist
from icckd.methods.base import Outputs, Rule, Samples, StudentMethod, StudentMethodSettings, above_zero, register


@dataclass
class DistSettings(StudentMethodSettings):
    """Correlation of predictions, by image and by class (DIST: Huang et al. 2022, arXiv 2205.10536).

    Args:
        weight: What the method's loss is multiplied by.
        beta: Weight of the correlation within an image.
        gamma: Weight of the correlation within a class.
        temperature: Temperature that softens both networks' predictions (as published 4, for ImageNet 1).
    """

    weight: float = 2.0
    beta: float = 1.0
    gamma: float = 1.0
    temperature: float = 4.0

    def rules(self) -> dict[str, Rule]:
        return {**super().rules(), "temperature": above_zero(self.temperature)}


@register
class Dist(StudentMethod):
    """`icckd.functional.dist` of both networks' logits."""

    name = "dist"
    spans_ranks = True
    settings: DistSettings

    def forward(self, student: Outputs, teacher: Outputs, samples: Samples) -> Tensor:
        return dist(
            student.logits,
            teacher.logits,
            beta=self.settings.beta,
            gamma=self.settings.gamma,
            temperature=self.settings.temperature,
            group=samples.ranks,
            backend=self.backend,
        )
