"""Multi-head distillation: classifiers on the stages between, of both networks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from icckd.functional import kd_kl
from icckd.methods.base import (
    Network,
    Outputs,
    Pair,
    Rule,
    Samples,
    StudentMethod,
    StudentMethodSettings,
    above_zero,
    register,
)
from icckd.methods.stages import one_or_more, paired_stages

_HEAD_WIDTH = 256


@dataclass
class MultiHeadSettings(StudentMethodSettings):
    """Multi-head distillation (Wang et al. 2020, arXiv 2012.02911).

    Args:
        beta: Weight β of what the student's heads learn from the teacher's.
        temperature: Temperature that softens all predictions.
        cross_entropy_weight: Share of the cross-entropy with the true labels in what the student and its heads learn.
        student_stages: The student's stages that get a head, by name (null: all but the last, as many as the teacher
            has).
        teacher_stages: The teacher's stages that these learn from, one for each (null: likewise).
    """

    beta: float = 0.5
    temperature: float = 4.0
    cross_entropy_weight: float = 0.1
    student_stages: list[str] | None = None
    teacher_stages: list[str] | None = None

    def rules(self) -> dict[str, Rule]:
        return {
            **super().rules(),
            "temperature": above_zero(self.temperature),
            "cross_entropy_weight": Rule(0 <= self.cross_entropy_weight <= 1, "in [0, 1]"),
            "student_stages": one_or_more(self.student_stages),
            "teacher_stages": one_or_more(self.teacher_stages),
        }


@register
class MultiHead(StudentMethod):
    """KD(s, t) + Σ_l [CE(t_l, y) + β KD(s_l, t_l)], with KD(s, t) = w CE(s, y) + (1 − w) T² KL(t_T ‖ s_T).

    w is `cross_entropy_weight`, s and t are the logits of student and teacher, s_l and t_l those of heads on stages of
    theirs: those named, or all but the last, paired from the last back. The teacher's heads learn beside the student,
    the teacher's own weights do not; no gradient flows through t_l into them from KD (this project's choice). The
    student's cross-entropy is in KD.
    """

    name = "multi-head"
    settings: MultiHeadSettings
    holds_cross_entropy = True

    def __init__(self, settings: Any, pair: Pair, backend: str):
        super().__init__(settings, pair, backend)
        named = settings.student_stages, settings.teacher_stages
        self.student_stages, self.teacher_stages = paired_stages(self.name, pair, *named, last=False)
        self.student_heads = _heads(self.student_stages, pair.student)
        self.teacher_heads = _heads(self.teacher_stages, pair.teacher)

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


def _heads(stages: Sequence[str], network: Network) -> nn.ModuleList:
    return nn.ModuleList(_head(network.maps[name][0], network.classes) for name in stages)


def _head(channels: int, classes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (channels, _HEAD_WIDTH):
        layers += [nn.Conv2d(width, _HEAD_WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(_HEAD_WIDTH), nn.ReLU()]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(_HEAD_WIDTH, _HEAD_WIDTH), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(_HEAD_WIDTH, classes))
