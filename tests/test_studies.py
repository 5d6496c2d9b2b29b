"""What is found in directories, and the tables of training runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from memprobe.errors import MemprobeError
from memprobe.files import short_names, write_json, write_text
from memprobe.studies import open_study
from tests.probes import write_probe


def write_stage(folder: Path, scores: dict[str, tuple[float, float, float]], *, steps: int = 3) -> None:
    sets = {
        name: {
            "kind": "factoids",
            "metric": "exact_match",
            "n": 16,
            "scores": {
                "exact_match": {"value": value, "low": low, "high": high},
                "loss": {"value": 1 - value, "low": None, "high": None},
            },
            "rows": [],
        }
        for name, (value, low, high) in scores.items()
    }
    write_json({"schema": 1, "stage_name": folder.name, "sets": sets}, folder / "evaluation.json")
    write_metrics(folder / "metrics.jsonl", steps)


def write_metrics(path: Path, steps: int, torn: str = "") -> None:
    lines = [
        {"step": step, "epoch": step / 2, "loss": 3.0 / step, "grad_norm": 1, "learning_rate": 1e-4,
         "tokens": 100 * step, "exact": None if step == 1 else 0.5}
        for step in range(1, steps + 1)
    ]  # fmt: skip
    write_text("".join(json.dumps(line) + "\n" for line in lines) + torn, path)


@pytest.fixture
def study(tmp_path):
    for arm, seed in (("none", 0), ("remix(data=self, stages=1)", 1)):
        run = tmp_path / "runs" / arm[:5]
        write_text(f'arm = "{arm}"\nseed = {seed}\n', run / "recipe.toml")
        write_stage(run / "1-kvr", {"1-kvr": (1.0, 0.8, 1.0)})
        write_stage(run / "2-known", {"1-kvr": (0.25, 0.1, 0.5), "2-known": (1.0, 0.8, 1.0)}, steps=2)
    write_probe(tmp_path / "probes" / "one", {"base": 4}, n=4)
    write_json({}, tmp_path / "compared" / "comparison.json")
    return tmp_path


def test_everything_below_is_found_in_order_of_path(study):
    found = open_study([study])
    assert [probe.path.name for probe in found.probes] == ["one"]
    assert [(run.name, run.arm, run.seed) for run in found.runs] == [
        ("none", "none", 0),
        ("remix", "remix(data=self, stages=1)", 1),
    ]
    assert [(stage.number, stage.name) for stage in found.runs[0].stages] == [(1, "kvr"), (2, "known")]
    assert found.comparisons == [study / "compared" / "comparison.json"]
    assert len(open_study([study, study / "runs"]).runs) == 2  # once each


def test_evaluations_are_those_of_the_files(study):
    table = open_study([study]).evaluations()
    assert len(table) == 2 * (2 + 4)
    row = table.filter(run="none", stage=2, dataset="1-kvr", metric="exact_match").row(0, named=True)
    assert (row["value"], row["low"], row["high"], row["n"]) == (0.25, 0.1, 0.5, 16)
    assert (row["stage_name"], row["kind"], row["headline"]) == ("known", "factoids", True)
    assert table.filter(metric="loss", headline=True).is_empty()


def test_training_reads_stages_under_way_and_leaves_out_a_torn_line(study):
    state = study / "runs" / "none" / ".state"
    write_metrics(state / "3-pop" / "metrics.jsonl", 4, torn='{"step": 5, "lo')
    write_metrics(state / "2-known" / "metrics.jsonl", 9)  # left behind: the stage has ended
    table = open_study([study]).training().filter(run="none")
    assert table.group_by("stage", maintain_order=True).len().rows() == [(1, 3), (2, 2), (3, 4)]
    assert table.filter(stage=3)["loss"].to_list() == [3.0, 1.5, 1.0, 0.75]
    assert table["exact"].null_count() == 3
    write_text("no json\n{}\n", state / "3-pop" / "metrics.jsonl")
    with pytest.raises(MemprobeError, match=r"metrics\.jsonl, line 1"):
        open_study([study]).training()


def test_the_loss_of_the_data_is_known_of_every_step_with_a_penalty_or_without(study):
    lines = [
        {"step": 1, "loss": 3.0},
        {"step": 2, "loss": 700.0, "data_loss": 2.0, "penalty": 698.0, "own_loss": 1.5},
    ]
    state = study / "runs" / "none" / ".state" / "3-pop" / "metrics.jsonl"
    write_text("".join(json.dumps(line) + "\n" for line in lines), state)
    table = open_study([study]).training().filter(run="none", stage=3)
    told = table.select("loss", "data_loss", "penalty", "own_loss").rows()
    assert told == [(3.0, 3.0, None, None), (700.0, 2.0, 698.0, 1.5)]


def test_a_run_in_its_first_stage_is_a_run(tmp_path):
    write_text("seed = 0\n", tmp_path / "recipe.toml")
    write_metrics(tmp_path / ".state" / "1-kvr" / "metrics.jsonl", 2)
    found = open_study([tmp_path])
    assert len(found.training()) == 2
    assert found.evaluations().is_empty()


def test_checkpoints_and_hidden_folders_are_not_searched(study):
    write_probe(study / "runs" / "none" / ".cache" / "probe", {"a": 4}, n=4)
    write_json({}, study / "runs" / "none" / "1-kvr" / "memprobe.json")
    write_json({}, study / "runs" / "none" / "1-kvr" / "deep" / "comparison.json")
    found = open_study([study / "runs"])
    assert (found.probes, found.comparisons) == ([], [])


def test_what_a_link_leads_to_is_found_once_and_where_it_lies(study, tmp_path_factory):
    apart = tmp_path_factory.mktemp("apart")
    write_probe(apart / "deep" / "two", {"base": 4}, n=4)
    (study / "a-link").symlink_to(apart, target_is_directory=True)
    (study / "again").symlink_to(apart / "deep" / "two", target_is_directory=True)
    (study / "a-probe").symlink_to("probes/one", target_is_directory=True)
    for circle in ("..", ".", "probes"):
        (study / "probes" / f"to{circle}").symlink_to(Path("..") / circle, target_is_directory=True)
    (study / "gone").symlink_to("nowhere")
    (study / "circle").symlink_to("circle")
    found = open_study([study])
    assert len(found.probes) == 2 and len(found.runs) == 2 and len(found.comparisons) == 1
    assert found.probes[1].path == study / "probes" / "one"
    assert found.probes[0].path.resolve() == apart / "deep" / "two"
    named = open_study([study / "a-probe", study]).probes
    assert {probe.path.name for probe in named} == {"a-probe", "two"}


def test_what_is_missing_or_broken_is_said(study, tmp_path):
    with pytest.raises(MemprobeError, match="no such directory"):
        open_study([study / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(MemprobeError, match="a study holds probe directories"):
        open_study([tmp_path / "empty"])
    write_json({"sets": {"1-kvr": {}}}, study / "runs" / "none" / "1-kvr" / "evaluation.json")
    with pytest.raises(MemprobeError, match=r"evaluation\.json: sets\.1-kvr\.kind: missing"):
        open_study([study]).evaluations()
    for name, value in (("exact_match", 1.5), ("rouge_l", -0.1), ("perplexity", 1e308)):
        evaluated = {"kind": "factoids", "metric": name, "n": 4, "scores": {name: {"value": value}}}
        write_json({"sets": {"1-kvr": evaluated}}, study / "runs" / "none" / "1-kvr" / "evaluation.json")
        with pytest.raises(MemprobeError, match=r"evaluation\.json: sets\.1-kvr\.scores.*is no s(hare|core)"):
            open_study([study]).evaluations()
    write_text("seed = \n", study / "runs" / "none" / "recipe.toml")
    with pytest.raises(MemprobeError, match=r"recipe\.toml: cannot be read as TOML"):
        open_study([study])


def test_a_run_that_a_longer_one_goes_on_from_is_not_told_twice(tmp_path):
    for name in ("prefix", "longer", "apart"):
        write_text('base = "x"\n', tmp_path / name / "recipe.toml")
    for run in ("prefix", "apart"):
        write_stage(tmp_path / run / "1-a", {"1-a": (1.0, 0.9, 1.0)})
    (tmp_path / "longer" / "1-a").symlink_to(tmp_path / "prefix" / "1-a", target_is_directory=True)
    assert [run.name for run in open_study([tmp_path]).runs] == ["apart", "longer", "prefix"]
    write_stage(tmp_path / "longer" / "2-b", {"2-b": (1.0, 0.9, 1.0)})
    assert [run.name for run in open_study([tmp_path]).runs] == ["apart", "longer"]
    for run in ("prefix", "longer"):  # the base model's scores are each run's own files
        write_stage(tmp_path / run / "0-base", {"1-a": (0.0, 0.0, 0.1)})
    assert [run.name for run in open_study([tmp_path]).runs] == ["apart", "longer"]


def test_short_names_are_as_long_as_they_must_be():
    paths = [Path("/a/x/run"), Path("/a/y/run"), Path("/a/z")]
    assert short_names(paths) == ["x/run", "y/run", "z"]
