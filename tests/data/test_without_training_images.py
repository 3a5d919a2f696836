"""Every data set without its training images, whose files need not be there."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from icckd.data import load_data
from icckd.data.digest import digests
from icckd.data.image_data import without_training_images
from icckd.data.streaming import ImageFiles
from icckd.errors import UserError
from icckd.settings import DataSettings
from tests.cli.test_commands import image_folder, write_idx_data
from tests.data.test_cifar import BIN_FOLDER, PY_FOLDER, binary_files, python_files, write_archive, write_folder


def cifar(root, name, binary):
    files, folders = (binary_files, BIN_FOLDER) if binary else (python_files, PY_FOLDER)
    write_folder(root / folders[name], files(name))
    return DataSettings(name=name, root=str(root))


def tiny_imagenet(root):
    for number, wnid in enumerate(("n01", "n02")):
        (root / "train" / wnid / "images").mkdir(parents=True)
        (root / "val" / "images").mkdir(parents=True, exist_ok=True)
        for place in (root / "train" / wnid / "images" / "a.png", root / "val" / "images" / f"{number}.png"):
            Image.fromarray(np.random.default_rng(number).integers(0, 255, (16, 16, 3)).astype(np.uint8)).save(place)
    (root / "val" / "val_annotations.txt").write_text("0.png\tn01\t0\n1.png\tn02\t0\n")
    return DataSettings(name="tiny-imagenet", root=str(root))


def pictures(root):
    image_folder(root)
    return DataSettings(name="image-folder", root=str(root))


def fashion(root):
    write_idx_data(root)
    return DataSettings(name="fashion-mnist", root=str(root))


MAKERS = {
    "digits": lambda root: DataSettings(),
    "fashion-mnist": fashion,
    "cifar10": lambda root: cifar(root, "cifar10", binary=False),
    "cifar10 binary": lambda root: cifar(root, "cifar10", binary=True),
    "cifar100": lambda root: cifar(root, "cifar100", binary=False),
    "cifar100 binary": lambda root: cifar(root, "cifar100", binary=True),
    "image-folder": pictures,
    "tiny-imagenet": tiny_imagenet,
}


def remove_training_files(root):
    for path in sorted(root.rglob("*")):
        if path.is_file() and path.name.startswith(("train", "data_batch")):
            path.unlink()
    shutil.rmtree(root / "train", ignore_errors=True)


@pytest.mark.parametrize("name", MAKERS)
def test_the_rest_is_the_same_without_the_files(name, tmp_path):
    settings = MAKERS[name](tmp_path)
    whole = load_data(settings)
    remove_training_files(tmp_path)
    if name != "digits":
        with pytest.raises(UserError):
            load_data(settings)
    rest = load_data(settings, train=False)
    assert torch.equal(rest.test_images, whole.test_images)
    assert torch.equal(rest.test_labels, whole.test_labels)
    assert (rest.classes, rest.augmentation) == (whole.classes, whole.augmentation)
    assert rest.train_images.shape == (0, *whole.test_images.shape[1:])
    assert rest.train_images.dtype == torch.uint8
    assert rest.train_labels.shape == (0,)
    channels = whole.test_images.shape[1]
    assert (rest.mean, rest.std) == ((0.0,) * channels, (1.0,) * channels)
    known = digests(rest)
    assert known == {part: digest for part, digest in digests(whole).items() if not part.startswith("data.train")}


def test_an_archive_s_training_files_need_not_be_whole(tmp_path):
    files = python_files("cifar10")
    broken = {name: b"no pickle" if name.startswith("data_batch") else content for name, content in files.items()}
    write_archive(tmp_path / "cifar-10-python.tar.gz", PY_FOLDER["cifar10"], broken)
    settings = DataSettings(name="cifar10", root=str(tmp_path))
    with pytest.raises(UserError, match="data_batch_1"):
        load_data(settings)
    assert len(load_data(settings, train=False).test_images) == 6


def test_streamed_images_are_none_too(tmp_path):
    image_folder(tmp_path, splits=("val",))
    data = load_data(DataSettings(name="image-folder", root=str(tmp_path), streaming=True, workers=0), train=False)
    assert isinstance(data.train_images, ImageFiles)
    assert (len(data.train_images), len(data.test_images)) == (0, 16)


def test_what_is_said_of_training_images_alone_changes_nothing():
    plain = load_data(DataSettings(), train=False)
    data = load_data(DataSettings(label_noise="partial:0.4", train_fraction=0.3), train=False)
    assert torch.equal(data.test_labels, plain.test_labels)
    assert (data.candidates, data.wrong_labels) == (None, 0.0)


def test_coarse_classes_are_known():
    data, whole = (load_data(DataSettings(labels="coarse"), train=train) for train in (False, True))
    assert torch.equal(data.fine_labels.coarse_of, whole.fine_labels.coarse_of)
    assert torch.equal(data.test_labels, whole.test_labels)
    assert len(data.fine_labels.train) == 0


def test_given_mean_and_deviation_hold():
    data = load_data(DataSettings(mean=[0.25], std=[0.5]), train=False)
    assert (data.mean, data.std) == ((0.25,), (0.5,))


def test_validation_needs_training_images():
    with pytest.raises(UserError, match=r"data\.validation is 0\.2, a part of the training images"):
        load_data(DataSettings(validation=0.2), train=False)


def test_training_images_can_be_taken_away():
    whole = load_data(DataSettings(labels="coarse", label_noise="partial:0.4"))
    rest = without_training_images(whole)
    assert len(rest.train_images) == len(rest.train_labels) == len(rest.fine_labels.train) == 0
    assert (rest.candidates, rest.mean, rest.std) == (None, whole.mean, whole.std)
    assert torch.equal(rest.test_images, whole.test_images)
