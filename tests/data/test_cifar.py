import gzip
import io
import os
import pickle
import tarfile

import numpy as np
import pytest
import torch

from icckd.data import load_data
from icckd.data.augmentation import Augmentation
from icckd.errors import UserError
from icckd.settings import DataSettings
from tests.data.python2_pickle import python2_pickle

PY_FOLDER = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
BIN_FOLDER = {"cifar10": "cifar-10-batches-bin", "cifar100": "cifar-100-binary"}
ARCHIVES = {
    "cifar-10-batches-py": "cifar-10-python.tar.gz",
    "cifar-100-python": "cifar-100-python.tar.gz",
    "cifar-10-batches-bin": "cifar-10-binary.tar.gz",
    "cifar-100-binary": "cifar-100-binary.tar.gz",
}
NAMES = {"cifar10": [f"name{i}" for i in range(10)], "cifar100": [f"name{i}" for i in range(100)]}
BATCHES = {
    "cifar10": ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"),
    "cifar100": ("train", "test"),
}
ROWS = {"cifar10": 6, "cifar100": 12}


def batches(name):
    """Random images and labels of each file."""
    random = np.random.default_rng(11)
    return {
        file: (
            random.integers(0, 256, (ROWS[name], 3072), dtype=np.uint8),
            random.permutation(len(NAMES[name]))[: ROWS[name]].tolist(),
        )
        for file in BATCHES[name]
    }


def python_files(name, dumps=python2_pickle):
    if name == "cifar10":
        files = {file: {"data": data, "labels": labels} for file, (data, labels) in batches(name).items()}
        files["batches.meta"] = {"label_names": NAMES[name], "num_vis": 72}
    else:
        files = {
            file: {"data": data, "fine_labels": labels, "coarse_labels": [0] * len(labels)}
            for file, (data, labels) in batches(name).items()
        }
        files["meta"] = {"fine_label_names": NAMES[name]}
    return {file: dumps(content) for file, content in files.items()}


def binary_files(name):
    files = {}
    for file, (data, labels) in batches(name).items():
        columns = [np.array(labels, dtype=np.uint8)[:, None], data]
        if name == "cifar100":
            columns.insert(0, np.full((len(labels), 1), 77, dtype=np.uint8))
        files[f"{file}.bin"] = np.concatenate(columns, axis=1).tobytes()
    files["batches.meta.txt" if name == "cifar10" else "fine_label_names.txt"] = (
        "\n".join(NAMES[name]).encode() + b"\n\n"
    )
    return files


def write_folder(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        (folder / file).write_bytes(content)


def write_archive(path, folder, files):
    with tarfile.open(path, "w:gz") as archive:
        for file, content in files.items():
            member = tarfile.TarInfo(f"{folder}/{file}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def load(name, root):
    return load_data(DataSettings(name=name, root=str(root)))


def assert_holds(data, name):
    *train, test = batches(name).values()
    images = np.concatenate([images for images, _ in train]).reshape(-1, 3, 32, 32)
    assert np.array_equal(data.train_images.numpy(), images)
    assert data.train_labels.tolist() == [label for _, labels in train for label in labels]
    assert np.array_equal(data.test_images.numpy(), test[0].reshape(-1, 3, 32, 32))
    assert data.test_labels.tolist() == test[1]
    assert data.classes == tuple(NAMES[name])
    assert data.augmentation == Augmentation(crop_padding=4, flip=True)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("distribution", ["python", "binary"])
@pytest.mark.parametrize("place", ["folder", "around", "archive", "beside the archive"])
def test_reads_each_distribution_wherever_it_is(tmp_path, name, distribution, place):
    binary = distribution == "binary"
    folder = (BIN_FOLDER if binary else PY_FOLDER)[name]
    files = binary_files(name) if binary else python_files(name)
    root = {"folder": tmp_path / folder, "archive": tmp_path / ARCHIVES[folder]}.get(place, tmp_path)
    if place in ("folder", "around"):
        write_folder(tmp_path / folder, files)
    else:
        write_archive(tmp_path / ARCHIVES[folder], folder, files)
    before = sorted(tmp_path.rglob("*"))
    assert_holds(load(name, root), name)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_reads_python_3_pickles(tmp_path, name, protocol):
    write_folder(tmp_path, python_files(name, lambda content: pickle.dumps(content, protocol)))
    assert_holds(load(name, tmp_path), name)


def test_classes_are_numbered_where_their_names_are_missing(tmp_path):
    files = python_files("cifar10")
    del files["batches.meta"]
    write_folder(tmp_path, files)
    assert load("cifar10", tmp_path).classes == tuple("0123456789")


def test_names_of_classes_can_be_written_as_utf8_whatever_a_pickle_holds(tmp_path):
    names = ["caf\udce9", *NAMES["cifar10"][1:]]
    files = python_files("cifar10")
    # As Python 3 writes it, and as Python 2 does: bytes, read as Latin-1.
    as_str = pickle.dumps({"label_names": names}, 2)
    as_bytes = python2_pickle({"label_names": ["café", *names[1:]]})
    for content, expected in ((as_str, "caf?"), (as_bytes, "café")):
        write_folder(tmp_path, files | {"batches.meta": content})
        assert load("cifar10", tmp_path).classes == (expected, *names[1:])


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path):
    write_folder(tmp_path, binary_files("cifar10"))
    listing = tmp_path / "batches.meta.txt"
    listing.write_bytes(b"\xef\xbb\xbf" + listing.read_bytes().replace(b"\n", b"\r\n"))
    assert load("cifar10", tmp_path).classes == tuple(NAMES["cifar10"])


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_training_images_of_one_constant_value_are_refused(tmp_path, name):
    files = binary_files(name)
    for file, (_, labels) in batches(name).items():
        coarse = b"" if name == "cifar10" else b"\0"
        files[f"{file}.bin"] = b"".join(coarse + bytes([label]) + b"\x09" * 3072 for label in labels)
    write_folder(tmp_path, files)
    with pytest.raises(UserError, match="with the value 9, 9, 9 in every pixel"):
        load(name, tmp_path)


class Hostile:
    def __init__(self, flag):
        self.flag = flag

    def __reduce__(self):
        return os.system, (f"touch {self.flag}",)


@pytest.mark.parametrize("file", ["data_batch_3", "test_batch", "batches.meta"])
def test_a_hostile_pickle_is_named_and_runs_no_code(tmp_path, file):
    flag = tmp_path / "flag"
    hostile = pickle.dumps({"data": Hostile(flag), "labels": [1], "label_names": Hostile(flag)}, 2)
    write_folder(tmp_path, {**python_files("cifar10"), file: hostile})
    with pytest.raises(UserError, match=f"{file} is not one of the data set's own pickles: .*system"):
        load("cifar10", tmp_path)
    assert not flag.exists()


ROW = np.zeros((2, 3072), np.uint8)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"labels": [1, 2]}, "under the key data"),
        ({"data": [1, 2], "labels": [1, 2]}, "under the key data"),
        ({"data": ROW[:, 1:], "labels": [1, 2]}, "rows of 3072"),
        ({"data": ROW.astype(np.int64), "labels": [1, 2]}, "a uint8 array"),
        ({"data": ROW, "labels": [1]}, "2 images but 1 labels"),
        ({"data": ROW, "labels": [1, 10]}, "labels from 0 to 9"),
        ({"data": ROW, "labels": [1, -1]}, "labels from 0 to 9"),
        ({"data": ROW, "labels": [1, 2.0]}, "labels from 0 to 9"),
        ({"data": ROW, "labels": "ab"}, "labels from 0 to 9"),
        ({"data": ROW, "fine_labels": [1, 2]}, "the key labels"),
        ([ROW], "dictionary"),
    ],
)
def test_wrong_batches_are_refused(tmp_path, content, words):
    write_folder(tmp_path, {**python_files("cifar10"), "data_batch_2": pickle.dumps(content)})
    with pytest.raises(UserError, match=f"data_batch_2 .*{words}"):
        load("cifar10", tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("data_batch_1.bin", bytes(3072), "has 3072 bytes; it should have a multiple of 3073"),
        ("test_batch.bin", b"", "has 0 bytes"),
        ("data_batch_4.bin", bytes([10]) + bytes(3072), "the label 10"),
        ("batches.meta.txt", b"one two", "names 2 classes; it should name 10"),
    ],
)
def test_wrong_binary_files_are_refused(tmp_path, file, content, words):
    write_folder(tmp_path, {**binary_files("cifar10"), file: content})
    with pytest.raises(UserError, match=words):
        load("cifar10", tmp_path)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_a_missing_file_is_named(tmp_path, name):
    files = binary_files(name)
    missing = f"{BATCHES[name][-1]}.bin"
    del files[missing]
    write_folder(tmp_path, files)
    with pytest.raises(UserError, match=f"{missing} is missing beside {tmp_path}"):
        load(name, tmp_path)


def test_a_truncated_archive_is_refused(tmp_path):
    path = tmp_path / "cifar-10-python.tar.gz"
    write_archive(path, "cifar-10-batches-py", python_files("cifar10"))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="not a whole gzip file"):
        load("cifar10", tmp_path)
    path.write_bytes(gzip.compress(gzip.decompress(whole)[:50_000]))
    with pytest.raises(UserError, match=r"cifar-10-python\.tar\.gz"):
        load("cifar10", tmp_path)
    path.write_bytes(gzip.compress(b"no tar" * 1000))
    with pytest.raises(UserError, match="no whole tar archive"):
        load("cifar10", tmp_path)


def test_links_and_files_elsewhere_in_an_archive_are_not_followed(tmp_path):
    secret = tmp_path / "secret"
    write_folder(secret, python_files("cifar10"))
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as archive:
        for file in BATCHES["cifar10"]:
            member = tarfile.TarInfo(f"cifar-10-batches-py/{file}")
            member.type, member.linkname = tarfile.SYMTYPE, str(secret / file)
            archive.addfile(member)
            archive.add(secret / file, f"other/{file}")
    with pytest.raises(UserError, match="holds no cifar10"):
        load("cifar10", tmp_path)


def test_a_member_that_claims_more_than_there_is(tmp_path):
    path = tmp_path / "cifar-10-python.tar.gz"
    member = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
    member.size = 1 << 40
    path.write_bytes(gzip.compress(member.tobuf(tarfile.GNU_FORMAT) + bytes(2048)))
    with pytest.raises(UserError, match=r"cifar-10-python\.tar\.gz"):
        load("cifar10", tmp_path)


COARSE_NAMES = [f"coarse{i}" for i in range(20)]


def coarse_of(fine):
    return fine * 7 % 20


def coarse_files(distribution):
    """Those of cifar100 with coarse labels that are a function of the fine ones."""
    if distribution == "python":
        files = {
            file: {"data": data, "fine_labels": labels, "coarse_labels": [coarse_of(fine) for fine in labels]}
            for file, (data, labels) in batches("cifar100").items()
        }
        files["meta"] = {"fine_label_names": NAMES["cifar100"], "coarse_label_names": COARSE_NAMES}
        return {file: python2_pickle(content) for file, content in files.items()}
    files = binary_files("cifar100")
    for file, (data, labels) in batches("cifar100").items():
        columns = np.array([[coarse_of(fine) for fine in labels], labels], dtype=np.uint8).T
        files[f"{file}.bin"] = np.concatenate([columns, data], axis=1).tobytes()
    return files | {"coarse_label_names.txt": "\n".join(COARSE_NAMES).encode()}


def load_coarse(name, root):
    return load_data(DataSettings(name=name, root=str(root), labels="coarse"))


@pytest.mark.parametrize("distribution", ["python", "binary"])
@pytest.mark.parametrize("archived", [False, True])
def test_cifar100_has_its_coarse_classes(tmp_path, distribution, archived):
    files, folder = coarse_files(distribution), (BIN_FOLDER if distribution == "binary" else PY_FOLDER)["cifar100"]
    if archived:
        write_archive(tmp_path / ARCHIVES[folder], folder, files)
    else:
        write_folder(tmp_path, files)
    data = load_coarse("cifar100", tmp_path)
    (_, train), (_, test) = batches("cifar100").values()
    assert data.classes == tuple(COARSE_NAMES)
    assert data.fine_labels.train.tolist() == train
    assert data.fine_labels.test.tolist() == test
    assert data.train_labels.tolist() == [coarse_of(fine) for fine in train]
    assert data.test_labels.tolist() == [coarse_of(fine) for fine in test]
    there = {*train, *test}
    assert data.fine_labels.coarse_of.tolist() == [coarse_of(fine) if fine in there else -1 for fine in range(100)]


def test_coarse_labels_that_cannot_be_are_refused(tmp_path):
    write_folder(tmp_path, binary_files("cifar100"))
    with pytest.raises(UserError, match=r"train\.bin has the coarse label 77; it should be from 0 to 19"):
        load_coarse("cifar100", tmp_path)
    files = coarse_files("binary")
    first, row = files["train.bin"][:3074], bytearray(files["test.bin"])
    row[0], row[1] = (first[0] + 1) % 20, first[1]
    write_folder(tmp_path, files | {"test.bin": bytes(row)})
    with pytest.raises(UserError, match=rf"test\.bin has images of class {first[1]} with different coarse labels"):
        load_coarse("cifar100", tmp_path)
    write_folder(tmp_path, files | {"coarse_label_names.txt": b"one two"})
    with pytest.raises(UserError, match=r"coarse_label_names\.txt names 2 classes; it should name 20"):
        load_coarse("cifar100", tmp_path)


def test_cifar10_has_animals_and_vehicles(tmp_path):
    write_folder(tmp_path, python_files("cifar10"))
    data, fine = load_coarse("cifar10", tmp_path), load("cifar10", tmp_path)
    assert data.classes == ("animals", "vehicles")
    assert torch.equal(data.fine_labels.train, fine.train_labels)
    vehicles = [0, 1, 8, 9]
    assert data.train_labels.tolist() == [int(label in vehicles) for label in fine.train_labels.tolist()]


@pytest.mark.parametrize("name", ["fashion-mnist", "tiny-imagenet", "image-folder"])
def test_others_have_no_coarse_classes(tmp_path, name):
    with pytest.raises(
        UserError, match=f"data.labels is coarse, but {name} has no coarse classes; use fine, or one of"
    ):
        load_coarse(name, tmp_path)
