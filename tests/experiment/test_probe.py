"""Probes of fine classes, against scikit-learn's ridge regression on the same design and an explicit loop."""

import json
import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge as SklearnRidge
from torch import nn

from icckd.cli import main
from icckd.data import Batch, FineLabels, load_data
from icckd.experiment.evaluation import TRAINING_NUMBERS, Predictions
from icckd.experiment.information import conditional_information
from icckd.experiment.probe import FineProbe, Ridge
from icckd.settings import DataSettings


def design(rows, of):
    """`rows`, standardised as those `of` which the regression is, with a column of ones."""
    mean, deviation = of.mean(axis=0), np.sqrt(((of - of.mean(axis=0)) ** 2).mean(axis=0)) + 1e-6
    return np.hstack([(rows - mean) / deviation, np.ones((len(rows), 1))])


def expected_scores(train, labels, test, classes):
    train, test = train.double().numpy(), test.double().numpy()
    ridge = SklearnRidge(alpha=10.0, fit_intercept=False, solver="svd")
    ridge.fit(design(train, train), np.eye(classes)[labels.numpy()])
    return ridge.predict(design(test, train))


def some_rows(seed, count=90, dim=6, classes=5):
    """Rows far from 0, of very different spreads, one of them constant, that tell something of their class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    centers = torch.randn(classes, dim, generator=torch.Generator().manual_seed(99))
    rows = torch.randn(count, dim, generator=generator) + centers[labels]
    rows = rows * torch.logspace(-2, 2, dim) + 50
    rows[:, 3] = 7.0
    return rows, labels


@pytest.mark.parametrize(("count", "dim"), [(90, 6), (8, 40)])
def test_ridge_in_parts_is_scikit_learns_of_the_whole(count, dim):
    train, labels = some_rows(1, count, dim)
    test, _ = some_rows(2, 30, dim)
    ridge = Ridge(5)
    for part in torch.arange(count).split(7):
        ridge.add(train[part], labels[part])
    expected = expected_scores(train, labels, test, 5)
    assert ridge.scores(test).dtype == torch.float64
    assert np.allclose(ridge.scores(test).numpy(), expected, rtol=0, atol=1e-8)


def test_a_ridge_of_no_rows_is_refused():
    with pytest.raises(ValueError, match="no rows were added"):
        Ridge(3).scores(torch.ones(2, 4))


class Network(nn.Module):
    """Two numbers of an image's pixels as features; and logits of two classes. It counts what it is asked."""

    def __init__(self):
        super().__init__()
        self.asked = 0

    def forward(self, images):
        assert not self.training
        self.asked += len(images)
        features = images.flatten(1)[:, :9]
        return features, features[:, :2] * 3 + features[:, 2:4]


def batches_of(images, labels, size=16):
    parts = torch.arange(len(labels)).split(size)
    return [Batch((images[part],), labels[part], part) for part in parts]


def problem(seed, count):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(5, (count,), generator=generator)
    images = torch.randn(count, 1, 4, 4, generator=generator)
    images[:, 0, 0] += 0.8 * torch.nn.functional.one_hot(labels, 5)[:, :4]
    return images, labels


def test_fine_classes_are_told_within_the_true_coarse_class():
    (images, train), (others, test) = problem(1, 200), problem(2, 300)
    coarse_of = torch.tensor([0, 1, 0, 1, 0, -1])
    network = Network().train()
    probe = FineProbe(FineLabels(train, test, coarse_of)).fit(network, batches_of(images, train))
    assert network.training
    assert network.asked == 200
    with torch.no_grad():
        (features, logits), (own, own_logits) = network.eval()(images), network(others)
    found = probe.measure(Predictions(own, own_logits, coarse_of[test]))
    soft, own_soft = (
        torch.from_numpy(np.log(np.exp(x / 4) / np.exp(x / 4).sum(axis=1, keepdims=True)))
        for x in (logits.double().numpy(), own_logits.double().numpy())
    )
    for name, rows, asked in (("fine_probe", features, own), ("fine_probe_soft_labels", soft, own_soft)):
        scores, right = expected_scores(rows, train, asked, 6), 0
        for number, true in enumerate(test.tolist()):
            rivals = [c for c in range(6) if coarse_of[c] == coarse_of[true]]
            right += max(rivals, key=lambda c: scores[number, c]) == true
        assert found[name] == right / len(test)
    assert 0.34 < found["fine_probe_soft_labels"] < found["fine_probe"] < 1
    assert list(found) == ["fine_probe", "fine_probe_soft_labels", "fine_information_soft_labels"]
    expected = conditional_information(soft, train, coarse_of[train])
    assert found["fine_information_soft_labels"] == pytest.approx(expected, abs=1e-9)


def test_answers_that_are_not_finite_have_no_probe():
    images, labels = problem(3, 40)
    images[5] = torch.inf
    probe = FineProbe(FineLabels(labels, labels, torch.tensor([0, 1, 0, 1, 0]))).fit(
        Network(), batches_of(images, labels)
    )
    found = probe.measure(Predictions(torch.ones(40, 9), torch.ones(40, 2), labels % 2))
    assert all(np.isnan(value) for value in found.values())


def run(*arguments):
    with pytest.raises(SystemExit) as stopped:
        main([*map(str, arguments)])
    return stopped.value.code


def test_a_run_on_coarse_labels_has_both_numbers(tmp_path, monkeypatch):
    """With noise, which the probe's labels have not, and with a strong second view."""
    monkeypatch.setattr("icckd.methods.intra_class.IntraClass.strong_views", 1)
    short = ["arch", "convnet-small", "epochs", "1", "batch_size", "128", "warmup_epochs", "0"]
    stages = [
        word
        for stage in ("teacher", "student")
        for name, value in zip(short[::2], short[1::2], strict=True)
        for word in (f"--{stage}.{name}", value)
    ]
    data = ["--data.labels", "coarse", "--data.label_noise", "symmetric:0.2", "--data.validation", "0.3"]
    data += ["--evaluation.training_images", "200"]
    assert run("run", "--output", tmp_path / "run", *stages, *data) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    history = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for stage in ("teacher", "student"):
        assert 0.2 < summary[stage]["fine_probe_soft_labels"] < summary[stage]["fine_probe"] < 1
        assert -0.1 < summary[stage]["fine_information_soft_labels"] < math.log(5)
        last = [record for record in history if record["stage"] == stage][-1]
        assert {name: summary[stage][name] for name in TRAINING_NUMBERS} == {
            name: last[name] for name in TRAINING_NUMBERS
        }
        assert 0 < summary[stage]["training_distance_ratio"] != summary[stage]["distance_ratio"]
    assert -0.2 < summary["student"]["neighbour_agreement"] < 1
    assert "neighbour_agreement" not in summary["teacher"]
    assert len(summary["teacher"]["per_class_accuracy"]) == 2
    assert summary["data"]["fine_classes"] == 10
    assert summary["data"]["label_noise"]["wrong"] == pytest.approx(0.2, abs=0.002)
    assert summary["data"]["strong_augmentation"]["rotation"] == 15.0
    report = (tmp_path / "run" / "report.md").read_text()
    for words in (
        *("Fine classes in features", "Fine classes in soft labels", "2 coarse classes, which are made of 10"),
        *("What soft labels tell", "Neighbours as the teacher's", "Distance ratio in training"),
    ):
        assert words in report
    # Those of the teacher as it was saved, by the labels as they are.
    assert (
        run("evaluate", "--teacher.weights", tmp_path / "run" / "teacher", *data, "--output", tmp_path / "again") == 0
    )
    again = json.loads((tmp_path / "again" / "summary.json").read_text())["teacher"]
    assert again["fine_probe"] == summary["teacher"]["fine_probe"]
    for name in ("fine_probe_soft_labels", "fine_information_soft_labels", *TRAINING_NUMBERS):
        assert again[name] == summary["teacher"][name]


def test_digits_are_even_and_odd_and_split_by_digit():
    fine, coarse = (
        load_data(DataSettings(labels=labels, train_fraction=0.1, validation=0.2)) for labels in ("fine", "coarse")
    )
    assert coarse.classes == ("even", "odd")
    assert torch.equal(fine.train_images, coarse.train_images)
    assert torch.equal(coarse.fine_labels.train, fine.train_labels)
    assert torch.equal(coarse.fine_labels.test, fine.test_labels)
    assert torch.equal(coarse.train_labels, fine.train_labels % 2)
    assert torch.equal(coarse.test_labels, fine.test_labels % 2)
    noisy = load_data(DataSettings(labels="coarse", label_noise="symmetric:0.3", train_fraction=0.1, validation=0.2))
    assert torch.equal(noisy.fine_labels.train, fine.train_labels)
    assert (noisy.train_labels != coarse.train_labels).double().mean().item() == pytest.approx(0.3, abs=0.01)
