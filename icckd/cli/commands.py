"""The commands: arguments in, exit codes out. What they do is in `icckd.experiment`."""

import argparse
import sys
import traceback
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from icckd.cli.arguments import parse
from icckd.cli.streams import make_forgiving
from icckd.errors import Interrupted, TrainingDiverged, UserError
from icckd.settings import STAGES, Settings, one_line

# What each command trains.
_TRAINED = {"run": STAGES, "teacher": ("teacher",), "distill": ("student",), "evaluate": ()}


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code: 0, 2, 3, 130 or 143, as --help says."""
    arguments = sys.argv[1:] if arguments is None else arguments
    make_forgiving()
    sys.exit(_guarded(arguments))


def _guarded(arguments: list[str]) -> int:
    try:
        command, options = parse(arguments)
        code = _dispatch(command, options)
        sys.stdout.flush()  # A disk that is full says so here, not in Python's last breath.
        return code
    except (UserError, argparse.ArgumentError, OSError) as error:
        return _failed(error, 2, arguments)
    except TrainingDiverged as error:
        return _failed(error, 3, arguments)
    except Interrupted as stopped:
        _tell(str(stopped))
        return 128 + stopped.signal_number
    except KeyboardInterrupt:
        _tell("interrupted")
        return 130


def _failed(error: Exception, code: int, arguments: list[str]) -> int:
    if "--debug" in arguments:
        with suppress(OSError):
            traceback.print_exc()
    text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
    _tell(f"error: {one_line(text or type(error).__name__)}")
    return code


def _tell(message: str) -> None:
    with suppress(OSError):  # The exit code says it too, where standard error cannot be written.
        print(f"icckd: {message}", file=sys.stderr)


def _dispatch(command: str, options: Any) -> int:
    if command == "doctor":
        from icckd.cli.doctor import diagnose

        print(diagnose())
        return 0
    if command == "report":
        return _report(options)
    if command == "compare":
        from icckd.cli.compare import run_comparison

        return run_comparison(options)
    if command == "bench":
        from icckd.bench.command import bench

        bench(options)
        return 0
    return _experiment(command, options)


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


def _experiment(command: str, options: Namespace) -> int:
    # Imported here, so that `icckd --help` and a misspelt setting answer without waiting for the figures' packages.
    from icckd.experiment import Experiment, RunFolder

    settings = _settings(options)
    if command in ("distill", "evaluate") and settings.teacher.weights is None:
        raise UserError(
            f"icckd {command} needs --teacher.weights PATH, a run's teacher/ folder or its model.safetensors"
        )
    output = options.output or (None if command == "evaluate" else datetime.now().strftime("runs/%Y%m%d-%H%M%S"))
    folder = RunFolder(Path(output)) if output else None
    experiment = Experiment(settings, _TRAINED[command])
    if folder is None or command == "evaluate":
        summary = experiment.evaluate(folder, resume=options.resume, overwrite=options.overwrite)
    else:
        summary = experiment.run(folder, resume=options.resume, overwrite=options.overwrite)
    _print_summary(summary)
    if folder is not None:
        print(f"report: {folder.path / 'report.html'}")
    return 0


def _settings(options: Namespace) -> Settings:
    return Settings(**{name: options[name] for name in Settings.__dataclass_fields__})


def _print_summary(summary: dict[str, Any]) -> None:
    from icckd.report.reading import number
    from icckd.report.wording import decimal, formatted

    for stage in STAGES:
        if stage in summary:
            accuracy, intra, inter, ratio = (
                formatted(number(summary[stage].get(name)), decimal)
                for name in ("test_accuracy", "intra_class_distance", "inter_class_distance", "distance_ratio")
            )
            print(
                f"{stage}: accuracy {accuracy}, intra-class distance {intra}, inter-class distance {inter}, "
                f"ratio {ratio}"
            )
