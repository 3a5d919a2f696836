"""The folder of a comparison: its definition, where each run is, which are finished, and whose may be replaced."""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import yaml

from icckd.comparison.plan import Run, runs_of
from icckd.errors import UserError
from icckd.experiment import RunFolder
from icckd.files import write_text
from icckd.settings import Comparison, check_text, read_comparison

_RESULTS = ("compare.yaml", "compare.json", "compare.csv", "compare.md", "compare.html")


class ComparisonFolder:
    """`path` and what a comparison keeps in it. Nothing is read or written before a method is called.

    Raises UserError where `path` is not UTF-8, in which its files are written.
    """

    def __init__(self, path: Path):
        check_text("--output", str(path))
        self.path = path

    @property
    def definition(self) -> Path:
        return self.path / "compare.yaml"

    def run(self, run: Run) -> RunFolder:
        return RunFolder(self.path / "runs" / run.variant / str(run.seed))

    def read(self) -> Comparison:
        """The comparison that the folder holds. Raises UserError where it holds none."""
        return read_comparison(self.definition)

    def finished(self, comparison: Comparison, runs: Iterable[Run]) -> list[Run]:
        """Those of `runs` whose summary tells of every stage, whatever else there is of them, in order.

        Raises UserError where a summary is broken.
        """
        return [run for run in runs if self.run(run).read_summary().keys() >= set(comparison.stages)]

    def check(
        self, comparison: Comparison, runs: Iterable[Run], *, resume: bool = False, overwrite: bool = False
    ) -> None:
        """Raise UserError where `runs` may not be trained here, or had other settings. Changes nothing.

        Summaries that are all that is left of a run agree with any settings.
        """
        if resume and overwrite:
            raise UserError("--resume continues a comparison and --overwrite replaces it; give one of them")
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--output {self.path} is a file; give a folder")
        if overwrite:
            self._check_spared(comparison)
            return
        if not resume and any(self.run(run).holds_results() for run in runs):
            raise UserError(
                f"--output {self.path} holds runs of a comparison; add --resume to continue it, --overwrite to replace "
                "it, or give another folder"
            )
        self._check_kept(comparison)
        done = set(self.finished(comparison, runs_of(comparison)))
        for run in runs_of(comparison):
            folder = self.run(run)
            if folder.holds_results() and (run not in done or folder.config.exists()):
                folder.check(comparison.settings(run.variant, run.seed))

    def open(self, comparison: Comparison, *, overwrite: bool = False) -> None:
        """Keep the definition; with `overwrite`, first remove every run and all results. `check` comes before."""
        if overwrite:
            for folder in self._run_folders():
                folder.remove_results()
                for emptied in (folder.path, folder.path.parent):
                    with suppress(OSError):  # Somebody else's files are in it.
                        emptied.rmdir()
            for name in _RESULTS:
                (self.path / name).unlink(missing_ok=True)
        write_text(self.definition, yaml.safe_dump(comparison.definition(), sort_keys=False, allow_unicode=True))

    def _run_folders(self) -> list[RunFolder]:
        return [RunFolder(path) for path in sorted(self.path.glob("runs/*/*")) if path.name.isdecimal()]

    def _check_kept(self, comparison: Comparison) -> None:
        """Raise UserError where results would lose runs that the folder's own definition has, and that are there."""
        try:
            before = runs_of(self.read())
        except UserError:  # There is none, or none that names runs.
            return
        named = set(runs_of(comparison))
        lost = [run for run in before if run not in named and self.run(run).holds_results()]
        if lost:
            raise UserError(
                f"the results in {self.path} would lose {lost[0]}, which is there: --resume goes on with the seeds and "
                "variants that were there before; name them too, or remove their folders in runs/"
            )

    def _check_spared(self, comparison: Comparison) -> None:
        runs = self.path / "runs"
        if runs.exists() and not self.definition.exists():
            raise UserError(
                f"--overwrite would delete {runs}, but {self.path} holds no comparison: it has no compare.yaml; give "
                "another folder"
            )
        for variant, settings in comparison.variants.items():
            weights = settings.teacher.weights
            if weights is not None and Path(weights).resolve().is_relative_to(runs.resolve()):
                raise UserError(f"--overwrite would delete the teacher of {variant}: teacher.weights is {weights}")
