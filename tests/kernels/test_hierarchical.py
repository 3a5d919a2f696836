"""Triton's kernels of adaptive hierarchical similarity against PyTorch in float64, with guard rows around buffers."""

import pytest
import torch

from icckd.backends import eager
from icckd.kernels import hierarchical as kernels

# Tiles of 64 by 32 rows, 16 columns of D at a time; the gradient of 128.
SIZES = [(1, 1, 1), (65, 16, 3), (33, 5, 1), (70, 65, 9), (20, 130, 30)]
SETTINGS = (0.5, 2.0, 50.0)


def make(generator, size, dim, classes):
    """Unit rows, and their classes and margins, in float64."""
    labels = torch.randint(-1, classes, (size,), generator=generator)
    rows = torch.randn(size, dim, generator=generator, dtype=torch.float64) + labels[:, None] % 3
    rows = torch.nn.functional.normalize(rows).masked_fill(labels[:, None] < 0, 0)
    return rows, eager.hierarchical_classes(rows, labels)


def assert_right(guard, rows, of_classes, first, count, settings=SETTINGS, tolerance=1e-5):
    inputs = [guard(x.float() if x.is_floating_point() else x) for x in (rows, *of_classes)]
    actual = kernels.hierarchical_sum(*inputs, first, count, *settings, True)
    expected = eager.hierarchical_sum(rows, *of_classes, first, count, *settings, True)
    for x, y in zip(actual, expected, strict=True):
        assert x.dtype == torch.float32
        torch.testing.assert_close(x.double(), y, rtol=tolerance, atol=tolerance)
    loss, least, gradient = kernels.hierarchical_sum(*inputs, first, count, *settings, False)
    assert torch.equal(loss, actual[0])
    assert torch.equal(least, actual[1])
    assert gradient.shape == (0,)


@pytest.mark.parametrize(("size", "dim", "classes"), SIZES)
def test_is_what_pytorch_computes(guard, generator, size, dim, classes):
    assert_right(guard, *make(generator, size, dim, classes), 0, size)


@pytest.mark.parametrize(("count", "classes"), [(5, 1), (5, 2), (70, 33), (70, 70)])
def test_extremes_of_classes(guard, generator, count, classes):
    centers = torch.randn(count, 17, generator=generator, dtype=torch.float64)
    size = (torch.arange(count) < classes).double()
    actual = kernels.extremes(guard(centers.float()), guard(size.float()))
    for x, y in zip(actual, eager.hierarchical.extremes(centers, size), strict=True):
        torch.testing.assert_close(x.double(), y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("first", "count"), [(0, 0), (0, 7), (13, 20), (36, 1)])
def test_some_rows_are_anchors(guard, generator, first, count):
    assert_right(guard, *make(generator, 37, 20, 4), first, count)


@pytest.mark.parametrize("settings", [(0.2, 1e3, 1e-2), (0.9, 1e-2, 1e3)], ids=str)
def test_scales(guard, generator, settings):
    """Exponents of hundreds, whose roundings are as large as theirs."""
    assert_right(guard, *make(generator, 30, 8, 3), 0, 30, settings, tolerance=3e-4)


def test_no_rows_and_nan(guard, generator):
    rows, of_classes = make(generator, 0, 4, 1)
    assert_right(guard, rows, of_classes, 0, 0)
    rows, (classes, *others) = make(generator, 20, 4, 2)
    rows[classes.argmax()] = torch.nan
    inputs = [x.float() for x in (rows, *others)]
    loss, _, gradient = kernels.hierarchical_sum(inputs[0], classes, *inputs[1:], 0, 20, *SETTINGS, True)
    assert loss.isnan()
    assert gradient[classes >= 0].isnan().all()
