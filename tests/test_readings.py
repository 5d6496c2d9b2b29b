"""Readings: what belongs together, and tables made alone."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from memprobe import reading, statistics
from memprobe.chains import chains_of
from memprobe.compare import TABLES, compare, settings_of
from memprobe.dashboard.checkpoints import set_of
from memprobe.dashboard.sets import sets_of
from memprobe.errors import MemprobeError
from memprobe.figures import of_comparison
from memprobe.files import read_json, write_json
from memprobe.members import TrainingPoint, series_of, step_of
from memprobe.probes import open_probe
from memprobe.readings import Readings, _resamples
from memprobe.statistics import intervals
from memprobe.statistics.holding import Trajectories, trajectories
from memprobe.statistics.intervals import Resamples
from memprobe.summary import summary_of
from tests.probes import synthetic_factoids, write_probe

STAGES = {
    "s1": {"arm": "none", "seed": 0, "stage": 1, "stage_name": "a"},
    "s2b": {"arm": "none", "seed": 0, "stage": 2, "stage_name": "b"},
    "s2c": {"arm": "none", "seed": 0, "stage": 2, "stage_name": "c"},
}


def test_a_table_made_alone_is_the_comparison_s(tmp_path):
    probe = write_probe(
        tmp_path / "own",
        {"base": 7, "s1": 4, "s2b": 6},
        manifests={"s1": STAGES["s1"], "s2b": STAGES["s2b"]},
        summary=False,
    )
    whole = compare([probe], draws=200).tables
    readings = Readings.of([probe], draws=200)
    for name, table in TABLES.items():
        alone = table(readings)
        assert alone.schema == table.schema == whole[name].schema
        assert alone.equals(whole[name]), name
    pair = TABLES["differences"](readings, [("s1", "s2b")])
    other = compare([probe], reference="s1", draws=200).tables["differences"]
    assert pair.equals(other.filter(reference="s1", checkpoint="s2b"))


def test_another_k_is_another_reading_of_the_same_records(tmp_path):
    probe = write_probe(tmp_path / "own", {"base": 7, "s1": 4}, summary=False)
    strict = Readings.of([probe], draws=200).under(k=1)
    assert TABLES["placement"](strict).equals(compare([probe], k=1, draws=200).tables["placement"])
    every = Readings.of([probe], draws=200).under(token="all")
    assert TABLES["placement"](every).equals(compare([probe], token="all", draws=200).tables["placement"])


def test_runs_that_end_on_different_data_are_a_chain_each(tmp_path):
    probe = write_probe(
        tmp_path / "own", {"base": 7, "s1": 4, "s2b": 6, "s2c": 5}, manifests=STAGES, summary=False
    )
    readings = Readings.of([probe], draws=200)
    assert [chain.labels for chain in chains_of(readings.members)] == [["s1", "s2b"], ["s1", "s2c"]]
    assert readings.before == [("s1", "s2b"), ("s1", "s2c")]
    assert readings.base is not None and readings.base.label == "base"


def from_parent(label, stage, parent, **more):
    """A manifest of a checkpoint that was trained from another one of :func:`write_probe`."""
    before = {"fingerprint": hashlib.sha256(parent.encode()).hexdigest()}
    return {"arm": "none", "seed": 0, "stage": stage, "stage_name": label, "parent": before} | more


def test_a_chain_is_of_parents_and_children(tmp_path):
    """Runs of one arm and seed that share a first stage, and of which one has a stage between."""
    made = {
        "short.1": from_parent("kvr", 1, "base", recipe_mark="x"),
        "short.2": from_parent("lama", 2, "short.1", recipe_mark="x"),
        "long.2": from_parent("popqa", 2, "short.1", recipe_mark="y"),
        "long.3": from_parent("lama", 3, "long.2", recipe_mark="y"),
    }
    probe = write_probe(
        tmp_path / "own", {"base": 7.0} | dict.fromkeys(made, 5.0), manifests=made, summary=False
    )
    readings = Readings.of([probe], draws=200)
    chains = chains_of(readings.members)
    assert [chain.labels for chain in chains] == [["short.1", "short.2"], ["short.1", "long.2", "long.3"]]
    fingerprints = {one.label: one.fingerprint for one in readings.members}
    for before, after in readings.before:
        assert readings.member(after).parent == fingerprints[before]
    assert {label for chain in chains for label in chain.labels} == set(made), "every one is in a run"


def test_a_chain_goes_back_to_a_parent_of_another_arm(tmp_path):
    """In a grid arms that differ from stage 2 on share stage 1, and one that ends there has another name."""
    made = {
        "naive.1": from_parent("kvr", 1, "base"),
        "naive.2": from_parent("lama", 2, "naive.1"),
        "ewc.2": from_parent("lama", 2, "naive.1", arm="ewc(strength=1, stages=2)"),
        "lora.1": from_parent("kvr", 1, "base", arm="lora(rank=8, alpha=32, stages=1)"),
        "lora.2": from_parent("lama", 2, "lora.1", arm="lora(rank=8, alpha=32, stages=1,2)"),
    }
    probe = write_probe(
        tmp_path / "own", {"base": 7.0} | dict.fromkeys(made, 5.0), manifests=made, summary=False
    )
    chains = {chain.arm: chain.labels for chain in chains_of(Readings.of([probe], draws=200).members)}
    assert chains == {
        "none": ["naive.1", "naive.2"],
        "ewc(strength=1, stages=2)": ["naive.1", "ewc.2"],
        "lora(rank=8, alpha=32, stages=1,2)": ["lora.1", "lora.2"],
    }


def test_no_arm_takes_another_s_checkpoint_for_a_parent_that_is_not_here():
    """Of its own it takes the one along the stage before; another arm's run stays whole."""
    own = [
        TrainingPoint("a.1@20", "none", "0", "1", 20, fingerprint="x", parent="base"),
        TrainingPoint("a.2", "none", "0", "2", None, fingerprint="y", parent="gone"),
        TrainingPoint("b.2", "ewc(strength=1, stages=2)", "0", "2", None, fingerprint="z", parent="gone"),
        TrainingPoint("c.1@20", "lora(rank=8)", "0", "1", 20, fingerprint="w", parent="base"),
    ]
    for some, runs in ((own, [["a.1@20", "a.2"], ["b.2"], ["c.1@20"]]), (own[2:], [["b.2"], ["c.1@20"]])):
        assert sorted(chain.labels for chain in chains_of(some)) == runs


def test_runs_of_other_settings_are_other_runs(tmp_path):
    """Along training and over seeds, also where they share arm, seed, stage and step."""
    steps = {"a": (20, "x"), "b": (40, "y"), "c": (60, "y"), "d": (60, "y"), "e": (80, None)}
    made = {
        label: {"arm": "none", "seed": 0, "stage": 1, "stage_name": "kvr", "steps": step, "recipe_mark": mark}
        for label, (step, mark) in steps.items()
    }
    probe = write_probe(tmp_path / "own", dict.fromkeys(made, 5.0), manifests=made, summary=False)
    readings = Readings.of([probe], draws=200)
    assert [one.labels for one in readings.series] == [["b", "c"]]
    everyone = series_of(readings.members, least=1)
    assert sorted(label for one in everyone for label in one.labels) == list("abcde")
    assert len({one.name for one in everyone}) == len(everyone)


def test_terminal_page_summary_and_figure_tell_one_number_with_one_interval(tmp_path):
    depths, made = {"base": 7, "s1": 4}, {"s1": STAGES["s1"]}
    probe = write_probe(tmp_path / "a", depths, n=40, summary=False, manifests=made)
    readings = Readings.of([probe], draws=200, reference="base")
    placement = TABLES["placement"](readings)
    by_label = {row["checkpoint"]: row for row in placement.iter_rows(named=True)}

    (shown,) = sets_of([probe], [], reference="base", draws=200, say=print)
    entry, blocks = set_of(shown, "s0-", [10], 10**6)
    headline = entry["headline"]["first"]["10"]
    stage = json.loads(blocks["s0-stage-lof_restricted"])["first"]["10"]["data"][0]
    short = {label: summary_of(Readings.of([probe.only([label])], draws=200)) for label in readings.labels}
    drawn = of_comparison(compare([probe], draws=200).tables, settings_of(readings))["lof"]
    grouped = TABLES["groups"](readings, by=("source",))
    for label, row in by_label.items():
        for end in ("", "_low", "_high"):
            told = row[f"lof_mean{end}"]
            assert told is not None
            assert headline[label][f"lof_mean{end}"] == told
            assert short[label]["lof"][f"mean{end}"] == told
            point = drawn.filter(row=label, statistic="lof_mean").row(0, named=True)
            assert point[end.removeprefix("_") or "value"] == told
            assert grouped.filter(checkpoint=label).row(0, named=True)[f"lof_mean{end}"] == told
            assert headline[label][f"exact{end}"] == row[f"exact{end}"]
        at = stage["meta"]["checkpoints"].index(label)
        assert stage["y"][at] == pytest.approx(row["lof_restricted_mean"], rel=1e-6)
        assert stage["error_y"]["array"][at] == pytest.approx(
            row["lof_restricted_mean_high"] - row["lof_restricted_mean"], rel=1e-5
        )


def test_a_page_holds_checkpoints_against_each_other_on_the_facts_that_all_have(tmp_path):
    facts = synthetic_factoids(30)
    probe = write_probe(tmp_path / "a", {"base": 7, "s1": 4}, factoids=facts, summary=False)
    keep = [factoid.id for factoid in facts[:20]]
    fewer = pl.col("factoid").is_in(keep) | (pl.col("checkpoint") == "base")
    for table in ("records", "controls", "outcomes"):
        rows = getattr(probe, table).filter(fewer)
        rows.drop("lens", "position", strict=False).write_parquet(probe.path / f"{table}.parquet")
    (probe.path / "checksums.json").unlink(missing_ok=True)  # of the tables before
    (shown,) = sets_of([open_probe(probe.path)], [], reference=None, draws=200, say=print)
    entry, _ = set_of(shown, "s0-", [10], 10**6)
    told = entry["headline"]["first"]["10"]
    found = compare([probe.path], draws=200).tables["placement"]
    for row in found.iter_rows(named=True):
        assert row["n"] == 20
        assert told[row["checkpoint"]]["lof_restricted_mean"] == row["lof_restricted_mean"]
        assert told[row["checkpoint"]]["exact_match"]["value"] == row["exact"]
    assert "the 20 factoids that every checkpoint has, of up to 30" in entry["subtitle"]
    assert len(shown.readings["base"].everyone.factoids) == 30


def test_positions_are_not_comparable(tmp_path):
    probe = write_probe(tmp_path / "a", {"base": 7}, summary=False)
    other = replace(probe, run=probe.run | {"position": "subject"}, path=tmp_path / "b")
    with pytest.raises(MemprobeError, match="position 'subject'"):
        Readings.of([probe, other], draws=200)


def test_k_and_rule_are_the_probes_unless_told_otherwise(tmp_path):
    probe = write_probe(tmp_path / "probe", {"a": 4.0}, n=12, summary=False)
    run = read_json(tmp_path / "probe" / "run.json")
    write_json(run | {"k": 1, "token": "all"}, tmp_path / "probe" / "run.json")
    probe = open_probe(tmp_path / "probe")
    found = Readings.of([probe])
    assert (found.k, found.token) == (1, "all")
    assert (Readings.of([probe], k=10).k, Readings.of([probe], token="first").token) == (10, "first")
    strict = statistics.occurrence(probe.records, k=1, token="all")
    assert (
        probe.occurrence().equals(strict) and probe.occurrence()["lof"].to_list() == strict["lof"].to_list()
    )
    assert probe.occurrence(k=10, token="first").equals(
        statistics.occurrence(probe.records, k=10, token="first")
    )


@pytest.mark.parametrize("rule", ["first", "all"])
def test_facts_that_are_read_and_drawn_in_parts_tell_the_same(tmp_path, monkeypatch, rule):
    """What a large probe is read by: few facts at a time, and draws that lie on the disk."""
    probe = write_probe(tmp_path / "own", {"base": 7, "s1": 4}, summary=False)
    whole = compare([probe], token=rule, draws=200).tables
    entry = summary_of(Readings.of([probe], token=rule, draws=200))
    monkeypatch.setattr(reading, "_AT_ONCE", 3)
    monkeypatch.setattr(intervals, "_HELD", 100)
    _resamples.cache_clear()
    parts = compare([probe], token=rule, draws=200).tables
    assert isinstance(Readings.of([probe], draws=200).resamples().counts, io.IOBase)
    # The sum of an answer's log-probabilities is rounded in another order.
    for name, table in whole.items():
        assert_frame_equal(parts[name], table, abs_tol=1e-5)
    assert summary_of(Readings.of([probe], token=rule, draws=200)) == entry
    _resamples.cache_clear()


def test_parts_that_end_at_different_depths_are_joined_at_the_deepest():
    keys = {"checkpoint": "a", "token": 0, "log_prob": -1.0, "entropy": 2.0}
    rows = [
        {**keys, "factoid": f, "depth": d, "rank": d}
        for f, last in (("x", 1), ("y", 3))
        for d in range(last + 1)
    ]
    frame = pl.DataFrame(rows, schema_overrides={"rank": pl.Int32})
    whole = next(iter(trajectories(frame, token="first")))
    parts = [next(iter(trajectories(frame.filter(factoid=name), token="first"))) for name in ("x", "y")]
    joined = Trajectories.joined(parts)
    assert joined.factoids.tolist() == ["x", "y"]
    for name in ("rank", "log_prob", "entropy"):
        assert np.array_equal(getattr(joined, name), getattr(whole, name), equal_nan=True)


def test_no_room_for_draws_is_said_in_a_line(monkeypatch, tmp_path):
    monkeypatch.setattr(intervals, "_HELD", 100)
    monkeypatch.setattr(intervals.tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(MemprobeError, match=r"200 draws of 10 factoids take 0\.0 GB of a folder"):
        Resamples.of(10, draws=200)


@pytest.mark.parametrize(
    ("label", "step"),
    [
        ("run@200", 200),
        ("folder/run@0", 0),
        ("step-200", 200),
        ("a/checkpoint-50", 50),
        ("owner/name@step143000", 143000),
        ("global_step=7", 7),
        ("owner/name@3e5bc81c0ffee", None),
        ("owner/name@94f1a2b/deep", None),
        ("owner/name@2024-05-01", None),
        ("owner/name@1.5", None),
        ("footstep2", None),
        ("base", None),
    ],
)
def test_a_revision_that_begins_with_digits_is_no_step(label, step):
    assert step_of(label, {}) == step
    assert step_of(label, {"step": 9}) == 9


def weights_of(label):
    """Fingerprint of the synthetic checkpoint of that label."""
    return hashlib.sha256(label.encode()).hexdigest()


@pytest.mark.parametrize("named", ["as base", "as parent of stage 1"])
def test_a_checkpoint_of_other_weights_than_manifests_name_is_no_base_model(tmp_path, named):
    manifests = {"s1": dict(STAGES["s1"], parent={"fingerprint": weights_of("start")})}
    if named == "as base":
        last = dict(STAGES["s2b"], parent={"fingerprint": weights_of("s1")})
        manifests = {"s2b": last | {"base": {"fingerprint": weights_of("start")}}}
    depths = dict.fromkeys(manifests, 5.0)
    other = write_probe(tmp_path / "other", depths | {"other": 4}, manifests=manifests, summary=False)
    readings = Readings.of([other], draws=200)
    assert readings.base is None and "base" not in readings.controls(*manifests)
    [note] = [note for note in readings.notes if "No base model" in note]
    assert note.startswith("No base model is here: other is of other weights") and "--base LABEL" in note
    declared = Readings.of([other], base="other", draws=200)
    assert declared.base.label == "other" and not any("No base model" in note for note in declared.notes)
    # Not the only one without a manifest, and found by its weights.
    both = depths | {"other": 4, "start": 6}
    whole = Readings.of([write_probe(tmp_path / "both", both, manifests=manifests, summary=False)], draws=200)
    assert whole.base.label == "start" and not any("No base model" in note for note in whole.notes)


def test_a_run_that_goes_on_from_another_s_checkpoint_has_that_one_s_base_model(tmp_path):
    manifests = {
        "s1": dict(STAGES["s1"], base={"fingerprint": weights_of("start")}),
        "on": dict(STAGES["s1"], arm="kl", base={"fingerprint": weights_of("s1")}),
    }
    for labels, wanted in ((["s1", "on"], "s1"), (["on", "s1", "start"], "start")):
        path = tmp_path / wanted
        found = Readings.of(
            [write_probe(path, dict.fromkeys(labels, 5.0), manifests=manifests, summary=False)], draws=200
        )
        assert found.base.label == wanted
