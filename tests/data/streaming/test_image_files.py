"""Images in files beside the same images in memory: the data set, its splits, its batches."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from icckd.data import Augmentation, Batches, load_data
from icckd.data.digest import digests
from icckd.data.order import Balance
from icckd.errors import UserError
from icckd.settings import DataSettings


def load(root, streaming=True, workers=0, **settings):
    workers = workers if streaming else None
    chosen = {"name": "image-folder", "root": str(root), "streaming": streaming, "workers": workers, **settings}
    return load_data(DataSettings(**chosen))


@pytest.fixture(scope="module")
def both(squares):
    """The same folder streamed, and in memory."""
    return load(squares), load(squares, streaming=False)


def batches(data, **changes):
    arguments = {
        "batch_size": 10,
        "mean": data.mean,
        "std": data.std,
        "augmentation": Augmentation(2, flip=True),
        "views": 2,
        "shuffle": True,
        "seed": 5,
        "device": "cpu",
        "drop_last": False,
    }
    return Batches(data.train_images, data.train_labels, **{**arguments, **changes})


def flat(batches):
    return [(*batch.views, batch.labels, batch.indices) for batch in batches]


def assert_same(first, second, **tolerance):
    for a, b in zip(first, second, strict=True):
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x, y, **{"rtol": 0, "atol": 0, **tolerance})


def test_the_data_set_is_that_in_memory(both):
    streamed, resident = both
    assert streamed.train_images.shape == resident.train_images.shape == (42, 3, 16, 16)
    assert len(streamed.test_images) == 21
    for name in ("classes", "mean", "std", "augmentation"):
        assert getattr(streamed, name) == getattr(resident, name)
    places = torch.tensor([30, 2, 2, 41])
    assert torch.equal(streamed.train_images[places], resident.train_images[places])
    assert torch.equal(streamed.test_labels, resident.test_labels)


def test_held_out_images_are_those_held_out_in_memory(squares):
    streamed, resident = (load(squares, streaming, validation=0.3, train_fraction=0.5) for streaming in (True, False))
    for part in ("train", "test"):
        everywhere = torch.arange(len(getattr(resident, f"{part}_labels")))
        assert torch.equal(getattr(streamed, f"{part}_images")[everywhere], getattr(resident, f"{part}_images"))
        assert torch.equal(getattr(streamed, f"{part}_labels"), getattr(resident, f"{part}_labels"))


@pytest.mark.parametrize("augmentation", [None, Augmentation(2, flip=True), Augmentation(0, True, rotation=20.0)])
@pytest.mark.parametrize("balance", [None, Balance(2, 5)])
def test_batches_are_those_in_memory_to_the_bit(both, augmentation, balance):
    streamed, resident = (batches(data, augmentation=augmentation, balance=balance) for data in both)
    for epoch in (0, 1):
        assert_same(flat(streamed.epoch(epoch)), flat(resident.epoch(epoch)))


@pytest.mark.parametrize("rotation", [0.0, 20.0])
def test_boxes_are_those_in_memory_and_pixels_but_for_rounding(both, rotation):
    augmentation = Augmentation(0, flip=True, rotation=rotation, resized_crop=(0.1, 1.0))
    changes = {"augmentation": augmentation, "mean": (0.0,) * 3, "std": (1 / 255,) * 3}
    streamed, resident = (batches(data, **changes) for data in both)
    # What is turned as well is interpolated twice when streamed, and once in memory.
    assert_same(flat(streamed.epoch(1)), flat(resident.epoch(1)), atol=1.01 if not rotation else 20.0)
    if rotation:
        pairs = zip(flat(streamed.epoch(1)), flat(resident.epoch(1)), strict=True)
        assert max((a[0] - b[0]).abs().mean() for a, b in pairs) < 3.0


@pytest.mark.parametrize("augmentation", [Augmentation(2, flip=True), Augmentation(0, True, 0.0, (0.2, 1.0))])
def test_processes_ranks_and_resuming_change_no_bit(squares, photographs, augmentation, monkeypatch):
    monkeypatch.setattr("icckd.data.streaming.image_files._PIECE", 4)
    alone, helped = (load(photographs, image_size=16, workers=workers) for workers in (0, 2))
    whole = flat(batches(alone, augmentation=augmentation).epoch(2))
    assert_same(flat(batches(helped, augmentation=augmentation).epoch(2, first_step=3)), whole[3:])
    parts = [flat(batches(helped, augmentation=augmentation, part=(rank, 3)).epoch(2)) for rank in range(3)]
    for batch, *shares in zip(whole, *parts, strict=True):
        assert all(torch.equal(x, torch.cat(xs)) for x, *xs in zip(batch, *shares, strict=True))


def test_bounds_of_classes_are_those_in_memory(both):
    areas = torch.tensor([[0.1, 1.0], [0.9, 1.0]], dtype=torch.float64).repeat(len(both[0].classes), 1)
    changes = {"augmentation": Augmentation(0, flip=True, resized_crop=(0.1, 1.0)), "crop_areas": areas}
    changes |= {"mean": (0.0,) * 3, "std": (1 / 255,) * 3}
    streamed, resident = (batches(data, **changes) for data in both)
    assert_same(flat(streamed.epoch(1)), flat(resident.epoch(1)), atol=1.01)


def test_a_part_without_images_is_empty(both):
    last = flat(batches(both[0], part=(0, 3)).epoch(0))[-1]
    assert [len(tensor) for tensor in last] == [0, 0, 0, 0]
    assert last[0].shape == (0, 3, 16, 16)


def test_nothing_is_decoded_before_it_is_needed(squares, monkeypatch):
    monkeypatch.setattr("icckd.data.streaming.decoders.decode", lambda request: 1 / 0)
    data = load(squares, mean=[0.5] * 3, std=[0.2] * 3)
    assert (data.mean, data.std) == ((0.5,) * 3, (0.2,) * 3)
    with pytest.raises(ZeroDivisionError):
        load(squares)


def test_statistics_of_many_images_are_those_of_a_sample(squares, monkeypatch):
    monkeypatch.setattr("icckd.data.image_data._SAMPLE", 6)
    data, everything = load(squares), load(squares, streaming=False).train_images
    expected = everything[[0, 7, 14, 21, 28, 35]].double() / 255
    assert data.mean == pytest.approx(expected.mean(dim=(0, 2, 3)).tolist(), abs=1e-12)
    assert data.std == pytest.approx(expected.std(dim=(0, 2, 3), correction=0).tolist(), abs=1e-12)


def test_digests_know_names_sizes_and_labels_of_files_wherever_they_are(squares, tmp_path):
    def read():
        return digests(load(tmp_path / "there", mean=[0.5] * 3, std=[0.2] * 3))

    shutil.copytree(squares, tmp_path / "there")
    before = digests(load(squares, mean=[0.5] * 3, std=[0.2] * 3))
    assert read() == before
    one = tmp_path / "there" / "train" / "dog" / "03.png"
    one.rename(one.with_name("03x.png"))
    renamed = read()
    assert {name for name in before if before[name] != renamed[name]} == {"data.train_images"}
    one.with_name("03x.png").rename(one)
    one.write_bytes(one.read_bytes() + b"more")
    grown = read()
    assert {name for name in before if before[name] != grown[name]} == {"data.train_images"}
    data = load(tmp_path / "there", mean=[0.5] * 3, std=[0.2] * 3)
    one.unlink()
    with pytest.raises(UserError, match=r"data\.root: .*03\.png: No such file"):
        digests(data)


def test_black_images_are_refused_where_statistics_are_needed(tmp_path):
    for part, name in np.array(np.meshgrid(["train", "val"], ["a", "b"])).reshape(2, -1).T:
        (tmp_path / part / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / part / name / "0.png")
    with pytest.raises(UserError, match="holds 2 training images with the value 0, 0, 0 in every pixel"):
        load(tmp_path)


def test_two_ways_to_crop_are_refused(both):
    with pytest.raises(ValueError, match="images in files are cropped in one way only"):
        batches(both[0], augmentation=Augmentation(1, True, 0.0, (0.2, 1.0)))


def test_label_noise_is_that_in_memory(squares):
    streamed, resident = (load(squares, streaming=streaming, label_noise="partial:0.4") for streaming in (True, False))
    assert torch.equal(streamed.train_labels, resident.train_labels)
    assert torch.equal(streamed.candidates, resident.candidates)
    assert streamed.wrong_labels == resident.wrong_labels > 0


def test_strong_views_are_refused(both):
    for data in both:
        arguments = {"strong_views": 1, "strong_augmentation": data.strong_augmentation}
        if isinstance(data.train_images, torch.Tensor):
            assert len(next(iter(batches(data, **arguments))).views) == 2
        else:
            with pytest.raises(ValueError, match="strong_views is 1; it should be 0 for images in files"):
                batches(data, **arguments)
