"""What the device can do, measured before everything else: the copy bandwidth, and the matrix rate of each dtype.

A ceiling is the best median over several sizes, on random data. float32's matrix rate is a third of TF32's: that is
what three TF32 products, which give float32's accuracy, can reach. What a run did not come to measure is assumed to be
what that kind of device reached before, and said to be assumed.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from icckd.bench import measure
from icckd.bench.measure import Row

# Bytes of one copy, and rows of a square matrix; on a CPU as small as can be.
_COPIES = {"cuda": [2**k for k in (26, 28, 30, 32)], "cpu": [2**16]}
_MATRICES = {"cuda": [4096, 8192, 16384], "cpu": [64]}
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_TF32_PRODUCTS = 3
# More than any cache holds: copies take turns over so many bytes.
_ROTATED = 2**30
# By the device's name: bytes a second copied, and FLOP a second of bfloat16 products, as measured on one of the kind.
_SEEN = {"NVIDIA H100 80GB HBM3": (3.0e12, 798e12), "NVIDIA H200": (4.3e12, 790e12)}


@dataclass(frozen=True)
class Ceilings:
    """Bytes a second, read and written together; FLOP a second by dtype. Empty where nothing is known.

    assumed: Whether any of them was measured in another run.
    """

    bandwidth: float | None
    rates: dict[str, float]
    assumed: bool = False

    @classmethod
    def of(cls, rows: list[Row], device: str) -> "Ceilings":
        """The best of the recorded rows, and for those that are missing what is known of that kind of device."""
        copies = [row["per_second"] for row in rows if row["quantity"] == "copy bandwidth"]
        rates: dict[str, float] = {}
        for row in rows:
            if row["quantity"] == "matrix rate":
                rates[row["dtype"]] = max(rates.get(row["dtype"], 0.0), row["per_second"])
        if device not in _SEEN or (copies and rates.keys() >= _DTYPES.keys()):
            return cls(max(copies, default=None), rates)
        bandwidth, rate = _SEEN[device]
        # TF32 products have half the rate.
        known = {"bfloat16": rate, "float16": rate, "float32": rate / 2 / _TF32_PRODUCTS}
        return cls(max(copies, default=bandwidth), known | rates, assumed=True)

    def floor(self, bytes_: int | None, flop: int | None, dtype: str) -> float | None:
        """Seconds that so much work takes at least; None where no work was counted, or a ceiling is not known."""
        ceilings = [(work, c) for work, c in ((bytes_, self.bandwidth), (flop, self.rates.get(dtype))) if work]
        if not ceilings or any(ceiling is None for _, ceiling in ceilings):
            return None
        return max(work / ceiling for work, ceiling in ceilings)


def measure_ceilings(device: torch.device, seconds: float, least: int) -> Iterator[Row]:
    """A row for each size of a copy and of a matrix product."""
    timer = measure.clock(device)
    for size in _COPIES[device.type]:
        times = measure.interleaved({"copy": _copy(size, device)}, timer, seconds, least=least)["copy"]
        yield _row(device, "copy bandwidth", "bfloat16", size, 2 * size, times)
    precision = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        for dtype in _DTYPES:
            for n in _MATRICES[device.type]:
                times = measure.interleaved({"product": _product(n, dtype, device)}, timer, seconds, least=least)
                work = 2 * n**3 / (_TF32_PRODUCTS if dtype == "float32" else 1)
                yield _row(device, "matrix rate", dtype, n, work, times["product"])
    finally:
        torch.backends.cuda.matmul.fp32_precision = precision


def _copy(size: int, device: torch.device) -> measure.Contender:
    count = max(1, min(8, _ROTATED // size)) if device.type == "cuda" else 1
    sources = [torch.randn(size // 2, device=device, dtype=torch.bfloat16) for _ in range(count)]
    targets = [torch.empty_like(source) for source in sources]
    return lambda k: targets[k % count].copy_(sources[k % count])


def _product(n: int, dtype: str, device: torch.device) -> measure.Contender:
    x, y = (torch.randn(n, n, device=device).to(_DTYPES[dtype]) for _ in range(2))
    out = torch.empty_like(x)

    def product(_: int) -> Tensor:
        return torch.mm(x, y, out=out)

    return product


def _row(device: torch.device, quantity: str, dtype: str, size: int, work: float, times: list[float]) -> Row:
    row = {"stage": "ceilings", "quantity": quantity, "dtype": dtype, "size": size, **measure.quantiles(times)}
    rate = work / row["median_ms"] * 1e3
    unit = "TB/s" if quantity == "copy bandwidth" else "TFLOP/s"
    print(f"    {quantity:<16}{dtype:<10}{size:>12,}  {rate / 1e12:8.2f} {unit}", flush=True)
    return {**row, "per_second": rate, **measure.conditions(device)}
