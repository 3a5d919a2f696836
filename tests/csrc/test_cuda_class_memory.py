"""The push into a class memory, in the emulator, against queues in plain Python."""

from collections import deque

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.csrc import emulator

FLOATS = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(scope="module")
def module():
    if (reason := emulator.why_unavailable()) is not None:
        pytest.skip(f"no emulator: {reason}")
    return emulator.load("class_memory", "sm_80")


def name(dtype):
    return str(dtype).removeprefix("torch.")


class Rings:
    """What a memory should hold: each class's rows in plain lists, beside the tensors that the kernel writes."""

    def __init__(self, num_classes, capacity, dim, dtype):
        self.capacity = capacity
        self.rows = [[None] * capacity for _ in range(num_classes)]
        self.count = [0] * num_classes
        self.slots = torch.full((num_classes * capacity + 1, dim), torch.nan, dtype=dtype)
        self.pushed = torch.zeros(num_classes, dtype=torch.int64)

    def push(self, module, features, labels, classes_per_warp, timing):
        run = getattr(module, f"push_{name(features.dtype)}_{name(self.slots.dtype)}")
        sizes = (*features.shape, len(self.pushed), self.capacity)
        run(self.slots, self.pushed, features, labels, torch.empty_like(labels), *sizes, classes_per_warp, timing)
        for row, label in zip(features.to(self.slots.dtype), labels.tolist(), strict=True):
            if 0 <= label < len(self.rows) and row.isfinite().all():
                self.rows[label][self.count[label] % self.capacity] = row
                self.count[label] += 1

    def check(self):
        assert self.pushed.tolist() == self.count
        empty = torch.full_like(self.slots[0], torch.nan)
        expected = [empty if row is None else row for ring in self.rows for row in ring]
        torch.testing.assert_close(self.slots, torch.stack([*expected, empty]), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("timing", emulator.TIMINGS)
@pytest.mark.parametrize(
    ("num_classes", "capacity", "dim", "classes_per_warp"), [(1, 1, 1, 1), (5, 3, 7, 1), (9, 4, 8, 3), (40, 2, 16, 32)]
)
def test_pushes_after_each_other(module, timing, num_classes, capacity, dim, classes_per_warp, generator):
    rings = Rings(num_classes, capacity, dim, torch.float32)
    for count in (1, 0, 5, 31, 257, 600, 3):
        features = torch.randn(count, dim, generator=generator)
        labels = torch.randint(-2, num_classes + 2, (count,), generator=generator)
        rings.push(module, features, labels, classes_per_warp, timing)
        rings.check()


@given(labels=st.lists(st.integers(-1, 4), max_size=90), capacity=st.integers(1, 40), warp=st.integers(1, 4))
def test_any_labels(module, labels, capacity, warp):
    rings = Rings(4, capacity, 1, torch.float32)
    rings.pushed += 3  # the ring is under way
    rings.count = [3] * 4
    features = torch.arange(len(labels), dtype=torch.float32)[:, None]
    rings.push(module, features, torch.tensor(labels, dtype=torch.int64), warp, "late")
    rings.check()


@pytest.mark.parametrize("kept", FLOATS)
@pytest.mark.parametrize("given_", FLOATS)
@pytest.mark.parametrize("dim", [64, 13, 12])
def test_dtypes_are_converted(module, given_, kept, dim, generator):
    rings = Rings(3, 4, dim, kept)
    features = (torch.randn(30, dim, generator=generator) * 1000).to(given_)
    rings.push(module, features, torch.randint(0, 3, (30,), generator=generator), 1, "early")
    rings.check()


@pytest.mark.parametrize("kept", FLOATS)
@pytest.mark.parametrize("given_", FLOATS)
def test_rows_that_are_not_finite_are_skipped(module, given_, kept, generator):
    rings = Rings(3, 20, 40, kept)
    features = torch.randn(30, 40, generator=generator).to(given_)
    features[3] = torch.inf
    features[8, 39], features[11, 0], features[12, 7] = torch.nan, -torch.inf, 6e4
    # Too large for float16.
    features[17, 33] = min(1e5, torch.finfo(given_).max)
    rings.push(module, features, torch.arange(30) % 3, 1, "late")
    rings.check()
    assert sum(rings.count) == (26 if kept == torch.float16 and given_ != torch.float16 else 27)


def test_labels_beyond_32_bits_are_skipped(module):
    rings = Rings(2, 2, 4, torch.float32)
    labels = torch.tensor([2**32, 1, 2**63 - 1, -(2**63), 2**32 + 1])
    rings.push(module, torch.ones(5, 4), labels, 1, "late")
    rings.check()
    assert rings.pushed.tolist() == [0, 1]


@given(
    capacity=st.integers(1, 9),
    earlier=st.integers(0, 2**40),
    counts=st.lists(st.integers(0, 30), min_size=1, max_size=4),
)
def test_ring_slots(module, capacity, earlier, counts):
    """Every push's rows, newest first, are where a queue would have put them."""
    queue = deque(maxlen=capacity)
    pushed = earlier
    for count in counts:
        queue.extend(range(pushed, pushed + count))
        pushed += count
        for newer in range(min(count, capacity)):
            assert module.ring_slot((pushed - 1) % capacity, newer, capacity) == queue[-1 - newer] % capacity


@given(x=st.integers(0, 2**63 - 1) | st.integers(0, 2**33), divisor=st.integers(1, 2**31 - 1))
def test_remainders(module, x, divisor):
    assert module.remainder(x, divisor) == x % divisor


@given(num_classes=st.integers(1, 10**6))
def test_warps_own_every_class(module, num_classes):
    per_warp = module.classes_per_warp(num_classes)
    assert 1 <= per_warp <= 32
    assert module.blocks(num_classes) * per_warp * 4 >= num_classes
    assert (module.blocks(num_classes) - 1) * per_warp * 4 < num_classes
