"""Predictions and measures, against double loops over pairs and scikit-learn."""

import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, recall_score
from sklearn.metrics.pairwise import cosine_distances
from torch import nn

from icckd.data import Batch
from icckd.experiment.evaluation import Predictions, measure, predict, recall_at_1

torch.set_num_threads(2)


def random_predictions(seed, count=60, classes=5, dim=7):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, dim, generator=generator).relu()
    logits = 3 * torch.randn(count, classes, generator=generator)
    labels = torch.randint(classes, (count,), generator=generator)
    return Predictions(features, logits, labels)


def pair_loop(predictions):
    """intra and inter by their definitions, a pair at a time."""
    unit = predictions.features.double().numpy()
    norms = np.linalg.norm(unit, axis=1, keepdims=True)
    unit = np.divide(unit, norms, out=np.zeros_like(unit), where=norms > 0)
    labels = predictions.labels.numpy()
    per_class, means = [], []
    for label in np.unique(labels):
        rows = unit[labels == label]
        means.append(rows.mean(axis=0))
        pairs = [1 - float(a @ b) for a, b in itertools.combinations(rows, 2)]
        if pairs:
            per_class.append(np.mean(pairs))
    inter = [cosine_distances([a], [b])[0, 0] for a, b in itertools.combinations(means, 2)]
    return np.mean(per_class), np.mean(inter)


@pytest.mark.parametrize("seed", range(4))
def test_distances_match_a_loop_over_pairs(seed):
    predictions = random_predictions(seed)
    intra, inter = pair_loop(predictions)
    result = measure(predictions)
    assert result["intra_class_distance"] == pytest.approx(intra, rel=1e-12)
    assert result["inter_class_distance"] == pytest.approx(inter, rel=1e-12)
    assert result["distance_ratio"] == pytest.approx(intra / inter, rel=1e-12)


def test_zero_features_have_cosine_zero_with_every_other():
    predictions = random_predictions(5)
    predictions.features[::4] = 0
    intra, inter = pair_loop(predictions)
    result = measure(predictions)
    assert result["intra_class_distance"] == pytest.approx(intra, rel=1e-12)
    assert result["inter_class_distance"] == pytest.approx(inter, rel=1e-12)


def test_a_class_of_one_image_counts_between_but_not_within_classes():
    predictions = random_predictions(6, count=9, classes=3)
    predictions.labels[:] = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 2])
    intra, inter = pair_loop(predictions)
    result = measure(predictions)
    assert result["intra_class_distance"] == pytest.approx(intra, rel=1e-12)
    assert result["inter_class_distance"] == pytest.approx(inter, rel=1e-12)


def test_distances_keep_their_precision_when_classes_have_nearly_collapsed():
    angle = 1e-7
    features = torch.tensor([[1.0, 0.0], [math.cos(angle), math.sin(angle)], [0.0, 1.0], [0.0, 2.0]])
    result = measure(Predictions(features, torch.eye(2).repeat(2, 1), torch.tensor([0, 0, 1, 1])))
    assert result["intra_class_distance"] == pytest.approx(angle**2 / 4, rel=1e-3)


def test_accuracies_match_scikit_learn():
    predictions = random_predictions(7)
    predicted = predictions.logits.argmax(dim=1)
    result = measure(predictions)
    assert result["test_accuracy"] == pytest.approx(accuracy_score(predictions.labels, predicted))
    assert result["per_class_accuracy"] == pytest.approx(recall_score(predictions.labels, predicted, average=None))


@pytest.mark.parametrize("absent", [(), (0, 2)])
def test_macro_f1_matches_scikit_learn_over_the_classes_that_have_images(absent):
    predictions = random_predictions(13)
    kept = ~torch.isin(predictions.labels, torch.tensor(absent, dtype=torch.int64))
    predictions = Predictions(*(tensor[kept] for tensor in predictions))
    predicted, present = predictions.logits.argmax(dim=1), predictions.labels.unique()
    expected = f1_score(predictions.labels, predicted, labels=present, average="macro")
    assert measure(predictions)["macro_f1"] == pytest.approx(expected, rel=1e-12)
    assert set(absent) <= set(predicted.tolist())


def test_macro_f1_by_hand():
    """Class 0: two of its three are found, and one of class 1 is called it; class 1: one of two; class 2 has none."""
    logits = torch.eye(3)[[0, 0, 1, 0, 1]]
    result = measure(Predictions(torch.randn(5, 2), logits, torch.tensor([0, 0, 0, 1, 1])))
    assert result["macro_f1"] == pytest.approx((2 * 2 / (2 * 2 + 1 + 1) + 2 * 1 / (2 * 1 + 1 + 1)) / 2)


def test_false_positives_match_a_loop():
    predictions = random_predictions(12)
    counts = [0] * predictions.logits.shape[1]
    for logits, label in zip(predictions.logits.tolist(), predictions.labels.tolist(), strict=True):
        called = logits.index(max(logits))
        counts[called] += called != label
    assert measure(predictions)["per_class_false_positives"] == counts
    assert sum(counts) > 0


def test_entropy_and_calibration_match_loops():
    predictions = random_predictions(8, count=400, classes=40)
    predictions.logits.mul_(torch.linspace(0, 1, 400)[:, None])  # From hesitant to certain: every bin is used.
    probabilities = predictions.logits.double().softmax(dim=1).tolist()
    entropy = [-sum(p * math.log(p) for p in row) for row in probabilities]
    error = 0.0
    for low in range(15):
        rows = [i for i, row in enumerate(probabilities) if low / 15 < max(row) <= (low + 1) / 15]
        if rows:
            confidence = sum(max(probabilities[i]) for i in rows) / len(rows)
            right = [probabilities[i].index(max(probabilities[i])) == int(predictions.labels[i]) for i in rows]
            error += len(rows) / len(probabilities) * abs(sum(right) / len(rows) - confidence)
    result = measure(predictions)
    assert result["soft_label_entropy"] == pytest.approx(np.mean(entropy), rel=1e-12)
    assert result["expected_calibration_error"] == pytest.approx(error, rel=1e-12)


def test_neighbouring_calibration_bins_do_not_cancel():
    too_modest, too_sure = torch.full((20,), 0.05), torch.tensor([0.1] + 19 * [0.9 / 19])
    logits = torch.stack([too_modest, too_sure]).log()
    result = measure(Predictions(torch.eye(2), logits, torch.tensor([0, 1])))
    assert result["expected_calibration_error"] == pytest.approx((0.95 + 0.1) / 2, rel=1e-6)


def test_certain_and_right_is_perfectly_calibrated():
    labels = torch.arange(4)
    result = measure(Predictions(torch.eye(4), 1000 * torch.eye(4), labels))
    assert result["test_accuracy"] == 1
    assert result["soft_label_entropy"] == 0
    assert result["expected_calibration_error"] == 0


def test_what_cannot_be_measured_is_nan():
    result = measure(Predictions(torch.ones(2, 3), torch.eye(2), torch.tensor([0, 0])))
    assert math.isnan(result["inter_class_distance"])
    assert math.isnan(result["per_class_accuracy"][1])
    assert result["per_class_accuracy"][0] == 0.5
    collapsed = measure(Predictions(torch.ones(4, 3), torch.eye(2).repeat(2, 1), torch.tensor([0, 1, 0, 1])))
    assert collapsed["intra_class_distance"] == collapsed["inter_class_distance"] == 0
    assert math.isnan(collapsed["distance_ratio"])
    singles = measure(Predictions(torch.eye(2), torch.eye(2), torch.tensor([0, 1])))
    assert math.isnan(singles["intra_class_distance"])
    assert singles["inter_class_distance"] == 1


def test_measures_are_the_ones_of_the_contract():
    assert list(measure(random_predictions(9))) == [
        "test_accuracy",
        "intra_class_distance",
        "inter_class_distance",
        "distance_ratio",
        "soft_label_entropy",
        "expected_calibration_error",
        "macro_f1",
        "worst_class_accuracy",
        "class_accuracy_gap",
        "class_accuracy_spread",
        "per_class_accuracy",
        "per_class_false_positives",
    ]


def test_measures_do_not_depend_on_the_order_of_the_images():
    predictions = random_predictions(10)
    order = torch.randperm(len(predictions.labels), generator=torch.Generator().manual_seed(11))
    shuffled = measure(Predictions(*(tensor[order] for tensor in predictions)))
    for name, value in measure(predictions).items():
        assert shuffled[name] == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"labels": torch.zeros(0, dtype=torch.int64)}, "labels has shape"),
        ({"labels": torch.full((60,), 5)}, r"labels lie in \[5, 5\]"),
        ({"labels": torch.full((60,), -1)}, r"labels lie in \[-1, -1\]"),
        ({"features": torch.zeros(59, 7)}, "features has shape"),
        ({"logits": torch.zeros(60)}, "logits has shape"),
    ],
)
def test_predictions_that_do_not_fit_together_are_refused(replaced, message):
    with pytest.raises(ValueError, match=message):
        measure(random_predictions(12)._replace(**replaced))


class Network(nn.Module):
    """Flat images as features, with a batch norm and a dropout that act differently while training."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(4, 3)

    def forward(self, images):
        features = self.dropout(self.norm(images)).flatten(1)
        return features.half(), self.head(features)


def batches(sizes, seed):
    generator = torch.Generator().manual_seed(seed)
    return [
        Batch(
            (torch.randn(n, 1, 2, 2, generator=generator), torch.full((n, 1, 2, 2), torch.nan)),
            torch.randint(3, (n,), generator=generator),
            torch.arange(n),
        )
        for n in sizes
    ]


def test_predict_joins_the_first_views_of_all_batches_in_order():
    torch.manual_seed(13)
    model, data = Network(), batches([4, 4, 1], 14)
    predictions = predict(model, iter(data))
    images = torch.cat([batch.views[0] for batch in data])
    features = images.flatten(1) / math.sqrt(1 + model.norm.eps)
    assert [tensor.dtype for tensor in predictions] == [torch.float32, torch.float32, torch.int64]
    torch.testing.assert_close(predictions.features, features, atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(predictions.logits, model.head(features).detach())
    assert torch.equal(predictions.labels, torch.cat([batch.labels for batch in data]))


def test_predict_leaves_the_model_as_it_was():
    torch.manual_seed(15)
    model = Network()
    model.norm.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    predict(model, batches([5], 16))
    assert [m.training for m in (model, model.norm, model.dropout, model.head)] == [True, False, True, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    broken = [Batch((torch.zeros(2, 9, 2, 2),), torch.zeros(2, dtype=torch.int64), torch.arange(2))]
    with pytest.raises(RuntimeError):
        predict(model, broken)
    assert model.training


def test_predict_needs_a_batch():
    with pytest.raises(ValueError, match="batches is empty"):
        predict(Network(), [])


@pytest.mark.parametrize("seed", range(3))
def test_the_worst_class_and_the_gap_are_those_of_classes_with_images(seed):
    predictions = random_predictions(seed, classes=6)
    predictions.labels[predictions.labels == 3] = 0
    answers = predictions.logits.argmax(1)
    by_class = [(answers[predictions.labels == c] == c).double().mean().item() for c in (0, 1, 2, 4, 5)]
    result = measure(predictions)
    assert result["worst_class_accuracy"] == pytest.approx(min(by_class))
    assert result["class_accuracy_gap"] == pytest.approx(max(by_class) - min(by_class))


@pytest.mark.parametrize("count", [6, 61, 2100])
def test_recall_is_that_of_the_dense_matrix_of_cosines(count):
    predictions = random_predictions(count, count=count, classes=count // 5 + 2, dim=9)
    alone = predictions.logits.shape[1] - 1
    predictions.labels[predictions.labels == alone] = 0
    predictions.labels[1] = alone
    features, labels = predictions.features.numpy().astype(np.float64), predictions.labels.numpy()
    distances = cosine_distances(features)
    np.fill_diagonal(distances, np.inf)
    hits = labels[distances.argmin(axis=1)] == labels
    answerable = np.array([(labels == label).sum() > 1 for label in labels])
    assert 0 < answerable.sum() < count
    assert recall_at_1(predictions) == pytest.approx(hits[answerable].mean(), abs=1e-12)


def test_recall_without_a_right_answer_is_nan():
    predictions = random_predictions(1, count=4, classes=4)
    assert math.isnan(recall_at_1(predictions._replace(labels=torch.arange(4))))
