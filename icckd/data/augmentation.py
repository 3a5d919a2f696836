"""How training images vary: all views of a batch at once, on their device, drawn from one stream of random numbers.

Crops and mirroring move pixels and stay exact; rotations and resized crops interpolate.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

# As torchvision's RandomResizedCrop has them.
_LOG_RATIOS = (math.log(3 / 4), math.log(4 / 3))
_ATTEMPTS = 10


class Augmentation(NamedTuple):
    """How a training image is varied, in this order.

    flip: Mirror it left to right with probability 1/2.
    crop_padding: Pad it with so many zero pixels a side, and crop it back to its size at a random place.
    resized_crop: Crop a random box whose area is between these fractions of the image's, and resize that to the
        image's size; None: do not.
    rotation: Turn it by an angle between −rotation and +rotation, in degrees.
    """

    crop_padding: int
    flip: bool
    rotation: float = 0.0
    resized_crop: tuple[float, float] | None = None


def augment(images: Tensor, augmentation: Augmentation, views: int, random: np.random.Generator) -> Tensor:
    """`views` independent variations of each of B images, uint8 (B, C, H, W).

    Returns (views · B, C, H, W), the first view of every image, then the second: uint8, or float32 in [0, 255] where
    pixels are interpolated. What is drawn depends on the arguments alone, not on the device.
    """
    count, (height, width) = views * len(images), images.shape[-2:]
    varied = _flip_and_crop(images, augmentation, views, random)
    if augmentation.resized_crop is not None:
        boxes = draw_boxes(random, *augmentation.resized_crop, count=count, height=height, width=width)
        varied = resized_crop(varied, torch.from_numpy(boxes).to(images.device))
    if augmentation.rotation > 0:
        degrees = random.uniform(-augmentation.rotation, augmentation.rotation, count)
        varied = rotate(varied, torch.from_numpy(degrees).to(images.device))
    return varied


def _flip_and_crop(images: Tensor, augmentation: Augmentation, views: int, random: np.random.Generator) -> Tensor:
    padding, flip = augmentation.crop_padding, augmentation.flip
    if not padding and not flip:
        return images.repeat(views, 1, 1, 1)
    count = views * len(images)
    place = np.zeros((4, count), dtype=np.int64)
    place[0] = np.tile(np.arange(len(images)), views)
    if flip:
        place[1] = random.random(count) < 0.5
    if padding:
        place[2:] = random.integers(0, 2 * padding + 1, size=(2, count))
    forms = [images, images.flip(-1)] if flip else [images]
    return crop(forms, padding, torch.from_numpy(place).to(images.device))


def crop(forms: Sequence[Tensor], padding: int, place: Tensor) -> Tensor:
    """Crops of the images zero-padded by `padding` pixels a side, each of the images' own size.

    `forms` are (B, C, H, W) each: the images as they are, and perhaps otherwise. `place` is int64 (4, n), a column per
    crop: which image; which form of it; the crop's top and left in the padded image, in [0, 2 · padding].
    """
    count, channels, height, width = forms[0].shape
    padded = forms[0].new_zeros(count, len(forms), channels, height + 2 * padding, width + 2 * padding)
    for number, form in enumerate(forms):
        padded[:, number, :, padding : padding + height, padding : padding + width] = form
    windows = padded.unfold(3, height, 1).unfold(4, width, 1)
    if padded.device.type == "cpu":
        # NumPy copies a crop by rows, PyTorch by elements: four times slower.
        image, number, top, left = place.numpy()
        return torch.from_numpy(windows.numpy()[image, number, :, top, left])
    image, number, top, left = place
    # Indices with a slice between them: the indexed axis comes first, (n, C, H, W).
    return windows[image, number, :, top, left]


def draw_boxes(
    random: np.random.Generator, low: float, high: float, *, count: int, height: int, width: int
) -> np.ndarray:
    """`count` boxes in an image of (height, width), int64 (4, count): top, left, height, width.

    As torchvision's RandomResizedCrop ("Inception-style", Szegedy et al. 2015): the area is uniform in [low, high] of
    the image's, the aspect ratio log-uniform in [3/4, 4/3], sides are rounded to pixels, the place is uniform. A box
    that the image cannot hold is drawn again, ten times in all; then it is the whole image.
    """
    area = height * width * random.uniform(low, high, (_ATTEMPTS, count))
    ratio = np.exp(random.uniform(*_LOG_RATIOS, (_ATTEMPTS, count)))
    heights, widths = np.rint(np.sqrt([area / ratio, area * ratio])).astype(np.int64)
    fits = (heights >= 1) & (heights <= height) & (widths >= 1) & (widths <= width)
    first, each = fits.argmax(axis=0), np.arange(count)
    tall = np.where(fits.any(axis=0), heights[first, each], height)
    wide = np.where(fits.any(axis=0), widths[first, each], width)
    top, left = random.random((2, count)) * [height - tall + 1, width - wide + 1]
    return np.stack([top.astype(np.int64), left.astype(np.int64), tall, wide])


def resized_crop(images: Tensor, boxes: Tensor) -> Tensor:
    """One box of each of (B, C, H, W) `images`, resized to (H, W): float32.

    `boxes` is int64 (4, B): top, left, height, width. Bilinear between pixel centres, and nothing outside the box is
    looked at. Antialiasing would change nothing: no box is larger than what it becomes, so nothing is ever shrunk.
    """
    height, width = images.shape[-2:]
    top, left, tall, wide = boxes.float().unsqueeze(-1)
    y, x = _centres(top, tall, height), _centres(left, wide, width)
    along_x, along_y = torch.stack([x, torch.zeros_like(x)], -1), torch.stack([torch.zeros_like(y), y], -1)
    return grid_sample(images.float(), _grid(along_x, along_y), padding_mode="border", align_corners=False)


def _centres(start: Tensor, length: Tensor, size: int) -> Tensor:
    """Where `size` pixels lie that divide [start, start + length), (B, 1) each, for `grid_sample`: (B, size)."""
    inside = (torch.arange(size, device=start.device) + 0.5) * (length / size) - 0.5
    return (2 * (start + inside.clamp(min=0).minimum(length - 1)) + 1) / size - 1


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """(B, C, H, W) `images` turned counter-clockwise about their centres by `degrees` (B,): float32.

    Bilinear; what comes from outside the image is zero.
    """
    height, width = images.shape[-2:]
    angle = degrees.double() * (math.pi / 180)
    cos, sin = angle.cos(), angle.sin()
    y, x = (torch.arange(n, device=angle.device)[:, None] - (n - 1) / 2 for n in (height, width))
    # What is shown at (x, y) from the centre, y downwards, comes from (x cos − y sin, x sin + y cos).
    half = angle.new_tensor([width / 2, height / 2])
    along_x, along_y = torch.stack([cos, sin], -1) / half, torch.stack([-sin, cos], -1) / half
    grid = _grid((x * along_x[:, None]).float(), (y * along_y[:, None]).float())
    return grid_sample(images.float(), grid, align_corners=False)


def _grid(along_x: Tensor, along_y: Tensor) -> Tensor:
    """(B, W, 2) + (B, H, 2) → the grid (B, H, W, 2) of `grid_sample`; `affine_grid` takes fifteen times as long."""
    return along_x[:, None] + along_y[:, :, None]
