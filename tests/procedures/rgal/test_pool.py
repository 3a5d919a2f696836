import pytest
import torch

from icckd.data import Batches
from icckd.procedures.rgal.pool import Pool, PoolBatches

SHAPE = (1, 8, 8)


def numbered(first, count):
    """Images of one grey each, their number."""
    numbers = torch.arange(first, first + count)
    return numbers.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, *SHAPE), numbers % 3


def pool_of(count, capacity=100):
    pool = Pool(capacity, SHAPE, torch.device("cpu"))
    pool.add(*numbered(0, count))
    return pool


def batches_of(pool, steps, refill, size=4):
    def one_pass():
        return Batches(
            pool.images, pool.labels, batch_size=size, mean=[0.0], std=[1.0], augmentation=None, views=1, shuffle=True,
            seed=3, device="cpu", drop_last=True,
        )  # fmt: skip

    return PoolBatches(steps, size, refill, one_pass)


def test_the_oldest_make_room():
    pool = pool_of(6, capacity=8)
    pool.add(*numbered(6, 5))
    assert pool.images[:, 0, 0, 0].tolist() == list(range(3, 11))
    assert pool.labels.tolist() == [n % 3 for n in range(3, 11)]
    assert pool.images.untyped_storage().nbytes() == 8 * 64  # What a checkpoint would save.


def test_a_state_comes_back_and_another_kind_is_refused():
    pool, other = pool_of(6), pool_of(3)
    other.restore(pool.state())
    assert torch.equal(other.images, pool.images)
    assert torch.equal(other.labels, pool.labels)
    with pytest.raises(ValueError, match="a pool of"):
        other.restore({"images": torch.zeros(6, 3, 8, 8, dtype=torch.uint8), "labels": pool.labels})


def shown(batches, epoch, first_step=0):
    return [batch.indices.tolist() for batch in batches.epoch(epoch, first_step)]


def test_an_epoch_is_refilled_once_and_goes_on_anywhere_as_it_began():
    refilled = []
    batches = batches_of(pool_of(10), steps=7, refill=refilled.append)
    assert len(batches) == 7
    whole = shown(batches, 2)
    assert refilled == [2]
    assert [shown(batches, 2, step) for step in range(1, 8)] == [whole[step:] for step in range(1, 8)]
    assert refilled == [2]
    # A pass is two batches of different images, and no two passes are alike.
    passes = [sorted(whole[i] + whole[i + 1]) for i in (0, 2, 4)]
    assert all(len(set(images)) == 8 for images in passes)
    assert len({(*whole[i], *whole[i + 1]) for i in (0, 2, 4)}) == 3
    assert shown(batches, 3) != whole


def test_batches_have_the_pool_s_labels():
    pool = pool_of(9)
    for batch in batches_of(pool, 3, lambda epoch: None).epoch(0):
        assert batch.labels.tolist() == pool.labels[batch.indices].tolist()
        torch.testing.assert_close(batch.views[0][:, 0, 0, 0] * 255, batch.indices.float())
