"""Wrong labels and candidate sets: how many, which, and that nothing but the data decides."""

import numpy as np
import pytest
import torch

from icckd.data import load_data
from icckd.data.digest import digests
from icckd.data.label_noise import candidate_labels, one_of, symmetric_noise, with_noise
from icckd.errors import UserError
from icckd.settings import DataSettings, LabelNoise, Settings, check, label_noise_of


def some_labels(count=3000, classes=7, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, classes, count))


@pytest.mark.parametrize("share", [0.0, 0.013, 0.4, 0.99])
def test_the_share_of_every_class_is_wrong_and_goes_to_the_others_evenly(share):
    labels = some_labels()
    noisy = symmetric_noise(labels, 7, share)
    for label in range(7):
        of_class = noisy[labels == label]
        wrong = of_class[of_class != label]
        assert len(wrong) == round(share * len(of_class))
        if share > 0.3:
            expected = len(wrong) / 6
            counts = wrong.bincount(minlength=7)
            assert (counts - expected).abs()[counts > 0].max() < 5 * expected**0.5
            assert (counts > 0).sum() == 6


def test_a_larger_share_changes_the_same_labels_to_the_same_classes():
    labels = some_labels()
    some, more = (symmetric_noise(labels, 7, share) for share in (0.2, 0.6))
    changed = some != labels
    assert torch.equal(more[changed], some[changed])
    assert ((more != labels).sum() / changed.sum()).item() == pytest.approx(3, rel=0.02)


def test_two_classes_change_places():
    labels = some_labels(classes=2)
    noisy = symmetric_noise(labels, 2, 0.5)
    assert noisy.unique().tolist() == [0, 1]
    assert (noisy != labels).double().mean().item() == pytest.approx(0.5, abs=0.001)


def test_candidates_hold_the_true_class_and_others_with_the_probability(monkeypatch):
    monkeypatch.setattr("icckd.data.label_noise._DRAWN_AT_ONCE", 700)
    labels, probability = some_labels(), 0.1
    candidates = candidate_labels(labels, 7, probability)
    true = torch.nn.functional.one_hot(labels, 7).bool()
    assert candidates.dtype == torch.bool
    assert candidates[true].all()
    others = candidates[~true].double().mean().item()
    assert abs(others - probability) < 5 * (probability * (1 - probability) / (6 * len(labels))) ** 0.5
    assert (candidates <= candidate_labels(labels, 7, 0.3)).all()
    assert torch.equal(candidate_labels(labels, 7, 0.0), true)


def test_the_drawn_label_is_any_candidate_alike_wherever_the_true_one_is(monkeypatch):
    monkeypatch.setattr("icckd.data.label_noise._DRAWN_AT_ONCE", 700)
    sets = torch.from_numpy(np.random.default_rng(1).random((4000, 6)) < 0.5)
    sets[:, 2] = True  # As if the true class were this one of all.
    drawn = one_of(sets)
    assert sets[torch.arange(4000), drawn].all()
    for size in range(1, 7):
        rows = sets.sum(1) == size
        taken = (drawn[rows] == 2).double().mean().item()
        assert abs(taken - 1 / size) <= 5 * (1 / size * (1 - 1 / size) / int(rows.sum())) ** 0.5


@pytest.mark.parametrize("noise", [LabelNoise("symmetric", 0.4), LabelNoise("partial", 0.2)])
def test_noise_is_the_same_every_time(noise):
    labels = some_labels()
    first = with_noise(labels, 7, noise)
    torch.manual_seed(5)
    np.random.default_rng().random(3)
    second = with_noise(labels, 7, noise)
    assert torch.equal(labels, some_labels())
    assert torch.equal(first[0], second[0])
    assert (first[1] is None) == (second[1] is None) == (noise.kind == "symmetric")
    assert first[1] is None or torch.equal(first[1], second[1])


@pytest.mark.parametrize(
    "text", ["foo", "symmetric", "symmetric:", "symmetric:1", "partial:-0.1", "partial:nan", ":0.4"]
)
def test_what_is_no_noise_is_refused(text):
    with pytest.raises(
        UserError, match=r"^data\.label_noise is '.*'; it should be null, symmetric:P or partial:Q, with"
    ):
        check(Settings(data=DataSettings(label_noise=text)))


def test_settings_name_kind_and_amount():
    assert label_noise_of("symmetric:0.4") == ("symmetric", 0.4)
    assert label_noise_of("partial:0") == ("partial", 0.0)


@pytest.mark.parametrize("noise", ["symmetric:0.4", "partial:0.3"])
def test_noise_is_of_the_training_labels_alone_after_the_splits(noise):
    splits = {"validation": 0.2, "train_fraction": 0.5}
    clean = load_data(DataSettings(**splits))
    noisy = load_data(DataSettings(**splits, label_noise=noise))
    assert torch.equal(noisy.train_images, clean.train_images)
    assert torch.equal(noisy.test_labels, clean.test_labels)
    assert (clean.wrong_labels, clean.candidates) == (0.0, None)
    wrong = (noisy.train_labels != clean.train_labels).double().mean().item()
    assert wrong == noisy.wrong_labels > 0.3
    parts = {name for name, digest in digests(noisy).items() if digests(clean).get(name) != digest}
    if noise.startswith("symmetric"):
        assert noisy.candidates is None
        assert parts == {"data.train_labels"}
    else:
        assert noisy.candidates.shape == (len(clean.train_labels), 10)
        assert noisy.candidates.gather(1, clean.train_labels.unsqueeze(1)).all()
        assert noisy.candidates.gather(1, noisy.train_labels.unsqueeze(1)).all()
        assert parts == {"data.train_labels", "data.candidates"}
