"""Knowledge distillation: the divergence of softened predictions."""

from dataclasses import dataclass

from torch import Tensor

from icckd.functional import kd_kl
from icckd.methods.base import Outputs, Rule, Samples, StudentMethod, StudentMethodSettings, above_zero, register


@dataclass
class KdSettings(StudentMethodSettings):
    """Knowledge distillation (Hinton et al. 2015, arXiv 1503.02531).

    Args:
        weight: What the loss is multiplied by (null: 0.9 alone, beside 0.1 of cross-entropy, and 1 in a sum).
        warmup_epochs: Epochs over which the weight first rises linearly.
        temperature: Temperature that softens both networks' predictions.
        standardize: Standardise each row of logits first (Sun et al. 2024, who use temperature 2 and weight 9).
    """

    weight: float | None = None  # type: ignore[assignment]
    temperature: float = 4.0
    standardize: bool = False

    def weight_of(self, methods: int) -> float:
        if self.weight is not None:
            return self.weight
        return 0.9 if methods == 1 else 1.0

    def rules(self) -> dict[str, Rule]:
        return {**super().rules(), "temperature": above_zero(self.temperature)}


@register
class Kd(StudentMethod):
    """T² · KL(softmax(teacher/T) ‖ softmax(student/T)): `icckd.functional.kd_kl`."""

    name = "kd"
    settings: KdSettings
    cross_entropy_weight = 0.1

    def forward(self, student: Outputs, teacher: Outputs, samples: Samples) -> Tensor:
        return kd_kl(
            student.logits,
            teacher.logits,
            temperature=self.settings.temperature,
            standardize=self.settings.standardize,
            backend=self.backend,
        )
