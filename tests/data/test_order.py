"""Balanced orders against counting, batch by batch; which numbers a batch is made of; how sizes follow."""

from collections import Counter

import numpy as np
import pytest

from icckd.data.order import Balance, balance_of, balanced_order, random_order
from icckd.errors import UserError
from icckd.settings import DataSettings


def batches(order, size):
    return [order[start : start + size] for start in range(0, len(order), size)]


def random_labels(sizes, seed):
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))


def most_full_batches(sizes, balance):
    """How many batches of different classes there can be, by trying: the largest classes first."""
    groups, count = [size // balance.samples for size in sizes], 0
    while sum(group > 0 for group in groups) >= balance.classes:
        for label in sorted(range(len(groups)), key=lambda c: -groups[c])[: balance.classes]:
            groups[label] -= 1
        count += 1
    return count


@pytest.mark.parametrize("sizes", [[40] * 10, [13, 100, 29, 57, 8], [0, 5, 5, 3, 90], [1, 2, 1], list(range(1, 60))])
@pytest.mark.parametrize("balance", [Balance(2, 4), Balance(3, 2), Balance(5, 7), Balance(3, 1)])
def test_batches_are_balanced_as_long_as_can_be_and_every_image_comes_once(sizes, balance):
    labels = random_labels(sizes, seed=sum(sizes))
    order = balanced_order(labels, balance, seed=3, epoch=1)
    assert np.array_equal(np.sort(order), np.arange(len(labels)))
    counts = [Counter(labels[batch].tolist()) for batch in batches(order, balance.classes * balance.samples)]
    full = most_full_batches(sizes, balance)
    assert all(sorted(count.values()) == [balance.samples] * balance.classes for count in counts[:full])
    # Then come groups, each of one class, and at last what is less than a group, class by class.
    groups = sum(size // balance.samples for size in sizes) * balance.samples
    assert all(len(set(labels[group])) == 1 for group in batches(order[:groups], balance.samples))
    rest = labels[order[groups:]].tolist()
    assert Counter(rest) == Counter({c: n % balance.samples for c, n in enumerate(sizes) if n % balance.samples})
    assert len(set(rest)) == sum(a != b for a, b in zip([None, *rest], rest, strict=False))


def test_an_order_depends_on_seed_and_epoch_alone():
    labels, balance = random_labels([30] * 6, seed=1), Balance(3, 5)
    orders = [balanced_order(labels, balance, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert np.array_equal(orders[0], balanced_order(labels, balance, 0, 0))
    assert len({order.tobytes() for order in orders}) == 3
    assert len({random_order(40, seed, epoch).tobytes() for seed, epoch in ((0, 0), (0, 1), (1, 0), (0, 0))}) == 3


def test_which_classes_and_images_meet_is_left_to_chance():
    labels, balance = np.arange(200) % 20, Balance(2, 2)
    pairs, groups = Counter(), Counter()
    for epoch in range(30):
        for batch in batches(balanced_order(labels, balance, 0, epoch), 4):
            pairs[frozenset(labels[batch].tolist())] += 1
            groups[frozenset(batch[:2].tolist())] += 1
    # 1500 batches over 190 pairs of classes, and 1500 first groups over 20 · 45 pairs of images.
    assert len(pairs) > 180
    assert max(pairs.values()) < 30
    assert len(groups) > 650


@pytest.mark.parametrize(
    ("settings", "batch_size", "expected"),
    [
        ({"sampler": "random"}, 64, None),
        ({}, 64, (8, 8)),
        ({}, 60, (10, 6)),
        ({}, 6, (3, 2)),
        ({"classes_per_batch": 4}, 64, (4, 16)),
        ({"samples_per_class": 8}, 64, (8, 8)),
        ({"classes_per_batch": 3, "samples_per_class": 5}, 64, (3, 5)),
        ({"classes_per_batch": 5}, 64, "data.classes_per_batch is 5, which does not divide student.batch_size 64"),
        ({"samples_per_class": 5}, 64, "data.samples_per_class is 5, which does not divide student.batch_size 64"),
        ({"samples_per_class": 4}, 64, "data.classes_per_batch, which follows from student.batch_size, is 16; .* 10"),
        ({"classes_per_batch": 11, "samples_per_class": 2}, 64, "data.classes_per_batch is 11; .* have 10 classes"),
        ({"classes_per_batch": 2, "samples_per_class": 40}, 64, "data.samples_per_class is 40; the largest .* 30 "),
        ({}, 330, "data.samples_per_class, which follows from student.batch_size, is 33; the largest class has 30"),
        ({}, 61, "student.batch_size is 61, which is no product of 2 to 10 classes"),
    ],
)
def test_sizes_that_are_not_given_follow(settings, batch_size, expected):
    labels = random_labels([30, *[20] * 9], seed=2)
    chosen = DataSettings(**{"sampler": "class-balanced", **settings})
    if isinstance(expected, str):
        with pytest.raises(UserError, match=expected):
            balance_of(chosen, batch_size, labels, "student")
    else:
        assert balance_of(chosen, batch_size, labels, "student") == expected
