"""Which runs a comparison is made of, and in which order they start."""

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from icckd.errors import UserError
from icckd.settings import Comparison, Settings, flat, stage_of

TeacherKey = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Run:
    """A variant with a seed."""

    variant: str
    seed: int

    def __str__(self) -> str:
        return f"{self.variant}/{self.seed}"


@dataclass(frozen=True)
class Shard:
    """Every `count`-th run from the `index`-th on, from 0."""

    index: int = 0
    count: int = 1

    @staticmethod
    def parse(text: str) -> "Shard":
        """The shard that "I/N" names. Raises UserError where it is none."""
        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text, re.ASCII)
        index, count = (int(part) for part in match.groups()) if match else (0, 0)
        if index >= count:
            raise UserError(f"--shard is {text!r}; it should be I/N, with I from 0 to N − 1: 0/4, 1/4, 2/4 and 3/4")
        return Shard(index, count)

    def of(self, runs: list[Run]) -> list[Run]:
        return runs[self.index :: self.count]


def runs_of(comparison: Comparison) -> list[Run]:
    """Every run: all variants of the first seed, then of the next, so that what is finished can be compared."""
    return [Run(variant, seed) for seed in comparison.seeds for variant in comparison.variants]


def teacher_key(settings: Settings) -> TeacherKey | None:
    """What runs have in common that have the same teacher: every setting but the student's. None: it is given."""
    if settings.teacher.weights is not None:
        return None
    return tuple((name, repr(of)) for name, of in flat(asdict(settings)).items() if stage_of(name) != "student")


class Schedule:
    """Runs that wait for a worker, in order.

    One whose teacher is being trained waits until that is finished, and then takes it. `keys` are the runs' teacher
    keys.
    """

    def __init__(self, waiting: Iterable[Run], keys: dict[Run, TeacherKey | None]):
        self.waiting = list(waiting)
        self._keys = keys
        self._training: dict[Run, TeacherKey] = {}

    def next(self) -> Run | None:
        """The first run that may start, which then has; None where there is none at present."""
        for run in self.waiting:
            key = self._keys[run]
            if key is None or key not in self._training.values():
                self.waiting.remove(run)
                if key is not None:
                    self._training[run] = key
                return run
        return None

    def teacher_finished(self, run: Run) -> None:
        """The teacher of `run` is there, or will not be: others need not wait for it."""
        self._training.pop(run, None)

    def sharing(self, run: Run) -> list[Run]:
        """All other runs with the same teacher, whether they wait or not."""
        key = self._keys[run]
        return [other for other in self._keys if key is not None and other != run and self._keys[other] == key]

    def drop(self, runs: Iterable[Run]) -> list[Run]:
        """Those of `runs` that waited, and now do no longer."""
        dropped = [run for run in runs if run in self.waiting]
        self.waiting = [run for run in self.waiting if run not in dropped]
        return dropped
