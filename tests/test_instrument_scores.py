"""Scores of instruments: on verdicts made by hand, where the right numbers are known; the report of stored results."""

from __future__ import annotations

import re

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from analyses.instruments.__main__ import app
from analyses.instruments.marking import VERDICTS
from analyses.instruments.report import main_table, write_report
from analyses.instruments.results import Results, facts_of, read_results
from analyses.instruments.scores import costs, nested_weights, planting, quartiles, scores
from memprobe.errors import MemprobeError
from memprobe.statistics.shares import share_over_seeds
from tests.instruments import BLOCKS, N, cell, results, verdicts_of


@pytest.fixture(scope="module")
def three():
    return results(*(cell(seed) for seed in range(3)), cell(kind="null"), cell(kind="full"))


def of(table, name, **keys):
    return table.filter(instrument=name, **keys).row(0, named=True)


def test_a_right_instrument_scores_in_full_and_a_broken_one_at_chance(three):
    found = scores(facts_of(three), draws=300)
    right = of(found, "right", kind="several")
    assert [right[name] for name in ("exact", "within1", "error", "rank", "among", "named")] == [
        1,
        1,
        0,
        1,
        1,
        1,
    ]
    assert right["exact_high"] == 1
    assert (right["models"], right["sets"], right["n"]) == (3, 12, 192)
    broken = of(found, "shuffled", kind="several")
    assert broken["exact_low"] < 0.25 < broken["exact_high"]
    assert broken["exact"] == pytest.approx(broken["exact_shuffled"], abs=0.08)
    assert broken["rank"] > 5 and broken["among"] == pytest.approx(0.25, abs=0.08)


def test_a_share_of_all_or_of_none_is_no_certainty(three):
    """Three models agree, and a fourth may not: the interval is that of as many seeds, not of no width."""
    found = scores(facts_of(three), draws=100)
    right, late = (of(found, name, kind="several") for name in ("right", "late"))
    low = share_over_seeds(np.array([64, 64, 64]), 64).low
    assert 0.9 < low < 0.99
    assert (right["exact_low"], right["exact_high"]) == (pytest.approx(low), 1)
    assert (late["exact_low"], late["exact_high"]) == (0, pytest.approx(1 - low))
    one = of(scores(facts_of(results(cell(0))), draws=100), "right")
    assert one["exact_low"] < low  # of four sets of a single model less is known


def test_chance_by_hand(three):
    found = scores(facts_of(three), draws=20)
    for name in ("right", "shuffled", "late"):
        row = of(found, name, kind="several")
        assert row["exact_constant"] == 0.25 and row["within1_constant"] == 0.25
        assert row["error_constant"] == (14 + 7 + 0 + 7) / 4 - 0  # always 12 or always 19
    assert of(found, "right", kind="several")["exact_shuffled"] == 0.25
    assert of(found, "late", kind="several")["exact_shuffled"] == 0
    assert of(found, "constant", kind="several")["exact"] == 0.25
    late = of(found, "late", kind="several")
    assert (late["exact"], late["within1"], late["error"], late["among"]) == (0, 0, 2, 1)
    assert late["rank"] == pytest.approx(4.5)  # -2 shared with the block two further on, three in between
    silent = of(found, "silent", kind="several")
    assert (silent["exact"], silent["error"], silent["named"], silent["rank"]) == (0, None, 0, 15.5)
    assert silent["among"] == 0.25 and silent["error_shuffled"] is None


def test_what_nobody_planted_has_no_truth_but_alarms(three):
    found = scores(facts_of(three), draws=20)
    for kind in ("null", "full"):
        row = of(found, "right", kind=kind)
        assert row["exact"] is None and row["exact_constant"] is None and row["named"] == 1
        assert of(found, "silent", kind=kind)["named"] == 0
    where = of(quartiles(facts_of(three).filter(kind="full")), "right")
    assert (where["q1"], where["median"], where["q3"]) == (10.25, 15.5, 20.75)


def test_models_whose_truth_is_not_confirmed_and_sets_not_learned_do_not_count():
    odd = results(
        cell(0),
        cell(1, valid=False),
        cell(2, learned=[True, True, True, False], said=[1.0, 1.0, 1.0, 0.5]),
    )
    row = of(scores(facts_of(odd), draws=20), "right")
    assert (row["models"], row["sets"], row["n"]) == (2, 7, 7 * N)
    [told] = planting(odd.cells).iter_rows(named=True)
    assert (told["models"], told["invalid"], told["sets"], told["learned"]) == (3, 1, 12, 11)


def test_the_main_table_is_of_models_whose_sets_lie_in_different_blocks():
    """Where one block alone learned its set, a constant guess is right, and so is nearly every instrument."""
    alone = [cell(seed, learned=[True, False, False, False], said=[1.0, 0.2, 0.2, 0.2]) for seed in range(3)]
    singles = [cell(seed, kind="single") for seed in range(3)]
    for cells, kind in (
        (alone, "several"),
        ([*alone, *singles], "single"),
        ([*singles, cell(7)], "several"),
    ):
        main = main_table(scores(facts_of(results(*cells)), draws=20))
        assert set(main["kind"]) == {kind} and main["instrument"][0] == "right"


def test_a_pair_is_found_in_either_block():
    one = cell(blocks=[[block, block + 1] for block in BLOCKS])
    found = scores(facts_of(results(one)), draws=20)
    assert (
        of(found, "right")["exact"] == 1
        and of(found, "late")["exact"] == 0
        and of(found, "late")["error"] == 1
    )


def test_the_part_is_marked_where_it_is_known():
    table = pl.concat([verdicts_of(cell(part="mlp"))]).with_columns(
        part=pl.when(pl.col("instrument") == "right").then(pl.lit("mlp")).otherwise(pl.lit("attn"))
    )
    found = scores(facts_of(Results([cell(part="mlp")], table, {})), draws=20)
    assert of(found, "right")["right_part"] == 1 and of(found, "late")["right_part"] == 0


def test_draws_hold_whole_models_and_sets():
    models = ["a"] * 4 + ["b"] * 2
    sets = [0, 0, 1, 1, 0, 0]
    weights = nested_weights(models, sets, 400, 0)
    assert (weights.sum(1) <= 8).all() and (weights.sum(1) >= 4).all()
    both = (weights[:, :4].sum(1) > 0) & (weights[:, 4:].sum(1) > 0)
    assert both.mean() == pytest.approx(0.5, abs=0.08)  # two models drawn from two
    # Where a truth holds for a seed as a whole, the interval knows no more than there are seeds.
    seeds = np.repeat([0.0, 1.0, 1.0], 64)
    rows = facts_of(results(*(cell(seed) for seed in range(3)))).filter(instrument="right")
    found = scores(rows.with_columns(exact=pl.Series(seeds)), draws=300).row(0, named=True)
    assert found["exact"] == pytest.approx(2 / 3) and (found["exact_low"], found["exact_high"]) == (0, 1)


def test_costs_are_medians_of_one_device():
    found = costs(
        [cell(0), cell(1, device="gpu", costs={"right": {"forwards": 9.0, "backwards": 1.0, "seconds": 3.0}})]
    )
    assert of(found, "right")["forwards"] == 5.0
    assert of(costs([cell(0)], "cpu"), "right")["seconds"] == 0.5
    assert costs([cell(0)], "gpu").is_empty()


def test_a_report_is_made_again_from_what_it_kept(three, tmp_path):
    files = write_report(three, tmp_path / "kept", tmp_path / "figures", draws=50)
    assert {file.name for file in files} == {
        "report.md",
        "scores.csv",
        "by_block.csv",
        "planting.csv",
        "where.csv",
        "agreement.csv",
        "found.png",
    }
    page = (tmp_path / "kept" / "report.md").read_text()
    assert "| right | 100 % [92, 100] | 100 % | 0.0 | 1.0 | 100 % | 100 % | 1.0 | 0.5 |" in page
    assert "exact 25 %" in page and "Sets that were not learned: 0." in page
    null = page.partition("## Facts that nobody planted")[2].partition("##")[0]
    for name, trained in (("right", "100 %"), ("late", "0 %"), ("constant", "100 %")):
        (row,) = (line for line in null.splitlines() if f"| {name} |" in line)
        assert "| 1 | 64 | 100 % |" in row and row.endswith(f"| {trained} |"), row
    (row,) = (line for line in null.splitlines() if "| silent |" in line)
    assert "| 1 | 64 | 0 % |" in row and row.endswith("|  |"), row
    again = read_results([tmp_path / "kept"])
    assert again.verdicts.equals(three.verdicts) and again.cells == three.cells
    write_report(again, tmp_path / "kept", tmp_path / "figures", draws=50)
    assert (tmp_path / "kept" / "report.md").read_text() == page


def test_a_report_says_whether_instruments_that_are_right_agree_where_nobody_knows(tmp_path):
    cells = [cell(seed, kind=kind) for kind in ("several", "full") for seed in range(3)]
    verdicts = results(*cells).verdicts
    twice = verdicts.filter(instrument="right").with_columns(instrument=pl.lit("too"))
    files = write_report(
        Results(cells, pl.concat([verdicts, twice]), {}), tmp_path, tmp_path / "figures", draws=50
    )
    assert {file.name for file in files} >= {"agreement.csv", "agreement.png"}
    page = (tmp_path / "report.md").read_text().partition("## Do instruments agree, fact by fact?")[2]
    assert "| right, too | kvr | 1.00 [1.00, 1.00] | 100 % | 1.00 [1.00, 1.00] | 100 % | 25 % |" in page


def test_run_folders_are_read_together_and_a_finished_cell_goes_before_one_that_is_not(tmp_path):
    from memprobe.files import write_json, write_parquet

    for name, one in (("first", cell(0, finished=False)), ("second", cell(0)), ("third", cell(1))):
        (tmp_path / name / "cells").mkdir(parents=True)
        (tmp_path / name / "verdicts").mkdir()
        write_json(one, tmp_path / name / "cells" / f"{one['name']}.json")
        rows = verdicts_of(one).drop("cell")
        write_parquet(
            rows.head(3) if name == "first" else rows, tmp_path / name / "verdicts" / f"{one['name']}.parquet"
        )
    found = read_results([tmp_path / name for name in ("first", "second", "third")])
    assert [one["seed"] for one in found.cells] == [0, 1] and all(one["finished"] for one in found.cells)
    assert len(found.verdicts) == 2 * 5 * 64
    assert found.verdicts.drop("cell").schema == VERDICTS
    with pytest.raises(MemprobeError, match="no results"):
        read_results([tmp_path / "nothing"])


def test_the_command_line_plants_and_reports(tiny_checkpoint, tmp_path):
    plan = tmp_path / "plan.toml"
    plan.write_text(
        f'base = "{tiny_checkpoint}"\nseeds = [0]\nblocks = [1, 3]\nfacts = 2\ninstruments = ["graft"]\n'
        "[planting]\nrate = 1e-2\nsteps = 150\n[fits]\nlinear = 0\ntuned = 0\njacobian = 0\n"
        '[[cells]]\nkind = "several"\n'
    )
    out = tmp_path / "out"
    told = CliRunner().invoke(app, ["run", str(plan), "--out", str(out), "--quiet"])
    assert told.exit_code == 0, told.output
    arguments = [
        "report",
        str(out),
        "--out",
        str(tmp_path / "report"),
        "--figures",
        str(tmp_path / "figures"),
    ]
    told = CliRunner().invoke(app, arguments)
    assert told.exit_code == 0, told.output
    page = (tmp_path / "report" / "report.md").read_text()
    assert re.search(r"\| graft \| 100 % \[\d\d, 100\]", page)
    told = CliRunner().invoke(app, ["run", str(plan), "--out", str(out), "--lens", "magic=x"])
    assert isinstance(told.exception, MemprobeError) and "KIND=PATH" in str(told.exception)
