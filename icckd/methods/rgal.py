"""Relation-guided adversarial distillation without data: triplets between a generator's images and the student."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, cross_entropy, log_softmax, mse_loss

from icckd.backends.arithmetic import accumulation_dtype, divergence
from icckd.errors import UserError
from icckd.functional import kd_kl
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
from icckd.methods.stages import paired_stages
from icckd.methods.triplets import Distances, triplet_loss
from icckd.models.layers import convolution

# Where negatives are drawn: as the student learns, and as images are made (arXiv 2412.11380).
LEARNING = Distances(0.5, 1.4, clamped=True)
SYNTHESIS = Distances(0.5, 1.0)


@dataclass
class RgalSettings(MethodSettings):
    """Relation-guided adversarial data-free distillation (Liang and Fu 2024, arXiv 2412.11380).

    A generator makes images that the teacher is sure of and the student is not; the student learns from them, and never
    sees one of the data set's. Before each of the student's epochs the generator learns for synthesis_steps steps, and
    its images then go into a pool.

    Args:
        noise: Random numbers that the generator makes an image of.
        width: Channels of the generator's last hidden layer; its others have twice as many.
        generator_rate: Learning rate of Adam for generator and noise.
        synthesis_steps: Steps that the generator learns before each of the student's epochs.
        images: Images that are then added to the pool, of every class as many as can be; student.batch_size or more.
        capacity: Images that the pool holds at most; the oldest make room.
        steps: The student's steps in an epoch, over the pool's images in random order again and again.
        batch_statistics: Weight, as images are made, of the distance of their means and variances to those in the
            teacher's batch normalisations.
        one_hot: Weight, as images are made, of the teacher's cross-entropy with the class that each is meant to have.
        adversarial: Weight, as images are made, of how far the student's predictions are from the teacher's.
        synthesis_triplet: Weight, as images are made, of the triplets that drive images of a class apart and draw those
            of others closer, as the student sees them.
        triplet: Weight, as the student learns, of the triplets that do the opposite.
        margin: Margin of both kinds of triplets.
        temperature: Temperature at which the student learns the teacher's predictions.
        features: Weight, as the student learns, of the mean squared difference of both networks' stages.
    """

    noise: int = 100
    width: int = 64
    generator_rate: float = 1e-3
    synthesis_steps: int = 100
    images: int = 256
    capacity: int = 10000
    steps: int = 100
    batch_statistics: float = 1.0
    one_hot: float = 1.0
    adversarial: float = 1.0
    synthesis_triplet: float = 0.1
    triplet: float = 0.1
    margin: float = 0.2
    temperature: float = 20.0
    features: float = 1.0

    def rules(self) -> dict[str, Rule]:
        counts = ("noise", "width", "synthesis_steps", "images", "steps")
        return {
            **super().rules(),
            **{name: Rule(getattr(self, name) >= 1, "1 or more") for name in counts},
            "generator_rate": above_zero(self.generator_rate),
            "capacity": Rule(self.capacity >= self.images, f"student.loss.rgal.images, {self.images}, or more"),
            "temperature": above_zero(self.temperature),
        }


@register
class Rgal(StudentProcedure):
    """The losses of both phases. Every image is of the class that the teacher takes it for.

    Features that triplets compare are the student's embeddings in both phases, so that they are adversaries (this
    project's reading). Stages are paired from the last back, and the student's compared through a 1×1 convolution with
    batch normalisation and ReLU, which is trained with it, at the coarser of both resolutions (this project's choice).
    """

    name = "rgal"
    data_free = True
    of_pixels = True
    settings: RgalSettings
    student_stages: tuple[str, ...] = ()
    teacher_stages: tuple[str, ...] = ()

    def __init__(self, settings: Any, pair: Pair, backend: str):
        super().__init__(settings, pair, backend)
        if self.settings.features and not (pair.student.maps and pair.teacher.maps):
            side = "student" if not pair.student.maps else "teacher"
            raise UserError(
                f"student.loss.rgal.features is {self.settings.features:g}, but the {side} has no stages to compare; "
                "set it to 0, or use another network"
            )
        if self.settings.features:
            self.student_stages, self.teacher_stages = paired_stages(self.name, pair, None, None, last=True)
        shapes = [
            (pair.student.maps[own], pair.teacher.maps[other])
            for own, other in zip(self.student_stages, self.teacher_stages, strict=True)
        ]
        self.sizes = [min(own[1:], other[1:]) for own, other in shapes]
        self.projections = nn.ModuleList(_projection(own[0], other[0]) for own, other in shapes)

    def learning(self, student: Outputs, teacher: Outputs, samples: Samples) -> dict[str, Tensor]:
        """The student's losses, 0-dim, by name: T² KL(teacher ‖ student), stages, triplets, and "loss", their sum."""
        settings = self.settings
        losses = {
            "kl": kd_kl(student.logits, teacher.logits, temperature=settings.temperature, backend=self.backend),
            "features": self._difference_of_stages(student, teacher),
            "triplet": triplet_loss(student.features, samples.labels, margin=settings.margin, distances=LEARNING),
        }
        loss = losses["kl"] + settings.features * losses["features"] + settings.triplet * losses["triplet"]
        return {"loss": loss, **losses}

    def synthesis(
        self, student: Outputs, teacher: Outputs, statistics: Tensor, wanted: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """The generator's losses, 0-dim, by name, and "loss", their weighted sum; with gradient to all that is given.

        `statistics`, 0-dim, is how far the images' statistics are from those in the teacher, `wanted`, int64 (B,), the
        class that each image is meant to have. `generator` draws the triplets' negatives. The term "adversarial" is
        −KL(teacher ‖ student) of the images about which both agree, summed, over B.
        """
        settings = self.settings
        agreed = student.logits.argmax(1) == teacher.logits.argmax(1)
        own, other = (log_softmax(x.logits.to(accumulation_dtype(x.logits)), dim=1) for x in (student, teacher))
        losses = {
            "batch_statistics": statistics,
            "one_hot": cross_entropy(teacher.logits, wanted),
            "adversarial": -torch.where(agreed, divergence(other, own), 0).mean(),
            "synthesis_triplet": triplet_loss(
                student.features,
                teacher.logits.argmax(1),
                margin=settings.margin,
                distances=SYNTHESIS,
                swapped=True,
                generator=generator,
            ),
        }
        terms = [getattr(settings, name) * loss for name, loss in losses.items()]
        return {"loss": torch.stack(terms).sum(), **losses}

    def _difference_of_stages(self, student: Outputs, teacher: Outputs) -> Tensor:
        difference = student.logits.new_zeros((), dtype=accumulation_dtype(student.logits))
        stages = zip(self.student_stages, self.teacher_stages, self.sizes, self.projections, strict=True)
        for own, other, size, projection in stages:
            seen = projection(adaptive_avg_pool2d(student.maps[own], size))
            wanted = adaptive_avg_pool2d(teacher.maps[other], size)
            difference = difference + mse_loss(seen.to(difference.dtype), wanted.to(difference.dtype))
        return difference


def _projection(channels: int, wanted: int) -> nn.Sequential:
    return nn.Sequential(convolution(channels, wanted, size=1), nn.ReLU())
