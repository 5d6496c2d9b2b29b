"""Chance levels, cover of the commonest answer tokens, claims in two readouts, and groups."""

from __future__ import annotations

import warnings

import numpy as np
import polars as pl
import pytest

from memprobe.errors import MemprobeError
from memprobe.records import RECORDS
from memprobe.statistics.controls import (
    STATISTICS,
    answer_cover,
    by_control,
    curve_values,
    means_of,
    net_of,
    net_tables,
    placement_claims,
    values_of,
)
from memprobe.statistics.groups import by_group, group_labels
from memprobe.statistics.holding import Trajectories
from memprobe.statistics.intervals import Resamples, bootstrap_mean, wilson
from memprobe.statistics.occurrence import Occurrence
from tests.test_paired import occurring


def answers(ids: dict[str, list[int]]) -> pl.DataFrame:
    rows = [
        ["m", "logit", f, "answer", j, t, 0, 0, 0.0, 0.0, 0, 0]
        for f, tokens in ids.items()
        for j, t in enumerate(tokens)
    ]
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


def trajectory(name, ids, ranks, log_prob=None):
    logs = np.empty((0, 0), np.float32) if log_prob is None else np.array(log_prob, np.float32)
    return Trajectories("m", name, np.array(ids), np.array(ranks, np.int32), logs, logs)


DRAWS = [
    trajectory("shuffled:0", ["b", "a"], [[9, 9, 0], [9, 0, 0]]),
    trajectory("shuffled:1", ["a"], [[9, 9, 0]]),
    trajectory("shuffled:2", ["a"], [[9, 9, -1]]),  # never, its last depth missing
]


def test_chance_is_the_mean_over_draws_by_factoid():
    values, curves = by_control(DRAWS, np.array(["a", "b", "c"]), k=2)
    of = dict(zip(STATISTICS, values.T, strict=True))
    # "a" occurs at 1, at 2 and never (3 at the restricted mean): (1 + 2) / 2 and (1 + 2 + 3) / 3.
    np.testing.assert_allclose(of["lof"], [1.5, 2, np.nan])
    np.testing.assert_allclose(of["lof_restricted"], [2, 2, np.nan])
    np.testing.assert_allclose(of["depths_per_factoid"], [1, 1, np.nan])  # 2, 1 and 0
    np.testing.assert_allclose(of["recall_full"], [2 / 3, 1, np.nan])
    assert np.isnan(of["log_prob_full"]).all() and np.isnan(of["exact"]).all()
    # By depth a missing rank is in neither part: 1 of 3 draws at depth 1, 2 of 2 at depth 2.
    np.testing.assert_allclose(curves[:, :3], [[0, 1 / 3, 1], [0, 0, 1], [np.nan] * 3])
    assert np.isnan(curves[:, 3:]).all()


def test_net_is_value_minus_chance_over_the_factoids_that_have_both():
    resamples = Resamples.of(3, draws=200)
    values = np.array([[2.0, 1.0], [4.0, np.nan], [9.0, 5.0]])
    control = np.array([[1.5, np.nan], [2.0, 1.0], [np.nan, np.nan]])
    table = net_of(values, control, resamples)
    assert table.row(0)[:4] == (2, 3.0, 1.75, 1.25)  # a and b: (0.5 + 2) / 2
    many = net_of(np.tile(values, (6, 1)), np.tile(control, (6, 1)), Resamples.of(18, draws=200))
    assert many.row(0)[:4] == (12, 3.0, 1.75, 1.25) and many["low"][0] < 1.25 < many["high"][0]
    assert table.row(1) == (0, None, None, None, None, None)
    one = net_of(values[:1], control[:1], Resamples.of(1, draws=200))
    assert one.row(0) == (1, 2.0, 1.5, 0.5, None, None)  # no interval from one factoid, nor from few


def test_every_statistic_net_of_every_control():
    own = trajectory(
        None, ["a", "b", "c"], [[9, 0, 0], [9, 9, 0], [9, 9, 9]], [[-9, -1, -1], [-9, -9, -2], [-9] * 3]
    )
    base = trajectory(
        None, ["a", "b", "c"], [[9, 9, 0], [9, 9, 9], [9, 9, 9]], [[-9, -9, -3], [-9] * 3, [-9] * 3]
    )
    cells = {
        name: (values_of(one, Occurrence.of(one, 2), np.array(exact)), curve_values(one, 2))
        for name, one, exact in (("own", own, [True, True, False]), ("base", base, [True, False, False]))
    }
    shuffled = by_control(DRAWS, own.factoids, k=2)
    resamples = Resamples.of(3, draws=300)
    net, by_depth = net_tables(cells["own"], {"shuffled": shuffled, "base": cells["base"]}, resamples)
    row = {(r["control"], r["statistic"]): r for r in net.to_dicts()}

    def numbers(control, statistic):
        return tuple(row[control, statistic][name] for name in ("n", "value", "chance", "net"))

    # "c" has no shuffled answer. LoF 1 and 2 against 1.5 and 2.
    assert numbers("shuffled", "lof") == (2, 1.5, 1.75, -0.25)
    assert numbers("shuffled", "recall_full") == pytest.approx((2, 1, 5 / 6, 1 / 6))
    assert ("shuffled", "log_prob_full") not in row and ("shuffled", "exact") not in row
    # Against the base model all three count: never is 3, so (1 + 2 + 3) / 3 against (2 + 3 + 3) / 3.
    assert numbers("base", "lof_restricted") == pytest.approx((3, 2, 8 / 3, -2 / 3))
    assert numbers("base", "lof") == (1, 1.0, 2.0, -1.0)
    assert numbers("base", "exact") == pytest.approx((3, 2 / 3, 1 / 3, 1 / 3))
    assert numbers("base", "log_prob_full") == pytest.approx((3, -4, -7, 3))
    # The interval is that of the paired differences, whatever the control; here of twelve factoids.
    own_12, base_12 = (tuple(np.tile(part, (4, 1)) for part in cells[name]) for name in ("own", "base"))
    many = Resamples.of(12, draws=300)
    _, low, high = bootstrap_mean(own_12[0] - base_12[0], many)
    at = STATISTICS.index("area")
    area, _ = net_tables(own_12, {"base": base_12}, many)
    edges = area.filter(statistic="area").select("low", "high").row(0)
    assert edges == pytest.approx((low[at], high[at]))
    recall = by_depth.filter(control="base", measure="recall")
    assert recall["net"].to_list() == pytest.approx([0, 1 / 3, 1 / 3])
    log_prob = by_depth.filter(measure="log_prob")
    assert log_prob["control"].unique().to_list() == ["base"]
    assert log_prob["net"].to_list() == pytest.approx([0, 8 / 3, 3])
    nothing = net_tables(cells["own"], {}, resamples)
    assert [len(table) for table in nothing] == [0, 0]


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


@pytest.mark.parametrize(("n", "label"), [(9, "shared by 2–9"), (10, "shared by 10+")])
def test_ten_facts_of_one_first_token_are_ten_or_more(n, label):
    ids = [f"f{i}" for i in range(n)]
    tokens = pl.DataFrame({"factoid": ids, "length": [1] * n, "first": [7] * n})
    assert group_labels(pl.DataFrame({"id": ids}), tokens, None, by="first-token") == [label] * n


@pytest.mark.parametrize("value", [0.0, 0.6, 1.0])
def test_an_area_that_all_facts_share_is_not_certain(value):
    """Of a base model that no fact surfaces in: 0 % [0 %, 0 %] it was."""
    row = means_of({"area": np.append(np.full(40, value), np.nan)}, Resamples.of(41, draws=200))
    low, high = wilson(np.array(value), np.array(40))
    assert [row["area"], row["area_low"], row["area_high"]] == pytest.approx([value, float(low), float(high)])
    depths = means_of({"depths_per_factoid": np.full(40, 3.0)}, Resamples.of(40, draws=200))
    assert depths["depths_per_factoid_low"] == 3, "a mean of depths is known as it is"


def test_by_group():
    table = by_group(occurring([1, 2, 4, np.nan], 4), ["a", "a", "b", "b"], lambda of: Resamples.of(of.sum()))
    assert table["group"].to_list() == ["a", "b"]
    assert table["lof_mean"].to_list() == [1.5, 4]
    assert table["lof_restricted_mean"].to_list() == [1.5, 4.5]
    assert table["share_never"].to_list() == [0, 0.5]
    assert table["recall_full"].to_list() == [1, 0.5]
    assert table["share_never_high"][0] > 0.5  # Wilson: two factoids say little


def test_few_hits_prove_nothing_against_chance():
    """Answers that rank as shuffled ones do: 1 in 100 is held; of shuffled ones a mean of five counts."""
    rng, facts, draws = np.random.default_rng(5), 100, Resamples.of(100, draws=400)
    told: dict[str, list[bool]] = {"lof_restricted": [], "area": [], "recall_full": [], "recall": []}

    def hits() -> tuple[np.ndarray, np.ndarray]:
        """What 12 depths of one draw hold: values of every statistic that is asked, and recall at one depth."""
        held = rng.random(facts) < 0.01
        values = np.full((facts, len(STATISTICS)), np.nan)
        values[:, STATISTICS.index("lof")] = np.where(held, 6.0, np.nan)
        values[:, STATISTICS.index("lof_restricted")] = np.where(held, 6.0, 13.0)
        values[:, STATISTICS.index("area")] = held * 0.5
        values[:, STATISTICS.index("recall_full")] = held
        return values, np.column_stack([held, np.full(facts, np.nan)])

    for _ in range(100):
        own, shuffled = hits(), [hits() for _ in range(5)]
        with warnings.catch_warnings(action="ignore"):  # some have no value in any draw
            chance = tuple(np.nanmean([draw[part] for draw in shuffled], axis=0) for part in (0, 1))
        net, by_depth = net_tables(own, {"shuffled": chance}, draws, drawn=["shuffled"])
        rows = {row["statistic"]: row for row in net.iter_rows(named=True)}
        rows["recall"] = by_depth.row(0, named=True)
        for name, seen in told.items():
            row = rows[name]
            assert (row["low"] is None) == (name in ("lof_restricted", "area"))
            seen.append(row["low"] is not None and (row["low"] > 0 or row["high"] < 0))
    assert {name: sum(seen) for name, seen in told.items() if sum(seen) > 6} == {}
