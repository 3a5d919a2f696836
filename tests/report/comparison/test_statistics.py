"""Means, intervals, tests and numbers of seeds, beside SciPy's own and a simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from icckd.report.comparison.statistics import (
    estimate,
    holm,
    needed,
    p_value,
    paired,
    power,
    sd_interval,
    seeds_needed,
)


def by_seed(values, seeds=None):
    return dict(zip(range(len(values)) if seeds is None else seeds, map(float, values), strict=True))


@pytest.mark.parametrize("n", [2, 3, 7, 30])
def test_a_mean_has_scipys_interval(n):
    values = np.random.default_rng(n).normal(0.7, 0.02, n)
    found = estimate(by_seed(values))
    low, high = stats.t.interval(0.95, n - 1, loc=values.mean(), scale=stats.sem(values))
    assert found.n == n
    np.testing.assert_allclose([found.mean, found.sd], [values.mean(), np.std(values, ddof=1)], rtol=1e-12)
    np.testing.assert_allclose([found.low, found.high], [low, high], rtol=1e-10)


@pytest.mark.parametrize("n", [2, 3, 7, 30])
def test_paired_differences_are_those_of_ttest_rel(n):
    rng = np.random.default_rng(n)
    values, base = rng.normal(0.71, 0.02, n), rng.normal(0.7, 0.02, n)
    expected = stats.ttest_rel(values, base)
    interval = expected.confidence_interval(0.95)
    found = paired(by_seed(values), by_seed(base))
    np.testing.assert_allclose([found.low, found.high], [interval.low, interval.high], rtol=1e-8)
    np.testing.assert_allclose(p_value(found), expected.pvalue, rtol=1e-8)


def test_pairs_are_made_by_seed_over_the_seeds_that_both_have():
    rng = np.random.default_rng(5)
    values, base = by_seed(rng.normal(size=5), [7, 1, 4, 0, 9]), by_seed(rng.normal(size=5), [0, 2, 9, 4, 30])
    expected = stats.ttest_rel([values[seed] for seed in (0, 4, 9)], [base[seed] for seed in (0, 4, 9)])
    found = paired(values, base)
    assert set(found.values) == {0, 4, 9}
    np.testing.assert_allclose(p_value(found), expected.pvalue, rtol=1e-9)


def test_too_few_values_have_no_spread():
    nothing, one = estimate({}), estimate({3: 0.5})
    assert (nothing.n, nothing.mean, nothing.sd, nothing.low, nothing.high) == (0, None, None, None, None)
    assert (one.n, one.mean, one.sd, one.low, one.high) == (1, 0.5, None, None, None)
    assert p_value(nothing) is None
    assert p_value(one) is None
    assert needed(one, 0.005) is None


def test_differences_that_are_equal_but_for_rounding_have_no_p():
    base = {0: 0.5, 1: 0.6, 2: 0.7, 3: 0.1}
    values = {seed: value + 0.02 for seed, value in base.items()}
    assert len({values[seed] - base[seed] for seed in base}) > 1
    found = paired(values, base)
    assert found.sd == 0
    assert found.low == found.mean == found.high
    assert p_value(found) is None
    assert needed(found, 0.005) is None


def test_small_spreads_are_not_taken_for_rounding():
    found = paired({0: 0.5 + 1e-12, 1: 0.6 - 1e-12, 2: 0.7}, {0: 0.5, 1: 0.6, 2: 0.7})
    assert found.sd > 0
    assert p_value(found) is not None


def test_numbers_of_any_size_have_finite_statistics():
    found = estimate({0: 9e99, 1: -9e99, 2: 0.0})
    assert all(math.isfinite(value) for value in (found.mean, found.sd, found.low, found.high))


def test_spreads_too_small_for_a_float_are_none():
    found = paired({0: 5e-324, 1: 0.0}, {0: 0.0, 1: 0.0})
    assert (found.sd, p_value(found), needed(found, 0.1)) == (0.0, None, None)


def test_holms_correction():
    # 4 · .01, 3 · .02 (of the three left), and so on; never below one that is smaller.
    assert holm([0.04, 0.01, None, 0.03, 0.02]) == pytest.approx([0.06, 0.04, None, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([None, 0.03]) == [None, 0.03]
    assert holm([]) == []


def test_power_is_the_share_of_simulated_tests_that_find_the_difference():
    rng = np.random.default_rng(2)
    for n, sd, difference in [(2, 1.0, 3.0), (4, 0.5, 0.6), (10, 1.0, 0.9), (30, 2.0, 0.3)]:
        found = stats.ttest_1samp(rng.normal(difference, sd, (20_000, n)), 0, axis=1).pvalue < 0.05
        assert power(n, sd, difference) == pytest.approx(found.mean(), abs=0.012)


def test_power_is_the_noncentral_t_distributions():
    for n in (2, 5, 40):
        for shift in (0.0, 0.7, 2.5):
            critical = stats.t.ppf(0.975, n - 1)
            expected = stats.nct.sf(critical, n - 1, shift) + stats.nct.cdf(-critical, n - 1, shift)
            assert power(n, 1.0, shift / math.sqrt(n)) == pytest.approx(expected, abs=1e-5)


def test_the_seeds_needed_are_the_fewest_that_have_the_power():
    for ratio in (0.2, 0.5, 1.0, 3.0):
        seeds = seeds_needed(0.005 / ratio, 0.005)
        assert power(seeds, 1.0, ratio) >= 0.8
        assert power(seeds - 1, 1.0, ratio) < 0.8
    assert seeds_needed(1e-9, 1.0) == 2
    assert seeds_needed(1.0, 0.01) is None


def test_the_range_of_seeds_needed_follows_the_spreads_interval():
    rng = np.random.default_rng(3)
    values = rng.normal(0, 0.004, 6)
    found = estimate(by_seed(values))
    low, high = sd_interval(found.sd, 6)
    # The interval holds the true spread in 95 % of samples.
    sds = rng.normal(0, 1, (4000, 6)).std(axis=1, ddof=1)
    assert np.mean((sds * low / found.sd < 1) & (sds * high / found.sd > 1)) == pytest.approx(0.95, abs=0.015)
    range_of_seeds = needed(found, 0.005)
    assert range_of_seeds.seeds == seeds_needed(found.sd, 0.005)
    assert (range_of_seeds.at_least, range_of_seeds.at_most) == (seeds_needed(low, 0.005), seeds_needed(high, 0.005))
