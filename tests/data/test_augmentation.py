"""Augmentation against pixels moved one image at a time, torch.rot90, SciPy's sampler and F.interpolate."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.nn.functional import interpolate

from icckd.data.augmentation import Augmentation, augment, boxes_in, crop, draw, draw_boxes, parameters, resample


def random_images(count, size, seed, channels=3):
    height, width = size if isinstance(size, tuple) else (size, size)
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=generator)


def varied(images, augmentation, views, seed):
    drawn = draw(np.random.default_rng(seed), augmentation, views, len(images))
    return augment(images, augmentation, views, parameters(drawn, *images.shape[2:]))


def random_boxes(seed, low, high, *, count, height, width):
    return boxes_in(draw_boxes(np.random.default_rng(seed), low, high, (count,)), height, width)


def crop_one_by_one(images, padding, place):
    crops = []
    for image, mirrored, top, left in place.T.tolist():
        pixels = images[image].numpy()
        channels, height, width = pixels.shape
        padded = np.zeros((channels, height + 2 * padding, width + 2 * padding), np.uint8)
        padded[:, padding : padding + height, padding : padding + width] = pixels[..., ::-1] if mirrored else pixels
        crops.append(padded[:, top : top + height, left : left + width])
    return torch.from_numpy(np.stack(crops))


@pytest.mark.parametrize("padding", [0, 1, 4])
def test_crops_equal_cropping_one_by_one(padding):
    images = random_images(20, (9, 7), seed=padding)
    random = np.random.default_rng(padding)
    place = np.concatenate([random.integers(0, [[20], [2]], (2, 50)), random.integers(0, 2 * padding + 1, (2, 50))])
    cropped = crop([images, images.flip(-1)], padding, torch.from_numpy(place))
    assert torch.equal(cropped, crop_one_by_one(images, padding, place))
    assert cropped.is_contiguous()


@pytest.mark.parametrize("turns", [-2, -1, 0, 1, 2])
@pytest.mark.parametrize("size", [8, 9, 32])
def test_quarter_turns_are_those_of_rot90(turns, size):
    images = random_images(3, size, seed=size)
    turned = resample(images, None, torch.full((3,), 90.0 * turns))
    assert torch.equal(turned.round().to(torch.uint8), torch.rot90(images, turns, (-2, -1)))
    torch.testing.assert_close(turned, torch.rot90(images, turns, (-2, -1)).float(), atol=1e-2, rtol=0)


@pytest.mark.parametrize("size", [(12, 12), (9, 14)])
def test_rotations_equal_scipys_bilinear_sampler(size):
    images = random_images(6, size, seed=3, channels=2)
    degrees = np.array([-170.0, -20.0, -1.0, 5.0, 20.0, 77.0])
    expected = np.empty(images.shape)
    rows, columns = np.indices(size)
    y, x = rows - (size[0] - 1) / 2, columns - (size[1] - 1) / 2
    for k, angle in enumerate(np.deg2rad(degrees)):
        source_x, source_y = x * math.cos(angle) - y * math.sin(angle), x * math.sin(angle) + y * math.cos(angle)
        places = [source_y + (size[0] - 1) / 2, source_x + (size[1] - 1) / 2]
        for channel in range(2):
            # A ring of zeros: SciPy then fades out over one pixel beyond the image, as bilinear sampling does.
            ring = np.pad(images[k, channel].numpy().astype(float), 1)
            expected[k, channel] = ndimage.map_coordinates(ring, [p + 1 for p in places], order=1, cval=0.0)
    turned = resample(images, None, torch.from_numpy(degrees))
    np.testing.assert_allclose(turned.numpy(), expected, atol=2e-2)


def test_the_whole_image_as_a_box_is_the_image():
    images = random_images(4, 11, seed=5)
    boxes = torch.tensor([0, 0, 11, 11])[:, None].expand(4, 4)
    torch.testing.assert_close(resample(images, boxes, None), images.float(), atol=1e-2, rtol=0)


@pytest.mark.parametrize("size", [(16, 16), (9, 14)])
@pytest.mark.parametrize("antialias", [False, True])
def test_resized_boxes_equal_interpolation_of_each_box_alone(size, antialias):
    boxes = np.array([[0, 0, 3, 5], [2, 1, 7, 9], [5, 6, 4, 1], [8, 3, 1, 8], [0, 5, 9, 9]])
    images = random_images(len(boxes), size, seed=6)
    resized = resample(images, torch.from_numpy(boxes.T.copy()), None)
    for image, (top, left, tall, wide), result in zip(images, boxes.tolist(), resized, strict=True):
        box = image[None, :, top : top + tall, left : left + wide].double()
        expected = interpolate(box, size, mode="bilinear", antialias=antialias, align_corners=False)
        torch.testing.assert_close(result[None].double(), expected, atol=1e-2, rtol=0)


def test_a_turned_box_is_the_turned_image_of_the_box():
    # Of size 8 and 16, so that a quarter turn of the resized box is one of pixels.
    images = random_images(3, 16, seed=13)
    boxes = torch.tensor([[0, 3, 5], [2, 0, 4], [8, 13, 9], [14, 7, 9]])
    upright, turned = resample(images, boxes, None), resample(images, boxes, torch.full((3,), 90.0))
    torch.testing.assert_close(turned, torch.rot90(upright, 1, (-2, -1)), atol=1e-2, rtol=0)
    # What is smooth, interpolating once and twice agree on.
    ramp = (torch.arange(16) * 8 + torch.arange(16)[:, None] * 4).to(torch.uint8).expand(3, 1, 16, 16)
    degrees = torch.tensor([10.0, -35.0, 160.0])
    once, twice = resample(ramp, boxes, degrees), resample(resample(ramp, boxes, None), None, degrees)
    torch.testing.assert_close(once[..., 5:11, 5:11], twice[..., 5:11, 5:11], atol=3.0, rtol=0)


def test_many_pixels_are_resampled_in_parts(monkeypatch):
    images = random_images(7, 10, seed=14)
    boxes = torch.from_numpy(random_boxes(15, 0.2, 0.9, count=7, height=10, width=10))
    degrees = torch.from_numpy(np.random.default_rng(16).uniform(-30, 30, 7))
    whole = resample(images, boxes, degrees)
    monkeypatch.setattr("icckd.data.augmentation._PIXELS", 350)  # Three images at a time, then one.
    assert torch.equal(resample(images, boxes, degrees), whole)


def test_boxes_have_the_distribution_that_is_promised():
    height, width, count = 40, 40, 20_000
    low, high = 0.08, 0.5
    top, left, tall, wide = random_boxes(7, low, high, count=count, height=height, width=width)
    assert min(top.min(), left.min()) == 0
    assert (top + tall).max() == height
    assert (left + wide).max() == width
    area, log_ratio = tall * wide / (height * width), np.log(wide / tall)
    # Sides are rounded to pixels: the smallest box has sides of about 10.
    assert area.min() > low * 0.9
    assert area.max() < high * 1.06
    assert np.abs(log_ratio).max() < math.log(4 / 3) + 0.12
    assert area.mean() == pytest.approx((low + high) / 2, abs=5e-3)
    assert log_ratio.mean() == pytest.approx(0, abs=5e-3)
    assert log_ratio.std() == pytest.approx(2 * math.log(4 / 3) / math.sqrt(12), abs=5e-3)
    room = height - tall
    assert (top[room > 0] / room[room > 0]).mean() == pytest.approx(0.5, abs=1e-2)


def test_a_box_that_never_fits_is_the_whole_image():
    boxes = random_boxes(8, 1.0, 1.0, count=500, height=30, width=30)
    assert (boxes[2:] <= 30).all()
    # Of area 1 only those as good as square fit, and most draws have another ratio.
    assert (boxes[2:] == 30).all(axis=0).mean() > 0.9
    tiny = random_boxes(9, 1e-9, 1e-9, count=5, height=30, width=20)
    assert (tiny.T == [0, 0, 30, 20]).all()


def test_boxes_of_images_of_many_sizes_are_those_of_each_size_alone():
    sizes = np.random.default_rng(17).integers(8, 60, (2, 3, 50))
    drawn = draw_boxes(np.random.default_rng(18), 0.08, 1.0, (3, 50))
    together = boxes_in(drawn, *sizes)
    for view, image in np.ndindex(3, 50):
        assert np.array_equal(together[:, view, image], boxes_in(drawn[:, view, image], *sizes[:, view, image]))


EVERY = [
    Augmentation(0, flip=False),
    Augmentation(2, flip=True),
    Augmentation(0, flip=True, rotation=20.0),
    Augmentation(0, flip=False, resized_crop=(0.2, 0.8)),
    Augmentation(1, flip=True, rotation=180.0, resized_crop=(0.5, 1.0)),
]


@pytest.mark.parametrize("augmentation", EVERY)
def test_views_stay_within_the_range_of_pixels_and_differ(augmentation):
    images = random_images(5, 12, seed=10)
    both = varied(images, augmentation, 2, seed=11)
    assert both.shape == (10, 3, 12, 12)
    interpolated = augmentation.rotation > 0 or augmentation.resized_crop is not None
    assert both.dtype == (torch.float32 if interpolated else torch.uint8)
    assert both.amin() >= 0
    assert both.amax() < 255 + 1e-3
    first, second = both.chunk(2)
    assert torch.equal(first, second) == (augmentation == Augmentation(0, flip=False))
    assert torch.equal(both, varied(images, augmentation, 2, seed=11))


@pytest.mark.parametrize("augmentation", EVERY)
def test_part_of_the_images_varies_as_it_does_among_all(augmentation):
    images, part = random_images(6, 12, seed=19), slice(2, 5)
    drawn = draw(np.random.default_rng(20), augmentation, 2, 6).part(part)
    alone = augment(images[part], augmentation, 2, parameters(drawn, 12, 12)).view(2, 3, 3, 12, 12)
    assert torch.equal(alone, varied(images, augmentation, 2, seed=20).view(2, 6, 3, 12, 12)[:, part])


def test_angles_lie_within_their_bound_on_both_sides():
    # A vertical stripe through the centre of a large image leans by the angle.
    images = torch.zeros(200, 1, 65, 65, dtype=torch.uint8)
    images[..., 32] = 255
    turned = varied(images, Augmentation(0, flip=False, rotation=10.0), 1, seed=12)
    columns = torch.arange(65.0)
    across = [(row * columns).sum(-1) / row.sum(-1) for row in (turned[:, 0, 12], turned[:, 0, 52])]
    angles = torch.rad2deg(torch.atan((across[1] - across[0]) / 40))
    assert angles.abs().max() < 10.2
    assert angles.min() < -8
    assert angles.max() > 8
    assert angles.std() == pytest.approx(20 / math.sqrt(12), abs=0.8)
