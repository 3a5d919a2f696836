"""The operators of adaptive hierarchical similarity: schemas, fake kernels, autograd registration; what they return."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from icckd import backends, reference
from icckd.backends import eager
from icckd.functional import hierarchical_similarity
from icckd.ops.hierarchical import hierarchical_classes, hierarchical_sum

SERVING = [
    name
    for name in ("reference", *backends.PARTLY_SERVED["hierarchical"])
    if backends.why_not(name, torch.device("cpu"), torch.float32, "hierarchical") is None
]
each = pytest.mark.parametrize("backend", SERVING)
LABELS = torch.tensor([7, -3, 2, 7, 2**40, 2, 7, -1, 5])
SETTINGS = (0.5, 2.0, 50.0)


def make(dtype=torch.float32):
    rows = torch.randn(9, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return torch.nn.functional.normalize(rows).masked_fill(LABELS[:, None] < 0, 0).to(dtype)


@each
def test_opcheck(backend):
    rows = make()
    torch.library.opcheck(hierarchical_classes, (rows, LABELS, backend))
    of_classes = hierarchical_classes(rows, LABELS, backend)
    torch.library.opcheck(hierarchical_sum, (rows, *of_classes, 0, 9, *SETTINGS, False, backend))
    strided = rows.T.contiguous().T.requires_grad_()
    torch.library.opcheck(hierarchical_sum, (strided, *of_classes, 2, 6, *SETTINGS, True, backend))


@each
def test_classes_are_numbered_and_compared(backend):
    rows = make(torch.float32)
    classes, centers, own, scale = hierarchical_classes(rows, LABELS, backend)
    assert classes.tolist() == [2, -1, 0, 2, 3, 0, 2, -1, 1]
    exact, members = rows.double(), ([2, 5], [8], [0, 3, 6], [4])
    mean = torch.stack([exact[of].mean(0) for of in members])
    torch.testing.assert_close(centers[:4].double(), mean, rtol=1e-6, atol=1e-6)
    assert centers[4:].eq(0).all()
    within = {0: exact[2] @ exact[5], 2: (exact[0] @ exact[3] + exact[0] @ exact[6] + exact[3] @ exact[6]) / 3}
    between = {(a, b): mean[a] @ mean[b] for a in range(4) for b in range(a)}
    low, high = min([*within.values(), *between.values()]), max([*within.values(), *between.values()])
    factor = 0.2 / (high - low)
    expected = torch.tensor([factor * (within[a] - low) if a in within else 0 for a in range(9)])
    torch.testing.assert_close(own, expected.float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(scale.double(), torch.stack([factor, -factor * low]), rtol=1e-5, atol=1e-6)


def test_classes_without_rows_make_no_difference():
    """As on a GPU, where how many classes there are is not looked at."""
    rows = make()
    _, order, size = eager.hierarchical.number_classes(LABELS)
    assert size.tolist() == [2, 1, 3, 1, 0, 0, 0, 0, 0]
    extremes = eager.hierarchical.extremes
    results = [eager.hierarchical.compare_classes(rows, order, size, count, extremes) for count in (4, 9)]
    assert all(map(torch.equal, *results))


@each
def test_the_loss_and_its_gradient_on_every_backend(backend, generator):
    features, augmented = torch.randn(2, 45, 20, generator=generator)
    labels = torch.randint(-1, 6, (45,), generator=generator)
    results = []
    for function, dtype, options in (
        (reference.hierarchical_similarity, torch.float64, {}),
        (hierarchical_similarity, torch.float32, {"backend": backend}),
    ):
        x = features.to(dtype).requires_grad_()
        loss = function(x, labels, augmented=augmented.to(dtype), **options)
        results.append((loss.double(), *torch.autograd.grad(loss, x)))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-5, atol=0)
    torch.testing.assert_close(results[1][1].double(), results[0][1], rtol=1e-4, atol=1e-6)


@each
@pytest.mark.parametrize("size", [0, 5])
def test_rows_of_no_numbers_and_no_rows(backend, size):
    """Of similarity 0 all of them, if there are any."""
    x = torch.zeros(size, 0 if size else 3, requires_grad=True)
    labels = torch.arange(size) % 2
    loss = hierarchical_similarity(x, labels, augmented=x, backend=backend)
    loss.backward()
    assert x.grad.shape == x.shape
    torch.testing.assert_close(loss, reference.hierarchical_similarity(x, labels, augmented=x))


@each
def test_same_bits_every_time(backend, generator):
    rows = torch.randn(70, 20, generator=generator)
    labels = torch.randint(-1, 4, (70,), generator=generator)
    results = [hierarchical_classes(rows, labels, backend) for _ in range(2)]
    assert all(map(torch.equal, *results))
    sums = [hierarchical_sum(rows, *of_classes, 0, 70, *SETTINGS, True, backend) for of_classes in results]
    assert all(map(torch.equal, *sums))


def test_flops_are_counted_as_products():
    x = torch.randn(9, 4, requires_grad=True)
    for wanted, factor in ((True, 3), (False, 1)):
        with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(wanted):
            hierarchical_similarity(x, LABELS)
        assert counter.get_total_flops() == factor * 2 * 9 * 9 * 4
