"""Sums over rows in Triton: against PyTorch's in float64, of any size."""

import pytest
import torch

from icckd.kernels import totals as kernels

SIZES = [0, 1, 2, 1000, 2048, 2049, 30_001]


@pytest.mark.parametrize("size", SIZES)
def test_total(guard, generator, size):
    values = torch.randn(size, generator=generator) + 1
    total = kernels.total(guard(values))
    assert (total.dtype, total.shape) == (torch.float32, ())
    torch.testing.assert_close(total.double(), values.double().sum(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("ignored", [-100, 0, 1, 2**40])
def test_count(guard, generator, size, ignored):
    labels = torch.randint(0, 3, (size,), generator=generator)
    labels[::5] = ignored
    assert kernels.count(guard(labels), ignored) == (labels != ignored).sum()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_any_value(value):
    values = torch.ones(100)
    values[70] = value
    torch.testing.assert_close(kernels.total(values), torch.tensor(value), equal_nan=True)


def test_more_rows_than_one_program_should_add(monkeypatch):
    monkeypatch.setattr(kernels, "_MOST", 10)
    values = torch.arange(11.0)
    assert kernels.total(values) == 55
    assert kernels.count(values.long(), 3) == 10
