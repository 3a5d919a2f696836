"""Opening an image file, whatever it holds, and turning what it holds upright."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import ExifTags, Image
from PIL.ImageFile import ImageFile

from icckd.errors import UserError

SUFFIXES = (
    ".apng", ".avif", ".bmp", ".dib", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pfm", ".pgm", ".png", ".pnm",
    ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip
Image.init()
# Formats that Pillow decodes itself: others would start programs such as Ghostscript. Older ones have no AVIF.
_FORMATS = tuple(f for f in ("AVIF", "BMP", "DIB", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP") if f in Image.OPEN)
_MOST_PIXELS = 1 << 26
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@contextmanager
def no_warnings() -> Iterator[None]:
    """Within, Pillow does not warn of metadata that are damaged, or that nothing here reads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def open_image(path: Path) -> ImageFile:
    """The image at `path`, not yet decoded, its format told by its content. Raises UserError where it is none that can
    be read, or has too many pixels."""
    try:
        image = Image.open(path, formats=_FORMATS)
    except Exception as error:  # Damaged files make Pillow raise almost anything.
        raise UserError(f"{path} is not an image that can be read: {error}") from error
    if image.width * image.height > _MOST_PIXELS:
        raise UserError(f"{path} has {image.width}×{image.height} pixels; it should have {_MOST_PIXELS} at most")
    # Without a name Pillow does not map the file into memory, for which it takes a turned TIFF's sides the wrong way.
    image.filename = ""
    return image


def load_upright(image: Image.Image) -> Image.Image:
    """`image`, decoded, as a viewer shows it: turned as its EXIF or XMP says, if that is not damaged."""
    # First, because Pillow turns TIFF files itself as it loads them.
    image.load()
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # As above.
        turn = None
    return image if turn is None else image.transpose(turn)
