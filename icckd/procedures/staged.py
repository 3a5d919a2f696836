"""Staged distillation: trainings of the student up to one stage after another, then of all of it, as one training."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

from torch import Tensor, nn

from icckd.data import Batch, Epochs
from icckd.errors import TrainingDiverged, UserError
from icckd.methods import EvaluationSet, Findings, Outputs
from icckd.methods.staged import Staged
from icckd.models import Model
from icckd.procedures.procedure import Lesson, Procedure
from icckd.settings import TrainingSettings
from icckd.training import Checkpoint, Record, StopSignal, Task, Training
from icckd.training.tasks.frozen import FrozenTeacher, ask

_TEACHER = "teacher"
_STAGES = "trained_stages"


class StagedDistillation(Procedure):
    """A training for each stage: of the student up to it, by the losses of `icckd.methods.staged`.

    The epochs are divided as evenly as can be, the last training gets what remains. Each has a learning rate schedule
    of its own, with the warm-up, and begins with the weights that the one before has left.
    """

    def __init__(self, lesson: Lesson):
        super().__init__(lesson)
        self.method = lesson.losses(Staged)
        stages = self.method.student_stages
        self.epochs = divided(lesson.settings.student.epochs, stages)
        warmup, shortest = lesson.settings.student.warmup_epochs, min(self.epochs)
        if warmup > shortest:
            raise UserError(
                f"student.warmup_epochs is {warmup:g}; it should be {shortest} or less: student.loss.method staged "
                f"trains {', '.join(stages)} one after another, for {', '.join(map(str, self.epochs))} epochs"
            )
        self._training: StagedTraining | None = None

    def tasks(self) -> list[Task]:
        lesson, numbers = self.lesson, range(1, len(self.epochs) + 1)
        return [StagedTask(lesson.student, lesson.teacher, self.method, number) for number in numbers]

    def training(self) -> "StagedTraining":
        self._training = StagedTraining(self.lesson, self.tasks(), self.epochs)
        return self._training

    def findings(self, test: EvaluationSet) -> Findings:
        """How long each stage was trained, what it reached if it was measured, weights of stages in its last epoch."""
        assert self._training is not None
        stages, history = self.method.student_stages, self._training.history
        ends = [history[end - 1] for end in accumulate(self.epochs)]
        found = {
            stage: {
                "epochs": epochs,
                "test_accuracy": end.get("test_accuracy"),
                "weights": {name: end.get(f"train_weight_{name}") for name in stages[: number + 1]},
            }
            for number, (stage, epochs, end) in enumerate(zip(stages, self.epochs, ends, strict=True))
        }
        return Findings(numbers={"stages": found})


def divided(epochs: int, stages: Sequence[str]) -> list[int]:
    """How many epochs each of `stages` is trained for. Raises UserError where there are too few."""
    each, rest = divmod(epochs, len(stages))
    if each == 0:
        raise UserError(
            f"student.epochs is {epochs}; it should be {len(stages)} or more: student.loss.method staged trains "
            f"{', '.join(stages)} one after another"
        )
    return [*[each] * (len(stages) - 1), each + rest]


class Prefix(nn.Module):
    """A network up to a stage, whose map, averaged over positions, is the features, and a `head` on these."""

    def __init__(self, network: Model, stage: str, head: nn.Module):
        super().__init__()
        self.network = network
        self.stage = stage
        self.head = head

    def forward(
        self, images: Tensor, stages: Sequence[str] = ()
    ) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, dict[str, Tensor]]:
        """As of a Model; `stages` are of those up to the last."""
        maps = self.network.maps(images, (*stages, self.stage))
        features = maps[self.stage].mean(dim=(2, 3))
        logits = self.head(features)
        return (features, logits, maps) if stages else (features, logits)


class StagedTask(Task):
    """The training of that number, from 1: of a student up to a stage, with a head; in the last one, of all of it.

    What comes after the stage is not run and gets no gradient, so that it stays as it is.
    """

    def __init__(self, student: Model, teacher: FrozenTeacher, method: Staged, number: int):
        super().__init__()
        self.number = number
        self.own, self.others = method.student_stages[:number], method.teacher_stages[:number]
        last = number == len(method.student_stages)
        self.model = student if last else Prefix(student, self.own[-1], method.heads[number - 1])
        self.teacher = teacher
        self.method = method

    def ask(self, batch: Batch) -> Outputs:
        (images,) = batch.views
        return ask(self.asked, images, self.own)

    def ask_without_gradient(self, batch: Batch) -> dict[str, Outputs]:
        (images,) = batch.views
        return {_TEACHER: self.teacher(images, self.others)}

    def losses(self, outputs: Outputs, others: Mapping[str, Outputs], batch: Batch) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = self.method(self.number, outputs, others[_TEACHER], self.samples_of(batch))
        return losses

    def networks(self) -> list[nn.Module]:
        return [self.model, self.teacher.model]

    def after_step(self, taken: Tensor) -> None:
        self.method.after_step(taken)


class StagedTraining:
    """Trainings of `tasks` one after another, each for so many `epochs`, as one `icckd.procedures.Trainable`.

    Epochs are counted through: in batches, in what is told of progress and in records, which also say how many stages
    are trained. A checkpoint is that of the training under way, with its number and the records before it.
    """

    def __init__(self, lesson: Lesson, tasks: Sequence[Task], epochs: Sequence[int]):
        self.lesson = lesson
        self.tasks = tasks
        self.epochs = epochs
        self.batches = lesson.batches()
        self.settings = lesson.training_settings(self.batches)
        self.epoch = 0
        self.seconds = 0.0
        self.history: list[Record] = []
        self._begin(1)

    @property
    def model(self) -> nn.Module:
        """What is trained now: the student up to a stage, or all of it."""
        return self._training.model

    def fit(
        self,
        checkpoint: Checkpoint,
        checkpoint_every: int,
        evaluate: Callable[[], Record],
        on_step: Callable[[int, int, float | None], None],
        on_epoch: Callable[[list[Record]], None],
        stop: StopSignal,
    ) -> None:
        """As `icckd.training.Training.fit`, through all trainings."""

        def step(epoch: int, step: int, loss: float | None) -> None:
            on_step(self._training.first_epoch + epoch, step, loss)

        def told(history: list[Record]) -> None:
            self._follow()
            on_epoch(self.history)

        while True:
            training = self._training
            try:
                training.fit(checkpoint, checkpoint_every, evaluate, step, told, stop)
            except TrainingDiverged as error:
                raise TrainingDiverged(f"in the training of stage {training.number} {error}") from error
            if training.number == len(self.tasks):
                return
            self._begin(training.number + 1)

    def restore(self, state: Record) -> None:
        """Go back to a state that was saved. Raises UserError where it is of another kind of training."""
        try:
            number, self.history = int(state["number"]), [dict(record) for record in state["earlier"]]
            if not 1 <= number <= len(self.tasks):
                raise ValueError(f"it is of training {number} of {len(self.tasks)}")
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"the checkpoint does not fit this training: {error}") from error
        self._begin(number)
        self._training.restore(state)
        self._follow()

    def _begin(self, number: int) -> None:
        """The training of that number, of the student as it is, after what `history` tells of those before."""
        task, first_epoch = self.lesson.prepared(self.tasks[number - 1]), sum(self.epochs[: number - 1])
        settings = replace(self.settings, epochs=self.epochs[number - 1])
        self._training = _TrainingOfStage(task, self.batches, settings, number, first_epoch, self.history)
        self._training.seconds = self.seconds

    def _follow(self) -> None:
        """Take over how far the training under way has come."""
        training = self._training
        self.epoch = training.first_epoch + training.epoch
        self.seconds = training.seconds
        self.history = [*training.earlier, *map(training.told, training.history)]


class _TrainingOfStage(Training):
    """The training of that number, from `first_epoch` on, of the epochs of all.

    Its history is its own; `earlier` are the records of those before, as they were told.
    """

    def __init__(
        self,
        task: Task,
        batches: Epochs,
        settings: TrainingSettings,
        number: int,
        first_epoch: int,
        earlier: list[Record],
    ):
        super().__init__(task, _Later(batches, first_epoch), settings)
        self.number = number
        self.first_epoch = first_epoch
        self.earlier = earlier

    def told(self, record: Record) -> Record:
        """A record of its own, counted from the beginning of all."""
        skipped = self.earlier[-1]["skipped_steps"] if self.earlier else 0
        return {
            **record,
            "epoch": self.first_epoch + record["epoch"],
            "step": self.first_epoch * len(self.batches) + record["step"],
            "skipped_steps": skipped + record["skipped_steps"],
            _STAGES: self.number,
        }

    def state(self) -> Record:
        return {**super().state(), "number": self.number, "earlier": self.earlier}


class _Later:
    """Batches from a later epoch on, so that no training sees the images as the one before has."""

    def __init__(self, batches: Epochs, first_epoch: int):
        self.batches = batches
        self.batch_size = batches.batch_size
        self.first_epoch = first_epoch

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, number: int, first_step: int = 0) -> Iterator[Batch]:
        return self.batches.epoch(self.first_epoch + number, first_step)
