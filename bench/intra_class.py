"""Speed, peak memory and error of the intra-class loss beside its peers, all in one run.

Each contender computes loss and both gradients through autograd from the same inputs (70 % of the rows are anchors);
its result is compared with float64 first. The floor is what the arithmetic alone takes with a tuned library: two bare
matrix products over classes of equal size (S = Z·Zᵀ and S·Z), and a copy of both inputs in and both gradients out,
timed in the same rounds. Medians and ratios count; absolute times depend on what else the machine does.
"""

import argparse
import csv
import importlib.util
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import measure, memory, peers
from bench.measure import Row
from bench.peers import TEMPERATURE, Inputs, Loss
from icckd import backends
from icckd.functional import intra_class_contrastive

ACTIVE = 0.7
INPUT_SETS = 3
LARGEST_GIGABYTES = 8


@dataclass(frozen=True)
class Case:
    """N rows of D numbers in C classes: "equal" ones, "skewed" as 1/rank, or "half" of all rows in one."""

    n: int
    d: int
    c: int
    sizes: str = "equal"

    def __str__(self) -> str:
        return f"N = {self.n:,}, D = {self.d}, C = {self.c:,}, {self.sizes} classes"


TARGETS = [Case(8192, 512, 100), Case(16384, 256, 100), Case(16384, 256, 1000), Case(4096, 128, 100)]
SWEEPS = {
    "classes": [Case(16384, 128, c) for c in (10, 32, 100, 320, 1000, 4096)],
    "size": [Case(n, 128, n // 128) for n in (2048, 8192, 32768, 131072)],
    "skew": [Case(16384, 128, 100, sizes) for sizes in ("equal", "skewed", "half")],
}
MEMORY = Case(131072, 256, 1024)
QUICK = [Case(512, 32, 8)]


def make_inputs(
    case: Case, seed: int, device: torch.device, dtype: torch.dtype = torch.float32, active: float = ACTIVE
) -> Inputs:
    """Fresh random inputs of a case; classes of exactly the sizes it says, in random order."""
    random = torch.Generator(device).manual_seed(seed)
    anchor, positive = (torch.randn(case.n, case.d, generator=random, device=device).to(dtype) for _ in range(2))
    labels = class_labels(case).to(device)[torch.randperm(case.n, generator=random, device=device)]
    gate = torch.rand(case.n, generator=random, device=device).argsort() < active * case.n
    return Inputs(anchor, positive, labels, gate, case.c)


def class_labels(case: Case) -> Tensor:
    """The label of every row (N,), class by class."""
    if case.sizes == "equal":
        return torch.arange(case.n) * case.c // case.n
    shares = 1 / torch.arange(1, case.c + 1, dtype=torch.float64)
    if case.sizes == "half":
        shares = torch.full((case.c,), 1 / (case.c - 1), dtype=torch.float64)
        shares[0] = 1
    ends = (shares.cumsum(0) / shares.sum() * case.n).round()
    return torch.searchsorted(ends, torch.arange(case.n, dtype=torch.float64), right=True).clamp(max=case.c - 1)


def contenders(case: Case, device: torch.device) -> dict[str, Loss]:
    """Who can compute this case here, by name; a peer that cannot is left out, and said so.

    Peers that need seconds a call are compared at TARGETS only.
    """
    chosen: dict[str, Loss] = {}
    for name in backends.BACKENDS:
        if backends.why_unavailable(name) is None and name in ("reference", device.type, "triton"):
            chosen[f"icckd {name}"] = _ours(name)
    for peer in _PEERS:
        if peer.targets_only and case not in TARGETS + QUICK:
            continue
        reason = _why_not(peer, case)
        if reason:
            print(f"    {peer.name}: left out, {reason}")
        else:
            chosen[peer.name] = peer.loss
    return chosen


@dataclass(frozen=True)
class _Peer:
    """A peer, the numbers of 4 bytes that it holds at once for a case, and the package that it needs."""

    name: str
    loss: Loss
    numbers: Callable[[Case], float]
    package: str | None = None
    targets_only: bool = False


def _padded_numbers(case: Case) -> float:
    largest = int(class_labels(case).bincount().max())
    return 4 * case.c * largest**2 + 6 * case.c * largest * case.d


_PEERS = [
    _Peer("loop over classes", peers.loop_over_classes, lambda case: 4 * int(class_labels(case).bincount().max()) ** 2),
    _Peer("padded bmm", peers.padded_bmm, _padded_numbers),
    _Peer("padded bmm, gradient by hand", peers.padded_by_hand, _padded_numbers),
    _Peer("dense", peers.dense, lambda case: 5 * case.n**2, targets_only=True),
    _Peer(
        "dense, torch.compile", torch.compile(peers.dense, dynamic=False), lambda case: 5 * case.n**2, targets_only=True
    ),
    _Peer("KeOps", peers.keops, lambda case: 6 * case.n * case.d, "pykeops", targets_only=True),
    # 6.3 GB at N = 4096: its masks over all rows and the listed pairs.
    _Peer(
        "pytorch-metric-learning",
        peers.metric_learning,
        lambda case: 100 * case.n**2,
        "pytorch_metric_learning",
        targets_only=True,
    ),
]


def _why_not(peer: _Peer, case: Case) -> str | None:
    if peer.package and importlib.util.find_spec(peer.package) is None:
        return f"{peer.package} is not installed (pip install icckd[bench])"
    gigabytes = 4 * peer.numbers(case) / 1e9
    return f"it would take about {gigabytes:.0f} GB" if gigabytes > LARGEST_GIGABYTES else None


def evaluate(loss: Loss, x: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and gradients of anchor and positive, through autograd."""
    anchor, positive = x.anchor.detach().requires_grad_(), x.positive.detach().requires_grad_()
    value = loss(Inputs(anchor, positive, x.labels, x.gate, x.classes))
    value.backward()
    return value.detach(), anchor.grad, positive.grad


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
    chosen = contenders(case, device)
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


def _ours(backend: str) -> Loss:
    def loss(x: Inputs) -> Tensor:
        return intra_class_contrastive(
            x.anchor, x.positive, x.labels, gate=x.gate, temperature=TEMPERATURE, num_classes=x.classes, backend=backend
        )

    return loss


@torch.no_grad()
def _forward(loss: Loss, x: Inputs) -> Tensor:
    return loss(x)


def _error(loss: Loss, x: Inputs) -> tuple[float, float]:
    """Relative error of the loss, and the gradients' largest error relative to their largest entry, against float64."""
    exact = Inputs(x.anchor.double(), x.positive.double(), x.labels, x.gate, x.classes)
    value, *gradients = evaluate(loss, x)
    true_value, *true_gradients = evaluate(_ours("reference"), exact)
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
