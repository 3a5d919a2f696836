"""The C++ intra-class kernels against the definition in float64: every path, ragged sizes, any labels, any values."""

import pytest
import torch

from icckd import reference
from icckd.backends import native

pytestmark = pytest.mark.skipif(native.why_unavailable() is not None, reason="icckd._C is not built")
operators = torch.ops.icckd_native
BLOCK = 128  # csrc/cpu/intra_class_kernel.h: block_rows


class Problem:
    """Random rows in clusters, with positives, weights of which some are 0, ignored rows, and a memory."""

    def __init__(
        self, generator, labels, dim, slots=0, dtype=torch.float32, temperature=0.1, normalize=True, gated=0.3
    ):
        count = len(labels)
        anchor = torch.randn(count, dim, generator=generator) + 1
        self.anchor = (anchor + anchor.sign()).to(dtype)  # no tiny rows, whose norms would magnify rounding errors
        self.positive = (self.anchor + 0.5 * torch.randn(count, dim, generator=generator)).to(dtype)
        weight = torch.rand(count, generator=generator) + 0.1
        self.weight = weight * (torch.rand(count, generator=generator) >= gated) * (labels >= 0)
        self.labels = labels
        self.memory = self.memory_labels = None
        if slots:
            self.memory = torch.randn(slots, dim, generator=generator).to(dtype)
            known = torch.cat([labels, torch.tensor([-1, 10**6])])
            self.memory_labels = known[torch.randint(len(known), (slots,), generator=generator)]
        self.temperature = torch.tensor(temperature)
        self.normalize = normalize
        self.upstream = torch.randn(count, generator=generator)

    def arguments(self, num_classes=None):
        return (self.anchor, self.positive, self.labels, self.weight, self.memory, self.memory_labels,
                self.temperature, self.normalize, num_classes)  # fmt: skip

    def exact(self, upstream):
        """Rows, and the gradients of Σ upstream · rows, from the definition in float64."""
        anchor, positive = self.anchor.double().requires_grad_(), self.positive.double().requires_grad_()
        temperature = self.temperature.double().requires_grad_()
        rows = reference.intra_class_contrastive(
            anchor,
            positive,
            self.labels,
            gate=self.weight.double(),
            memory=None if self.memory is None else self.memory.double(),
            memory_labels=self.memory_labels,
            temperature=temperature,
            normalize=self.normalize,
            reduction="none",
        )
        gradients = torch.autograd.grad((upstream.double() * rows).sum(), (anchor, positive, temperature))
        return rows.detach(), gradients

    def check(self, tolerance=2e-5):
        """Compare all three operators with the definition, relative to each result's largest element.

        Similarities are rounded in float32 before they are divided by the temperature, once for a loss, twice for a
        gradient with respect to the temperature: the tolerance is for 0.1.
        """
        sharpness = max(1.0, 0.1 / self.temperature.item())
        tolerance *= sharpness
        sizes = (1.0, 1.0, sharpness)
        ones = torch.ones_like(self.upstream)
        rows, gradients = self.exact(ones)
        computed, lse = operators.intra_class_rows(*self.arguments())
        assert_near(computed, rows, tolerance)
        loss, *computed_gradients = operators.intra_class_sum(*self.arguments(), True, True, True)
        assert_near(loss, rows.sum(), tolerance)
        for x, y, size in zip(computed_gradients, gradients, sizes, strict=True):
            assert_near(x, y, tolerance, size)
        rows, gradients = self.exact(self.upstream)
        backward = operators.intra_class_rows_backward(self.upstream, lse, *self.arguments(), True, True, True)
        for x, y, size in zip(backward, gradients, sizes, strict=True):
            assert_near(x, y, tolerance, size)


def assert_near(computed, exact, tolerance, size=1.0):
    """`size`: of what cancels where the exact result is smaller, as every gradient does in one dimension."""
    if computed.dtype != torch.float32:
        tolerance = 2 * torch.finfo(computed.dtype).eps
    largest = exact.abs().max().item() if exact.numel() else 0.0
    torch.testing.assert_close(computed.double(), exact, rtol=0, atol=tolerance * max(largest, size))


def labels_of_sizes(generator, sizes, values=None):
    """Shuffled labels of classes with these sizes, and a tenth of ignored rows."""
    values = torch.arange(len(sizes)) if values is None else values
    labels = torch.cat([values.repeat_interleave(torch.tensor(sizes)), torch.full((sum(sizes) // 10,), -3)])
    return labels[torch.randperm(len(labels), generator=generator)]


@pytest.mark.parametrize("temperature", [0.1, 0.01])  # classes computed whole, and in blocks
@pytest.mark.parametrize("dim", [1, 3, 17, 64, 513])
def test_any_dimension(generator, dim, temperature):
    Problem(generator, labels_of_sizes(generator, [1, 2, 13, 31]), dim, slots=29, temperature=temperature).check()


@pytest.mark.parametrize("temperature", [0.1, 0.01])
@pytest.mark.parametrize("size", [1, 2, 7, 8, 9, 15, 16, 17, 49, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 3])
def test_any_class_size(generator, size, temperature):
    Problem(generator, labels_of_sizes(generator, [size]), 19, temperature=temperature).check()


def test_classes_of_very_different_sizes(generator):
    Problem(generator, labels_of_sizes(generator, [900] + [1] * 500), 24, slots=50).check()


def test_one_class_too_large_for_the_cache(generator):
    Problem(generator, labels_of_sizes(generator, [700]), 300, slots=40).check()


@pytest.mark.parametrize(
    ("size", "dim", "dtype"), [(1000, 9, torch.float32), (1000, 33, torch.bfloat16), (1800, 20, torch.bfloat16)]
)
def test_one_class_in_blocks_that_meet_in_pairs(generator, size, dim, dtype):
    """On one thread, so that blocks of the larger one have two tiles of rows."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        Problem(generator, labels_of_sizes(generator, [5, size]), dim, slots=300, dtype=dtype).check()
    finally:
        torch.set_num_threads(before)


def test_bfloat16_pairs_cost_no_more_than_rounding_the_gradient(generator):
    """Where products are of bfloat16, too: similarities are exact, and P's rounding averages out."""
    problem = Problem(generator, labels_of_sizes(generator, [1100]), 50, dtype=torch.bfloat16)
    _, (exact, *_) = problem.exact(torch.ones_like(problem.upstream))
    computed = operators.intra_class_sum(*problem.arguments(), True, False, False)[1]
    unavoidable = (exact.to(torch.bfloat16).double() - exact).norm()
    assert (computed.double() - exact).norm() < 1.3 * unavoidable


@pytest.mark.parametrize("power", [2.0**-100, 2.0**100])  # which rounds nothing
def test_bfloat16_rows_of_any_norm(generator, power):
    problem = Problem(generator, labels_of_sizes(generator, [900]), 20, dtype=torch.bfloat16)
    problem.anchor[::7] = 0
    problem.check()
    expected = operators.intra_class_rows(*problem.arguments())[0]
    problem.anchor, problem.positive = problem.anchor * power, problem.positive * power
    torch.testing.assert_close(operators.intra_class_rows(*problem.arguments())[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_that_no_cache_holds(generator, dtype):
    """Written past the caches: the same as a part of them that is not."""
    sizes = [40, 61] * 24
    problem = Problem(generator, labels_of_sizes(generator, sizes), 128, dtype=dtype)
    everything = operators.intra_class_sum(*problem.arguments(), True, True, False)
    chosen = problem.labels == 3
    for name in ("anchor", "positive", "labels", "weight"):
        setattr(problem, name, getattr(problem, name)[chosen])
    part = operators.intra_class_sum(*problem.arguments(), True, True, False)
    for x, y in zip(everything[1:3], part[1:3], strict=True):
        assert torch.equal(x[chosen], y)


@pytest.mark.parametrize("gated", [0.0, 1.0])
def test_all_or_no_anchors(generator, gated):
    Problem(generator, labels_of_sizes(generator, [5, 40, 300]), 33, slots=20, gated=gated).check()


@pytest.mark.parametrize("count", [0, 1])
def test_hardly_any_rows(generator, count):
    Problem(generator, torch.zeros(count, dtype=torch.long), 5, slots=2).check()


def test_labels_far_apart(generator):
    values = torch.randint(2**62, (40,), generator=generator)
    problem = Problem(generator, labels_of_sizes(generator, [12] * 40, values), 16, slots=60)
    problem.check()
    dense = {label.item(): i for i, label in enumerate(values)} | {10**6: 50}
    far = operators.intra_class_sum(*problem.arguments(), True, True, True)
    problem.labels = torch.tensor([dense.get(label, -1) for label in problem.labels.tolist()])
    problem.memory_labels = torch.tensor([dense.get(label, -1) for label in problem.memory_labels.tolist()])
    near = operators.intra_class_sum(*problem.arguments(num_classes=51), True, True, True)
    for x, y in zip(far[1:3], near[1:3], strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0)


@pytest.mark.parametrize("temperature", [0.1, 0.01])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_reduced_precision(generator, dtype, temperature):
    labels = labels_of_sizes(generator, [3, 40, 150])
    Problem(generator, labels, 37, slots=30, dtype=dtype, temperature=temperature).check()


def test_memory_of_another_precision(generator):
    problem = Problem(generator, labels_of_sizes(generator, [20, 30]), 10, slots=30, dtype=torch.bfloat16)
    problem.memory = problem.memory.float() + 1e-3
    problem.check()


def test_rows_as_they_are(generator):
    Problem(generator, labels_of_sizes(generator, [60, 150]), 20, slots=30, temperature=3.0, normalize=False).check()


@pytest.mark.parametrize("temperature", [1e-30, 1e-6, 1e6])
@pytest.mark.parametrize("normalize", [True, False])
def test_extreme_temperatures_stay_finite(generator, temperature, normalize):
    labels = labels_of_sizes(generator, [10, 30])
    problem = Problem(generator, labels, 20, slots=30, temperature=temperature, normalize=normalize)
    rows, lse = operators.intra_class_rows(*problem.arguments())
    loss, d_anchor, d_positive, _ = operators.intra_class_sum(*problem.arguments(), True, True, False)
    assert all(x.isfinite().all() for x in (rows, lse, loss, d_anchor, d_positive))
    assert (rows >= 0).all()


@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_norms_whose_squares_are_no_floats(generator, size):
    problem = Problem(generator, labels_of_sizes(generator, [10, 30]), 20)
    expected = operators.intra_class_rows(*problem.arguments())[0]
    problem.anchor, problem.positive = problem.anchor * size, problem.positive * size
    torch.testing.assert_close(operators.intra_class_rows(*problem.arguments())[0], expected, rtol=1e-4, atol=1e-5)


def test_zero_rows(generator):
    problem = Problem(generator, labels_of_sizes(generator, [10, 30]), 20, slots=5)
    problem.anchor[::3], problem.positive[::4], problem.memory[0] = 0, 0, 0
    problem.check()


@pytest.mark.parametrize("temperature", [0.1, 0.01])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_stay_in_their_class(generator, value, temperature):
    labels = labels_of_sizes(generator, [10, 200, 30])
    problem = Problem(generator, labels, 20, temperature=temperature)
    expected = operators.intra_class_sum(*problem.arguments(), True, True, False)[1]
    problem.anchor[(labels == 1).nonzero()[3], 7] = value
    loss, d_anchor, *_ = operators.intra_class_sum(*problem.arguments(), True, True, False)
    assert loss.isnan()
    assert d_anchor[labels == 1].isnan().all()
    torch.testing.assert_close(d_anchor[labels != 1], expected[labels != 1], rtol=0, atol=0)


@pytest.mark.parametrize("temperature", [0.1, 0.01])
def test_what_is_not_wanted_is_empty_and_changes_nothing(generator, temperature):
    problem = Problem(generator, labels_of_sizes(generator, [10, 200]), 20, slots=9, temperature=temperature)
    everything = operators.intra_class_sum(*problem.arguments(), True, True, True)
    for needs in [(True, False, False), (False, True, False), (False, False, True), (False, False, False)]:
        some = operators.intra_class_sum(*problem.arguments(), *needs)
        for x, y, wanted in zip(some, everything, (True, *needs), strict=True):
            assert x.dtype == y.dtype
            torch.testing.assert_close(x, y if wanted else torch.empty(0), rtol=0, atol=0)


@pytest.mark.parametrize("temperature", [0.1, 0.01])
def test_strides(generator, temperature):
    problem = Problem(generator, labels_of_sizes(generator, [10, 150]), 20, slots=9, temperature=temperature)
    expected = operators.intra_class_sum(*problem.arguments(), True, True, True)
    problem.anchor = problem.anchor.T.contiguous().T
    problem.positive = torch.cat([problem.positive, problem.positive], dim=1)[:, :20]
    problem.memory = problem.memory.repeat_interleave(2, dim=0)[::2]
    problem.labels = problem.labels.repeat_interleave(2)[::2]
    problem.weight = problem.weight.repeat_interleave(2)[::2]
    for x, y in zip(operators.intra_class_sum(*problem.arguments(), True, True, True), expected, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0)


@pytest.mark.parametrize("temperature", [0.1, 0.01])
def test_uninitialised_memory_is_never_read(generator, temperature):
    problem = Problem(generator, labels_of_sizes(generator, [1, 10, 33, 150]), 21, slots=9, temperature=temperature)
    problem.labels[0] = -1
    problem.weight[0] = 0
    torch.use_deterministic_algorithms(True)  # also fills what torch.empty returns, scratch included, with NaN
    try:
        poisoned = operators.intra_class_sum(*problem.arguments(), True, True, True)
        assert torch.empty(3).isnan().all()
        problem.check()
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(x.isfinite().all() for x in poisoned)
    assert (poisoned[1][0] == 0).all()


@pytest.mark.parametrize("temperature", [0.1, 0.01])
def test_same_bits_on_every_run(generator, temperature):
    sizes = [500, *torch.randint(1, 60, (60,), generator=generator).tolist()]
    problem = Problem(generator, labels_of_sizes(generator, sizes), 32, slots=50, temperature=temperature)
    first = operators.intra_class_sum(*problem.arguments(), True, True, True)
    for _ in range(10):
        for x, y in zip(operators.intra_class_sum(*problem.arguments(), True, True, True), first, strict=True):
            assert torch.equal(x, y)


@pytest.mark.parametrize("threads", [1, 3])
def test_any_number_of_threads(generator, threads):
    problem = Problem(generator, labels_of_sizes(generator, [300, 50, 50, 1, 2]), 40, slots=50)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        problem.check()
    finally:
        torch.set_num_threads(before)
