"""The data set `signals`: who is trained on, who is left out, what is made of the windows."""

import numpy as np
import pytest
import torch

from icckd.data import load_data
from icckd.data.digest import digests
from icckd.errors import UserError
from icckd.settings import DataSettings


@pytest.fixture
def folder(tmp_path):
    """Eight people, p1 to p8, with four windows each of two activities, and p8 alone a third; a channel is constant."""
    random = np.random.default_rng(3)
    person = np.repeat([f"p{n}" for n in range(1, 9)], 8)
    activity = np.tile(np.repeat(["run", "walk"], 4), 8)
    signals = 5 + 3 * random.standard_normal((64, 3, 11))
    signals[:, 2] = 4.5
    np.savez(tmp_path / "a.npz", signals=signals, person=person, activity=activity)
    return tmp_path


def load(folder, **settings):
    return load_data(DataSettings(name="signals", root=folder and str(folder), **settings))


def people(data):
    return data.people.by_split()


def test_the_last_quarter_of_the_people_is_left_out(folder):
    data = load(folder)
    assert data.name == "signals"
    assert people(data) == {"train": [f"p{n}" for n in range(1, 7)], "test": ["p7", "p8"]}
    assert data.train_images.shape == (48, 3, 1, 11)
    assert data.test_images.shape == (16, 3, 1, 11)
    assert data.classes == ("run", "walk")
    stored = np.load(folder / "a.npz")
    assert torch.equal(data.train_images[:, :, 0], torch.from_numpy(stored["signals"][:48].astype(np.float32)))
    assert [data.classes[label] for label in data.test_labels] == stored["activity"][48:].tolist()
    assert [data.people.names[who] for who in data.people.test] == stored["person"][48:].tolist()


def test_people_are_left_out_by_name_and_held_out_by_share(folder):
    data = load(folder, left_out=["p2", "p5"])
    assert people(data) == {"train": ["p1", "p3", "p4", "p6", "p7", "p8"], "test": ["p2", "p5"]}
    data = load(folder, left_out=["p8"], validation=0.3)
    assert people(data) == {"train": [f"p{n}" for n in range(1, 6)], "test": ["p6", "p7"]}
    assert people(load(folder, validation=0.001))["test"] == ["p6"]


def test_numbers_are_names_too(tmp_path):
    who = np.repeat([3, 20, 100], 2)
    np.savez(
        tmp_path / "a.npz", signals=np.random.default_rng(4).random((6, 1, 8)), person=who, activity=np.tile([0, 1], 3)
    )
    assert people(load(tmp_path, left_out=[20])) == {"train": ["3", "100"], "test": ["20"]}
    assert people(load(tmp_path))["test"] == ["100"]


def test_statistics_are_those_of_the_training_people(folder):
    data, signals = load(folder), np.load(folder / "a.npz")["signals"][:48].astype(np.float32).astype(np.float64)
    np.testing.assert_allclose(data.mean, signals.mean((0, 2)), rtol=1e-6)
    np.testing.assert_allclose(data.std, [*signals[:, :2].std((0, 2)), 1.0], rtol=1e-6)
    given = load(folder, mean=[1.0, -20.0, 300.0], std=[2.0, 1e-3, 50.0])
    assert (given.mean, given.std) == ((1.0, -20.0, 300.0), (2.0, 1e-3, 50.0))


def test_a_part_of_the_windows_and_label_noise(folder):
    data = load(folder, train_fraction=0.5, label_noise="symmetric:0.25")
    assert len(data.train_images) == len(data.people.train) == 24
    assert data.wrong_labels == 0.25
    whole = load(folder)
    place = {window.numpy().tobytes(): k for k, window in enumerate(whole.train_images)}
    places = [place[window.numpy().tobytes()] for window in data.train_images]
    assert torch.equal(data.people.train, whole.people.train[places])
    assert (data.train_labels != whole.train_labels[places]).sum() == 6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"left_out": ["p1", "Eve"]}, r"data\.left_out names 'Eve', whom .* does not; it names p1, p2"),
        ({"left_out": [f"p{n}" for n in range(1, 9)]}, r"data\.left_out names everybody"),
        ({"left_out": [f"p{n}" for n in range(1, 8)], "validation": 0.5}, "leaves nobody to train on: .* 1 of the 1"),
        ({"mean": [0.0], "std": [1.0]}, r"data\.mean has 1 values; it should have 3"),
        ({"image_size": 32}, r"data\.image_size is 32"),
        ({"labels": "coarse"}, r"data\.labels is coarse"),
    ],
)
def test_settings_that_do_not_fit(folder, settings, message):
    with pytest.raises(UserError, match=message):
        load(folder, **settings)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"person": ["p1"] * 6}, "one person only; there should be at least 2"),
        ({"activity": [1] * 6}, "one activity only; there should be at least 2"),
        ({"activity": [1, 1, 2, 2, 1, 3]}, "the activity 3 is only of p3, of whom nobody would be trained on"),
        ({"signals": np.ones((6, 2, 8))}, "the same everywhere"),
    ],
)
def test_data_that_cannot_be_used(tmp_path, changed, message):
    arrays = {
        "signals": np.random.default_rng(5).random((6, 2, 8)),
        "person": ["p1", "p1", "p2", "p2", "p3", "p3"],
        "activity": [1, 2] * 3,
    }
    np.savez(tmp_path / "a.npz", **{name: np.array(value) for name, value in {**arrays, **changed}.items()})
    with pytest.raises(UserError, match=message):
        load(tmp_path)


def test_digests_tell_people(folder):
    first, second = digests(load(folder)), digests(load(folder, left_out=["p1", "p2"]))
    assert {name for name in first if first[name] != second[name]} == {
        "data.train_images", "data.test_images", "data.people.train", "data.people.test",
    }  # fmt: skip


def test_synthetic_signals_say_so_and_people_left_out_are_hard():
    """A ridge regression on the logarithm of each window's spectrum knows those it has seen, and errs about others."""
    data = load(None)
    assert data.name == "synthetic signals"
    assert data.train_images.shape == (1080, 3, 1, 64)
    assert torch.bincount(data.people.train).tolist() == [120] * 9
    assert torch.bincount(data.test_labels).tolist() == [72] * 5

    def spectra(windows):
        logarithms = torch.fft.rfft(windows[:, :, 0].double()).abs().add(1e-2).log().flatten(1)
        return torch.cat([logarithms, torch.ones(len(windows), 1)], dim=1)

    known = torch.arange(1080) % 4 == 0
    rows, wanted = spectra(data.train_images[~known]), torch.eye(5, dtype=torch.float64)[data.train_labels[~known]]
    weights = torch.linalg.solve(rows.T @ rows + 10 * torch.eye(rows.shape[1]), rows.T @ wanted)

    def accuracy(windows, labels):
        return ((spectra(windows) @ weights).argmax(1) == labels).double().mean().item()

    seen = accuracy(data.train_images[known], data.train_labels[known])
    unseen = accuracy(data.test_images, data.test_labels)
    assert seen > 0.9
    assert 0.4 < unseen < seen - 0.1
    assert torch.equal(load(None).train_images, data.train_images)
