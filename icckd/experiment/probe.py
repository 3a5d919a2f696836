"""What a network trained on coarse classes knows of the fine ones: linear probes of its features and soft labels."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from icckd.data import Batch, FineLabels
from icckd.distributed import ALONE, World
from icckd.experiment.evaluation import FINE_NUMBERS, Predictions, answers
from icckd.experiment.information import conditional_information

_PENALTY = 10.0
_SMALLEST_DEVIATION = 1e-6
_TEMPERATURE = 4.0
_FEATURES, _SOFT_LABELS, _INFORMATION = FINE_NUMBERS


class Ridge:
    """A ridge regression of the indicators of `classes` classes on rows that come part by part; in float64.

    Of the N rows X̃ (N, D) it keeps what does not grow with them. With X their columns less the mean, divided by the
    standard deviation (that of the N rows themselves) + 1e-6, and a column of ones beside them, and Y (N, classes) the
    indicators, the weights are (XᵀX + 10 I)⁻¹ XᵀY: the ones, which are orthogonal to the others, are penalised as they
    are (this project's choices). O(N·D²) work, O(D² + D·classes) memory.
    """

    def __init__(self, classes: int):
        self._pivot: Tensor | None = None
        self._counts = torch.zeros(classes, dtype=torch.float64)
        self._sums, self._products = torch.empty(0), torch.empty(0)

    def add(self, rows: Tensor, labels: Tensor) -> None:
        """Rows (n, D), n of 1 or more, and their classes, int64 (n,)."""
        rows, classes = rows.double(), len(self._counts)
        if self._pivot is None:
            # Sums are of the differences to some rows' mean, so that nothing is lost where means are large.
            self._pivot = rows.mean(0)
            self._sums = rows.new_zeros(classes, rows.shape[1])
            self._products = rows.new_zeros(rows.shape[1], rows.shape[1])
        rows = rows - self._pivot
        self._counts += torch.bincount(labels, minlength=classes)
        self._sums.index_add_(0, labels, rows)
        self._products.addmm_(rows.T, rows)

    def scores(self, rows: Tensor) -> Tensor:
        """What the regression says of other rows (M, D): float64 (M, classes); nan where what was added is not finite.

        Raises ValueError where nothing was added.
        """
        if self._pivot is None:
            raise ValueError("no rows were added; add those that the regression is of")
        count = self._counts.sum()
        mean = self._sums.sum(0) / count
        scatter = self._products - count * mean.outer(mean)
        deviation = (scatter.diagonal().clamp(min=0) / count).sqrt() + _SMALLEST_DEVIATION
        products = scatter / deviation.outer(deviation)
        products.diagonal().add_(_PENALTY)
        if not products.isfinite().all():
            return rows.new_full((len(rows), len(self._counts)), torch.nan, dtype=torch.float64)
        targets = (self._sums - self._counts.unsqueeze(1) * mean).T / deviation.unsqueeze(1)
        weights = torch.cholesky_solve(targets, torch.linalg.cholesky(products))
        offset = self._counts / (count + _PENALTY)
        return (rows.double() - self._pivot - mean) / deviation @ weights + offset


class FineProbe:
    """Fits a ridge regression on features and one on soft labels, of what a network says about training images.

    Soft labels are given by log-softmax(logits / 4), the logarithms of the probabilities at temperature 4.
    """

    def __init__(self, fine: FineLabels):
        self.fine = fine
        self.by_name = {name: Ridge(len(fine.coarse_of)) for name in (_FEATURES, _SOFT_LABELS)}
        self._soft_labels: list[tuple[Tensor, Tensor]] = []

    def fit(self, model: nn.Module, batches: Iterable[Batch], world: World = ALONE) -> "FineProbe":
        """Ask `model` about `batches`, which hold the training images as they are and their fine labels.

        Of several processes each asks about its parts, and the first alone has then a probe that can measure.
        """
        for answer in answers(model, batches, world):
            if len(answer.labels):
                rows = _rows(answer)
                for name, of in rows.items():
                    self.by_name[name].add(of, answer.labels)
                self._soft_labels.append((rows[_SOFT_LABELS], answer.labels))
        return self

    def measure(self, predictions: Predictions) -> dict[str, float]:
        """How well fine classes of the test images are told within their coarse class, by `predictions` about these.

        The fine class of an image is said to be that of the largest score among those of its true coarse class;
        `fine_probe` is the fraction that is right by the regression on features, `fine_probe_soft_labels` by that on
        soft labels (this project's choices). `fine_information_soft_labels` is of the training images, whose soft
        labels a student learns from: the nats that these tell at least of the fine class, given the coarse one. nan
        where what the network says is not finite.
        """
        true, coarse_of = self.fine.test, self.fine.coarse_of
        possible = coarse_of == coarse_of[true].unsqueeze(1)
        found = {}
        for name, rows in _rows(predictions).items():
            scores = self.by_name[name].scores(rows)
            right = scores.masked_fill(~possible, -torch.inf).argmax(1) == true
            found[name] = right.double().mean().item() if scores.isfinite().all() else torch.nan
        soft, fine = (torch.cat(parts) for parts in zip(*self._soft_labels, strict=True))
        return {**found, _INFORMATION: conditional_information(soft, fine, coarse_of[fine])}


def _rows(predictions: Predictions) -> dict[str, Tensor]:
    soft = (predictions.logits.double() / _TEMPERATURE).log_softmax(1)
    return {_FEATURES: predictions.features, _SOFT_LABELS: soft}
