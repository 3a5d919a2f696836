"""A comparison from its definition to its results."""

import sys
import time
from dataclasses import dataclass
from difflib import get_close_matches
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch

from icckd.comparison.crew import Crew
from icckd.comparison.estimate import Estimate
from icckd.comparison.folder import ComparisonFolder
from icckd.comparison.plan import Run, Schedule, Shard, runs_of, teacher_key
from icckd.comparison.progress import ComparisonProgress
from icckd.comparison.worker import Check, Done, Failed, Reply, Told, Train
from icckd.distributed import check_available
from icckd.errors import Interrupted, TrainingDiverged, UserError
from icckd.experiment import (
    FINE_NUMBERS,
    NUMBERS,
    ROBUST_NUMBERS,
    SWAP_NUMBERS,
    TAUGHT_NUMBERS,
    TRAINING_NUMBERS,
)
from icckd.methods.spectrum import Spectrum
from icckd.report.comparison import Results, write_comparison
from icckd.report.comparison.runs import read_runs
from icckd.settings import Comparison, Settings
from icckd.settings.names import shown
from icckd.training import StopSignal

_PATIENCE_SECONDS = 0.2
# Numbers that runs with a certain value of a setting do not have, and what to give in its place.
_MISSING = (
    (FINE_NUMBERS, "data.labels", "fine", "coarse"),
    (TRAINING_NUMBERS, "evaluation.training_images", 0, "a number of images"),
    (ROBUST_NUMBERS, "evaluation.attack", None, "fgsm or pgd"),
)


@dataclass(frozen=True)
class Outcome:
    """What a comparison came to: the statistics of what is finished, and what failed."""

    results: Results
    failures: dict[Run, Failed]

    def check(self) -> None:
        """Raise UserError where a run failed, or TrainingDiverged where all that did diverged; it names them."""
        if not self.failures:
            return
        first, failed = next(iter(self.failures.items()))
        message = f"{', '.join(map(str, self.failures))} failed; {first}: {failed.message}"
        raise (TrainingDiverged if all(each.diverged for each in self.failures.values()) else UserError)(message)


def compare(
    comparison: Comparison,
    path: Path,
    *,
    jobs: int = 1,
    processes: int = 1,
    shard: Shard | None = None,
    resume: bool = False,
    overwrite: bool = False,
    debug: bool = False,
) -> Outcome:
    """Train the runs of `shard` that are not finished in the folder `path`, `jobs` at a time; write the results of all.

    Each run takes `processes` processes, which share its batches. A run that fails does not stop the others. Raises
    UserError for what is wrong before anything is trained or changed, and Interrupted, every checkpoint saved, where a
    signal came.
    """
    folder, shard = ComparisonFolder(path), shard or Shard()
    if jobs < 1:
        raise UserError(f"--jobs is {jobs}; it should be 1 or more")
    if processes < 1:
        raise UserError(f"--processes is {processes}; it should be 1 or more")
    if processes > 1:
        check_available()
    if overwrite and shard.count > 1:
        raise UserError("--overwrite would remove the runs of other shards; give it without --shard")
    _check_metrics(comparison)
    runs = runs_of(comparison)
    own = shard.of(runs)
    folder.check(comparison, own, resume=resume, overwrite=overwrite)
    finished = [] if overwrite else folder.finished(comparison, runs)
    if finished:
        read_runs(path, comparison)  # What is broken in them is found now, and not after all the training.
    waiting = [run for run in own if run not in finished]
    failures: dict[Run, Failed] = {}
    if waiting:
        failures = _Training(comparison, folder, own, finished, jobs, processes, overwrite, debug).run(waiting)
    else:
        folder.open(comparison, overwrite=overwrite)
    return Outcome(write_results(folder, comparison), failures)


def _check_metrics(comparison: Comparison) -> None:
    """Raise UserError where a metric is no number of a summary: it would be found missing after all the training."""
    for metric in comparison.metrics:
        stage, _, name = metric.partition(".")
        if name not in NUMBERS:
            near = get_close_matches(name, NUMBERS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(NUMBERS)}"
            raise UserError(f"metrics holds {metric}, which no summary has; {hint}")
        if name in TAUGHT_NUMBERS and stage != "student":
            raise UserError(f"metrics holds {metric}, which only students have; give student.{name}")
        for numbers, setting, value, wanted in _MISSING:
            lacking = [
                variant for variant, settings in comparison.variants.items() if attrgetter(setting)(settings) == value
            ]
            if name in numbers and lacking:
                raise UserError(
                    f"metrics holds {metric}, which runs with {setting} {shown(value)}, such as {lacking[0]}, do not "
                    f"have: give {wanted}"
                )
        others = any(settings.teacher.loss.method != Spectrum.name for settings in comparison.variants.values())
        if name in SWAP_NUMBERS and (stage != "teacher" or others):
            raise UserError(
                f"metrics holds {metric}, which only teachers with teacher.loss.method spectrum have; give it where "
                "all variants do"
            )


def write_results(folder: ComparisonFolder, comparison: Comparison) -> Results:
    """Write the statistics and pages of what is finished, of other shards too.

    Two that end at the same time may write at the same time: who finds more finished afterwards writes again, so that
    nothing is missing in what stands in the end.
    """
    while True:
        before = folder.finished(comparison, runs_of(comparison))
        results = write_comparison(folder.path, comparison)
        if folder.finished(comparison, runs_of(comparison)) == before:
            return results


class _Training:
    """The training of one shard's runs."""

    def __init__(
        self,
        comparison: Comparison,
        folder: ComparisonFolder,
        own: list[Run],
        finished: list[Run],
        jobs: int,
        processes: int,
        overwrite: bool,
        debug: bool,
    ):
        self._comparison = comparison
        self._folder = folder
        self._jobs = jobs
        self._processes = processes
        self._overwrite = overwrite
        self._debug = debug
        self._finished = set(finished)
        self._own = set(own)
        self._estimate = Estimate(comparison)
        self._progress = ComparisonProgress(len(own), len(self._own & self._finished))
        self._began: dict[Run, float] = {}
        self._told: dict[Run, Told | None] = {}
        self._failures: dict[Run, Failed] = {}
        for run in finished:
            self._estimate.found(run, folder.run(run).read_summary())

    def run(self, waiting: list[Run]) -> dict[Run, Failed]:
        """Train the runs that wait, after a look at all of their settings; those that failed, and why."""
        keys = {run: teacher_key(self._settings(run)) for run in runs_of(self._comparison)}
        self._schedule = Schedule(waiting, keys)
        threads = max(1, torch.get_num_threads() // (self._jobs * self._processes))
        size = min(self._jobs, len(waiting))
        with StopSignal() as stop, Crew(size, threads, self._processes, self._debug) as crew:
            self._check(crew, waiting, stop)
            self._folder.open(self._comparison, overwrite=self._overwrite)
            with self._progress:
                self._train(crew, stop)
        if stop.received:
            raise Interrupted(stop.received)
        return self._failures

    def _check(self, crew: Crew, waiting: list[Run], stop: StopSignal) -> None:
        """Raise UserError where a variant cannot be trained: it should cost nothing but a look."""
        first = {run.variant: run for run in reversed(waiting)}
        looks = [run for run in waiting if first[run.variant] == run]
        while looks or crew.running:
            while looks and crew.has_room:
                run = looks.pop(0)
                crew.give(run, Check(self._settings(run), self._comparison.stages))
            for run, reply in crew.hear(_PATIENCE_SECONDS):
                if isinstance(reply, Failed):
                    self._show(reply)
                    raise UserError(f"{run.variant}: {reply.message}")
            if stop.received:
                raise Interrupted(stop.received)

    def _train(self, crew: Crew, stop: StopSignal) -> None:
        asked_to_stop = False
        while crew.running or (self._schedule.waiting and not stop.received):
            if stop.received and not asked_to_stop:
                crew.stop(stop.received)
                asked_to_stop = True
            while not stop.received and crew.has_room and (run := self._schedule.next()) is not None:
                self._begin(crew, run)
            for run, reply in crew.hear(_PATIENCE_SECONDS):
                self._hear(run, reply, stop)
            self._progress.left(self._left())

    def _begin(self, crew: Crew, run: Run) -> None:
        sharing = tuple(self._folder.run(other).path for other in self._schedule.sharing(run))
        crew.give(run, Train(self._settings(run), self._comparison.stages, self._folder.run(run).path, sharing))
        self._began[run], self._told[run] = time.monotonic(), None
        self._progress.began(run)

    def _hear(self, run: Run, reply: Reply, stop: StopSignal) -> None:
        if isinstance(reply, Told):
            self._told[run] = reply
            self._estimate.told(run, reply)
            self._progress.told(run, reply)
            if reply.stage == "student":
                self._schedule.teacher_finished(run)
            return
        told, seconds = self._told.pop(run), time.monotonic() - self._began.pop(run)
        self._schedule.teacher_finished(run)
        if isinstance(reply, Done):
            self._estimate.finished(run, seconds, reply.trained)
            self._finish(run, seconds)
        elif isinstance(reply, Failed):
            self._fail(run, reply)
            if reply.diverged and told is not None and told.stage != "student":
                for other in self._schedule.drop(self._schedule.sharing(run)):
                    self._fail(other, Failed(f"its teacher is that of {run}, whose training diverged", diverged=True))
        elif stop.received:
            self._progress.stopped(run)
        else:
            self._fail(run, Failed(str(Interrupted(reply.signal_number))))

    def _finish(self, run: Run, seconds: float) -> None:
        self._finished.add(run)
        self._progress.finished(run, self._numbers(run), seconds, self._left())
        others = [other for other in runs_of(self._comparison) if other not in self._own | self._finished]
        for other in self._folder.finished(self._comparison, others):
            self._finished.add(other)
            self._progress.elsewhere(other, self._numbers(other))

    def _fail(self, run: Run, failed: Failed) -> None:
        self._failures[run] = failed
        self._progress.failed(run, failed.message)
        self._show(failed)

    def _show(self, failed: Failed) -> None:
        if self._debug and failed.trace:
            print(failed.trace, file=sys.stderr)

    def _left(self) -> float | None:
        return self._estimate.left(self._schedule.waiting, self._told, self._jobs)

    def _settings(self, run: Run) -> Settings:
        return self._comparison.settings(run.variant, run.seed)

    def _numbers(self, run: Run) -> dict[str, Any]:
        """The metrics of a finished run."""
        summary = self._folder.run(run).read_summary()
        named = (metric.split(".") for metric in self._comparison.metrics)
        return {f"{stage}.{name}": summary.get(stage, {}).get(name) for stage, name in named}
