"""How far a comparison is: bars on a terminal, a plain line for each finished run in a log."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any

import rich.progress
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn

from icckd.comparison.plan import Run
from icckd.comparison.worker import Told
from icckd.console import console, say

Numbers = Mapping[str, Any]


class ComparisonProgress:
    """Shows a comparison of `total` runs, `done` of them finished before, on standard error."""

    def __init__(self, total: int, done: int):
        self._total = total
        self._done = done
        self._failed = 0
        self._bars = rich.progress.Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._all = self._bars.add_task("runs", total=total, completed=done, note="")
        self._tasks: dict[Run, rich.progress.TaskID] = {}

    def __enter__(self) -> "ComparisonProgress":
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def began(self, run: Run) -> None:
        self._tasks[run] = self._bars.add_task(str(run), total=None, note="")

    def told(self, run: Run, told: Told) -> None:
        """`run` has come as far as it told."""
        self._bars.update(
            self._tasks[run], description=f"{run} {told.stage}", total=told.epochs, completed=told.epoch, note="epochs"
        )

    def left(self, seconds: float | None) -> None:
        """All will be finished in so many seconds (None: nobody knows)."""
        self._bars.update(self._all, note="" if seconds is None else ending(seconds))

    def finished(self, run: Run, numbers: Numbers, seconds: float, left: float | None) -> None:
        """`run` is finished, `seconds` after it began."""
        self._ended(run)
        self._done += 1
        self._bars.update(self._all, completed=self._done)
        rest = self._total - self._done - self._failed
        after = "" if not rest else f"; {rest} left" + ("" if left is None else f", {ending(left)}")
        say(f"{self._count()} {run}  {_shown(numbers)}  {duration(seconds)}{after}")

    def failed(self, run: Run, message: str) -> None:
        """`run` has ended without results."""
        self._ended(run)
        self._failed += 1
        say(f"{' ' * len(self._count())} {run} failed: {message}")

    def stopped(self, run: Run) -> None:
        """`run` was stopped and can be continued."""
        self._ended(run)

    def elsewhere(self, run: Run, numbers: Numbers) -> None:
        """`run`, of another shard, was found finished."""
        say(f"{' ' * len(self._count())} {run}  {_shown(numbers)}  by another shard")

    def _ended(self, run: Run) -> None:
        if run in self._tasks:
            self._bars.remove_task(self._tasks.pop(run))

    def _count(self) -> str:
        return f"{self._done:>{len(str(self._total))}}/{self._total}"


def ending(seconds: float) -> str:
    """When that will be, by the clock and from now."""
    end = datetime.now() + timedelta(seconds=seconds)
    day = "" if end.date() == datetime.now().date() else f"{end:%a %d %b} "
    return f"ends about {day}{end:%H:%M}, in {duration(seconds)}"


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them: "41 s", "12 min", "3 h 20 min"."""
    minutes = round(seconds / 60)
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def _shown(numbers: Numbers) -> str:
    return "  ".join(f"{name} {f'{of:.4f}' if isinstance(of, float) else of}" for name, of in numbers.items())
