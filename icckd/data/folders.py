"""Data sets that are folders of image files: `tiny-imagenet` and `image-folder`."""

import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from icckd.data.augmentation import Augmentation
from icckd.data.image_data import ImageData, Split, image_data
from icckd.data.images.decoding import decode_images, image_size
from icckd.data.images.image_file import SUFFIXES, no_warnings
from icckd.data.streaming import Decoders, ImageFiles
from icckd.data.walk import files_beneath, report_left_out
from icckd.errors import UserError
from icckd.files import is_utf8
from icckd.settings import DataSettings


class _Files(NamedTuple):
    """Image files, their labels, and the folder they are in."""

    paths: list[Path]
    labels: list[int]
    folder: Path


def load_image_folder(root: Path, settings: DataSettings, with_training: bool) -> ImageData:
    """`root`/train/CLASS/… and `root`/val/CLASS/…, at any depth, classes in alphabetical order.

    Images are resized to data.image_size pixels a side, or to the first one's shorter side where that is null. With
    data.streaming they stay in their files. Names of classes are given, and compared, in Unicode's form NFC. Says how
    many files are left out.
    """
    train_folders = _class_folders(root / "train") if with_training else None
    test_folders = _class_folders(root / "val")
    classes = sorted(test_folders)
    if train_folders is not None and train_folders.keys() != test_folders.keys():
        name = min(train_folders.keys() ^ test_folders.keys())
        missing, present = ("val", train_folders) if name in train_folders else ("train", test_folders)
        raise UserError(f"{root / missing / name} does not exist, but {present[name]} does")
    parts = [
        _labelled(root / part, [_images_in(folders[name]) for name in classes])
        for part, folders in (("train", train_folders), ("val", test_folders))
        if folders is not None
    ]
    for part in parts:
        report_left_out(f"image-folder {part.folder.name}", part.folder, part.paths)
    return _load("image-folder", parts, classes, settings)


def load_tiny_imagenet(root: Path, settings: DataSettings, with_training: bool) -> ImageData:
    """Tiny ImageNet in its official layout, at any image size, from `root` or the only folder in it.

    `root`/train/WNID/images/…, `root`/val/images/* with `root`/val/val_annotations.txt, and, if they are there,
    `root`/wnids.txt (the order of the classes; else alphabetical) and `root`/words.txt (their names). Says how many
    files are left out, but for the annotations.
    """
    inner = [p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")]
    if not (root / "train").exists() and not (root / "val").exists() and len(inner) == 1:
        root = inner[0]
    listing, parts = root / "wnids.txt", []
    if with_training:
        folders = _class_folders(root / "train")
        wnids = _wnids(listing, folders)
        parts.append(_labelled(root / "train", [_images_in(folders[wnid] / "images") for wnid in wnids]))
        boxes = [folder / f"{folder.name}_boxes.txt" for folder in folders.values()]
        report_left_out("tiny-imagenet train", root / "train", [*parts[0].paths, *boxes])
    else:
        wnids = _wnids(listing, _annotated_wnids(root / "val"))
    test = _annotated(root / "val", wnids)
    report_left_out("tiny-imagenet val", test.folder, [*test.paths, _annotations(test.folder)])
    return _load("tiny-imagenet", [*parts, test], _words(root / "words.txt", wnids), settings)


def _load(name: str, parts: Sequence[_Files], classes: Sequence[str], settings: DataSettings) -> ImageData:
    """`parts` are those for training, if they are wanted, and for test."""
    with no_warnings():
        size = settings.image_size or image_size(parts[0].paths[0])
        images = (_streamed if settings.streaming else _decoded)(name, parts, size, settings)
    splits = [
        Split(pixels, torch.tensor(files.labels), str(files.folder))
        for pixels, files in zip(images, parts, strict=True)
    ]
    train = splits[0] if len(splits) > 1 else None
    augmentation = Augmentation(crop_padding=size // 8, flip=True)
    return image_data(name, train, splits[-1], classes, augmentation, settings)


def _decoded(name: str, parts: Sequence[_Files], size: int, settings: DataSettings) -> Sequence[Tensor | ImageFiles]:
    images, grey = decode_images({files.folder.name: files.paths for files in parts}, size, name)
    return [pixels[:, : 1 if grey else 3].contiguous() for pixels in images]


def _streamed(name: str, parts: Sequence[_Files], size: int, settings: DataSettings) -> Sequence[Tensor | ImageFiles]:
    decoders = Decoders(settings.workers)
    return [ImageFiles(files.paths, files.folder, size, decoders) for files in parts]


def _class_folders(folder: Path) -> dict[str, Path]:
    """The folders in `folder`, one per class, under their names in Unicode's form NFC."""
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist; it should hold one folder of images per class")
    folders: dict[str, Path] = {}
    for path in sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")):
        if not is_utf8(path.name):
            raise UserError(f"{path} is the folder of a class, but its name is not UTF-8; rename it")
        if (name := _nfc(path.name)) in folders:
            raise UserError(f"{folder} holds two folders named {name}, in different forms of Unicode; merge them")
        folders[name] = path
    if len(folders) < 2:
        raise UserError(f"{folder} holds {len(folders)} folders; it should hold one per class, at least 2")
    return folders


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _images_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist; it should hold images of one class")
    paths = [path for path in files_beneath(folder) if path.suffix.lower() in SUFFIXES]
    if not paths:
        raise UserError(f"{folder} holds no images; it should hold at least one ({', '.join(SUFFIXES)})")
    return paths


def _labelled(folder: Path, classes: Sequence[list[Path]]) -> _Files:
    paths = [path for images in classes for path in images]
    return _Files(paths, [label for label, images in enumerate(classes) for _ in images], folder)


def _wnids(listing: Path, known: Collection[str]) -> list[str]:
    """The classes in order: as `listing` has them, each of those that are `known` once, or sorted where it is not."""
    if not listing.is_file():
        return sorted(known)
    wnids = [_nfc(line) for line in _lines(listing)]
    counts = Counter(wnids)
    for wnid in [*known, *wnids]:
        if counts[wnid] != 1 or wnid not in known:
            raise UserError(f"{listing} names {wnid!r} {counts[wnid]} times; it should name each class once")
    return wnids


def _words(listing: Path, wnids: Sequence[str]) -> list[str]:
    lines = _lines(listing) if listing.is_file() else []
    words = {_nfc(wnid): _nfc(names.split(",")[0]) for wnid, _, names in (line.partition("\t") for line in lines)}
    return [words.get(wnid, wnid) for wnid in wnids]


def _annotations(folder: Path) -> Path:
    return folder / "val_annotations.txt"


def _annotated_wnids(folder: Path) -> set[str]:
    """The classes that `folder`/val_annotations.txt gives its images."""
    listing = _annotations(folder)
    lines = _lines(listing, errors="surrogateescape") if listing.is_file() else []
    return {_nfc(line.split("\t")[1]) for line in lines if "\t" in line}


def _annotated(folder: Path, wnids: Sequence[str]) -> _Files:
    """The images that `folder`/val_annotations.txt lists, one a line: file name, tab, wnid, and more tabs."""
    listing, images = _annotations(folder), folder / "images"
    if not listing.is_file():
        raise UserError(f"{listing} does not exist; it should give the class of each image in {images}")
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    named = {_nfc(path.name): path for path in images.iterdir()}
    paths, labels = [], []
    # Names of files need not be UTF-8; so decoded, they are what Python calls these files.
    for line in _lines(listing, errors="surrogateescape"):
        name, wnid, *_ = [*line.split("\t"), ""]
        if _nfc(wnid) not in label_of or Path(name).name != name:
            raise UserError(f"{listing} has the line {line[:80]!r}; it should have a file's name, a tab and its class")
        paths.append(named.get(_nfc(name), images / name))
        labels.append(label_of[_nfc(wnid)])
    return _Files(paths, labels, folder)


def _lines(path: Path, errors: str = "replace") -> list[str]:
    text = path.read_text(encoding="utf-8-sig", errors=errors)
    return [line for line in text.split("\n") if line.strip()]
