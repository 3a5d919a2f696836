"""Speed, peak memory and error of the intra-class loss, and of supervised contrast, beside their peers, all in one run.

Each contender computes loss and gradients through autograd from the same inputs (of the intra-class loss 70 % of the
rows are anchors); its result is compared with float64 first. The floor is what the arithmetic alone takes with a tuned
library: two bare matrix products over classes of equal size (S = Z·Zᵀ and S·Z), of supervised contrast over all rows,
and a copy of the inputs in and their gradients out, timed in the same rounds. Where the classes are of other sizes,
their own floor is the same over these, one by one. Medians and ratios count; absolute times depend on what else the
machine does.
"""

import argparse
import csv
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import memory
from icckd.bench import measure
from icckd.bench.accuracy import WRONG, errors, exact_results
from icckd.bench.case import Contender, forward, step, with_leaves
from icckd.bench.functions.intra_class import IntraClass
from icckd.bench.functions.supervised_contrastive import SupervisedContrastive
from icckd.bench.measure import Row
from icckd.bench.speed import INPUT_SETS, everybody

Measured = IntraClass | SupervisedContrastive

_case = partial(IntraClass, "float32", active=0.7)
TARGETS = [_case(8192, 512, 100), _case(16384, 256, 100), _case(16384, 256, 1000), _case(4096, 128, 100)]
SWEEPS = {
    "classes": [_case(16384, 128, c) for c in (10, 32, 100, 320, 1000, 4096)],
    "size": [_case(n, 128, n // 128) for n in (2048, 8192, 32768, 131072)],
    "skew": [_case(16384, 128, 100, shape) for shape in ("equal", "skewed", "half")],
}
SUPERVISED = [SupervisedContrastive("float32", 2048, 128, c) for c in (10, 100)]
MEMORY: dict[str, Measured] = {
    "memory": _case(131072, 256, 1024),
    "supervised memory": SupervisedContrastive("float32", 4096, 128, 100),
}
QUICK: list[Measured] = [_case(128, 32, 4), SupervisedContrastive("float32", 128, 32, 4)]
# Need seconds a call on a CPU: compared at the targets only.
_SLOW = ("dense", "dense, torch.compile", "KeOps", "pytorch-metric-learning")


def contenders(case: Measured, device: torch.device, *, with_slow: bool = False) -> list[Contender]:
    """Who can compute this case here; a peer that cannot is left out, and said so.

    with_slow: Peers that need seconds a call, too.
    """
    chosen = []
    for contender in everybody(case, device):
        if contender.name in _SLOW and not with_slow:
            continue
        if contender.why_not is None:
            chosen.append(contender)
        elif contender.is_peer:
            print(f"    {contender.name}: left out, {contender.why_not}")
    return chosen


def floor_parts(case: Measured, device: torch.device) -> dict[str, Callable[[int], Any]]:
    """The floor's parts, as contenders: the bare matrix products, those over the classes as they are, the copies."""
    classes = case.c if isinstance(case, IntraClass) else 1
    size = max(1, round(case.n / classes))
    equal = [torch.randn(classes, size, case.d, device=device)]
    source = [torch.randn(case.n, case.d, device=device) for _ in case.differentiated]
    target = [torch.empty_like(x) for x in source]

    def copies(_: int) -> None:
        for x, y in zip(source, target, strict=True):
            y.copy_(x)

    parts = {"floor: two bare matrix products": _two_products(equal)}
    if isinstance(case, IntraClass) and case.shape != "equal":
        own = [torch.randn(1, size, case.d, device=device) for size in case.class_sizes().tolist()]
        parts["own floor: two bare matrix products"] = _two_products(own)
    return parts | {"floor: copies in and out": copies}


def _two_products(batches: list[Tensor]) -> Callable[[int], None]:
    """Z·Zᵀ and its product with Z, for every batch of matrices Z, into memory that is there already."""
    products = max((z.shape[0] * z.shape[1] ** 2 for z in batches), default=0)
    similarities = batches[0].new_empty(products)
    gradients = [torch.empty_like(z) for z in batches]

    def multiply(_: int) -> None:
        for z, g in zip(batches, gradients, strict=True):
            count, size, _dim = z.shape
            s = similarities[: count * size**2].view(count, size, size)
            torch.bmm(z, z.mT, out=s)
            torch.bmm(s, z, out=g)

    return multiply


def run_case(sweep: str, case: Measured, device: torch.device, seconds: float) -> Iterator[Row]:
    """Measure one case; a row for each contender, and for each part of the floor."""
    print(f"\n{case.name}")
    inputs = [with_leaves(case, case.inputs(seed, device)) for seed in range(INPUT_SETS)]
    chosen = contenders(case, device, with_slow=case in (*TARGETS, *SUPERVISED, *QUICK))
    exact = exact_results(case, device)
    error_of = {contender.name: _errors(case, contender, device, exact) for contender in chosen}
    calls: dict[str, Callable[[int], Any]] = {
        contender.name: lambda k, function=contender.function: step(case, function, inputs[k % INPUT_SETS])
        for contender in chosen
    }
    calls |= {
        f"{contender.name}, forward": lambda k, function=contender.function: forward(function, inputs[k % INPUT_SETS])
        for contender in chosen
        if not contender.is_peer
    }
    times = measure.interleaved(calls | floor_parts(case, device), measure.clock(device), seconds)
    medians = {name: measure.quantiles(seconds)["median_ms"] for name, seconds in times.items()}
    copies = medians["floor: copies in and out"]
    equal_products = medians["floor: two bare matrix products"]
    floor = equal_products + copies
    own_floor = medians.get("own floor: two bare matrix products", equal_products) + copies
    best = min(value for name, value in medians.items() if not name.startswith(("icckd", "floor", "own floor")))
    for name, seconds_ in times.items():
        loss_error, gradient_error = error_of.get(name, (None, None))
        row = {
            "benchmark": case.family,
            "sweep": sweep,
            "contender": name,
            **_described(case),
            **measure.quantiles(seconds_),
            "times_floor": medians[name] / floor,
            "times_own_floor": medians[name] / own_floor,
            "best_peer_over_this": best / medians[name],
            "loss_error": loss_error,
            "gradient_error": gradient_error,
            **measure.conditions(device),
        }
        against_peer = f"{row['best_peer_over_this']:.2f}× the best peer's speed" if name.startswith("icckd") else ""
        against_own = f"{row['times_own_floor']:.2f} × own floor" if own_floor != floor else ""
        measure.print_row(row, f"{row['times_floor']:.2f} × floor", against_own, against_peer)
        yield row


def run_memory(sweep: str, case: Measured, device: torch.device) -> Iterator[Row]:
    """Peak memory of those that can do a large case, each in a process of its own."""
    print(f"\npeak memory beyond the inputs, {case.name}")
    gradients = len(case.differentiated) * case.n * case.d * 4
    for name in (contender.name for contender in contenders(case, device, with_slow=case.family != "intra_class")):
        peak = memory.peak(case.family, name, case.n, case.d, case.c, device.type, torch.get_num_threads())
        row = {
            "benchmark": case.family,
            "sweep": sweep,
            "contender": name,
            **_described(case),
            "peak_bytes": peak,
            "inputs_and_gradients_bytes": 2 * gradients,
            "times_inputs_and_gradients": None if peak is None else (peak + gradients) / (2 * gradients),
            **measure.conditions(device),
        }
        ratio = row["times_inputs_and_gradients"]
        print(f"    {name:<34}" + ("out of memory" if ratio is None else f"{ratio:.2f} × (inputs + gradients)"))
        yield row


def _described(case: Measured) -> Row:
    sizes, active = (case.sizes.get(name, usual) for name, usual in (("shape", "equal"), ("active", 1.0)))
    return {"n": case.n, "d": case.d, "c": case.c, "sizes": sizes, "dtype": case.dtype, "active": active}


def _errors(
    case: Measured, contender: Contender, device: torch.device, exact: dict[str, Tensor]
) -> tuple[float, float]:
    """The relative errors of the loss, and of the gradients, whichever is larger, against float64."""
    loss, *gradients = errors(case, contender, device, exact).values()
    if not max(loss, *gradients) <= WRONG[case.dtype]:
        raise RuntimeError(f"{contender.name} is wrong: loss off by {loss:.1e}, gradients by {max(gradients):.1e}")
    return loss, max(gradients)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that all benchmarks share."""
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: %(default)s)")
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
    sweeps: dict[str, Sequence[Measured]] = (
        {"quick": QUICK} if options.quick else {"targets": TARGETS, **SWEEPS, "supervised": SUPERVISED}
    )
    for sweep, cases in sweeps.items():
        for case in cases:
            rows += run_case(sweep, case, device, seconds=0.05 if options.quick else 1.5)
    if not options.quick:
        for sweep, case in MEMORY.items():
            rows += run_memory(sweep, case, device)
    save(rows, options)
    if options.plot:
        from bench.plot import draw

        draw(rows, options.plot)


if __name__ == "__main__":
    main()
