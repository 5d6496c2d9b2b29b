"""Claims over training seeds."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal
from scipy import linalg, stats

from memprobe.statistics.arms import (
    NOTHING,
    PREFIX,
    ROWS,
    ROWS_BY_SEED,
    Run,
    arm_differences,
    arm_means,
    in_common,
)
from memprobe.statistics.ends import SHARE, less
from memprobe.statistics.margins import given_margin, margin, with_statistic
from memprobe.statistics.shares import share_difference, share_over_seeds
from memprobe.statistics.vocabulary import ends


def runs(arm: str, values: np.ndarray, *, start: str = "", rows: str = "") -> list[Run]:
    """One run per row of values [seed, factoid]; ``{}`` in start and rows is the seed."""
    return [
        Run.of(
            arm,
            "2",
            str(i),
            f"{arm}-{i}",
            row[:, None],
            before=("base", start.format(i)) if start else ("base",),
            rows=rows.format(i),
        )
        for i, row in enumerate(values)
    ]


def only(members: list[Run], n: int, **options) -> dict:
    return arm_differences(members, ["x"], n, **options).row(0, named=True)


def kept(counts: list[int], n: int = 64, seed: int = 0) -> np.ndarray:
    """[seed, factoid] yes-or-no with these counts, at places of its own in each seed."""
    rng = np.random.default_rng(seed)
    return np.array([rng.permutation(np.arange(n) < count) for count in counts], float)


def test_under_three_seeds_nothing_is_significant_and_each_is_shown():
    a, b = np.zeros((2, 50)), np.full((3, 50), 100.0)
    members = runs("none", a) + runs("remix", b)
    row = only(members, 50)
    assert row["difference"] == 100
    assert (row["low"], row["high"], row["p"], row["significant"]) == (None, None, None, None)
    shown = arm_means(members, ["x"], 50)
    assert shown["by_seed"].to_list() == [[0, 0], [100, 100, 100]]
    assert shown["low"].to_list()[0] is None
    assert only(members, 50, binary=["x"])["low"] is None


def test_seeds_count_not_factoids():
    """Two arms whose seeds scatter widely do not differ, however many factoids each seed has."""
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.1, (6, 2000))
    none, remix = np.array([[1.0], [5.0], [3.0]]) + noise[:3], np.array([[2.0], [6.0], [4.0]]) + noise[3:]
    row = only(runs("none", none) + runs("remix", remix), 2000)
    assert row["difference"] == pytest.approx(1, abs=0.02)
    assert row["low"] < 0 < row["high"] and row["significant"] is False
    # By hand: sd 2 in each arm, v = 4/3 each, Satterthwaite's degrees (8/3)² / (2 (4/3)² / 2) = 4,
    # t(0.975, 4) = 2.776, half = 2.776 sqrt(8/3) = 4.534; the noise adds some thousandths.
    assert row["high"] - row["difference"] == pytest.approx(4.534, rel=0.01)
    clear = only(runs("none", none) + runs("remix", remix + 50), 2000)
    assert clear["significant"] and clear["p"] < 0.001


def test_what_a_factoid_does_under_one_seed_counts_once():
    """Of seeds that scatter by their factoids alone, the error is that of the factoids' noise: no more, no less."""
    rng = np.random.default_rng(3)
    n, seeds = 400, 40
    common = rng.normal(0, 5, n)  # cancels in the difference of arms
    values = [common + rng.normal(0, 2, (seeds, n)) for _ in range(2)]
    row = only(runs("none", values[0]) + runs("remix", values[1]), n)
    error = (row["high"] - row["difference"]) / 1.99
    assert error == pytest.approx(2 * np.sqrt(2 / n / seeds), rel=0.15)  # counted twice it is 1.41 times that
    # What a factoid does to a whole arm is in the factoids' part, and cannot cancel.
    peculiar = rng.normal(0, 2, n)
    row = only(runs("none", values[0]) + runs("remix", values[1] + peculiar), n)
    error = (row["high"] - row["difference"]) / 1.97
    assert error == pytest.approx(2 * np.sqrt(2 / n / seeds + 1 / n), rel=0.15)


def test_nothing_that_does_not_scatter_is_significant():
    """Equal runs have no standard error, so that there is no interval, no p and no verdict; one factoid has none."""
    for apart in (0.0, 1.0):
        row = only(runs("none", np.zeros((3, 10))) + runs("remix", np.full((3, 10), apart)), 10)
        assert row["difference"] == apart
        assert {row[name] for name in ("low", "high", "p", "significant", "detectable")} == {None}
    assert only(runs("none", np.zeros((3, 1))) + runs("remix", np.ones((3, 1))), 1)["low"] is None


def test_the_interval_of_a_mean_over_few_seeds_and_facts_by_hand():
    """Four facts under three seeds: each correction of the variance is worth a tenth of the interval here."""
    row = arm_means(runs("a", np.array([[0.0, 0, 0, 8], [0, 0, 0, 10], [0, 0, 0, 12]])), ["x"], 4).row(
        0, named=True
    )
    # Seeds: run means 2, 2.5, 3, s² / S = 0.25 / 3. Facts: of the mean row (0, 0, 0, 10) the squared influences add up
    # to 75/16; those of the rows minus it to 3/16, 0 and 3/16, over S - 1 and S: 1/16. With n - 1 below, 4/3 of that.
    seeds, facts = 0.25 / 3, 4 / 3 * (75 / 16 - 1 / 16)
    freedom = (seeds + facts) ** 2 / (seeds**2 / 2 + facts**2 / 3)
    half = stats.t.ppf(0.975, freedom) * np.sqrt(seeds + facts)
    assert (row["mean"], row["high"]) == (2.5, pytest.approx(2.5 + half))
    assert row["high"] == pytest.approx(10.33938, abs=1e-5)


def test_the_interval_over_seeds_and_facts_is_no_narrower_than_that_over_seeds():
    """Facts that add little to the variance lend their degrees of freedom, and the interval would shrink."""
    values = np.array([[1, 2, 3, 4], [2, 3, 4, 5.5], [3, 4, 5.5, 6]])
    row = arm_means(runs("a", values), ["x"], 4).row(0, named=True)
    theirs = stats.ttest_1samp([2.5, 3.625, 4.625], 0).confidence_interval()
    assert (row["low"], row["high"]) == pytest.approx((theirs.low, theirs.high))
    assert row["low"] == pytest.approx(0.942415, abs=1e-6)


def test_arms_are_compared_at_the_same_stage_only():
    later = [Run(r.arm, "3", r.seed, r.label, r.means, r.influence) for r in runs("remix", np.zeros((3, 10)))]
    assert arm_differences(runs("none", np.zeros((3, 10))) + later, ["x"], 10).is_empty()


def test_the_interval_of_a_share_ends_where_shares_do():
    values = (np.random.default_rng(0).random((3, 40)) < [[0.02], [0.1], [0.3]]).astype(float)
    wide = arm_means(runs("none", values), ["exact"], 40).row(0, named=True)
    share = arm_means(runs("none", values), ["exact"], 40, ends={"exact": SHARE}).row(0, named=True)
    assert wide["low"] < 0 == share["low"] and share["high"] == wide["high"] < 1
    none = arm_means(runs("none", values[:2]), ["exact"], 40, ends={"exact": SHARE})
    assert none["low"].to_list() == [None]


@pytest.mark.parametrize("start", ["base", "stage-1 of seed {}"])
def test_the_interval_of_a_difference_of_shares_ends_where_such_differences_do(start):
    """Of independent seeds and of pairs; also of a share that no factoid simply has or has not, such as an area."""
    scattered = np.array([[0.0], [1.0], [0.9], [1.0], [0.1], [1.0]]) * np.ones(40)
    apart = runs("none", np.zeros((6, 40)), start=start) + runs("remix", scattered, start=start)
    wide, share = (only(apart, 40, **told) for told in ({}, {"ends": {"x": SHARE}}))
    assert wide["paired"] is (start != "base")
    assert wide["high"] > 1 == share["high"] and share["low"] == wide["low"]
    kept_in_all = [wide[name] == share[name] for name in ("difference", "p", "significant", "detectable")]
    assert all(kept_in_all)


def test_the_interval_of_a_share_net_of_another_ends_where_such_do():
    """Exact less chance: from −1 to 1, and a difference of two of them from −2 to 2; held against 0, as no share is."""
    values = np.array([[0.2], [1.0], [1.0]]) * np.ones(40)
    for sign in (1, -1):
        wide, net = (
            arm_means(runs("none", sign * values), ["x"], 40, **told).row(0, named=True)
            for told in ({}, {"ends": {"x": less(SHARE)}})
        )
        assert max(-wide["low"], wide["high"]) > 1
        assert (net["low"], net["high"]) == (max(wide["low"], -1), min(wide["high"], 1))
        assert (net["mean"], net["p"], net["detectable"]) == (wide["mean"], wide["p"], wide["detectable"])
    apart = runs("none", -values) + runs("remix", values)
    wide, net = (only(apart, 40, **told) for told in ({}, {"ends": {"x": less(SHARE)}}))
    assert 1 < net["difference"] < net["high"] == 2 < wide["high"] and net["low"] == wide["low"]


def test_no_interval_reaches_past_what_is_possible():
    """A mean depth of seeds that scatter near the last one, with never as n_layers + 1, ends there."""
    near = np.array([[30.0], [31.0], [31.0]]) * np.ones(40)
    for name, values in (
        ("lof_restricted", near),
        ("depths_per_factoid", 31 - near),
        ("log_prob_full", 30.9 - near),
    ):
        wide, cut = (
            arm_means(runs("none", values), [name], 40, ends=told).row(0, named=True)
            for told in ({}, {name: ends(name, 30)})
        )
        least, most = ends(name, 30)
        assert wide["low"] < least or wide["high"] > most, name
        assert (cut["low"], cut["high"]) == (max(wide["low"], least), min(wide["high"], most))
        assert cut["p"] is None  # that a mean depth is not 0 says nothing


def test_a_seed_without_a_number_is_left_out_of_that_statistic_alone():
    """As where every fact of a seed surfaces at one depth, which has no correlation with anything."""
    rng = np.random.default_rng(3)
    columns = [
        np.stack(pair, axis=1)
        for pair in zip(rng.normal(0, 1, (4, 30)), rng.normal(1, 1, (4, 30)), strict=True)
    ]
    members = [Run.of("none", "2", str(seed), f"none-{seed}", one) for seed, one in enumerate(columns)]
    others = [Run.of("remix", "2", str(seed), f"remix-{seed}", one + 1) for seed, one in enumerate(columns)]
    gone = [replace(members[0], means=np.array([np.nan, members[0].means[1]])), *members[1:]]
    three, four = (arm_means(some, ["x", "y"], 30) for some in (members[1:], members))
    found = arm_means(gone, ["x", "y"], 30)
    assert_frame_equal(found.drop("by_seed"), pl.concat([three[:1], four[1:]]).drop("by_seed"))
    assert found["seeds"].to_list() == [3, 4] and found["by_seed"][0][0] is None
    found = arm_differences(gone + others, ["x", "y"], 30)
    three, four = (arm_differences(some + others, ["x", "y"], 30) for some in (members[1:], members))
    assert_frame_equal(found, pl.concat([three[:1], four[1:]]))
    assert found["seeds"].to_list() == [4, 4] and found["reference_seeds"].to_list() == [3, 4]
    nowhere = [replace(run, means=np.full(2, np.nan)) for run in members]
    assert arm_means(nowhere, ["x", "y"], 30)["mean"].to_list() == [None, None]


def test_three_seeds_that_keep_nothing_have_an_interval_of_some_width():
    """[0, 0] it was, and any arm that kept a fact differed "significantly"."""
    none, some = kept([0, 0, 0]), kept([2, 3, 2])
    row = arm_means(runs("ewc", none), ["x"], 64, ends={"x": SHARE}, binary=["x"]).row(0, named=True)
    assert (row["mean"], row["low"]) == (0, 0)
    assert row["high"] == pytest.approx(share_over_seeds(np.zeros(3), 64).high)
    row = only(runs("none", some) + runs("ewc", none), 64, binary=["x"])
    assert row["low"] < 0 < row["high"] and row["significant"] is False
    plain = only(runs("none", some) + runs("ewc", none), 64)
    assert plain["significant"]  # by Student's t


def test_independent_seeds_and_few_pairs_take_the_share_model():
    remix, none = kept([37, 24, 35], seed=1), kept([2, 0, 0], seed=2)
    model = share_difference(np.array([37, 24, 35]), np.array([2, 0, 0]), 64)
    for start, common in (("base", NOTHING), ("stage-1 of seed {}", PREFIX)):
        row = only(runs("none", none, start=start) + runs("remix", remix, start=start), 64, binary=["x"])
        assert (row["in_common"], row["paired"]) == (common, False)
        assert [row["low"], row["high"]] == pytest.approx([model.low, model.high], abs=0.02)
        assert row["difference"] == pytest.approx(94 / 192)


def test_a_difference_lies_within_its_interval_where_one_arm_has_more_seeds():
    """It was that of the seeds in common, and its interval that of all."""
    none, some = kept([2, 0, 1, 30, 40, 35], seed=1), kept([20, 25, 22], seed=2)
    start = {"start": "stage-1 of seed {}"}
    row = only(runs("none", none, **start) + runs("replay", some, **start), 64, binary=["x"])
    assert (row["in_common"], row["paired"]) == (PREFIX, False)
    assert row["difference"] == pytest.approx(67 / 192 - 108 / 384)
    assert row["low"] < row["difference"] < row["high"]


def test_five_pairs_take_student_s():
    remix, none = kept([37, 24, 35, 30, 29], seed=1), kept([12, 3, 9, 7, 6], seed=2)
    start = {"start": "stage-1 of seed {}"}
    row = only(runs("none", none, **start) + runs("remix", remix, **start), 64, binary=["x"])
    assert row["paired"] and row["in_common"] == PREFIX
    theirs = stats.ttest_1samp((remix - none).mean(1), 0).confidence_interval()
    # Binomial noise and facts answered alike in all seeds may widen it, never narrow it.
    assert row["low"] <= theirs.low and row["high"] >= theirs.high
    alone = only(runs("none", none) + runs("remix", remix), 64, binary=["x"])
    assert not alone["paired"] and alone["high"] - alone["low"] > row["high"] - row["low"]


def test_seeds_are_those_that_the_difference_is_over():
    """Two of five seeds have no pair: the difference of depths is over three pairs, that of shares over all seeds."""
    remix, none = kept([37, 24, 35, 30, 29], seed=1), kept([12, 3, 9], seed=2)
    start = {"start": "stage-1 of seed {}"}
    members = runs("none", none, **start) + runs("remix", remix, **start)
    depth, share = only(members, 64), only(members, 64, binary=["x"])
    assert depth["paired"] and (depth["seeds"], depth["reference_seeds"]) == (3, 3)
    assert depth["difference"] == pytest.approx(remix[:3].mean() - none.mean())
    assert not share["paired"] and (share["seeds"], share["reference_seeds"]) == (5, 3)
    assert share["difference"] == pytest.approx(remix.mean() - none.mean())


def test_pairs_of_seeds_see_what_independent_ones_cannot():
    rng = np.random.default_rng(4)
    seeds = np.array([0.0, 10.0, -10.0])[:, None]
    none = seeds + rng.normal(0, 1, (3, 64))
    remix = none + 2 + rng.normal(0, 1, (3, 64))
    alone = only(runs("none", none) + runs("remix", remix), 64)
    assert not alone["significant"] and alone["detectable"] > 10
    start = {"start": "stage-1 of seed {}"}
    pairs = only(runs("none", none, **start) + runs("remix", remix, **start), 64)
    assert pairs["significant"] and pairs["detectable"] < 2
    assert pairs["difference"] == pytest.approx(alone["difference"])


def test_pairs_that_agree_by_chance_are_not_certain():
    """Five pairs that keep three facts more each: no scatter over seeds, but facts are few."""
    none, some = kept([2, 1, 2, 1, 3], seed=5), kept([5, 4, 5, 4, 6], seed=6)
    start = {"start": "stage-1 of seed {}"}
    row = only(runs("none", none, **start) + runs("replay", some, **start), 64, binary=["x"])
    plain = only(runs("none", none, **start) + runs("replay", some, **start), 64)
    # Discordant facts: 5 at least of 64, with one each way a variance of (5 + 2) / 66 / 66 or more, over five seeds.
    assert row["high"] - row["difference"] > 1.96 * np.sqrt((5 + 2) / 66 / 66 / 5)
    assert row["high"] - row["low"] > 1.2 * (plain["high"] - plain["low"])


def test_answers_by_halves_are_noise_too():
    """Facts asked in two wordings, of which one is gained or lost, differ by a half, not by nothing."""
    one = np.full((6, 40), 0.5)
    moves = np.tile(linalg.hadamard(8)[1:7], 5) / 2  # no fact moves alike in all seeds
    members = runs("none", one - moves, start="{}") + runs("remix", one, start="{}")
    row = only(members, 40, binary=["x"])
    # Every seed has gained as much as it lost: 40 quarters, and one fact gained and one lost, of 42.
    floor = np.sqrt((40 / 4 + 2) / 42 / 42 / 6)
    assert row["paired"] and row["difference"] == pytest.approx(0)
    assert row["high"] >= stats.t.ppf(0.975, 5) * floor * 0.999


@pytest.mark.parametrize(
    ("first", "second", "wanted"),
    [
        ({"start": "s{}"}, {"start": "s{}"}, PREFIX),
        ({"start": "s{}"}, {"start": "t{}"}, NOTHING),
        ({"start": "same"}, {"start": "same"}, NOTHING),  # as the base model is every seed's
        ({"rows": "r"}, {"rows": "r"}, ROWS),
        ({"rows": "r{}"}, {"rows": "r{}"}, ROWS_BY_SEED),
        ({"rows": "r{}"}, {"rows": "q{}"}, NOTHING),
        ({"rows": "r", "start": "s{}"}, {"rows": "r", "start": "s{}"}, PREFIX),
        ({}, {}, NOTHING),
    ],
)
def test_what_runs_have_in_common(first, second, wanted):
    values = np.zeros((3, 4))
    assert in_common(runs("a", values, **first), runs("b", values, **second)) == wanted
    other = [Run.of("b", "2", f"x{i}", "", values[:1].T) for i in range(3)]
    assert in_common(runs("a", values, **first), other) == NOTHING


def test_a_run_of_unknown_lineage_makes_the_base_model_no_stage_before():
    first, second = (runs(arm, np.zeros((3, 4)), rows="r") for arm in "ab")
    stray = Run.of("b", "2", "9", "", np.zeros((4, 1)))
    assert in_common(first, second) == in_common(first, [*second, stray]) == ROWS
    first, second = (runs(arm, np.zeros((3, 4)), start="s{}") for arm in "ab")
    assert in_common(first, [*second, stray]) == PREFIX


def test_a_difference_given_the_margin_is_that_of_a_regression_with_a_level_for_each_run():
    rng = np.random.default_rng(3)
    margins = [rng.normal(6 + arm, 1.5, 80) for arm in (0, 1) for _ in range(4)]
    after = [
        3.0 * arm + 0.8 * x + seed + rng.normal(0, 0.1, 80)
        for x, (arm, seed) in zip(margins, itertools.product((0, 1), rng.normal(0, 0.3, 4)), strict=True)
    ]
    rows = np.array(
        [[float(i == run) for run in range(8)] + [one] for i, x in enumerate(margins) for one in x]
    )
    levels = np.linalg.lstsq(rows, np.concatenate(after), rcond=None)[0]
    values = given_margin(after, margins)
    told = [run for arm in (0, 1) for run in runs(f"{arm}", np.array(values[4 * arm : 4 * arm + 4]))]
    found = only(told, 80, reference="0")
    assert found["difference"] == pytest.approx(levels[4:8].mean() - levels[:4].mean())
    assert found["low"] < 3 < found["high"] and abs(found["difference"] - 3) < 0.3
    plain = only(
        [run for arm in (0, 1) for run in runs(f"{arm}", np.array(after[4 * arm : 4 * arm + 4]))], 80
    )
    assert plain["high"] - plain["low"] > found["high"] - found["low"]
    assert np.isnan(given_margin(after, [None, *margins[1:]])[0]).all()
    assert margin(np.log(np.array([0.5, 0.9]))) == pytest.approx([0, np.log(9)]) and np.isfinite(
        margin(np.zeros(1))
    )
    more = with_statistic(told, after)[0]
    assert more.means == pytest.approx([values[0].mean(), after[0].mean()]) and more.influence.shape == (
        80,
        2,
    )


def test_given_the_margin_a_value_is_as_of_the_mean_margin_of_all_runs():
    """Two runs that differ by what their margins do, in nats as they are asked: not as of a margin of 0."""
    after = [np.array([1.0, 2, 3]), np.array([3.0, 4, 5])]
    found = given_margin(after, [np.array([4.0, 5, 6]), np.array([6.0, 7, 8])])
    assert np.concatenate(found) == pytest.approx([3.0] * 6)
