"""A robust student: it learns from images that an attack on it has changed, and from the same as they are."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from icckd.attacks import pgd
from icckd.data import Batch
from icckd.errors import UserError
from icckd.methods import EvaluationSet, Findings, Outputs
from icckd.methods.absld import Absld
from icckd.models import Model
from icckd.procedures.procedure import Lesson, Procedure
from icckd.training import FrozenTeacher, Task, Training
from icckd.training.tasks.frozen import ask, ask_as_it_is, can_be_attacked


class AntiBiasDistillation(Procedure):
    """One task, one training, by the losses of `Absld`."""

    def __init__(self, lesson: Lesson):
        super().__init__(lesson)
        data, student = lesson.data, lesson.student
        if not can_be_attacked(student):
            raise UserError(
                f"student.arch is {student.arch}, which has no gradient with respect to its images; "
                "student.loss.method absld attacks them: give another network"
            )
        self.method = lesson.losses(Absld)
        self.task = AbsldTask(student, lesson.teacher, self.method, data.mean, data.std)

    def tasks(self) -> list[Task]:
        return [self.task]

    def training(self) -> Training:
        return self.lesson.training(self.task, self.lesson.batches())

    def findings(self, test: EvaluationSet) -> Findings:
        return self.method.findings()


class AbsldTask(Task):
    """A student that learns from a frozen teacher to answer alike about images x and attacked ones x'.

    x' is found anew in each step, from x and a little normal noise, by the student as it is, in evaluation mode. Then
    the student is asked, in training mode, about x' and x in one batch: batch normalisation sees both (this project's
    choice). The teacher sees x. `mean` and `std` are the statistics per channel that the images come normalised with.
    """

    def __init__(
        self, model: Model, teacher: FrozenTeacher, method: Absld, mean: Sequence[float], std: Sequence[float]
    ):
        super().__init__()
        self.model = model
        self.teacher = teacher
        self.method = method
        self.mean, self.std = mean, std
        self._found: list[Tensor] = []

    def ask(self, batch: Batch) -> Outputs:
        """Rows of the attacked images, then of all as they are."""
        (images,) = batch.views
        self.method.begin(self.epoch)
        return ask(self.asked, torch.cat([self._attacked(images, batch.labels), images]))

    def _attacked(self, images: Tensor, labels: Tensor) -> Tensor:
        """x' of these images; without gradient, what was found is kept for the next time that there is one.

        A batch that is larger than the memory is asked about twice, part by part, and in between running statistics
        move: what is found again would differ. Its random numbers are drawn again all the same.
        """
        settings = self.method.settings
        start = settings.start * torch.randn_like(images)
        again = torch.is_grad_enabled()
        if again and self._found:
            return self._found.pop(0)
        teacher = self.teacher(images).logits

        def loss(moved: Tensor) -> Tensor:
            return self.method.attacked(ask_as_it_is(self.model, moved).logits, teacher, labels)

        found = pgd(
            loss,
            images,
            start,
            epsilon=settings.epsilon,
            step_size=settings.step_size,
            steps=settings.steps,
            mean=self.mean,
            std=self.std,
        )
        if not again:
            self._found.append(found)
        return found

    def ask_without_gradient(self, batch: Batch) -> dict[str, Outputs]:
        (images,) = batch.views
        return {"teacher": self.teacher(images)}

    def losses(self, outputs: Outputs, others: Mapping[str, Outputs], batch: Batch) -> dict[str, Tensor]:
        adversarial, natural = outputs.logits.chunk(2)
        losses: dict[str, Tensor] = self.method(adversarial, natural, others["teacher"].logits, batch.labels)
        return losses

    def networks(self) -> list[torch.nn.Module]:
        return [self.model, self.teacher.model]

    def after_step(self, taken: Tensor) -> None:
        self.method.after_step(taken)
