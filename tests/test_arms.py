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
    # Student's by hand: sd 2 in each arm, se = sqrt(4/3 + 4/3) = 1.63, t(0.975, 4) = 2.776 -> half 4.53
    assert row["high"] - row["difference"] == pytest.approx(4.53, rel=0.1)
    clear = arm_differences(runs("none", none, resamples) + runs("remix", remix + 50, resamples), ["x"], 2000)
    assert clear["significant"].to_list() == [True] and clear["p"][0] < 0.001


def test_arms_are_compared_at_the_same_stage_only():
    resamples = Resamples.of(10, draws=200)
    later = [
        Run(r.arm, "3", r.seed, r.label, r.means, r.draws)
        for r in runs("remix", np.zeros((3, 10)), resamples)
    ]
    assert arm_differences(runs("none", np.zeros((3, 10)), resamples) + later, ["x"], 10).is_empty()
