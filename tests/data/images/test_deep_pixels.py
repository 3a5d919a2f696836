import numpy as np
import pytest
from PIL import Image

from icckd.data.images.deep_pixels import DeepPicture
from icckd.data.images.pixels import read_picture
from icckd.errors import UserError
from tests.data.images.image_bytes import png, tiff

# What 12 and what 16 bits hold.
BITS = pytest.mark.parametrize("top", [1 << 12, 1 << 16])


@pytest.fixture
def random():
    return np.random.default_rng(19)


def deep(tmp_path, content):
    path = tmp_path / "image"
    path.write_bytes(content)
    picture = read_picture(path)
    assert isinstance(picture, DeepPicture)
    return picture


def sixteen_bit(random, channels, top):
    return random.integers(0, top, (5, 7, channels)).astype(np.uint16)


def expected(values):
    """The picture of 1 to 4 channels, the last of an even number being alpha."""
    colours = values[..., : 1 if values.shape[-1] < 3 else 3]
    if values.shape[-1] % 2 == 0:
        colours = np.rint(colours * (values[..., -1:] / 0xFFFF))
    return colours.squeeze(-1) if colours.shape[-1] == 1 else colours


@BITS
@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_pngs_of_16_bits_keep_all_of_them(tmp_path, random, channels, interlaced, top):
    values = sixteen_bit(random, channels, top)
    assert np.array_equal(deep(tmp_path, png(values, interlaced=interlaced)).values, expected(values))


@BITS
@pytest.mark.parametrize("compression", [1, 8])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_tiffs_of_16_bits_keep_all_of_them(tmp_path, random, channels, orientation, order, compression, top):
    values = sixteen_bit(random, channels, top)
    picture = deep(tmp_path, tiff(values, order, compression=compression, orientation=orientation))
    wanted = expected(values)
    assert np.array_equal(picture.values, np.rot90(wanted, -1) if orientation == 6 else wanted)


# Pillow reads no big-endian u4.
@pytest.mark.parametrize(("dtype", "order"), [("u4", "<"), *((d, o) for d in ("i1", "i2", "i4", "f4") for o in "<>")])
def test_tiffs_of_other_numbers_keep_them(tmp_path, dtype, order):
    numbers = np.array([[[0], [1], [100]]]).astype(dtype)
    extreme = -0.5 if dtype == "f4" else np.iinfo(dtype).max if dtype == "u4" else np.iinfo(dtype).min
    for values in (numbers, np.full((1, 3, 1), extreme, dtype)):
        assert deep(tmp_path, tiff(values, order)).values.tolist() == values[..., 0].tolist()


@pytest.mark.parametrize(("dtype", "order"), [("u2", "<"), ("f4", "<"), ("f4", ">")])
def test_tiffs_whose_least_value_is_white_say_so(tmp_path, dtype, order):
    values = np.array([[[0], [1], [100]]]).astype(dtype)
    assert deep(tmp_path, tiff(values, order, photometric=0)).negative
    assert not deep(tmp_path, tiff(values, order)).negative


@pytest.mark.parametrize("most", [256, 1000, 4095, 65535])
def test_netpbm_files_of_more_than_8_bits_hold_their_values(tmp_path, random, most):
    for shape, kind in (((5, 7), b"P5"), ((5, 7, 3), b"P6")):
        values = random.integers(0, most + 1, shape)
        content = kind + b"\n7 5\n%d\n" % most + values.astype(">u2").tobytes()
        assert np.array_equal(deep(tmp_path, content).values, values)


@pytest.mark.parametrize("colour", [0, 65535, 3000])
@pytest.mark.parametrize("channels", [2, 4])
def test_alpha_of_16_bits_is_the_picture_where_the_colour_is_one_constant(tmp_path, random, channels, colour):
    values = sixteen_bit(random, channels, 1 << 16)
    values[..., :-1] = colour
    assert np.array_equal(deep(tmp_path, png(values)).values, values[..., -1])


def test_colours_that_are_read_to_8_bits_only_are_refused(tmp_path, random):
    planes = sixteen_bit(random, 3, 1 << 12)
    for content in (
        b"P3\n1 1\n4095\n10 20 30\n",
        tiff(planes, planar=2),
        tiff(planes, planar=2, compression=8),
    ):
        with pytest.raises(UserError, match="image holds 16-bit colours in a form that is read to 8 bits only"):
            deep(tmp_path, content)


def test_planes_of_8_bits_are_read(tmp_path, random):
    values = random.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    path = tmp_path / "image"
    path.write_bytes(tiff(values, planar=2))
    assert np.array_equal(np.asarray(read_picture(path)), values)


@pytest.mark.parametrize("content", [lambda b: b[: len(b) // 2], lambda b: b[:60]])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_damaged_deep_images_are_named(tmp_path, random, channels, content):
    with pytest.raises(UserError, match=r"image is (a damaged|not an) image"):
        deep(tmp_path, content(png(sixteen_bit(random, channels, 1 << 16))))


def test_big_endian_grey_of_pillow_is_read(tmp_path):
    image = Image.frombytes("I;16B", (2, 1), bytes([1, 0, 2, 3]))
    image.save(tmp_path / "a.tif")
    assert deep(tmp_path, (tmp_path / "a.tif").read_bytes()).values.tolist() == [[256, 515]]
