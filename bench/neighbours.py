"""Time, peak memory and error of the neighbours' losses, forward and backward, beside their dense forms.

"icckd" is the function of `icckd.functional`, "dense" its definition in `icckd.reference`, which holds all logits or
all pairs at once: as one writes it in PyTorch. Where it would take more memory than there is, it is left out, and said
so. Peak memory is the most that one call takes beyond its inputs, gradients included, in a process of its own; stated
is what a formula says of ours, for the same. Medians and ratios count; absolute times depend on what else the machine
does.
"""

import argparse
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from types import ModuleType

import torch
from torch import Tensor

from bench import memory
from bench.intra_class import add_arguments, save
from icckd import functional, reference
from icckd.backends.center_contrastive import CHUNK
from icckd.bench import measure
from icckd.bench.case import release, too_large
from icckd.bench.measure import Row

WAYS: dict[str, ModuleType] = {"icckd": functional, "dense": reference}
INPUT_SETS = 2
# Relative, by dtype: what a wrong result is beyond.
_TOLERANCE = {"float32": 1e-3, "bfloat16": 2e-2}
# Seconds of a call that are too many.
_TOO_SLOW = 90.0


@dataclass(frozen=True)
class Case:
    """A function of `icckd.functional`, N rows of D numbers, C classes."""

    function: str
    n: int
    d: int
    c: int
    dtype: str = "float32"

    def __str__(self) -> str:
        return f"{self.function}, {self.dtype}, N = {self.n:,}, D = {self.d}, C = {self.c:,}"

    @property
    def stated_bytes(self) -> int:
        """What ours takes at most beyond its inputs, gradients included."""
        return 4 * _STATED[self.function](self.n, self.d, self.c)

    @property
    def dense_numbers(self) -> int:
        """How many numbers the dense form holds at once: logits, or pairs, and what autograd keeps of them."""
        return _DENSE[self.function](self.n, self.d, self.c)


# Numbers of float32, from N, D and C.
_STATED = {
    "center_contrastive": lambda n, d, c: 7 * (n + c) * d + 2 * min(n * c, max(CHUNK, c)),
    "weak_spectral": lambda n, d, c: 6 * n * d + 2 * n * c + 8 * c * d + 4 * d * d,
    "hierarchical_similarity": lambda n, d, c: 7 * n * d + 2**23,
}
_DENSE = {
    "center_contrastive": lambda n, d, c: 5 * n * c + 6 * (n + c) * d,
    "weak_spectral": lambda n, d, c: 22 * n * n,
    "hierarchical_similarity": lambda n, d, c: 10 * n * n,
}
CASES = [
    Case("center_contrastive", 4096, 512, 1000),
    Case("center_contrastive", 4096, 512, 10_000),
    Case("center_contrastive", 512, 512, 100_000),
    Case("center_contrastive", 4096, 512, 100_000),
    Case("center_contrastive", 4096, 512, 100_000, "bfloat16"),
    *(Case("weak_spectral", n, 128, 100) for n in (1024, 4096, 16384)),
    *(Case("hierarchical_similarity", n, 128, 100) for n in (1024, 4096, 16384)),
]
QUICK = [Case(function, 40, 8, 5) for function in _STATED]


@dataclass
class Inputs:
    """What is differentiated, and the arguments after it."""

    differentiated: list[Tensor]
    others: list[Tensor]


def make_inputs(case: Case, seed: int, device: torch.device) -> Inputs:
    """Fresh random inputs: rows near their class's centre, of about unit length."""
    random = torch.Generator(device).manual_seed(seed)
    dtype = getattr(torch, case.dtype)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, device=device)

    labels = torch.randint(case.c, (case.n,), generator=random, device=device)
    centers = numbers(case.c, case.d) / case.d**0.5
    views = [(centers[labels] + numbers(case.n, case.d) / case.d**0.5).to(dtype) for _ in range(2)]
    if case.function == "weak_spectral":
        return Inputs(views, [(2 * numbers(case.n, case.c)).softmax(1).to(dtype)])
    if case.function == "center_contrastive":
        return Inputs([views[0], centers.to(dtype)], [labels])
    return Inputs(views[:1], [labels])


def evaluate(way: str, case: Case, x: Inputs) -> list[Tensor]:
    """The loss and its gradients."""
    leaves = [t.detach().requires_grad_() for t in x.differentiated]
    loss = getattr(WAYS[way], case.function)(*leaves, *x.others)
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


def run_case(case: Case, device: torch.device, seconds: float) -> Iterator[Row]:
    """Measure one size; a row for each way, or the reason why it is left out."""
    print(f"\n{case}")
    common = {"benchmark": "neighbours", **asdict(case)}
    why_not = too_large(case.dense_numbers, 4, device)
    ways = [way for way in WAYS if why_not is None or way != "dense"]
    errors = _errors(case, ways, device)
    inputs = [make_inputs(case, seed, device) for seed in range(INPUT_SETS)]
    calls: dict[str, measure.Contender] = {
        way: lambda k, way=way: evaluate(way, case, inputs[k % INPUT_SETS]) for way in ways
    }
    times = measure.interleaved(calls, measure.clock(device), seconds, _TOO_SLOW, patience=_TOO_SLOW)
    medians = {way: measure.quantiles(values)["median_ms"] for way, values in times.items()}
    for way, values in times.items():
        row = {
            **common,
            "contender": way,
            **measure.quantiles(values),
            "times_dense": medians[way] / medians["dense"] if "dense" in medians else None,
            "error": errors.get(way),
            "peak_bytes": peak(way, case, device),
            "stated_bytes": case.stated_bytes if way == "icckd" else None,
            **measure.conditions(device),
        }
        more = [f"{row[key] / 1e6:.0f} MB {key[:-6]}" for key in ("peak_bytes", "stated_bytes") if row[key] is not None]
        measure.print_row(row, *more)
        yield row
    if why_not is not None:
        print(f"    {'dense':<42}left out: {why_not}")
        yield {**common, "contender": "dense", "why_not": why_not, **measure.conditions(device)}


def _errors(case: Case, ways: list[str], device: torch.device) -> dict[str, float]:
    """The largest error of loss and gradients, each relative to the largest number; none where float64 does not fit."""
    if too_large(case.dense_numbers, 8, device) is not None:
        return {}
    x = make_inputs(case, 0, device)
    widened = (
        [t.double() if t.is_floating_point() else t for t in tensors] for tensors in (x.differentiated, x.others)
    )
    exact = evaluate("dense", case, Inputs(*widened))
    errors = {}
    for way in ways:
        pairs = zip(evaluate(way, case, x), exact, strict=True)
        errors[way] = max(float((y.double() - t).abs().max() / t.abs().max()) for y, t in pairs)
        if not errors[way] < _TOLERANCE[case.dtype]:
            raise RuntimeError(f"{way} is wrong: {case} is off by {errors[way]:.1e}")
    del exact
    release(device)
    return errors


def peak(way: str, case: Case, device: torch.device) -> int | None:
    """Bytes that one call takes beyond its inputs, in a process of its own; None where it was killed for them."""
    arguments = ["--peak", way, *map(str, asdict(case).values())]
    arguments += [f"--device={device.type}", f"--threads={torch.get_num_threads()}"]
    return memory.printed_bytes(way, "bench.neighbours", arguments)


def _print_peak(way: str, case: Case, device: torch.device) -> None:
    (small,) = (quick for quick in QUICK if quick.function == case.function)
    evaluate(way, small, make_inputs(small, 0, device))  # libraries load their own memory at first use
    inputs = make_inputs(case, 0, device)
    before = memory.reset(device)
    results = evaluate(way, case, inputs)
    print(memory.highest(device) - before)
    del results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_arguments(parser)
    parser.add_argument(
        "--peak",
        nargs=6,
        metavar=("WAY", "FUNCTION", "N", "D", "C", "DTYPE"),
        help="print the bytes that this takes beyond its inputs, alone",
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    if options.peak:
        way, function, *sizes, dtype = options.peak
        _print_peak(way, Case(function, *map(int, sizes), dtype), device)
        return
    rows: list[Row] = []
    for case in QUICK if options.quick else CASES:
        rows += run_case(case, device, seconds=0.05 if options.quick else 3.0)
    save(rows, options)


if __name__ == "__main__":
    main()
