"""What a worker makes of files, beside Pillow alone and PyTorch's interpolation of boxes that are cut by hand."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch.nn.functional import interpolate

from icckd.data.augmentation import NOTHING, Augmentation, boxes_in, draw
from icckd.data.streaming.pictures import Request, decode
from icckd.errors import UserError


@pytest.fixture(scope="module")
def paths(photographs):
    return [str(path) for path in sorted((photographs / "train").rglob("*.jpg"))[:9]]


def test_images_are_cropped_to_squares_and_resized(paths):
    images = decode(Request(paths, 12, NOTHING))
    assert images.shape == (1, 9, 3, 12, 12)
    for image, path in zip(images[0], paths, strict=True):
        expected = np.array(ImageOps.fit(Image.open(path), (12, 12)))
        assert np.array_equal(image.permute(1, 2, 0).numpy(), expected)


def test_boxes_are_cut_from_the_mirrored_image_at_its_own_size_and_resized(paths):
    drawn = draw(np.random.default_rng(3), Augmentation(0, flip=True, resized_crop=(0.1, 1.0)), 2, len(paths))
    images = decode(Request(paths, 24, drawn))
    assert images.shape == (2, 9, 3, 24, 24)
    assert 0 < drawn.place[0].sum() < 18
    for view, number in np.ndindex(2, 9):
        pixels = torch.from_numpy(np.array(Image.open(paths[number]))).permute(2, 0, 1).double()
        if drawn.place[0, view, number]:
            pixels = pixels.flip(-1)
        top, left, tall, wide = boxes_in(drawn.boxes[:, view, number], *pixels.shape[1:])
        box = pixels[None, :, top : top + tall, left : left + wide]
        expected = interpolate(box, (24, 24), mode="bilinear", antialias=True, align_corners=False)[0]
        torch.testing.assert_close(images[view, number].double(), expected, atol=1.01, rtol=0)


def test_grey_and_transparent_images_become_three_channels(tmp_path):
    grey = np.random.default_rng(4).integers(0, 256, (10, 10), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    alpha = Image.merge("LA", [Image.new("L", (10, 10)), Image.fromarray(grey)])
    alpha.save(tmp_path / "alpha.png")
    images = decode(Request([str(tmp_path / name) for name in ("grey.png", "alpha.png")], 10, NOTHING))
    assert torch.equal(images[0], torch.from_numpy(grey).expand(2, 3, 10, 10))


def deep(path):
    Image.fromarray(np.arange(100, dtype=np.uint16).reshape(10, 10) * 300).save(path)


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (deep, "has more than 8 bits a channel, which are not streamed, .* leave data.streaming out"),
        (lambda path: path.write_bytes(b"no image"), "is not an image that can be read"),
        (lambda path: None, "is not an image that can be read: .*No such file"),
    ],
)
def test_what_cannot_be_decoded_is_named(tmp_path, write, words):
    write(tmp_path / "one.png")
    with pytest.raises(UserError, match=rf"one\.png {words}"):
        decode(Request([str(tmp_path / "one.png")], 10, NOTHING))
