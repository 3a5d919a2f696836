import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from icckd.data import load_data
from icckd.errors import UserError
from icckd.settings import DataSettings

CLASSES = ["cat", "dog", "owl"]


@pytest.fixture
def random():
    return np.random.default_rng(13)


def picture(random, height=16, width=16, channels=3):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8))


def save(image, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return np.array(image)


def write_image_folder(root, random, **shape):
    """A small data set; returns its pixels by part and class."""
    return {
        (part, name): [save(picture(random, **shape), root / part / name / f"{i}.png") for i in range(count)]
        for part, count in (("train", 3), ("val", 2))
        for name in CLASSES
    }


def load(name, root, **settings):
    return load_data(DataSettings(name=name, root=str(root), **settings))


@pytest.mark.parametrize("channels", [1, 3])
def test_image_folder_holds_the_files_pixels(tmp_path, random, channels):
    written = write_image_folder(tmp_path, random, channels=channels)
    data = load("image-folder", tmp_path)
    train = np.stack([pixels for name in CLASSES for pixels in written["train", name]])
    test = np.stack([pixels for name in CLASSES for pixels in written["val", name]])
    if channels == 1:
        train, test = train[..., None], test[..., None]
    assert np.array_equal(data.train_images.permute(0, 2, 3, 1).numpy(), train)
    assert np.array_equal(data.test_images.permute(0, 2, 3, 1).numpy(), test)
    assert data.train_labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert data.test_labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.classes == tuple(CLASSES)
    assert data.augmentation == (2, True)


def test_other_files_are_ignored(tmp_path, random):
    write_image_folder(tmp_path, random)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "train" / "cat" / ".hidden.png").write_text("no image")
    (tmp_path / "train" / ".cache").mkdir()
    assert len(load("image-folder", tmp_path).train_images) == 9


def test_images_of_every_mode(tmp_path, random):
    write_image_folder(tmp_path, random)
    folder = tmp_path / "train" / "cat"
    coloured, grey = picture(random), picture(random, channels=1)
    deep = np.array(grey).astype(np.uint16) * 257
    palette = coloured.quantize(16)
    save(grey, folder / "a.png")
    save(palette, folder / "b.gif")
    save(coloured.convert("RGBA"), folder / "c.png")
    save(coloured, folder / "d.bmp")
    save(grey.convert("LA"), folder / "e.png")
    save(coloured.convert("CMYK"), folder / "f.tiff")
    save(Image.fromarray(deep), folder / "g.png")
    images = load("image-folder", tmp_path).train_images[3:10].permute(0, 2, 3, 1).numpy()
    expected = [grey, palette, coloured, coloured, grey, coloured, grey]
    for image, original in zip(images, expected, strict=True):
        assert np.array_equal(image, np.array(original.convert("RGB")))


def test_images_are_cropped_at_the_centre_and_resized(tmp_path):
    stripes = np.zeros((16, 48, 3), np.uint8)
    stripes[:, 16:32] = 200
    for part in ("train", "val"):
        for name in CLASSES:
            save(Image.fromarray(stripes), tmp_path / part / name / "a.png")
    for size, expected in ((None, 16), (8, 8), (32, 32)):
        data = load("image-folder", tmp_path, image_size=size)
        assert data.train_images.shape == (3, 3, expected, expected)
        # Resizing looks a little beyond the crop; a crop elsewhere would hold whole columns of 0.
        assert (data.train_images > 150).all()


def test_the_first_image_gives_the_size(tmp_path, random):
    write_image_folder(tmp_path, random)
    save(picture(random, height=20, width=24), tmp_path / "train" / "cat" / "-first.png")
    assert load("image-folder", tmp_path).train_images.shape == (10, 3, 20, 20)


def damage(path, change):
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize("size", [None, 8])
@pytest.mark.parametrize(
    "change", [lambda b: b[: len(b) // 2], lambda b: b[:20], lambda b: b"", lambda b: b"GIF89a", lambda b: b"text" * 99]
)
def test_damaged_images_are_named(tmp_path, random, size, change):
    write_image_folder(tmp_path, random)
    damage(tmp_path / "train" / "dog" / "1.png", change)
    with pytest.raises(UserError, match=r"dog/1\.png is (a damaged|not an) image"):
        load("image-folder", tmp_path, image_size=size)


def test_formats_that_start_programs_are_not_read(tmp_path, random):
    write_image_folder(tmp_path, random)
    path = tmp_path / "val" / "dog" / "1.png"
    picture(random).save(path, format="EPS")
    with pytest.raises(UserError, match=r"dog/1\.png is not an image that can be read"):
        load("image-folder", tmp_path)


def test_decompression_bombs_are_refused(tmp_path, random):
    write_image_folder(tmp_path, random)
    Image.new("1", (12_000, 6_000)).save(tmp_path / "train" / "dog" / "1.png")
    with pytest.raises(UserError, match=r"dog/1\.png has 12000×6000 pixels"):
        load("image-folder", tmp_path)


@pytest.mark.parametrize("size", [7, 1025])
def test_a_first_image_of_odd_size_asks_for_image_size(tmp_path, random, size):
    write_image_folder(tmp_path, random)
    save(picture(random, height=size, width=size), tmp_path / "train" / "cat" / "-first.png")
    with pytest.raises(UserError, match=r"-first\.png.* set data\.image_size"):
        load("image-folder", tmp_path)
    assert load("image-folder", tmp_path, image_size=8).train_images.shape == (10, 3, 8, 8)


@pytest.mark.parametrize(
    ("remove", "words"),
    [
        ("train", "train does not exist"),
        ("val", "val does not exist"),
        ("val/dog", "val/dog does not exist, but .*train/dog does"),
        ("train/owl", "train/owl does not exist, but .*val/owl does"),
        ("train/cat/*.png", "train/cat holds no images"),
        ("val/owl/*.png", "val/owl holds no images"),
        ("*/[do]*", "holds 1 folders; it should hold one per class, at least 2"),
    ],
)
def test_missing_parts_are_named(tmp_path, random, remove, words):
    write_image_folder(tmp_path, random)
    for path in tmp_path.glob(remove):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    with pytest.raises(UserError, match=words):
        load("image-folder", tmp_path)


WNIDS = ["n03", "n01", "n02"]


def write_tiny_imagenet(root, random, size=16):
    """A small data set in the official layout; returns the pixels, classes in WNIDS' order."""
    train = [
        save(picture(random, size, size), root / "train" / wnid / "images" / f"{wnid}_{i}.png")
        for wnid in WNIDS
        for i in range(2)
    ]
    val = [save(picture(random, size, size), root / "val" / "images" / f"val_{i}.png") for i in range(6)]
    lines = [f"val_{i}.png\t{WNIDS[i % 3]}\t0\t0\t9\t9" for i in range(6)]
    (root / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    (root / "wnids.txt").write_text("\n".join(WNIDS) + "\n")
    (root / "words.txt").write_text("n01\tgoldfish, Carassius auratus\nn02\tfire salamander\nn99\tother\n")
    return train, val


@pytest.mark.parametrize("inside", ["", "tiny-imagenet-200"])
def test_tiny_imagenet_in_its_official_layout(tmp_path, random, inside):
    train, val = write_tiny_imagenet(tmp_path / inside, random)
    data = load("tiny-imagenet", tmp_path)
    assert np.array_equal(data.train_images.permute(0, 2, 3, 1).numpy(), np.stack(train))
    assert np.array_equal(data.test_images.permute(0, 2, 3, 1).numpy(), np.stack(val))
    assert data.train_labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.test_labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert data.classes == ("n03", "goldfish", "fire salamander")
    assert data.test_labels.dtype == torch.int64


def test_tiny_imagenet_without_lists_has_its_classes_in_alphabetical_order(tmp_path, random):
    write_tiny_imagenet(tmp_path, random)
    (tmp_path / "wnids.txt").unlink()
    (tmp_path / "words.txt").unlink()
    data = load("tiny-imagenet", tmp_path, image_size=8)
    assert data.classes == ("n01", "n02", "n03")
    assert data.test_labels.tolist() == [2, 0, 1, 2, 0, 1]
    assert data.train_images.shape == (6, 3, 8, 8)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("val/val_annotations.txt", None, r"val_annotations\.txt does not exist"),
        ("val/val_annotations.txt", "val_0.png\tn77\t0\n", "has the line"),
        ("val/val_annotations.txt", "val_0.png\n", "has the line"),
        ("val/val_annotations.txt", "../../secret.png\tn01\n", "has the line"),
        ("val/val_annotations.txt", "val_9.png\tn01\n", r"val_9\.png is not an image"),
        ("val/val_annotations.txt", "", "no images"),
        ("wnids.txt", "n01\nn02\n", "names 'n03' 0 times"),
        ("wnids.txt", "n01\nn02\nn03\nn04\n", "names 'n04' 1 times"),
        ("wnids.txt", "n01\nn02\nn03\nn03\n", "names 'n03' 2 times"),
    ],
)
def test_wrong_lists_are_refused(tmp_path, random, file, content, words):
    write_tiny_imagenet(tmp_path, random)
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_text(content)
    with pytest.raises(UserError, match=words):
        load("tiny-imagenet", tmp_path)
