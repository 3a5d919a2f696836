"""The class layout's CUDA kernels, in the emulator, against a layout in plain Python and against Triton's kernels."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from icckd.kernels.layout import Layout, counted_layout
from tests.csrc import emulator
from tests.kernels.test_layout import batches, check, memories

POISON = -1_000_000


@pytest.fixture(scope="module")
def module():
    if (reason := emulator.why_unavailable()) is not None:
        pytest.skip(f"no emulator: {reason}")
    return emulator.load("class_layout", "sm_80")


def layout_by(timing):
    """What makes a layout by the emulated kernels, as `counted_layout` does."""

    def make(labels, weight, memory_labels, num_classes, limit):
        module = emulator.load("class_layout", "sm_80")
        rows, slots = len(labels), len(memory_labels)

        def poisoned(count):
            return torch.full((count,), POISON, dtype=torch.int32)

        sizes = [rows, rows, rows, *[num_classes] * 3, slots, *[num_classes] * 2, 6]
        out = [*(poisoned(size) for size in sizes), torch.full((1,), torch.nan)]
        scratch = []
        for count, keys in ((rows, 2 * num_classes + 1), (slots, num_classes + 1)):
            scratch += [
                poisoned(count),
                poisoned(module.blocks(count, keys) * keys),
                torch.zeros(keys, dtype=torch.int32),
            ]
        scratch += [torch.full((module.blocks(rows, 2 * num_classes + 1),), torch.nan)]
        inputs = (x if x is None else x.contiguous() for x in (labels, weight, memory_labels))
        module.class_layout(*inputs, num_classes, limit, rows, slots, out, scratch, timing)
        return Layout(*out)

    return make


@pytest.mark.parametrize("timing", emulator.TIMINGS)
@given(batch=batches, memory=memories, num_classes=st.sampled_from([1, 5, 8, 40]), limit=st.integers(0, 9))
@settings(max_examples=15)
def test_layout(module, timing, batch, memory, num_classes, limit):
    labels, weight = [c for c, _ in batch], [w for _, w in batch]
    check(layout_by(timing), labels, weight, memory, num_classes, limit)


@given(batch=batches, memory=memories, num_classes=st.sampled_from([1, 5, 40]))
@settings(max_examples=10)
def test_without_weights_every_row_is_an_anchor(module, batch, memory, num_classes):
    check(layout_by("late"), [c for c, _ in batch], None, memory, num_classes, 4)


@pytest.mark.parametrize(
    ("rows", "slots", "num_classes"),
    [
        (0, 0, 1),
        (1, 0, 1),
        (0, 700, 33),
        (513, 0, 32),
        (2000, 1500, 100),
        (1601, 0, 2),
        (600, 600, 300),
        (600, 300, 2000),
    ],
)
@pytest.mark.parametrize("timing", emulator.TIMINGS)
def test_is_the_layout_of_the_triton_kernels(module, timing, rows, slots, num_classes, generator):
    """Several blocks; skewed classes, many of them empty; rows without a class; every number that is defined."""

    def labels(count):
        share = torch.rand(count, generator=generator)
        return (share**3 * (num_classes + 1)).long() - (share < 0.1).long() * 7

    batch, memory = labels(rows), labels(slots)
    weight = (torch.rand(rows, generator=generator) < 0.7).float()
    ours = layout_by(timing)(batch, weight, memory, num_classes, 30)
    theirs = counted_layout(batch, weight, memory, num_classes, 30)
    anchors = int(theirs.totals[1])
    for name, x, y in zip(Layout._fields, ours, theirs, strict=True):
        used = slice(anchors if name == "anchors" else None)
        # Weights are added in other orders.
        torch.testing.assert_close(x[used], y[used], rtol=1e-6 if name == "scale" else 0, atol=0, msg=name)
    assert (ours.anchors[anchors:] == POISON).all()


def test_one_class_of_many_rows(module):
    """Blocks that take several rounds over their threads."""
    rows = 512 * 512 + 77
    labels = torch.arange(rows) % 2
    layout = layout_by("late")(labels, torch.ones(rows), labels[:0], 2, 0)
    assert module.rows_per_block(rows, 5) == 1024
    assert torch.equal(layout.order, labels.argsort(stable=True).int())
    assert layout.size.tolist() == [rows // 2 + 1, rows // 2]


@given(rows=st.integers(0, 2**31 - 1), keys=st.integers(2, 2**15 + 1))
def test_blocks_cover_the_rows(module, rows, keys):
    blocks, per_block = module.blocks(rows, keys), module.rows_per_block(rows, keys)
    assert blocks <= 512
    assert blocks == 1 or blocks * keys <= max(5 * rows, 2**20)
    assert blocks * per_block >= rows
    assert (blocks - 1) * per_block < max(rows, 1)
    assert per_block % 512 == 0


@given(label=st.integers(-(2**63), 2**63 - 1), in_batch=st.booleans(), anchor=st.booleans(), c=st.integers(1, 12_288))
def test_keys(module, label, in_batch, anchor, c):
    key = module.key(label, in_batch, anchor, c)
    if not 0 <= label < c:
        assert key == (2 * c if in_batch else c)
    else:
        assert key == (2 * label + (not anchor) if in_batch else label)


@given(sizes=st.lists(st.integers(0, 5), min_size=1, max_size=9))
def test_order_of_classes_is_total(module, sizes):
    c = len(sizes)
    before = [sum(module.comes_before(sizes[d], d, sizes[i], i, c) for d in range(c)) for i in range(c)]
    assert sorted(range(c), key=lambda i: (-sizes[i], i)) == sorted(range(c), key=before.__getitem__)
    assert sorted(before) == list(range(c))
    assert all(module.comes_before(sizes[d], d, 0, c, c) for d in range(c))


def test_counts_fit_in_shared_memory(module):
    assert module.count_shared_bytes(module.most_classes) <= 99 << 10  # of an sm_86
