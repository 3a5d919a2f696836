"""A network's predictions on test images, and what they measure: accuracy, distances, entropy, calibration."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from icckd.data import Batch
from icckd.distributed import ALONE, World
from icckd.models.modes import evaluating

CALIBRATION_BINS = 15
# What a run's summary has besides of a network that was trained on coarse classes: `probe` says what it is.
FINE_NUMBERS = ("fine_probe", "fine_probe_soft_labels", "fine_information_soft_labels")
# What it has of a student that learned from a teacher: `relations` says what it is.
TAUGHT_NUMBERS = ("neighbour_agreement",)
# What it has, and the record of each epoch, where networks are asked about training images: `training_measures`.
TRAINING_NUMBERS = (
    *("training_accuracy", "training_intra_class_distance", "training_inter_class_distance"),
    *("training_distance_ratio", "training_soft_label_entropy"),
)
# What it has of a teacher trained by spectrum, where test windows of a class are of several people.
SWAP_NUMBERS = ("reconstruction_accuracy", "swap_accuracy")
# What it has besides where the test images are attacked: `robustness` says what it is.
ROBUST_NUMBERS = ("robust_accuracy", "worst_class_robust_accuracy", "robust_accuracy_spread")
# Every number that a run's summary has of a network that it trained.
NUMBERS = (
    *("test_accuracy", "intra_class_distance", "inter_class_distance", "distance_ratio", "soft_label_entropy"),
    *("expected_calibration_error", "macro_f1", "worst_class_accuracy", "class_accuracy_gap"),
    *("class_accuracy_spread", "recall_at_1"),
    *("best_test_accuracy", "best_epoch", "seconds"),
    *TAUGHT_NUMBERS,
    *TRAINING_NUMBERS,
    *FINE_NUMBERS,
    *SWAP_NUMBERS,
    *ROBUST_NUMBERS,
)
_QUERIES = 1024


class Predictions(NamedTuple):
    """What a network says about N images: float32 features (N, F) and logits (N, C); int64 labels (N,). On the CPU."""

    features: Tensor
    logits: Tensor
    labels: Tensor


def predict(model: nn.Module, batches: Iterable[Batch], world: World = ALONE) -> Predictions:
    """`model`'s predictions on the first view of every batch, in evaluation mode and in the order of `batches`.

    `model(images)` returns (features, logits). Every submodule's training mode is restored afterwards. Of several
    processes each asks about its parts of the batches; the first gets all predictions, the others none. Raises
    ValueError where there is no batch.
    """
    parts = list(answers(model, batches, world))
    if not parts:
        raise ValueError("batches is empty; it should hold at least one batch")
    return Predictions(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def answers(model: nn.Module, batches: Iterable[Batch], world: World = ALONE) -> Iterator[Predictions]:
    """What `predict` returns, batch by batch, so that it need not be held; the first process gets it."""
    with evaluating(model):
        for batch in batches:
            with torch.inference_mode():
                features, logits = model(batch.views[0])
            own = Predictions(features.float().cpu(), logits.float().cpu(), batch.labels.long().cpu())
            yield own if batch.whole is None else _on_first(own, batch.whole.counts, world)


def _on_first(own: Predictions, counts: Sequence[int], world: World) -> Predictions:
    return Predictions(*(world.gather_on_first(x, counts) for x in own))


def finite(predictions: Predictions) -> bool:
    """Are all features and logits finite? Measures may be nan of predictions that are; what they measure says when."""
    return bool(predictions.features.isfinite().all() and predictions.logits.isfinite().all())


def measure(predictions: Predictions) -> dict[str, float | list[float]]:
    """The measures of a network on N test images after any epoch, computed in float64 in O(N·(F + C)).

    With the features divided by their Euclidean norm (a zero feature stays zero):

    - test_accuracy: the fraction of images whose largest logit is the true class's.
    - intra_class_distance: over classes with two images or more, the mean of the class's mean cosine distance
      1 − cos over pairs of distinct images (this project's choice); nan where there is no such class.
    - inter_class_distance: the mean cosine distance over pairs of the classes' mean unit features (this project's
      choice); nan where there are fewer than two classes.
    - distance_ratio: intra / inter; nan for 0/0, where every feature is the same.
    - soft_label_entropy: the mean entropy, in nats, of the softmax of the logits.
    - expected_calibration_error: Σ_b (n_b / N) |accuracy_b − confidence_b| over 15 bins ((b−1)/15, b/15] of the
      predicted class's probability (Guo et al., "On Calibration of Modern Neural Networks", 2017).
    - per_class_accuracy: the accuracy of each class, in class order; nan for a class without images.
    - macro_f1: the mean over classes that have images of F1 = 2 TP / (2 TP + FP + FN): TP images of the class are
      called it, FP of others are, and FN of the class are called another.
    - worst_class_accuracy, class_accuracy_gap: the lowest accuracy of a class that has images; the highest less it.
    - class_accuracy_spread: the standard deviation of their accuracies, of as many as they are, over their mean (the
      normalised standard deviation of Zhao et al. 2023, arXiv 2312.05508); nan where that is 0.
    - per_class_false_positives: of each class, in class order, how many images of other classes are called it.

    Raises ValueError where shapes disagree, there is no image, or a label is not in [0, C).
    """
    _check(predictions)
    features, logits = predictions.features.double(), predictions.logits.double()
    labels, classes = predictions.labels, predictions.logits.shape[1]
    probabilities = logits.softmax(dim=1)
    confidence, predicted = probabilities.max(dim=1)
    correct = (predicted == labels).double()
    count = torch.bincount(labels, minlength=classes)
    intra, inter = _class_distances(features, labels, count)
    by_class = accuracy_by_class(correct, labels, classes)
    called = torch.bincount(predicted, minlength=classes)
    lowest, highest = by_class[count > 0].aminmax()
    f1 = 2 * by_class * count / (called + count)  # 2 TP + FP + FN is how many are called it and how many are of it.
    return {
        "test_accuracy": correct.mean().item(),
        "intra_class_distance": intra.item(),
        "inter_class_distance": inter.item(),
        "distance_ratio": (intra / inter).item(),
        "soft_label_entropy": torch.special.entr(probabilities).sum(dim=1).mean().item(),
        "expected_calibration_error": _calibration_error(confidence, correct),
        "macro_f1": f1[count > 0].mean().item(),
        "worst_class_accuracy": lowest.item(),
        "class_accuracy_gap": (highest - lowest).item(),
        "class_accuracy_spread": spread(by_class),
        "per_class_accuracy": by_class.tolist(),
        "per_class_false_positives": torch.bincount(predicted[predicted != labels], minlength=classes).tolist(),
    }


def training_measures(predictions: Predictions) -> dict[str, float]:
    """The measures of what a network says about training images as they are: how far it has collapsed their classes.

    training_accuracy, training_intra_class_distance, training_inter_class_distance, training_distance_ratio and
    training_soft_label_entropy are of these images what `measure` says of the test images. Raises ValueError as
    `measure` does.
    """
    measured = measure(predictions)
    measured["accuracy"] = measured["test_accuracy"]
    return {name: measured[name.removeprefix("training_")] for name in TRAINING_NUMBERS}  # type: ignore[misc]


def accuracy_by_class(correct: Tensor, labels: Tensor, classes: int) -> Tensor:
    """The mean of `correct` (N,) over the images of each class (classes,); nan for a class without images."""
    return _sum_by(correct, labels, classes) / torch.bincount(labels, minlength=classes)


def spread(by_class: Tensor) -> float:
    """The standard deviation of the classes' accuracies over their mean, of those that are not nan."""
    known = by_class[by_class.isfinite()]
    return (known.std(correction=0) / known.mean()).item()


def recall_at_1(predictions: Predictions) -> float:
    """The fraction of images whose nearest other image, by the cosine of their features, is of the same class.

    Of images whose class has another, as for the rest there is no right one; nan where there is none such. The first
    of equally near ones counts. In float32, by chunks of rows: O(N²·F) work, O(N·F) memory, so it is measured at the
    end of a training and not after each epoch. (Recall@1 of metric learning, with the test images as queries and as
    gallery: Oh Song et al. 2016, arXiv 1511.06452.) Raises ValueError as `measure` does.
    """
    _check(predictions)
    unit, labels = nn.functional.normalize(predictions.features.float(), dim=1), predictions.labels
    found = []
    for first in range(0, len(unit), _QUERIES):
        cosines = unit[first : first + _QUERIES] @ unit.T
        cosines.diagonal(first).fill_(-torch.inf)
        found.append(labels[cosines.argmax(dim=1)] == labels[first : first + _QUERIES])
    answerable = torch.bincount(labels)[labels] > 1
    return torch.cat(found)[answerable].double().mean().item()


def _check(predictions: Predictions) -> None:
    features, logits, labels = predictions
    if labels.ndim != 1 or len(labels) == 0:
        raise ValueError(f"labels has shape {tuple(labels.shape)}; it should be (N,) with N of 1 or more")
    for name, tensor in (("features", features), ("logits", logits)):
        if tensor.ndim != 2 or len(tensor) != len(labels):
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; it should be 2-D with {len(labels)} rows")
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise ValueError(
            f"labels lie in [{int(labels.min())}, {int(labels.max())}]; they should lie in [0, {logits.shape[1]})"
        )


def _class_distances(features: Tensor, labels: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    unit = nn.functional.normalize(features, dim=1)
    by_class = unit[labels.argsort(stable=True)].split(count.tolist())
    within = [_mean_cosine_distance(rows) for rows in by_class if len(rows) >= 2]
    means = torch.stack([rows.mean(dim=0) for rows in by_class if len(rows)])
    return torch.stack(within).mean() if within else means.new_tensor(torch.nan), _mean_cosine_distance(means)


def _mean_cosine_distance(rows: Tensor) -> Tensor:
    """The mean of 1 − cos over pairs of distinct rows of (n, F), without the pairs; nan for n < 2.

    For unit rows u with mean m it is Σ|u − m|² / (n − 1), which keeps its precision where the rows nearly agree, unlike
    1 − (|Σu|² − n) / (n(n − 1)). A zero row, whose cosine with any other is 0, adds what its norm lacks.
    """
    unit = nn.functional.normalize(rows, dim=1)
    spread = (unit - unit.mean(dim=0)).square().sum() / (len(rows) - 1)
    return spread + (1 - unit.square().sum(dim=1).round()).mean()


def _calibration_error(confidence: Tensor, correct: Tensor) -> float:
    bins = (confidence * CALIBRATION_BINS).ceil().long().clamp(1, CALIBRATION_BINS) - 1
    gaps = _sum_by(correct - confidence, bins, CALIBRATION_BINS)
    return (gaps.abs().sum() / len(bins)).item()


def _sum_by(values: Tensor, index: Tensor, size: int) -> Tensor:
    return values.new_zeros(size).index_add_(0, index, values)
