"""Decoding many image files into one uint8 tensor, in threads."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from rich.progress import track
from torch import Tensor

from icckd.errors import UserError
from icckd.progress import console

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
# Formats that Pillow decodes itself: others would start programs such as Ghostscript.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_MOST_PIXELS = 1 << 26
_MOST_BYTES = 1 << 35
_CHUNK = 1024
_SMALLEST_SIZE, _LARGEST_SIZE = 8, 1024


def image_size(path: Path) -> int:
    """The side of the largest square in the image at `path`. Raises UserError where that is no size to train on."""
    with _open(path) as image:
        size = min(image.size)
    if not _SMALLEST_SIZE <= size <= _LARGEST_SIZE:
        raise UserError(
            f"{path}, the first image, has a shorter side of {size} pixels; set data.image_size to what images should "
            f"be resized to, from {_SMALLEST_SIZE} to {_LARGEST_SIZE} pixels a side"
        )
    return size


def decode_images(paths: Sequence[Path], size: int, title: str) -> tuple[Tensor, bool]:
    """The images at `paths`, centre-cropped to squares and resized: uint8 (N, 3, size, size); and: are all grey?

    Shows progress under `title` on standard error. Raises UserError naming the first file that is no image.
    """
    if len(paths) * 3 * size**2 > _MOST_BYTES:
        raise UserError(
            f"{title}: {len(paths)} images of {size}×{size} pixels take more than {_MOST_BYTES >> 30} GiB; "
            "set data.image_size to a smaller size"
        )
    images = torch.empty(len(paths), 3, size, size, dtype=torch.uint8)
    grey = np.zeros(len(paths), dtype=bool)

    def decode(index: int) -> None:
        pixels, grey[index] = _decode(paths[index], size)
        images[index] = torch.from_numpy(pixels).permute(2, 0, 1)

    if not console.is_terminal:
        console.print(f"{title}: decoding {len(paths)} images")
    starts = range(0, len(paths), _CHUNK)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in track(starts, title, console=console, transient=True, disable=not console.is_terminal):
            for _ in pool.map(decode, range(start, min(start + _CHUNK, len(paths)))):
                pass
    return images, bool(grey.all())


def _decode(path: Path, size: int) -> tuple[np.ndarray, bool]:
    """uint8 (size, size, 3), and whether the file is a grey image."""
    with _open(path) as image:
        try:
            picture = _eight_bit(image)
            grey = picture.mode in ("1", "L", "LA")
            picture = picture.convert("RGB")
            if picture.size != (size, size):
                picture = ImageOps.fit(picture, (size, size))
            return np.array(picture), grey
        except Exception as error:  # Damaged files make Pillow raise almost anything.
            raise UserError(f"{path} is a damaged image: {error}") from error


def _open(path: Path) -> Image.Image:
    try:
        image = Image.open(path, formats=_FORMATS)
    except Exception as error:  # As above.
        raise UserError(f"{path} is not an image that can be read: {error}") from error
    if image.width * image.height > _MOST_PIXELS:
        raise UserError(f"{path} has {image.width}×{image.height} pixels; it should have {_MOST_PIXELS} at most")
    return image


def _eight_bit(image: Image.Image) -> Image.Image:
    # Pillow's own conversion of 16-bit grey cuts every value above 255 off.
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).clip(0, 0xFFFF) >> 8).astype(np.uint8))
    return image
