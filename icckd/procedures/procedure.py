"""What a procedure is, what it may use, and what a run needs of its training."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sized
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from icckd.data import Batches, Epochs, ImageData
from icckd.distributed import World
from icckd.methods import EvaluationSet, Findings, Pair, StudentProcedure
from icckd.models import Model
from icckd.settings import Settings, TrainingSettings
from icckd.training import Checkpoint, FrozenTeacher, Record, StopSignal, Task, Training
from icckd.training.tasks.task import describe

Losses = TypeVar("Losses", bound=StudentProcedure)


class MakeBatches(Protocol):
    """Makes batches of the training images, or of those at the places `part`, int64, in their order.

    views: Augmented views of each image.
    batch_size: Images a step; None: student.batch_size, or what a balanced order wants.
    """

    def __call__(self, views: int = 1, *, part: Tensor | None = None, batch_size: int | None = None) -> Batches: ...


@dataclass(frozen=True)
class Lesson:
    """What a student's training may use.

    Args:
        student: The network to train, on the device.
        teacher: What it learns from.
        data: The images; of a procedure that is data-free none for training: train_images (0, C, H, W).
        settings: All settings of the run.
        device: Where to compute.
        batches: Makes batches of training images.
        prepared: Puts a task on the device, its networks laid out and compiled as the settings say.
        world: The processes that train together.
    """

    student: Model
    teacher: FrozenTeacher
    data: ImageData
    settings: Settings
    device: torch.device
    batches: MakeBatches
    prepared: Callable[[Task], Task]
    world: World

    @cached_property
    def pair(self) -> Pair:
        """What losses may know of both networks."""
        return Pair(describe(self.student), describe(self.teacher.model), self.data.train_labels.to(self.device))

    def losses(self, kind: type[Losses]) -> Losses:
        """Those of the procedure in force, `kind`."""
        loss = self.settings.student.loss
        return kind(loss.settings_in_force()[kind.name], self.pair, loss.backend).to(self.device)

    def training_settings(self, batches: Epochs) -> TrainingSettings:
        """The student's, with the size that `batches` have."""
        return replace(self.settings.student, batch_size=batches.batch_size)

    def training(self, task: Task, batches: Epochs) -> Training:
        """That of `task`, which is made ready for it, by the student's settings."""
        return Training(self.prepared(task), batches, self.training_settings(batches), self.world)


class Trainable(Protocol):
    """What a run needs of a training; `icckd.training.Training` is one.

    settings: Those it trains by; its epochs are counted to settings.epochs.
    epoch: How many epochs are finished.
    seconds: How long it took, up to the last record or checkpoint.
    history: A record for each finished epoch.
    """

    settings: TrainingSettings
    epoch: int
    seconds: float
    history: list[Record]

    @property
    def batches(self) -> Sized:
        """As many as an epoch has steps."""

    @property
    def model(self) -> nn.Module:
        """The network as it answers now: images → (features, logits); in the end the student."""

    def fit(
        self,
        checkpoint: Checkpoint,
        checkpoint_every: int,
        evaluate: Callable[[], Record],
        on_step: Callable[[int, int, float | None], None],
        on_epoch: Callable[[list[Record]], None],
        stop: StopSignal,
    ) -> None:
        """As `icckd.training.Training.fit`."""

    def restore(self, state: Record) -> None:
        """Go back to a state that was saved. Raises UserError where it is of another kind of training."""


class Procedure(ABC):
    """A way to train a student from beginning to end.

    Made before anything is trained: raises UserError where `lesson` does not have what it needs.
    """

    def __init__(self, lesson: Lesson):
        self.lesson = lesson

    @abstractmethod
    def tasks(self) -> list[Task]:
        """Every kind of task that the training is made of; a run asks each about a few images before it begins."""

    @abstractmethod
    def training(self) -> Trainable:
        """The training, not yet begun."""

    def findings(self, test: EvaluationSet) -> Findings:
        """What the training leaves besides the network, asked about the test images after it."""
        return Findings()
