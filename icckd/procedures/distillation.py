"""The usual training of a student, whose losses are a sum of methods."""

from icckd.procedures.procedure import Lesson, Procedure
from icckd.training import DistillationTask, Task, Training


class Distillation(Procedure):
    """One task, one training; by several processes, if there are."""

    def __init__(self, lesson: Lesson):
        super().__init__(lesson)
        loss, labels = lesson.settings.student.loss, lesson.data.train_labels.to(lesson.device)
        self.task = DistillationTask(lesson.student, lesson.teacher, labels, loss, lesson.world.group)

    def tasks(self) -> list[Task]:
        return [self.task]

    def training(self) -> Training:
        return self.lesson.training(self.task, self.lesson.batches())
