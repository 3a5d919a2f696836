"""The folder that a run writes to: which file means what, and whose results may be replaced."""

import json
import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from icckd.distributed import ALONE, World
from icckd.errors import UserError
from icckd.files import json_line, write_json, write_text, write_whole
from icckd.models import DESCRIPTION, WEIGHTS
from icckd.settings import STAGES, Settings, check_text, flat, stage_of
from icckd.training import Checkpoint

_RESULTS = (
    *("config.yaml", "inputs.json", "metrics.jsonl", "summary.json", "report.html", "report.md"),
    *("class_augmentation", "tensorboard", *STAGES),
)
# What may be another when a run is continued: no result depends on it but by rounding.
_FREE = ("data.workers", *(f"{stage}.shard_parameters" for stage in STAGES))


class RunFolder:
    """`path` and the files of a run in it. Nothing is read or written before a method is called.

    Raises UserError where `path` is not UTF-8, in which its files are written.
    """

    def __init__(self, path: Path):
        check_text("--output", str(path))
        self.path = path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def inputs(self) -> Path:
        """What the run was started with, a digest of each input by name: JSON, str → str."""
        return self.path / "inputs.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    def stage(self, name: str) -> Path:
        """The folder of the stage "teacher" or "student"."""
        return self.path / name

    def findings(self, stage: str) -> Path:
        """Tensors that a stage's training left besides the network."""
        return self.stage(stage) / "findings.safetensors"

    def events(self, stage: str) -> Path:
        """The folder of a stage's event files, for TensorBoard."""
        return self.path / "tensorboard" / stage

    def trial(self, name: str) -> "RunFolder":
        """That of a trial of class augmentation: a run of its own within this one."""
        return RunFolder(self._trials / name)

    @property
    def _trials(self) -> Path:
        return self.path / "class_augmentation"

    def checkpoint(self, stage: str, world: World = ALONE) -> Checkpoint:
        """That of a stage; the processes of `world` use it together."""
        return Checkpoint(self.stage(stage) / "checkpoint", world)

    def open(
        self,
        settings: Settings,
        inputs: Mapping[str, str] | None = None,
        *,
        resume: bool = False,
        overwrite: bool = False,
    ) -> None:
        """Make the folder ready for a run with `settings` on `inputs`, whose config.yaml and inputs.json it then holds.

        `inputs` are digests by name (None: not known). Raises UserError, having changed nothing, where the folder holds
        results and neither flag is given, or where `resume` would continue a run that had other settings or inputs. The
        settings of a stage that has not begun may be others; a run of an older version has no inputs.json and takes the
        present ones. A folder without results starts anew in either case.
        """
        if resume and overwrite:
            raise UserError("--resume continues a run and --overwrite replaces it; give one of them")
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--output {self.path} is a file; give a folder")
        if self.holds_results():
            if resume:
                self.check(settings)
                self._check_inputs(inputs or {})
            elif overwrite:
                self._check_spared(settings)
                self.remove_results()
            else:
                raise UserError(
                    f"--output {self.path} holds another run's results; add --resume to continue that run, "
                    "--overwrite to replace it, or give another folder"
                )
        self._remove_temporaries()
        _keep(self.config, yaml.safe_dump(asdict(settings), sort_keys=False))
        if inputs is not None:
            _keep(self.inputs, json.dumps(dict(inputs), indent=2, ensure_ascii=False) + "\n")

    def holds_results(self) -> bool:
        """Is there anything of a run?"""
        return any((self.path / name).exists() for name in _RESULTS)

    def check(self, settings: Settings) -> None:
        """Raise UserError where the run in the folder cannot be continued with `settings`, as `open` says. Reads only.

        A stage has begun where it has a folder or the summary tells of it, and the teacher with its first trial.
        """
        summary = self.read_summary()
        begun = {stage for stage in STAGES if stage in summary or self.stage(stage).exists()}
        self._check_same(settings, begun | ({"teacher"} if self._trials.exists() else set()))

    def read_summary(self) -> dict[str, Any]:
        """What summary.json holds by stage; nothing where there is none yet. Raises UserError where it is broken."""
        return _read_objects(self.summary, dict) if self.summary.exists() else {}

    def holds_model(self, stage: str) -> bool:
        """Has `stage` left a trained network?"""
        return all((self.stage(stage) / name).is_file() for name in (WEIGHTS, DESCRIPTION))

    def has_teacher_of(self, settings: Settings) -> bool:
        """Is a finished teacher here, and is all that its training depended on as in `settings`?"""
        if "teacher" not in self.read_summary() or not self.holds_model("teacher") or not self.config.exists():
            return False
        try:
            self._check_same(settings, {"teacher"})
        except UserError:
            return False
        return True

    def take_teacher(self, source: "RunFolder", settings: Settings) -> None:
        """Copy the finished teacher of another run, as if this run, with `settings`, had trained it.

        A kill at any moment leaves a run that can be continued: the summary, which tells of the teacher, is written
        last. The checkpoint is not copied: nobody resumes from it. Raises UserError as `open` does with resume.
        """
        self.open(settings, source._recorded_inputs(), resume=True)
        for path in sorted(source.stage("teacher").iterdir()):
            if path.is_file() and not path.name.startswith("."):
                write_whole(self.stage("teacher") / path.name, partial(shutil.copyfile, path))
        lines = [line for line in source._metric_lines() if _stage_of(line) == "teacher"]
        write_text(self.metrics, "".join(line + "\n" for line in lines))
        self.write_summary({name: of for name, of in source.read_summary().items() if name != "student"})

    def write_metrics(self, stage: str, history: list[dict[str, Any]]) -> None:
        """Replace the lines of `stage` in metrics.jsonl by `history`, a record per epoch; the teacher's come first."""
        lines = [line for line in self._metric_lines() if _stage_of(line) not in (stage, None)]
        lines += [json_line({"stage": stage, **record}) for record in history]
        lines.sort(key=lambda line: _stage_of(line) != "teacher")
        write_text(self.metrics, "".join(line + "\n" for line in lines))

    def write_summary(self, summary: dict[str, Any]) -> None:
        write_json(self.summary, summary)

    def _metric_lines(self) -> list[str]:
        # What is no line of this tool's is dropped as it is written again: bytes of anything else are no error.
        return self.metrics.read_text(encoding="utf-8", errors="replace").splitlines() if self.metrics.exists() else []

    def _check_same(self, settings: Settings, begun: Collection[str]) -> None:
        if not self.config.exists():
            raise UserError(f"{self.config} is missing, so the run in that folder cannot be continued")
        # What the run's version had no setting for is as its default says: methods are added, their settings with them.
        saved = flat(asdict(Settings())) | flat(read_config(self.config))
        for name, value in flat(asdict(settings)).items():
            owner, then = stage_of(name), saved.get(name)
            # A setting that is not in force may be no number.
            same = name in _FREE or then == value or (then != then and value != value)
            if not same and (owner is None or owner in begun):
                raise UserError(
                    f"--resume: {name} is {value}, but the run in {self.path} has {then}; "
                    "leave the setting out, or start another run in another folder"
                )

    def _recorded_inputs(self) -> dict[str, str]:
        return _read_objects(self.inputs, str) if self.inputs.exists() else {}

    def _check_inputs(self, inputs: Mapping[str, str]) -> None:
        recorded = self._recorded_inputs()
        for name, digest in inputs.items():
            then = recorded.get(name, digest)
            if then != digest:
                raise UserError(
                    f"--resume: {name} differs from what the run in {self.path} was started with "
                    f"({_short(digest)} now, {_short(then)} then); give that, or start another run in another folder"
                )

    def _check_spared(self, settings: Settings) -> None:
        weights = settings.teacher.weights
        if weights is not None and Path(weights).resolve().is_relative_to(self.path.resolve()):
            raise UserError(f"--overwrite would delete the teacher that --teacher.weights {weights} names")

    def remove_results(self) -> None:
        """Remove every file of a run; what else is in the folder stays."""
        for name in _RESULTS:
            target = self.path / name
            if target.is_dir() and not target.is_symlink():
                shutil.rmtree(target)
            else:
                target.unlink(missing_ok=True)

    def _remove_temporaries(self) -> None:
        """Remove what a killed process left half-written."""
        for name in (".", *STAGES, *(f"{stage}/checkpoint" for stage in STAGES)):
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


def _read_objects(path: Path, kind: type) -> dict[str, Any]:
    """The values of type `kind` by name that `path` holds as JSON. Raises UserError where it does not."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable JSON: {' '.join(str(error).split())[:160]}") from error
    if not (isinstance(values, dict) and all(isinstance(value, kind) for value in values.values())):
        raise UserError(f"{path} should hold a {kind.__name__} by each name")
    return values


def _short(digest: str) -> str:
    return re.sub(r"(sha256 .{8}).*", r"\1…", digest)


def _keep(path: Path, text: str) -> None:
    """Write `text` to `path`, unless it is there."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)
