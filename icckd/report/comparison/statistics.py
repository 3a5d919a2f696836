"""What a few seeds say about a mean: spread, intervals, tests, and how many seeds would be enough.

Student's t throughout, as values of one setting under different seeds are taken for independent draws of one normal
distribution. SciPy is imported where it is needed: reports of single runs do without.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import mean, stdev

import numpy as np

LEVEL = 0.95
POWER = 0.8
MOST_SEEDS = 1000

# Values that differ by no more than their own rounding are equal: a spread of rounding errors has no meaning.
_ROUNDING = 8 * sys.float_info.epsilon
_NODES = 100


@dataclass(frozen=True)
class Estimate:
    """The mean of some values by seed, their standard deviation (n − 1), and the 95 % t-interval of the mean.

    mean is None without values; sd, low and high are None for fewer than two.
    """

    values: dict[int, float]
    mean: float | None
    sd: float | None
    low: float | None
    high: float | None

    @property
    def n(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class Needed:
    """How many seeds would be enough, and between how many as the spread is uncertain; None: more than 1000."""

    seeds: int | None
    at_least: int | None
    at_most: int | None


def estimate(values: Mapping[int, float]) -> Estimate:
    """mean ± t · sd / √n, with the quantile t of n − 1 degrees of freedom."""
    return _estimate(values, max((abs(value) for value in values.values()), default=0.0))


def paired(values: Mapping[int, float], baseline: Mapping[int, float]) -> Estimate:
    """The estimate of the differences values − baseline over the seeds that both have."""
    shared = {seed: (values[seed], baseline[seed]) for seed in values if seed in baseline}
    largest = max((abs(value) for pair in shared.values() for value in pair), default=0.0)
    return _estimate({seed: value - base for seed, (value, base) in shared.items()}, largest)


def p_value(differences: Estimate) -> float | None:
    """The two-sided p of a t-test that the mean is 0; None where there are fewer than two values or sd is 0."""
    if differences.mean is None or not differences.sd:
        return None
    from scipy import stats

    statistic = abs(differences.mean) / (differences.sd / math.sqrt(differences.n))
    return float(2 * stats.t.sf(statistic, differences.n - 1))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's adjusted p-values (Holm 1979, Scandinavian Journal of Statistics 6): the chance that *any* of the true
    null hypotheses is refuted is at most 5 % where those with an adjusted p of at most .05 are. None stays None, and
    is not counted.
    """
    ranked = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(ranked):
        largest = max(largest, min(1.0, (len(ranked) - rank) * p))
        adjusted[index] = largest
    return adjusted


def needed(differences: Estimate, smallest: float) -> Needed | None:
    """How many seeds a paired t-test needs to find a difference of `smallest` > 0, if differences spread as these do.

    The range is that of the 95 % χ²-interval of sd. None where there is no spread to go by.
    """
    if not differences.sd:
        return None
    low, high = sd_interval(differences.sd, differences.n)
    return Needed(*(seeds_needed(sd, smallest) for sd in (differences.sd, low, high)))


def sd_interval(sd: float, n: int) -> tuple[float, float]:
    """The 95 % interval of the standard deviation of n ≥ 2 normal values: sd · √((n − 1) / χ²) at both quantiles."""
    from scipy import stats

    quantiles = stats.chi2.ppf(((1 + LEVEL) / 2, (1 - LEVEL) / 2), n - 1)
    low, high = (sd * math.sqrt((n - 1) / quantile) for quantile in quantiles)
    return low, high


def seeds_needed(sd: float, difference: float) -> int | None:
    """The smallest n from 2 to 1000 at which the power is at least 80 %; None where that is not enough."""
    if power(MOST_SEEDS, sd, difference) < POWER:
        return None
    too_few, enough = 1, MOST_SEEDS
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if power(middle, sd, difference) >= POWER:
            enough = middle
        else:
            too_few = middle
    return enough


def power(n: int, sd: float, difference: float) -> float:
    """The chance that a paired two-sided 5 % t-test of n ≥ 2 pairs finds a true mean difference.

    With δ = √n · difference / sd and the critical value t: the mean over w = √(χ²/(n − 1)) of Φ(δ − t·w) + Φ(−δ − t·w),
    which is the noncentral t-distribution's mass beyond ±t. It is summed over quantiles of w, as SciPy's distribution
    gives no number at some arguments.
    """
    from scipy import stats
    from scipy.special import ndtr

    shift = math.sqrt(n) * difference / sd
    quantiles, weights = _quadrature()
    beyond = _t_quantile(n - 1) * np.sqrt(stats.chi2.ppf(quantiles, n - 1) / (n - 1))
    return float(weights @ (ndtr(shift - beyond) + ndtr(-shift - beyond)))


@cache
def _quadrature() -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre nodes and weights on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    return (nodes + 1) / 2, weights / 2


def _estimate(values: Mapping[int, float], largest: float) -> Estimate:
    """`largest`: the largest number that the values were computed from, which their rounding is relative to."""
    kept = dict(values)
    if len(kept) < 2:
        return Estimate(kept, mean(kept.values()) if kept else None, None, None, None)
    centre, spread = mean(kept.values()), stdev(kept.values())
    if spread <= max(_ROUNDING * largest, sys.float_info.min):
        spread = 0.0
    half = _t_quantile(len(kept) - 1) * spread / math.sqrt(len(kept))
    return Estimate(kept, centre, spread, centre - half, centre + half)


@cache
def _t_quantile(degrees: int) -> float:
    from scipy import stats

    return float(stats.t.ppf((1 + LEVEL) / 2, degrees))
