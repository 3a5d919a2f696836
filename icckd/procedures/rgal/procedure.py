"""Relation-guided adversarial distillation without data, from the teacher to the finished student."""

import torch
from torch import Tensor

from icckd.errors import UserError
from icckd.methods import EvaluationSet, Findings
from icckd.procedures.procedure import Lesson, Procedure
from icckd.procedures.rgal.statistics import normalisations_of
from icckd.procedures.rgal.task import RgalTask
from icckd.training import Task, Training

_SHOWN_OF_A_CLASS = 8


class DataFreeDistillation(Procedure):
    """Before every epoch a generator learns and adds images to a pool; in it the student learns from the pool.

    Images of the pool are varied by data.augmentation. The training images, and what settings say of them alone (wrong
    labels, the sampler, milder crops for some classes), play no part.
    """

    def __init__(self, lesson: Lesson):
        super().__init__(lesson)
        if not normalisations_of(lesson.teacher.model):
            raise UserError(
                f"student.loss.method is rgal, but the teacher, {lesson.teacher.model.arch}, has no batch "
                "normalisations, whose statistics guide the images; use a teacher that has"
            )
        self.task = RgalTask(lesson)
        batch_size, images = lesson.settings.student.batch_size, self.task.method.settings.images
        if batch_size > images:
            raise UserError(
                f"student.batch_size is {batch_size}, more than student.loss.rgal.images, {images}, which are all that "
                "there are in the first epoch; give less, or more images"
            )

    def tasks(self) -> list[Task]:
        self.task.synthesis.rehearse()
        return [self.task]

    def training(self) -> Training:
        return self.lesson.training(self.task, self.task.batches())

    def findings(self, test: EvaluationSet) -> Findings:
        """How many images there were, and of each class the latest few with the teacher's confidence in them.

        images: uint8 (M, C, H, W), class by class. image_labels: int64 (M,). image_confidences: float32 (M,).
        """
        pool = self.task.pool
        counts = pool.labels.bincount(minlength=self.lesson.student.classes).tolist()
        settings = self.task.method.settings
        made = settings.images * self.lesson.settings.student.epochs
        latest = [_latest(pool.labels, label) for label in range(len(counts))]
        places = torch.cat(latest)
        images, labels = pool.images[places], pool.labels[places]
        return Findings(
            {"images_made": made, "images_kept_by_class": counts},
            {
                "images": images.cpu(),
                "image_labels": labels.cpu(),
                "image_confidences": self.task.synthesis.confidences(images, labels).cpu(),
            },
        )


def _latest(labels: Tensor, label: int) -> Tensor:
    """The places of the last few of `labels` that are `label`."""
    return (labels == label).nonzero()[-_SHOWN_OF_A_CLASS:, 0]
