"""What may be written behind `icckd`: commands, options, every setting; and what is said of what may not."""

import argparse
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, DefaultHelpFormatter, Namespace

from icckd.errors import UserError
from icckd.settings import Settings, defaults_under, flat, refuse_nulls, refuse_renamed
from icckd.version import __version__

_COMMANDS = {
    "run": "train a teacher, distil a student from it, and report on both",
    "teacher": "train a teacher only",
    "distill": "distil a student from the trained teacher that --teacher.weights names",
    "evaluate": "measure a trained network (--teacher.weights) on the test images",
    "compare": "train several variants of a run with several seeds, and say what their differences amount to",
    "federated": "train a student on images that stay where they are: federated server, and federated client there",
    "export": "write a trained network for other programs: as ONNX, or as torch.export has it",
    "report": "write the pages of the run or comparison in --output again, from the files there",
    "bench": "time the losses on this machine, beside PyTorch, other packages and a recorded machine",
    "doctor": "say which versions, devices, backends and networks there are here, and why a backend is missing",
}
_DESCRIPTION = """Teachers with richer soft labels: intra-class contrastive training and knowledge distillation
(arXiv 2509.22053). Without settings, `icckd run` trains on the built-in digits in under two minutes.
Several processes share the batches of a run that torchrun --nproc-per-node W -m icckd run, or SLURM's srun, starts."""
_COMPARE_DESCRIPTION = """icckd compare: train several variants of a run with several seeds, and say what their
differences amount to: means with standard deviations, and a 95 % interval of each difference to the baseline, paired
by seed.

--config names a YAML file like this one, settings nested or dotted as one likes:

  base: {data.name: digits, teacher: {epochs: 10}}
  variants:
    plain: {teacher.loss.weight: 0}
    intra: {teacher.loss.weight: 0.02}
  baseline: plain                                # the variant that the others are compared with
  seeds: [0, 1, 2, 3, 4]
  metrics: [student.test_accuracy, teacher.test_accuracy, teacher.distance_ratio]        # these, unless given
  smallest_difference: {student.test_accuracy: 0.005}    # if wanted, by metric: the least that would interest

Settings on the command line are laid over base and under the variants. Each run is a folder as that of icckd run,
DIR/runs/VARIANT/SEED; a teacher that several variants have in common is trained once. Where every metric is the
teacher's, no student is trained. With one key more, against: SETTING (data.label_noise, say), a setting in which the
variants differ, metrics are drawn against it and variants compared at equal values of it. DIR then holds
compare.html, compare.md, compare.csv and compare.json."""
_FEDERATED_DESCRIPTION = """icckd federated: train a student by what --student.loss.method pkd says, on training
images that stay with their clients: processes of this machine or of others, connected by Flower (pip install
'icckd[federated]').

  icckd federated server --server 0.0.0.0:8080 --output DIR --federated.clients 3 --federated.rounds 20 ...
  icckd federated client --server HOST:8080 --client 0 --federated.clients 3 --federated.rounds 20 ...
  icckd federated client --server HOST:8080 --client 1 ...

The settings of the data, the student and federated must be the same for all: the server refuses a client that has
others, and says which. Each reads the data set from its own --data.root. Client I trains on its part of the training
images alone, which the seed tells; the server measures on the test images, writes the results as icckd run does, and
needs no teacher. It begins when all clients have come, or when --patience is over, and goes on with those that are
there: one that dies and is started again takes part from the next question on. A server that is stopped goes on with
--resume, and its clients find it again. While all answer, the results are those of icckd run, to the bit on like
machines. Networks travel as plain arrays and nothing that comes is run or unpickled, but nothing is encrypted either,
and nobody proves who he is: use it on one machine, or where machines and their network are trusted."""
_EXPORT_DESCRIPTION = """icckd export: write a trained network for other programs, as ONNX (FILE.onnx; pip install
'icckd[export]') or as PyTorch's torch.export has it (FILE.pt2).

  icckd export --weights runs/demo/student --to student.onnx
  icckd export --weights runs/demo/student --to student.pt2

The file takes one input, images: float32 (N, channels, height, width) in [0, 1], any N, which it normalises itself.
Signals, (N, channels, 1, length), it takes as they were recorded. It gives two outputs, features (N, F) and logits
(N, classes); the names of the classes are among its metadata. Before it is written its outputs are compared with the
network's own, in float32 on a CPU, of batches of 1, 2 and 7 random images, and the largest difference is printed. Where
that is more than 1e-4 of the largest number (or of 1), nothing is written, and the exit code is 2. A FILE that is there
is replaced; nothing that is written needs icckd."""
_EPILOG = """exit codes: 0 done; 1 one of several processes died; 2 the input or a setting is wrong, one line on
standard error says what; 3 training diverged, the last good checkpoint is kept; 130/143 stopped by a signal, after
saving a checkpoint."""


def parse(arguments: list[str], *, restarted: bool = False) -> tuple[str, Any]:
    """The command and its options, every setting among them. Raises UserError, or argparse's error, for wrong ones.

    `restarted`: a launcher starts the command again, which then is to go on, as if --resume were given and --overwrite
    were not; the settings are those that the arguments give.
    """
    if arguments[:1] == ["bench"]:  # Its options are no settings.
        from icckd.bench import options

        return "bench", options.parse(arguments[1:])
    if not arguments:
        _parser()[0].print_help()
        raise UserError(f"no command given; it should be one of {', '.join(_COMMANDS)}")
    refuse_renamed({name.partition("=")[0].removeprefix("--"): None for name in arguments if name.startswith("--")})
    if arguments[0] == "compare":
        return "compare", _comparison_options(arguments)
    if arguments[0] == "export":  # Whose options are no settings either.
        return "export", _parser("export")[0].parse_args(arguments)["export"]
    arguments = _with_saved_config(arguments)
    try:
        parser, of_command = _parser(arguments[0])
        of_command.set_defaults(_preset(parser, arguments))
        parsed = parser.parse_args(arguments)
    except (UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"--config does not name a readable YAML file: {error}") from error
    refuse_nulls(parsed[parsed.command])
    options = parser.instantiate(parsed)[parsed.command]
    if restarted:
        options["resume"], options["overwrite"] = True, False
    return parsed.command, options


def _comparison_options(arguments: list[str]) -> Namespace:
    """The options of `icckd compare`; those settings that are given stand in `overrides`, by dotted name."""
    if any(argument.partition("=")[0] == "--seed" for argument in arguments):
        raise UserError("--seed is no option of icckd compare: its file has the seeds; --seeds 0-9 replaces them")
    parser, _ = _parser("compare")
    options = parser.parse_args(arguments)["compare"].as_dict()
    given = parser.parse_args(arguments, defaults=False).get("compare", Namespace()).as_dict()
    own = {name: value for name, value in options.items() if name not in Settings.__dataclass_fields__}
    return Namespace(**own, overrides=flat({name: value for name, value in given.items() if name not in own}))


def _preset(parser: ArgumentParser, arguments: list[str]) -> dict[str, Any]:
    """The defaults, by dotted name, that the arguments' preset puts under them."""
    shown = [name for name in arguments if not name.startswith("--print_config")]
    parsed = parser.parse_args(shown, defaults=False)
    return defaults_under(flat(parsed.get(parsed.command, Namespace()).as_dict()))


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


def _parser(wanted: str | None = None) -> tuple[ArgumentParser, ArgumentParser]:
    """The parser of all commands, and that of the one `wanted`: the first, too, if there is no such command.

    It alone knows its options, which take a while to collect.
    """
    parser = _Parser(prog="icckd", description=_DESCRIPTION, epilog=_EPILOG, version=__version__)
    commands = parser.add_subcommands(dest="command", required=True)
    of_wanted: ArgumentParser = parser
    for name, meaning in _COMMANDS.items():
        known: ArgumentParser = _Parser()
        if name == wanted:
            known = of_wanted = _parser_of(name, meaning)
        commands.add_subcommand(name, known, help=meaning)
        if name in ("compare", "export", "federated"):
            known.formatter_class = _Verbatim  # Which would be its parent's otherwise.
    return parser, of_wanted


def _parser_of(name: str, meaning: str) -> ArgumentParser:
    if name == "compare":
        return _comparison_parser()
    if name == "export":
        return _export_parser()
    if name == "federated":
        return _federated_parser()
    usage = f"icckd {name} [--config FILE] [--output DIR] [--SETTING VALUE ...]"
    parser = _command_parser(usage, f"icckd {name}: {meaning}.")
    if name in ("run", "teacher", "distill"):
        parser.add_argument(
            "--tensorboard",
            action="store_true",
            help="Write the numbers of every epoch to event files in DIR/tensorboard too, for TensorBoard (pip install "
            "'icckd[tensorboard]'). To go on with them, --resume needs this again.",
        )
    return parser


def _command_parser(usage: str, description: str) -> ArgumentParser:
    parser = _Parser(usage=usage, description=description, epilog=_EPILOG)
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


def _export_parser() -> ArgumentParser:
    usage = "icckd export --weights PATH --to FILE.onnx|FILE.pt2"
    parser = _Parser(usage=usage, description=_EXPORT_DESCRIPTION)
    parser.add_argument(
        "--weights", metavar="PATH", type=str | None, help="A run's student/ or teacher/ folder, or model.safetensors."
    )
    parser.add_argument("--to", metavar="FILE", type=str | None, help="What to write; .onnx or .pt2 says the format.")
    parser.add_argument("--debug", action="store_true", help="Show the traceback of an error.")
    return parser


def _federated_parser() -> ArgumentParser:
    usage = (
        "icckd federated server [--server HOST:PORT] [--output DIR] [--SETTING VALUE ...]\n"
        "       icckd federated client --client I [--server HOST:PORT] [--SETTING VALUE ...]"
    )
    parser = _command_parser(usage, _FEDERATED_DESCRIPTION)
    parser.set_defaults({"student.loss.method": "pkd"})
    parser.add_argument("role", choices=["server", "client"], help="Who this is.")
    parser.add_argument(
        "--server",
        metavar="HOST:PORT",
        type=str,
        default="127.0.0.1:8080",
        help="Where the server listens, and clients look for it.",
    )
    parser.add_argument("--client", metavar="I", type=int | None, help="Which client this is, from 0.")
    parser.add_argument(
        "--patience",
        metavar="SECONDS",
        type=float,
        default=600.0,
        help="Server: how long a client may take over an answer before the round goes on without it, and to come at "
        "all. Client: how long it looks for a server that does not answer.",
    )
    return parser


class _Verbatim(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Help whose description keeps its lines."""


def _comparison_parser() -> ArgumentParser:
    parser = _Parser(
        usage="icckd compare --config FILE --output DIR [--jobs J] [--processes P] [--shard I/N] [--resume] "
        "[--SETTING VALUE ...]",
        description=_COMPARE_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.add_argument(
        "--config", metavar="FILE", type=str | None, help="What to compare; with --resume, what DIR has, unless given."
    )
    parser.add_argument("--output", metavar="DIR", type=str | None, help="Folder for runs and results.")
    parser.add_argument("--jobs", metavar="J", type=int, default=1, help="Runs at once; they share the processors.")
    parser.add_argument(
        "--processes",
        metavar="P",
        type=int,
        default=1,
        help="Processes of this machine that share each run's batches, as torchrun's would; on GPUs, one each.",
    )
    parser.add_argument(
        "--shard",
        metavar="I/N",
        type=str,
        default="0/1",
        help="Every N-th run only, from the I-th (from 0) on, so that several machines can share DIR.",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="Continue what DIR holds, if anything: runs that are finished stay, and there may be more seeds, variants "
        "and other metrics than before.",
    )
    parser.add_argument("--overwrite", action="store_true", help="Remove the runs and results in DIR first.")
    parser.add_argument("--debug", action="store_true", help="Show the traceback of an error.")
    parser.add_argument(
        "--seeds", metavar="S", nargs="+", type=str, help="Seeds in place of those in FILE: 0 1 2, or 0-9."
    )
    parser.add_class_arguments(Settings, skip={"seed"})
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
