import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from icckd.data.images.deep_pixels import DeepPicture
from icckd.data.images.pixels import read_picture
from icckd.errors import UserError
from tests.data.images.image_bytes import png, tiff

ORIENTATION = 0x0112
ORIENTATIONS = range(1, 9)


@pytest.fixture
def random():
    return np.random.default_rng(17)


def encoded(image, form, **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def seen(tmp_path, content):
    """The picture in a file of that content: its pixels."""
    path = tmp_path / "image"
    path.write_bytes(content)
    picture = read_picture(path)
    return picture.values if isinstance(picture, DeepPicture) else np.asarray(picture)


def turned(values, orientation):
    """`values` (H, W, …) as stored, as a viewer shows them: what the eight orientations mean."""
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return values[::-1] if orientation in (3, 4, 7, 8) else values


def oriented(orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def of_mode(random, mode):
    """An opaque image of that mode, 6 pixels wide and 5 high."""
    if mode == "I;16":
        return Image.fromarray(random.integers(0, 4096, (5, 6), dtype=np.uint16))
    if mode in ("I", "F"):
        return Image.fromarray(random.integers(0, 256, (5, 6)).astype({"I": np.int32, "F": np.float32}[mode]))
    colours = Image.fromarray(random.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    return colours.quantize(8) if mode == "P" else colours.convert(mode)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize(
    ("form", "mode"),
    [
        *(("PNG", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
        *(("TIFF", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I", "F")),
        *(("JPEG", mode) for mode in ("L", "RGB", "CMYK")),
        *(("WEBP", mode) for mode in ("RGB", "RGBA")),
    ],
)
def test_every_mode_in_every_orientation_is_as_a_viewer_shows_it(tmp_path, random, form, mode, orientation):
    image = of_mode(random, mode)
    options = {"lossless": True} if form == "WEBP" else {}
    upright = Image.open(io.BytesIO(encoded(image, form, **options)))
    deep = mode in ("I;16", "I", "F")
    expected = np.asarray(upright if deep else upright.convert("L" if mode in ("1", "L", "LA") else "RGB"))
    got = seen(tmp_path, encoded(image, form, exif=oriented(orientation), **options))
    assert np.array_equal(got, turned(expected, orientation))
    by_pillow = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded(image, form, exif=oriented(orientation)))))
    assert by_pillow.size == got.shape[1::-1]


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_tiffs_own_orientation_is_applied_once(tmp_path, random, orientation, compression):
    image = of_mode(random, "RGB")
    content = encoded(image, "TIFF", tiffinfo={ORIENTATION: orientation}, compression=compression)
    assert np.array_equal(seen(tmp_path, content), turned(np.asarray(image), orientation))


@pytest.mark.parametrize(
    "damaged",
    [
        b"garbage",
        b"II*\0\xff\xff\xff\xff",
        b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x01\0\x06\0\0\0\0\0\0",
        b"MM\0*\0\0\0\x08\xff\xff\x01\x12",
        b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x63\0\0\0\0\0\0",
    ],
)
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_and_unknown_orientations_leave_the_picture(tmp_path, form, damaged):
    content = encoded(Image.new("RGB", (6, 5), (9, 9, 9)), form, exif=b"Exif\0\0" + damaged)
    assert seen(tmp_path, content).shape == (5, 6, 3)


def with_alpha(colour, alpha):
    return Image.fromarray(np.dstack([colour, alpha]))


def on_black(colour, alpha):
    share = alpha[..., None] / 255 if colour.ndim == 3 else alpha / 255
    return np.rint(colour * share).astype(np.uint8)


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
@pytest.mark.parametrize("channels", [1, 3])
def test_transparent_pixels_are_put_on_black(tmp_path, random, form, channels):
    shape = (5, 6, 3) if channels == 3 else (5, 6)
    colour, alpha = (random.integers(0, 256, s, dtype=np.uint8) for s in (shape, (5, 6)))
    assert np.array_equal(seen(tmp_path, encoded(with_alpha(colour, alpha), form)), on_black(colour, alpha))
    opaque = np.full((5, 6), 255, np.uint8)
    assert np.array_equal(seen(tmp_path, encoded(with_alpha(colour, opaque), form)), colour)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (200, 0, 10)])
def test_alpha_is_the_picture_where_the_colour_is_one_constant(tmp_path, random, form, colour):
    alpha = random.integers(0, 256, (5, 6), dtype=np.uint8)
    image = with_alpha(np.full((5, 6, 3), colour, np.uint8), alpha)
    options = {"lossless": True, "exact": True} if form == "WEBP" else {}
    assert np.array_equal(seen(tmp_path, encoded(image, form, **options)), alpha)
    grey = with_alpha(np.full((5, 6), colour[0], np.uint8), alpha)
    assert form == "WEBP" or np.array_equal(seen(tmp_path, encoded(grey, form)), alpha)


def test_alpha_is_the_picture_where_nothing_but_black_is_visible(tmp_path):
    alpha = np.zeros((5, 6), np.uint8)
    alpha[1:3, 2:4] = 240
    white_where_invisible = np.where(alpha[..., None] > 0, 0, 255).astype(np.uint8).repeat(3, -1)
    assert np.array_equal(seen(tmp_path, encoded(with_alpha(white_where_invisible, alpha), "PNG")), alpha)


def test_an_opaque_image_of_one_colour_keeps_it(tmp_path):
    assert (seen(tmp_path, encoded(Image.new("RGBA", (6, 5), (200, 0, 10, 255)), "PNG")) == (200, 0, 10)).all()


def test_transparent_entries_of_palettes_are_black(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    for form, key in (("PNG", 1), ("GIF", 1), ("PNG", bytes([255, 0]))):
        assert seen(tmp_path, encoded(image, form, transparency=key)).tolist() == [[[10, 20, 30], [0, 0, 0]]]
    assert seen(tmp_path, encoded(image, "PNG", transparency=bytes([255, 51])))[0, 1].tolist() == [8, 10, 12]


@pytest.mark.parametrize(("dtype", "factor"), [(np.uint8, 1), (np.uint16, 250)])
def test_the_transparent_colour_of_a_png_is_black(tmp_path, dtype, factor):
    colours = (np.array([[[10, 20, 30], [40, 50, 60], [10, 20, 31]]]) * factor).astype(dtype)
    assert seen(tmp_path, png(colours, transparent=colours[0, 0])).tolist() == [[[0] * 3, *colours[0, 1:].tolist()]]
    grey = colours[..., :1]
    assert seen(tmp_path, png(grey, transparent=grey[0, 0])).tolist() == [[0, 40 * factor, 0]]


def test_alpha_already_multiplied_in_is_not_applied_again(tmp_path):
    premultiplied = np.array([[[10, 20, 30, 128], [200, 100, 0, 255]]], np.uint8)
    assert abs(seen(tmp_path, tiff(premultiplied, extra=1)).astype(int) - premultiplied[..., :3]).max() <= 1
    deep = premultiplied.astype(np.uint16) * 257
    assert np.array_equal(seen(tmp_path, tiff(deep, extra=1)), deep[..., :3])


@pytest.mark.parametrize("form", ["GIF", "TIFF", "PNG", "WEBP"])
def test_of_several_frames_the_first_is_the_picture(tmp_path, form):
    first, second = (Image.new("RGB", (6, 5), colour) for colour in ((255, 0, 0), (0, 0, 255)))
    red = seen(tmp_path, encoded(first, form, save_all=True, append_images=[second]))[0, 0]
    assert red[0] > 240
    assert red[2] < 15


def test_content_not_the_name_tells_the_format(tmp_path, random):
    image = of_mode(random, "RGB")
    for name in ("a.avif", "a.jpg", "a"):
        image.save(tmp_path / name, "PNG")
        assert np.array_equal(np.asarray(read_picture(tmp_path / name)), np.asarray(image))


def test_files_of_other_content_are_named_escaped(tmp_path):
    path = tmp_path / "caf\udce9\n.png"
    path.write_bytes(b"text" * 99)
    with pytest.raises(UserError, match=r"/caf\\udce9\\n\.png is not an image that can be read"):
        read_picture(path)
