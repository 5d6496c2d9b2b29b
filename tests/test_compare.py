"""memprobe compare end to end on invented probes."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy import stats
from typer.testing import CliRunner

from memprobe.cli.app import app
from memprobe.cli.show_pairs import print_by_depth
from memprobe.cli.terminal import wide_terminal
from memprobe.compare import (
    ANSWER,
    by_pair,
    compare,
    depth_and_retention,
    kept_facts,
    over_runs,
    read_comparison,
)
from memprobe.compare.headline import headline
from memprobe.compare.outcomes import compare_outcomes
from memprobe.errors import MemprobeError
from memprobe.factoids import Factoid, make_factoid
from memprobe.files import read_json, write_json
from memprobe.probes import open_probe
from memprobe.readings import ARM_STATISTICS, Readings
from memprobe.recipes import mark_of_settings
from memprobe.statistics import held, occurrence
from memprobe.statistics.controls import SHARES, STATISTICS
from memprobe.statistics.holding import Trajectories
from memprobe.statistics.intervals import Resamples
from memprobe.statistics.paired import differences_by_depth
from memprobe.summary import summarise
from tests.probes import retell, synthetic_factoids, write_probe, write_setups

STAGES = {"s1": {"arm": "none", "seed": 0, "stage": 1}, "s2": {"arm": "none", "seed": 0, "stage": 2}}
DEPTHS = {"base": 7, "s1": 4, "s2": 6}


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    return write_probe(
        tmp_path_factory.mktemp("own") / "own", DEPTHS, manifests=STAGES, intrusion=True, summary=False
    )


@pytest.fixture(scope="module")
def result(own):
    return compare([own], draws=500, by=["relation", "outcome"])


def edit_run(probe, tmp_path, **changes):
    copy = tmp_path / "edited"
    shutil.copytree(probe.path, copy)
    write_json(read_json(copy / "run.json") | changes, copy / "run.json")
    return copy


def test_differences_are_those_of_the_occurrence_table(own, result):
    table = occurrence(own.records, k=10, token="first").pivot("checkpoint", index="factoid", values="lof")
    expected = (table["s1"] - table["base"]).drop_nulls()
    row = result.tables["differences"].row(
        by_predicate=(pl.col("checkpoint") == "s1")
        & (pl.col("statistic") == "lof")
        & (pl.col("on") == "all"),
        named=True,
    )
    assert row["n"] == len(expected)
    assert row["difference"] == pytest.approx(expected.mean())
    assert row["low"] < row["difference"] < row["high"] < -2
    assert row["p"] < 0.05


def test_the_reference_and_the_base_model_are_found(own):
    assert compare([own], draws=100).settings["base"] == "base"
    tables = compare([own], reference="s1", draws=100).tables
    pairs = set(tables["differences"].select("reference", "checkpoint").iter_rows())
    assert pairs == {("s1", "base"), ("s1", "s2"), ("base", "s1"), ("base", "s2")}


def test_every_table_has_its_controls(result):
    curves = result.tables["curves"]
    assert curves["chance"].null_count() == 0
    assert (curves.filter(pl.col("depth") == 8)["net"] > 0.5).all()
    placement = result.tables["placement"]
    for name in ("chance_lof_restricted_mean", "net_lof_restricted_mean_low", "answer_cover", "base"):
        assert placement[name].null_count() == 0
    assert (placement["net_lof_restricted_mean_high"] < 0).all()


def test_every_statistic_is_given_net_of_every_control(own, result):
    net, by_depth = result.tables["net"], result.tables["net_by_depth"]
    assert net.columns == ["checkpoint", "control", "statistic", "n", "value", "chance", "net", "low", "high"]
    controls = net.group_by("checkpoint", maintain_order=True).agg(
        pl.col("control").unique(maintain_order=True)
    )
    assert controls["control"].to_list() == [
        ["shuffled", "intrusion:b"],
        *[["shuffled", "intrusion:b", "base"]] * 2,
    ]
    np.testing.assert_allclose(net["value"] - net["chance"], net["net"], atol=1e-9)
    # Net of the base model is the difference to it; shuffled answers and intrusions have ranks only.
    of_base = net.filter(control="base").drop_nulls("low")
    to_base = result.tables["differences"].filter(reference="base", on="all")
    joined = of_base.join(to_base, on=["checkpoint", "statistic"])
    assert len(joined) == 18 and joined["net"].to_list() == pytest.approx(joined["difference"].to_list())
    assert joined["low"].to_list() == pytest.approx(joined["low_right"].to_list(), abs=1e-5)
    ranks_only = set(net.filter(pl.col("control") != "base")["statistic"])
    assert ranks_only == {
        "lof",
        "lof_restricted",
        "settled",
        "settled_restricted",
        "depths_per_factoid",
        "area",
        "recall_full",
    }
    # One mechanism: the curves and the placement table quote it.
    recall = by_depth.filter(control="shuffled", measure="recall")
    for name in ("chance", "net"):
        assert recall[name].to_list() == result.tables["curves"][name].to_list()
    area = net.filter(control="shuffled", statistic="area")
    assert area["chance"].to_list() == result.tables["placement"]["chance_area"].to_list()
    # The intrusion has rank 7 where the fact is known and 0 where it is not: always in the top 10.
    assert by_depth.filter(control="intrusion:b")["chance"].to_list() == [1.0] * 27
    assert set(by_depth.filter(control="base")["measure"]) == {"recall", "log_prob"}


def test_intrusions_are_no_control_of_whole_answers(own):
    result = compare([own], token="all", draws=100)
    assert set(result.tables["net"]["control"]) == {"shuffled", "base"}
    assert any("where an answer begins" in note for note in result.notes)


def test_only_some_tables_are_those_of_all(own, result):
    answer = compare([own], draws=500, only=ANSWER)
    assert set(answer.tables) == set(ANSWER)
    assert all(table.equals(result.tables[name]) for name, table in answer.tables.items())
    assert answer.markdown() == result.markdown() and answer.notes == result.notes
    every = {"pairs": "all", "draws": 100}
    assert (
        compare([own], only=["overlap"], **every)
        .tables["overlap"]
        .equals(compare([own], **every).tables["overlap"])
    )
    with pytest.raises(MemprobeError, match=r"`only` 'fate'.*fates"):
        compare([own], only=["fate"])


def test_overlap_of_all_pairs(own, result):
    pairs = result.tables["overlap"].select("reference", "checkpoint").unique(maintain_order=True)
    assert pairs.rows() == [("base", "s1"), ("base", "s2")]
    every = compare([own], pairs="all", draws=500).tables["overlap"]
    assert every.select("reference", "checkpoint").unique(maintain_order=True).rows() == [
        ("base", "s1"),
        ("base", "s2"),
        ("s1", "s2"),
    ]
    assert every.filter(reference="base").equals(result.tables["overlap"])
    # The share of (factoid, depth) pairs held in either that are held in both, by hand.
    wide = held(own.records, k=10, token="first").filter(pl.col("depth") > 0)
    wide = wide.pivot("checkpoint", index=["factoid", "depth"], values="held")
    both, either = (wide["s1"] & wide["s2"]).sum(), (wide["s1"] | wide["s2"]).sum()
    whole = every.filter(pl.col("depth").is_null(), reference="s1")
    assert whole["jaccard"].to_list() == [pytest.approx(both / either)]


def test_fates_follow_exact_match(own, result):
    exact = own.outcomes.pivot("checkpoint", index="factoid", values="exact_match")
    lost = exact.filter(pl.col("base") & ~pl.col("s1")).height
    table = result.tables["fates"].filter(checkpoint="s1", path="1→0")
    assert table["n"].to_list() == [lost]
    assert result.tables["lost"].filter(checkpoint="s1")["n"].to_list() == [lost]
    paths = result.tables["paths"]
    assert paths["stages"].unique().to_list() == ["1 → 2"] and paths["n"].sum() == 40


def test_no_difference_of_shares_of_few_facts_reaches_beyond_one(tmp_path):
    """Student's interval of 12 facts would, wherever a difference is shown."""
    probe = write_probe(
        tmp_path / "few", {"a": 2.0, "b": 2.0}, n=12, never={"a": 0.0, "b": 0.8}, summary=False
    )
    tables = compare([probe], draws=100).tables
    recall = pl.col("measure") == "recall"
    shares = {
        "differences": pl.col("statistic").is_in(SHARES),
        "differences_by_depth": recall,
        "net": pl.col("statistic").is_in(SHARES),
        "net_by_depth": recall,
    }
    rows = {name: tables[name].filter(which) for name, which in shares.items()}
    rows["outcomes"] = compare_outcomes([probe], draws=100).tables["differences"]
    rows["curves"] = tables["curves"].select(low="net_low", high="net_high")
    for name, table in rows.items():
        ends = table.drop_nulls("low").select(low=pl.col("low").min(), high=pl.col("high").max())
        assert ends["low"][0] >= -1 and ends["high"][0] <= 1, name
    exact = rows["outcomes"].row(0, named=True)
    assert exact["low"] == -1 and rows["differences"].filter(on="all", statistic="exact")["low"][0] == -1


@pytest.mark.parametrize("command", [compare, compare_outcomes])
def test_seeds_that_were_trained_with_other_settings_are_no_seeds_of_an_arm(command, tmp_path):
    def written(name, marks):
        made = {
            f"naive-{seed}": {"arm": "none", "seed": seed, "stage": 1, "recipe_mark": mark}
            for seed, mark in enumerate(marks)
        }
        return write_probe(tmp_path / name, dict.fromkeys(made, 4.0), n=12, manifests=made, summary=False)

    other = written("other", ["a", "a", "b"])
    with pytest.raises(MemprobeError, match=r"naive-0 and naive-2 are both arm 'none'.*other settings"):
        command([other], draws=100)
    with pytest.raises(MemprobeError, match=r"naive-1 and naive-2 are both arm 'none'.*other settings"):
        command([written("unsaid", [None, "a", "b"])], draws=100)
    told = {"naive-2": ("none, lr 0.001", "2", "1")}
    assert command([other], arms=told, draws=100).tables["arms"]["seeds"].to_list().count(1)
    arms = [("none", "a"), ("none", "a"), ("replay(ratio=0.1)", "b")]
    for mark, told in (("a", 0), (None, 0), ("b", 1)):
        arms[2] = (arms[2][0], mark)
        made = {
            f"c{i}": {"arm": arm, "seed": i, "stage": 1, "recipe_mark": one}
            for i, (arm, one) in enumerate(arms)
        }
        probe = write_probe(
            tmp_path / f"arms-{mark}", dict.fromkeys(made, 4.0), n=12, manifests=made, summary=False
        )
        notes = command([probe], draws=100).notes
        assert sum("c0 and c2 were trained with other settings" in note for note in notes) == told
    for marks in (["a", "a", "a"], ["a", None, None]):
        seeds = command([written(str(marks[1]), marks)], draws=100).tables["arms"]["seeds"]
        assert set(seeds) == {3}


def test_the_mark_of_a_recipe_is_that_of_its_set_up():
    """The same for seeds, arms, stages to come and how a step is computed; another for anything else."""
    stages = [{"name": "a", "data": "kvr:8", "epochs": 3}, {"name": "b", "data": "lama", "epochs": 1}]
    recipe = {
        "base": "x",
        "seed": 0,
        "arm": "none",
        "optimiser": {"lr": 1e-4, "micro_batch": 4},
        "stages": stages,
    }
    mark = mark_of_settings(recipe, 1, "f")
    same = [
        recipe
        | {"seed": 1, "data_seed": 2, "arm": "replay(ratio=0.1)", "evaluate": {"known": 5}, "base": "y"},
        recipe | {"stages": [stages[0] | {"mixing": [{"source": "generic"}]}, stages[1] | {"epochs": 9}]},
        recipe | {"optimiser": {"lr": 1e-4, "micro_batch": 2}},
    ]
    assert {mark_of_settings(one, 1, "f") for one in same} == {mark}
    others = [
        mark_of_settings(recipe | {"optimiser": {"lr": 1e-3, "micro_batch": 4}}, 1, "f"),
        mark_of_settings(recipe | {"stages": [stages[0] | {"epochs": 4}]}, 1, "f"),
        mark_of_settings(recipe, 1, "g"),
        mark_of_settings(recipe, 2, "f"),
    ]
    assert len({mark, *others}) == 5


def test_probes_that_were_counted_otherwise_are_said(tmp_path):
    """Which comes first decides, unless the call does."""
    facts = synthetic_factoids(12)
    probes = [write_probe(tmp_path / name, {name: 4.0}, factoids=facts, summary=False) for name in "ab"]
    run = read_json(probes[1].path / "run.json")
    write_json(run | {"k": 1, "token": "all"}, probes[1].path / "run.json")
    found = compare([probe.path for probe in probes], draws=100)
    (note,) = [one for one in found.notes if one.startswith("Counted as")]
    assert "a was probed, top 10 and token rule first" in note and "under top 1 and all" in note
    chosen = compare([probe.path for probe in probes], k=5, token="all", draws=100)
    assert not any(one.startswith("Counted as") for one in chosen.notes)


def test_the_summary_is_net_of_shuffled_answers_on_the_facts_that_have_any(tmp_path):
    """As compare pairs them: a mean of all facts minus one of some is no difference that any fact has."""
    probe = write_probe(tmp_path / "p", {"a": 4.0}, n=60, never=0.0, tokens=(1,), summary=False)
    late = probe.factoids.filter(relation="capital")["id"].to_list()
    mine = pl.col("factoid").is_in(late)
    deep = pl.when(mine & (pl.col("depth") < 8)).then(500).otherwise(pl.col("rank")).cast(pl.Int32)
    retell(probe.path, "records", probe.records.with_columns(rank=deep).drop("lens", "position"))
    retell(probe.path, "controls", probe.controls.filter(~mine).drop("lens", "position"))
    again = open_probe(probe.path)
    lof = summarise(again, draws=200)["a"]["lof"]
    row = compare([again], draws=200).tables["placement"].row(0, named=True)
    for end in ("", "_low", "_high"):
        assert lof[f"net{end}"] == pytest.approx(row[f"net_lof_restricted_mean{end}"])
    apart = lof["restricted_mean"] - row["chance_lof_restricted_mean"]
    assert apart > lof["net_high"], "the case tells the two apart"


def test_frequencies_of_few_occurrences_are_not_taken_for_certain(tmp_path):
    """Few facts that surface are all that does: no interval. Where all that surface agree: that of a share of them."""
    for never in (0.9, 0.0):
        probe = write_probe(tmp_path / f"{never}", {"a": 4.0}, n=40, never=never, tokens=(1,), summary=False)
        curves = compare([probe], draws=200).tables["curves"].drop_nulls("frequency")
        assert (curves["frequency_low"].null_count() == len(curves)) == (never > 0.5)
    assert (curves["frequency_high"] - curves["frequency_low"]).min() > 0


@pytest.mark.parametrize("n", [3, 9, 10])
def test_nothing_has_a_bootstrap_interval_of_too_few_facts(n, tmp_path):
    """Whatever the statistic; shares have Wilson's, medians order statistics'."""
    given = [make_factoid(f"The capital of place {i} is", f"answer{i}", "made") for i in range(n)]
    depths = {"a": 4.0, "b": 5.0}
    probe = write_probe(tmp_path / "p", depths, factoids=given, never=0.0, tokens=(1,), summary=False)
    tables = compare([probe], draws=200).tables
    of = {"placement": ("area",), "curves": ("log_prob",), "overlap": ("",)}
    for table, names in of.items():
        for name in names:
            low = f"{name}_low".lstrip("_")
            assert (tables[table][low].null_count() == len(tables[table])) == (n < 10), (table, name)
    assert tables["curves"]["recall_low"].null_count() == 0


def test_no_claim_is_held_without_the_fixed_readout(own, result, tmp_path):
    assert result.tables["claims"]["held"].to_list() == [None] * 12
    assert any("readout" in note for note in result.notes)
    same = write_probe(tmp_path / "same", DEPTHS, manifests=STAGES, readout="base", summary=False)
    agreed = compare([own], fixed_readout=[same], draws=500).tables["claims"]
    assert agreed.filter(checkpoint="s1", statistic="lof_restricted")["held"].to_list() == [True]
    # Where the base readout shows no difference, the own readout's is no claim.
    flat = write_probe(
        tmp_path / "flat", dict.fromkeys(DEPTHS, 5), manifests=STAGES, readout="base", summary=False
    )
    refuted = compare([own], fixed_readout=[flat], draws=500).tables["claims"]
    assert refuted.filter(checkpoint="s1", statistic="lof_restricted")["held"].to_list() == [False]
    with pytest.raises(MemprobeError, match="own unembedding"):
        compare([own], fixed_readout=[own], draws=100)


def test_arms_over_seeds_from_several_probes(tmp_path):
    probes = []
    for seed in range(3):
        depths = {f"none-{seed}": 6.0, f"remix-{seed}": 4.0}
        manifests = {label: {"arm": label.split("-")[0], "seed": seed, "stage": 2} for label in depths}
        probes.append(
            write_probe(tmp_path / str(seed), depths, manifests=manifests, seed=seed, n=60, summary=False)
        )
    tables = compare(probes, draws=500).tables
    row = tables["arm_differences"].row(by_predicate=pl.col("statistic") == "lof_restricted", named=True)
    assert (row["arm"], row["reference"], row["seeds"], row["reference_seeds"]) == ("remix", "none", 3, 3)
    assert row["difference"] == pytest.approx(-2, abs=0.5)
    assert row["significant"] is True
    net = tables["net"].filter(control="shuffled", statistic="lof_restricted")
    of_arm = tables["arms"].filter(arm="remix", statistic="lof_restricted_net").row(0, named=True)
    assert of_arm["by_seed"] == pytest.approx(
        net.filter(pl.col("checkpoint").str.starts_with("remix"))["net"].to_list()
    )
    gap = tables["arm_differences"].filter(statistic="lof_restricted_net")["difference"][0]
    naive = net.filter(pl.col("checkpoint").str.starts_with("none"))["net"].mean()
    assert gap == pytest.approx(of_arm["mean"] - naive) and gap != row["difference"]
    few = compare(probes[:2], draws=500)
    assert few.tables["arm_differences"]["significant"].to_list() == [None] * 14
    assert any("fewer than 3 seeds" in note for note in few.notes)


def test_arms_from_options_and_their_mistakes(own, monkeypatch):
    arms = {"s1": ("a", "0", "1"), "s2": ("b", "0", "1")}
    assert set(compare([own], arms=arms, draws=100).tables["arms"]["arm"]) == {"a", "b"}
    with pytest.raises(MemprobeError, match="no checkpoint 's9'"):
        compare([own], arms={"s9": ("a", "0", "1")}, draws=100)
    monkeypatch.setattr(Readings, "_reading", lambda *_: pytest.fail("records are read before it is refused"))
    with pytest.raises(MemprobeError, match="tell them apart"):
        compare([own], arms={"s1": ("a", "0", "1"), "s2": ("a", "0", "1")}, draws=100)


def test_checkpoints_along_one_stage_are_told_apart_by_their_steps(tmp_path):
    """A callback's checkpoints have one arm, stage and seed; what is said of the arm is of the last."""
    depths, manifests = {}, {}
    for seed in range(3):
        for step in (300, 100, 200):  # as text 1000 would come before 200; as given, 200 would be the last
            label = f"run{seed}@{step}"
            depths[label] = {100: 7.0, 200: 6.0, 300: 3.0}[step]
            manifests[label] = {"arm": "none", "seed": seed, "stage": 1, "steps": step}
        depths[f"run{seed}"] = 5.0
        manifests[f"run{seed}"] = {"arm": "none", "seed": seed, "stage": 2, "steps": 50}
    probe = write_probe(tmp_path / "probe", depths, manifests=manifests, n=12, tokens=(1,), summary=False)
    ends = [label for label in depths if not label.endswith(("@100", "@200"))]
    whole, last = (compare([one], draws=100).tables for one in (probe, probe.only(ends)))
    for name in ("arms", "arm_differences", "paths"):
        assert whole[name].equals(last[name]), name
    assert len(whole["arms"]) and set(whole["arms"]["seeds"]) == {3}
    assert whole["steps"]["step"].to_list() == [100, 200, 300] * 3
    answers = compare_outcomes([probe], draws=100).tables
    assert set(answers["arms"]["seeds"]) == {3}
    assert answers["arms"].equals(compare_outcomes([probe.only(ends)], draws=100).tables["arms"])
    assert answers["paths"].equals(whole["paths"])
    twice = {"run0@100": ("none", "0", "1"), "run1@100": ("none", "0", "1")}
    with pytest.raises(MemprobeError, match="stage '1', seed '0', step 100: tell them apart"):
        compare([probe], arms=twice, draws=100)


@pytest.mark.parametrize("command", [compare, compare_outcomes])
@pytest.mark.parametrize("below", ["", "probe"])
def test_labels_that_repeat_take_their_directory(command, below, tmp_path):
    probes = [write_probe(tmp_path / name / below, {"m": 5.0}, summary=False) for name in ("one", "two")]
    labels = [one["label"] for one in command(probes, draws=100).settings["checkpoints"]]
    assert labels == [str(Path(name, below, "m")) for name in ("one", "two")]
    with pytest.raises(MemprobeError, match="given twice"):
        command([probes[0], probes[0]], draws=100)


def test_steps_are_a_learning_curve(tmp_path):
    probe = write_probe(tmp_path, {"step-200": 4.0, "step-100": 6.0, "step-50": 7.0}, summary=False)
    steps = compare([probe], draws=200).tables["steps"]
    assert steps["step"].to_list() == [50, 100, 200]
    assert steps["lof_mean"].is_sorted(descending=True)


def test_the_same_weights_are_named(own, tmp_path):
    run = read_json(own.path / "run.json")["checkpoints"]
    run["s2"] = run["s2"] | {"fingerprint": run["s1"]["fingerprint"]}
    copy = edit_run(own, tmp_path, checkpoints=run)
    notes = compare([copy], draws=100, only=["placement"]).notes
    assert "s1 and s2 hold the same weights." in notes
    assert not any("same weights" in note for note in compare([own], draws=100, only=["placement"]).notes)


def test_few_seeds_are_spoken_of_where_arms_are_shown(own):
    def notes(*arguments):
        done = CliRunner().invoke(app, ["compare", str(own.path), "--draws", "100", *arguments])
        assert done.exit_code == 0, done.output
        assert max(map(len, done.stderr.splitlines())) <= 100
        return done.stderr

    assert "fewer than 3 seeds" not in notes() and "fewer than 3 seeds" in notes("--full")


def test_different_factoids_are_compared_on_the_intersection(tmp_path):
    facts = synthetic_factoids(30)
    first = write_probe(tmp_path / "a", {"a": 5.0}, factoids=facts[:20], summary=False)
    second = write_probe(tmp_path / "b", {"b": 5.0}, factoids=facts[10:], summary=False)
    result = compare([first, second], draws=200)
    assert result.settings["factoids"] == 10
    assert "10 factoids" in result.notes[0]
    third = write_probe(tmp_path / "c", {"c": 5.0}, factoids=facts[20:], summary=False)
    with pytest.raises(MemprobeError, match="shares no factoid"):
        compare([first, third], draws=200)


def test_order_of_rows_does_not_matter(own, tmp_path):
    copy = tmp_path / "shuffled"
    shutil.copytree(own.path, copy)
    for name in ("records", "controls", "outcomes"):
        frame = pl.read_parquet(copy / f"{name}.parquet").sample(fraction=1, shuffle=True, seed=1)
        retell(copy, name, frame)
    before, after = (compare([path], draws=200).tables for path in (own, copy))
    for name in before:
        assert before[name].equals(after[name]), name


def test_depths_of_models_with_other_layers_are_not_compared(tmp_path):
    small = write_probe(tmp_path / "a", {"small": 4.0}, n_layers=6, summary=False)
    large = write_probe(tmp_path / "b", {"large": 4.0}, n_layers=9, summary=False)
    result = compare([small, large], draws=200)
    assert any("not compared" in note for note in result.notes)
    assert result.tables["differences"].is_empty() and len(result.tables["fates"])


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"template": "tulu"}, "template"), ({"lens": "tuned"}, "lens"), ({"readout": "base"}, "fixed_readout")],
)
def test_probes_made_otherwise_are_refused(own, tmp_path, changes, says):
    with pytest.raises(MemprobeError, match=says):
        compare([own, edit_run(own, tmp_path, **changes)], draws=100)


def test_broken_probes_are_refused(own, tmp_path):
    with pytest.raises(MemprobeError, match="schema 99"):
        compare([edit_run(own, tmp_path, schema=99)], draws=100)
    torn = tmp_path / "torn"
    shutil.copytree(own.path, torn)
    whole = (torn / "records.parquet").read_bytes()
    (torn / "records.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MemprobeError, match=r"records\.parquet"):
        compare([torn], draws=100)
    # Pages that are broken under a good footer.
    (torn / "records.parquet").write_bytes(
        whole[:100] + bytes(len(whole) // 2 - 100) + whole[len(whole) // 2 :]
    )
    with pytest.raises(MemprobeError):
        compare([torn], draws=100)


@pytest.mark.parametrize(
    "options",
    [{"k": 0}, {"token": "second"}, {"draws": 5}, {"pairs": "some"}, {"reference": "x"}, {"by": ["x"]}],
)
def test_bad_options_are_refused(own, options):
    with pytest.raises(MemprobeError):
        compare([own], **{"draws": 100, **options})


def test_everything_is_json_and_csv(result, tmp_path):
    result.write(tmp_path)
    data = json.loads((tmp_path / "comparison.json").read_text())
    assert data["schema"] == 1 and data["k"] == 10
    assert {file.stem for file in tmp_path.glob("*.csv")} == {
        name for name, table in result.tables.items() if len(table)
    }
    assert len(data["tables"]["curves"]) == 27
    assert pl.read_csv(tmp_path / "curves.csv").height == 27


def test_command_line(own, tmp_path):
    def run(*arguments):
        return CliRunner().invoke(app, ["compare", str(own.path), "--draws", "200", *arguments])

    short = run("--reference", "base")
    assert "s1 against base:" in short.output and "Recall by depth" not in short.output
    assert len(short.stdout.splitlines()) < 30
    shown = run("--reference", "base", "--by", "relation", "--full")
    assert shown.exit_code == 0, shown.output
    for words in (
        "Recall by depth",
        "shuffled answers",
        "s1 minus base",
        "negative is earlier",
        "Fates",
        "s1 by relation",
    ):
        assert words in shown.output
    assert max(map(len, shown.stdout.splitlines())) <= 100
    asked = run("--reference", "base", "--by", "relation").stdout
    assert "s1 by relation" in asked and "Recall by depth" not in asked and " by relation" not in short.stdout
    wrong = run("--by", "relatoin")
    assert "did you mean relation?" in str(wrong.exception)
    data = json.loads(run("--json", "--out", str(tmp_path / "out")).stdout)
    assert data["reference"] == "base"
    assert (tmp_path / "out" / "differences.csv").exists()
    net = run("--reference", "base", "--net", "base").stdout
    assert "Recall by depth, net of base" in net and "its chance level" not in net
    wrong = run("--net", "chance", "--out", str(tmp_path / "nothing"))
    assert "shuffled, intrusion:b, base" in str(wrong.exception)
    wrong = run("--net", "shufled", "--out", str(tmp_path / "nothing"))
    assert "did you mean shuffled?" in str(wrong.exception) and not (tmp_path / "nothing").exists()
    wrong = run("--arm", "s1")
    assert isinstance(wrong.exception, MemprobeError) and "LABEL=ARM:SEED" in str(wrong.exception)


def test_one_checkpoint_alone(tmp_path):
    probe = write_probe(tmp_path, {"only": 5.0}, n=1, never=0.0, summary=False)
    tables = compare([probe], draws=100).tables
    assert tables["placement"]["n"].to_list() == [1]
    assert tables["differences"].is_empty()
    assert np.isfinite(tables["placement"]["lof_restricted_mean"][0])


def test_without_controls_chance_is_not_known(tmp_path):
    probe = write_probe(tmp_path, {"a": 5.0, "b": 4.0}, n=6, summary=False)
    retell(tmp_path, "controls", probe.controls.clear())
    curves = compare([probe], draws=100).tables["curves"]
    assert curves["chance"].null_count() == len(curves) and curves["recall"].null_count() == 0
    entry = summarise(probe, draws=100)["a"]
    assert entry["shuffled"]["10"] == [None] * 9 and entry["shuffled_lof"]["mean"] is None


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Three seeds in which a later stage takes, of facts that are all said, mostly those that surfaced deep."""
    labels = [f"{seed}.{stage}" for seed in range(3) for stage in (1, 2)]
    manifests = {label: {"arm": "none", "seed": int(label[0]), "stage": int(label[2])} for label in labels}
    probe = write_probe(
        tmp_path_factory.mktemp("kept") / "own",
        dict.fromkeys(labels, 4.0),
        manifests=manifests,
        never=0.0,
        tokens=(1,),
        summary=False,
    )
    depth = dict(
        occurrence(probe.records, k=10, token="first")
        .select(pl.concat_str("checkpoint", "factoid"), "lof")
        .rows()
    )
    rng = np.random.default_rng(0)
    said = [
        stage == "1" or depth[f"{seed}.1{factoid}"] + rng.normal(0, 1) < 4.5
        for seed, stage, factoid in (
            (label[0], label[2], factoid)
            for label, factoid in probe.outcomes.select("checkpoint", "factoid").iter_rows()
        )
    ]
    outcomes = probe.outcomes.with_columns(pl.Series("exact_match", said), pl.Series("exact_tokens", said))
    retell(probe.path, "outcomes", outcomes)
    return probe.path, depth, outcomes


def test_kept_facts_are_held_against_lost_ones_where_both_were_said(kept):
    path, depth, outcomes = kept
    pairs = [(f"{seed}.1", f"{seed}.2") for seed in range(3)]
    table = kept_facts(Readings.of([path], draws=300), {"none": pairs, "one": pairs[:1]})
    row = table.row(by_predicate=(pl.col("arm") == "none") & (pl.col("statistic") == "lof"), named=True)
    by_hand = []
    for before, after in pairs:
        still = dict(outcomes.filter(checkpoint=after).select("factoid", "exact_match").rows())
        mean = [np.mean([depth[before + f] for f, kept in still.items() if kept == side]) for side in (1, 0)]
        by_hand.append(mean[0] - mean[1])
    assert row["by_seed"] == pytest.approx(by_hand) and row["difference"] == pytest.approx(np.mean(by_hand))
    assert row["low"] < row["difference"] < row["high"] < -0.5
    assert [k + n for k, n in zip(row["kept"], row["lost"], strict=True)] == [40] * 3
    assert "exact" not in table["statistic"].to_list()
    net = table.row(
        by_predicate=(pl.col("arm") == "none") & (pl.col("statistic") == "lof_restricted_net"), named=True
    )
    assert net["difference"] != row["difference"] and net["high"] < 0
    assert table.filter(arm="one")["low"].null_count() == len(table.filter(arm="one"))
    assert len(kept_facts(Readings.of([path]), {"none": [("0.1", "0.1")]})) == 0, "nothing was lost"
    with pytest.raises(MemprobeError, match=r"'9\.2': no such checkpoint"):
        kept_facts(Readings.of([path]), {"none": [("0.1", "9.2")]})


def test_depth_goes_with_what_is_left_of_every_fact_that_was_recalled(kept):
    path, depth, _ = kept
    pairs = [(f"{seed}.1", f"{seed}.2") for seed in range(3)]
    readings = Readings.of([path], draws=300)
    after = STATISTICS.index("log_prob_full")
    table = depth_and_retention(readings, {"none": pairs, "one": pairs[:1]})
    row = table.row(
        by_predicate=(pl.col("arm") == "none") & (pl.col("statistic") == "lof_restricted"), named=True
    )
    by_hand = [
        stats.spearmanr(
            [depth[one + fact] for fact in readings.ids], readings[other].values[:, after]
        ).statistic
        for one, other in pairs
    ]
    assert row["by_seed"] == pytest.approx(by_hand) and row["correlation"] == pytest.approx(np.mean(by_hand))
    assert row["facts"] == [40] * 3 and row["low"] < row["correlation"] < row["high"]
    assert table.filter(arm="one")["low"].null_count() == len(table.filter(arm="one"))
    # What is left is what the checkpoint itself says, whatever reads the depths, and in whatever order its facts come.
    turned = Readings.of([path], draws=300)
    turned.factoids = turned.factoids.reverse()
    assert depth_and_retention(readings, {"none": pairs}, turned).equals(table.filter(arm="none"))
    with pytest.raises(MemprobeError, match=r"'9\.2': no such checkpoint"):
        depth_and_retention(readings, {"none": [("0.1", "9.2")]})


def test_kept_and_lost_facts_differ_by_no_more_than_shares_can(tmp_path, monkeypatch):
    """Of few facts, and over seeds that disagree, Student's interval would reach beyond 1."""
    made = {
        f"{seed}.{stage}": {"arm": "none", "seed": seed, "stage": stage}
        for seed in range(3)
        for stage in (1, 2)
    }
    depths = dict.fromkeys(made, 4.0)
    probe = write_probe(tmp_path / "own", depths, n=12, never=0.0, manifests=made, summary=False)
    said = [
        label.endswith("1") or index % 12 < 4
        for index, label in enumerate(probe.outcomes["checkpoint"].to_list())
    ]
    retell(probe.path, "outcomes", probe.outcomes.with_columns(exact_match=pl.Series(said)))
    readings = Readings.of([open_probe(probe.path)], reference="0.1", draws=100)
    recall = list(ARM_STATISTICS).index("recall_full")
    found = by_pair.kept_against_lost

    def far(values, *more):
        told = found(values, *more)
        told.difference[recall], told.low[recall], told.high[recall] = next(seeds), -1.3, 0.4
        return told

    seeds = iter([-0.9, 0.9, 0.9, -0.9])
    for module in (over_runs, by_pair):
        monkeypatch.setattr(module, "kept_against_lost", far)
    arms = kept_facts(readings, {"none": [(f"{seed}.1", f"{seed}.2") for seed in range(3)]})
    pair = by_pair.kept(readings, [("0.1", "0.2")])
    row, one = (
        table.row(by_predicate=pl.col("statistic") == "recall_full", named=True) for table in (arms, pair)
    )
    assert (row["low"], row["high"], one["low"], one["high"]) == (-1, 1, -1, 0.4)
    assert row["p"] > 0.5, "a difference is held against 0, as a share is not"


def test_what_is_net_of_chance_ends_where_that_does_in_the_tables_of_arms(kept, monkeypatch):
    """Seeds that disagree widely: of every share net of shuffled answers the interval would reach beyond 1."""
    net = ["recall_full_net", "area_net"]
    assert set(net) <= set(ARM_STATISTICS)
    apart = {"1": 0.2, "2": 1.0, "3": 1.0}
    runs = over_runs.runs_of

    def far(readings, *more):
        made = runs(readings, *more)
        seeds = {label: place for place, label in enumerate(dict.fromkeys(run.seed for run in made), 1)}
        return [replace(run, means=np.full_like(run.means, apart[str(seeds[run.seed])])) for run in made]

    monkeypatch.setattr(over_runs, "runs_of", far)
    readings = Readings.of([kept[0]], draws=300)
    table = over_runs.arms(readings).filter(pl.col("statistic").is_in(net))
    assert set(table["high"]) == {1} and table["low"].min() > -1 and table["p"].null_count() == 0


def test_the_interval_of_a_correlation_ends_where_correlations_do(kept, monkeypatch):
    """Three seeds that disagree as widely as they can: Student's interval would reach far beyond."""
    seeds = iter([-0.9, 0.9, 0.9])
    found = over_runs.rank_correlations
    monkeypatch.setattr(
        over_runs,
        "rank_correlations",
        lambda values, *more: replace(found(values, *more), rho=np.full(values.shape[1], next(seeds))),
    )
    pairs = [(f"{seed}.1", f"{seed}.2") for seed in range(3)]
    table = depth_and_retention(Readings.of([kept[0]], draws=300), {"none": pairs})
    assert set(table["low"]) == {-1} and set(table["high"]) == {1}


def test_a_pair_of_checkpoints_says_so_too(kept):
    path, _, _ = kept
    probe = open_probe(path)
    tables = compare([probe.only(["1.1", "1.2"])], reference="1.1", draws=300).tables
    arms = kept_facts(Readings.of([probe], draws=300), {"none": [("1.1", "1.2")]})
    assert tables["kept"]["difference"].to_list() == pytest.approx(arms["difference"].to_list(), nan_ok=True)
    lof = tables["kept"].row(by_predicate=pl.col("statistic") == "lof", named=True)
    assert lof["low"] < lof["difference"] < lof["high"] < 0 and lof["n_kept"] + lof["n_lost"] == 40
    same = compare([probe.only(["1.1", "2.1"])], draws=100).tables
    assert same["kept"].is_empty(), "nothing was lost"


def test_a_second_readout_is_of_the_same_weights(tmp_path):
    own = write_probe(tmp_path / "own", DEPTHS, summary=False)
    other = write_probe(tmp_path / "fixed", DEPTHS, readout="base", weights="other", summary=False)
    with pytest.raises(MemprobeError, match=r"fixed: 'base' has other weights than 'base' in .*own"):
        compare([own], fixed_readout=[other], draws=100)


def facts_of(what: str, n: int = 20) -> list[Factoid]:
    return [make_factoid(f"The {what} of land {i} is", f"{what} {i}", "file", id=str(i)) for i in range(n)]


def test_an_id_stands_for_one_fact_in_all_probes(tmp_path):
    one = write_probe(tmp_path / "a", {"one": 3.0}, factoids=facts_of("city"), summary=False)
    other = write_probe(tmp_path / "b", {"two": 6.0}, factoids=facts_of("river"), summary=False)
    with pytest.raises(MemprobeError, match=r"b: fact '0' has the answer 'river 0', in .*a 'city 0'"):
        compare([one, other], draws=100)
    asked = [
        make_factoid(f"Which city has land {i}?", fact.answer, "file", id=fact.id)
        for i, fact in enumerate(facts_of("city"))
    ]
    again = write_probe(tmp_path / "c", {"two": 6.0}, factoids=asked, summary=False)
    assert any(
        "20 of these facts were put in other words" in note for note in compare([one, again], draws=100).notes
    )


def test_a_second_readout_of_other_facts_is_compared_on_those_of_both(tmp_path):
    facts = facts_of("city", 40)
    own = write_probe(tmp_path / "own", DEPTHS, factoids=facts[:30], summary=False)
    for name, some in (("other", facts[10:]), ("fewer", facts[:20])):
        fixed = write_probe(tmp_path / name, DEPTHS, factoids=some, readout="base", summary=False)
        result = compare([own], fixed_readout=[fixed], draws=100)
        assert result.settings["factoids"] == 20 and result.tables["claims"]["held"].null_count() == 0
        assert any("on the 20 factoids that every checkpoint has" in note for note in result.notes)


def test_a_directory_of_one_set_up_brings_its_readouts_with_it(tmp_path, cli):
    depths = {"base": 8.0, "tuned": 5.0}
    write_probe(tmp_path / "set" / "own", depths)
    write_probe(tmp_path / "set" / "base-readout", depths, readout="base")
    code, out, _ = cli("compare", tmp_path / "set", "--draws", "200", "--json")
    claims = json.loads(out)["tables"]["claims"]
    assert code == 0 and claims and all(row["held"] is not None for row in claims)
    write_probe(tmp_path / "other" / "own", depths, factoids=synthetic_factoids(8))
    code, _, said = cli("compare", tmp_path, "--draws", "200")
    assert code != 0 and "different factoids; name one of" in said
    named = said.partition("name one of ")[2].strip().split(", ")
    assert len({*named}) == len(named) > 1, "each by its path"
    code, said, _ = cli("compare", tmp_path / "set", "--draws", "200", "--pairs", "all")
    assert code == 0 and "Overlap, by depth" in said
    write_setups(tmp_path / "grid")
    code, _, said = cli("compare", tmp_path / "grid", "--draws", "200")
    assert code != 0 and "2 set-ups; name one of" in said and "probes/a-c" in said
    (tmp_path / "empty").mkdir()
    code, _, said = cli("compare", tmp_path / "empty")
    assert code != 0 and "nothing to show" in said


@pytest.mark.parametrize(("table", "column"), [("curves", "depth"), ("placement", "checkpoint")])
def test_a_stored_row_without_its_key_is_refused(own, tmp_path, table, column):
    compare([own.path], draws=100).write(tmp_path / "c")
    file = tmp_path / "c" / "comparison.json"
    stored = read_json(file)
    del stored["tables"][table][-1][column]
    write_json(stored, file)
    with pytest.raises(MemprobeError, match=rf"comparison.json: tables.{table}: a row without {column}"):
        read_comparison(file)


@pytest.mark.parametrize("key", ["reference", "base"])
def test_a_stored_comparison_speaks_of_its_own_checkpoints(own, tmp_path, key):
    compare([own.path], draws=100).write(tmp_path / "c")
    file = tmp_path / "c" / "comparison.json"
    write_json(read_json(file) | {key: "bas"}, file)
    with pytest.raises(MemprobeError, match=rf"comparison.json: {key}: 'bas' is none of the checkpoints"):
        read_comparison(file)


def test_arms_of_models_with_other_layers_are_compared_in_what_is_no_depth(tmp_path):
    small = write_probe(tmp_path / "small", {f"s{i}": 4 for i in range(3)}, n_layers=8)
    large = write_probe(tmp_path / "large", {f"l{i}": 12 for i in range(3)}, n_layers=24)
    arms = {f"s{i}": ("none", str(i), None) for i in range(3)}
    arms |= {f"l{i}": ("replay", str(i), None) for i in range(3)}
    result = compare([small, large], arms=arms, draws=200)
    statistics = set(result.tables["arm_differences"]["statistic"])
    assert {"exact", "recall_full"} <= statistics
    assert not {"lof_restricted", "depths_per_factoid", "lof_restricted_net"} & statistics
    assert not any("depth" in line or "stage" in line for line in result.verdict()[1:])
    assert len(result.tables["arms"].filter(statistic="lof_restricted").drop_nulls("mean")) == 2
    mixed = arms | {"l0": ("none", "3", None)}
    with pytest.raises(MemprobeError, match="are both arm 'none' and have 8 and 24 layers"):
        compare([small, large], arms=mixed, draws=200)


@pytest.mark.parametrize("last_first", [False, True])
def test_the_verdict_of_arms_is_of_the_last_stage_whatever_is_not_there_yet(last_first, tmp_path):
    manifests, depths, never = {}, {}, {}
    for arm, seed, stage in itertools.product(("none", "replay", "ewc"), range(3), (1, 2)):
        if (arm, seed, stage) == ("ewc", 2, 2):
            continue  # it is still being trained
        label = f"{arm}-s{seed}.{stage}"
        manifests[label] = {"arm": arm, "seed": seed, "stage": f"{stage}-x"}
        depths[label], never[label] = 3 + stage, 0.8 if (arm, stage) == ("none", 2) else 0.1
    labels = sorted(depths, key=lambda label: label[-1], reverse=last_first)
    probe = write_probe(
        tmp_path / "x", {label: depths[label] for label in labels}, manifests=manifests, never=never
    )
    said = compare([probe], reference="none-s0.1", draws=200).verdict()
    assert any(line.startswith("replay against naive after stage 2-x, 3 seeds: +") for line in said), said
    assert said[-1] == "No interval after stage 2-x, too few seeds: ewc."


def test_the_side_of_a_depth_is_that_of_what_was_tested(capsys):
    """Many small losses and few large gains: the mean rises, and p is of the mean."""
    facts = np.array([str(i) for i in range(100)])
    before = np.full((100, 3), -8.0, np.float32)
    after = before + np.where(np.arange(100) < 60, -0.05, 3.0)[:, None].astype(np.float32)
    rank = np.full((100, 3), 5000, np.int32)
    new, old = (Trajectories("a", None, facts, rank, one, np.ones_like(one)) for one in (after, before))
    table = differences_by_depth(new, old, k=10, resamples=Resamples.of(100, draws=2000))
    labels = {"reference": pl.lit("base"), "checkpoint": pl.lit("tuned")}
    print_by_depth(wide_terminal(), {"differences_by_depth": table.with_columns(**labels)})
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "log_prob" in line]
    assert row.split()[-2:] == ["0–2", "none"], row


def test_groups_without_an_interval_say_why_and_stored_notes_are_shown_again(tmp_path, cli):
    probe = write_probe(tmp_path / "p", {"a": 3}, n=30)
    code, out, _ = cli("compare", probe.path, "--by", "relation", "--out", tmp_path / "out")
    assert code == 0 and "(too few)" in out
    table = pl.read_csv(tmp_path / "out" / "groups.csv")
    assert (table["lof_n"] <= table["n"]).all() and table["lof_n"].sum() < 30
    stored = json.loads((tmp_path / "out" / "comparison.json").read_text())
    stored["notes"].append("Read with [care].")
    (tmp_path / "out" / "comparison.json").write_text(json.dumps(stored))
    code, _, err = cli("show", tmp_path / "out")
    assert code == 0 and "note: Read with [care]." in err


def test_all_but_one_are_not_all(own):
    placed = compare([own], draws=200).tables["placement"]
    for row in headline(placed.with_columns(share_never=pl.lit(0.003), exact=pl.lit(0.997))).rows:
        assert [*row[1:3]] == ["99.7%", "0.3%"]


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_what_was_generated_is_not_held_against_the_argmax(tmp_path, share):
    """The same model and facts: of one probe, or of half of it, nothing says what would be generated."""
    folders = []
    for name in ("greedy", "argmax"):
        probe = write_probe(tmp_path / name, {name: 5.0}, n=60, weights="x", summary=False)
        told = probe.outcomes.with_columns(
            exact_tokens=pl.int_range(pl.len()) >= 20
        )  # the rest ends elsewhere
        if name == "argmax":
            asked = pl.int_range(pl.len()) >= share * 60
            told = told.with_columns(exact_match=pl.when(asked).then("exact_match"))
        retell(probe.path, "outcomes", told)
        folders.append(probe.path)
    result = compare(folders, draws=200)
    [note] = [note for note in result.notes if note.startswith("Here exact match stands for exact tokens")]
    assert note.endswith("nothing says what argmax would generate.")
    assert "greedy recalls 67% of 60 facts (exact tokens)." in result.verdict()[0]
    assert "argmax against greedy: no clear difference in exact tokens (+0 [" in result.verdict()[1]
    assert result.headline().columns[1] == "exact tokens"
    answers = compare_outcomes(folders, draws=200)
    assert answers.tables["outcomes"]["exact"].to_list() == [40 / 60] * 2
    assert answers.notes == [
        "Here exact match stands for exact_tokens of a probe, the measure of every checkpoint."
    ]
    alone = compare(folders[:1], draws=200)
    assert "(exact match)" in alone.verdict()[0] and alone.headline().columns[1] == "exact match"
    assert not any("exact tokens" in note for note in alone.notes)
