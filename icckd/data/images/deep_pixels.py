"""Pictures of more than 8 bits, as the numbers in their files.

Pillow reads grey ones, but of colours it keeps the upper 8 of 16 bits only: a 12-bit picture in a 16-bit file would be
black. So such a file is decoded twice, as if its numbers began with the one byte and with the other.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, PLANAR_CONFIGURATION, SAMPLEFORMAT

from icckd.data.images.image_file import load_upright, open_image
from icckd.errors import UserError

_OPAQUE = 0xFFFF
_UNSIGNED, _SIGNED = (1,), (2,)


class DeepPicture(NamedTuple):
    """`values`: integers or float32, (H, W) of a grey picture or (H, W, 3) of a coloured one, in a range that only the
    whole data set tells. `negative`: the least of them is white, not black."""

    values: np.ndarray
    negative: bool = False


def read_deep(path: Path, image: ImageFile) -> DeepPicture | None:
    """The picture in `image`, opened from `path`, as numbers, upright and on black; None, undecoded, if 8 bits hold it.

    Raises UserError where it can be read to 8 bits only, and whatever Pillow raises where it is damaged.
    """
    codec, rawmode = _coding(image)
    if image.mode in ("RGB", "RGBA") and (";16" in rawmode or max(_tiff_tag(image, BITSPERSAMPLE) or (8,)) > 8):
        if codec == "ppm_plain" or _tiff_tag(image, PLANAR_CONFIGURATION) == 2:
            raise UserError(f"{path} holds 16-bit colours in a form that is read to 8 bits only; save it as a PNG")
        return DeepPicture(_colours(path, rawmode, image.info.get("transparency")))
    sample_format = _tiff_tag(image, SAMPLEFORMAT, _UNSIGNED)
    signed_bytes = image.mode == "L" and sample_format == _SIGNED
    if image.mode.startswith(("I", "F")) or signed_bytes:
        negative = _tiff_tag(image, PHOTOMETRIC_INTERPRETATION) == 0
        values = np.asarray(_decode_as(image, rawmode) if codec == "ppm" else load_upright(image))
        if signed_bytes:
            values = values.view(np.int8)
        elif image.mode == "I" and sample_format == _UNSIGNED:
            values = values.view(np.uint32)
        key = image.info.get("transparency")
        return DeepPicture(values if key is None else _on_black(values, _seen_through(values == key)), negative)
    return None


def _coding(image: ImageFile) -> tuple[str, str]:
    """The names of the decoder and the raw mode that Pillow would decode `image` with; empty where there are none."""
    if not image.tile:
        return "", ""
    codec, _, _, arguments = image.tile[0]
    rawmode, *others = (arguments,) if isinstance(arguments, str) else arguments or ("",)
    # Netpbm's own decoders are given the largest value that the file may hold.
    deep = codec.startswith("ppm") and others[0] > 255
    return codec, f"{image.mode};16B" if deep else rawmode


def _decode_as(image: ImageFile, rawmode: str) -> Image.Image:
    """`image` decoded as if its file held `rawmode`, and turned upright."""
    tiles = []
    for codec, extents, offset, arguments in image.tile:
        changed = (rawmode, *arguments[1:]) if isinstance(arguments, tuple) else rawmode
        decoding = ("raw", extents, offset, (rawmode, 0, 1)) if codec == "ppm" else (codec, extents, offset, changed)
        # A plain tuple in older Pillows, a named one in newer ones.
        tiles.append(tuple.__new__(type(image.tile[0]), decoding))
    image.tile = tiles
    return load_upright(image)


def _bytes(path: Path, rawmode: str) -> np.ndarray:
    """uint8 (H, W, bands): the file at `path` decoded as if it held `rawmode`."""
    with open_image(path) as image:
        return np.asarray(_decode_as(image, rawmode))


def _colours(path: Path, rawmode: str, key: Sequence[int] | None) -> np.ndarray:
    """uint16 (H, W) or (H, W, 3): the 16-bit colours in `path` on black, the colour `key` being transparent."""
    if rawmode == "LA;16B":
        # Grey and alpha take the bytes of four colours of 8 bits.
        grey_and_alpha = np.ascontiguousarray(_bytes(path, "RGBA")).view(">u2")
        return _on_black(grey_and_alpha[..., 0], grey_and_alpha[..., 1])
    bands, order = rawmode.replace("RGBa", "RGBA").split(";16")
    first, second = (_bytes(path, f"{bands};16{byte}").astype(np.uint16) for byte in "BL")
    # N: in the order of this machine.
    big_endian = order == "B" or (order == "N" and sys.byteorder == "big")
    values = first << 8 | second if big_endian else second << 8 | first
    colours = values[..., :3]
    if key is not None:
        return _on_black(colours, _seen_through((colours == key).all(-1)))
    if values.shape[-1] == 4:
        return _on_black(colours, values[..., 3], multiplied="RGBa" in rawmode)
    return colours


def _seen_through(transparent: np.ndarray) -> np.ndarray:
    return np.where(transparent, np.uint16(0), np.uint16(_OPAQUE))


def _on_black(colours: np.ndarray, alpha: np.ndarray, multiplied: bool = False) -> np.ndarray:
    """`colours` (H, W) or (H, W, 3) under `alpha`, uint16 (H, W), if not `multiplied` by it already; or `alpha` itself,
    where that is the picture: where all pixels have one colour or no visible one is anything but black."""
    if alpha.min() == _OPAQUE:
        return colours
    shares = (alpha / np.float32(_OPAQUE)).reshape(*alpha.shape, *[1] * (colours.ndim - 2))
    picture = colours if multiplied else np.rint(colours * shares).astype(colours.dtype)
    return alpha if (colours == colours[0, 0]).all() or not picture.any() else picture


def _tiff_tag(image: ImageFile, number: int, default: Any = None) -> Any:
    """What a TIFF file says under that number, or else `default`; None if the file is no TIFF."""
    tags = getattr(image, "tag_v2", None)
    return None if tags is None else tags.get(number, default)
