"""Paired differences, permutation, spread, overlap and log-rank against hand-worked tables and statsmodels."""

from __future__ import annotations

import itertools
import math

import numpy as np
import polars as pl
import pytest
from scipy import stats

from memprobe.errors import MemprobeError
from memprobe.statistics.holding import Trajectories
from memprobe.statistics.intervals import Resamples, percentile_interval, wilson
from memprobe.statistics.occurrence import Occurrence
from memprobe.statistics.paired import (
    differences,
    differences_by_depth,
    false_discovery,
    log_rank,
    overlap,
    sign_flip,
)


def trajectories(rank: list[list[int]], log_prob: list[list[float]] | None = None) -> Trajectories:
    ranks = np.array(rank, np.int32)
    ids = np.array([f"f{i}" for i in range(len(ranks))])
    logs = np.array(log_prob, np.float32) if log_prob else -ranks.astype(np.float32)
    return Trajectories("m", None, ids, ranks, logs, np.zeros_like(logs))


def occurring(lof: list[float], n_layers: int, prefix: str = "f") -> Occurrence:
    """Facts that hold from their LoF on; NaN never."""
    depth = np.array(lof, float)
    held = np.arange(n_layers + 1) >= np.where(np.isnan(depth), n_layers + 1, depth)[:, None]
    return Occurrence(np.array([f"{prefix}{i}" for i in range(len(lof))]), n_layers, depth, depth, held)


@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
def test_facts_that_agree_are_not_certain(value):
    """Sixteen facts that all are lost, or all stay, are sixteen facts; means of depths are known as they are."""
    values = np.column_stack([np.full(16, value), np.full(16, value), [value] * 9 + [math.nan] * 7])
    table = differences(values, Resamples.of(16, draws=400), shares=np.array([True, False, True]))
    share, depth, few = table.rows(named=True)
    assert share["difference"] == depth["difference"] == depth["low"] == depth["high"] == value
    # One gained and one lost are added: 18 facts, of which 18 or 2 moved.
    moved, net = 16 * abs(value) + 2, 16 * value
    half = 1.959964 * math.sqrt((moved / 18 - (net / 18) ** 2) / 18)
    assert share["low"] == pytest.approx(max(-1, net / 18 - half)) and share["low"] <= value
    assert share["high"] == pytest.approx(min(1, net / 18 + half)) and share["high"] >= value
    assert share["high"] - share["low"] > 0.2
    assert few["n"] == 9 and few["low"] is None  # too few for any


def test_differences_by_hand():
    values = np.array([[1.0, np.nan], [2.0, 1.0], [-1.0, 1.0], [2.0, 1.0]])
    table = differences(values, Resamples.of(4, draws=2000))
    assert table["n"].to_list() == [4, 3]
    assert table["difference"].to_list() == [1.0, 1.0]
    assert table["effect"][0] == pytest.approx(1 / math.sqrt(2))  # sd of 1, 2, -1, 2 is sqrt 2
    assert table["effect"][1] is None  # no spread at all: d_z does not exist
    assert table["dominance"].to_list() == [0.5, 1.0]
    # Of the 16 sign patterns of 1, 2, -1, 2, ±6 reach farther (1 each) and ±4 as far (2 each): the observed one and
    # its mirror image count whole, the other two half.
    assert table["p"][0] == pytest.approx((2 + 2 + 2 / 2) / 16)
    # 1, 1, 1 and nothing: the 8 patterns of three, the two at ±3 whole.
    assert table["p"][1] == pytest.approx(2 / 8)
    assert table["low"].to_list() == [None, None]  # too few for an interval


def test_few_pairs_have_student_s_interval_and_very_few_none():
    values = np.random.default_rng(0).normal(0.5, 1, (29, 1))
    values[10:, 0] = np.nan
    for n in (9, 10, 29, 30):
        some = np.random.default_rng(1).normal(0.5, 1, (n, 1))
        resamples = Resamples.of(n, draws=400)
        row = differences(some, resamples).row(0, named=True)
        theirs = stats.ttest_1samp(some[:, 0], 0).confidence_interval()
        if n < 10:
            assert (row["low"], row["high"]) == (None, None) and row["p"] is not None
        elif n < 30:
            assert [row["low"], row["high"]] == pytest.approx([theirs.low, theirs.high])
        else:
            drawn = percentile_interval(resamples.counts @ some / n, n)
            assert [row["low"], row["high"]] == pytest.approx(np.concatenate(drawn), abs=1e-5)
    # What counts are the pairs that have a value, not the factoids.
    torn = differences(values, Resamples.of(29, draws=400)).row(0, named=True)
    theirs = stats.ttest_1samp(values[:10, 0], 0).confidence_interval()
    assert [torn["n"], torn["low"], torn["high"]] == pytest.approx([10, theirs.low, theirs.high])


def test_sign_flip_flips_one_answer_together():
    values = np.array([[1.0]] * 6)
    alone = sign_flip(values, np.array(list("abcdef")))
    together = sign_flip(values, np.array(list("aaabbb")))
    assert alone[0] == 2 / 64
    assert together[0] == 2 / 4  # two answers: only ++ and -- reach 6


def test_sign_flip_counts_ties_half():
    # Seven facts gained, three lost: |sum| is 4. By hand with 2^10 = 1024 patterns: as far are C(10, 3) = 120 each
    # way, farther (C(10, 2) + 10 + 1) = 56 each way. The observed one and its mirror image count whole.
    values = np.array([[1.0]] * 7 + [[-1.0]] * 3)
    expected = (112 + 2 + 238 / 2) / 1024
    assert sign_flip(values, np.arange(10), draws=1024)[0] == pytest.approx(expected)
    assert sign_flip(values, np.arange(10), draws=1000, seed=1)[0] == pytest.approx(expected, abs=0.04)
    # Sampled or in full, what did not move changes nothing: 3 of one sign have 2 / 2^3.
    few = np.array([[1.0]] * 3 + [[0.0]] * 40)
    assert sign_flip(few[:5], np.arange(5))[0] == 0.25
    assert sign_flip(few, np.arange(43), draws=4000)[0] == pytest.approx(0.25, abs=0.03)
    assert sign_flip(np.array([[1.0], [-1.0]]), np.array(["a", "a"]))[0] == 1


def test_sign_flip_by_sampling_agrees_with_every_pattern():
    values = np.random.default_rng(0).normal(0.4, 1, (12, 3))
    answers = np.arange(12)
    exact = sign_flip(values, answers, draws=5000)
    sampled = sign_flip(values, answers, draws=4000, seed=1)
    np.testing.assert_allclose(sampled, exact, atol=0.03)
    assert sign_flip(np.zeros((30, 1)), np.arange(30), draws=500)[0] == 1
    assert sign_flip(np.full((30, 1), 5.0), np.arange(30), draws=500)[0] == pytest.approx(1 / 501)  # never 0
    assert math.isnan(sign_flip(np.full((3, 1), np.nan), np.arange(3))[0])


def test_false_discovery_by_hand():
    # Benjamini-Hochberg: p(i) * m / i, made monotone from the top: 0.01*3, 0.03*3/2, 0.04*3/3 -> 0.03, 0.04, 0.04
    q = false_discovery(np.array([0.04, np.nan, 0.01, 0.03]))
    assert q[[0, 2, 3]] == pytest.approx([0.04, 0.03, 0.04])
    assert math.isnan(q[1])
    many = np.random.default_rng(0).random(50) ** 3
    np.testing.assert_allclose(false_discovery(many), stats.false_discovery_control(many))
    assert np.isnan(false_discovery(np.full(3, np.nan))).all()


def test_differences_by_depth():
    reference = trajectories([[50, 9, 0], [50, 8, 3], [50, 7, 0]])
    checkpoint = trajectories([[50, 1, 0], [50, 0, 3], [50, 9, -1]])
    table = differences_by_depth(checkpoint, reference, k=2, resamples=Resamples.of(3, draws=500))
    recall = table.filter(measure="recall")
    assert recall["difference"].to_list() == pytest.approx([0, 2 / 3, 0])
    assert recall["n"].to_list() == [3, 3, 2]  # the missing depth is in neither
    rank = table.filter(measure="rank")
    assert rank["difference"].to_list() == [0, -8, 0]  # medians of 0s, (-8, -8, 2), (0, 0)
    assert rank["dominance"][1] == pytest.approx(-1 / 3)
    log_prob = table.filter(measure="log_prob")
    assert log_prob["difference"][1] == pytest.approx(14 / 3)
    assert (table["q"] >= table["p"]).all()


def test_a_log_probability_is_not_clipped_as_a_share():
    """At depth 0 too, which stands beside the last depth of the shares."""
    ranks = [[20, 0]] * 40
    own = (-1 + np.random.default_rng(0).normal(size=(40, 2))).tolist()
    checkpoint, reference = trajectories(ranks, own), trajectories(ranks, [[-6.0, -6.0]] * 40)
    table = differences_by_depth(checkpoint, reference, k=2, resamples=Resamples.of(40, draws=500))
    for row in table.filter(measure="log_prob").rows(named=True):
        assert 4 < row["low"] < row["difference"] < row["high"] < 6


def test_the_overlap_over_all_depths_leaves_out_depth_0():
    """What is held there was in the prompt."""

    def holding(rows):
        held = np.array(rows, bool)
        return Occurrence(np.array(["a", "b"]), 2, np.full(2, 2.0), np.full(2, 2.0), held)

    table = overlap(
        holding([[1, 0, 1], [0, 0, 1]]), holding([[1, 1, 1], [0, 0, 1]]), Resamples.of(2, draws=100)
    )
    assert table.select("both", "either", "jaccard").row(-1) == pytest.approx((1.0, 1.5, 2 / 3))


def test_overlap():
    table = overlap(occurring([2, 4, np.nan], 4), occurring([3, 4, 4], 4), Resamples.of(3, draws=500))
    assert table["depth"].to_list() == [0, 1, 2, 3, 4, None]
    assert table["jaccard"].to_list() == pytest.approx([None, None, 0, 1, 2 / 3, 3 / 5])
    assert table["both"][-1] == 1 and table["either"][-1] == pytest.approx(5 / 3)


@pytest.mark.parametrize("groups", [2, 3])
def test_log_rank_agrees_with_statsmodels(groups):
    from statsmodels.duration.survfunc import survdiff

    rng = np.random.default_rng(groups)
    depths = [np.where(rng.random(40) < 0.2, np.nan, rng.integers(1 + i, 9, 40)) for i in range(groups)]
    chi2, p = log_rank([occurring(list(depth), 8, prefix=f"{i}-") for i, depth in enumerate(depths)])
    flat = np.concatenate(depths)
    label = np.repeat(np.arange(groups), 40)
    theirs = survdiff(np.where(np.isnan(flat), 9, flat), ~np.isnan(flat), label)
    # Of many facts; theirs has the variance at each depth, ours that of dealing the facts out anew.
    assert chi2 == pytest.approx(theirs[0], rel=0.1)
    assert p == pytest.approx(theirs[1], abs=0.03)


def test_log_rank_s_p_is_the_share_of_all_ways_to_deal_the_facts_out():
    """Seven facts in three sets, every way worked out, with scores by hand."""
    depths = [[1.0, 1, 2], [2.0, 3], [3.0, np.nan]]
    flat = np.concatenate(depths)
    hazards = {1: 2 / 7, 2: 2 / 5, 3: 2 / 3}
    scores = [(d == d) - sum(h for depth, h in hazards.items() if not depth > d) for d in flat]
    sums = [
        sum(sum(scores[i] for i in part) ** 2 / len(part) for part in (order[:3], order[3:5], order[5:]))
        for order in itertools.permutations(range(7))
    ]
    sets = [occurring(one, 4, prefix=f"{i}-") for i, one in enumerate(depths)]
    chi2, p = log_rank(sets, draws=20_000)
    assert chi2 == pytest.approx(sums[0] * 6 / sum(score**2 for score in scores))
    assert p == pytest.approx(np.mean(np.array(sums) >= sums[0] - 1e-9), abs=0.01)
    assert log_rank(sets, draws=20_000) == (chi2, p), "the same seed"


def test_log_rank_holds_its_level_in_many_small_groups():
    """Ten groups of two facts that surface alike: the chi squared of many facts rejected three times in ten."""
    rng = np.random.default_rng(2)
    p = [
        log_rank([occurring(list(pair), 12, f"{i}-") for i, pair in enumerate(rng.integers(1, 13, (10, 2)))],
                 draws=199)[1]
        for _ in range(300)
    ]  # fmt: skip
    assert np.mean(np.array(p) <= 0.05) <= 0.08
    alone = [occurring([depth], 12, f"{depth}-") for depth in range(1, 8)]
    assert log_rank(alone)[1] == 1, "a fact each: any order is as likely as another"


def test_an_overlap_of_facts_that_agree_is_not_certain():
    """Forty facts that surface in one alone, and forty that surface alike: [0, 0] and [1, 1] they were."""
    early, late, none = ([depth] * 40 for depth in (1.0, 3.0, np.nan))
    resamples = Resamples.of(40, draws=200)
    apart = overlap(occurring(early, 4), occurring(none, 4), resamples).filter(depth=2)
    alike = overlap(occurring(late, 4), occurring(late, 4), resamples)
    for row, share in (
        (apart, 0.0),
        (alike.filter(depth=3), 1.0),
        (alike.filter(pl.col("depth").is_null()), 1.0),
    ):
        low, high = map(float, wilson(np.array(share), np.array(40)))
        assert row.select("jaccard", "low", "high").row(0) == pytest.approx((share, low, high))
        assert high - low > 0.05
    assert alike.filter(depth=1)["low"].to_list() == [None], "held in neither"


def test_log_rank_is_refused_for_the_same_factoids():
    with pytest.raises(MemprobeError, match="in pairs"):
        log_rank([occurring([1, 2], 4), occurring([2, 3], 4)])
    assert math.isnan(log_rank([occurring([np.nan], 4), occurring([np.nan], 4, "g")])[1])
    assert math.isnan(log_rank([occurring([2, 2], 4), occurring([2], 4, "g")])[1])
