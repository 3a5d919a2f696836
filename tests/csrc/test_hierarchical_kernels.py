"""The C++ kernels of adaptive hierarchical similarity, on the instruction set at hand: tiles, blocks, threads."""

import pytest
import torch

from icckd.backends import eager, native

operator = torch.ops.icckd_native.hierarchical_sorted_sum if native.why_unavailable() is None else None
pytestmark = pytest.mark.skipif(operator is None, reason="icckd._C is not built")
SETTINGS = (0.5, 2.0, 50.0)


def make(generator, size, dim, classes):
    """Unit rows, and their classes and margins, in float64."""
    labels = torch.randint(-1, classes, (size,), generator=generator)
    rows = torch.randn(size, dim, generator=generator, dtype=torch.float64) + labels[:, None] % 3
    rows = torch.nn.functional.normalize(rows).masked_fill(labels[:, None] < 0, 0)
    return rows, *eager.hierarchical_classes(rows, labels)


def single(inputs):
    return [x.float() if x.is_floating_point() else x for x in inputs]


def assert_right(inputs, first, count, settings=SETTINGS, tolerance=1e-5):
    actual = native.hierarchical_sum(*single(inputs), first, count, *settings, True)
    expected = eager.hierarchical_sum(*inputs, first, count, *settings, True)
    for x, y in zip(actual, expected, strict=True):
        torch.testing.assert_close(x.double(), y, rtol=tolerance, atol=tolerance)
    loss, least, gradient = native.hierarchical_sum(*single(inputs), first, count, *settings, False)
    assert torch.equal(loss, actual[0])
    assert torch.equal(least, actual[1])
    assert gradient.shape == (0,)


# Tiles of 128 rows; registers of 4 to 16 columns.
@pytest.mark.parametrize("classes", [1, 5, 200])
@pytest.mark.parametrize(("size", "dim"), [(1, 1), (17, 3), (127, 33), (129, 16), (140, 130), (300, 9)])
def test_tiles(generator, size, dim, classes):
    assert_right(make(generator, size, dim, classes), 0, size)


@pytest.mark.parametrize("size", [0, 5])
def test_no_anchors(generator, size):
    assert_right(make(generator, size, 4, 0), 0, size)


@pytest.mark.parametrize(("first", "count"), [(0, 0), (0, 30), (190, 200), (399, 1)])
def test_some_rows_are_anchors(generator, first, count):
    assert_right(make(generator, 400, 12, 4), first, count)


def test_blocks_of_several_tiles(generator):
    assert_right(make(generator, 4200, 2, 9), 0, 4200, tolerance=1e-4)


@pytest.mark.parametrize("settings", [(0.2, 50.0, 1e-2), (0.9, 1e-2, 200.0), (0.5, 2.0, 1e4)], ids=str)
def test_scales(generator, settings):
    """Exponents that nearly overflow, and such as do."""
    assert_right(make(generator, 150, 8, 3), 0, 150, settings, tolerance=3e-3)


def test_nan_stays_visible(generator):
    rows, classes, *others = make(generator, 150, 5, 3)
    rows[classes.argmax()] = torch.nan
    loss, _, gradient = native.hierarchical_sum(*single([rows, classes, *others]), 0, 150, *SETTINGS, True)
    assert loss.isnan()
    assert gradient[classes >= 0].isnan().all()


def test_the_same_bits_whatever_the_threads(generator):
    inputs = single(make(generator, 700, 20, 9))
    results, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(native.hierarchical_sum(*inputs, 100, 500, *SETTINGS, True))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": torch.zeros(3)}, "rows and centers should have 2 dimensions"),
        ({"rows": torch.zeros(3, 5).double()}, "rows has the wrong dtype"),
        ({"centers": torch.zeros(2, 4)}, "centers has size 4 in dimension 1; it should have 5"),
        ({"classes": torch.tensor([0, 0, 2])}, "classes should be sorted, from 0 on without gaps"),
        ({"classes": torch.tensor([1, 1, 1])}, "classes should be sorted, from 0 on without gaps"),
        ({"classes": torch.tensor([0, 1, 2])}, "below the number of centers"),
        ({"classes": torch.tensor([0, 0, 1]).int()}, "classes has the wrong dtype"),
        ({"own": torch.zeros(3)}, "own has size 3 in dimension 0; it should have 2"),
        ({"anchor": torch.zeros(2)}, "anchor has size 2 in dimension 0; it should have 3"),
    ],
)
def test_wrong_tensors_raise_instead_of_crashing(changes, message):
    arguments = {"rows": torch.zeros(3, 5), "classes": torch.tensor([0, 0, 1]), "centers": torch.zeros(2, 5)}
    arguments |= {"own": torch.zeros(2), "scale": torch.zeros(2), "anchor": torch.ones(3)}
    with pytest.raises(RuntimeError, match=message):
        operator(*{**arguments, **changes}.values(), *SETTINGS, True)
