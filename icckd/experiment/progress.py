"""Progress of a training: a bar on a terminal, plain lines in a log."""

from types import TracebackType
from typing import Any, Protocol

import rich.progress
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from icckd.console import console


class Progress(Protocol):
    """Is told how far one training is; entered for as long as that goes on."""

    def __enter__(self) -> "Progress": ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def step(self, epoch: int, step: int, loss: float | None) -> None:
        """Step `step` of epoch `epoch` (0-based) is done; its loss, where that was read."""

    def epoch(self, record: dict[str, Any]) -> None:
        """An epoch with the numbers in `record` is done."""


class TrainingProgress:
    """Shows one training on standard error: a bar over the epoch's steps, and a line for each finished epoch."""

    def __init__(self, stage: str, epochs: int, steps: int):
        self.stage = stage
        self.epochs = epochs
        self.steps = steps
        self._bar = rich.progress.Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(stage, total=steps, loss=float("nan"))

    def __enter__(self) -> "TrainingProgress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def step(self, epoch: int, step: int, loss: float | None) -> None:
        """Step `step` of epoch `epoch` (0-based) is done; its loss, where that was read."""
        description = f"{self.stage} epoch {epoch + 1}/{self.epochs}"
        self._bar.update(self._task, description=description, completed=step)
        if loss is not None:
            self._bar.update(self._task, loss=loss)

    def epoch(self, record: dict[str, Any]) -> None:
        """An epoch with the numbers in `record` is done."""
        numbers = [f"loss {record.get('train_loss', float('nan')):.4f}"]
        if "test_accuracy" in record:  # After this epoch the network was measured.
            numbers.append(f"accuracy {record['test_accuracy']:.4f}")
        if self.stage == "teacher" and "distance_ratio" in record:
            numbers.append(f"distance ratio {record['distance_ratio']:.3f}")
        if record["skipped_steps"]:
            numbers.append(f"skipped steps {record['skipped_steps']}")
        epoch = f"{record['epoch']:>{len(str(self.epochs))}}/{self.epochs}"
        console.print(f"{self.stage} epoch {epoch}  {'  '.join(numbers)}  {record['seconds']:.0f} s", soft_wrap=True)


class _Silent:
    """Shows nothing."""

    def __enter__(self) -> "_Silent":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def step(self, epoch: int, step: int, loss: float | None) -> None:
        pass

    def epoch(self, record: dict[str, Any]) -> None:
        pass


def no_progress(stage: str, epochs: int, steps: int) -> Progress:
    """For a process beside the one that shows it."""
    return _Silent()
