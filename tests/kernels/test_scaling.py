"""Triton's scaling of gradients in place: every number once, and no other."""

import itertools

import pytest
import torch

from icckd.kernels import scaling as kernels
from tests.launches import launches

# Numbers of up to three gradients: none, one, tiles that are full or not, more tiles than programs.
COUNTS = [(0,), (1,), (2048,), (100_001,), (0, 5), (2049, 0), (70_000, 69_999), (0, 0, 1), (33, 2100, 1), (9, 0, 1)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("counts", COUNTS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("factor", [1.0, -0.37])
def test_every_number_once(guard, generator, counts, dtype, factor):
    dtypes = (dtype, dtype, torch.float32)
    before = [torch.randn(count, generator=generator).to(kind) for count, kind in zip(counts, dtypes, strict=False)]
    gradients = [guard(x) for x in before]
    factor = guard(torch.tensor(factor))
    with launches() as seen:
        kernels.scale_gradients(factor, *gradients)
    assert seen.names == ["scale"] * (sum(counts) > 0)
    for x, y in zip(gradients, before, strict=True):
        # Multiplied in float32, rounded once.
        assert torch.equal(x, (y.float() * factor).to(y.dtype))
        assert seen.read(x) == seen.written(x) == (0 if factor == 1 else x.numel())


def test_gradients_of_any_shape_and_dtype(guard, generator):
    shapes = itertools.product([(3, 5), (0,), (), (2, 1, 70)], DTYPES)
    for (first, kind), second in zip(shapes, itertools.cycle([(40, 16), (1,)]), strict=False):
        before = [torch.randn(first, generator=generator).to(kind), torch.randn(second, generator=generator)]
        gradients = [guard(x) for x in before]
        kernels.scale_gradients(torch.tensor(2.0), *gradients)
        torch.testing.assert_close(gradients, [2 * x for x in before], rtol=0, atol=0)


@pytest.mark.parametrize("factor", [torch.nan, torch.inf, -torch.inf, 0.0, -0.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_multiplication_gives(dtype, factor):
    gradient = torch.tensor([0.0, -0.0, 1.0, -2.0, torch.nan, torch.inf], dtype=dtype)
    expected = gradient * factor
    kernels.scale_gradients(torch.tensor(factor), gradient)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=0, equal_nan=True)
