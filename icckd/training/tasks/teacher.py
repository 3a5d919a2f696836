"""Training a teacher."""

from collections.abc import Mapping

import torch
from torch import Tensor

from icckd.data import Batch
from icckd.memory import ClassMemory
from icckd.methods import Outputs
from icckd.models import Model
from icckd.settings import TeacherSettings
from icckd.training.tasks.task import Task, ask, describe, samples_of


class TeacherTask(Task):
    """A network trained by the method that `settings` name."""

    def __init__(self, model: Model, settings: TeacherSettings):
        super().__init__()
        loss, capacity = settings.loss, settings.memory.capacity
        self.model = model
        memory = ClassMemory(model.classes, capacity, model.feature_dim) if capacity else None
        self.method = loss.method_class()(loss.method_settings(), describe(model), memory, loss.backend)
        self.views = self.method.views

    def ask(self, batch: Batch) -> Outputs:
        return ask(self.model, torch.cat(batch.views), self.method.stages)

    def losses(self, outputs: Outputs, others: Mapping[str, Outputs], batch: Batch) -> dict[str, Tensor]:
        return self.method(outputs, samples_of(batch))

    def after_step(self, taken: Tensor) -> None:
        self.method.after_step(taken)
