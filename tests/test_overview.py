"""What a page shows beside curves and placement, worked by hand."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from memprobe.records import OUTCOMES
from memprobe.statistics import overview
from memprobe.statistics.controls import STATISTICS, net_of
from memprobe.statistics.holding import Trajectories
from memprobe.statistics.intervals import Resamples, wilson
from memprobe.statistics.paired import differences


def test_depth_shares_count_never_too():
    table = overview.depth_shares({"a": (np.array([1.0, 3.0, 3.0, np.nan]), 3)})
    assert table.rows() == [("a", 1, 0.25), ("a", 2, 0.0), ("a", 3, 0.5), ("a", None, 0.25)]


def test_outcome_shares_leave_out_errors_and_unknowns():
    rows = [
        ["a", "1", True, True, "x", None, True],
        ["a", "2", False, None, "y", None, None],
        ["a", "3", None, None, None, "too long", None],
    ]
    shares = overview.outcome_shares(pl.DataFrame(rows, schema=OUTCOMES, orient="row"))
    low, high = wilson(np.array(0.5), np.array(2))
    assert shares["exact_tokens"] == {"value": 0.5, "low": float(low), "high": float(high)}
    assert shares["exact_match"]["value"] == 1
    none = pl.DataFrame(rows[2:], schema=OUTCOMES, orient="row")
    assert overview.outcome_shares(none) == {"exact_match": None, "exact_tokens": None}


def test_chance_levels_are_means_over_the_draws_that_have_them():
    none = np.empty((0, 0))

    def draw(*ranks):
        return Trajectories("a", "shuffled:0", np.array(["1", "2"]), np.array(ranks), none, none)

    draws = [draw([9, 9, 0], [9, 9, 9]), draw([9, 9, 9], [9, 9, 9])]
    names = ["lof_mean", "share_never", "depths_per_factoid"]
    expected = {"lof_mean": 2.0, "share_never": 0.75, "depths_per_factoid": 0.25}
    assert overview.chance_of(draws, 5, names) == expected
    # A fact that is in one draw of two weighs as much as the other one.
    alone = Trajectories("a", "shuffled:1", np.array(["2"]), np.array([[9, 0, 0]]), none, none)
    found = overview.chance_of(
        [draws[0], alone], 5, ["lof_restricted_mean", "depths_per_factoid", "share_never"]
    )
    assert found == {"lof_restricted_mean": 2.0, "depths_per_factoid": 1.0, "share_never": 0.25}
    assert overview.chance_of([], 5, ["share_never"]) == {"share_never": None}


def test_paired_means_leave_out_factoids_without_a_value():
    values = np.zeros((3, 2, len(STATISTICS)))
    values[:, 1, 0] = [1, np.nan, 3]
    table = overview.paired_means(values, STATISTICS, Resamples.of(3, draws=200))
    other = table.filter(pair=1).row(0, named=True)
    assert (other["statistic"], other["n"], other["difference"]) == ("lof", 2, 2.0)
    assert table["difference"].drop_nulls().sum() == 2.0
    assert table.filter(pair=0)["n"].to_list() == [3] * len(STATISTICS)


@pytest.mark.parametrize("value", [-1.0, 0.0, 0.4, 1.0])
def test_the_page_is_no_surer_of_facts_that_agree_than_the_tables_are(value):
    """Sixteen facts that all are lost, or all stay, have one interval: compared, on the page, and net of a control."""
    values, resamples = np.full((16, 1), value), Resamples.of(16, draws=400)
    named = differences(values, resamples, shares=np.array([True]))
    page = overview.paired_means(values[:, None], ["exact"], resamples)
    net = net_of(values / 2, -values / 2, resamples, shares=np.array([True])).rename({"net": "difference"})
    edges = [table.select("difference", "low", "high").row(0) for table in (named, page, net)]
    assert edges[0] == edges[1] == pytest.approx(edges[2])
    assert edges[0][1] <= value <= edges[0][2] and edges[0][2] - edges[0][1] > 0.2


def test_flows_follow_each_fact_from_state_to_state():
    held = np.array([[1, 0], [1, 1], [0, 1], [1, 0]], bool)  # depth 0 counts for nothing
    states = overview.states_of(np.array([True, False, False, False]), held)
    assert [overview.STATES[state] for state in states] == ["said", "surfaces", "surfaces", "absent"]
    table = overview.flows(np.column_stack([np.zeros(4, int), states]))
    counts = {(row["source"], row["target"]): row["n"] for row in table.iter_rows(named=True)}
    assert counts["said", "said"] == 1
    assert counts["said", "surfaces"] == 2
    assert counts["said", "absent"] == 1
    assert sum(counts.values()) == 4
    row = table.filter(source="said", target="surfaces").row(0, named=True)
    assert (row["share"], row["low"]) == (0.5, pytest.approx(float(wilson(np.array(0.5), np.array(4))[0])))
