"""What a process that trains runs is told and answers, and how it does what it is told."""

import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from icckd.data import ImageData, load_data
from icckd.distributed import ALONE, World
from icckd.errors import Interrupted, TrainingDiverged, UserError, printable, reason
from icckd.experiment import Experiment, RunFolder
from icckd.experiment.requirements import needs_training_images
from icckd.settings import DataSettings, Settings
from icckd.training import StopSignal

_TELL_EVERY_SECONDS = 0.3


@dataclass(frozen=True)
class Check:
    """Find out whether a run with these settings could be trained. Answered by Done or Failed."""

    settings: Settings
    stages: tuple[str, ...]


@dataclass(frozen=True)
class Train:
    """Train this run in `folder`, or continue it; its teacher is copied where one of the folders `sharing` has it.

    Answered by Told, any number of times, then Done, Failed or Stopped.
    """

    settings: Settings
    stages: tuple[str, ...]
    folder: Path
    sharing: tuple[Path, ...]


@dataclass(frozen=True)
class Stop:
    """End the training in good order, as if this signal had come. Answered by Stopped, or what came before."""

    signal_number: int


@dataclass(frozen=True)
class Told:
    """How far a stage is, in epochs, and the seconds an epoch takes (None: not known yet)."""

    stage: str
    epoch: float
    epochs: int
    seconds_per_epoch: float | None = None


@dataclass(frozen=True)
class Done:
    """What was ordered is done; `trained` is how many of the seconds went into training."""

    trained: float = 0.0


@dataclass(frozen=True)
class Failed:
    """Why not, on one line; `trace` is for whoever debugs. With it, the `last` answer, the worker ends."""

    message: str
    diverged: bool = False
    trace: str = ""
    last: bool = False


@dataclass(frozen=True)
class Stopped:
    """A signal ended the training; its checkpoint is saved."""

    signal_number: int


Order = Check | Train
Answer = Done | Failed | Stopped
Reply = Told | Answer


class Worker:
    """What lasts from one order to the next: the data that were loaded last.

    Of the processes of `world`, which carry out the same orders, the first alone tells.
    """

    def __init__(self, tell: Callable[[Reply], None], stop: StopSignal, world: World = ALONE):
        self._tell = tell
        self._stop = stop
        self._world = world
        self._loaded: tuple[tuple[DataSettings, bool], ImageData] | None = None
        self._trained = 0.0

    def answer(self, order: Order) -> Answer:
        """Carry out `order`. An error of several processes is raised: it ends them all."""
        self._trained = 0.0
        try:
            experiment = self._experiment(order)
            if isinstance(order, Train):
                self._train(order, experiment)
            return Done(self._trained)
        except Interrupted as stopped:
            return Stopped(stopped.signal_number)
        except Exception as error:  # Of any kind: no run may end the others.
            if self._world.size > 1:
                raise
            return Failed(_reason(error), isinstance(error, TrainingDiverged), traceback.format_exc())

    def _experiment(self, order: Order) -> Experiment:
        settings = order.settings
        wanted = (settings.data, needs_training_images(settings, order.stages))
        if self._loaded is None or self._loaded[0] != wanted:
            self._loaded = None  # Never two at once: they may be large.
            self._loaded = (wanted, load_data(settings.data, train=wanted[1]))
        return Experiment(
            settings,
            order.stages,
            data=self._loaded[1],
            progress=self._progress,
            stop=lambda: nullcontext(self._stop),
            world=self._world,
        )

    def _train(self, order: Train, experiment: Experiment) -> None:
        folder = RunFolder(order.folder)
        if self._world.first and not folder.has_teacher_of(order.settings):
            finished = (RunFolder(path) for path in order.sharing)
            source = next((other for other in finished if other.has_teacher_of(order.settings)), None)
            if source is not None:
                folder.take_teacher(source, order.settings)
        experiment.run(folder, resume=True)

    def _progress(self, stage: str, epochs: int, steps: int) -> "_Telling":
        return _Telling(self._tell, stage, epochs, steps, self._add)

    def _add(self, seconds: float) -> None:
        self._trained += seconds


class _Telling:
    """Tells the parent how far one training is."""

    def __init__(
        self, tell: Callable[[Reply], None], stage: str, epochs: int, steps: int, add: Callable[[float], None]
    ):
        self._tell = tell
        self._stage = stage
        self._epochs = epochs
        self._steps = steps
        self._add = add
        self._began = self._told = time.monotonic()
        self._first: int | None = None
        self._seconds_per_epoch: float | None = None

    def __enter__(self) -> "_Telling":
        self._tell(Told(self._stage, 0.0, self._epochs))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._add(time.monotonic() - self._began)

    def step(self, epoch: int, step: int, loss: float | None) -> None:
        if self._first is None:
            self._first = epoch
        if time.monotonic() - self._told > _TELL_EVERY_SECONDS:
            self._send(epoch + step / self._steps)

    def epoch(self, record: dict[str, Any]) -> None:
        # Of an epoch that is resumed only a part is timed: those before the second count once it is over.
        done = record["epoch"] - (self._first or 0)
        self._seconds_per_epoch = (time.monotonic() - self._began) / max(done, 1)
        self._send(record["epoch"])

    def _send(self, epoch: float) -> None:
        self._told = time.monotonic()
        self._tell(Told(self._stage, epoch, self._epochs, self._seconds_per_epoch))


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename:
        return printable(f"{error.filename}: {error.strerror}")
    text = reason(error, 300)
    return printable(text if isinstance(error, (UserError, TrainingDiverged)) else f"{type(error).__name__}: {text}")
