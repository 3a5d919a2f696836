import numpy as np
import pytest
from PIL import Image

from icckd.data.images.decoding import decode_images
from icckd.errors import UserError
from tests.data.images.image_bytes import png, tiff


@pytest.fixture
def random():
    return np.random.default_rng(23)


def decoded(tmp_path, parts, size=8):
    """What becomes of arrays and bytes, each in a file of its own: the parts' pixels, and whether all are grey."""
    paths = {part: [] for part in parts}
    for part, contents in parts.items():
        for i, content in enumerate(contents):
            path = tmp_path / f"{part}{i}"
            if isinstance(content, bytes):
                path.write_bytes(content)
            else:
                Image.fromarray(content).save(path, "TIFF" if content.dtype.itemsize == 4 else "PNG")
            paths[part].append(path)
    images, grey = decode_images(paths, size, "some set")
    return [tensor.permute(0, 2, 3, 1).numpy() for tensor in images], grey


def values(random, top, shape=(8, 8)):
    numbers = random.integers(0, top + 1, shape)
    numbers.flat[0] = top
    return numbers


def rgb(pixels):
    return np.repeat(pixels[..., None], 3, -1)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
@pytest.mark.parametrize(
    ("largest", "white"),
    [(1, 1), (15, 15), (100, 127), (255, 255), (256, 511), (4000, 4095), (4096, 8191), (50_000, 65_535)],
)
def test_deep_integers_are_scaled_by_what_holds_those_of_all_parts(tmp_path, random, capsys, dtype, largest, white):
    small, large = (values(random, top).astype(dtype) for top in (min(largest, 200), largest))
    for parts in ({"train": [small], "val": [large]}, {"train": [large], "val": [small]}):
        (train, val), grey = decoded(tmp_path, parts)
        assert grey
        for image, (original,) in zip((train, val), parts.values(), strict=True):
            assert np.array_equal(image[0], rgb(np.rint(original * (255 / white)).astype(np.uint8)))
        line = f"some set: 2 images of more than 8 bits hold values up to {largest}, scaled from 0…{white}\n"
        assert capsys.readouterr().err.count(line) == 1


def test_integers_of_32_bits_do_not_overflow(tmp_path, random):
    large = values(random, 2**31 - 1).astype(np.int32)
    larger = tiff(values(random, 2**32 - 1).astype(np.uint32)[..., None])
    (train, val), _ = decoded(tmp_path, {"train": [large], "val": [larger]})
    assert train.max() == 128
    assert val.max() == 255
    (train, _), _ = decoded(tmp_path, {"train": [large], "val": []})
    assert np.array_equal(train[0], rgb(np.rint(large * (255 / (2**31 - 1))).astype(np.uint8)))


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_colours_of_12_bits_in_16_are_scaled_by_12(tmp_path, random, channels):
    picture = values(random, 4095, (8, 8, channels)).astype(np.uint16)
    if channels != 3:
        picture[..., -1] = 0xFFFF
    (images,), grey = decoded(tmp_path, {"train": [png(picture)]})
    expected = np.rint(picture[..., : 1 if channels == 2 else 3] * (255 / 4095)).astype(np.uint8)
    assert np.array_equal(images[0], np.broadcast_to(expected, (8, 8, 3)))
    assert grey == (channels == 2)


def test_floats_are_scaled_by_1_or_by_255_whichever_holds_them_all(tmp_path, random, capsys):
    shares, bytes_ = random.random((8, 8), dtype=np.float32), values(random, 255).astype(np.float32)
    (train, val), _ = decoded(tmp_path, {"train": [shares], "val": [shares]})
    assert np.array_equal(train[0], rgb(np.rint(shares * 255).astype(np.uint8)))
    assert f"2 float images hold values up to {shares.max():.9g}, scaled from 0…1\n" in capsys.readouterr().err
    (train, val), _ = decoded(tmp_path, {"train": [shares], "val": [bytes_]})
    assert np.array_equal(train[0], rgb(np.rint(shares).astype(np.uint8)))
    assert np.array_equal(val[0], rgb(bytes_.astype(np.uint8)))
    assert "2 float images hold values up to 255, scaled from 0…255\n" in capsys.readouterr().err


def test_images_of_8_bits_stay_as_they_are_beside_deep_ones(tmp_path, random, capsys):
    eight, deep, floats = (values(random, top) for top in (200, 4095, 1))
    parts = {"train": [eight.astype(np.uint8), deep.astype(np.uint16)], "val": [floats.astype(np.float32)]}
    (train, val), _ = decoded(tmp_path, parts)
    assert np.array_equal(train[0], rgb(eight.astype(np.uint8)))
    assert np.array_equal(train[1], rgb(np.rint(deep * (255 / 4095)).astype(np.uint8)))
    assert np.array_equal(val[0], rgb((floats * 255).astype(np.uint8)))
    assert (
        "some set: 1 images of more than 8 bits hold values up to 4095, scaled from 0…4095; "
        "1 float images hold values up to 1, scaled from 0…1; 1 of 8 bits stay as they are\n"
    ) in capsys.readouterr().err


def test_images_of_8_bits_alone_are_read_without_a_word_on_scale(tmp_path, random, capsys):
    decoded(tmp_path, {"train": [values(random, 9).astype(np.uint8)]})
    assert capsys.readouterr().err == "some set train: decoding 1 images\n"


@pytest.mark.parametrize("size", [8, 12, 30])
@pytest.mark.parametrize(("dtype", "white"), [(np.uint16, 65_535), (np.int32, 2**31 - 1), (np.float32, 1)])
def test_deep_images_are_cropped_and_resized_as_those_of_8_bits(tmp_path, dtype, white, size):
    # Edges, at which resizing overshoots.
    eight = np.zeros((16, 24), np.uint8)
    eight[4:12, 8:16] = 255
    (deep, plain), _ = decoded(tmp_path, {"deep": [(eight / 255 * white).astype(dtype)], "plain": [eight]}, size)
    # Those of 8 bits are clipped between the two directions, too.
    assert abs(deep.astype(int) - plain).max() < 10


def test_negative_pictures_become_positive_ones(tmp_path, random):
    picture = values(random, 4095).astype(np.uint16)
    (images,), _ = decoded(tmp_path, {"train": [tiff(picture[..., None], photometric=0)]})
    assert np.array_equal(images[0], rgb(255 - np.rint(picture * (255 / 4095)).astype(np.uint8)))


@pytest.mark.parametrize(
    ("dtype", "value", "words"),
    [
        ("i1", -1, "holds the value -1; it should hold no integers below 0"),
        ("i2", -300, "holds the value -300; it"),
        ("i4", -(2**31), "holds the value -2147483648; it"),
        ("f4", -0.25, r"holds the value -0\.25; it should hold floats from 0 to 1, or from 0 to 255"),
        ("f4", np.nextafter(np.float32(255), np.float32(256)), r"holds the value 255\.000015; it"),
        ("f4", 255.5, r"holds the value 255\.5; it should hold floats"),
        ("f4", np.nan, "holds values that are not finite"),
        ("f4", np.inf, "holds values that are not finite"),
        ("f4", -np.inf, "holds values that are not finite"),
    ],
)
def test_values_that_no_scale_holds_are_refused_by_file(tmp_path, random, dtype, value, words):
    good, wrong = (values(random, 1, (8, 8, 1)).astype(dtype) for _ in range(2))
    wrong[3, 3] = value
    with pytest.raises(UserError, match=f"val1 {words}"):
        decoded(tmp_path, {"train": [tiff(good)], "val": [tiff(good), tiff(wrong)]})
