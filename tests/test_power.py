"""Power against statsmodels, and the sizes that a referee found for the published scatter."""

from __future__ import annotations

import math

import numpy as np
import pytest

from memprobe.statistics.power import (
    detectable,
    detectable_over_seeds,
    power_of,
    scatter,
    seeds_needed,
)


@pytest.mark.parametrize("pairs", [3, 6, 14])
def test_detectable_agrees_with_statsmodels(pairs):
    from statsmodels.stats.power import TTestPower

    wanted = TTestPower().solve_power(nobs=pairs, power=0.8, alpha=0.05) / 1.0
    assert detectable(1 / math.sqrt(pairs), pairs - 1) == pytest.approx(wanted, rel=1e-3)


def test_the_published_scatter_needs_so_many_seeds():
    """Pairs that scatter by 12 points, 7.1 of them by their 64 facts."""
    within = 0.071**2
    between = 0.12**2 - within
    assert detectable_over_seeds(3, between, within) == pytest.approx(0.39, abs=0.005)
    assert seeds_needed(0.20, between, within) == 6
    assert seeds_needed(0.10, between, within) == 14
    assert seeds_needed(0.10, between, within, facts=500 / 64) == 10
    assert seeds_needed(0.001, between, within) is None
    assert math.isnan(detectable_over_seeds(1, between, within))


def test_what_is_detectable_is_seen_in_80_per_cent():
    assert power_of(detectable(0.02, 7.5), 0.02, 7.5) == pytest.approx(0.8)
    assert detectable(1.0, 1e9) == pytest.approx(2.8016, abs=1e-3)  # 1.96 + 0.8416
    assert math.isnan(detectable(float("nan"), 2)) and math.isnan(detectable(0.0, 2))
    assert power_of(0.0, 1.0, 5) == pytest.approx(0.05)
    assert power_of(40.0, 1.0, 2) == pytest.approx(1)


def test_scatter_by_hand():
    """Two pairs of arms: variances 0.01 and 0.03 over three seeds; binomial noise of shares 0.5 and 0 of 25."""
    pairs = [np.array([0.1, 0.2, 0.3]), np.array([0.0, np.sqrt(0.03), -np.sqrt(0.03)])]
    shares = [np.array([[0.5] * 3, [0.0] * 3])] * 2
    between, within = scatter(pairs, shares, [25, 25], 25)
    assert within == pytest.approx(0.25 / 25)
    assert between == pytest.approx(0.02 - 0.01)
    assert scatter([np.zeros(3)], [np.full((2, 3), 0.5)], [25], 25)[0] == 0  # no less than nothing
    assert all(math.isnan(x) for x in scatter([], [], [], 25))
    # Of 250 facts, the first pair has a tenth of that noise; what is said of 25 stays.
    between, within = scatter(pairs, shares, [250, 25], 25)
    assert (between, within) == (pytest.approx(0.02 - (0.001 + 0.01) / 2), pytest.approx(0.25 / 25))


@pytest.mark.parametrize("sizes", [(25, 25), (25, 400), (400, 25)])
def test_scatter_is_of_seeds_whatever_the_facts_are(sizes):
    """Two pairs of arms, of few facts and of many: what is peculiar to a seed scatters by 0.1 in both."""
    rng, found = np.random.default_rng(0), []
    for _ in range(300):
        level = rng.normal(0.5, 0.1 / math.sqrt(2), (2, 2, 60)).clip(0, 1)
        shares = [rng.binomial(n, one) / n for n, one in zip(sizes, level, strict=True)]
        found.append(scatter([one[0] - one[1] for one in shares], shares, sizes, 25))
    between, within = np.mean(found, axis=0)
    assert between == pytest.approx(0.01, rel=0.15) and within == pytest.approx(0.5 / 25, rel=0.1)


def test_pairs_of_arms_count_by_their_degrees_of_freedom():
    """Variances 0.02 of two seeds and 0.01 of three: a seed more is twice the evidence."""
    pairs = [np.array([0.0, 0.2]), np.array([0.1, 0.2, 0.3])]
    shares = [np.zeros((2, 2)), np.zeros((2, 3))]
    assert scatter(pairs, shares, [25, 25], 25) == pytest.approx((0.04 / 3, 0))
    shares[0] += 0.5  # a binomial variance of 0.25 in either arm
    assert scatter(pairs, shares, [25, 25], 25)[1] == pytest.approx(0.5 / 25 / 3)
