"""Claims over training seeds."""

from __future__ import annotations

import numpy as np
import pytest

from memprobe.statistics.arms import Run, arm_differences, arm_means
from memprobe.statistics.intervals import Resamples


def runs(arm: str, values: np.ndarray, resamples: Resamples) -> list[Run]:
    """One run per row of values [seed, factoid]."""
    draws = resamples.sums(values.T) / resamples.n
    return [
        Run(arm, "2", str(i), f"{arm}-{i}", row.mean(keepdims=True), draws[:, i : i + 1])
        for i, row in enumerate(values)
    ]


def test_under_three_seeds_nothing_is_significant_and_each_is_shown():
    resamples = Resamples.of(50, draws=500)
    a, b = np.zeros((2, 50)), np.full((3, 50), 100.0)
    members = runs("none", a, resamples) + runs("remix", b, resamples)
    row = arm_differences(members, ["x"], 50).row(0, named=True)
    assert row["difference"] == 100
    assert (row["low"], row["high"], row["p"], row["significant"]) == (None, None, None, None)
    shown = arm_means(members, ["x"], 50)
    assert shown["by_seed"].to_list() == [[0, 0], [100, 100, 100]]
    assert shown["low"].to_list()[0] is None


def test_seeds_count_not_factoids():
    """Two arms whose seeds scatter widely do not differ, however many factoids each seed has."""
    rng = np.random.default_rng(0)
    resamples = Resamples.of(2000, draws=1000)
    noise = rng.normal(0, 0.1, (6, 2000))
    none, remix = np.array([[1.0], [5.0], [3.0]]) + noise[:3], np.array([[2.0], [6.0], [4.0]]) + noise[3:]
    row = arm_differences(runs("none", none, resamples) + runs("remix", remix, resamples), ["x"], 2000).row(
        0, named=True
    )
    assert row["difference"] == pytest.approx(1, abs=0.02)
    assert row["low"] < 0 < row["high"] and row["significant"] is False
    # By hand: sd 2 in each arm, v = 4/3 each, Welch's degrees (8/3)² / (2 (4/3)² / (2 + 2)) - 2 = 6,
    # t(0.975, 6) = 2.447, half = 2.447 sqrt(8/3) = 3.996; the noise adds some thousandths.
    assert row["high"] - row["difference"] == pytest.approx(3.996, rel=0.01)
    clear = arm_differences(runs("none", none, resamples) + runs("remix", remix + 50, resamples), ["x"], 2000)
    assert clear["significant"].to_list() == [True] and clear["p"][0] < 0.001


def test_what_a_factoid_does_under_one_seed_counts_once():
    """Of seeds that scatter by their factoids alone, the error is that of the factoids' noise: no more, no less."""
    rng = np.random.default_rng(3)
    n, seeds = 400, 40
    resamples = Resamples.of(n, draws=2000)
    common = rng.normal(0, 5, n)  # cancels in the difference of arms
    values = [common + rng.normal(0, 2, (seeds, n)) for _ in range(2)]
    members = runs("none", values[0], resamples) + runs("remix", values[1], resamples)
    row = arm_differences(members, ["x"], n).row(0, named=True)
    se = (row["high"] - row["difference"]) / 1.99
    assert se == pytest.approx(2 * np.sqrt(2 / n / seeds), rel=0.15)  # counted twice it is 1.41 times that
    # What a factoid does to a whole arm is in the factoids' part, and cannot cancel.
    peculiar = rng.normal(0, 2, n)
    members = runs("none", values[0], resamples) + runs("remix", values[1] + peculiar, resamples)
    row = arm_differences(members, ["x"], n).row(0, named=True)
    se = (row["high"] - row["difference"]) / 1.97
    assert se == pytest.approx(2 * np.sqrt(2 / n / seeds + 1 / n), rel=0.15)


def test_equal_runs_have_no_error_and_one_factoid_has_no_interval():
    resamples = Resamples.of(10, draws=200)
    members = runs("none", np.zeros((3, 10)), resamples) + runs("remix", np.ones((3, 10)), resamples)
    row = arm_differences(members, ["x"], 10).row(0, named=True)
    assert (row["difference"], row["low"], row["high"], row["p"]) == (1, 1, 1, 0)
    alone = Resamples.of(1, draws=200)
    members = runs("none", np.zeros((3, 1)), alone) + runs("remix", np.ones((3, 1)), alone)
    assert arm_differences(members, ["x"], 1)["low"][0] is None


def test_arms_are_compared_at_the_same_stage_only():
    resamples = Resamples.of(10, draws=200)
    later = [
        Run(r.arm, "3", r.seed, r.label, r.means, r.draws)
        for r in runs("remix", np.zeros((3, 10)), resamples)
    ]
    assert arm_differences(runs("none", np.zeros((3, 10)), resamples) + later, ["x"], 10).is_empty()


def test_the_interval_of_a_share_ends_where_shares_do():
    values = (np.random.default_rng(0).random((3, 40)) < [[0.02], [0.1], [0.3]]).astype(float)
    resamples = Resamples.of(40, draws=500)
    wide = arm_means(runs("none", values, resamples), ["exact"], 40).row(0, named=True)
    share = arm_means(runs("none", values, resamples), ["exact"], 40, shares=["exact"]).row(0, named=True)
    assert wide["low"] < 0 == share["low"] and share["high"] == wide["high"] < 1
    none = arm_means(runs("none", values[:2], resamples), ["exact"], 40, shares=["exact"])
    assert none["low"].to_list() == [None]
