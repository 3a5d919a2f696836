"""Decoupled knowledge distillation: the target class apart from the others."""

from dataclasses import dataclass

from torch import Tensor

from icckd.functional import dkd
from icckd.methods.base import Outputs, Rule, Samples, StudentMethod, StudentMethodSettings, above_zero, register


@dataclass
class DkdSettings(StudentMethodSettings):
    """Decoupled knowledge distillation (Zhao et al. 2022, arXiv 2203.08679).

    Args:
        warmup_epochs: Epochs over which the weight first rises linearly.
        alpha: Weight of the target class's part.
        beta: Weight of the other classes' part; as published 8 for resnet32x4 → resnet8x4, 6 for vgg13 → vgg8 and
            wrn_40_2 → wrn_16_2, 2 for resnet56 → resnet20.
        temperature: Temperature that softens both networks' predictions.
    """

    warmup_epochs: int = 20
    alpha: float = 1.0
    beta: float = 8.0
    temperature: float = 4.0

    def rules(self) -> dict[str, Rule]:
        return {**super().rules(), "temperature": above_zero(self.temperature)}


@register
class Dkd(StudentMethod):
    """`icckd.functional.dkd` of both networks' logits."""

    name = "dkd"
    settings: DkdSettings

    def forward(self, student: Outputs, teacher: Outputs, samples: Samples) -> Tensor:
        return dkd(
            student.logits,
            teacher.logits,
            samples.labels,
            alpha=self.settings.alpha,
            beta=self.settings.beta,
            temperature=self.settings.temperature,
            backend=self.backend,
        )
