"""Transformed teacher matching: only the teacher's predictions are softened, by a power."""

from dataclasses import dataclass

from torch import Tensor

from icckd.functional import ttm
from icckd.methods.base import Outputs, Rule, Samples, StudentMethod, StudentMethodSettings, above_zero, register


@dataclass
class TtmSettings(StudentMethodSettings):
    """Transformed teacher matching (Zheng & Yang 2024, arXiv 2402.11148).

    Args:
        weight: What the method's loss is multiplied by.
        warmup_epochs: Epochs over which the weight first rises linearly (this project's choice: from the first step
            on, the published weight leaves a network of dead units where the learning rate is 0.1).
        gamma: The power that the teacher's probabilities are raised to: 1 / its temperature.
    """

    weight: float = 45.0
    warmup_epochs: int = 20
    gamma: float = 0.1

    def rules(self) -> dict[str, Rule]:
        return {**super().rules(), "gamma": above_zero(self.gamma)}


@dataclass
class WttmSettings(TtmSettings):
    """Weighted transformed teacher matching (Zheng & Yang 2024, arXiv 2402.11148).

    Args:
        weight: What the method's loss is multiplied by.
        warmup_epochs: Epochs over which the weight first rises linearly.
        gamma: The power that the teacher's probabilities are raised to: 1 / its temperature.
    """

    weight: float = 4.0
    warmup_epochs: int = 0
    gamma: float = 0.2


@register
class Ttm(StudentMethod):
    """`icckd.functional.ttm` of both networks' logits."""

    name = "ttm"
    settings: TtmSettings
    weighted = False

    def forward(self, student: Outputs, teacher: Outputs, samples: Samples) -> Tensor:
        gamma = self.settings.gamma
        return ttm(student.logits, teacher.logits, gamma=gamma, weighted=self.weighted, backend=self.backend)


@register
class Wttm(Ttm):
    """The same with every image weighted by how much its soft label spreads."""

    name = "wttm"
    settings: WttmSettings
    weighted = True
