"""Staged distillation: a student's stages trained one after another, from the first to all."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy, normalize, one_hot

from icckd.backends.arithmetic import accumulated, accumulation_dtype
from icckd.errors import UserError
from icckd.functional import kd_kl
from icckd.functional.sides import full_precision
from icckd.methods.base import (
    MethodSettings,
    Outputs,
    Pair,
    Rule,
    Samples,
    StudentProcedure,
    above_zero,
    register,
)
from icckd.methods.stages import one_or_more, paired_stages

# Added to a variance before its square root, whose gradient at 0 is none.
_EPSILON = 1e-5


@dataclass
class StagedSettings(MethodSettings):
    """Staged distillation (after arXiv 2307.05201): the student's stages one after another, each for equally long.

    Args:
        temperature: Temperature that softens both networks' predictions.
        kd_weight: Weight of what the student learns from these.
        moments_weight: Weight of what its maps learn from the channel means and deviations of the teacher's.
        mixture: Share of the teacher's remembered predictions in the label of an image that it is sure of.
        confidence: The largest of these probabilities from which on it is sure.
        decay: How much of an image's remembered predictions stays when it is seen again.
        student_stages: The stages that the student is trained up to, by name, in order, its last one last (null: the
            last ones, as many as both networks have).
        teacher_stages: The teacher's stages that these learn from, one for each (null: likewise).
    """

    temperature: float = 4.0
    kd_weight: float = 1.0
    moments_weight: float = 1.0
    mixture: float = 0.5
    confidence: float = 0.8
    decay: float = 0.9
    student_stages: list[str] | None = None
    teacher_stages: list[str] | None = None

    def rules(self) -> dict[str, Rule]:
        return {
            **super().rules(),
            "temperature": above_zero(self.temperature),
            "mixture": Rule(0 <= self.mixture <= 1, "in [0, 1]"),
            "confidence": Rule(0 <= self.confidence <= 1, "in [0, 1]"),
            "decay": Rule(0 <= self.decay < 1, "in [0, 1)"),
            "student_stages": one_or_more(self.student_stages),
            "teacher_stages": one_or_more(self.teacher_stages),
        }


@register
class Staged(StudentProcedure):
    """The loss of the k-th training, of the student up to the k-th of its `student_stages`:

        CE(s, y*) + kd_weight · T² KL(t_T ‖ s_T) + moments_weight · Σ_{j≤k} w_j D_j

    s are the logits of a head on stage k (its map averaged over positions, then a linear layer), in the last training
    the network's own; t the teacher's. The method's idea is arXiv 2307.05201's, known from its abstract; what follows
    is this project's reading of it.

    D_j is the mean over images and channels of (μ − μ')² + (σ − σ')²: the means and standard deviations over positions
    of the student's map j, projected to the teacher's channels by a 1×1 convolution, and of the teacher's. w is the
    softmax over j ≤ k of `similarity_correlation` of both networks' averaged maps, without gradient.

    y* is (1 − mixture) · label + mixture · M where the largest of M is `confidence` or more, else the label. M is the
    moving average of the teacher's probabilities for an image over the views of it that were seen, 4 · images · classes
    bytes for all of them; it goes on from one training to the next.
    """

    name = "staged"
    settings: StagedSettings
    averages: Tensor

    def __init__(self, settings: Any, pair: Pair, backend: str):
        super().__init__(settings, pair, backend)
        named = settings.student_stages, settings.teacher_stages
        self.student_stages, self.teacher_stages = paired_stages(self.name, pair, *named, last=True)
        _check_order(self.student_stages, list(pair.student.maps))
        widths = [pair.student.maps[stage][0] for stage in self.student_stages]
        others = [pair.teacher.maps[stage][0] for stage in self.teacher_stages]
        classes = pair.student.classes
        self.heads = nn.ModuleList(nn.Linear(width, classes) for width in widths[:-1])
        self.projections = nn.ModuleList(
            nn.Conv2d(width, other, kernel_size=1) for width, other in zip(widths, others, strict=True)
        )
        self.register_buffer("averages", torch.zeros(len(pair.labels), classes))
        # Of the step under way: which images they are, and what will be remembered of them.
        self._latest: tuple[Tensor, Tensor] | None = None

    def forward(self, number: int, student: Outputs, teacher: Outputs, samples: Samples) -> dict[str, Tensor]:
        """The losses of the training of that number, from 1; "loss" is minimised.

        `student.logits` are what it trains, `student.maps` and `teacher.maps` hold those of the stages so far.
        """
        chosen, temperature = self.settings, self.settings.temperature
        logits = student.logits.to(accumulation_dtype(student.logits))
        hard = cross_entropy(logits, self._targets(teacher.logits, samples))
        soft = kd_kl(student.logits, teacher.logits, temperature=temperature, backend=self.backend)
        own = [student.maps[stage] for stage in self.student_stages[:number]]
        others = [teacher.maps[stage] for stage in self.teacher_stages[:number]]
        weights = _stage_weights(own, others)
        pairs = zip(self.projections, own, others, strict=False)
        moments = sum(w * _moments(project(x), y) for w, (project, x, y) in zip(weights, pairs, strict=True))
        named = {f"weight_{stage}": w for stage, w in zip(self.student_stages, weights, strict=False)}
        loss = hard + chosen.kd_weight * soft + chosen.moments_weight * moments
        return {"loss": loss, "cross_entropy": hard, "kd": soft, "moments": moments, **named}

    def after_step(self, taken: Tensor) -> None:
        if self._latest is not None:
            indices, averages = self._latest
            before = self.averages[indices]
            self.averages.index_copy_(0, indices, torch.where(taken, averages, before))
        self._latest = None

    @torch.no_grad()
    def _targets(self, teacher: Tensor, samples: Samples) -> Tensor:
        """y* of the images, (B, C), of the teacher's logits."""
        probabilities = teacher.to(self.averages.dtype).softmax(dim=1)
        before = self.averages[samples.indices]
        seen = before.any(dim=1, keepdim=True)
        averages = torch.where(seen, before.lerp(probabilities, 1 - self.settings.decay), probabilities)
        self._latest = samples.indices, averages
        sure = averages.amax(dim=1, keepdim=True) >= self.settings.confidence
        labels = one_hot(samples.labels, averages.shape[1]).to(averages.dtype)
        return torch.where(sure, labels.lerp(averages, self.settings.mixture), labels)


def _check_order(stages: tuple[str, ...], known: list[str]) -> None:
    places = [known.index(stage) for stage in stages]
    if places != sorted(places) or stages[-1] != known[-1]:
        raise UserError(
            f"student.loss.staged.student_stages is {', '.join(stages)}; it should be in the student's order and end "
            f"in its last, {known[-1]}: the student's stages are {', '.join(known)}"
        )


@torch.no_grad()
def _stage_weights(own: list[Tensor], others: list[Tensor]) -> Tensor:
    pairs = zip(own, others, strict=True)
    return torch.stack([similarity_correlation(x.mean((2, 3)), y.mean((2, 3))) for x, y in pairs]).softmax(dim=0)


def similarity_correlation(student: Tensor, teacher: Tensor) -> Tensor:
    """Pearson's correlation of two networks' similarities: the cosines of rows of (B, D), over pairs of distinct rows.

    In [−1, 1]; 0 where either network's cosines are all the same. The networks' widths D may differ.
    """
    with full_precision(student):
        own, other = (_similarities(x) for x in accumulated(student, teacher))
    return cosine_similarity(own - own.mean(), other - other.mean(), dim=0)


def _similarities(rows: Tensor) -> Tensor:
    """The cosines of all pairs (i, j) of distinct rows, (B (B − 1),)."""
    unit, count = normalize(rows, dim=1), len(rows)
    # Less the first, the matrix's numbers in lines of B + 1 end in the other ones of its diagonal.
    return (unit @ unit.T).flatten()[1:].view(count - 1, count + 1)[:, :-1].flatten()


def _moments(own: Tensor, other: Tensor) -> Tensor:
    """D of maps (B, C, h, w) and (B, C, h', w')."""
    (mean, deviation), (mean_of_other, deviation_of_other) = (_mean_and_deviation(x) for x in accumulated(own, other))
    return ((mean - mean_of_other).square() + (deviation - deviation_of_other).square()).mean()


def _mean_and_deviation(maps: Tensor) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(maps, dim=(2, 3), correction=0)
    return mean, (variance + _EPSILON).sqrt()
