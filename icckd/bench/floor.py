"""The floor of a case: the least that its bytes or its matrix operations take here, timed beside its contenders.

Bytes: a copy that reads and writes as many as the case must at least. Operations: one square product of as many, by
PyTorch's own library. Nothing can be faster than the slower of the two, as far as the work was counted
(`Case.work`); that of the loss alone is in proportion.
"""

import torch
from torch import Tensor

from icckd.bench.case import Case, Work
from icckd.bench.measure import Contender

_COPY, _PRODUCT = "floor: copy", "floor: product"
# More than caches hold takes turns.
_BUFFERS = 3
# Products that give float32's accuracy on a GPU's matrix units.
_TF32_PRODUCTS = 3


def floor_calls(case: Case, device: torch.device) -> dict[str, Contender]:
    """What is to be timed beside the case's contenders, by name; nothing where no work was counted."""
    work = case.work(backward=bool(case.differentiated))
    calls: dict[str, Contender] = {}
    if work.bytes:
        calls[_COPY] = _copy(work.bytes, device)
    if work.flop:
        # Kernels on a CPU may widen; whichever is faster is the floor.
        dtypes = {case.dtype} if device.type == "cuda" else {case.dtype, "float32"}
        calls |= {f"{_PRODUCT} in {dtype}": _product(work.flop, dtype, device) for dtype in sorted(dtypes)}
    return calls


def floor_of(case: Case, medians: dict[str, float], backward: bool) -> tuple[float | None, str | None]:
    """The floor in the unit of the calls' `medians`, and what it is: "copy" or "product"; None where there is none."""
    whole, wanted = case.work(backward=bool(case.differentiated)), case.work(backward)
    products = [value for name, value in medians.items() if name.startswith(_PRODUCT)]
    parts = []
    if _COPY in medians:
        parts.append((medians[_COPY] * _share(wanted.bytes, whole.bytes), "copy"))
    if products:
        parts.append((min(products) * _share(wanted.flop, whole.flop), "product"))
    return max(parts, default=(None, None))


def described(work: Work, kind: str) -> str:
    """The floor of this kind in words: "a copy that moves 268 MB", "a matrix product of 1.3 GFLOP"."""
    if kind == "copy":
        return f"a copy that moves {_counted(work.bytes or 0)}B"
    return f"a matrix product of {_counted(work.flop or 0)}FLOP"


def _share(part: int | None, whole: int | None) -> float:
    return (part or 0) / (whole or 1)


def _counted(number: float) -> str:
    for prefix in ("", "k", "M", "G"):
        if number < 1000:
            return f"{number:.3g} {prefix}"
        number /= 1000
    return f"{number:.3g} T"


def _copy(moved: int, device: torch.device) -> Contender:
    sources = [torch.randint(256, (max(1, moved // 2),), dtype=torch.uint8, device=device) for _ in range(_BUFFERS)]
    targets = [torch.empty_like(source) for source in sources]
    return lambda k: targets[k % _BUFFERS].copy_(sources[k % _BUFFERS])


def _product(flop: int, dtype: str, device: torch.device) -> Contender:
    tf32 = device.type == "cuda" and dtype == "float32"
    n = max(1, round((flop * (_TF32_PRODUCTS if tf32 else 1) / 2) ** (1 / 3)))
    x, y = (torch.randn(n, n, device=device).to(getattr(torch, dtype)) for _ in range(2))
    out = torch.empty_like(x)

    def product(_: int) -> Tensor:
        return torch.mm(x, y, out=out)

    def by_tf32(k: int) -> Tensor:
        precision = torch.backends.cuda.matmul.fp32_precision
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        try:
            return product(k)
        finally:
            torch.backends.cuda.matmul.fp32_precision = precision

    return by_tf32 if tf32 else product
