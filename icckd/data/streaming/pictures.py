"""What a worker does: a few image files → one tensor. It keeps nothing from one request to the next."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from icckd.data.augmentation import Drawn, boxes_in
from icckd.data.images.decoding import fit_square
from icckd.data.images.deep_pixels import DeepPicture
from icckd.data.images.image_file import no_warnings
from icckd.data.images.pixels import read_picture
from icckd.errors import UserError

# Pictures that are decoded before boxes are cut from them: the arithmetic of a few boxes takes as long as that of one.
_TOGETHER = 8


class Request(NamedTuple):
    """B images to decode.

    paths: Their files.
    size: Pixels a side.
    drawn: What is drawn for them. With boxes there are V views of each, mirrored or not, the boxes cut from the image
        as it is in its file; without, one, centre-cropped to a square, as images in memory are.
    """

    paths: Sequence[str]
    size: int
    drawn: Drawn


def decode(request: Request) -> Tensor:
    """uint8 (V, B, 3, size, size). Boxes are resized bilinearly, with antialiasing where that shrinks them.

    Raises UserError naming the first file that cannot be read, or is of more than 8 bits.
    """
    paths, size, (place, boxes, _) = request
    with no_warnings():
        if boxes is None:
            squares = [_channels_first(fit_square(_colours(path), size)) for path in paths]
            return torch.from_numpy(np.array([squares], dtype=np.uint8).reshape(1, len(paths), 3, size, size))
        images = np.empty((boxes.shape[1], len(paths), 3, size, size), dtype=np.uint8)
        mirrored = np.zeros(boxes.shape[1:], dtype=bool) if place is None else place[0]
        for start in range(0, len(paths), _TOGETHER):
            part = slice(start, start + _TOGETHER)
            _cut([_colours(path) for path in paths[part]], boxes[:, :, part], mirrored[:, part], images[:, part])
    return torch.from_numpy(images)


def _cut(pictures: Sequence[Image.Image], drawn: np.ndarray, mirrored: np.ndarray, views: np.ndarray) -> None:
    """Put the boxes that are drawn for n pictures, (22, V, n), mirrored or not (V, n), into `views` (V, n, 3, H, H)."""
    heights, widths = np.array([(picture.height, picture.width) for picture in pictures]).T
    boxes = boxes_in(drawn, heights, widths)
    for view, number in np.ndindex(mirrored.shape):
        box, size = boxes[:, view, number].tolist(), views.shape[-1]
        cut = _resized(pictures[number], box, size, mirrored=bool(mirrored[view, number]))
        views[view, number] = _channels_first(cut)


def _colours(path: str) -> Image.Image:
    picture = read_picture(Path(path))
    if isinstance(picture, DeepPicture):
        raise UserError(
            f"{path} has more than 8 bits a channel, which are not streamed, as only all images together tell their "
            "range; leave data.streaming out, or save it with 8 bits"
        )
    return picture.convert("RGB")


def _resized(picture: Image.Image, box: Sequence[int], size: int, *, mirrored: bool) -> np.ndarray:
    top, left, tall, wide = box
    if mirrored:  # It is the mirror image that boxes lie in.
        left = picture.width - wide - left
    # Cropped first: what is outside the box then plays no part.
    cropped = picture.crop((left, top, left + wide, top + tall))
    pixels = np.asarray(cropped.resize((size, size), Image.Resampling.BILINEAR))
    return pixels[:, ::-1] if mirrored else pixels


def _channels_first(pixels: np.ndarray) -> np.ndarray:
    return np.moveaxis(pixels, -1, 0)
