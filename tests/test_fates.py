"""Which facts are kept, and where lost ones went."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from memprobe.statistics.fates import (
    fates,
    kept_against_lost,
    lost_facts,
    lost_in_short,
    rank_correlations,
)
from memprobe.statistics.holding import Trajectories


def test_paths_are_counted():
    known = np.array([[1, 1], [1, 0], [1, 0], [0, 1]], bool)
    table = fates(known)
    assert table["path"].to_list() == ["1→1", "1→0", "0→1", "0→0"]
    assert table["n"].to_list() == [1, 2, 1, 0]
    assert table["share"].to_list() == [0.25, 0.5, 0.25, 0]
    assert fates(np.ones((2, 3), bool))["path"].to_list()[:2] == ["1→1→1", "1→1→0"]


def test_kept_facts_against_lost_ones_are_welch_s():
    rng = np.random.default_rng(0)
    values = rng.normal(25, 2, (40, 2))
    values[3, 1] = np.nan
    kept = np.arange(40) < 12
    lost = (np.arange(40) >= 12) & (np.arange(40) < 37)  # the last three were not there before
    found = kept_against_lost(values, kept, lost)
    for column in (0, 1):
        one, other = (values[which, column][~np.isnan(values[which, column])] for which in (kept, lost))
        assert found.difference[column] == pytest.approx(one.mean() - other.mean())
        # Welch's own degrees of freedom (1947); scipy's are Satterthwaite's, with n - 1 below and nothing taken off.
        parts = [part.var(ddof=1) / len(part) for part in (one, other)]
        freedom = sum(parts) ** 2 / sum(
            v**2 / (len(part) + 1) for v, part in zip(parts, (one, other), strict=True)
        )
        half = stats.t.ppf(0.975, freedom - 2) * np.sqrt(sum(parts))
        assert found.low[column] == pytest.approx(found.difference[column] - half, abs=1e-6)
        assert found.high[column] == pytest.approx(found.difference[column] + half, abs=1e-6)
        theirs = stats.ttest_ind(one, other, equal_var=False).confidence_interval()
        assert found.low[column] == pytest.approx(theirs.low, abs=0.02)
        assert found.high[column] - found.difference[column] < found.detectable[column]


def test_facts_that_share_an_answer_go_together_in_kept_against_lost():
    """Eight facts an answer that are of one depth are one fact told eight times."""
    rng = np.random.default_rng(3)
    answers = np.repeat(np.arange(24), 8)
    depth = rng.normal(20, 3, 24)
    kept = answers < 12
    once = kept_against_lost(depth[:, None], np.arange(24) < 12, np.arange(24) >= 12)
    found = kept_against_lost(depth[answers][:, None], kept, ~kept, answers)
    assert (found.low, found.high) == (pytest.approx(once.low), pytest.approx(once.high))
    blind = kept_against_lost(depth[answers][:, None], kept, ~kept)
    assert blind.high - blind.low < 0.5 * (once.high - once.low), (
        "this is what it would say of facts on their own"
    )
    few = kept_against_lost(depth[answers][:, None], answers < 9, answers >= 9, answers)
    assert np.isnan(few.low[0]) and np.isfinite(few.difference[0]), "72 facts are nine answers"


def test_an_answer_with_kept_and_lost_facts_moves_both_means():
    """Each answer has two kept facts and two lost ones: what it adds to both falls out of their difference."""
    rng = np.random.default_rng(4)
    answers = np.repeat(np.arange(60), 4)
    own = rng.normal(0, 5, 60)[answers] + rng.normal(0, 1, 240)
    kept = np.tile([True, True, False, False], 60)
    found = kept_against_lost(own[:, None], kept, ~kept, answers)
    paired = own[kept].reshape(60, 2).mean(1) - own[~kept].reshape(60, 2).mean(1)
    half = stats.t.ppf(0.975, 59) * paired.std(ddof=1) / np.sqrt(60)
    assert (found.high - found.low)[0] / 2 == pytest.approx(half, rel=0.03)


def test_influence_is_what_leaving_a_fact_out_does():
    values = np.array([[1.0], [3], [8], [6], [5]])
    kept, lost = np.array([1, 1, 0, 0, 0], bool), np.array([0, 0, 1, 1, 0], bool)
    found = kept_against_lost(values, kept, lost)
    assert found.difference.tolist() == [2 - 7]
    # By hand: (1 - 2) / 2, (3 - 2) / 2, -(8 - 7) / 2, -(6 - 7) / 2, and nothing of a fact in neither group.
    assert found.influence[:, 0].tolist() == [-0.5, 0.5, -0.5, 0.5, 0]


@pytest.mark.parametrize(
    ("n_kept", "interval"), [(1, False), (9, False), (10, True), (14, True), (15, False)]
)
def test_a_small_group_has_no_interval_and_an_empty_one_no_difference(n_kept, interval):
    """Fewer than ten facts have no mean with an interval anywhere; two of one depth seem to scatter by nothing."""
    values = np.arange(24.0)[:, None] ** 1.5
    kept = np.arange(24) < n_kept
    found = kept_against_lost(values, kept, ~kept)
    assert bool(np.isfinite(found.low[0])) == bool(np.isfinite(found.detectable[0])) == interval
    assert np.isfinite(found.difference[0]) and np.isfinite(found.influence).all()
    none = kept_against_lost(values, kept & ~kept, ~kept)
    assert np.isnan(none.difference[0])


def test_rank_correlations_are_spearman_s_over_the_facts_that_count():
    rng = np.random.default_rng(1)
    values = rng.integers(20, 31, (60, 3)).astype(float)  # depths, with ties
    values[:, 2] = 30.0
    outcome = -0.3 * values[:, 0] + rng.normal(0, 3, 60)
    values[5, 1] = np.nan
    among = np.arange(60) < 50
    found = rank_correlations(values, outcome, among)
    for column in (0, 1):
        rows = among & ~np.isnan(values[:, column])
        theirs = stats.spearmanr(values[rows, column], outcome[rows]).statistic
        assert found.rho[column] == pytest.approx(theirs)
    assert np.isnan(found.rho[2]), "all surface at one depth"
    assert found.rho[0] < -0.1 and not found.influence[50:].any() and not found.influence[5, 1]


def test_a_fact_s_influence_on_a_rank_correlation_is_what_leaving_it_out_does():
    rng = np.random.default_rng(3)
    values = rng.integers(0, 4, (300, 1)).astype(float)  # many ties, and more facts than go in one pass
    outcome = np.round(values[:, 0] + rng.normal(0, 2, 300))
    found = rank_correlations(values, outcome, np.ones(300, bool))
    without = np.array(
        [stats.spearmanr(np.delete(values[:, 0], i), np.delete(outcome, i)).statistic for i in range(300)]
    )
    change = found.rho[0] - without
    assert found.influence[:, 0] == pytest.approx((change - change.mean()) * 299 / 300, abs=1e-12)
    lone = rank_correlations(np.array([[1.0], [1], [1], [9]]), np.arange(4.0), np.ones(4, bool))
    assert np.isfinite(lone.rho[0]) and np.isfinite(lone.influence).all(), "nothing varies without the last"


def test_the_influence_of_a_fact_on_a_rank_correlation_adds_up_to_its_variance():
    rng = np.random.default_rng(2)
    rhos, variances = [], []
    for _ in range(300):
        depth = rng.normal(size=80)
        outcome = -0.6 * depth + 0.8 * rng.normal(size=80)
        found = rank_correlations(np.round(depth[:, None], 1), outcome, np.ones(80, bool))
        rhos.append(found.rho[0])
        variances.append((found.influence[:, 0] ** 2).sum())
    assert np.mean(variances) == pytest.approx(np.var(rhos, ddof=1), rel=0.25)


@pytest.mark.parametrize("facts", [0, 2])
def test_too_few_facts_have_no_rank_correlation(facts):
    values = np.arange(10.0)[:, None]
    found = rank_correlations(values, -values[:, 0], np.arange(10) < facts)
    assert np.isnan(found.rho[0]) and not found.influence.any()


def made(ranks, control=None, ids=("a", "b", "c")):
    rank = np.array(ranks, np.int32)
    logs = np.empty((0, 0), np.float32) if control else -rank.astype(np.float32)
    return Trajectories("m", control, np.array(ids), rank, logs, logs)


def test_where_lost_facts_went():
    before = made([[9, 0, 0, 0]] * 3)
    after = made([[9, 0, 1, 30], [0, 9, 9, 20], [9, 0, 0, 0]])  # b is held at depth 0 only, which is none
    intrusions = [
        made([[0, 0, 0, 5], [0, 0, 0, 25]], "intrusion:x", ("a", "b")),
        made([[0, 0, 0, 7]], "intrusion:y", ("a",)),
    ]
    first = after.rank[:, -1]
    table = lost_facts(
        after, before, np.array([True, True, False]), k=2, intrusions=intrusions, first_rank=first
    )
    assert table["factoid"].to_list() == ["a", "b"]
    assert table["deepest"].to_list() == [2, None]
    assert table["log_prob"].to_list() == [-30, -20]
    assert table["log_prob_change"].to_list() == [-30, -20]
    assert table["intruder"].to_list() == ["intrusion:x"] * 2
    assert table["intruder_rank"].to_list() == [5, 25]
    assert table["intruded"].to_list() == [True, False]
    short = lost_in_short(table, 2)
    assert (short["n"], short["surfaces"], short["deepest"], short["intruded"]) == (2, 0.5, 2, 0.5)
    assert short["intruder_rank"] == pytest.approx(np.sqrt(6 * 26) - 1)
    assert short["full"] == 0 and lost_in_short(table, 21)["full"] == 0.5  # ranks 30 and 20


def test_an_intruder_of_the_same_rank_does_not_outrank_the_fact():
    """As where both answers begin with one token."""
    after = made([[9, 0, 0, 30]], ids=("a",))
    intrusions = [made([[0, 0, 0, 30]], "intrusion:x", ("a",))]
    found = lost_facts(
        after, after, np.array([True]), k=2, intrusions=intrusions, first_rank=after.rank[:, -1]
    )
    assert found.select("intruder_rank", "intruded").row(0) == (30, False)


def test_nothing_lost_and_no_intrusions():
    one = made([[9, 0, 0]] * 3)
    nothing = lost_facts(one, one, np.zeros(3, bool), k=2, intrusions=[], first_rank=one.rank[:, -1])
    assert (
        lost_in_short(nothing, 2)["surfaces"] is None and lost_in_short(nothing, 2)["intruder_rank"] is None
    )
    lost = lost_facts(one, one, np.ones(3, bool), k=2, intrusions=[], first_rank=one.rank[:, -1])
    assert lost["intruded"].to_list() == [None] * 3
    short = lost_in_short(lost, 2)
    assert (short["n"], short["n_intruded"], short["intruded"]) == (3, 0, None)
