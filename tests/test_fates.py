"""Which facts are kept, and where lost ones went."""

from __future__ import annotations

import numpy as np

from memprobe.statistics.fates import fates, kept_against_lost, lost_facts, lost_in_short
from memprobe.statistics.holding import Trajectories
from memprobe.statistics.intervals import Resamples


def test_paths_are_counted():
    known = np.array([[1, 1], [1, 0], [1, 0], [0, 1]], bool)
    table = fates(known)
    assert table["path"].to_list() == ["1→1", "1→0", "0→1", "0→0"]
    assert table["n"].to_list() == [1, 2, 1, 0]
    assert table["share"].to_list() == [0.25, 0.5, 0.25, 0]
    assert fates(np.ones((2, 3), bool))["path"].to_list()[:2] == ["1→1→1", "1→1→0"]


def test_kept_facts_against_lost_ones_draw_by_draw():
    values = np.array([[1.0, 2], [3, np.nan], [8, 6], [np.nan, 9], [5, 1]])
    kept, lost = (
        np.array([1, 1, 0, 0, 0], bool),
        np.array([0, 0, 1, 1, 0], bool),
    )  # the last was not there before
    resamples = Resamples.of(5, draws=50, seed=1)
    difference, draws = kept_against_lost(values, kept, lost, resamples)
    assert difference.tolist() == [2 - 8, 2 - 7.5]
    empty = 0
    for drawn, counts in zip(draws, resamples.counts, strict=True):
        rows = np.repeat(np.arange(5), counts)
        for column in (0, 1):
            sides = [[values[i, column] for i in rows if which[i]] for which in (kept, lost)]
            one, other = ([x for x in side if not np.isnan(x)] for side in sides)
            empty += not (one and other)
            wanted = np.mean(one) - np.mean(other) if one and other else np.nan
            np.testing.assert_allclose(drawn[column], wanted, rtol=1e-6)
    assert 0 < empty < 60


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
    short = lost_in_short(table)
    assert (short["n"], short["surfaces"], short["deepest"], short["intruded"]) == (2, 0.5, 2, 0.5)


def test_nothing_lost_and_no_intrusions():
    one = made([[9, 0, 0]] * 3)
    nothing = lost_facts(one, one, np.zeros(3, bool), k=2, intrusions=[], first_rank=one.rank[:, -1])
    assert lost_in_short(nothing)["surfaces"] is None
    lost = lost_facts(one, one, np.ones(3, bool), k=2, intrusions=[], first_rank=one.rank[:, -1])
    assert lost["intruded"].to_list() == [None] * 3
