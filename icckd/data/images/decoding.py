"""Decoding many image files into uint8 tensors, in threads."""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from rich.progress import track
from torch import Tensor

from icckd.console import console, say
from icckd.data.images.deep_pixels import DeepPicture
from icckd.data.images.image_file import open_image
from icckd.data.images.pixels import read_picture
from icckd.errors import UserError

_MOST_BYTES = 1 << 35
_CHUNK = 1024
_SMALLEST_SIZE, _LARGEST_SIZE = 8, 1024


class _Extent(NamedTuple):
    """Whether a deep picture holds floats, and its largest value."""

    floats: bool
    largest: float


@dataclass
class _Part:
    """Images to decode, and what is known of them: `images` uint8 (N, 3, H, H), whether each is grey, the deep ones."""

    title: str
    paths: Sequence[Path]
    images: Tensor
    grey: np.ndarray
    deep: dict[int, _Extent] = field(default_factory=dict)


def image_size(path: Path) -> int:
    """The side of the largest square in the image at `path`. Raises UserError where that is no size to train on."""
    with open_image(path) as image:
        size = min(image.size)
    if not _SMALLEST_SIZE <= size <= _LARGEST_SIZE:
        raise UserError(
            f"{path}, the first image, has a shorter side of {size} pixels; set data.image_size to what images should "
            f"be resized to, from {_SMALLEST_SIZE} to {_LARGEST_SIZE} pixels a side"
        )
    return size


def decode_images(parts: Mapping[str, Sequence[Path]], size: int, title: str) -> tuple[list[Tensor], bool]:
    """The images of each part, centre-cropped to squares and resized: uint8 (N, 3, size, size); and: are all grey?

    Images of 8 bits keep their values. Deeper ones are scaled by what holds the values of all of them, in all parts:
    integers by the least 2^b − 1, floats by 1 or else 255. A line on standard error says so. They are decoded
    twice, first for their largest value. Shows progress under `title` and the parts' names on standard error. Raises
    UserError naming the first file that is no image, or holds values below 0, or floats above 255 or not finite.
    """
    decoded = [_new_part(f"{title} {name}", paths, size) for name, paths in parts.items()]
    for part in decoded:
        _for_each(part, "decoding", range(len(part.paths)), partial(_decode, part, size))
    if any(part.deep for part in decoded):
        scale = _scale(title, decoded)
        for part in decoded:
            _for_each(part, "scaling", sorted(part.deep), partial(_decode_deep, part, size, scale))
    return [part.images for part in decoded], all(part.grey.all() for part in decoded)


def _new_part(title: str, paths: Sequence[Path], size: int) -> _Part:
    if len(paths) * 3 * size**2 > _MOST_BYTES:
        raise UserError(
            f"{title}: {len(paths)} images of {size}×{size} pixels take more than {_MOST_BYTES >> 30} GiB; "
            "set data.image_size to a smaller size, or stream an image-folder: data.streaming"
        )
    images = torch.empty(len(paths), 3, size, size, dtype=torch.uint8)
    return _Part(title, paths, images, np.zeros(len(paths), dtype=bool))


def _for_each(part: _Part, doing: str, indices: Sequence[int], decode: Callable[[int], None]) -> None:
    if not console.is_terminal and indices:
        say(f"{part.title}: {doing} {len(indices)} images")
    starts = range(0, len(indices), _CHUNK)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in track(starts, part.title, console=console, transient=True, disable=not console.is_terminal):
            for _ in pool.map(decode, indices[start : start + _CHUNK]):
                pass


def _decode(part: _Part, size: int, index: int) -> None:
    """Puts an image of 8 bits in its place, and of a deeper one its extent."""
    picture = read_picture(part.paths[index])
    if isinstance(picture, DeepPicture):
        part.deep[index] = _extent(part.paths[index], picture.values)
        part.grey[index] = picture.values.ndim == 2
    else:
        part.images[index] = torch.from_numpy(np.atleast_3d(fit_square(picture, size))).permute(2, 0, 1)
        part.grey[index] = picture.mode == "L"


def _decode_deep(part: _Part, size: int, scale: Mapping[bool, int], index: int) -> None:
    """Puts a deep image in its place, `scale` telling for integers and for floats (True) the value that becomes 255."""
    picture = read_picture(part.paths[index])
    assert isinstance(picture, DeepPicture)
    most = scale[part.deep[index].floats]
    for channel, values in enumerate(np.moveaxis(np.atleast_3d(picture.values), -1, 0)):
        fitted = fit_square(Image.fromarray(values.astype(np.float32)), size)
        pixels = np.rint(fitted.clip(0, most) * (255 / most)).astype(np.uint8)
        channels = slice(None) if part.grey[index] else channel
        part.images[index, channels] = torch.from_numpy(255 - pixels if picture.negative else pixels)


def fit_square(picture: Image.Image, size: int) -> np.ndarray:
    return np.array(picture if picture.size == (size, size) else ImageOps.fit(picture, (size, size)))


def _extent(path: Path, values: np.ndarray) -> _Extent:
    floats = values.dtype.kind == "f"
    if floats and not np.isfinite(values).all():
        raise UserError(f"{path} holds values that are not finite; an image should hold numbers only")
    least, largest = values.min().item(), values.max().item()
    if least < 0 or (floats and largest > 255):
        right = "floats from 0 to 1, or from 0 to 255" if floats else "no integers below 0"
        raise UserError(f"{path} holds the value {_exactly(least if least < 0 else largest)}; it should hold {right}")
    return _Extent(floats, largest)


def _exactly(value: float) -> str:
    return f"{value:.9g}" if isinstance(value, float) else str(value)


def _scale(title: str, parts: Sequence[_Part]) -> dict[bool, int]:
    """For integers and for floats (True) the value that becomes 255. Says so in one line."""
    extents = [extent for part in parts for extent in part.deep.values()]
    scale, words = {}, []
    for floats in (False, True):
        values = [extent.largest for extent in extents if extent.floats == floats]
        largest = max(values, default=0)
        scale[floats] = (1 if largest <= 1 else 255) if floats else max(1, (1 << int(largest).bit_length()) - 1)
        if values:
            kind = "float images" if floats else "images of more than 8 bits"
            words.append(f"{len(values)} {kind} hold values up to {_exactly(largest)}, scaled from 0…{scale[floats]}")
    if others := sum(len(part.paths) for part in parts) - len(extents):
        words.append(f"{others} of 8 bits stay as they are")
    say(f"{title}: {'; '.join(words)}")
    return scale
