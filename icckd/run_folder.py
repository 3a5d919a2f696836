"""The folder that a run writes to: which file means what, and whose results may be replaced."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from icckd.errors import UserError
from icckd.files import json_line, write_json, write_text
from icckd.settings import Settings
from icckd.training import Checkpoint

_RESULTS = ("config.yaml", "metrics.jsonl", "summary.json", "report.html", "report.md", "teacher", "student")


class RunFolder:
    """`path` and the files of a run in it. Nothing is read or written before `open`."""

    def __init__(self, path: Path):
        self.path = path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def stage(self, name: str) -> Path:
        """The folder of the stage "teacher" or "student"."""
        return self.path / name

    def checkpoint(self, stage: str) -> Checkpoint:
        return Checkpoint(self.stage(stage) / "checkpoint")

    def open(self, settings: Settings, *, resume: bool = False, overwrite: bool = False) -> None:
        """Make the folder ready for a run with `settings`, whose config.yaml it then holds.

        Raises UserError, having changed nothing, where the folder holds results and neither flag is given, or where
        `resume` would continue a run that had other settings. A folder without results starts anew in either case.
        """
        if resume and overwrite:
            raise UserError("--resume continues a run and --overwrite replaces it; give one of them")
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--output {self.path} is a file; give a folder")
        if self._holds_results():
            if resume:
                self._check_same(settings)
            elif overwrite:
                self._remove_results(settings)
            else:
                raise UserError(
                    f"--output {self.path} holds another run's results; add --resume to continue that run, "
                    "--overwrite to replace it, or give another folder"
                )
        self._remove_temporaries()
        write_text(self.config, yaml.safe_dump(asdict(settings), sort_keys=False))

    def write_metrics(self, stage: str, history: list[dict[str, Any]]) -> None:
        """Replace the lines of `stage` in metrics.jsonl by `history`, a record per epoch; the teacher's come first."""
        lines = [line for line in self._metric_lines() if _stage_of(line) not in (stage, None)]
        lines += [json_line({"stage": stage, **record}) for record in history]
        lines.sort(key=lambda line: _stage_of(line) != "teacher")
        write_text(self.metrics, "".join(line + "\n" for line in lines))

    def write_summary(self, summary: dict[str, Any]) -> None:
        write_json(self.path / "summary.json", summary)

    def _metric_lines(self) -> list[str]:
        return self.metrics.read_text(encoding="utf-8").splitlines() if self.metrics.exists() else []

    def _holds_results(self) -> bool:
        return any((self.path / name).exists() for name in _RESULTS)

    def _check_same(self, settings: Settings) -> None:
        if not self.config.exists():
            raise UserError(f"{self.config} is missing, so the run in that folder cannot be continued")
        saved = _flat(read_config(self.config))
        for name, value in _flat(asdict(settings)).items():
            if saved.get(name) != value:
                raise UserError(
                    f"--resume: {name} is {value}, but the run in {self.path} has {saved.get(name)}; "
                    "leave the setting out, or start another run in another folder"
                )

    def _remove_results(self, settings: Settings) -> None:
        weights = settings.teacher.weights
        if weights is not None and Path(weights).resolve().is_relative_to(self.path.resolve()):
            raise UserError(f"--overwrite would delete the teacher that --teacher.weights {weights} names")
        for name in _RESULTS:
            target = self.path / name
            if target.is_dir() and not target.is_symlink():
                shutil.rmtree(target)
            else:
                target.unlink(missing_ok=True)

    def _remove_temporaries(self) -> None:
        """Remove what a killed process left half-written."""
        for name in (".", "teacher", "teacher/checkpoint", "student", "student/checkpoint"):
            for leftover in (self.path / name).glob(".*.tmp"):
                leftover.unlink(missing_ok=True)


def _stage_of(line: str) -> str | None:
    try:
        return json.loads(line)["stage"]
    except (ValueError, TypeError, KeyError):
        return None


def read_config(path: Path) -> dict[str, Any]:
    """The settings in `path` as nested dicts. Raises UserError where it is no YAML mapping."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path} is not readable YAML: {' '.join(str(error).split())[:160]}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} should hold settings by name, not {type(values).__name__}")
    return values


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
