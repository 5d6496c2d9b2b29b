"""What a page shows beside curves and placement, worked by hand."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from memprobe.records import OUTCOMES
from memprobe.statistics import overview
from memprobe.statistics.controls import STATISTICS
from memprobe.statistics.intervals import Resamples, wilson


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
    draws = [{"lof_mean": 2.0, "never": 0.5}, {"lof_mean": None, "never": 1.0}]
    assert overview.mean_over_draws(draws, ["lof_mean", "never"]) == {"lof_mean": 2.0, "never": 0.75}
    assert overview.mean_over_draws([], ["never"]) == {"never": None}


def test_paired_means_leave_out_factoids_without_a_value():
    values = np.zeros((3, 2, len(STATISTICS)))
    values[:, 1, 0] = [1, np.nan, 3]
    table = overview.paired_means(values, Resamples.of(3, draws=200))
    other = table.filter(pair=1).row(0, named=True)
    assert (other["statistic"], other["n"], other["difference"]) == ("lof", 2, 2.0)
    assert table["difference"].drop_nulls().sum() == 2.0
    assert table.filter(pair=0)["n"].to_list() == [3] * len(STATISTICS)


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
