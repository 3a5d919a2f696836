"""The layout of the rows against one that is made in plain Python."""

from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from icckd.kernels import layout
from icckd.kernels.layout import class_layout, counted_layout, sorted_layout
from tests.kernels.guarded import guarded


def expected(labels, weight, memory_labels, limit):
    """What is defined of a layout, as lists; by class: (first position, rows, anchors, memory rows) with rows."""
    weight = [1.0] * len(labels) if weight is None else weight
    classes = sorted({c for c in labels if c >= 0}, key=lambda c: (-labels.count(c), c))
    order, anchors, by_class, memory_order = [], [], [], []
    large = [0, 0]
    for c in classes:
        rows = [i for i, label in enumerate(labels) if label == c]
        active = [i for i in rows if weight[i] > 0]
        memory = [m for m, label in enumerate(memory_labels) if label == c]
        by_class.append((len(order), len(rows), len(active), len(memory_order), len(memory)))
        anchors += range(len(order), len(order) + len(active))
        order += active + [i for i in rows if weight[i] == 0]
        memory_order += memory
        if len(rows) > limit:
            large = [len(order), len(anchors)]
    rank = [classes.index(labels[i]) for i in order] + [-1] * labels.count(-1)
    totals = [len(order), len(anchors), *large, len(memory_order), len(classes)]
    order += [i for i, label in enumerate(labels) if label == -1]
    weights = sum(weight[i] for i in order[: totals[0]])
    return order, rank, anchors, by_class, memory_order, totals, 1 / weights if weights else 0.0


def check(make, labels, weight, memory_labels, num_classes, limit):
    count, slots = len(labels), len(memory_labels)
    with guarded() as guard:
        made = make(
            guard(torch.tensor(labels).long()),
            None if weight is None else guard(torch.tensor(weight).float()),
            guard(torch.tensor(memory_labels).long()),
            num_classes,
            limit,
        )
    out = num_classes if num_classes is not None else 2**63
    used, used_memory = ([c if 0 <= c < out else -1 for c in x] for x in (labels, memory_labels))
    order, rank, anchors, by_class, memory_order, totals, scale = expected(used, weight, used_memory, limit)
    assert all(x.dtype == torch.int32 for x in made[:-1])
    assert made.scale.dtype == torch.float32
    assert made.scale.tolist() == pytest.approx([scale], rel=1e-6)
    assert made.order.tolist() == order
    assert made.rank.tolist() == rank
    assert made.anchors.shape == (count,)
    assert made.anchors[: len(anchors)].tolist() == anchors
    assert made.totals.tolist() == totals
    per_class = zip(
        made.start.tolist(),
        made.size.tolist(),
        made.active.tolist(),
        made.memory_start.tolist(),
        made.memory_size.tolist(),
        strict=True,
    )
    assert list(per_class)[: len(by_class)] == by_class
    assert not made.size[len(by_class) :].any()
    assert made.memory_order[: len(memory_order)].tolist() == memory_order
    assert sorted(made.memory_order.tolist()) == list(range(slots))


weights = st.sampled_from([0.0, 0.5, 2.0])
batches = st.lists(st.tuples(st.integers(-2, 7), weights), max_size=70)
memories = st.lists(st.integers(-2, 7), max_size=40)


@pytest.mark.parametrize("make", [counted_layout, sorted_layout])
@given(batch=batches, memory=memories, num_classes=st.sampled_from([1, 5, 8, 40]), limit=st.integers(0, 9))
def test_layout(make, batch, memory, num_classes, limit):
    labels, weight = [c for c, _ in batch], [w for _, w in batch]
    check(make, labels, weight, memory, num_classes, limit)


@pytest.mark.parametrize("make", [counted_layout, sorted_layout])
@given(batch=batches, memory=memories, num_classes=st.sampled_from([1, 5, 40]))
def test_without_weights_every_row_is_an_anchor(make, batch, memory, num_classes):
    check(make, [c for c, _ in batch], None, memory, num_classes, 4)


@given(batch=batches, memory=memories, names=st.lists(st.integers(0, 2**63 - 2), min_size=8, max_size=8, unique=True))
def test_layout_of_any_labels(batch, memory, names):
    names = sorted(names)
    labels = [names[c] if c >= 0 else c for c, _ in batch]
    weight = [w if c >= 0 else 0.0 for c, w in batch]
    check(sorted_layout, labels, weight, [names[c] if c >= 0 else c for c in memory], None, 4)


def test_the_largest_label_names_a_class():
    largest = 2**63 - 1
    check(sorted_layout, [largest, 0, -1, largest, -(2**63)], [1.0, 1.0, 1.0, 0.0, 1.0], [-1, largest, 3], None, 1)


@pytest.mark.parametrize("num_classes", [300, 20_000, 40_000, None])
@pytest.mark.parametrize("slots", [0, 500])
def test_many_rows_and_many_classes(num_classes, slots):
    """Several blocks of rows and of classes; counted, then sorted as 16, 32 and 64 bits."""
    generator = torch.Generator().manual_seed(0)
    classes = num_classes or 10**12
    share = torch.rand(600, generator=generator, dtype=torch.float64)
    labels = (share**4 * classes).long().masked_fill(share < 0.03, -1)
    weight = (torch.rand(600, generator=generator) < 0.6) * (labels >= 0)
    memory_labels = labels[torch.randint(600, (slots,), generator=generator)] + (torch.arange(slots) % 3 == 0)
    check(
        lambda labels, weight, memory_labels, num_classes, limit: class_layout(
            labels, weight, memory_labels if slots else None, num_classes, limit
        ),
        labels.tolist(),
        weight.float().tolist(),
        memory_labels.clamp(max=classes - 1).tolist(),
        num_classes,
        20,
    )


@given(batch=batches, memory=memories)
def test_blocks_of_many_rows(batch, memory):
    """Where classes are many a block takes its rows in several rounds."""
    with mock.patch.multiple(layout, _COUNTS_PER_ROW=1, _COUNTS=60):
        check(counted_layout, [c for c, _ in batch], [w for _, w in batch], memory, 8, 4)


def test_counting_is_chosen_where_it_is_cheaper(monkeypatch):
    chosen = []
    for name in ("counted_layout", "sorted_layout"):
        monkeypatch.setattr(layout, name, lambda *_, name=name: chosen.append(name))
    labels, weight = torch.zeros(1000, dtype=torch.long), torch.ones(1000)
    for num_classes in (10, 10_000, 100_000, None):
        class_layout(labels, weight, None, num_classes, 4)
    assert chosen == ["counted_layout", "counted_layout", "sorted_layout", "sorted_layout"]
