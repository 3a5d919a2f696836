"""The student's steps, and what it keeps beside the network: the generator and the pool of its images."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from icckd.data import Batch, Batches
from icckd.methods import Outputs
from icckd.methods.rgal import Rgal
from icckd.procedures.procedure import Lesson
from icckd.procedures.rgal.pool import Pool, PoolBatches
from icckd.procedures.rgal.synthesis import Synthesis
from icckd.training import Task
from icckd.training.tasks.frozen import ask

_TEACHER = "teacher"


class RgalTask(Task):
    """A student that learns from a teacher about images of a pool, whose generator learns between the epochs.

    Generator and pool are no part of the module, so that the student's optimiser does not train them; they are in its
    state.
    """

    def __init__(self, lesson: Lesson):
        super().__init__()
        self.model = lesson.student
        self.teacher = lesson.teacher
        self.method = lesson.losses(Rgal)
        self.synthesis = Synthesis(self.method, lesson)
        model = lesson.student
        self.pool = Pool(self.method.settings.capacity, model.image_shape, lesson.device)
        self._lesson = lesson

    def batches(self) -> PoolBatches:
        """Those of the pool, to which each epoch first adds images."""
        settings = self._lesson.settings.student
        return PoolBatches(self.method.settings.steps, settings.batch_size, self._refill, self._pass)

    def ask(self, batch: Batch) -> Outputs:
        return ask(self.asked, batch.views[0], self.method.student_stages)

    def ask_without_gradient(self, batch: Batch) -> dict[str, Outputs]:
        return {_TEACHER: self.teacher(batch.views[0], self.method.teacher_stages)}

    def losses(self, outputs: Outputs, others: Mapping[str, Outputs], batch: Batch) -> dict[str, Tensor]:
        return self.method.learning(outputs, others[_TEACHER], self.samples_of(batch))

    def networks(self) -> list[nn.Module]:
        return [self.model, self.teacher.model]

    def whole_state(self) -> dict[str, Tensor]:
        kept = {"synthesis": self.synthesis.state(), "pool": self.pool.state()}
        below = {f"{part}.{name}": x for part, of in kept.items() for name, x in of.items()}
        return super().whole_state() | below

    def load_whole_state(self, state: Mapping[str, Tensor]) -> None:
        own: dict[str, dict[str, Any]] = {"synthesis": {}, "pool": {}, "": {}}
        for key, tensor in state.items():
            part, _, name = key.partition(".")
            if part in own:
                own[part][name] = tensor
            else:
                own[""][key] = tensor
        super().load_whole_state(own[""])
        self.synthesis.restore(own["synthesis"])
        self.pool.restore(own["pool"])

    def _refill(self, epoch: int) -> None:
        self.pool.add(*self.synthesis.make(epoch))

    def _pass(self) -> Batches:
        """One pass through the pool as it is, its images varied as training images would be."""
        settings, data = self._lesson.settings, self._lesson.data
        return Batches(
            self.pool.images,
            self.pool.labels,
            batch_size=settings.student.batch_size,
            mean=data.mean,
            std=data.std,
            augmentation=data.augmentation,
            views=self.views,
            shuffle=True,
            seed=settings.seed,
            device=self._lesson.device,
            drop_last=True,
        )
