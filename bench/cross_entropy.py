"""Speed of cross-entropy with margin beside F.cross_entropy and a margin computed apart, forward and backward.

The floor is a copy of the logits: one read and one write, the least that reading logits and writing their gradient
takes.
"""

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import torch

from bench.intra_class import add_arguments, save
from icckd.bench import measure
from icckd.bench.accuracy import exact_results, screen
from icckd.bench.case import step, with_leaves
from icckd.bench.functions.cross_entropy import CrossEntropy
from icckd.bench.measure import Row
from icckd.bench.speed import everybody

CASES = [(65536, 1000), (65536, 100), (4096, 32768)]
QUICK = [(64, 10)]
INPUT_SETS = 2


def run_case(n: int, c: int, device: torch.device, seconds: float) -> Iterator[Row]:
    """Measure one size; a row for each contender, and for the floor."""
    print(f"\nN = {n:,}, C = {c:,}")
    case = CrossEntropy("float32", n, c)
    inputs = [with_leaves(case, case.inputs(seed, device)) for seed in range(INPUT_SETS)]
    exact = exact_results(case, device)
    calls: dict[str, Callable[[int], Any]] = {}
    for contender in everybody(case, device):
        why_not, _ = screen(case, contender, device, measure.clock(device), exact)
        if why_not is None:
            calls[contender.name] = lambda k, function=contender.function: step(case, function, inputs[k % INPUT_SETS])
        elif contender.why_not is None:
            raise RuntimeError(f"{contender.name} is wrong: {why_not}")
    target = torch.empty(n, c, device=device)
    calls["floor: copy of the logits"] = lambda k: target.copy_(inputs[k % INPUT_SETS].logits.detach())
    times = measure.interleaved(calls, measure.clock(device), seconds)
    medians = {name: measure.quantiles(seconds_)["median_ms"] for name, seconds_ in times.items()}
    for name, seconds_ in times.items():
        row = {
            "benchmark": "cross_entropy",
            "contender": name,
            "n": n,
            "c": c,
            "dtype": "float32",
            **measure.quantiles(seconds_),
            "times_floor": medians[name] / medians["floor: copy of the logits"],
            "times_eager": medians[name] / medians["F.cross_entropy + eager margin"],
            **measure.conditions(device),
        }
        measure.print_row(row, f"{row['times_floor']:.2f} × floor", f"{row['times_eager']:.2f} × eager")
        yield row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_arguments(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    rows: list[Row] = []
    for n, c in QUICK if options.quick else CASES:
        rows += run_case(n, c, device, seconds=0.05 if options.quick else 3.0)
    save(rows, options)


if __name__ == "__main__":
    main()
