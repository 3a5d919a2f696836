"""Training a teacher."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from icckd.data import Batch
from icckd.environment import free_memory
from icckd.errors import UserError
from icckd.memory import ClassMemory, memory_bytes
from icckd.methods import Outputs
from icckd.models import Model
from icckd.settings import MemorySettings, TeacherSettings
from icckd.training.average import MovingAverage
from icckd.training.tasks.task import Task, ask, describe, samples_of

_AVERAGE = "average"
_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float8": torch.float8_e4m3fn,
}


class TeacherTask(Task):
    """A network trained by the method that `settings` name.

    What the method may remember of earlier steps is kept on the network's device. Raises UserError, naming the setting,
    where there is no room for that.
    """

    def __init__(self, model: Model, settings: TeacherSettings):
        super().__init__()
        loss = settings.loss
        self.model = model
        self.method = loss.method_class()(loss.method_settings(), describe(model), loss.backend)
        self.views = self.method.views
        self.memory: ClassMemory | None = None
        self.average: MovingAverage | None = None
        self.memory_warmup = settings.memory.warmup_epochs
        if self.method.uses_memory and settings.memory.capacity:
            self.memory = _memory(model, settings.memory)
            if settings.memory.average:
                self.average = MovingAverage(model, settings.memory.average)
        self._latest: tuple[Tensor, Tensor] | None = None

    def ask(self, batch: Batch) -> Outputs:
        return ask(self.model, torch.cat(batch.views), self.method.stages)

    def ask_without_gradient(self, batch: Batch) -> dict[str, Outputs]:
        if self.average is None:
            return {}
        with torch.no_grad():
            return {_AVERAGE: ask(self.average.network, batch.views[0])}

    def losses(self, outputs: Outputs, others: Mapping[str, Outputs], batch: Batch) -> dict[str, Tensor]:
        own = outputs.features[: len(batch.labels)].detach()
        self._latest = (others[_AVERAGE].features if _AVERAGE in others else own, batch.labels)
        memory = self.memory if self.epoch >= self.memory_warmup else None
        return self.method(outputs, samples_of(batch)._replace(memory=memory))

    def networks(self) -> list[nn.Module]:
        return [self.model] if self.average is None else [self.model, self.average.network]

    def after_step(self, taken: Tensor) -> None:
        self.method.after_step(taken)
        if self._latest is None:
            return
        features, labels = self._latest
        self._latest = None
        if self.memory is not None:
            self.memory.push(features, torch.where(taken, labels, -1))
        if self.average is not None:
            self.average.follow(self.model, taken)


def _memory(model: Model, settings: MemorySettings) -> ClassMemory:
    sizes, dtype = (model.classes, settings.capacity, model.feature_dim), _DTYPES[settings.dtype]
    device = next(model.parameters()).device
    needed, free = memory_bytes(*sizes, dtype), free_memory(device)
    if needed > free:
        raise UserError(
            f"teacher.memory.capacity is {settings.capacity}, which takes {needed / 1e9:,.1f} GB: {model.classes} "
            f"classes of as many embeddings of {model.feature_dim} numbers in {settings.dtype}; {free / 1e9:,.1f} GB "
            f"are free on the {device.type}: give less, or a narrower teacher.memory.dtype"
        )
    with device:
        return ClassMemory(*sizes, dtype)
