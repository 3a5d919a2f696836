"""A product of two tiles, as it should be: it uses the matrix unit and spills nothing."""

from collections.abc import Iterator

import triton
import triton.language as tl

from icckd.kernels.specialization import Specialization


@triton.jit
def product(x, y, unused, out, BLOCK: tl.constexpr):
    i, j = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK)[None, :]
    at = i * BLOCK + j
    tl.store(out + at, tl.dot(tl.load(x + at), tl.load(y + at)))


def specializations(architecture: str) -> Iterator[Specialization]:
    for purpose in ("first use", "second use"):
        yield Specialization(
            product,
            {"x": "*bf16", "y": "*bf16", "out": "*fp32"},
            {"unused": None},
            {"BLOCK": 64, "num_warps": 4, "num_stages": 2},
            matrix_unit=True,
            description=purpose,
            divisible=("x", "y", "out"),
        )
