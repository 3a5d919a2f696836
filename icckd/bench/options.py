"""What may be written behind `icckd bench`, and what is wrong with what was written: found out before measuring."""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn

import torch

from icckd.bench import recorded
from icckd.bench.case import Case
from icckd.bench.functions import AXES, FUNCTIONS
from icckd.environment import free_memory
from icckd.errors import UserError

_DESCRIPTION = """Times the losses on this machine, each forward and backward, and ours forward alone.

Every backend of icckd that can run here meets PyTorch (eager, and torch.compile where a compiler is) and the packages
that are installed beside it (pykeops, pytorch-metric-learning). Each is compared with float64 before it is timed.
Contenders take turns, on changing inputs; medians and 20/80 quantiles stand beside the floor, which is timed in the
same rounds: a copy of the bytes that must be moved at least, or a matrix product of as many operations. Every
combination of the sizes that are given is measured. Without arguments it takes about two minutes."""
_EXAMPLES = """examples:
  icckd bench --quick
  icckd bench intra_class_contrastive --rows 8192 --classes 10 100 1000 --plot classes.png
  icckd bench kd_kl --dtype float32 bfloat16 --rows 1024 --classes 50257 --csv rows.csv
  icckd bench --device cuda --against h100

exit codes: 0 done; 2 an argument is wrong, one line on standard error says what."""
DTYPES = ("float32", "bfloat16", "float16")
_FIGURES = (".png", ".svg", ".pdf")
_FLOAT64_BYTES = 8


@dataclass(frozen=True)
class Options:
    """What is measured, on what, how long, beside what, and where it is written.

    cases: With the names of their functions.
    seconds: For each contender.
    against: A recorded machine, "none", or None for that of the same kind of device.
    """

    cases: list[tuple[str, Case]]
    device: torch.device
    seconds: float
    threads: int | None
    against: str | None
    json: Path | None
    csv: Path | None
    plot: Path | None


class _Parser(argparse.ArgumentParser):
    """argparse's, which raises where it would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; icckd bench --help has all options")


def parse(arguments: list[str]) -> argparse.Namespace:
    """What is written behind `icckd bench`, as `read` takes it. Raises UserError where it is no option's form."""
    parser = _Parser(
        prog="icckd bench",
        usage="icckd bench [FUNCTION ...] [--OPTION VALUE ...]",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("functions", nargs="*", metavar="FUNCTION", help=f"{', '.join(FUNCTIONS)} (default: all of them)")
    add("--device", default="auto", choices=["auto", "cpu", "cuda"], help="default: the GPU where there is one")
    add("--dtype", nargs="+", metavar="DTYPE", help=f"{', '.join(DTYPES)} (default: float32; on a GPU bfloat16)")
    add("--rows", nargs="+", type=int, metavar="N", help="rows of the batch")
    add("--dim", nargs="+", type=int, metavar="D", help="numbers in an embedding: *_contrastive, rkd_*")
    add("--classes", nargs="+", type=int, metavar="C", help="classes: all but rkd_*")
    add("--seconds", type=float, metavar="S", help="how long each contender is timed (default: 1)")
    add("--threads", type=int, metavar="T", help="threads of the CPU (default: as many as PyTorch takes)")
    add("--json", metavar="FILE", help="write the rows to FILE")
    add("--csv", metavar="FILE", help="write the rows to FILE")
    add("--plot", metavar="FILE", help=f"draw bars, or curves over a size, into FILE ({', '.join(_FIGURES)})")
    add("--quick", action="store_true", help="tiny sizes, to see that everything runs")
    machines = ", ".join(("none", *recorded.names()))
    add(
        "--against", metavar="NAME", help=f"show a recorded machine's times too: {machines} (default: of the same kind)"
    )
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_args(arguments)


def read(given: argparse.Namespace) -> Options:
    """The options that the arguments mean. Raises UserError for those that cannot be done."""
    names = _functions(given.functions)
    device = _device(given.device)
    dtypes = _dtypes(given.dtype, names, device)
    sizes = {axis: _positive(option, getattr(given, option)) for option, axis in AXES.items()}
    if given.seconds is not None and not 0 < given.seconds < float("inf"):
        raise UserError(f"--seconds is {given.seconds}; it should be above 0")
    if given.threads is not None:
        _positive("threads", [given.threads])
    if given.against not in (None, "none", *recorded.names()):
        known = ", ".join(("none", *recorded.names()))
        raise UserError(f"--against is {given.against}; it should be one of {known}")
    outputs = {name: _output(name, getattr(given, name)) for name in ("json", "csv", "plot")}
    kind = "quick" if given.quick else device.type
    cases = [(name, case) for name in names for case in FUNCTIONS[name].cases(kind, dtypes, sizes)]
    for name, case in cases:
        _refuse_too_large(name, case, device)
    seconds = given.seconds or (0.02 if given.quick else 1.0)
    return Options(cases, device, seconds, given.threads, given.against, **outputs)


def _functions(given: Sequence[str]) -> list[str]:
    for name in given:
        if name not in FUNCTIONS:
            near = get_close_matches(name.replace("-", "_"), FUNCTIONS, n=1, cutoff=0.4)
            meant = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"{name} is no function that is measured: {', '.join(FUNCTIONS)}{meant}")
    return list(dict.fromkeys(given)) or list(FUNCTIONS)


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device is cuda, but PyTorch finds no CUDA device here; it should be cpu or auto")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


def _dtypes(given: Sequence[str] | None, names: Sequence[str], device: torch.device) -> list[str]:
    takes = [
        dtype
        for dtype in DTYPES
        if dtype != "bfloat16" or device.type == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)
    ]
    if not given:
        return ["float32"] if device.type == "cpu" else takes[1:2]
    for dtype in given:
        if dtype not in takes:
            raise UserError(f"--dtype is {dtype}; on this {device.type} {names[0]} is measured in {', '.join(takes)}")
    return list(dict.fromkeys(given))


def _positive(option: str, given: Sequence[int] | None) -> list[int]:
    for value in given or ():
        if value < 1:
            raise UserError(f"--{option} is {value}; it should be 1 or more")
    return list(dict.fromkeys(given or ()))


def _output(option: str, given: str | None) -> Path | None:
    if given is None:
        return None
    path = Path(given)
    if not path.parent.is_dir():
        raise UserError(f"--{option} is {given}, but there is no folder {path.parent}; it should name a file in one")
    if path.is_dir():
        raise UserError(f"--{option} is {given}, which is a folder; it should name a file")
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise UserError(f"--{option} is {given}, but nothing can be written there: {error.strerror}") from error
    if option == "plot" and path.suffix.lower() not in _FIGURES:
        raise UserError(f"--plot is {given}; its name should end in {', '.join(_FIGURES)}")
    return path


def _refuse_too_large(name: str, case: Case, device: torch.device) -> None:
    needed, free = _FLOAT64_BYTES * case.numbers(), free_memory(device)
    if needed > free:
        sizes = ", ".join(f"--{option} {case.sizes[axis]}" for option, axis in AXES.items() if axis in case.sizes)
        raise UserError(
            f"{name} with {sizes} takes about {needed / 1e9:,.0f} GB, its result in float64 included, and the "
            f"{device.type} has {free / 1e9:,.0f} GB left; the sizes should be smaller"
        )
