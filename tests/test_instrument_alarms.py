"""Whether the strength of a verdict tells planted facts from others: on strengths made by hand."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from analyses.instruments.alarms import told_apart
from analyses.instruments.instruments import Verdict, by_part, largest, near
from analyses.instruments.marking import VERDICTS, marked, with_all_columns
from analyses.instruments.report import write_report
from analyses.instruments.results import Results, facts_of
from tests.instruments import BLOCKS, N, cell, results, verdicts_of


def made(strengths, **changes):
    """One planted model asked about its own facts and about others; strengths by kind, [fact]."""
    cells, tables = [], []
    for kind in ("several", "null"):
        one = cell(kind=kind, **changes)
        table = verdicts_of(one).filter(instrument="right")
        cells.append(one)
        tables.append(table.with_columns(strength=pl.Series(strengths[kind], dtype=pl.Float32)))
    return cells, tables


def of(*models):
    cells = [one for model in models for one in model[0]]
    return told_apart(
        facts_of(Results(cells, pl.concat([t for model in models for t in model[1]]), {})), draws=200
    )


def test_the_area_and_the_alarms_by_hand():
    n = len(BLOCKS) * N
    ours = np.arange(n, dtype=float)  # 0 ... 63, so that 95 % reach 3
    theirs = np.full(n, -1.0)
    theirs[:16] = 31.5  # more than 32 of 64
    theirs[16:24] = 3.0  # reaches the threshold, less than 60, ties with one
    [row] = of(made({"several": ours, "null": theirs})).iter_rows(named=True)
    assert row["auc"] == pytest.approx((16 * 32 / 64 + 8 * 60.5 / 64 + 40) / 64)
    assert row["alarms"] == 24 / 64
    assert (row["models"], row["n"], row["others"]) == (1, n, n)
    assert row["auc_low"] < row["auc"] < row["auc_high"]


def test_models_are_compared_with_themselves_alone():
    """Strengths of one model are ten times those of another: pooled they would tell little."""
    n = len(BLOCKS) * N
    ours, theirs = np.linspace(1.0, 1.1, n), np.linspace(0.8, 0.9, n)
    small = made({"several": ours, "null": theirs}, seed=0)
    large = made({"several": 10 * ours, "null": 10 * theirs}, seed=1)
    [row] = of(small, large).iter_rows(named=True)
    assert (row["models"], row["auc"], row["alarms"]) == (2, 1.0, 0.0)
    elsewhere = made({"several": ours, "null": theirs}, seed=2, blocks=[[3, 3]] * 4)
    assert of((small[0][:1], small[1][:1]), (elsewhere[0][1:], elsewhere[1][1:])).is_empty()
    unmatched = of((small[0][:1], small[1][:1]), (large[0][1:], large[1][1:]))
    assert unmatched.is_empty()


def test_noise_is_at_chance_and_its_interval_holds_it():
    rng = np.random.default_rng(0)
    n = len(BLOCKS) * N
    models = [made({k: rng.normal(size=n) for k in ("several", "null")}, seed=seed) for seed in range(3)]
    [row] = of(*models).iter_rows(named=True)
    assert row["auc_low"] < 0.5 < row["auc_high"] and row["auc_high"] - row["auc_low"] < 0.6
    assert row["auc"] == pytest.approx(0.5, abs=0.1)


def test_a_fact_without_scores_is_weaker_than_any_other():
    n = len(BLOCKS) * N
    theirs = [None] * (n - 1) + [-5.0]
    [row] = of(made({"several": np.full(n, -4.0), "null": theirs})).iter_rows(named=True)
    assert row["auc"] == 1 and row["alarms"] == 0


def test_strength_is_the_largest_score_and_stays_unknown_of_depths_alone():
    scores = np.array([[0.1, 0.7, 0.2], [-0.3, -0.2, np.nan], [np.nan] * 3])
    np.testing.assert_array_equal(largest(scores).strength, [0.7, -0.2, np.nan])
    parts = by_part({"attn": scores, "mlp": scores + 1})
    np.testing.assert_array_equal(parts.strength, [1.7, 0.8, np.nan])
    rows = marked("one", largest(scores), [0, 0, 1], [(2, 2), (3, 3)])
    assert rows["strength"].to_list() == [pytest.approx(0.7), pytest.approx(-0.2), None]
    alone = Verdict(np.array([2.0]), near(np.array([2.0]), 3))
    assert marked("one", alone, [-1], None)["strength"].to_list() == [None]


def test_older_results_have_no_strengths_and_their_report_says_nothing_of_them(tmp_path):
    before = verdicts_of(cell()).drop("strength")
    table = with_all_columns(before)
    assert table.drop("cell").schema == VERDICTS and table["strength"].null_count() == len(table)
    write_report(results(cell(), cell(kind="null")), tmp_path, draws=20)
    assert "strength of a verdict" not in (tmp_path / "report.md").read_text()
    assert not (tmp_path / "told_apart.csv").exists()


def test_the_report_says_it(tmp_path):
    n = len(BLOCKS) * N
    cells, tables = made({"several": np.full(n, 2.0), "null": np.full(n, 1.0)})
    write_report(Results(cells, pl.concat(tables), {}), tmp_path, draws=20)
    text = (tmp_path / "report.md").read_text()
    assert "## Does the strength of a verdict tell planted facts from others?" in text
    assert "| right | kvr | several | 1 | 64, 64 | 1.00 [1.00, 1.00] | 0 % |" in text
    assert pl.read_csv(tmp_path / "told_apart.csv")["auc"].to_list() == [1.0]
