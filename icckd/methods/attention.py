"""Attention transfer: where in the image the stages are active."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from icckd.errors import UserError
from icckd.functional import attention_transfer
from icckd.methods.base import Outputs, Pair, Samples, StudentMethod, StudentMethodSettings, register


@dataclass
class AttentionSettings(StudentMethodSettings):
    """Attention transfer (Zagoruyko & Komodakis 2017, arXiv 1612.03928).

    Args:
        weight: What the method's loss is multiplied by.
    """

    weight: float = 1000.0


@register
class Attention(StudentMethod):
    """Σ over pairs of stages of `icckd.functional.attention_transfer`.

    Stages of equal resolution are paired from the last back (this project's choice). Raises UserError where none are.
    """

    name = "attention"
    settings: AttentionSettings

    def __init__(self, settings: Any, pair: Pair, backend: str):
        super().__init__(settings, pair, backend)
        pairs = pairs_of_equal_resolution(pair.student.maps, pair.teacher.maps)
        if not pairs:
            raise UserError(
                "student.loss.method attention needs a stage of equal resolution in both networks; the student's are "
                f"{_resolutions(pair.student.maps)}, the teacher's {_resolutions(pair.teacher.maps)}"
            )
        self.student_stages = tuple(own for own, _ in pairs)
        self.teacher_stages = tuple(other for _, other in pairs)

    def forward(self, student: Outputs, teacher: Outputs, samples: Samples) -> Tensor:
        pairs = zip(self.student_stages, self.teacher_stages, strict=True)
        losses = [attention_transfer(student.maps[s], teacher.maps[t], backend=self.backend) for s, t in pairs]
        return torch.stack(losses).sum()


Maps = Mapping[str, tuple[int, int, int]]


def pairs_of_equal_resolution(student: Maps, teacher: Maps) -> list[tuple[str, str]]:
    """The names of stages of equal resolution, (student's, teacher's), each in one pair at most, from the last back."""
    own, others = list(student.items()), list(teacher.items())
    pairs: list[tuple[str, str]] = []
    while own and others:
        (own_name, own_shape), (other_name, other_shape) = own[-1], others[-1]
        if own_shape[1:] == other_shape[1:]:
            pairs.insert(0, (own_name, other_name))
        # Resolutions fall from stage to stage: the finer stage may still meet its equal.
        own_first, other_first = own_shape[1:] <= other_shape[1:], other_shape[1:] <= own_shape[1:]
        if own_first:
            own.pop()
        if other_first:
            others.pop()
    return pairs


def _resolutions(maps: Maps) -> str:
    return ", ".join(f"{height}×{width}" for _, height, width in maps.values())
