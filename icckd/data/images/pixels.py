"""What an image file shows: one picture on a black ground, of 8 bits or deeper."""

from pathlib import Path

from PIL import Image

from icckd.data.images.deep_pixels import DeepPicture, read_deep
from icckd.data.images.image_file import load_upright, open_image
from icckd.errors import UserError


def read_picture(path: Path) -> Image.Image | DeepPicture:
    """What the file at `path`, or the first of its pages or frames, shows: mode L (grey) or RGB, or a deep picture.

    It is turned upright and put on black where it is transparent. If all its pixels have one colour, or no visible
    pixel is anything but black, the picture is in the transparency, and that is returned, as grey. Raises UserError
    naming the file where it cannot be read.
    """
    with open_image(path) as image:
        try:
            deep = read_deep(path, image)
            return _eight_bit(load_upright(image)) if deep is None else deep
        except UserError:
            raise
        except Exception as error:  # Damaged files make Pillow raise almost anything.
            raise UserError(f"{path} is a damaged image: {error}") from error


def _eight_bit(image: Image.Image) -> Image.Image:
    grey = image.mode in ("1", "L", "LA", "La")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        return _on_black(_as_mode(image, "LA" if grey else "RGBA"))
    return _as_mode(image, "L" if grey else "RGB")


def _on_black(image: Image.Image) -> Image.Image:
    alpha, colour = image.getchannel("A"), image.convert(image.mode[:-1])
    if alpha.getextrema() == (255, 255):
        return colour
    picture = Image.composite(colour, Image.new(colour.mode, colour.size), alpha)
    lows_and_highs = [band.getextrema() for band in colour.split()]
    one_colour = all(low == high for low, high in lows_and_highs)
    return alpha if one_colour or picture.getbbox() is None else picture


def _as_mode(image: Image.Image, mode: str) -> Image.Image:
    return image if image.mode == mode else image.convert(mode)
