import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from icckd.data import load_data
from icckd.data.augmentation import Augmentation
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
    assert data.augmentation == Augmentation(crop_padding=2, flip=True)


def test_other_files_are_left_out_and_counted(tmp_path, random, capsys):
    write_image_folder(tmp_path, random)
    load("image-folder", tmp_path)
    assert "left out" not in capsys.readouterr().err
    for name in (
        "cat/notes.txt",
        "cat/more/a.CSV",
        "dog/b.csv",
        "owl/none",
        "beside.png",
        "cat/c.[red]",
        "cat/d.\n\udce9",
    ):
        (tmp_path / "train" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "train" / name).write_text("no image")
    for name in ("cat/.hidden.png", ".cache/cat.png", "cat/.cache/cat.png"):
        (tmp_path / "train" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "train" / name).write_text("no image")
    (tmp_path / "val" / "list.txt").write_text("no image")
    assert len(load("image-folder", tmp_path).train_images) == 9
    lines = capsys.readouterr().err.splitlines()
    assert (
        r"image-folder train: 7 files left out (2 .csv, 1 .png, 1 .[red], 1 .\n\udce9, 1 .txt, 1 of other suffixes)"
        in lines
    )
    assert "image-folder val: 1 file left out (1 .txt)" in lines


def test_subfolders_and_all_suffixes_of_images_are_read(tmp_path, random):
    write_image_folder(tmp_path, random)
    names = ["a.JFIF", "b.avif", "c/d.jpe", "c/d/e.pbm", "c/d/e.apng", "c/x.png/y.dib", "z/more.pnm"]
    pixels = [picture(random) for _ in names]
    for name, image in zip(names, pixels, strict=True):
        (tmp_path / "train" / "dog" / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / "train" / "dog" / name, format="PNG")
    data = load("image-folder", tmp_path)
    assert data.train_labels.tolist() == [0] * 3 + [1] * 10 + [2] * 3
    # In alphabetical order, 0.png to 2.png first.
    order = [0, 1, 4, 3, 2, 5, 6]
    expected = np.stack([np.array(pixels[i]) for i in order])
    assert np.array_equal(data.train_images[6:13].permute(0, 2, 3, 1).numpy(), expected)


def test_a_class_whose_images_are_in_subfolders_only_is_read(tmp_path, random):
    write_image_folder(tmp_path, random)
    (tmp_path / "train" / "cat").rename(tmp_path / "cats")
    (tmp_path / "train" / "cat").mkdir()
    (tmp_path / "cats").rename(tmp_path / "train" / "cat" / "deep")
    assert load("image-folder", tmp_path).train_labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3


def test_links_are_followed_but_not_round_in_circles(tmp_path, random):
    write_image_folder(tmp_path, random)
    for i in range(4):
        save(picture(random), tmp_path / "elsewhere" / "more" / f"{i}.png")
    for link, target in (("cat/linked", "elsewhere"), ("elsewhere/back", "elsewhere"), ("cat/self", "train/cat")):
        above = tmp_path if link.startswith("elsewhere") else tmp_path / "train"
        (above / link).symlink_to(tmp_path / target)
    for name in ("cat/up", "cat/linked/more/up"):
        (tmp_path / "train" / name).symlink_to(tmp_path / "train")
    (tmp_path / "train" / "dog" / "root").symlink_to(tmp_path)
    assert load("image-folder", tmp_path).train_labels.tolist() == [0] * 7 + [1] * 3 + [2] * 3


def test_a_link_to_no_file_is_named(tmp_path, random):
    write_image_folder(tmp_path, random)
    (tmp_path / "train" / "cat" / "lost.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"cat/lost\.png is not an image that can be read"):
        load("image-folder", tmp_path)


@pytest.mark.parametrize("part", ["train", "val"])
def test_class_folders_that_are_not_utf8_are_refused(tmp_path, random, part):
    write_image_folder(tmp_path, random)
    (tmp_path / part / "caf\udce9").mkdir()
    with pytest.raises(UserError, match=rf"{part}/caf\\udce9 is the folder of a class, but its name is not UTF-8"):
        load("image-folder", tmp_path)


def test_files_in_a_class_need_not_be_utf8(tmp_path, random):
    write_image_folder(tmp_path, random)
    folder = tmp_path / "train" / "cat" / "\udcff"
    folder.mkdir()
    (tmp_path / "train" / "cat" / "0.png").rename(folder / "caf\udce9.png")
    assert len(load("image-folder", tmp_path).train_images) == 9
    damage(folder / "caf\udce9.png", lambda b: b[:20])
    with pytest.raises(UserError, match=r"cat/\\udcff/caf\\udce9\.png is not an image"):
        load("image-folder", tmp_path)


COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


def test_classes_of_either_unicode_form_are_the_same(tmp_path, random):
    write_image_folder(tmp_path, random)
    (tmp_path / "train" / "cat").rename(tmp_path / "train" / COMPOSED)
    (tmp_path / "val" / "cat").rename(tmp_path / "val" / DECOMPOSED)
    data = load("image-folder", tmp_path)
    assert data.classes == (COMPOSED, "dog", "owl")
    assert data.test_labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_two_folders_of_one_class_are_refused(tmp_path, random):
    write_image_folder(tmp_path, random)
    (tmp_path / "val" / COMPOSED).mkdir()
    (tmp_path / "val" / DECOMPOSED).mkdir()
    with pytest.raises(UserError, match=f"val holds two folders named {COMPOSED}, in different forms of Unicode"):
        load("image-folder", tmp_path)


def test_training_images_that_are_all_the_same_are_refused(tmp_path):
    for part in ("train", "val"):
        for name in CLASSES:
            save(Image.new("RGB", (8, 8)), tmp_path / part / name / "a.png")
    with pytest.raises(UserError, match="train holds 3 training images with the value 0, 0, 0 in every pixel"):
        load("image-folder", tmp_path)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_as_a_viewer_shows_them(tmp_path, orientation):
    white_above = np.zeros((16, 16, 3), np.uint8)
    white_above[:8] = 255
    tag = Image.Exif()
    tag[0x0112] = orientation
    for part in ("train", "val"):
        for name in CLASSES:
            path = tmp_path / part / name / "a.jpg"
            path.parent.mkdir(parents=True)
            Image.fromarray(white_above).save(path, exif=tag)
    image = load("image-folder", tmp_path).train_images[0, 0].float()
    white = {"above": image[:8], "below": image[8:], "left": image[:, :8], "right": image[:, 8:]}
    side = ["above", "above", "below", "below", "left", "right", "right", "left"][orientation - 1]
    assert [name for name, half in white.items() if half.mean() > 200] == [side]


FORMS = {
    "8-bit PNG": (".png", Image.fromarray),
    "16-bit PNG": (".png", lambda x: Image.fromarray(x.astype(np.uint16))),
    "32-bit TIFF": (".tif", lambda x: Image.fromarray(x.astype(np.int32))),
    "float TIFF, 0 to 1": (".tif", lambda x: Image.fromarray((x / 255).astype(np.float32))),
    "float TIFF, 0 to 255": (".tif", lambda x: Image.fromarray(x.astype(np.float32))),
    "alpha channel": (".png", lambda x: Image.fromarray(np.dstack([np.zeros((16, 16, 3), np.uint8), x]))),
}


@pytest.mark.parametrize("form", FORMS)
def test_two_plainly_different_classes_are_so_in_every_form(tmp_path, random, form):
    suffix, make = FORMS[form]
    for part in ("train", "val"):
        for name, level in (("dark", 20), ("light", 200)):
            pixels = random.integers(level, level + 40, (16, 16)).astype(np.uint8)
            save(make(pixels), tmp_path / part / name / f"a{suffix}")
    data = load("image-folder", tmp_path)
    assert data.train_images.shape == (2, 1, 16, 16)
    assert [image.float().mean().round().item() for image in data.train_images] == pytest.approx([39.5, 219.5], abs=3)


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
    stripes[::2, 16:32] = 220
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
        ("wnids.txt", "\ufeffn01\nn02\n", "names 'n03' 0 times"),
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


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_byte_order_marks_and_line_ends_of_lists_are_no_part_of_them(tmp_path, random, end):
    write_tiny_imagenet(tmp_path, random)
    for name in ("wnids.txt", "words.txt", "val/val_annotations.txt"):
        lines = (tmp_path / name).read_text().splitlines()
        if name == "words.txt":
            lines.sort(reverse=True)
            lines.append("n03\tnewt\u2028of sorts")
        (tmp_path / name).write_text("\ufeff" + end.join(lines) + end, encoding="utf-8", newline="")
    data = load("tiny-imagenet", tmp_path)
    assert data.classes == ("newt\u2028of sorts", "goldfish", "fire salamander")
    assert data.test_labels.tolist() == [0, 1, 2, 0, 1, 2]


def test_what_tiny_imagenet_leaves_out_is_counted(tmp_path, random, capsys):
    write_tiny_imagenet(tmp_path, random)
    for wnid in WNIDS:
        (tmp_path / "train" / wnid / f"{wnid}_boxes.txt").write_text("")
        save(picture(random), tmp_path / "train" / wnid / "images" / "more" / "a.png")
    load("tiny-imagenet", tmp_path)
    assert "left out" not in capsys.readouterr().err
    save(picture(random), tmp_path / "val" / "images" / "unlisted.png")
    save(picture(random), tmp_path / "train" / "n01" / "beside.png")
    (tmp_path / ".cache").mkdir()
    assert len(load("tiny-imagenet", tmp_path).train_images) == 9
    lines = capsys.readouterr().err.splitlines()
    assert "tiny-imagenet train: 1 file left out (1 .png)" in lines
    assert "tiny-imagenet val: 1 file left out (1 .png)" in lines


def test_lists_of_tiny_imagenet_match_names_of_any_encoding_and_unicode_form(tmp_path, random):
    write_tiny_imagenet(tmp_path, random)
    images = tmp_path / "val" / "images"
    (tmp_path / "train" / "n01").rename(tmp_path / "train" / DECOMPOSED)
    (images / "val_0.png").rename(images / f"{DECOMPOSED}.png")
    (images / "val_1.png").rename(images / "caf\udce9.png")
    for name in ("wnids.txt", "val/val_annotations.txt", "words.txt"):
        text = (tmp_path / name).read_text().replace("n01", COMPOSED).replace("val_0", COMPOSED)
        (tmp_path / name).write_text(text.replace("val_1", "caf\udce9"), errors="surrogateescape", encoding="utf-8")
    data = load("tiny-imagenet", tmp_path)
    assert data.classes == ("n03", "goldfish", "fire salamander")
    assert data.test_labels.tolist() == [0, 1, 2, 0, 1, 2]
