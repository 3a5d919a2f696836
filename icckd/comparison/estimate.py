"""When a comparison will end, from the seconds that epochs have taken so far."""

from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any

from icckd.comparison.plan import Run, TeacherKey, teacher_key
from icckd.comparison.worker import Told
from icckd.experiment.class_augmentation import trial_epochs
from icckd.settings import STAGES, Comparison


class Estimate:
    """Learns what an epoch of each variant and stage takes, and what a run takes beside its training.

    What is not known of a variant yet is taken to be as with the others on average, what is known of no student to be
    as with the teachers, and a trial of class augmentation to be as the teacher.
    """

    def __init__(self, comparison: Comparison):
        self._comparison = comparison
        self._seconds: dict[tuple[str, str], float] = {}
        self._beside: list[float] = []
        # A number for each teacher, asked for so often that it is worked out once.
        self._numbers: dict[TeacherKey, int] = {}
        self._teacher_of: dict[Run, int | None] = {}
        self._teachers: set[int | None] = set()

    def found(self, run: Run, summary: Mapping[str, Any]) -> None:
        """A run was finished before, with this summary."""
        self._teachers.add(self._teacher(run))
        for stage in self._comparison.stages:
            seconds = summary[stage].get("seconds")
            if isinstance(seconds, (int, float)):
                self._seconds.setdefault((run.variant, stage), seconds / self._epochs(run)[stage])

    def told(self, run: Run, told: Told) -> None:
        if told.stage == "student":
            self._teachers.add(self._teacher(run))
        if told.seconds_per_epoch is not None:
            self._seconds[run.variant, told.stage] = told.seconds_per_epoch

    def finished(self, run: Run, seconds: float, trained: float) -> None:
        """A run took `seconds`, `trained` of them in its trainings."""
        self._teachers.add(self._teacher(run))
        self._beside.append(seconds - trained)

    def left(self, waiting: Iterable[Run], running: Mapping[Run, Told | None], jobs: int) -> float | None:
        """Seconds until all of these runs are finished, `jobs` at a time; None where nothing is known yet."""
        teachers = set(self._teachers)
        costs = [self._cost(run, told, teachers) for run, told in [*running.items(), *((run, None) for run in waiting)]]
        known = [cost for cost in costs if cost is not None]
        if len(known) < len(costs):
            return None
        return max([sum(known) / jobs, *known]) if known else 0.0

    def _cost(self, run: Run, told: Told | None, teachers: set[int | None]) -> float | None:
        """What is left of one run, whose teacher then is among `teachers`."""
        teacher = self._teacher(run)
        total = fmean(self._beside) if self._beside else 0.0
        epochs = self._epochs(run)
        stages = list(epochs)
        now = stages.index(told.stage) if told is not None and told.stage in stages else 0
        for stage in stages[now:]:
            if stage != "student" and (teacher is None or teacher in teachers):
                continue
            seconds = self._per_epoch(run.variant, stage)
            if seconds is None:
                return None
            done = told.epoch if told is not None and told.stage == stage else 0.0
            total += (epochs[stage] - done) * seconds
        teachers.add(teacher)
        return total

    def _per_epoch(self, variant: str, stage: str) -> float | None:
        if (variant, stage) in self._seconds:
            return self._seconds[variant, stage]
        if stage not in STAGES:
            return self._per_epoch(variant, "teacher")
        for like in ((stage,), ("teacher",), {of for _, of in self._seconds}):
            seconds = [seconds for (_, of), seconds in self._seconds.items() if of in like]
            if seconds:
                return fmean(seconds)
        return None

    def _epochs(self, run: Run) -> dict[str, int]:
        """The epochs of what the run trains, by stage, in order."""
        settings = self._comparison.variants[run.variant]
        stages = {stage: getattr(settings, stage).epochs for stage in self._comparison.stages}
        return trial_epochs(settings) | stages

    def _teacher(self, run: Run) -> int | None:
        """Which teacher the run has, the same as others that share it; None: one that is given."""
        if run not in self._teacher_of:
            key = teacher_key(self._comparison.settings(run.variant, run.seed))
            number = None if key is None else self._numbers.setdefault(key, len(self._numbers))
            self._teacher_of[run] = number
        return self._teacher_of[run]
