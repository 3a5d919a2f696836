"""Similarity-preserving distillation: which images of a batch activate the networks alike."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from icckd.errors import UserError
from icckd.functional import similarity_preserving
from icckd.methods.base import Outputs, Pair, Samples, StudentMethod, StudentMethodSettings, register


@dataclass
class SimilarityPreservingSettings(StudentMethodSettings):
    """Similarity-preserving distillation (Tung & Mori 2019, arXiv 1907.09682).

    Args:
        weight: What the method's loss is multiplied by.
    """

    weight: float = 3000.0


@register
class SimilarityPreserving(StudentMethod):
    """`icckd.functional.similarity_preserving` of the maps of both networks' last stages."""

    name = "similarity-preserving"
    spans_ranks = True
    settings: SimilarityPreservingSettings

    def __init__(self, settings: Any, pair: Pair, backend: str):
        super().__init__(settings, pair, backend)
        if not (pair.student.maps and pair.teacher.maps):
            raise UserError("student.loss.method similarity-preserving needs a stage in both networks")
        self.student_stages = (list(pair.student.maps)[-1],)
        self.teacher_stages = (list(pair.teacher.maps)[-1],)

    def forward(self, student: Outputs, teacher: Outputs, samples: Samples) -> Tensor:
        own, other = student.maps[self.student_stages[0]], teacher.maps[self.teacher_stages[0]]
        return similarity_preserving(own, other, group=samples.ranks, backend=self.backend)
