"""The Triton kernels of the intra-class loss, in the interpreter, against the definition in float64.

All buffers are guarded: what no kernel wrote is poison, and a write beside a buffer is an error. What should not be
read is NaN.
"""

import pytest
import torch

from icckd import reference
from icckd.backends.problem import IntraClassProblem, Needs
from icckd.kernels import intra_class as kernels
from icckd.kernels import one_tile, tables
from tests.problems import SMALL, assert_as_exact, exact, with_gradients

# Sizes of classes; in the interpreter one tile holds 32 rows, or 16 where classes are promised to be small.
RAGGED = [1, 2, 3, 5, 7, 11, 13, 17, 19, 23]
SINGLE = [1] * 37
BOTH_SIDES = [31, 32, 33, 1, 65, 16, 17]
SKEWED = [100, 1, 1, 1, 2, 3]
ALIKE = [8] * 9 + [5] * 4
ALL = Needs(anchor=True, positive=True, temperature=True)
HALF = [torch.bfloat16, torch.float16]
SIZES = {"ragged": RAGGED, "single": SINGLE, "both sides": BOTH_SIDES, "skewed": SKEWED, "alike": ALIKE}


class Problem:
    """A random problem. Classes have odd names; three rows are ignored, and NaN."""

    def __init__(self, sizes, dim=9, dtype=torch.float32, slots=0, inactive=0.3, temperature=0.2, normalize=True):
        generator = torch.Generator().manual_seed(sum(sizes) + dim)

        def normal(rows):
            return torch.randn(rows, dim, generator=generator, dtype=torch.float64)

        names = torch.tensor([2 * c + 1 for c in range(len(sizes))] + [-1])
        labels = names.repeat_interleave(torch.tensor([*sizes, 3]))
        self.labels = labels[torch.randperm(len(labels), generator=generator)]
        count = len(labels)
        self.anchor = normal(count)
        self.positive = (self.anchor + 0.7 * normal(count)).to(dtype)
        self.anchor = self.anchor.to(dtype)
        active = (torch.rand(count, generator=generator) >= inactive) & (self.labels >= 0)
        self.weight = torch.rand(count, generator=generator) * active
        self.grad_rows = torch.randn(count, generator=generator)
        self.memory = self.memory_labels = None
        if slots:
            self.memory = normal(slots).to(dtype)
            # Empty slots, and classes that the batch does not have.
            self.memory_labels = torch.randint(-1, 2 * len(sizes) + 4, (slots,), generator=generator)
        self.temperature, self.normalize = temperature, normalize
        self.num_classes = 2 * len(sizes) + 4

    def inputs(self, guard, num_classes):
        """What backends take, between guard rows, with NaN in what they should not read."""
        out = (self.labels < 0) | (self.labels >= (num_classes or 2**62))
        anchor, positive = (x.masked_fill(out[:, None], torch.nan) for x in (self.anchor, self.positive))
        memory = memory_labels = None
        if self.memory is not None:
            unused = ~torch.isin(self.memory_labels, self.labels[~out])
            memory = guard(self.memory.masked_fill(unused[:, None], torch.nan))
            memory_labels = guard(self.memory_labels)
        weight, temperature = guard(self.weight * ~out), guard(torch.tensor(self.temperature))
        labels = guard(self.labels)
        batch = (guard(anchor), guard(positive), labels, weight)
        return IntraClassProblem(
            *batch, memory, memory_labels, temperature, mean=False, normalize=self.normalize, num_classes=num_classes
        )

    def defined(self, num_classes, reduction):
        """Loss and gradients by the definition, in float64 and in the inputs' precision."""
        labels = self.labels if num_classes is None else self.labels.masked_fill(self.labels >= num_classes, -1)
        options = {"gate": self.weight * (labels >= 0), "reduction": reduction, "normalize": self.normalize}
        if self.memory is not None:
            options |= {"memory": self.memory, "memory_labels": self.memory_labels}
        options |= {"temperature": self.temperature, "upstream": self.grad_rows if reduction == "none" else None}
        batch = (self.anchor, self.positive, labels)
        return exact(*batch, **options), with_gradients(reference.intra_class_contrastive, *batch, **options)

    def lse(self):
        """The log-sum-exp of the anchors, 0 of other rows, in float64."""
        options = {} if self.memory is None else {"memory": self.memory, "memory_labels": self.memory_labels}
        options |= {"temperature": self.temperature, "normalize": self.normalize, "reduction": "none"}
        loss = exact(self.anchor, self.positive, self.labels, **options, upstream=torch.ones_like(self.weight))[0]
        z, p = self.anchor.double(), self.positive.double()
        if self.normalize:
            z, p = (x / torch.where(x.any(1), x.norm(dim=1), 1)[:, None] for x in (z, p))
        return torch.where(self.weight > 0, loss + (z * p).sum(1) / self.temperature, 0)


def check(guard, problem, num_classes=None):
    """Every operator against the definition."""
    inputs = problem.inputs(guard, num_classes)
    kappa, total = 1 / problem.temperature, problem.weight.sum().item()
    absolute = (2e-7, 2e-6 * kappa, 2e-7 * kappa, 2e-7 * kappa**2 * total)
    truth, plain = problem.defined(num_classes, "none")
    rows, lse = kernels.intra_class_rows(inputs)
    grad_rows = guard(torch.where(inputs.weight > 0, problem.grad_rows, torch.nan))
    gradients = kernels.intra_class_rows_backward(grad_rows, lse, inputs, ALL)
    assert_as_exact((rows, *gradients), plain, truth, problem.temperature, absolute)
    if num_classes is None or num_classes >= problem.num_classes:
        torch.testing.assert_close(lse.double(), problem.lse(), rtol=1e-6, atol=1e-6 / problem.temperature)
    truth, plain = problem.defined(num_classes, "sum")
    assert_as_exact(kernels.intra_class_sum(inputs, ALL), plain, truth, problem.temperature, absolute)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("counted", [False, True])
def test_sizes_of_classes(guard, sizes, counted):
    problem = Problem(sizes)
    check(guard, problem, problem.num_classes if counted else None)


@pytest.mark.parametrize("programs", [1, 5])
@pytest.mark.parametrize("sizes", [RAGGED, ALIKE, BOTH_SIDES], ids=["ragged", "alike", "both sides"])
def test_programs_share_the_tiles(guard, monkeypatch, programs, sizes):
    monkeypatch.setattr(tables, "multiprocessors", lambda _: programs)
    monkeypatch.setattr(one_tile, "_ROWS", 0)
    monkeypatch.setattr(kernels, "_ROW_PROGRAMS", 1)
    monkeypatch.setattr(kernels, "_TILE_PROGRAMS", 1)
    check(guard, Problem(sizes))


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_half_precision(guard, dtype):
    check(guard, Problem(BOTH_SIDES, dtype=dtype))
    check(guard, Problem([5, 70], 40, dtype=dtype))


@pytest.mark.parametrize("dim", [1, 16, 33, 70])
@pytest.mark.parametrize("slots", [0, 40])
def test_lengths_of_rows(guard, dim, slots):
    check(guard, Problem([3, 34, 8], dim, slots=slots))


@pytest.mark.parametrize("sizes", [[2, 1, 3], [33, 9, 20]], ids=["few anchors", "more"])
@pytest.mark.parametrize(
    ("slots", "split", "dtype"),
    [
        (1, False, torch.float32),
        (33, False, torch.float32),
        (33, True, torch.float32),
        (150, True, torch.float32),
        (150, True, torch.bfloat16),
        (60, False, torch.bfloat16),
        (150, True, torch.float16),
    ],
    ids=str,
)
def test_memory(guard, monkeypatch, sizes, slots, split, dtype):
    splits, made = kernels._splits, []
    monkeypatch.setattr(kernels, "_splits", lambda *a: made.append(splits(*a)) or made[-1])
    monkeypatch.setattr(tables, "multiprocessors", lambda _: 6 if split else 0)
    problem = Problem(sizes, dtype=dtype, slots=slots)
    check(guard, problem, problem.num_classes if split else None)
    assert (max(made) > 1) == split


@pytest.mark.parametrize("inactive", [0.0, 0.95, 1.0])
@pytest.mark.parametrize("slots", [0, 50])
def test_gates(guard, inactive, slots):
    check(guard, Problem([31, 33, 1, 16], slots=slots, inactive=inactive))


@pytest.mark.parametrize("slots", [0, 50])
@pytest.mark.parametrize("dtype", SMALL, ids=str)
def test_rows_as_they_are(guard, slots, dtype):
    check(guard, Problem([3, 40, 8], dtype=dtype, slots=slots, normalize=False, temperature=2.0))


@pytest.mark.parametrize("temperature", [0.01, 100.0])
@pytest.mark.parametrize("slots", [0, 9])
def test_temperatures(guard, temperature, slots):
    check(guard, Problem([3, 34, 8], slots=slots, temperature=temperature))


@pytest.mark.parametrize("dtype", SMALL, ids=str)
@pytest.mark.parametrize("size", [12, 40])
@pytest.mark.parametrize(("temperature", "weight"), [(0.0116, 1e-3), (0.025, 1e4), (1e9, 1.0)])
def test_opposite_rows_stay_finite(guard, dtype, size, temperature, weight):
    """Where exponentials are all but 0, and where κ is."""
    problem = Problem([size], dtype=dtype, temperature=temperature)
    problem.anchor = problem.anchor[:1] * torch.where(torch.arange(len(problem.anchor)) % 2 == 0, 1, -1)[:, None]
    problem.positive, problem.weight = problem.anchor.clone(), problem.weight * weight
    inputs = problem.inputs(guard, None)
    rows, lse = kernels.intra_class_rows(inputs)
    gradients = kernels.intra_class_rows_backward(problem.grad_rows.abs(), lse, inputs, ALL)
    for x in (rows, *gradients, *kernels.intra_class_sum(inputs, ALL)):
        assert x.isfinite().all()


@pytest.mark.parametrize("slots", [0, 50])
def test_zero_rows(guard, slots):
    problem = Problem([3, 40, 8], slots=slots)
    problem.anchor[::3] = 0
    problem.positive[::4] = 0
    if slots:
        problem.memory[::5] = 0
    check(guard, problem)


@pytest.mark.parametrize("slots", [0, 50])
@pytest.mark.parametrize("dtype", SMALL, ids=str)
def test_norms_of_all_magnitudes(guard, slots, dtype):
    problem = Problem([3, 40, 8], dtype=dtype, slots=slots)
    small, large = (-3, 3) if dtype == torch.float16 else (-15, 15)
    problem.anchor *= torch.logspace(small, large, len(problem.anchor))[:, None].to(dtype)
    # The gradient of a small row is a large number: one that float16 cannot hold is no test.
    problem.positive *= torch.logspace(0, large, len(problem.anchor))[:, None].to(dtype)
    if slots:
        problem.memory *= torch.logspace(large, small, slots)[:, None].to(dtype)
    check(guard, problem)


@pytest.mark.parametrize("slots", [0, 50])
def test_small_weights_do_not_vanish_in_float16(guard, slots):
    problem = Problem([3, 40, 8], dtype=torch.float16, slots=slots)
    _, plain = problem.defined(None, "none")
    problem.weight, problem.grad_rows = problem.weight * 1e-7, problem.grad_rows * 1e7
    inputs = problem.inputs(guard, None)
    _, lse = kernels.intra_class_rows(inputs)
    gradients = kernels.intra_class_rows_backward(problem.grad_rows, lse, inputs, ALL)
    for x, y in zip(gradients[:2], plain[1:3], strict=True):
        torch.testing.assert_close(x, y, rtol=2e-3, atol=1e-3 * y.abs().max().item())


def test_a_memory_of_another_dtype(guard):
    for dtype, memory_dtype in ((torch.bfloat16, torch.float32), (torch.float16, torch.float32)):
        problem = Problem([3, 40, 8], dtype=dtype, slots=50)
        problem.memory = problem.memory.to(memory_dtype)
        check(guard, problem)


@pytest.mark.parametrize("slots", [0, 50])
def test_labels_beyond_the_promised_number_are_ignored(guard, slots):
    check(guard, Problem(BOTH_SIDES, slots=slots), num_classes=8)
    check(guard, Problem([3, 2], slots=slots), num_classes=1)


@pytest.mark.parametrize("slots", [0, 50])
@pytest.mark.parametrize("counted", [False, True])
def test_no_rows_and_none_that_counts(guard, slots, counted):
    problem = Problem([], slots=slots)
    check(guard, problem, problem.num_classes if counted else None)
    for name in ("anchor", "positive", "labels", "weight", "grad_rows"):
        setattr(problem, name, getattr(problem, name)[:0])
    inputs = problem.inputs(guard, problem.num_classes if counted else None)
    rows, lse = kernels.intra_class_rows(inputs)
    assert rows.shape == lse.shape == (0,)
    loss, d_anchor, d_positive, d_temperature = kernels.intra_class_sum(inputs, ALL)
    assert loss == d_temperature == 0
    assert d_anchor.shape == d_positive.shape == (0, 9)


@pytest.mark.parametrize("slots", [0, 50])
@pytest.mark.parametrize("needs", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0)])
def test_only_what_is_needed(guard, slots, needs):
    problem = Problem([3, 34, 8], slots=slots)
    inputs = problem.inputs(guard, None)
    _, lse = kernels.intra_class_rows(inputs)
    everything = kernels.intra_class_sum(inputs, ALL)
    some = kernels.intra_class_sum(inputs, Needs(*map(bool, needs)))
    assert torch.equal(some[0], everything[0])
    ones = torch.ones_like(lse)
    backward = kernels.intra_class_rows_backward(ones, lse, inputs, ALL)
    for complete, partial in (
        (everything[1:], some[1:]),
        (backward, kernels.intra_class_rows_backward(ones, lse, inputs, Needs(*map(bool, needs)))),
    ):
        for x, y, need in zip(complete, partial, needs, strict=True):
            assert torch.equal(y, x) if need else y.shape == (0,)


@pytest.mark.parametrize("slots", [0, 50])
def test_strides(guard, slots):
    """Every second row, a part of wider rows, columns first: the same bits, and nothing beside them is read."""
    problem = Problem([3, 40, 8], slots=slots)
    plain = problem.inputs(guard, None)
    expected = kernels.intra_class_sum(plain, ALL)

    def every_second(x):
        return guard(torch.stack([x, torch.full_like(x, torch.nan) if x.is_floating_point() else x], 1))[:, 0]

    def wider(x):
        return guard(torch.cat([x, torch.full_like(x, torch.nan)], 1))[:, : x.shape[1]]

    for rearrange in (every_second, wider, lambda x: guard(x.T.contiguous()).T):
        matrices = ("anchor", "positive", "memory") if slots else ("anchor", "positive")
        vectors = ("labels", "weight", "memory_labels") if slots else ("labels", "weight")
        changed = {name: rearrange(getattr(plain, name)) for name in matrices}
        changed |= {name: every_second(getattr(plain, name)) for name in vectors}
        result = kernels.intra_class_sum(plain._replace(**changed), ALL)
        assert all(torch.equal(x, y) for x, y in zip(result, expected, strict=True))


@pytest.mark.parametrize("sizes", [RAGGED, BOTH_SIDES], ids=["ragged", "both sides"])
@pytest.mark.parametrize("slots", [0, 50])
def test_counting_and_sorting_give_the_same_bits(guard, monkeypatch, sizes, slots):
    problem = Problem(sizes, slots=slots)
    # Without a promise the tile is chosen for any size: the same one, then, for both.
    monkeypatch.setattr(one_tile, "_likely_size", lambda *_: 32)
    one, other = (
        kernels.intra_class_sum(problem.inputs(guard, num_classes), ALL) for num_classes in (None, problem.num_classes)
    )
    assert all(torch.equal(x, y) for x, y in zip(one, other, strict=True))


def test_the_tile_is_chosen_by_the_likely_size_of_a_class():
    assert one_tile._likely_size(65536, 1000) == 98
    assert one_tile._likely_size(1024, 1000) == 6
    assert one_tile._likely_size(100, 1) == one_tile._likely_size(100, None) == 100
    assert one_tile._likely_size(0, 10) == one_tile._likely_size(0, None) == 0


def test_nan_stays_in_its_class(guard):
    """Classes that share no tile with it, that is."""
    problem = Problem([40, 50], inactive=0)
    problem.anchor[(problem.labels == 1).nonzero()[0]] = torch.nan
    inputs = problem.inputs(guard, None)
    rows, _ = kernels.intra_class_rows(inputs)
    assert rows[problem.labels == 1].isnan().all()
    assert rows[problem.labels == 3].isfinite().all()
