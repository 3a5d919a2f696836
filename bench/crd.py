"""Speed, peak memory and error of what crd computes with its two memory banks, by every way, all in one run.

B embeddings of the student meet B · (K + 1) rows of the teacher's bank, and the teacher's those of the student's;
forward and backward, for the gradients of both embeddings. The floor is a copy of as many bytes as any way must move at
least: in both passes each bank once, the indices once, and the products or their gradients once. Medians and ratios
count; absolute times depend on what else the machine does.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from bench import memory
from bench.intra_class import add_arguments, save
from icckd import backends
from icckd.bench import measure
from icckd.bench.measure import Row
from icckd.functional import bank_products

INPUT_SETS = 2
FLOOR = "floor: copy of the least bytes"
PUBLIC = "index_select and bmm"
# Rows of a bank that are gathered at a time by the chunked way: half a megabyte.
_CHUNK = 1024
# Query (B, D), bank (N, D), indices (B, K + 1) → products (B, K + 1).
Way = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """B images, K negatives each, D numbers of an embedding, N images in the training set."""

    b: int = 64
    k: int = 16384
    d: int = 128
    n: int = 50000

    def __str__(self) -> str:
        return f"B = {self.b}, K = {self.k:,}, D = {self.d}, N = {self.n:,}"

    @property
    def least_bytes(self) -> int:
        """What both sides' two passes must read and write at least, in float32."""
        products = self.b * (self.k + 1)
        return 2 * 2 * (4 * self.n * self.d + 8 * products + 4 * products)


QUICK = Case(b=3, k=40, d=16, n=60)


@dataclass
class Inputs:
    """Both sides: embeddings (B, D) with the other network's bank (N, D) and the products' upstream gradient."""

    queries: list[Tensor]
    banks: list[Tensor]
    index: Tensor
    upstream: list[Tensor]


class _Chunked(torch.autograd.Function):
    """Chunks of gathered rows, in both passes."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, bank: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(bank, index)
        rows = zip(query, index, strict=True)
        return torch.stack([torch.cat([bank[part] @ q for part in wanted.split(_CHUNK)]) for q, wanted in rows])

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        bank, index = ctx.saved_tensors
        gradient = upstream.new_zeros(len(upstream), bank.shape[1])
        for total, weight, wanted in zip(gradient, upstream, index, strict=True):
            for w, part in zip(weight.split(_CHUNK), wanted.split(_CHUNK), strict=True):
                total += w @ bank[part]
        return gradient, None, None


def gathered(query: Tensor, bank: Tensor, index: Tensor) -> Tensor:
    """The public way: B · (K + 1) · D numbers, written and read again."""
    rows = bank.index_select(0, index.reshape(-1)).view(*index.shape, -1)
    return torch.bmm(rows, query[:, :, None]).squeeze(2)


def chunked(query: Tensor, bank: Tensor, index: Tensor) -> Tensor:
    """The same by chunks that stay in cache."""
    return _Chunked.apply(query, bank, index)


def whole_bank(query: Tensor, bank: Tensor, index: Tensor) -> Tensor:
    """One product with the whole bank, and a gather of scores; backward a scatter of gradients, and one product."""
    return (query @ bank.T).gather(1, index)


def ways(device: torch.device) -> dict[str, Way]:
    """Who can compute it here, by name."""
    chosen: dict[str, Way] = {PUBLIC: gathered, "chunks of gathered rows": chunked, "the whole bank": whole_bank}
    for name in backends.BACKENDS:
        # On a CPU Triton's interpreter would take hours.
        wanted = name in ("reference", "cpu" if device.type == "cpu" else "triton")
        if wanted and backends.why_not(name, device, torch.float32, "bank") is None:
            chosen[f"icckd {name}"] = lambda q, bank, index, name=name: bank_products(q, bank, index, backend=name)
    return chosen


def make_inputs(case: Case, seed: int, device: torch.device) -> Inputs:
    """Fresh random inputs: rows of length 1, indices with a positive and K of all images."""
    random = torch.Generator(device).manual_seed(seed)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, device=device)

    return Inputs(
        [normalize(numbers(case.b, case.d)) for _ in range(2)],
        [normalize(numbers(case.n, case.d)) for _ in range(2)],
        torch.randint(case.n, (case.b, case.k + 1), generator=random, device=device),
        [numbers(case.b, case.k + 1) for _ in range(2)],
    )


def evaluate(way: Way, x: Inputs) -> tuple[list[Tensor], list[Tensor]]:
    """Products and gradients of both sides."""
    queries = [q.detach().requires_grad_() for q in x.queries]
    products = [way(q, bank, x.index) for q, bank in zip(queries, x.banks, strict=True)]
    return [p.detach() for p in products], list(torch.autograd.grad(products, queries, x.upstream))


def run_case(case: Case, device: torch.device, seconds: float) -> Iterator[Row]:
    """Measure one size; a row for each way, and for the floor."""
    print(f"\n{case}")
    inputs = [make_inputs(case, seed, device) for seed in range(INPUT_SETS)]
    chosen = ways(device)
    exact = evaluate(whole_bank, _in_float64(inputs[0]))
    errors = {name: _errors(name, evaluate(way, inputs[0]), exact) for name, way in chosen.items()}
    source = torch.randn(case.least_bytes // 8, device=device)
    target = torch.empty_like(source)
    calls: dict[str, measure.Contender] = {
        name: lambda k, way=way: evaluate(way, inputs[k % INPUT_SETS]) for name, way in chosen.items()
    }
    calls[FLOOR] = lambda k: target.copy_(source)
    times = measure.interleaved(calls, measure.clock(device), seconds)
    medians = {name: measure.quantiles(values)["median_ms"] for name, values in times.items()}
    for name, values in times.items():
        products_error, gradient_error = errors.get(name, (None, None))
        row = {
            "benchmark": "crd",
            "contender": name,
            **case.__dict__,
            "dtype": "float32",
            **measure.quantiles(values),
            "times_floor": medians[name] / medians[FLOOR],
            "times_public": medians[name] / medians[PUBLIC],
            "products_error": products_error,
            "gradient_error": gradient_error,
            "peak_bytes": peak(name, case, device) if name in chosen else None,
            "least_bytes": case.least_bytes,
            **measure.conditions(device),
        }
        megabytes = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:.0f} MB"
        measure.print_row(row, f"{row['times_floor']:.2f} × floor", f"{row['times_public']:.3f} × public", megabytes)
        yield row


def peak(name: str, case: Case, device: torch.device) -> int:
    """Bytes that one call takes beyond its inputs, in a process of its own."""
    sizes = [f"--{option}={size}" for option, size in zip(_SIZES, astuple(case), strict=True)]
    command = [sys.executable, "-m", "bench.crd", "--peak", name, *sizes, f"--device={device.type}"]
    command.append(f"--threads={torch.get_num_threads()}")
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def _print_peak(name: str, case: Case, device: torch.device) -> None:
    way = ways(device)[name]
    evaluate(way, make_inputs(QUICK, 0, device))  # libraries load their own memory at first use
    inputs = make_inputs(case, 0, device)
    before = memory.reset(device)
    results = evaluate(way, inputs)
    print(memory.highest(device) - before)
    del results


def _in_float64(x: Inputs) -> Inputs:
    queries, banks, upstream = ([t.double() for t in tensors] for tensors in (x.queries, x.banks, x.upstream))
    return Inputs(queries, banks, x.index, upstream)


def _errors(name: str, computed: tuple[list[Tensor], ...], exact: tuple[list[Tensor], ...]) -> tuple[float, ...]:
    """The largest error of the products, and of the gradients, relative to the largest of them in float64."""
    found = tuple(
        max(float((x - t).abs().max() / t.abs().max()) for x, t in zip(*both, strict=True))
        for both in zip(computed, exact, strict=True)
    )
    if not max(found) < 1e-4:
        raise RuntimeError(f"{name} is wrong: products and gradients are off by {found}")
    return found


# The options that say a case, in the order of its fields.
_SIZES = {
    "images": "B, images in a batch",
    "negatives": "K, negatives of each image",
    "dim": "D, numbers of an embedding",
    "training-images": "N, rows of a bank",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_arguments(parser)
    for (name, meaning), default in zip(_SIZES.items(), astuple(Case()), strict=True):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{meaning} (default: {default})")
    parser.add_argument("--peak", metavar="WAY", help="print the bytes that this way takes beyond its inputs, alone")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    case = QUICK if options.quick else Case(*(getattr(options, name.replace("-", "_")) for name in _SIZES))
    if options.peak:
        _print_peak(options.peak, case, device)
    else:
        save(list(run_case(case, device, seconds=0.05 if options.quick else 3.0)), options)


if __name__ == "__main__":
    main()
