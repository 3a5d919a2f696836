import hashlib
from dataclasses import replace

import pytest
import torch

from icckd.data import load_data
from icckd.data.digest import digests
from icckd.settings import DataSettings


@pytest.fixture(scope="module")
def data():
    return load_data(DataSettings())


def test_the_same_data_have_the_same_digests(data):
    assert digests(load_data(DataSettings())) == digests(data)
    assert digests(data)["data.train_images"].startswith(f"{len(data.train_images)}×1×8×8, sha256 ")


def changed(tensor):
    other = tensor.clone()
    other[-1] = 1 - other[-1].clamp(max=1)
    return other


@pytest.mark.parametrize("part", ["train_images", "train_labels", "test_images", "test_labels"])
@pytest.mark.parametrize("change", [changed, lambda t: t.flip(0), lambda t: t[:-1], lambda t: t.unsqueeze(-1)])
def test_a_part_that_changes_changes_its_digest_alone(data, part, change):
    before, after = digests(data), digests(replace(data, **{part: change(getattr(data, part))}))
    assert {name for name in before if before[name] != after[name]} == {f"data.{part}"}


def test_names_that_run_together_differ(data):
    first, second = (digests(replace(data, classes=names)) for names in (("ab", "c"), ("a", "bc")))
    assert first["data.classes"] != second["data.classes"]


def test_the_digest_of_many_chunks_is_that_of_their_digests(data, monkeypatch):
    monkeypatch.setattr("icckd.data.digest._CHUNK", 1000)
    content = data.test_images.numpy().tobytes()
    parts = b"".join(hashlib.sha256(content[i : i + 1000]).digest() for i in range(0, len(content), 1000))
    expected = hashlib.sha256(parts).hexdigest()
    assert digests(data)["data.test_images"].endswith(f"sha256 {expected}")


def test_memory_that_is_not_contiguous(data):
    strided = torch.stack([data.test_images, data.test_images], dim=-1)[..., 0]
    assert not strided.is_contiguous()
    assert digests(replace(data, test_images=strided)) == digests(data)
