"""The data sets `cifar10` and `cifar100` (Krizhevsky, 2009), in their python and their binary distributions.

Both hold 32×32 RGB images as rows of 3072 bytes, channel by channel. The python distribution is pickled dictionaries;
in the binary one each row follows its label (cifar100: its coarse label and its fine label). Coarse classes are
cifar100's 20, as its files have them, and cifar10's animals and vehicles.
"""

import io
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from icckd.data.augmentation import Augmentation
from icckd.data.bounded_read import read_file
from icckd.data.image_data import CoarseClasses, ImageData, Split, image_data
from icckd.data.restricted_pickle import PickleRejected, read_pickled_dict
from icckd.errors import UserError
from icckd.settings import DataSettings

_PIXELS = 3 * 32 * 32
_LARGEST = 1 << 30
# Where a file was found, for messages, and its content.
_Files = dict[str, tuple[str, bytes | bytearray]]


@dataclass(frozen=True)
class _Distribution:
    """One form in which a data set is distributed: the names of its folder, its archive and the files in both.

    `names` and `coarse_names` are the files that name the classes; the latter is empty where a data set has no such.
    """

    folder: str
    archive: str
    train: tuple[str, ...]
    test: str
    names: str
    binary: bool
    coarse_names: str = ""


_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
_DISTRIBUTIONS = {
    "cifar10": (
        _Distribution(
            "cifar-10-batches-py", "cifar-10-python.tar.gz", _BATCHES, "test_batch", "batches.meta", binary=False
        ),
        _Distribution(
            "cifar-10-batches-bin",
            "cifar-10-binary.tar.gz",
            tuple(f"{name}.bin" for name in _BATCHES),
            "test_batch.bin",
            "batches.meta.txt",
            binary=True,
        ),
    ),
    "cifar100": (
        _Distribution(
            "cifar-100-python",
            "cifar-100-python.tar.gz",
            ("train",),
            "test",
            "meta",
            binary=False,
            coarse_names="meta",
        ),
        _Distribution(
            "cifar-100-binary",
            "cifar-100-binary.tar.gz",
            ("train.bin",),
            "test.bin",
            "fine_label_names.txt",
            binary=True,
            coarse_names="coarse_label_names.txt",
        ),
    ),
}
_CLASSES = {"cifar10": 10, "cifar100": 100}
_COARSE_CLASSES = 20
# Of airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck.
_ANIMALS_AND_VEHICLES = CoarseClasses(("animals", "vehicles"), torch.tensor([1, 1, 0, 0, 0, 0, 0, 0, 1, 1]))


def load_cifar(name: str, root: Path, settings: DataSettings, with_training: bool) -> ImageData:
    """`name`, cifar10 or cifar100, from `root`: the folder of its files, the one around it, or a .tar.gz archive.

    Classes have the names that the distribution's own list of names gives, or numbers where that file is missing.
    """
    distribution, files = _find(name, root, with_training)
    key = "label_names" if name == "cifar10" else "fine_label_names"
    classes = _names(distribution, files, distribution.names, key, _CLASSES[name])
    train = _split(name, distribution, files, distribution.train) if with_training else None
    test = _split(name, distribution, files, (distribution.test,))
    coarse = None
    if settings.labels == "coarse":
        coarse = _ANIMALS_AND_VEHICLES if name == "cifar10" else _coarse_classes(distribution, files, train, test)
    return image_data(name, train, test, classes, Augmentation(crop_padding=4, flip=True), settings, coarse)


def _find(name: str, root: Path, with_training: bool) -> tuple[_Distribution, _Files]:
    """The first distribution of the data set that `root` holds, and the files of it that are there and wanted."""
    for distribution in _DISTRIBUTIONS[name]:
        images = (*distribution.train, distribution.test) if with_training else (distribution.test,)
        wanted = (*images, distribution.names, distribution.coarse_names)
        archives = [root] if root.is_file() else [root / distribution.archive]
        folders = [] if root.is_file() else [root, root / distribution.folder]
        for folder in folders:
            if any((folder / file).is_file() for file in images):
                return distribution, _read_folder(folder, wanted)
        for archive in archives:
            if archive.is_file() and (files := _read_archive(archive, distribution.folder, wanted)):
                return distribution, files
    expected = " or ".join(d.archive for d in _DISTRIBUTIONS[name])
    raise UserError(f"{root} holds no {name}; data.root should be the folder that holds {expected}, or it unpacked")


def _read_folder(folder: Path, wanted: Sequence[str]) -> _Files:
    paths = {name: folder / name for name in wanted}
    return {name: (str(path), read_file(path, _LARGEST)) for name, path in paths.items() if path.is_file()}


def _read_archive(archive: Path, folder: str, wanted: Sequence[str]) -> _Files:
    """Those of the files `folder`/`wanted` that are in a .tar.gz archive, read in memory; nothing is unpacked."""
    files: _Files = {}
    # Decompressed first, so that no header in the archive can claim more than there is.
    content = io.BytesIO(read_file(archive, _LARGEST))
    try:
        with tarfile.open(fileobj=content, mode="r:") as members:
            for member in members:
                path = PurePosixPath(member.name)
                if member.isreg() and path.name in wanted and path.parts[-2:-1] == (folder,):
                    files[path.name] = (f"{archive}, {member.name}", _read_member(members, member, archive))
    except tarfile.TarError as error:
        raise UserError(f"{archive} is no whole tar archive ({error}); fetch it again") from error
    return files


def _read_member(members: tarfile.TarFile, member: tarfile.TarInfo, archive: Path) -> bytes:
    stream = members.extractfile(member)
    # A sparse member's size is only a claim: it takes no room in the archive.
    if stream is None or member.issparse() or len(data := stream.read()) != member.size:
        raise UserError(f"{archive}, {member.name} is not whole; fetch the archive again")
    return data


def _names(distribution: _Distribution, files: _Files, file: str, key: str, count: int) -> list[str]:
    """The names that `file`, or under `key` the pickle in it, gives so many classes; numbers where there is none."""
    if file not in files:
        return [str(i) for i in range(count)]
    source, content = files[file]
    if distribution.binary:
        names = content.decode("utf-8-sig", errors="replace").split()
    else:
        listed = _unpickle(source, content).get(key)
        names = [_text(n) for n in listed if isinstance(n, str | bytes)] if isinstance(listed, list) else []
    if len(names) != count:
        raise UserError(f"{source} names {len(names)} classes; it should name {count}")
    return names


def _coarse_classes(distribution: _Distribution, files: _Files, train: Split | None, test: Split) -> CoarseClasses:
    """The coarse classes of cifar100, and which fine ones each is made of, as the images of both splits say."""
    names = _names(distribution, files, distribution.coarse_names, "coarse_label_names", _COARSE_CLASSES)
    of = np.full(256, -1)  # Fine labels are not checked yet; they are read from a byte, or in range.
    for split, wanted in ((train, distribution.train), (test, (distribution.test,))):
        if split is None:
            continue
        fine = split.labels.numpy()
        coarse = np.concatenate([_coarse_labels(distribution, *files[file], len(fine)) for file in wanted])
        known = of[fine] >= 0
        of[fine] = np.where(known, of[fine], coarse)
        if (of[fine] != coarse).any():
            label = fine[of[fine] != coarse][0]
            raise UserError(f"{split.source} has images of class {label} with different coarse labels; fetch it again")
    return CoarseClasses(tuple(names), torch.from_numpy(of[: _CLASSES["cifar100"]]))


def _coarse_labels(distribution: _Distribution, source: str, content: bytes | bytearray, count: int) -> np.ndarray:
    """int64 (N,), N being `count`."""
    if not distribution.binary:
        return _listed_labels(_unpickle(source, content), source, "coarse_labels", _COARSE_CLASSES, count)
    labels = np.frombuffer(content, np.uint8)[:: 2 + _PIXELS].astype(np.int64)
    if labels.max() >= _COARSE_CLASSES:
        raise UserError(f"{source} has the coarse label {labels.max()}; it should be from 0 to {_COARSE_CLASSES - 1}")
    return labels


def _text(name: str | bytes) -> str:
    # A pickled str may hold what UTF-8 cannot.
    encoded = name if isinstance(name, bytes) else name.encode("utf-8", errors="replace")
    return encoded.decode("utf-8", errors="replace")


def _split(name: str, distribution: _Distribution, files: _Files, wanted: Sequence[str]) -> Split:
    images, labels = [], []
    for file in wanted:
        if file not in files:
            somewhere = next(iter(files.values()))[0]
            raise UserError(f"{file} is missing beside {somewhere}; {distribution.archive} has it")
        rows, row_labels = (_binary_batch if distribution.binary else _pickled_batch)(name, *files[file])
        images.append(rows)
        labels.append(row_labels)
    pixels = torch.from_numpy(np.concatenate(images)).view(-1, 3, 32, 32)
    return Split(pixels, torch.from_numpy(np.concatenate(labels)), files[wanted[0]][0])


def _binary_batch(name: str, source: str, content: bytes | bytearray) -> tuple[np.ndarray, np.ndarray]:
    """uint8 rows (N, 3072) and int64 labels (N,)."""
    header = 1 if name == "cifar10" else 2
    if len(content) == 0 or len(content) % (header + _PIXELS):
        raise UserError(f"{source} has {len(content)} bytes; it should have a multiple of {header + _PIXELS}")
    rows = np.frombuffer(content, np.uint8).reshape(-1, header + _PIXELS)
    return rows[:, header:], rows[:, header - 1].astype(np.int64)


def _pickled_batch(name: str, source: str, content: bytes | bytearray) -> tuple[np.ndarray, np.ndarray]:
    """uint8 rows (N, 3072) and int64 labels (N,)."""
    batch = _unpickle(source, content)
    data = batch.get("data")
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != _PIXELS:
        raise UserError(f"{source} should have, under the key data, a uint8 array of rows of {_PIXELS}")
    key = "labels" if name == "cifar10" else "fine_labels"
    return data, _listed_labels(batch, source, key, _CLASSES[name], len(data))


def _listed_labels(batch: dict[str, object], source: str, key: str, classes: int, count: int) -> np.ndarray:
    """The labels of so many images, of so many classes, that `batch` has under `key`: int64 (N,)."""
    labels = batch.get(key)
    if isinstance(labels, np.ndarray) and labels.ndim == 1:
        labels = labels.tolist()
    if not isinstance(labels, list) or not all(isinstance(n, int) and 0 <= n < classes for n in labels):
        raise UserError(f"{source} should have, under the key {key}, a list of labels from 0 to {classes - 1}")
    if len(labels) != count:
        raise UserError(f"{source} holds {count} images but {len(labels)} labels; there should be one per image")
    return np.array(labels, dtype=np.int64)


def _unpickle(source: str, content: bytes | bytearray) -> dict[str, object]:
    try:
        return read_pickled_dict(content)
    except PickleRejected as error:
        raise UserError(f"{source} is not one of the data set's own pickles: {error}") from error
