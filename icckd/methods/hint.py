"""Hints: a stage of the student that can tell the teacher's."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, mse_loss

from icckd.errors import UserError
from icckd.methods.base import Network, Outputs, Pair, Samples, StudentMethod, StudentMethodSettings, register


@dataclass
class HintSettings(StudentMethodSettings):
    """Hints (FitNets: Romero et al. 2015, arXiv 1412.6550).

    Args:
        weight: What the method's loss is multiplied by.
        stage: Which stage of both networks is compared.
    """

    weight: float = 100.0
    stage: str = "stage2"


@register
class Hint(StudentMethod):
    """The mean squared difference of the teacher's map and ReLU(BN(conv1×1(the student's map))).

    The 1×1 convolution and its normalisation are trained with the student. Where resolutions differ the finer map is
    averaged to the coarser one's (this project's choice).
    """

    name = "hint"
    settings: HintSettings

    def __init__(self, settings: Any, pair: Pair, backend: str):
        super().__init__(settings, pair, backend)
        stage = self.settings.stage
        own, other = _shape(pair.student, stage, "student"), _shape(pair.teacher, stage, "teacher")
        self.student_stages = self.teacher_stages = (stage,)
        self.size = min(own[1:], other[1:])
        self.regressor = nn.Sequential(
            nn.Conv2d(own[0], other[0], kernel_size=1), nn.BatchNorm2d(other[0]), nn.ReLU(inplace=True)
        )

    def forward(self, student: Outputs, teacher: Outputs, samples: Samples) -> Tensor:
        stage = self.settings.stage
        own, other = (adaptive_avg_pool2d(outputs.maps[stage], self.size) for outputs in (student, teacher))
        return mse_loss(self.regressor(own).float(), other.float())


def _shape(network: Network, stage: str, name: str) -> tuple[int, int, int]:
    if stage not in network.maps:
        stages = ", ".join(network.maps)
        raise UserError(f"student.loss.hint.stage is {stage!r}; it should be a stage of the {name}: {stages}")
    return network.maps[stage]
