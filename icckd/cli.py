"""The command `icckd`: arguments in, exit codes out. What the commands do is in `icckd.experiment`."""

import argparse
import re
import sys
import traceback
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace

from icckd.errors import Interrupted, TrainingDiverged, UserError
from icckd.settings import Settings
from icckd.streams import make_forgiving
from icckd.version import __version__

_COMMANDS = {
    "run": "train a teacher, distil a student from it, and report on both",
    "teacher": "train a teacher only",
    "distill": "distil a student from the trained teacher that --teacher.weights names",
    "evaluate": "measure a trained network (--teacher.weights) on the test images",
    "report": "write report.html and report.md again from the files of the run in --output",
    "doctor": "say which versions, devices, backends and networks there are here, and why a backend is missing",
}
# What each command trains.
_TRAINED = {"run": ("teacher", "student"), "teacher": ("teacher",), "distill": ("student",), "evaluate": ()}
_DESCRIPTION = """Teachers with richer soft labels: intra-class contrastive training and knowledge distillation
(arXiv 2509.22053). Without settings, `icckd run` trains on the built-in digits in under two minutes."""
_EPILOG = """exit codes: 0 done; 2 the input or a setting is wrong, one line on standard error says what;
3 training diverged, the last good checkpoint is kept; 130/143 stopped by a signal, after saving a checkpoint."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code (SPEC: 0, 2, 3, 130, 143)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    make_forgiving()
    sys.exit(_guarded(arguments))


def _guarded(arguments: list[str]) -> int:
    try:
        command, options = _parse(arguments)
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
    _tell(f"error: {_one_line(text or type(error).__name__)}")
    return code


def _tell(message: str) -> None:
    with suppress(OSError):  # The exit code says it too, where standard error cannot be written.
        print(f"icckd: {message}", file=sys.stderr)


def _one_line(text: str) -> str:
    """jsonargparse's messages in the words of a user: one line, type names without Python's spelling of them."""
    text = re.sub(r'Parser key "([^"]+)":', r"\1:", text)
    text = re.sub(r"Expected a <class '(\w+)'>", r"expected \1", text)
    text = re.sub(r"Expected a typing\.Literal\[(.*?)\]", r"expected one of \1", text)
    text = re.sub(r"\. Got value: ", ", got ", text)
    return " ".join(text.split())


def _parse(arguments: list[str]) -> tuple[str, Namespace]:
    parser = _parser()
    if not arguments:
        parser.print_help()
        raise UserError(f"no command given; it should be one of {', '.join(_COMMANDS)}")
    try:
        parsed = parser.parse_args(_with_saved_config(arguments))
    except (UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"--config does not name a readable YAML file: {error}") from error
    return parsed.command, parser.instantiate(parsed)[parsed.command]


class _Parser(ArgumentParser):
    """jsonargparse's, with options in full only, and with files of settings in UTF-8 whatever the locale."""

    def __init__(self, **arguments: Any):
        super().__init__(**arguments, exit_on_error=False, allow_abbrev=False)

    def _get_option_tuples(self, option_string: str) -> list[Any]:
        # Asked about every option that is not one, to find what it abbreviates; the parser of `icckd` itself is asked
        # about those of the commands too.
        given = option_string.partition("=")[0]
        meant = [name for name in self._option_string_actions if name.startswith(given)]
        if meant and self._subparsers is None:
            names = ", ".join(meant[:5]) + (", …" if len(meant) > 5 else "")
            raise UserError(f"{given} is no option; write in full which is meant: {names}")
        return super()._get_option_tuples(option_string)

    def parse_path(self, path: Any, **options: Any) -> Namespace:
        if str(path) == "-":
            return super().parse_path(path, **options)
        return self.parse_string(Path(path).read_text(encoding="utf-8"), path=str(path), **options)


def _parser() -> ArgumentParser:
    parser = _Parser(prog="icckd", description=_DESCRIPTION, epilog=_EPILOG, version=__version__)
    commands = parser.add_subcommands(dest="command", required=True)
    for name, meaning in _COMMANDS.items():
        commands.add_subcommand(name, _command_parser(name, meaning), help=meaning)
    return parser


def _command_parser(name: str, meaning: str) -> ArgumentParser:
    parser = _Parser(
        usage=f"icckd {name} [--config FILE] [--output DIR] [--SETTING VALUE ...]",
        description=f"icckd {name}: {meaning}.",
        epilog=_EPILOG,
    )
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file of settings; later arguments override it.")
    parser.add_argument(
        "--output", metavar="DIR", type=str | None, help="Folder for results (runs/DATE-TIME unless given)."
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="Continue the run in --output where it stopped, on the data it was started with; what is finished stays.",
    )
    parser.add_argument("--overwrite", action="store_true", help="Replace the results of the run in --output.")
    parser.add_argument("--debug", action="store_true", help="Show the traceback of an error.")
    parser.add_class_arguments(Settings)
    return parser


def _with_saved_config(arguments: list[str]) -> list[str]:
    """With --resume, the run's own config.yaml comes first, so that its settings need not be repeated."""
    if "--resume" not in arguments:
        return arguments
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument("--output")
    output = finder.parse_known_args(arguments)[0].output
    if output is None:
        raise UserError("--resume needs --output DIR, the run to continue")
    config = Path(output) / "config.yaml"
    return [arguments[0], "--config", str(config), *arguments[1:]] if config.is_file() else arguments


def _dispatch(command: str, options: Namespace) -> int:
    if command == "doctor":
        from icckd.doctor import diagnose

        print(diagnose())
        return 0
    if command == "report":
        return _report(options)
    return _experiment(command, options)


def _report(options: Namespace) -> int:
    from icckd.report import write_report

    if options.output is None:
        raise UserError("icckd report needs --output DIR, the run to report on")
    folder = Path(options.output)
    write_report(folder)
    print((folder / "report.md").read_text(encoding="utf-8"))
    return 0


def _experiment(command: str, options: Namespace) -> int:
    # Imported here, so that `icckd --help` and a misspelt setting answer without waiting for the figures' packages.
    from icckd.experiment import Experiment
    from icckd.run_folder import RunFolder

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
    from icckd.report.results import number
    from icckd.report.wording import decimal, formatted

    for stage in ("teacher", "student"):
        if stage in summary:
            accuracy, intra, inter, ratio = (
                formatted(number(summary[stage].get(name)), decimal)
                for name in ("test_accuracy", "intra_class_distance", "inter_class_distance", "distance_ratio")
            )
            print(
                f"{stage}: accuracy {accuracy}, intra-class distance {intra}, inter-class distance {inter}, "
                f"ratio {ratio}"
            )
