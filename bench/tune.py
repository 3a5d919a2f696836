"""Searches the launch options of a kernel on the GPU at hand, and writes the winners into `kernels/tables/`.

    python -m bench.tune                       every kernel, dtype and size class of this GPU's table
    python -m bench.tune gradient one_tile     these kernels
    python -m bench.tune --dry-run             a few candidates in Triton's interpreter; writes nothing

SPACE says which options are tried. Of their combinations those are left that compile without spilling, within the
memory on chip and with the matrix instruction that `bench.aot` asks for, and whose results are as exact as
`bench.gpu.accuracy` allows. Each of these takes the steps of one case, replayed from a CUDA graph; the best and the
present entry meet again in a last round, taking turns. The table file is written whole after each size class, with
time, device and date above each measured entry; size classes that it had left to `shared` become its own. Commit it
with the run's rows (--json).
"""

import argparse
import contextlib
import datetime
import importlib
import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench import aot
from bench.gpu import results
from bench.gpu.accuracy import errors, errors_of_reference, exact_results
from bench.gpu.cases import ClassLayout, CrossEntropy, IntraClass, KdKl, Relational
from bench.launch_tables import LaunchTable, Options
from icckd.bench import measure
from icckd.bench.case import Case, Contender, step, with_leaves
from icckd.bench.measure import Row
from icckd.kernels import tables

FOLDER = Path(tables.__file__).parent
DTYPES = {"half": "bfloat16", "float": "float32"}
# Candidates that meet again in the last round, and by how much one must be faster than the present entry.
_FINALISTS, _GAIN = 5, 1.02
_SECONDS = 0.1
# Of 255, those of a thread that a program's tiles may take.
_MOST_REGISTERS = 200
_INPUT_SETS = 3
# Rows of a large batch, and numbers in a matrix of logits.
_ROWS, _NUMBERS = 65536, 2**26

_POINTWISE = {"BLOCK": (4, 8, 16, 32), "BLOCK_K": (128, 256, 512), "num_warps": (2, 4, 8)}
_TILES = {
    "BLOCK_M": (64, 128),
    "BLOCK_N": (32, 64, 128, 256),
    "BLOCK_K": (32, 64, 128, 256, 512),
    "num_warps": (4, 8),
    "num_stages": (1, 2, 3, 4),
}
_GRADIENT_TILES = {**_TILES, "BLOCK_N": (32, 64, 128), "BLOCK_V": (64, 128, 256, 512)}
_WHOLE_ROWS = {"TILE": (512, 1024, 2048, 4096, 8192, 16384), "num_warps": (1, 2, 4, 8, 16)}
_SWEPT_ROWS = {"BLOCK": (1024, 2048, 4096, 8192), "STAGES": (1, 2, 3, 4), "num_warps": (4, 8, 16, 32)}
_PAIRS = {"BLOCK": (16, 32, 64), "UNROLL": (1, 2, 4, 8), "num_warps": (1, 2, 4, 8)}
SPACE: dict[str, dict[str, tuple[int, ...]]] = {
    "prepare": _POINTWISE,
    "memory_norms": _POINTWISE,
    "log_sum_exp": _TILES,
    "log_sum_exp_memory": _TILES,
    "gradient": _GRADIENT_TILES,
    "gradient_memory": _GRADIENT_TILES,
    "add_splits": {"BLOCK": (4, 8, 16, 32), "BLOCK_K": (32, 64, 128), "num_warps": (2, 4, 8)},
    "one_tile": {"BLOCK_K": (32, 64, 128), "STAGES": (2, 3, 4, 6), "num_warps": (2, 4, 8, 16)},
    "layout": {
        "BLOCK": (32, 64, 128),
        "CLASSES": (2, 4, 8),
        "OTHERS": (256, 512),
        "PLACED": (128, 256, 512),
        "num_warps": (1, 2, 4),
    },
    "cross_entropy_whole": _WHOLE_ROWS,
    "cross_entropy_swept": _SWEPT_ROWS,
    "kd_kl_whole": _WHOLE_ROWS,
    "kd_kl_swept": _SWEPT_ROWS,
    "squared_distances": _PAIRS,
    "compare_distances": {"BLOCK": (16, 32, 64), "num_warps": (1, 2, 4, 8)},
    "compare_angles": {**_PAIRS, "BLOCK": (16, 32), "UNROLL": (1, 2, 4)},
    "pull": {**_PAIRS, "BLOCK_K": (16, 32, 64)},
}


@dataclass(frozen=True)
class Entry:
    """The place of launch options in a table: sizes above `lower` up to `bound`."""

    architecture: str
    kernel: str
    width: str
    lower: int
    bound: int

    @property
    def dtype(self) -> str:
        return DTYPES[self.width]

    @property
    def classes(self) -> Mapping[int, Mapping[str, int]]:
        """The size classes among which it is, with the present options of each."""
        return tables.table(self.architecture)[self.kernel][self.width]

    @property
    def typical(self) -> int:
        """A size of this class: its bound, or where that is far off, the least above the class before, at least 512."""
        return self.bound if self.bound <= 1024 else max(512, 2 * self.lower)


def case_for(entry: Entry) -> Case:
    """A case whose time this kernel decides."""
    size, dtype = entry.typical, entry.dtype
    kernel = entry.kernel
    if kernel in ("prepare", "log_sum_exp", "gradient"):
        return IntraClass(dtype, n=32768, d=size, c=16)
    if kernel in ("memory_norms", "log_sum_exp_memory", "gradient_memory", "add_splits"):
        return IntraClass(dtype, n=2048, d=size, c=64, slots=_ROWS)
    if kernel == "one_tile":
        return IntraClass(dtype, n=_ROWS, d=512, c=_ROWS // entry.bound)
    if kernel == "layout":
        return ClassLayout(dtype, n=min(entry.bound, 2 * _ROWS) if entry.lower == 0 else 2 * entry.lower)
    if kernel.startswith("cross_entropy"):
        return CrossEntropy(dtype, n=_NUMBERS // _columns(entry), c=_columns(entry))
    if kernel.startswith("kd_kl"):
        return KdKl(dtype, n=_NUMBERS // _columns(entry), c=_columns(entry))
    angles = kernel == "compare_angles"
    return Relational(dtype, "angle" if angles else "distance", n=min(size, 512) if angles else size)


def _columns(entry: Entry) -> int:
    return _ROWS if entry.kernel.endswith("swept") else entry.bound


def entries(architecture: str, kernels: Iterable[str]) -> Iterator[Entry]:
    """The table's entries of these kernels."""
    for kernel in kernels:
        for width, classes in tables.table(architecture)[kernel].items():
            lower = 0
            for bound in classes:
                yield Entry(architecture, kernel, width, lower, bound)
                lower = bound


def candidates(entry: Entry, present: Options) -> list[Options]:
    """The present options, and the combinations of SPACE that could fit: what does not is not worth compiling."""
    space = {name: SPACE[entry.kernel].get(name, (value,)) for name, value in present.items()}
    combinations = (dict(zip(space, values, strict=True)) for values in itertools.product(*space.values()))
    longest = max(64, entry.typical)
    fitting = [
        c
        for c in combinations
        if _registers(c) <= _MOST_REGISTERS and all(c.get(k, 0) <= longest for k in ("BLOCK_K", "BLOCK_V"))
    ]
    return [dict(present), *(c for c in fitting if c != present)]


def _registers(options: Options) -> float:
    """Registers of a thread that hold its program's tiles, at least."""
    tiles = (
        options.get("BLOCK_M", 0) * (options.get("BLOCK_N", 0) + options.get("BLOCK_V", 0)),
        options.get("BLOCK", 0) * options.get("BLOCK_K", 1),
        options.get("TILE", 0),
    )
    return max(tiles) / (32 * options["num_warps"])


@contextlib.contextmanager
def installed(entry: Entry, options: Options) -> Iterator[None]:
    """The table with these options in the entry's place."""
    widths = tables.table(entry.architecture)[entry.kernel]
    before = widths[entry.width]
    widths[entry.width] = {**before, entry.bound: options}
    tables.options.cache_clear()
    try:
        yield
    finally:
        widths[entry.width] = before
        tables.options.cache_clear()


def problem(entry: Entry, options: Options) -> str | None:
    """Why the kernels that these options change cannot be used, by `bench.aot`; None where they can."""
    known = {aot.identity(form) for form in _forms(entry.architecture)}
    with installed(entry, options):
        new = [form for form in _forms(entry.architecture) if aot.identity(form) not in known]
    found = (aot.examine(form, entry.architecture)["problem"] for form in new)
    return next((text for text in found if text), None)


def _forms(architecture: str) -> Iterator[Any]:
    for module in aot.modules():
        yield from importlib.import_module(module).specializations(architecture)


class Search:
    """The search for one entry: which candidates are right, and how long each takes."""

    def __init__(self, entry: Entry, case: Case, device: torch.device):
        self.entry, self.case, self.device = entry, case, device
        self.timer = measure.clock(device)
        self.function = case.ours("triton")
        self.exact = exact_results(case, device)
        self.allowed = errors_of_reference(case, device, self.exact)[1] if case.differentiated else {}
        self.inputs = [with_leaves(case, case.inputs(seed, device)) for seed in range(_INPUT_SETS)]

    def is_right(self, options: Options) -> bool:
        """Whether the results are as exact as they should be; False also where the candidate cannot run."""
        contender = Contender("candidate", self.function)
        try:
            with installed(self.entry, options):
                found = errors(self.case, contender, self.device, self.exact)
        # A compiler's or a launch's failure can be any exception.
        except Exception as error:
            if not self.timer.is_usable():
                raise
            print(f"    {options}: {type(error).__name__}", flush=True)
            return False
        return all(error <= self.allowed.get(quantity, 0.0) for quantity, error in found.items())

    def call(self, options: Options) -> measure.Contender:
        """Steps with these options, replayed from a graph where there are graphs."""

        def run(k: int) -> None:
            with installed(self.entry, options):
                step(self.case, self.function, self.inputs[k % _INPUT_SETS])

        return self.timer.captured(run, _INPUT_SETS)

    def median(self, options: Options) -> float:
        """Seconds of a step."""
        times = measure.interleaved({"candidate": self.call(options)}, self.timer, _SECONDS / 4)
        return measure.quantiles(times["candidate"])["median_ms"]

    def winner(self, chosen: list[Options]) -> tuple[Options, Row]:
        """Of the present options, which come first, and the fastest others: the fastest when they take turns."""
        present, *others = chosen
        finalists = [present, *sorted(others, key=self.median)[:_FINALISTS]]
        calls = {str(k): self.call(options) for k, options in enumerate(finalists)}
        times = measure.interleaved(calls, self.timer, _SECONDS)
        measured = [measure.quantiles(times[str(k)]) for k in range(len(finalists))]
        best = min(range(len(finalists)), key=lambda k: measured[k]["median_ms"])
        if measured[0]["median_ms"] <= _GAIN * measured[best]["median_ms"]:
            best = 0
        return finalists[best], {**measured[best], "present_ms": measured[0]["median_ms"]}


def tune(entry: Entry, device: torch.device, *, dry_run: bool) -> tuple[Options, Row]:
    """The entry's best options, and a row of what was measured."""
    case = case_for(entry)
    case = case.tiny() if dry_run else case
    tried = candidates(entry, entry.classes[entry.bound])
    print(f"\n{entry.kernel}, {entry.width}, up to {entry.bound}: {len(tried)} candidates on {case.name}", flush=True)
    if dry_run:
        fitting = tried[:2]
    else:
        with aot.process_pool() as pool:
            found = list(pool.map(problem, [entry] * len(tried), tried))
        # The present options stay, whatever is said of them: what they take is the measure.
        fitting = [options for k, options in enumerate(tried) if k == 0 or found[k] is None]
    search = Search(entry, case, device)
    right = [fitting[0], *(options for options in fitting[1:] if search.is_right(options))]
    options, measured = search.winner(right)
    print(f"    {options}: {measured['median_ms']:.4f} ms, before {measured['present_ms']:.4f} ms", flush=True)
    row = {"benchmark": "tune", **vars(entry), "case": case.name, "candidates": len(tried), "usable": len(right)}
    return options, {**row, "options": dict(options), **measured, **measure.conditions(device)}


def comment(row: Row) -> str:
    """What stands above a measured entry."""
    return f"{row['median_ms']:.4f} ms for {row['case']} on {row['processor']}, {datetime.date.today().isoformat()}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("kernels", nargs="*", metavar="KERNEL", help=f"of: {', '.join(SPACE)} (default: all)")
    parser.add_argument(
        "--dry-run", action="store_true", help="in Triton's interpreter, without a GPU; writes no table"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to FILE")
    options = parser.parse_args()
    unknown = set(options.kernels) - SPACE.keys()
    if unknown:
        parser.error(f"no kernel is called {', '.join(sorted(unknown))}; there are {', '.join(SPACE)}")
    if options.dry_run and not tables.interpreted():
        parser.error("--dry-run wants TRITON_INTERPRET=1 in the environment")
    device = torch.device("cpu" if options.dry_run else "cuda")
    architecture = tables.architecture(device)
    for entry in entries(architecture, options.kernels or SPACE):
        best, row = tune(entry, device, dry_run=options.dry_run)
        if options.json:
            results.add(options.json, row)
        if not options.dry_run:
            file = FOLDER / f"{architecture}.py"
            table = LaunchTable.read(file)
            table.measured((entry.kernel, entry.width, entry.bound), best, comment(row), entry.classes)
            table.write(file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
