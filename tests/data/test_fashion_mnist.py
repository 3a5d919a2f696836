import gzip
import struct

import numpy as np
import pytest
import torch

from icckd.data import load_data
from icckd.data.augmentation import Augmentation
from icckd.data.fashion_mnist import DEBIAN_FOLDER, read_idx
from icckd.errors import UserError
from icckd.settings import DataSettings


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(struct.pack(">I", n) for n in array.shape)
    return header + array.astype(np.uint8).tobytes()


def write(folder, suffix="", separator="-", **replaced):
    """Writes a small data set of four files; returns its arrays by file name, without separator."""
    random = np.random.default_rng(3)
    arrays = {}
    for prefix, count in (("train", 40), ("t10k", 20)):
        arrays[f"{prefix}-images-idx3-ubyte"] = random.integers(0, 256, (count, 28, 28))
        arrays[f"{prefix}-labels-idx1-ubyte"] = np.arange(count) % 10
    for name, array in arrays.items():
        content = replaced.get(name.split("-idx")[0].replace("-", "_"), idx(array))
        path = folder / f"{name.replace('-idx', separator + 'idx')}{suffix}"
        path.write_bytes(gzip.compress(content) if suffix else content)
    return arrays


def load(folder, **settings):
    return load_data(DataSettings(name="fashion-mnist", root=str(folder), **settings))


@pytest.mark.parametrize(("suffix", "separator"), [("", "-"), (".gz", "-"), ("", "."), (".gz", ".")])
def test_reads_plain_and_compressed_files(tmp_path, suffix, separator):
    arrays = write(tmp_path, suffix, separator)
    data = load(tmp_path)
    assert np.array_equal(data.train_images[:, 0].numpy(), arrays["train-images-idx3-ubyte"])
    assert data.train_labels.tolist() == arrays["train-labels-idx1-ubyte"].tolist()
    assert np.array_equal(data.test_images[:, 0].numpy(), arrays["t10k-images-idx3-ubyte"])
    assert data.test_labels.tolist() == arrays["t10k-labels-idx1-ubyte"].tolist()
    assert (data.train_images.dtype, data.train_labels.dtype) == (torch.uint8, torch.int64)
    assert len(data.classes) == 10
    assert data.augmentation == Augmentation(crop_padding=2, flip=True)


GOOD_LABELS = idx(np.arange(40) % 10)
HUGE = bytes([0, 0, 8, 3]) + struct.pack(">III", 2**31, 2**10, 2**9)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("replaced", "words"),
    [
        ({"train_images": b""}, "train-images.* begins with"),
        ({"train_images": b"\x00\x00\x08\x03\x00\x00"}, "begins with 00 00 08 03"),
        ({"train_images": GOOD_LABELS}, "begins with 00 00 08 01"),
        ({"train_images": idx(np.zeros((40, 28, 28)))[:-1]}, "holds 31359 bytes of content; its header says 31360"),
        ({"train_images": idx(np.zeros((40, 28, 28))) + b"x"}, "holds more bytes"),
        ({"train_images": idx(np.zeros((39, 28, 28)))}, "39 images but 40 labels"),
        ({"train_images": idx(np.zeros((40, 28, 27)))}, "square"),
        ({"train_images": idx(np.zeros((0, 28, 28))), "train_labels": idx(np.zeros(0))}, "no images"),
        ({"train_images": HUGE}, r"claims 1125899906842624 bytes"),
        ({"t10k_images": idx(np.zeros((20, 27, 27)))}, "t10k-images.* 1×27×27 images; they should be 1×28×28"),
        ({"train_labels": b"\x00\x00\x0d\x01" + GOOD_LABELS[4:]}, "train-labels.* begins with 00 00 0d 01"),
        ({"train_images": idx(np.full((40, 28, 28), 9))}, "40 training images with the value 9 in every pixel"),
        ({"train_labels": idx(np.full(40, 3))}, "one class only"),
        ({"train_labels": idx(np.full(40, 10))}, "the label 10; labels should be from 0 to 9"),
    ],
)
def test_wrong_content_is_refused(tmp_path, suffix, replaced, words):
    write(tmp_path, suffix, **replaced)
    with pytest.raises(UserError, match=words) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"no gzip" + b, lambda b: b[:-6] + b"abcdef"])
def test_damaged_gzip_is_refused(tmp_path, damage):
    write(tmp_path, ".gz")
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte.gz is not a whole gzip file"):
        load(tmp_path)


def test_no_more_is_decompressed_than_the_header_claims(tmp_path):
    path = tmp_path / "bomb.gz"
    with gzip.open(path, "wb", compresslevel=1) as stream:
        stream.write(idx(np.zeros((4, 8, 8))))
        for _ in range(64):
            stream.write(bytes(1 << 20))
    # The stream's end is damaged too: who reads on to it finds another error.
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match="holds more bytes of content; its header says 256"):
        read_idx(path, axes=3)


@pytest.mark.parametrize("missing", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_a_missing_file_is_named(tmp_path, missing):
    write(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(UserError, match=f"{missing} does not exist"):
        load(tmp_path)


def test_without_root_and_package_the_error_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr("icckd.data.fashion_mnist.DEBIAN_FOLDER", tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"data\.root is not set.*dataset-fashion-mnist"):
        load_data(DataSettings(name="fashion-mnist"))


@pytest.mark.skipif(not DEBIAN_FOLDER.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_the_real_files():
    data = load_data(DataSettings(name="fashion-mnist"))
    assert data.train_images.shape == (60000, 1, 28, 28)
    assert data.train_labels.bincount().tolist() == [6000] * 10
    assert data.test_labels.bincount().tolist() == [1000] * 10
    assert data.mean == pytest.approx((0.2860,), abs=1e-4)
    assert data.std == pytest.approx((0.3530,), abs=1e-4)
