import numpy as np
import pytest
import torch

from icckd.data.augmentation import Augmentation
from icckd.data.batches import Batches


@pytest.fixture
def images():
    return torch.randint(0, 256, (50, 3, 9, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def make(images, labels=None, **changes):
    channels = images.shape[1] if images.ndim > 1 else 1
    arguments = {
        "batch_size": 8,
        "mean": (0.3,) * channels,
        "std": (0.2,) * channels,
        "augmentation": Augmentation(2, flip=True),
        "views": 2,
        "shuffle": True,
        "seed": 5,
        "device": "cpu",
        "drop_last": True,
    }
    labels = torch.arange(len(images)) if labels is None else labels
    return Batches(images, labels, **{**arguments, **changes})


def flat(batches):
    return [(*batch.views, batch.labels) for batch in batches]


def assert_same(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def crop_one_by_one(images, padding, top, left):
    crops = []
    for image, y, x in zip(images.numpy(), top.tolist(), left.tolist(), strict=True):
        channels, height, width = image.shape
        padded = np.zeros((channels, height + 2 * padding, width + 2 * padding), np.uint8)
        padded[:, padding : padding + height, padding : padding + width] = image
        crops.append(padded[:, y : y + height, x : x + width])
    return torch.from_numpy(np.stack(crops))


def test_views_are_crops_of_the_image_that_the_label_belongs_to_mirrored_or_not(images):
    padding = 2
    offsets = 2 * padding + 1
    found = set()
    for batch in make(images, mean=(0.0,) * 3, std=(1 / 255,) * 3).epoch(0):
        for view in batch.views:
            for pixels, label in zip(view.round().to(torch.uint8), batch.labels.tolist(), strict=True):
                everywhere = images[label : label + 1].expand(offsets**2, -1, -1, -1)
                top = torch.arange(offsets).repeat_interleave(offsets)
                left = torch.arange(offsets).repeat(offsets)
                crops = crop_one_by_one(everywhere, padding, top, left)
                places = {(i, False) for i, crop in enumerate(crops) if torch.equal(crop, pixels)}
                places |= {(i, True) for i, crop in enumerate(crops) if torch.equal(crop.flip(-1), pixels)}
                assert len(places) == 1
                found |= places
    # 96 draws out of 50 equally likely ones: about 43 different ones.
    assert len(found) > 30


def test_without_flip_no_image_is_mirrored():
    ramp = torch.arange(8, dtype=torch.uint8).expand(64, 1, 8, 8)
    (batch,) = make(ramp, batch_size=64, augmentation=Augmentation(0, flip=False)).epoch(0)
    assert (batch.views[0].diff(dim=-1) > 0).all()
    (batch,) = make(ramp, batch_size=64, augmentation=Augmentation(0, flip=True)).epoch(0)
    rising = (batch.views[0].diff(dim=-1) > 0).all(dim=-1).all(dim=-1).flatten()
    assert 16 < rising.sum() < 48


def test_views_of_one_batch_differ(images):
    batch = next(make(images).epoch(0))
    assert not torch.equal(*batch.views)


def test_normalisation(images):
    mean, std = (0.1, 0.5, 0.7), (0.2, 0.3, 0.4)
    batches = make(images, mean=mean, std=std, augmentation=None, shuffle=False, batch_size=50, views=1)
    ((view,), labels, _) = next(iter(batches))
    expected = (images.double() / 255 - torch.tensor(mean).double().view(3, 1, 1)) / torch.tensor(std).double().view(
        3, 1, 1
    )
    assert view.dtype == torch.float32
    assert torch.allclose(view.double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(labels, torch.arange(50))


def test_evaluation_goes_through_every_image_in_order(images):
    batches = make(images, augmentation=None, shuffle=False, drop_last=False, views=1)
    assert len(batches) == 7
    labels = [batch.labels for batch in batches]
    assert [len(part) for part in labels] == [8] * 6 + [2]
    assert torch.equal(torch.cat(labels), torch.arange(50))


def test_an_epoch_has_each_image_once_in_an_order_of_its_own(images):
    batches = make(images, drop_last=False)
    orders = [torch.cat([batch.labels for batch in batches.epoch(number)]) for number in (0, 1)]
    for order in orders:
        assert torch.equal(order.sort().values, torch.arange(50))
    assert not torch.equal(*orders)


def test_drop_last_leaves_out_the_smaller_batch(images):
    batches = make(images)
    assert len(batches) == 6
    assert [len(batch.labels) for batch in batches.epoch(0)] == [8] * 6


@pytest.mark.parametrize("augmentation", [Augmentation(2, flip=True), Augmentation(0, True, 20.0, (0.3, 1.0))])
@pytest.mark.parametrize("first_step", [0, 1, 4, 6])
def test_resuming_at_any_step_gives_the_same_bits(images, augmentation, first_step):
    whole = flat(make(images, augmentation=augmentation).epoch(3))
    torch.manual_seed(first_step)  # Global random state plays no part.
    assert_same(flat(make(images, augmentation=augmentation).epoch(3, first_step=first_step)), whole[first_step:])


def test_interpolated_views_are_normalised_too(images):
    mean, std = (0.1, 0.5, 0.7), (0.2, 0.3, 0.4)
    batches = make(images, mean=mean, std=std, augmentation=Augmentation(0, False, 30.0, (0.3, 1.0)))
    low, high = ((torch.tensor(bound) - torch.tensor(mean)) / torch.tensor(std) for bound in (0.0, 1.0))
    for batch in batches.epoch(0):
        for view in batch.views:
            assert view.dtype == torch.float32
            assert (view.amin(dim=(0, 2, 3)) >= low - 1e-4).all()
            assert (view.amax(dim=(0, 2, 3)) <= high + 1e-4).all()


def test_views_without_augmentation_are_the_images(images):
    batch = next(make(images, augmentation=None, mean=(0.0,) * 3, std=(1 / 255,) * 3).epoch(0))
    assert len(batch.views) == 2
    assert all(torch.equal(view.round().to(torch.uint8), images[batch.indices]) for view in batch.views)


def test_seed_epoch_and_step_all_matter(images):
    same_image = images[:1].expand(50, -1, -1, -1)
    labels = torch.zeros(50, dtype=torch.int64)
    first = flat(make(same_image, labels).epoch(0))
    assert not torch.equal(first[0][0], first[1][0])
    assert not torch.equal(first[0][0], flat(make(same_image, labels).epoch(1))[0][0])
    assert not torch.equal(first[0][0], flat(make(same_image, labels, seed=6).epoch(0))[0][0])


def test_large_seeds_are_welcome(images):
    assert len(flat(make(images, seed=2**63 - 1).epoch(0))) == 6


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("augmentation", [Augmentation(2, flip=True), Augmentation(0, True, 20.0, (0.3, 1.0))])
def test_gpu_gives_the_same_views(images, augmentation):
    on_cpu = flat(make(images, augmentation=augmentation).epoch(1))
    on_gpu = [[x.cpu() for x in b] for b in flat(make(images, augmentation=augmentation, device="cuda").epoch(1))]
    for a, b in zip(on_cpu, on_gpu, strict=True):
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x, y)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"batch_size": 0}, ValueError, "batch_size is 0"),
        ({"views": 0}, ValueError, "views is 0"),
        ({"seed": -1}, ValueError, "seed is -1"),
        ({"mean": (0.5,)}, ValueError, "mean has 1 values"),
        ({"std": (0.5, 0.0, 0.5)}, ValueError, "std is"),
        ({"labels": torch.arange(49)}, ValueError, r"labels has shape \(49,\)"),
        ({"labels": torch.zeros(50)}, TypeError, "labels has dtype"),
        ({"images": torch.zeros(50, 3, 9, 7)}, TypeError, "images has dtype"),
        ({"images": torch.zeros(50, 63, dtype=torch.uint8)}, ValueError, "images has shape"),
    ],
)
def test_wrong_arguments(images, changes, error, words):
    with pytest.raises(error, match=words):
        make(**{"images": images, **changes})
