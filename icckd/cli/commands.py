"""The commands: arguments in, exit codes out. What they do is in `icckd.experiment`."""

import argparse
import json
import os
import sys
import traceback
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from icckd.cli.arguments import parse
from icckd.cli.streams import make_forgiving, nowhere
from icckd.distributed import Launch, World, join, launched, tell
from icckd.errors import Interrupted, TrainingDiverged, UserError, ending
from icckd.settings import STAGES, Settings, flat, one_line

# What each command trains.
_TRAINED = {"run": STAGES, "teacher": ("teacher",), "distill": ("student",), "evaluate": ()}


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code: 0, 2, 3, 130 or 143, as --help says."""
    arguments = sys.argv[1:] if arguments is None else arguments
    make_forgiving()
    sys.exit(_guarded(arguments))


def _guarded(arguments: list[str]) -> int:
    debug = "--debug" in arguments
    try:
        launch = launched(os.environ)
        with join(launch, tell=_tell, debug=debug) as world:
            if not world.first:
                _be_silent()
            command, options = parse(arguments, restarted=launch.restarted)
            code = _dispatch(command, options, launch, world)
            sys.stdout.flush()  # A disk that is full says so here, not in Python's last breath.
        return code
    except (UserError, argparse.ArgumentError, OSError, TrainingDiverged, Interrupted, KeyboardInterrupt) as error:
        code, text = ending(error)
        if debug and code < 128:
            with suppress(OSError):
                traceback.print_exc()
        _tell(code, text)
        return code


def _tell(code: int, text: str) -> None:
    tell(code, one_line(text))


def _be_silent() -> None:
    """Leave what is printed to the first of several processes, but for warnings."""
    from icckd.console import console

    sys.stdout = nowhere()
    console.quiet = True


def _dispatch(command: str, options: Any, launch: Launch, world: World) -> int:
    if command in _TRAINED:
        return _experiment(command, options, launch, world)
    if world.size > 1:
        instead = ", with --processes for its runs" if command == "compare" else ""
        raise UserError(
            f"icckd {command} is the work of one process, and {launch.launcher} started {world.size}; "
            f"start it without{instead}"
        )
    if command == "doctor":
        from icckd.cli.doctor import diagnose

        print(diagnose())
        return 0
    if command == "export":
        return _export(options)
    if command == "report":
        return _report(options)
    if command == "compare":
        from icckd.cli.compare import run_comparison

        return run_comparison(options)
    if command == "federated":
        from icckd.cli.federated import run_federated

        return run_federated(options)
    from icckd.bench.command import bench

    bench(options)
    return 0


def _export(options: Namespace) -> int:
    from icckd.models.export import export_model

    for name, wanted in (("weights", "PATH, the network to export"), ("to", "FILE.onnx or FILE.pt2, what to write")):
        if getattr(options, name) is None:
            raise UserError(f"icckd export needs --{name} {wanted}")
    print(export_model(Path(options.weights), Path(options.to)))
    return 0


def _report(options: Namespace) -> int:
    from icckd.report import write_report

    if options.output is None:
        raise UserError("icckd report needs --output DIR, the run or comparison to report on")
    folder = Path(options.output)
    if (folder / "compare.yaml").exists():
        from icckd.cli.compare import report_comparison

        return report_comparison(folder)
    write_report(folder)
    print((folder / "report.md").read_text(encoding="utf-8"))
    return 0


def _experiment(command: str, options: Namespace, launch: Launch, world: World) -> int:
    # Imported here, so that `icckd --help` and a misspelt setting answer without waiting for the figures' packages.
    from icckd.experiment import Experiment, RunFolder
    from icckd.training import StopSignal

    settings = settings_of(options)
    procedure = settings.student.loss.procedure() if command == "distill" else None
    alone = procedure is not None and not procedure.asks_teacher
    if command in ("distill", "evaluate") and settings.teacher.weights is None and not alone:
        raise UserError(
            f"icckd {command} needs --teacher.weights PATH, a run's teacher/ folder or its model.safetensors"
        )
    output = options.output
    if output is None and command != "evaluate":
        if launch.restarted or launch.restarts:
            raise UserError(
                f"--output is not given, and {launch.launcher} may start this again: give the folder to go on in"
            )
        output = world.from_first(lambda: datetime.now().strftime("runs/%Y%m%d-%H%M%S"))
    _check_same(settings, world)
    folder = RunFolder(Path(output)) if output else None
    stop = partial(StopSignal, launched=world.size > 1)
    tensorboard = bool(options.get("tensorboard"))
    experiment = Experiment(settings, _TRAINED[command], world=world, stop=stop, tensorboard=tensorboard)
    if folder is None or command == "evaluate":
        summary = experiment.evaluate(folder, resume=options.resume, overwrite=options.overwrite)
    else:
        summary = experiment.run(folder, resume=options.resume, overwrite=options.overwrite)
    print_summary(summary)
    if folder is not None:
        print(f"report: {folder.path / 'report.html'}")
    return 0


def _check_same(settings: Settings, world: World) -> None:
    """Raise UserError where a process read other settings than the first, as from a file of its own host."""
    own = {name: json.dumps(value) for name, value in flat(asdict(settings)).items()}
    for name, value in world.from_first(lambda: own).items():
        if own[name] != value:
            raise UserError(f"{name} is {own[name]}, but {value} in the first process; give all the same settings")


def settings_of(options: Namespace) -> Settings:
    """Those among the options of a command."""
    return Settings(**{name: options[name] for name in Settings.__dataclass_fields__})


def print_summary(summary: dict[str, Any]) -> None:
    """A line for each network."""
    from icckd.report.reading import number
    from icckd.report.wording import decimal, formatted

    for stage in STAGES:
        if stage in summary:
            accuracy, intra, inter, ratio = (
                formatted(number(summary[stage].get(name)), decimal)
                for name in ("test_accuracy", "intra_class_distance", "inter_class_distance", "distance_ratio")
            )
            robust = number(summary[stage].get("robust_accuracy"))
            attacked = "" if robust is None else f", robust accuracy {decimal(robust)}"
            print(
                f"{stage}: accuracy {accuracy}{attacked}, intra-class distance {intra}, inter-class distance {inter}, "
                f"ratio {ratio}"
            )
