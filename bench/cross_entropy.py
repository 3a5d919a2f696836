"""Speed of cross-entropy with margin beside F.cross_entropy and a margin computed apart, forward and backward.

The floor is a copy of the logits: one read and one write, the least that reading logits and writing their gradient
takes.
"""

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from bench import measure
from bench.intra_class import add_arguments, save
from bench.measure import Row
from icckd import backends
from icckd.functional import cross_entropy_with_margin

CASES = [(65536, 1000), (65536, 100), (4096, 32768)]
QUICK = [(64, 10)]
INPUT_SETS = 2
Function = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def eager(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """PyTorch's loss, and the margin from a softmax and its two largest values."""
    with torch.no_grad():
        probabilities = logits.softmax(1)
        own = probabilities.gather(1, labels[:, None]).squeeze(1)
        largest, where = probabilities.topk(2, dim=1)
        other = torch.where(where[:, 0] == labels, largest[:, 1], largest[:, 0])
    return cross_entropy(logits, labels), own - other


def contenders(device: torch.device) -> dict[str, Function]:
    """Who can compute it here, by name."""
    chosen: dict[str, Function] = {}
    for name in backends.BACKENDS:
        if backends.why_unavailable(name) is None and name in ("reference", device.type, "triton"):
            chosen[f"icckd {name}"] = lambda x, y, name=name: cross_entropy_with_margin(x, y, backend=name)
    chosen["F.cross_entropy + eager margin"] = eager
    chosen["the same, torch.compile"] = torch.compile(eager, dynamic=False)
    chosen["F.cross_entropy, no margin"] = lambda x, y: (cross_entropy(x, y), y)
    return chosen


def run_case(n: int, c: int, device: torch.device, seconds: float) -> Iterator[Row]:
    """Measure one size; a row for each contender, and for the floor."""
    print(f"\nN = {n:,}, C = {c:,}")
    inputs = []
    for seed in range(INPUT_SETS):
        random = torch.Generator().manual_seed(seed)
        logits = torch.randn(n, c, generator=random).to(device).requires_grad_()
        inputs.append((logits, torch.randint(c, (n,), generator=random).to(device)))
    chosen = contenders(device)
    _check(chosen, *inputs[0])

    def call(function: Function, k: int) -> None:
        logits, labels = inputs[k % INPUT_SETS]
        logits.grad = None
        loss, _ = function(logits, labels)
        loss.backward()

    target = torch.empty(n, c, device=device)
    calls: dict[str, Callable[[int], Any]] = {
        name: lambda k, function=function: call(function, k) for name, function in chosen.items()
    }
    calls["floor: copy of the logits"] = lambda k: target.copy_(inputs[k % INPUT_SETS][0].detach())
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


def _check(chosen: dict[str, Function], logits: Tensor, labels: Tensor) -> None:
    """Raise RuntimeError where a contender's loss, margin or gradient is not float64's."""
    exact = logits.detach().double().requires_grad_()
    true_loss, true_margin = eager(exact, labels)
    true_loss.backward()
    for name, function in chosen.items():
        given = logits.detach().requires_grad_()
        loss, margin = function(given, labels)
        loss.backward()
        pairs = [(loss, true_loss), (given.grad, exact.grad)]
        if name != "F.cross_entropy, no margin":
            pairs.append((margin, true_margin))
        for computed, true in pairs:
            if not (computed.double() - true).abs().max() <= 1e-4 * true.abs().max():
                raise RuntimeError(f"{name} is wrong")


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
