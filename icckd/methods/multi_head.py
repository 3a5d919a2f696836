"""Multi-head distillation: classifiers on the stages between, of both networks."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from icckd.errors import UserError
from icckd.functional import kd_kl
from icckd.methods.base import Outputs, Pair, Rule, Samples, StudentMethod, StudentMethodSettings, above_zero, register

_HEAD_WIDTH = 256


@dataclass
class MultiHeadSettings(StudentMethodSettings):
    """Multi-head distillation (Wang et al. 2020, arXiv 2012.02911).

    Args:
        beta: Weight β of what the student's heads learn from the teacher's.
        temperature: Temperature that softens all predictions.
        cross_entropy_weight: Share of the cross-entropy with the true labels in what the student and its heads learn.
    """

    beta: float = 0.5
    temperature: float = 4.0
    cross_entropy_weight: float = 0.1

    def rules(self) -> dict[str, Rule]:
        return {
            **super().rules(),
            "temperature": above_zero(self.temperature),
            "cross_entropy_weight": Rule(0 <= self.cross_entropy_weight <= 1, "in [0, 1]"),
        }


@register
class MultiHead(StudentMethod):
    """KD(s, t) + Σ_l [CE(t_l, y) + β KD(s_l, t_l)], with KD(s, t) = w CE(s, y) + (1 − w) T² KL(t_T ‖ s_T).

    w is `cross_entropy_weight`, s and t are the logits of student and teacher, s_l and t_l those of heads on their
    stages but the last, paired from the last back. The teacher's heads learn beside the student, the teacher's own
    weights do not; no gradient flows through t_l into them from KD (this project's choice). The student's cross-entropy
    is in KD.
    """

    name = "multi-head"
    settings: MultiHeadSettings
    holds_cross_entropy = True

    def __init__(self, settings: Any, pair: Pair, backend: str):
        super().__init__(settings, pair, backend)
        own, others = list(pair.student.maps.items())[:-1], list(pair.teacher.maps.items())[:-1]
        count = min(len(own), len(others))
        if count == 0:
            raise UserError("student.loss.method multi-head needs two stages or more in both networks")
        own, others = own[-count:], others[-count:]
        self.student_stages = tuple(name for name, _ in own)
        self.teacher_stages = tuple(name for name, _ in others)
        self.student_heads = nn.ModuleList(_head(shape[0], pair.student.classes) for _, shape in own)
        self.teacher_heads = nn.ModuleList(_head(shape[0], pair.teacher.classes) for _, shape in others)

    def forward(self, student: Outputs, teacher: Outputs, samples: Samples) -> Tensor:
        loss = self._kd(student.logits, teacher.logits, samples.labels)
        for own, other in zip(self._answers(student, "student"), self._answers(teacher, "teacher"), strict=True):
            hard = cross_entropy(other.float(), samples.labels)
            loss = loss + hard + self.settings.beta * self._kd(own, other, samples.labels)
        return loss

    def _answers(self, outputs: Outputs, of: str) -> list[Tensor]:
        heads, stages = getattr(self, f"{of}_heads"), getattr(self, f"{of}_stages")
        return [head(outputs.maps[stage]) for head, stage in zip(heads, stages, strict=True)]

    def _kd(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        hard, share = cross_entropy(student.float(), labels), self.settings.cross_entropy_weight
        soft = kd_kl(student, teacher, temperature=self.settings.temperature, backend=self.backend)
        return share * hard + (1 - share) * soft


def _head(channels: int, classes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (channels, _HEAD_WIDTH):
        layers += [nn.Conv2d(width, _HEAD_WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(_HEAD_WIDTH), nn.ReLU()]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(_HEAD_WIDTH, _HEAD_WIDTH), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(_HEAD_WIDTH, classes))
