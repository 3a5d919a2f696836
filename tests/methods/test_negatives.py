"""Negatives are of other classes, all of those equally likely, and the same for the same seed."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from icckd.errors import UserError
from icckd.methods.negatives import NegativeSampler

# Of 5, 1, 7 and 3 images, in disorder, by labels with a gap.
LABELS = torch.tensor([3, 0, 9, 3, 3, 9, 0, 0, 5, 3, 0, 3, 9, 3, 0, 3])


def draw(labels, images, count, seed=0):
    return NegativeSampler(labels).draw(images, count, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "labels", [LABELS, LABELS.int(), torch.tensor([1, 0]), torch.arange(5), torch.tensor([7] * 9 + [2])]
)
def test_never_of_the_own_class_and_every_other_image(labels):
    drawn = draw(labels, torch.arange(len(labels)), 3000)
    assert drawn.dtype == torch.int64
    assert drawn.shape == (len(labels), 3000)
    for image, negatives in enumerate(drawn):
        assert negatives.unique().tolist() == [j for j, label in enumerate(labels) if label != labels[image]]


def test_uniform():
    """Pearson's statistic of each image's counts lies between the 0.01 % quantiles of its distribution."""
    stats = pytest.importorskip("scipy.stats")
    count = 20000
    for image, negatives in enumerate(draw(LABELS, torch.arange(len(LABELS)), count, seed=1)):
        other = LABELS.ne(LABELS[image])
        others = int(other.sum())
        counts = negatives.bincount(minlength=len(LABELS))[other].double()
        statistic = ((counts - count / others).square() / (count / others)).sum().item()
        assert 1e-4 < stats.chi2.cdf(statistic, others - 1) < 1 - 1e-4


def test_neighbours_are_drawn_independently():
    """Also pairs are uniform: of two consecutive draws each combination is as likely as another."""
    stats = pytest.importorskip("scipy.stats")
    (negatives,) = draw(LABELS, torch.tensor([8]), 60000, seed=2)
    first, second = negatives[::2], negatives[1::2]
    counts = (first * 16 + second).bincount(minlength=256).view(16, 16)[LABELS != 5][:, LABELS != 5].double()
    expected = 30000 / counts.numel()
    statistic = ((counts - expected).square() / expected).sum().item()
    assert 1e-4 < stats.chi2.cdf(statistic, counts.numel() - 1) < 1 - 1e-4


def test_the_seed_decides():
    images = torch.tensor([3, 3, 0])
    assert torch.equal(draw(LABELS, images, 40), draw(LABELS, images, 40))
    assert not torch.equal(draw(LABELS, images, 40), draw(LABELS, images, 40, seed=1))
    assert not torch.equal(*draw(LABELS, images, 40)[:2])
    sampler = NegativeSampler(LABELS)
    torch.manual_seed(5)
    first, state = sampler.draw(images, 40), torch.get_rng_state()
    second = sampler.draw(images, 40)
    torch.set_rng_state(state)
    assert torch.equal(sampler.draw(images, 40), second)
    torch.manual_seed(5)
    assert torch.equal(NegativeSampler(LABELS).draw(images, 40), first)


def test_millions_of_images():
    labels = torch.randint(1000, (3_000_000,), generator=torch.Generator().manual_seed(0))
    images = torch.tensor([0, 2_999_999])
    drawn = draw(labels, images, 20000)
    assert (labels[drawn] != labels[images][:, None]).all()
    assert 2_990_000 < drawn.max() < 3_000_000
    assert drawn.min() < 10_000
    # Neighbours of any number come: nothing was rounded to fewer bits.
    assert 0.45 < (drawn % 2).double().mean() < 0.55


@pytest.mark.parametrize(
    ("labels", "found"), [([4, 4, 4], "all are of class 4"), ([2], "all are of class 2"), ([], "none")]
)
def test_one_class_is_refused(labels, found):
    with pytest.raises(UserError, match=rf"negatives of other classes need training images of at least two.*{found}"):
        NegativeSampler(torch.tensor(labels, dtype=torch.int64))


def test_nothing_to_draw():
    assert draw(LABELS, torch.arange(3), 0).shape == (3, 0)
    assert draw(LABELS, torch.arange(0), 5).shape == (0, 5)


class Waiting(TorchDispatchMode):
    """Refuses what waits for a device: reading a number, and shapes that depend on numbers."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function._opname not in ("_local_scalar_dense", "item", "nonzero", "unique", "_unique2", "masked_select")
        result = function(*args, **(kwargs or {}))
        tensors = [x for x in (args or ()) if isinstance(x, torch.Tensor)]
        assert all(x.device == result.device for x in tensors if isinstance(result, torch.Tensor))
        return result


def test_drawing_does_not_wait_for_the_device():
    sampler = NegativeSampler(LABELS)
    with Waiting():
        sampler.draw(torch.arange(4), 10)
    with pytest.raises(AssertionError), Waiting():
        NegativeSampler(LABELS)
