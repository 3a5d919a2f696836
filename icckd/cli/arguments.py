"""What may be written behind `icckd`: commands, options, every setting; and what is said of what may not."""

import argparse
import re
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace

from icckd.errors import UserError
from icckd.settings import Settings, refuse_renamed
from icckd.version import __version__

_COMMANDS = {
    "run": "train a teacher, distil a student from it, and report on both",
    "teacher": "train a teacher only",
    "distill": "distil a student from the trained teacher that --teacher.weights names",
    "evaluate": "measure a trained network (--teacher.weights) on the test images",
    "report": "write report.html and report.md again from the files of the run in --output",
    "bench": "time the losses on this machine, beside PyTorch, other packages and a recorded machine",
    "doctor": "say which versions, devices, backends and networks there are here, and why a backend is missing",
}
_DESCRIPTION = """Teachers with richer soft labels: intra-class contrastive training and knowledge distillation
(arXiv 2509.22053). Without settings, `icckd run` trains on the built-in digits in under two minutes."""
_EPILOG = """exit codes: 0 done; 2 the input or a setting is wrong, one line on standard error says what;
3 training diverged, the last good checkpoint is kept; 130/143 stopped by a signal, after saving a checkpoint."""


def parse(arguments: list[str]) -> tuple[str, Any]:
    """The command and its options, every setting among them. Raises UserError, or argparse's error, for wrong ones."""
    if arguments[:1] == ["bench"]:  # Its options are no settings.
        from icckd.bench import options

        return "bench", options.parse(arguments[1:])
    parser = _parser(arguments[:1])
    if not arguments:
        parser.print_help()
        raise UserError(f"no command given; it should be one of {', '.join(_COMMANDS)}")
    refuse_renamed({name.partition("=")[0].removeprefix("--"): None for name in arguments if name.startswith("--")})
    try:
        parsed = parser.parse_args(_with_saved_config(arguments))
    except (UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"--config does not name a readable YAML file: {error}") from error
    _refuse_nulls(Settings, parsed[parsed.command])
    return parsed.command, parser.instantiate(parsed)[parsed.command]


def one_line(text: str) -> str:
    """jsonargparse's messages in the words of a user: one line, type names without Python's spelling of them."""
    text = re.sub(r'Parser key "([^"]+)":', r"\1:", text)
    text = re.sub(r"Expected a <class '(\w+)'>", r"expected \1", text)
    text = re.sub(r"Expected a typing\.Literal\[(.*?)\]", r"expected one of \1", text)
    text = re.sub(r"\. Got value: ", ", got ", text)
    text = re.sub(
        r"Subcommand '(\w+)' does not accept option '([^']+)'", r"\2 is no setting; icckd \1 --help has all", text
    )
    return " ".join(text.split())


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
        near = get_close_matches(given, self._option_string_actions, n=3, cutoff=0.8)
        if near and self._subparsers is None:
            raise UserError(f"{given} is no option; did you mean {' or '.join(near)}?")
        return super()._get_option_tuples(option_string)

    def parse_path(self, path: Any, **options: Any) -> Namespace:
        if str(path) == "-":
            return super().parse_path(path, **options)
        return self.parse_string(Path(path).read_text(encoding="utf-8"), path=str(path), **options)

    def parse_string(self, text: str, *arguments: Any, **options: Any) -> Namespace:
        values = yaml.safe_load(text)
        if isinstance(values, dict):
            refuse_renamed(values, str(options.get("path", "")))
        return super().parse_string(text, *arguments, **options)


def _parser(wanted: list[str]) -> ArgumentParser:
    """The parser of all commands; only those that are `wanted` know their options, which take a while to collect."""
    parser = _Parser(prog="icckd", description=_DESCRIPTION, epilog=_EPILOG, version=__version__)
    commands = parser.add_subcommands(dest="command", required=True)
    for name, meaning in _COMMANDS.items():
        commands.add_subcommand(name, _command_parser(name, meaning) if name in wanted else _Parser(), help=meaning)
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


def _refuse_nulls(kind: Any, values: Namespace, prefix: str = "") -> None:
    """Raise UserError where a setting of the dataclass `kind` is null that cannot be: jsonargparse takes any null."""
    wanted = get_type_hints(kind)
    for setting in fields(kind):
        name, value = setting.name, values[setting.name]
        if value is None and setting.default is not None and NoneType not in get_args(wanted[name]):
            raise UserError(f"{prefix}{name} is null; leave it out for its default, or give a value")
        if is_dataclass(wanted[name]):
            _refuse_nulls(wanted[name], value, f"{prefix}{name}.")


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
