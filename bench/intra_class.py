"""Speed, peak memory and error of the intra-class loss beside its peers, all in one run.

Each contender computes loss and both gradients through autograd from the same inputs (70 % of the rows are anchors);
its result is compared with float64 first. The floor is what the arithmetic alone takes with a tuned library: two bare
matrix products over classes of equal size (S = Z·Zᵀ and S·Z), and a copy of both inputs in and both gradients out,
timed in the same rounds. Medians and ratios count; absolute times depend on what else the machine does.
"""

import argparse
import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import measure, memory
from bench.intra_class_cases import ACTIVE, Case, contenders, evaluate, make_inputs, ours
from bench.measure import Row
from bench.peers import Inputs, Loss

INPUT_SETS = 3
TARGETS = [Case(8192, 512, 100), Case(16384, 256, 100), Case(16384, 256, 1000), Case(4096, 128, 100)]
SWEEPS = {
    "classes": [Case(16384, 128, c) for c in (10, 32, 100, 320, 1000, 4096)],
    "size": [Case(n, 128, n // 128) for n in (2048, 8192, 32768, 131072)],
    "skew": [Case(16384, 128, 100, sizes) for sizes in ("equal", "skewed", "half")],
}
MEMORY = Case(131072, 256, 1024)
QUICK = [Case(128, 32, 4)]


def floor_parts(case: Case, device: torch.device) -> dict[str, Callable[[int], Any]]:
    """The floor's two parts, as contenders: the bare matrix products, and the copies."""
    size = max(1, round(case.n / case.c))
    z = torch.randn(case.c, size, case.d, device=device)
    s, g = torch.empty(case.c, size, size, device=device), torch.empty_like(z)
    source = [torch.randn(case.n, case.d, device=device) for _ in range(2)]
    target = [torch.empty_like(x) for x in source]

    def products(_: int) -> None:
        torch.bmm(z, z.mT, out=s)
        torch.bmm(s, z, out=g)

    def copies(_: int) -> None:
        for x, y in zip(source, target, strict=True):
            y.copy_(x)

    return {"floor: two bare matrix products": products, "floor: copies in and out": copies}


def run_case(sweep: str, case: Case, device: torch.device, seconds: float) -> Iterator[Row]:
    """Measure one case; a row for each contender, and for each part of the floor."""
    print(f"\n{case}")
    inputs = [make_inputs(case, seed, device) for seed in range(INPUT_SETS)]
    # Those that need seconds a call are compared at the targets only.
    chosen = contenders(case, device, with_slow=case in TARGETS + QUICK)
    errors = {name: _error(loss, inputs[0]) for name, loss in chosen.items()}
    calls: dict[str, Callable[[int], Any]] = {
        name: lambda k, loss=loss: evaluate(loss, inputs[k % INPUT_SETS]) for name, loss in chosen.items()
    }
    calls |= {
        f"{name}, forward": lambda k, loss=loss: _forward(loss, inputs[k % INPUT_SETS])
        for name, loss in chosen.items()
        if name.startswith("icckd")
    }
    times = measure.interleaved(calls | floor_parts(case, device), measure.clock(device), seconds)
    medians = {name: measure.quantiles(seconds)["median_ms"] for name, seconds in times.items()}
    floor = sum(value for name, value in medians.items() if name.startswith("floor"))
    best = min(value for name, value in medians.items() if not name.startswith(("icckd", "floor")))
    for name, seconds_ in times.items():
        loss_error, gradient_error = errors.get(name, (None, None))
        row = {
            "benchmark": "intra_class",
            "sweep": sweep,
            "contender": name,
            **case.__dict__,
            "dtype": "float32",
            "active": ACTIVE,
            **measure.quantiles(seconds_),
            "times_floor": medians[name] / floor,
            "best_peer_over_this": best / medians[name],
            "loss_error": loss_error,
            "gradient_error": gradient_error,
            **measure.conditions(device),
        }
        against_peer = f"{row['best_peer_over_this']:.2f}× the best peer's speed" if name.startswith("icckd") else ""
        measure.print_row(row, f"{row['times_floor']:.2f} × floor", against_peer)
        yield row


def run_memory(case: Case, device: torch.device) -> Iterator[Row]:
    """Peak memory of those that can do a large case, each in a process of its own."""
    print(f"\npeak memory beyond the inputs, {case}")
    gradients = 2 * case.n * case.d * 4
    for name in contenders(case, device):
        peak = memory.peak(name, case.n, case.d, case.c, device.type, torch.get_num_threads())
        row = {
            "benchmark": "intra_class",
            "sweep": "memory",
            "contender": name,
            **case.__dict__,
            "dtype": "float32",
            "active": ACTIVE,
            "peak_bytes": peak,
            "inputs_and_gradients_bytes": 2 * gradients,
            "times_inputs_and_gradients": None if peak is None else (peak + gradients) / (2 * gradients),
            **measure.conditions(device),
        }
        ratio = row["times_inputs_and_gradients"]
        print(f"    {name:<34}" + ("out of memory" if ratio is None else f"{ratio:.2f} × (inputs + gradients)"))
        yield row


@torch.no_grad()
def _forward(loss: Loss, x: Inputs) -> Tensor:
    return loss(x)


def _error(loss: Loss, x: Inputs) -> tuple[float, float]:
    """Relative error of the loss, and the gradients' largest error relative to their largest entry, against float64."""
    exact = Inputs(x.anchor.double(), x.positive.double(), x.labels, x.gate, x.classes)
    value, *gradients = evaluate(loss, x)
    true_value, *true_gradients = evaluate(ours("reference"), exact)
    loss_error = ((value - true_value) / true_value).abs().item()
    errors = [(g - t).abs().max() / t.abs().max() for g, t in zip(gradients, true_gradients, strict=True)]
    gradient_error = torch.stack(errors).max().item()
    if not (loss_error < 1e-4 and gradient_error < 1e-3):
        raise RuntimeError(f"a contender is wrong: loss off by {loss_error:.1e}, gradients by {gradient_error:.1e}")
    return loss_error, gradient_error


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that all benchmarks share."""
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to FILE")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the rows to FILE")
    parser.add_argument("--quick", action="store_true", help="one tiny case, to see that everything runs")


def save(rows: list[Row], options: argparse.Namespace) -> None:
    """Write the rows where the options say."""
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    if options.csv:
        options.csv.parent.mkdir(parents=True, exist_ok=True)
        names = list(dict.fromkeys(name for row in rows for name in row))
        with options.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_arguments(parser)
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the sweeps into FILE (.png or .svg)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    rows: list[Row] = []
    sweeps = {"quick": QUICK} if options.quick else {"targets": TARGETS, **SWEEPS}
    for sweep, cases in sweeps.items():
        for case in cases:
            rows += run_case(sweep, case, device, seconds=0.05 if options.quick else 1.5)
    if not options.quick:
        rows += run_memory(MEMORY, device)
    save(rows, options)
    if options.plot:
        from bench.plot import draw

        draw(rows, options.plot)


if __name__ == "__main__":
    main()
