"""Chance levels, cover of the commonest answer tokens, claims in two readouts, and groups."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from memprobe.errors import MemprobeError
from memprobe.records import RECORDS
from memprobe.statistics.controls import answer_cover, chance_held, chance_lof, net_of, placement_claims
from memprobe.statistics.groups import by_group, group_labels
from memprobe.statistics.holding import Trajectories
from memprobe.statistics.intervals import Resamples
from tests.test_paired import occurring


def answers(ids: dict[str, list[int]]) -> pl.DataFrame:
    rows = [["m", f, j, t, 0, 0, 0.0, 0.0, 0, 0] for f, tokens in ids.items() for j, t in enumerate(tokens)]
    return pl.DataFrame(rows, schema=RECORDS, orient="row")


def test_answer_cover():
    frame = answers({"a": [7, 1], "b": [7, 2], "c": [8, 2], "d": [9]})
    assert answer_cover(frame, k=1, token="first") == 0.5  # token 7
    assert answer_cover(frame, k=2, token="first") == 0.75  # and the smaller id of the two that tie
    assert answer_cover(frame, k=1, token="last") == 0.5  # token 2, wherever the answer ends
    assert answer_cover(frame, k=1, token="all") == 0.25  # b alone: 7 first and 2 second
    assert answer_cover(frame, k=3, token="all") == 1
    with pytest.raises(MemprobeError):
        answer_cover(frame, k=1, token="some")


def test_chance_is_the_mean_over_draws_by_factoid():
    def draw(name, ids, ranks):
        empty = np.empty((0, 0), np.float32)
        return Trajectories("m", name, np.array(ids), np.array(ranks, np.int32), empty, empty)

    draws = [draw("shuffled:0", ["b", "a"], [[9, 9, 0], [9, 0, 0]]), draw("shuffled:1", ["a"], [[9, 9, 0]])]
    order = np.array(["a", "b", "c"])
    held = chance_held(draws, order, 3, k=2)
    assert held[:2].tolist() == [[0, 0.5, 1], [0, 0, 1]]
    assert np.isnan(held[2]).all()
    lof = chance_lof(draws, order, k=2)
    assert lof[:2].tolist() == [1.5, 2] and np.isnan(lof[2])
    value, low, high = net_of(np.array([[2.0], [2.0], [2.0]]), lof[:, None], Resamples.of(3, draws=200))
    assert value[0] == 0.25 and low[0] <= 0.25 <= high[0]


def test_a_claim_is_held_only_where_both_readouts_agree():
    def table(low, high):
        names = {"reference": ["r"] * 4, "checkpoint": ["c"] * 4, "statistic": list("wxyz")}
        middle = [None if a is None else (a + b) / 2 for a, b in zip(low, high, strict=True)]
        return pl.DataFrame(names | {"difference": middle, "low": low, "high": high})

    own = table([-2.0, -2.0, 1.0, 1.0], [-1.0, -1.0, 2.0, 2.0])
    fixed = table([-3.0, -3.0, -2.0, None], [-0.5, 0.5, -1.0, None])
    assert placement_claims(own, fixed)["held"].to_list() == [True, False, False, None]
    assert placement_claims(own, None)["held"].to_list() == [None] * 4


def test_group_labels():
    facts = pl.DataFrame(
        {
            "id": list("abcd"),
            "relation": ["x", "x", None, "y"],
            "source": ["s"] * 4,
            "popularity": [1.0, 5.0, None, 9.0],
        }
    )
    tokens = pl.DataFrame({"factoid": list("dcba"), "length": [2, 1, 1, 1], "first": [5, 6, 7, 7]})
    assert group_labels(facts, tokens, None, by="relation") == ["x", "x", "none", "y"]
    assert group_labels(facts, tokens, None, by="popularity") == [
        "quarter 1",
        "quarter 2",
        "unknown",
        "quarter 4",
    ]
    assert group_labels(facts, tokens, None, by="answer-length") == [
        "1 token",
        "1 token",
        "1 token",
        "2 tokens",
    ]
    assert group_labels(facts, tokens, None, by="first-token") == ["shared by 2–9"] * 2 + ["unique"] * 2
    assert group_labels(facts, tokens, np.array(["1→0"] * 4), by="outcome") == ["1→0"] * 4
    for wrong in ("colour", "outcome"):
        with pytest.raises(MemprobeError):
            group_labels(facts, tokens, None, by=wrong)


def test_by_group():
    table = by_group(occurring([1, 2, 4, np.nan], 4), ["a", "a", "b", "b"], Resamples.of(4, draws=500))
    assert table["group"].to_list() == ["a", "b"]
    assert table["lof_mean"].to_list() == [1.5, 4]
    assert table["lof_restricted_mean"].to_list() == [1.5, 4.5]
    assert table["share_never"].to_list() == [0, 0.5]
    assert table["recall_full"].to_list() == [1, 0.5]
    assert table["share_never_high"][0] > 0.5  # Wilson: two factoids say little
