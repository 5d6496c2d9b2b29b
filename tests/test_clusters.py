"""Correlation over runs that come in clusters."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from memprobe.statistics.clusters import clustered_rank_correlation


def test_seeds_of_one_arm_are_not_evidence_about_arms():
    """Five arms in no order, three seeds each, all of which agree: a test over 15 runs finds what is not there."""
    rng = np.random.default_rng(0)
    wrong = {"runs": 0, "arms": 0}
    for _ in range(200):
        arm = np.repeat(np.arange(6), 3)
        x, y = (rng.normal(size=6)[arm] + 0.05 * rng.normal(size=18) for _ in range(2))
        wrong["runs"] += stats.spearmanr(x, y).pvalue < 0.05
        wrong["arms"] += clustered_rank_correlation(x, y, arm).p < 0.05
    assert wrong["runs"] > 50
    assert wrong["arms"] < 20


@pytest.mark.parametrize("count", [5, 9])
def test_one_run_each_is_the_permutation_test(count):
    rng = np.random.default_rng(1)
    x = rng.normal(size=count)
    y = x + rng.normal(size=count)
    found = clustered_rank_correlation(x, y, np.arange(count), draws=4000)
    assert found.rho == pytest.approx(stats.spearmanr(x, y).statistic)
    theirs = stats.permutation_test(
        (x,), lambda x: stats.spearmanr(x, y).statistic, permutation_type="pairings", n_resamples=4000
    ).pvalue
    assert found.p == pytest.approx(theirs, abs=0.03)


def test_few_or_equal_clusters_say_nothing():
    three = clustered_rank_correlation(np.arange(6.0), np.arange(6.0), np.array(list("aabbcc")))
    assert math.isnan(three.p) and three.clusters == 3
    assert math.isnan(clustered_rank_correlation(np.ones(5), np.arange(5.0), np.arange(5)).p)
    assert clustered_rank_correlation(np.arange(4.0), np.arange(4.0), np.arange(4)).least_p == pytest.approx(
        1 / 12
    )


def test_what_is_not_known_has_no_rank():
    """A run without a value stood above all others: its arm seemed to keep the most."""
    x, arms = np.arange(10.0), np.repeat(np.arange(5), 2)
    y = np.array([1, 2, 3, 4, 5, 6, 7, 8, np.nan, np.nan])
    found = clustered_rank_correlation(x, 10 - y, arms)
    assert found == clustered_rank_correlation(x[:8], 10 - y[:8], arms[:8])
    assert (found.rho, found.clusters) == (pytest.approx(-1), 4)
    one = clustered_rank_correlation(np.where(x == 1, np.nan, x), x, arms)
    assert (one.rho, one.clusters) == (pytest.approx(1), 5), "the other seed of its arm is there"
