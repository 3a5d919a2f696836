"""How much soft labels tell of a factor that the class does not name: a lower bound of their mutual information."""

import warnings

import numpy as np
import torch
from torch import Tensor

_STRENGTH = 1.0  # scikit-learn's C: the inverse of the penalty on squared weights.
_ITERATIONS = 200
_SMALLEST_DEVIATION = 1e-6


def conditional_information(rows: Tensor, fine: Tensor, coarse: Tensor) -> float:
    """Nats that `rows` (N, D) tell at least of the fine class, int64 (N,), once the coarse one, int64 (N,), is known.

    I(rows; fine | coarse) = H(fine | coarse) − H(fine | rows, coarse), and any classifier's cross-entropy on rows that
    it was not fitted on is, in expectation, no less than the latter (Barber & Agakov 2003). Within each coarse class
    that of several fine ones has two halves: of each fine class every other row. A multinomial logistic regression
    (scikit-learn's, C = 1, on rows standardised by the mean and standard deviation + 1e-6 of those that it is fitted
    on) is fitted on either and asked about the other. Entropy and cross-entropy are means over all N rows; what it
    comes to can be a little below 0 where rows tell nothing (this project's choices). nan where rows are not finite.
    """
    if not rows.isfinite().all():
        return torch.nan
    numbers, fine_of, coarse_of = rows.double().numpy(), fine.numpy(), coarse.numpy()
    told = sum(_told_within(numbers[of], fine_of[of]) for of in (coarse_of == c for c in np.unique(coarse_of)))
    return float(told / len(numbers))


def _told_within(rows: np.ndarray, fine: np.ndarray) -> float:
    """The sum over the rows of one coarse class, of which those of fine classes with one row say nothing."""
    halves = _halves(fine)
    several = np.isin(fine, np.intersect1d(fine[halves == 0], fine[halves == 1]))
    rows, fine, halves = rows[several], fine[several], halves[several]
    classes, fine = np.unique(fine, return_inverse=True)
    if len(classes) < 2:
        return 0.0
    shares = np.bincount(fine) / len(fine)
    entropy = -(shares * np.log(shares)).sum() * len(fine)
    asked = ((halves == half, halves != half) for half in (0, 1))
    return float(entropy - sum(_cross_entropy(rows[fit], fine[fit], rows[ask], fine[ask]) for fit, ask in asked))


def _halves(fine: np.ndarray) -> np.ndarray:
    """0 or 1 for each row: by turns within its fine class."""
    halves = np.empty(len(fine), dtype=np.int64)
    for of in (fine == c for c in np.unique(fine)):
        halves[of] = np.arange(of.sum()) % 2
    return halves


def _cross_entropy(rows: np.ndarray, fine: np.ndarray, others: np.ndarray, other_fine: np.ndarray) -> float:
    """The sum over `others` of −log of the probability that a regression on `rows` gives their fine class."""
    # Imported here: it takes a second, which most commands have no use for.
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    mean, deviation = rows.mean(axis=0), rows.std(axis=0) + _SMALLEST_DEVIATION
    regression = LogisticRegression(C=_STRENGTH, max_iter=_ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # A bound from weights that are nearly best is one too.
        regression.fit((rows - mean) / deviation, fine)
    scores = regression.decision_function((others - mean) / deviation)
    # Of two classes it gives the second one's score less the first's. predict_log_proba's logarithm of a rounded
    # probability is −inf for a row that lies far beyond those that it was fitted on.
    scores = np.stack([np.zeros_like(scores), scores], axis=1) if scores.ndim == 1 else scores
    normaliser = np.logaddexp.reduce(scores, axis=1)
    return float((normaliser - scores[np.arange(len(others)), other_fine]).sum())
