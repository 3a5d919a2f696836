"""The order in which an epoch goes through the images: a pure function of seed and epoch, batch after batch."""

import heapq
from typing import NamedTuple

import numpy as np

from icckd.errors import UserError
from icckd.settings import DataSettings

# First word of the seeds of orders, so that they share no stream with augmentation.
_ORDER = 1


class Balance(NamedTuple):
    """Batches of `samples` images of each of `classes` classes."""

    classes: int
    samples: int

    @property
    def batch_size(self) -> int:
        return self.classes * self.samples


def random_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """The numbers below `count` in a random order, int64 (count,)."""
    return _random(seed, epoch).permutation(count)


def balanced_order(labels: np.ndarray, balance: Balance, seed: int, epoch: int) -> np.ndarray:
    """The places of all N `labels`, int64 (N,), in an order whose batches are balanced: int64 (N,).

    Each class is shuffled and cut into groups of S = balance.samples. A batch is P = balance.classes groups, one after
    another: of the classes with most groups left, ties by chance, and of different classes while there are P. What is
    less than a group of its class comes last, class after class. So every batch but the last few has S images of each
    of P classes, and every image comes once (this project's choice; P × S batches are those of Hermans et al. 2017,
    arXiv 1703.07737).
    """
    random, samples = _random(seed, epoch), balance.samples
    shuffled = random.permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    sizes = np.bincount(labels)
    first, groups = np.cumsum(sizes) - sizes, sizes // samples
    starts = _group_starts(first, groups, balance, random)
    whole = by_class[(starts[:, None] + np.arange(samples)).ravel()]
    rests = [by_class[first[c] + groups[c] * samples : first[c] + sizes[c]] for c in random.permutation(len(sizes))]
    return np.concatenate([whole, *rests])


def _group_starts(first: np.ndarray, groups: np.ndarray, balance: Balance, random: np.random.Generator) -> np.ndarray:
    """Where each group begins, in the order of batches; class c has groups[c] of them, from first[c] on."""
    # As Python's numbers, which a heap handles faster.
    following, chances = first.tolist(), random.random(groups.sum() + len(groups)).tolist()
    heap = [(-count, chances.pop(), label) for label, count in enumerate(groups.tolist()) if count]
    heapq.heapify(heap)
    starts = []
    while heap:
        for count, _, label in [heapq.heappop(heap) for _ in range(min(balance.classes, len(heap)))]:
            starts.append(following[label])
            following[label] += balance.samples
            if count < -1:
                heapq.heappush(heap, (count + 1, chances.pop(), label))
    return np.array(starts, dtype=np.int64)


def _random(seed: int, epoch: int) -> np.random.Generator:
    return np.random.default_rng([_ORDER, seed, epoch])


def balance_of(settings: DataSettings, batch_size: int, labels: np.ndarray, stage: str) -> Balance | None:
    """What the class-balanced sampler makes batches of, where it is in force; else None.

    `batch_size` is that of `stage`, of which what is not given follows: the other of both, or both, and then as many
    classes as can be with 2 images or more each. Raises UserError where that is impossible with classes of such sizes
    as `labels`, int64 (N,), tell.
    """
    if settings.sampler == "random":
        return None
    sizes = np.bincount(labels)
    there_are = int(np.count_nonzero(sizes))
    classes, samples = settings.classes_per_batch, settings.samples_per_class
    if classes is None and samples is None:
        classes = _most_classes(batch_size, there_are, stage)
    balance = Balance(
        classes or _quotient(batch_size, "data.samples_per_class", samples, stage),
        samples or _quotient(batch_size, "data.classes_per_batch", classes, stage),
    )
    if balance.classes > there_are:
        raise UserError(
            f"{_name('data.classes_per_batch', classes, stage)} is {balance.classes}; the training images have "
            f"{there_are} classes: give that at most"
        )
    if balance.samples > sizes.max():
        raise UserError(
            f"{_name('data.samples_per_class', samples, stage)} is {balance.samples}; the largest class has "
            f"{sizes.max()} training images: give that at most"
        )
    return balance


def _most_classes(batch_size: int, classes: int, stage: str) -> int:
    for count in range(min(classes, batch_size // 2), 1, -1):
        if batch_size % count == 0:
            return count
    raise UserError(
        f"{stage}.batch_size is {batch_size}, which is no product of 2 to {classes} classes and 2 or more images of "
        "each; give another size, or data.classes_per_batch and data.samples_per_class"
    )


def _quotient(batch_size: int, name: str, given: int | None, stage: str) -> int:
    assert given is not None
    if batch_size % given:
        raise UserError(f"{name} is {given}, which does not divide {stage}.batch_size {batch_size}; give one that does")
    return batch_size // given


def _name(name: str, given: int | None, stage: str) -> str:
    return name if given is not None else f"{name}, which follows from {stage}.batch_size,"
