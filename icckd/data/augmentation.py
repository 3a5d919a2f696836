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
_PIXELS = 1 << 22  # Resampled at a time: what that takes beside the images is then less than 100 MB.


class Augmentation(NamedTuple):
    """How a training image is varied, in this order.

    Attributes:
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


class Drawn(NamedTuple):
    """What is drawn for V views of each of B images; None where the augmentation has no such part.

    place: int64 (3, V, B): whether the image is mirrored, 1 or 0; the crop's top and left in the padded image.
    boxes: float64 (22, V, B): the numbers of which `boxes_in` makes boxes in images of any size.
    degrees: float64 (V, B): the angles.
    """

    place: np.ndarray | None
    boxes: np.ndarray | None
    degrees: np.ndarray | None

    def part(self, images: slice) -> "Drawn":
        """What is drawn for these of the images."""
        return Drawn(*(None if numbers is None else numbers[..., images] for numbers in self))


NOTHING = Drawn(None, None, None)


class Parameters(NamedTuple):
    """What `augment` does to V views of each of B images of one size, on their device; None: nothing of the kind.

    place: int64 (3, V, B), and degrees: float64 (V, B), as in Drawn.
    boxes: int64 (4, V, B): top, left, height, width, in pixels.
    """

    place: Tensor | None
    boxes: Tensor | None
    degrees: Tensor | None


def draw(
    random: np.random.Generator,
    augmentation: Augmentation,
    views: int,
    count: int,
    areas: np.ndarray | None = None,
) -> Drawn:
    """What varies `views` views of each of `count` images, whatever their size and device.

    `areas`, float64 (count, 2), are the bounds of each image's boxes in place of those of the augmentation, which has
    some; the same ones draw the same numbers.
    """
    padding, shape = augmentation.crop_padding, (views, count)
    place = boxes = degrees = None
    if padding or augmentation.flip:
        place = np.zeros((3, *shape), dtype=np.int64)
        if augmentation.flip:
            place[0] = random.random(shape) < 0.5
        if padding:
            place[1:] = random.integers(0, 2 * padding + 1, size=(2, *shape))
    if augmentation.resized_crop is not None:
        low, high = augmentation.resized_crop if areas is None else areas.T
        boxes = draw_boxes(random, low, high, shape)
    if augmentation.rotation > 0:
        degrees = random.uniform(-augmentation.rotation, augmentation.rotation, shape)
    return Drawn(place, boxes, degrees)


def parameters(drawn: Drawn, height: int, width: int) -> Parameters:
    """`drawn` for images of (height, width), on the CPU."""
    boxes = None if drawn.boxes is None else boxes_in(drawn.boxes, height, width)
    return Parameters(
        *(None if numbers is None else torch.from_numpy(numbers) for numbers in (drawn.place, boxes, drawn.degrees))
    )


def augment(images: Tensor, augmentation: Augmentation, views: int, how: Parameters) -> Tensor:
    """`views` variations of each of B images, uint8 (B, C, H, W), with the parameters `how`.

    Returns (views · B, C, H, W), the first view of every image, then the second: uint8, or float32 in [0, 255] where
    pixels are interpolated. Nothing waits for the images' device, where `how` is there too.
    """
    place, boxes, degrees = (None if numbers is None else numbers.flatten(-2) for numbers in how)
    if place is None:
        varied = images.repeat(views, 1, 1, 1) if views > 1 else images
    else:
        image = torch.arange(len(images), device=images.device).repeat(views)
        forms = [images, images.flip(-1)] if augmentation.flip else [images]
        varied = crop(forms, augmentation.crop_padding, torch.cat([image[None], place]))
    return varied if boxes is degrees is None else resample(varied, boxes, degrees)


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
    random: np.random.Generator, low: float | np.ndarray, high: float | np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
    """What `boxes_in` makes boxes of, float64 (22, *shape): ten areas, ten aspect ratios and a place each.

    Areas are uniform in [low, high], numbers or arrays that fit `shape`, as fractions of the image's; ratios
    log-uniform in [3/4, 4/3]; places uniform in [0, 1), of what room there is.
    """
    areas = random.uniform(low, high, (_ATTEMPTS, *shape))
    ratios = np.exp(random.uniform(*_LOG_RATIOS, (_ATTEMPTS, *shape)))
    return np.concatenate([areas, ratios, random.random((2, *shape))])


def boxes_in(drawn: np.ndarray, height: int | np.ndarray, width: int | np.ndarray) -> np.ndarray:
    """Boxes in images of (height, width), numbers or arrays (*shape): int64 (4, *shape), top, left, height, width.

    As torchvision's RandomResizedCrop ("Inception-style", Szegedy et al. 2015): the first of the areas and ratios that
    the image can hold, sides rounded to pixels; if it can hold none, all of it.
    """
    areas, ratios, place = np.split(drawn, [_ATTEMPTS, 2 * _ATTEMPTS])
    areas = height * width * areas
    heights, widths = np.rint(np.sqrt([areas / ratios, areas * ratios])).astype(np.int64)
    fits = (heights >= 1) & (heights <= height) & (widths >= 1) & (widths <= width)
    first, any_fits = fits.argmax(axis=0)[None], fits.any(axis=0)
    tall, wide = (
        np.where(any_fits, np.take_along_axis(sides, first, axis=0)[0], whole)
        for sides, whole in ((heights, height), (widths, width))
    )
    top, left = place * [height - tall + 1, width - wide + 1]
    return np.stack([top.astype(np.int64), left.astype(np.int64), tall, wide])


def resample(images: Tensor, boxes: Tensor | None, degrees: Tensor | None) -> Tensor:
    """One box of each of (B, C, H, W) `images` resized to (H, W), then turned; interpolated once: float32.

    `boxes` is int64 (4, B): top, left, height, width; None: the whole image. `degrees` is (B,), counter-clockwise about
    the centre; None: 0. Bilinear between pixel centres. Nothing outside a box is looked at; what a turn brings in from
    outside is zero. Antialiasing would change nothing: no box is larger than what it becomes, so nothing is shrunk.
    """
    step = max(1, _PIXELS // (images.shape[-2] * images.shape[-1]))
    if len(images) <= step:
        return _resample_part(images, boxes, degrees)
    varied = torch.empty(images.shape, device=images.device)
    for start in range(0, len(images), step):
        part = slice(start, start + step)
        varied[part] = _resample_part(
            images[part],
            None if boxes is None else boxes[:, part],
            None if degrees is None else degrees[part],
        )
    return varied


def _resample_part(images: Tensor, boxes: Tensor | None, degrees: Tensor | None) -> Tensor:
    height, width = images.shape[-2:]
    if boxes is None:
        assert degrees is not None
        grid = _turned(height, width, degrees, unit=(2 / width, 2 / height))
        return grid_sample(images.float(), grid, align_corners=False)
    y, x = torch.arange(height, device=images.device).view(1, -1, 1), torch.arange(width, device=images.device)
    if degrees is not None:
        x, y = _turned(height, width, degrees, unit=(1, 1)).unbind(-1)
        x, y = x + (width - 1) / 2, y + (height - 1) / 2
    top, left, tall, wide = boxes.float().view(4, -1, 1, 1)
    grid = torch.stack(torch.broadcast_tensors(_within(x, left, wide, width), _within(y, top, tall, height)), dim=-1)
    # Beyond a box's edge is more of the edge, which fades as what is beyond an image does by itself.
    varied = grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
    return varied if degrees is None else varied.mul_((_fading(x, width) * _fading(y, height)).unsqueeze(1))


def _turned(height: int, width: int, degrees: Tensor, unit: tuple[float, float]) -> Tensor:
    """Where each pixel of an image turned by `degrees` (B,) comes from: float32 (B, H, W, 2), x and y from the centre.

    What is shown at (x, y), y downwards, comes from (x cos − y sin, x sin + y cos), here times `unit`: by one addition,
    where `affine_grid` takes a matrix product and fifteen times as long.
    """
    angles = degrees.double()[:, None] * (math.pi / 180)
    cos, sin = angles.cos(), angles.sin()
    right, down = (torch.arange(n, device=angles.device) - (n - 1) / 2 for n in (width, height))
    along_x = torch.stack([cos * right * unit[0], sin * right * unit[1]], dim=-1).float()
    along_y = torch.stack([-sin * down * unit[0], cos * down * unit[1]], dim=-1).float()
    return along_x[:, None] + along_y[:, :, None]


def _within(place: Tensor, start: Tensor, length: Tensor, size: int) -> Tensor:
    """Where, as `grid_sample` counts, `place` among the `size` pixels of a side is in [start, start + length)."""
    inside = (place + 0.5) * (length / size) - 0.5
    return (2 * (start + inside.clamp(min=0).minimum(length - 1)) + 1) / size - 1


def _fading(place: Tensor, size: int) -> Tensor:
    """How much of what is seen at `place` is image: 1 within it, falling to 0 over a pixel beyond its last ones."""
    return torch.minimum(place + 1, size - place).clamp(0, 1)
