"""Normalised knowledge distillation: soft labels of the classes other than the target."""

from dataclasses import dataclass

from torch import Tensor

from icckd.functional import nkd
from icckd.methods.base import Outputs, Rule, Samples, StudentMethod, StudentMethodSettings, above_zero, register


@dataclass
class NkdSettings(StudentMethodSettings):
    """Normalised knowledge distillation (Yang et al. 2023, arXiv 2303.13005).

    Args:
        gamma: Weight of the other classes' part (as published 1.5, for CIFAR-100 3.5).
        temperature: Temperature of the other classes' part (as published 1, for CIFAR-100 3).
    """

    gamma: float = 1.5
    temperature: float = 1.0

    def rules(self) -> dict[str, Rule]:
        return {**super().rules(), "temperature": above_zero(self.temperature)}


@register
class Nkd(StudentMethod):
    """`icckd.functional.nkd` of both networks' logits."""

    name = "nkd"
    settings: NkdSettings

    def forward(self, student: Outputs, teacher: Outputs, samples: Samples) -> Tensor:
        return nkd(
            student.logits,
            teacher.logits,
            samples.labels,
            gamma=self.settings.gamma,
            temperature=self.settings.temperature,
            backend=self.backend,
        )
