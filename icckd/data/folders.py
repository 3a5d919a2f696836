"""Data sets that are folders of image files: `tiny-imagenet` and `image-folder`."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from icckd.data.batches import Augmentation
from icckd.data.decoding import SUFFIXES, decode_images, image_size
from icckd.data.image_data import ImageData, Split, image_data
from icckd.errors import UserError


class _Files(NamedTuple):
    """Image files, their labels, and the folder they are in."""

    paths: list[Path]
    labels: list[int]
    folder: Path


def load_image_folder(root: Path, size: int | None, validation: float) -> ImageData:
    """`root`/train/CLASS/… and `root`/val/CLASS/…, classes in alphabetical order.

    Images are resized to `size` pixels a side, or to the first one's shorter side where that is None.
    """
    classes = _folder_names(root / "train")
    others = _folder_names(root / "val")
    if classes != others:
        name = sorted(set(classes) ^ set(others))[0]
        missing, present = ("val", "train") if name in classes else ("train", "val")
        raise UserError(f"{root / missing / name} does not exist, but {root / present / name} does")
    train, test = (
        _labelled(root / part, [_images_in(root / part / name) for name in classes]) for part in ("train", "val")
    )
    return _load("image-folder", train, test, classes, size, validation)


def load_tiny_imagenet(root: Path, size: int | None, validation: float) -> ImageData:
    """Tiny ImageNet in its official layout, at any image size, from `root` or the only folder in it.

    `root`/train/WNID/images/*, `root`/val/images/* with `root`/val/val_annotations.txt, and, if they are there,
    `root`/wnids.txt (the order of the classes; else alphabetical) and `root`/words.txt (their names).
    """
    inner = [p for p in root.iterdir() if p.is_dir()]
    if not (root / "train").exists() and len(inner) == 1:
        root = inner[0]
    wnids = _wnids(root)
    train = _labelled(root / "train", [_images_in(root / "train" / wnid / "images") for wnid in wnids])
    test = _annotated(root / "val", wnids)
    return _load("tiny-imagenet", train, test, _words(root, wnids), size, validation)


def _load(
    name: str, train: _Files, test: _Files, classes: Sequence[str], size: int | None, validation: float
) -> ImageData:
    size = size or image_size(train.paths[0])
    (train_images, train_grey), (test_images, test_grey) = (
        decode_images(files.paths, size, f"{name} {files.folder.name}") for files in (train, test)
    )
    channels = 1 if train_grey and test_grey else 3
    train_split, test_split = (
        Split(images[:, :channels].contiguous(), torch.tensor(files.labels), str(files.folder))
        for images, files in ((train_images, train), (test_images, test))
    )
    augmentation = Augmentation(crop_padding=size // 8, flip=True)
    return image_data(name, train_split, test_split, classes, augmentation, validation)


def _folder_names(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist; it should hold one folder of images per class")
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if len(names) < 2:
        raise UserError(f"{folder} holds {len(names)} folders; it should hold one per class, at least 2")
    return names


def _images_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist; it should hold images of one class")
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not paths:
        raise UserError(f"{folder} holds no images; it should hold at least one ({', '.join(SUFFIXES)})")
    return paths


def _labelled(folder: Path, classes: Sequence[list[Path]]) -> _Files:
    paths = [path for images in classes for path in images]
    return _Files(paths, [label for label, images in enumerate(classes) for _ in images], folder)


def _wnids(root: Path) -> list[str]:
    folders = _folder_names(root / "train")
    listing = root / "wnids.txt"
    if not listing.is_file():
        return folders
    wnids = _lines(listing)
    if sorted(wnids) != folders:
        counts = Counter(wnids)
        wrong = next(w for w in [*folders, *wnids] if counts[w] != 1 or w not in folders)
        raise UserError(f"{listing} names {wrong!r} {counts[wrong]} times; it should name each folder in train/ once")
    return wnids


def _words(root: Path, wnids: Sequence[str]) -> list[str]:
    listing = root / "words.txt"
    lines = _lines(listing) if listing.is_file() else []
    words = {wnid: names.split(",")[0] for wnid, _, names in (line.partition("\t") for line in lines)}
    return [words.get(wnid, wnid) for wnid in wnids]


def _annotated(folder: Path, wnids: Sequence[str]) -> _Files:
    """The images that `folder`/val_annotations.txt lists, one a line: file name, tab, wnid, and more tabs."""
    listing = folder / "val_annotations.txt"
    if not listing.is_file():
        raise UserError(f"{listing} does not exist; it should give the class of each image in {folder / 'images'}")
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    paths, labels = [], []
    for line in _lines(listing):
        name, wnid, *_ = [*line.split("\t"), ""]
        if wnid not in label_of or Path(name).name != name:
            raise UserError(f"{listing} has the line {line[:80]!r}; it should have a file's name, a tab and its class")
        paths.append(folder / "images" / name)
        labels.append(label_of[wnid])
    return _Files(paths, labels, folder)


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
