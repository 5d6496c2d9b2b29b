"""Placement statistics against tables worked by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial

import numpy as np
import polars as pl
import pytest
from scipy import special, stats

from memprobe.errors import MemprobeError
from memprobe.records import CONTROLS, RECORDS
from memprobe.statistics import (
    held,
    normalised_frequency,
    occurrence,
    placement,
    recall_by_depth,
    shuffled_recall,
)
from memprobe.statistics.curves import area
from memprobe.statistics.intervals import (
    Resamples,
    bootstrap,
    bootstrap_mean,
    median_interval,
    percentile_interval,
    studentised_interval,
    wilson,
)
from memprobe.statistics.occurrence import (
    Occurrence,
    effective_layers,
    effective_layers_of,
    kaplan_meier,
    median_depth,
    placement_of,
)
from memprobe.summary import summarise
from tests.probes import write_probe


def records(ranks: dict[str, dict[str, list[list[int | None]]]]) -> pl.DataFrame:
    """{checkpoint: {factoid: [ranks by depth, one list for each answer token]}}; None leaves the row out."""
    rows = [
        [
            checkpoint,
            "logit",
            factoid,
            "answer",
            token,
            100 + token,
            depth,
            rank,
            -float(rank),
            1.0 + token,
            0,
            0,
        ]
        for checkpoint, factoids in ranks.items()
        for factoid, tokens in factoids.items()
        for token, by_depth in enumerate(tokens)
        for depth, rank in enumerate(by_depth)
        if rank is not None
    ]
    return pl.DataFrame(rows, schema=RECORDS, orient="row")


def controls(draws: dict[str, dict[str, list[list[int]]]]) -> pl.DataFrame:
    """Like ``records`` for one checkpoint, {control: {factoid: …}}."""
    parts = [
        records({"m": factoids}).with_columns(control=pl.lit(name)).select(list(CONTROLS))
        for name, factoids in draws.items()
    ]
    return pl.concat(parts)


# Depths 0 … 3, k = 2. Rank 2 is out, whatever ties there are at it: rank < k.
HAND = records(
    {
        "m": {
            "a": [[0, 1, 2, 0]],  # held at 0, 1, 3: LoF 1 (depth 0 counts for nothing), settled 3
            "b": [[9, 9, 9, 1], [9, 0, 0, 5]],  # first: LoF 3; last: 1, never settled; all: never
            "c": [[9, 9, 9, 9]],  # never
            "d": [[5, 5, 1, 0], [5, 1, 1, 1], [0, 0, 2, 0]],  # first: 2, 2; last: 1, 3; all: 3, 3
        }
    }
)


def test_held_by_each_token_rule():
    def table(token):
        frame = held(HAND, k=2, token=token)
        return {
            key[0]: part["held"].to_list()
            for key, part in frame.partition_by("factoid", as_dict=True).items()
        }

    no, yes = False, True
    assert table("first") == {
        "a": [yes, yes, no, yes],
        "b": [no, no, no, yes],
        "c": [no] * 4,
        "d": [no, no, yes, yes],
    }
    assert table("last") == {
        "a": [yes, yes, no, yes],
        "b": [no, yes, yes, no],
        "c": [no] * 4,
        "d": [yes, yes, no, yes],
    }
    assert table("all") == {"a": [yes, yes, no, yes], "b": [no] * 4, "c": [no] * 4, "d": [no, no, no, yes]}


def test_the_end_token_belongs_to_no_rule():
    end = records({"m": {"a": [[0, 0, 0, 0]]}}).with_columns(
        token=pl.lit(-1, pl.Int16), rank=pl.lit(500, pl.Int32)
    )
    for token in ("first", "last", "all"):
        assert held(pl.concat([HAND, end]), k=2, token=token).equals(held(HAND, k=2, token=token))


def test_recall_by_depth():
    table = recall_by_depth(HAND, k=2, token="first")
    assert table.columns == ["checkpoint", "depth", "n", "recall", "low", "high"]
    assert table["recall"].to_list() == [0.25, 0.25, 0.25, 0.75]
    assert table["n"].to_list() == [4] * 4
    # Wilson by hand: p = 1/4, n = 4, z = 1.96 -> centre 0.3724, half 0.3269
    assert table["low"][0] == pytest.approx(0.0456, abs=1e-4)
    assert table["high"][0] == pytest.approx(0.6994, abs=1e-4)


def test_wilson_reaches_the_ends_and_has_none_without_factoids():
    low, high = wilson(np.array([0.0, 1.0, np.nan]), np.array([10, 10, 0]))
    assert (low[0], high[1]) == (0.0, 1.0)
    assert high[0] == pytest.approx(0.2775, abs=1e-4)  # z²/(n + z²)
    assert math.isnan(low[2]) and math.isnan(high[2])


def test_normalised_frequency_is_over_depths_from_one():
    table = normalised_frequency(HAND, k=2, token="first")
    assert table["depth"].to_list() == [1, 2, 3]
    assert table["frequency"].to_list() == [1 / 5, 1 / 5, 3 / 5]


def test_normalised_frequency_is_null_where_nothing_occurs():
    nothing = records({"m": {"a": [[0, 9, 9]]}})  # depth 0 alone holds it
    assert normalised_frequency(nothing, k=2, token="first")["frequency"].to_list() == [None, None]


def test_occurrence():
    def rows(token):
        return [row[1:] for row in occurrence(HAND, k=2, token=token).iter_rows()]

    assert rows("first") == [("a", 3, 1, 3, 2), ("b", 3, 3, 3, 1), ("c", 3, None, None, 0), ("d", 3, 2, 2, 2)]
    assert rows("last") == [
        ("a", 3, 1, 3, 2),
        ("b", 3, 1, None, 2),
        ("c", 3, None, None, 0),
        ("d", 3, 1, 3, 2),
    ]
    assert rows("all") == [
        ("a", 3, 1, 3, 2),
        ("b", 3, None, None, 0),
        ("c", 3, None, None, 0),
        ("d", 3, 3, 3, 1),
    ]


def test_a_missing_depth_holds_nothing_and_is_not_counted():
    gap = records({"m": {"a": [[9, 0, None, 0]], "b": [[9, 9, 0, 0]], "c": [[9, 0, 0, None]]}})
    assert [row[3:] for row in occurrence(gap, k=2, token="first").iter_rows()] == [
        (1, 3, 2),
        (2, 2, 2),
        (1, None, 2),
    ]
    recall = recall_by_depth(gap, k=2, token="first")
    assert recall["n"].to_list() == [3, 3, 2, 2]
    assert recall["recall"].to_list() == [0, 2 / 3, 1, 1]
    # Under "all", a depth at which one of the tokens is missing is missing.
    torn = records({"m": {"a": [[0, 0, 0], [0, None, 0]]}})
    assert held(torn, k=2, token="all")["depth"].to_list() == [0, 2]


def test_placement():
    row = placement(HAND, k=2, token="first", draws=2000).row(0, named=True)
    assert row["n"] == 4 and row["n_layers"] == 3
    assert row["lof_mean"] == pytest.approx(2)  # 1, 3, 2
    assert row["lof_sd"] == pytest.approx(1)
    assert row["share_never"] == 0.25
    assert row["share_only_full"] == 0.25
    assert row["lof_restricted_mean"] == pytest.approx(2.5)  # 1, 3, 4, 2
    assert row["lof_median"] == 2
    assert row["settled_mean"] == pytest.approx(8 / 3)  # 3, 3, 2
    assert row["depths_per_factoid"] == pytest.approx(5 / 4)
    shares = np.array([1, 1, 3]) / 5
    assert row["effective_layers"] == pytest.approx(math.exp(-(shares * np.log(shares)).sum()))
    assert row["lof_restricted_mean_low"] is None  # too few for an interval


def test_placement_when_nothing_ever_occurs():
    row = placement(records({"m": {"a": [[9, 9, 9]], "b": [[9, 9, 9]]}}), k=2, token="first").row(
        0, named=True
    )
    assert row["share_never"] == 1
    assert row["lof_restricted_mean"] == 3
    assert all(
        row[name] is None for name in ("lof_mean", "lof_sd", "lof_median", "effective_layers", "lof_mean_low")
    )
    assert row["depths_per_factoid"] == 0


def test_placement_of_one_factoid():
    row = placement(records({"m": {"a": [[9, 9, 0]]}}), k=2, token="first").row(0, named=True)
    assert (row["lof_mean"], row["lof_sd"], row["lof_mean_low"], row["lof_median_high"]) == (
        2,
        None,
        None,
        None,
    )


def test_checkpoints_with_unequal_factoids_and_depths_keep_their_own():
    frame = records({"z": {"a": [[9, 0, 0]], "b": [[9, 9, 0]]}, "m": {"b": [[9, 9, 9, 0, 0]]}})
    table = placement(frame, k=2, token="first")
    assert table["checkpoint"].to_list() == ["z", "m"]  # in the order of the records
    assert table["n"].to_list() == [2, 1]
    assert table["lof_mean"].to_list() == [1.5, 3]
    assert recall_by_depth(frame, k=2, token="first")["depth"].to_list() == [0, 1, 2, 0, 1, 2, 3, 4]


def test_controls_keep_their_draws_apart_and_chance_is_their_mean():
    frame = controls(
        {
            "shuffled:0": {"a": [[9, 0]], "b": [[9, 9], [9, 0]]},
            "shuffled:1": {"a": [[9, 0]], "b": [[9, 0], [9, 9]]},
            "intrusion:x": {"a": [[0, 0]], "b": [[0, 0]]},
        }
    )
    table = recall_by_depth(frame, k=2, token="first")
    assert table.filter(pl.col("depth") == 1)["recall"].to_list() == [0.5, 1, 1]
    chance = shuffled_recall(frame, k=2, token="first")
    assert chance["recall"].to_list() == [0, 0.75]
    assert chance["n"].to_list() == [2, 2]
    assert occurrence(frame, k=2, token="first")["control"].unique(maintain_order=True).to_list() == [
        "shuffled:0",
        "shuffled:1",
        "intrusion:x",
    ]


def test_a_depth_that_a_draw_lacks_is_not_counted_as_a_miss():
    """Chance would be halved there, and what is net of it would grow."""
    frame = controls({"shuffled:0": {"a": [[9, 0]]}, "shuffled:1": {"a": [[9, None]]}})
    chance = shuffled_recall(frame, k=2, token="first")
    assert chance.select("depth", "n", "recall").rows() == [(0, 1, 0.0), (1, 1, 1.0)]


def test_a_draw_that_is_shorter_than_the_answer_is_no_chance_level_of_it():
    """Of answers of two tokens, a draw of one token has nothing at the second: it is asked of the first alone."""
    asked = records({"m": {"a": [[9, 0]], "b": [[9, 9], [9, 0]], "c": [[9, 9], [9, 0]]}})
    frame = controls(
        {
            "shuffled:0": {"a": [[9, 0]], "b": [[9, 9], [9, 0]], "c": [[0, 0]]},
            "shuffled:1": {"a": [[9, 0]], "b": [[0, 0]], "c": [[0, 0]]},
        }
    )
    first = shuffled_recall(frame, k=2, token="first")
    assert first["n"].to_list() == [3, 3] and first["recall"].to_list() == pytest.approx(
        [0.5, (1 + 0.5 + 1) / 3]
    )
    for rule, full in (("last", (1 + 1) / 2), ("all", (1 + 0) / 2)):
        whole = shuffled_recall(frame, k=2, token=rule, records=asked)
        assert whole["n"].to_list() == [2, 2], "c has no draw as long as its answer"
        assert whole["recall"].to_list() == [0, full]
        with pytest.raises(MemprobeError, match="records"):
            shuffled_recall(frame, k=2, token=rule)


def test_kaplan_meier_agrees_with_statsmodels():
    from statsmodels.duration.survfunc import SurvfuncRight

    rng = np.random.default_rng(1)
    depth = np.where(rng.random(80) < 0.2, np.nan, rng.integers(1, 9, 80)).astype(float)
    ours = kaplan_meier(depth, 8)
    theirs = SurvfuncRight(np.where(np.isnan(depth), 8.5, depth), ~np.isnan(depth))
    at = ours.filter(pl.col("depth").is_in(theirs.surv_times.astype(int).tolist()))
    np.testing.assert_allclose(at["survival"].to_numpy(), theirs.surv_prob, atol=1e-12)
    assert at["at_risk"].to_list() == theirs.n_risk.tolist()
    assert median_depth(depth)[0] == theirs.quantile(0.5)


def test_kaplan_meier_by_hand():
    table = kaplan_meier(np.array([1, 2, 2, np.nan]), 3)
    assert table["survival"].to_list() == [1, 0.75, 0.25, 0.25]
    assert table["at_risk"].to_list() == [4, 4, 3, 1]
    assert table["events"].to_list() == [0, 1, 2, 0]


def test_median_interval_takes_the_right_order_statistics():
    # n = 10: P(X <= 1) = 11/1024 <= 0.025 < P(X <= 2), so the 2nd and the 9th value.
    assert median_interval(np.arange(1, 11)) == (5, 2, 9)
    assert all(math.isnan(edge) for edge in median_interval(np.arange(5))[1:])
    median, low, high = median_depth(np.array([1, 2, 3, *[np.nan] * 5]))
    assert (median, low, high) == (np.inf, 1, np.inf)


@pytest.mark.parametrize(
    ("occur", "without"),
    [
        (19, ["lof_mean", "lof_sd", "effective_layers", "lof_restricted_mean", "depths_per_factoid"]),
        (20, ["lof_sd", "effective_layers"]),
        (59, ["lof_sd", "effective_layers"]),
        (60, []),
    ],
)
def test_too_few_occurrences_have_no_interval(occur, without):
    """Of 100 facts so many occur; shares need none of this."""
    rng = np.random.default_rng(0)
    lof = np.where(np.arange(100) < occur, rng.integers(3, 12, 100), np.nan)
    held = np.arange(13) >= np.where(np.isnan(lof), 99, lof)[:, None]
    row = placement_of(Occurrence(np.arange(100), 12, lof, lof, held), Resamples.of(100, draws=300))
    assert row["lof_n"] == row["settled_n"] == occur
    names = (
        "lof_mean",
        "lof_sd",
        "effective_layers",
        "lof_restricted_mean",
        "depths_per_factoid",
        "share_never",
    )
    assert [name for name in names if row[f"{name}_low"] is None] == without
    assert all(row[name] is not None for name in names)


def test_effective_layers():
    assert effective_layers(np.array([5, 5, 5, 5])) == pytest.approx(4)
    assert effective_layers(np.array([0, 7, 0])) == pytest.approx(1)
    assert math.isnan(effective_layers(np.zeros(3)))


def test_the_error_of_the_effective_layers_is_the_jackknifes():
    held = np.random.default_rng(0).random((60, 5)) < [0.05, 0.2, 0.5, 0.7, 0.9]
    # Bootstrap-t by hand, each draw in full: its entropy and the jackknife's error of that entropy.
    resamples = Resamples.of(60, draws=300, seed=1)

    def entropy_and_error(rows):
        def entropy(counts):
            shares = counts[counts > 0] / counts.sum()
            return -(shares * np.log(shares)).sum()

        sums = rows.sum(0)
        without = np.array([entropy(sums - row) for row in rows])
        return entropy(sums), math.sqrt(59 / 60 * ((without - without.mean()) ** 2).sum())

    value, error = entropy_and_error(held)
    drawn = [entropy_and_error(np.repeat(held, counts, axis=0)) for counts in resamples.counts]
    distance = [(entropy - value) / its_error for entropy, its_error in drawn]
    near, far = np.quantile(distance, [0.025, 0.975], method="weibull")
    found, low, high = effective_layers_of(held, resamples)
    assert found == pytest.approx(math.exp(value))
    assert (low, high) == pytest.approx(
        (math.exp(value - far * error), min(5, math.exp(value - near * error))), rel=0.01
    )


def test_effective_layers_that_tell_nothing_of_their_error_have_no_interval():
    one_depth = np.zeros((4, 3))
    one_depth[:, 1] = 1
    resamples = Resamples.of(4, draws=200)
    value, low, high = effective_layers_of(one_depth, resamples)
    assert value == 1 and math.isnan(low) and math.isnan(high)
    assert all(math.isnan(number) for number in effective_layers_of(np.zeros((4, 3)), resamples))


def test_studentised_interval_turns_the_draws_around():
    # Draws reach 3 errors above the value and 1 below: so may the truth lie, 1 above and 3 below.
    draws, errors = np.linspace(8, 16, 999), np.full(999, 2.0)
    assert studentised_interval(10, 1.0, draws, errors) == pytest.approx((10 - 2.9, 10 + 0.9), abs=0.01)
    assert studentised_interval(10, 1.0, np.r_[draws, np.nan, 11], np.r_[errors, 2, 0]) == pytest.approx(
        (10 - 2.9, 10 + 0.9), abs=0.01
    )
    assert all(math.isnan(edge) for edge in studentised_interval(10, 0.0, draws, errors))


def test_area_under_the_recall_curve():
    assert area(np.array([0.0, 0.0, 1.0])) == 0.25
    assert area(np.ones(5)) == 1


def test_resamples_are_multinomial_and_seeded():
    resamples = Resamples.of(30, draws=500, seed=3)
    assert (resamples.counts.sum(1) == 30).all()
    assert resamples.counts.mean(0) == pytest.approx(np.ones(30), abs=0.2)
    assert (Resamples.of(30, draws=500, seed=3).counts == resamples.counts).all()
    assert (Resamples.of(30, draws=500, seed=4).counts != resamples.counts).any()


def test_bootstrap_interval_has_the_width_of_student():
    """The plain percentiles are narrower by 5.7 %: by sqrt(29 / 30), and by the normal's quantile."""
    values = np.random.default_rng(0).normal(size=(30, 1))
    value, low, high = bootstrap_mean(values, Resamples.of(30, draws=40_000))
    half = 2.0452 * values.std(ddof=1) / math.sqrt(30)  # t(0.975, 29)
    assert value[0] == pytest.approx(values.mean())
    assert (high[0] - low[0]) / 2 == pytest.approx(half, rel=0.02)


def test_a_column_with_gaps_has_the_interval_of_the_facts_that_it_has():
    """Forty of eighty facts: the bootstrap's of forty, which is wider than that of eighty."""
    values = np.random.default_rng(0).normal(10, 1, (80, 2))
    values[40:, 1] = np.nan
    mean, low, high = bootstrap_mean(values, Resamples.of(80, draws=20_000))
    assert mean == pytest.approx(np.nanmean(values, axis=0))
    assert (low[0], high[0]) == pytest.approx((9.7014, 10.1260), abs=1e-3)
    assert (low[1], high[1]) == pytest.approx((9.8615, 10.4760), abs=1e-3)
    for column, some in ((0, values[:, 0]), (1, values[:40, 1])):
        theirs = stats.ttest_1samp(some, 0).confidence_interval()
        assert high[column] - low[column] == pytest.approx(theirs.high - theirs.low, rel=0.04)


def test_the_accelerated_interval_is_scipy_s_at_the_same_level():
    """Of an sd of skewed depths, whose interval lies far to the right of the percentiles'."""
    x = np.array([1.0] * 20 + [2] * 8 + [4] * 6 + [9] * 4 + [20] * 2)

    def sd(sums, counts):
        n = counts[:, :1]
        return np.sqrt((sums[:, 1:] - sums[:, :1] ** 2 / n) / (n - 1))

    value, low, high = bootstrap(np.column_stack([x, x**2]), Resamples.of(40, draws=20_000), sd)
    assert value[0] == pytest.approx(x.std(ddof=1))
    # Ours is expanded for a sample of 40, theirs is not: it is asked for as much more.
    level = 1 - 2 * special.ndtr(math.sqrt(40 / 39) * stats.t.ppf(0.025, 39))
    theirs = stats.bootstrap(
        (x,),
        lambda some, axis: some.std(axis=axis, ddof=1),
        method="BCa",
        n_resamples=20_000,
        confidence_level=level,
        rng=np.random.default_rng(0),
    ).confidence_interval
    assert (low[0], high[0]) == pytest.approx((theirs.low, theirs.high), rel=0.02)


def test_intervals_leave_out_draws_without_the_statistic():
    draws = np.column_stack([np.r_[np.full(10, np.nan), np.arange(990)], np.full(1000, np.nan)])
    low, high = percentile_interval(draws, 1000)
    assert low[0] == pytest.approx(24.4, abs=1) and high[0] == pytest.approx(964.6, abs=1)
    assert math.isnan(low[1]) and math.isnan(high[1])


def test_summary_is_json_with_every_curve(tmp_path):
    probe = write_probe(tmp_path, {"base": 6, "tuned": 4}, n=24)
    entry = json.loads((tmp_path / "summary.json").read_text())["checkpoints"]["tuned"]
    assert list(summarise(probe, draws=100)) == ["base", "tuned"]
    assert len(entry["recall"]["10"]) == 9 and len(entry["normalised_frequency"]) == 8
    assert sum(entry["normalised_frequency"]) == pytest.approx(1)
    assert entry["lof"]["mean"] == pytest.approx(4, abs=1.5)
    assert entry["lof"]["mean_low"] < entry["lof"]["mean"] < entry["lof"]["mean_high"]
    assert entry["shuffled"]["10"][4] < 0.1 < entry["recall"]["10"][8]
    assert 0 < entry["exact_match"] <= 1 and entry["errors"] == 0


@pytest.mark.parametrize(("k", "token"), [(0, "first"), (10, "third")])
def test_bad_questions_are_refused(k, token):
    with pytest.raises(MemprobeError):
        held(HAND, k=k, token=token)


@pytest.mark.parametrize("name", ["lens", "position"])
def test_ranks_of_two_views_are_never_one_trajectory(name):
    one = HAND.with_columns(pl.lit("logit").alias(name))
    assert recall_by_depth(one, k=2, token="first").equals(recall_by_depth(HAND, k=2, token="first"))
    two = pl.concat([one, one.with_columns(pl.lit("tuned").alias(name))])
    with pytest.raises(MemprobeError, match=f"several {name}.*logit, tuned"):
        recall_by_depth(two, k=2, token="first")


@pytest.mark.parametrize("rule", [(10, "first"), (3, "all")])
def test_a_statistic_counts_as_its_probe_did(tmp_path, rule):
    probe = write_probe(tmp_path, {"base": 6, "tuned": 4}, n=24)
    k, token = rule
    made = replace(probe, run=probe.run | {"k": k, "token": token})
    for statistic, table in (
        (recall_by_depth, probe.records),
        (normalised_frequency, probe.records),
        (occurrence, probe.records),
        (partial(placement, answers=probe.factoids), probe.records),
        (held, probe.records),
        (partial(shuffled_recall, records=probe.records), probe.controls),
    ):
        wanted = statistic(table, k=k, token=token)
        assert statistic(made).equals(wanted), statistic
        assert not statistic(made, k=1, token="last").equals(wanted), statistic
        assert statistic(made, k=1, token="last").equals(statistic(table, k=1, token="last"))
    assert made.occurrence().equals(occurrence(probe.records, k=k, token=token))


def test_a_table_without_its_rule_is_not_guessed():
    with pytest.raises(
        MemprobeError, match=r"which k and token .* give the probe in its place, or k and token"
    ):
        recall_by_depth(HAND)
    with pytest.raises(MemprobeError, match="which token its probe"):
        occurrence(HAND, k=2)
