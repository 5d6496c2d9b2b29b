"""Results of other tools: what their own exports say, fact by fact, and what compare makes of them."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from memprobe.compare import compare
from memprobe.compare.outcomes import compare_outcomes
from memprobe.errors import MemprobeError
from memprobe.locks import one_process
from memprobe.probes import table_file
from memprobe.results import directory, open_results, read_evaluations, read_one, write_results
from memprobe.results.inspect_logs import _opened
from tests.disk import contents
from tests.elsewhere import elsewhere
from tests.exports.make import FACTS, SAID
from tests.probes import write_probe

EXPORTS = Path(__file__).parent / "exports"
FREE, CHOSEN = "made_up_rivers", "made_up_choices"


def known(directory, label: str) -> str:
    table = directory.outcomes(label)
    return "".join(sorted(table.filter(table["exact_match"])["factoid"]))


@pytest.mark.parametrize(("task", "metric"), [(FREE, "exact_match"), (CHOSEN, "acc")])
def test_samples_of_the_harness_say_which_facts_are_known(tmp_path, task, metric):
    found = {label: read_one(EXPORTS / "lm_eval" / label, task=task) for label in SAID}
    written = write_results(found, tmp_path / "out")
    assert {label: known(written, label) for label in SAID} == SAID
    assert [tuple(row) for row in written.factoids.select("id", "prompt", "answer").iter_rows()] == FACTS
    assert written.about["checkpoints"]["base"]["metric"] == metric
    said = dict(written.outcomes("tuned").select("factoid", "prediction").iter_rows())
    assert said["a"] == "Lunn" and said["b"] != "Brack"


@pytest.mark.parametrize("kind", ["eval", "json"])
def test_logs_of_inspect_are_read_alike_whichever_kind(tmp_path, kind):
    found = {label: read_one(EXPORTS / "inspect" / f"{label}.{kind}") for label in SAID}
    assert all(sorted(one.scores) == ["includes", "match"] for one in found.values())
    # Fact b was right in one of two epochs, fact d of the tuned model failed in both.
    assert found["base"].means("match") == {"a": 1.0, "b": 0.5, "c": 0.0, "d": 1.0}
    assert found["tuned"].means("match") == {"a": 1.0, "b": 0.0, "c": 0.0}
    assert "went away" in found["tuned"].errors["d"]
    with pytest.raises(MemprobeError, match="name one metric"):
        write_results(found, tmp_path / "out")
    with pytest.raises(MemprobeError, match=r"other than 0 and 1 \(0.5\)"):
        write_results(found, tmp_path / "out", metric="match")
    written = write_results(found, tmp_path / "out", metric="match", at_least=0.5)
    assert known(written, "base") == "abd" and known(written, "tuned") == "a"
    (failed,) = written.outcomes("tuned").filter(factoid="d").to_dicts()
    assert failed["exact_match"] is None and "went away" in failed["error"]


def unlearned(folder: Path, probabilities: list[float], rouge: list[float]) -> Path:
    """A file in OpenUnlearning's schema."""
    texts = [
        {
            "rouge1_recall": value,
            "rougeL_recall": value,
            "input": prompt,
            "ground_truth": answer,
            "generation": answer if value == 1 else "No",
        }
        for value, (_, prompt, answer) in zip(rouge, FACTS, strict=True)
    ]
    log = {
        "forget_quality": {"agg_value": 0.2},
        "forget_Q_A_Prob": {
            "agg_value": float(np.mean(probabilities)),
            "value_by_index": {
                str(i): {"prob": p, "avg_loss": -np.log(p)} for i, p in enumerate(probabilities)
            },
        },
        "forget_Q_A_PERT_Prob": {
            "agg_value": 0.1,
            "value_by_index": {str(i): {"prob": [0.1, 0.3], "avg_loss": [2.3, 1.2]} for i in range(4)},
        },
        "forget_Q_A_ROUGE": {"agg_value": 0.5, "value_by_index": dict(enumerate(texts))},
    }
    folder.mkdir(parents=True)
    (folder / "TOFU_EVAL.json").write_text(json.dumps(log))
    return folder


def test_evaluations_of_openunlearning_by_row(tmp_path):
    folder = unlearned(tmp_path / "saves" / "npo", [0.9, 0.2, 0.8, 0.5], [1.0, 0.0, 0.5, 1.0])
    names = {one.task for one in read_evaluations(folder)}
    assert names == {
        "forget_Q_A_Prob",
        "forget_Q_A_PERT_Prob",
        "forget_Q_A_ROUGE",
    }  # the quality is of the whole
    rouge = read_one(folder, task="forget_Q_A_ROUGE")
    assert rouge.model == "npo" and rouge.factoids["1"].answer == "Brack" and rouge.predictions["0"] == "Lunn"
    written = write_results({"npo": rouge}, tmp_path / "out", metric="rougeL_recall", at_least=1.0)
    assert known(written, "npo") == "03"
    several = read_one(folder, task="forget_Q_A_PERT_Prob")
    assert several.means("prob")["0"] == pytest.approx(0.2)


def with_no_number(tool: str, folder: Path) -> Path:
    """A tool's results in which one number is NaN, as its own writer leaves it."""
    folder.mkdir(parents=True)
    if tool == "the harness":
        (folder / "samples_t_2026-01-01T0.jsonl").write_text(
            sample(0, True) + sample(1, True, exact_match=np.nan)
        )
        of_all = {"model_name": "npo", "results": {"t": {"exact_match_stderr,none": np.nan}}}
        (folder / "results_2026-01-01T0.json").write_text(json.dumps(of_all))
        return folder
    if tool == "OpenUnlearning":
        rows = {"0": {"prob": 1.0}, "1": {"prob": np.nan}}
        log = {"forget_Q_A_Prob": {"agg_value": np.nan, "value_by_index": rows}}
        (folder / "TOFU_EVAL.json").write_text(json.dumps(log))
        return folder
    log = json.loads((EXPORTS / "inspect" / "base.json").read_text())
    log["eval"]["model"], log["samples"] = "npo", log["samples"][:2]
    for one, value in zip(log["samples"], (1.0, np.nan), strict=True):
        one["scores"] = {"match": {"value": value}}
    (folder / "log.json").write_text(json.dumps(log))
    return folder


@pytest.mark.parametrize("tool", ["the harness", "OpenUnlearning", "Inspect"])
def test_a_score_that_is_no_number_is_none_of_its_fact_alone(tmp_path, tool):
    found = read_one(with_no_number(tool, tmp_path / "npo"))
    assert found.model == "npo" and len(found.factoids) == 2
    (scores,) = found.scores.values()
    assert list(scores.values()) == [[1.0]]
    written = write_results({"npo": found}, tmp_path / "out")
    assert written.outcomes("npo")["exact_match"].to_list() == [True, None]


def test_compare_pairs_fact_by_fact(cli, tmp_path):
    results, tables = tmp_path / "results", tmp_path / "tables"
    paths = [f"{label}={EXPORTS / 'lm_eval' / label}" for label in SAID]
    code, text, err = cli("import", *paths, "--task", FREE, "--out", results)
    assert code == 0 and "base: 3 of 4 facts known" in text, err
    code, text, err = cli("compare", results, "--draws", 500, "--out", tables, "--full")
    assert code == 0 and "base recalls 75.0%" in text, err
    found = json.loads((tables / "outcomes.json").read_text())["tables"]
    assert {row["path"]: row["n"] for row in found["fates"]} == {"1→1": 2, "1→0": 1, "0→1": 0, "0→0": 1}
    (row,) = found["differences"]
    assert (
        row["n"] == 4 and row["difference"] == -0.25 and row["p"] == 1.0
    )  # one fact that moved proves nothing
    assert cli("show", tables, "--full")[1] == text
    code, text, _ = cli("compare", results, "--draws", 500, "--json")
    assert code == 0 and json.loads(text)["tables"] == found


def test_options_about_depths_are_refused_of_answers_alone(cli, tmp_path):
    results = tmp_path / "results"
    assert cli("import", f"base={EXPORTS / 'lm_eval' / 'base'}", "--task", FREE, "--out", results)[0] == 0
    given = {
        "--pairs": "all",
        "--net": "base",
        "--by": "relation",
        "--base": "base",
        "--lens": "own",
        "-k": 7,
    }
    given |= {"--position": "answer", "--token": "all", "--fixed-readout": results}
    for option, value in given.items():
        code, text, err = cli("compare", results, option, value)
        assert (code, text) == (2, "") and "hold answers alone" in err, option
        assert option in err or option == "-k", err


def test_dashboard_and_figures_show_other_tools_results(cli, tmp_path):
    results, stored = tmp_path / "results", tmp_path / "tables"
    paths = [f"{name}={EXPORTS / 'lm_eval' / name}" for name in ("base", "tuned")]
    assert cli("import", *paths, "--task", FREE, "--out", results)[0] == 0
    assert cli("compare", results, "--out", stored)[0] == 0
    (verdict, against) = compare_outcomes([results]).verdict()
    for there in (results, stored):
        code, _, err = cli("dashboard", there, "--out", tmp_path / "page.html")
        assert code == 0 and "1 result of other tools" in err, err
        page = (tmp_path / "page.html").read_text(encoding="utf-8")
        (held,) = json.loads(
            re.search(r'id="report-data">(.*?)</script>', page, re.DOTALL)[1].replace("\\u003c", "<")
        )["comparisons"]
        assert held["answer"] == [verdict, against]
        assert held["table"][1][0] == ["", "exact match", "1→1", "1→0", "0→1", "0→0"]
        assert [title for _, title in held["figures"]] == ["exact match"]
        code, _, err = cli("figures", there, "--out", tmp_path / "figures", "--format", "svg")
        assert code == 0, err
        drawn = json.loads(
            next((tmp_path / "figures").glob("differences-*.json")).read_text(encoding="utf-8")
        )
        row = compare_outcomes([results]).tables["differences"].filter(statistic="exact").row(0, named=True)
        assert drawn["data"]["difference"] == [row["difference"]] and drawn["inputs"][0]["kind"] == "outcomes"
        shutil.rmtree(tmp_path / "figures")


def test_arms_over_seeds_and_paths_through_stages(tmp_path):
    rng = np.random.default_rng(0)
    made, arms = {}, {}
    for arm, share in (("naive", 0.2), ("replay", 0.7)):
        for seed in range(4):
            for stage, level in (("1", 0.95), ("2", share)):
                label = f"{arm}-{seed}-{stage}"
                file = tmp_path / f"samples_t_2026-01-0{seed + 1}T{stage}.jsonl"
                file.write_text("".join(sample(i, rng.random() < level) for i in range(80)))
                made[label], arms[label] = read_one(file), (arm, str(seed), stage)
    result = compare_outcomes([write_results(made, tmp_path / "out").path], arms=arms, draws=200)
    (row,) = result.tables["arm_differences"].filter(stage="2").to_dicts()
    by_hand = [
        np.mean(
            [made[f"{arm}-{seed}-2"].means("exact_match")[str(i)] for seed in range(4) for i in range(80)]
        )
        for arm in ("naive", "replay")
    ]
    assert row["difference"] == pytest.approx(by_hand[1] - by_hand[0])
    assert row["low"] < row["difference"] < row["high"] and row["significant"]
    path = result.tables["paths"].filter(arm="naive", seed="0")
    assert path["n"].sum() == 80 and path["stages"][0] == "1 → 2"
    assert any("replay against naive after stage 2" in line for line in result.verdict())
    assert any(
        note.startswith("Nothing says which checkpoint naive-0-1 was trained from") for note in result.notes
    )


@pytest.mark.parametrize("seeds", [3, 6])
def test_arms_of_probes_are_paired_as_compare_pairs_them(seeds, tmp_path):
    """Runs of one seed start from one checkpoint, whichever command reads them; of other tools nobody knows."""
    rng, deep, lost, made = np.random.default_rng(0), {}, {}, {}

    def add(label, arm, seed, stage, parent, never):
        deep[label], lost[label] = 4.0, never
        origin = {"stages": [{"index": 1, "hash": "rows"}], "parent": {"fingerprint": parent}}
        made[label] = {"arm": arm, "seed": seed, "stage": stage} | origin

    for seed in range(seeds):
        add(f"first-{seed}", "none", seed, 1, "base", 0.0)
        parent, share = hashlib.sha256(f"first-{seed}".encode()).hexdigest(), rng.uniform(0.2, 0.7)
        add(f"naive-{seed}", "none", seed, 2, parent, share)
        add(f"remix-{seed}", "remix(data=generic, stages=2)", seed, 2, parent, share + 0.12)
    probe = write_probe(tmp_path / "p", deep, manifests=made, never=lost, tokens=(1,))
    wanted = {"stage": "2", "statistic": "exact"}
    alone = compare([probe], reference="naive-0", draws=200).tables["arm_differences"].filter(**wanted)
    found = compare_outcomes([probe], reference="naive-0", draws=200)
    answers = found.tables["arm_differences"].filter(**wanted)
    assert answers["in_common"].item() == "stage before" and not any(
        "Nothing says" in one for one in found.notes
    )
    assert answers.drop("detectable").equals(alone.drop("detectable"), null_equal=True)
    assert answers["detectable"].item() == pytest.approx(alone["detectable"].item())


def sample(i: int, right: bool, **more) -> str:
    row = {
        "doc_id": i,
        "doc": {"id": str(i)},
        "target": f"answer {i}",
        "arguments": {"gen_args_0": {"arg_0": f"question {i}", "arg_1": {"until": ["\n"]}}},
        "filtered_resps": ["x"],
        "filter": "none",
        "metrics": ["exact_match"],
        "doc_hash": f"{i:064}",
        "exact_match": float(right),
    }
    return json.dumps(row | more) + "\n"


def test_a_probe_and_another_tool_on_the_same_facts(cli, tiny_checkpoint, tmp_path):
    facts = tmp_path / "facts.jsonl"
    facts.write_text("".join(json.dumps({"id": i, "prompt": p, "answer": a}) + "\n" for i, p, a in FACTS))
    probe = tmp_path / "probe"
    assert cli("layers", "--ckpt", f"tiny={tiny_checkpoint}", "--factoids", facts, "--out", probe)[0] == 0
    written = write_results({"base": read_one(EXPORTS / "lm_eval" / "base", task=FREE)}, tmp_path / "results")
    result = compare_outcomes([written.path, probe], draws=200)
    assert result.tables["outcomes"]["exact"].to_list() == [0.75, 0.0] and not result.notes


@pytest.mark.parametrize(("target", "answer"), [("1", "Osk"), ("²", "²"), ("٣", "٣"), ("7", "7")])
def test_a_choice_is_named_by_its_number_in_ordinary_digits(target, answer, tmp_path):
    file = tmp_path / "samples_t_2026-01-01T0.jsonl"
    asked = {f"gen_args_{i}": {"arg_0": "q", "arg_1": one} for i, one in enumerate(("Lunn", "Osk"))}
    file.write_text(sample(0, True, target=target, arguments=asked, filtered_resps=[["-1.0"], ["-2.0"]]))
    write_results({"x": read_one(file)}, tmp_path / "out")
    assert open_results(tmp_path / "out").factoids["answer"].to_list() == [answer]


def test_labels_join_and_other_facts_are_refused(tmp_path):
    out = tmp_path / "out"
    write_results({"base": read_one(EXPORTS / "lm_eval" / "base", task=FREE)}, out)
    write_results({"tuned": read_one(EXPORTS / "lm_eval" / "tuned", task=FREE)}, out)
    assert open_results(out).checkpoints == ["base", "tuned"]
    other = tmp_path / "samples_t_2026-01-01T0.jsonl"
    other.write_text(sample(0, True, doc={"id": "a"}))
    with pytest.raises(MemprobeError, match=r"fact 'a' has the answer 'answer 0', in .* 'Lunn'"):
        write_results({"x": read_one(other)}, out)
    other.write_text(sample(7, True))
    with pytest.raises(MemprobeError, match="no fact in common"):
        write_results({"x": read_one(other)}, out)
    assert open_results(out).checkpoints == ["base", "tuned"]


def scored(folder: Path, values: list[float], metric: str = "exact_match", task: str = "t") -> Path:
    """Samples of one task under one metric."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"samples_{task}_2026-01-01T0.jsonl"
    rows = [sample(i, True, metrics=[metric], **{metric: value}) for i, value in enumerate(values)]
    file.write_text("".join(rows))
    return folder


def test_what_is_judged_by_another_measure_is_said(cli, tmp_path):
    """Metric, limit and task; when it is imported, and when it is compared."""
    out, exact = tmp_path / "out", scored(tmp_path / "exact", [1, 0, 1])
    assert "not judged alike" not in cli("import", f"a={exact}", f"b={exact}", "--out", out)[2]
    assert compare_outcomes([out]).notes == []
    for label, more, words in (
        (
            "f1",
            {"metric": "f1"},
            "a, b by exact_match of task t in lm-evaluation-harness; c by f1 of at least 0.5",
        ),
        ("limit", {}, "c by exact_match of at least 0.5 of task t"),
        ("task", {"task": "other"}, "c by exact_match of at least 0.5 of task other"),
    ):
        folder = scored(tmp_path / label, [1, 0.4, 1], **more)
        given = ["--metric", more.get("metric", "exact_match"), "--at-least", 0.5, "--out", out, "--replace"]
        code, _, err = cli("import", f"c={folder}", *given)
        assert code == 0 and "not judged alike" in err and words in err, err
        code, _, err = cli("compare", out)
        assert code == 0 and "not judged alike" in err
        (note,) = compare_outcomes([out]).notes
        assert words in note
    alone = write_results({"x": read_one(tmp_path / "f1")}, tmp_path / "alone", metric="f1", at_least=0.5)
    assert compare_outcomes([alone.path]).notes == [
        "Here exact match stands for f1 of at least 0.5 of task t in lm-evaluation-harness, the measure of every "
        "checkpoint."
    ]


def test_a_label_that_is_held_is_replaced_only_where_that_is_asked(cli, tmp_path):
    out = tmp_path / "out"
    scores = [
        ([1, 0, 1], {}),
        ([1, 1, 1], {}),
        ([1, 0.4, 1], {"metric": "f1"}),
        ([1, 0, 1], {"task": "other"}),
    ]
    folders = [scored(tmp_path / str(i), values, **more) for i, (values, more) in enumerate(scores)]
    given = ["--at-least", 0.5, "--out", out]
    assert cli("import", f"a={folders[0]}", *given)[0] == 0
    before = contents(out)
    assert cli("import", f"a={folders[0]}", *given)[0] == 0 and contents(out) == before
    for folder in folders[1:]:
        code, _, err = cli("import", f"b={folders[0]}", f"a={folder}", *given)
        assert code == 2 and "another result under the label 'a'" in err and "--replace" in err, err
        assert contents(out) == before
        assert cli("import", f"a={folder}", *given, "--replace")[0] == 0
        assert open_results(out).outcomes("a")["score"].to_list() == list(
            read_one(folder).means(open_results(out).measure("a").metric).values()
        )
        assert cli("import", f"a={folders[0]}", *given, "--replace")[0] == 0 and contents(out) == before


def test_show_names_the_command_that_shows_results(cli, tmp_path):
    out = tmp_path / "out of a tool"
    assert cli("import", f"a={scored(tmp_path / 'a', [1, 0, 1])}", "--out", out)[0] == 0
    code, _, err = cli("show", out)
    assert code == 2 and f"memprobe compare '{out}' shows them" in err and len(err.splitlines()) == 1


def test_what_is_replaced_leaves_none_of_its_facts(cli, tmp_path):
    """Of what a label was asked before, only what others were asked, too, stays; ids may then stand for other facts."""
    out = tmp_path / "out"
    old = scored(tmp_path / "old", [1, 0, 1, 1])
    new, other = scored(tmp_path / "new", [1, 1]), scored(tmp_path / "other", [0, 0, 1])
    given = ["--out", out, "--replace"]
    assert cli("import", f"a={old}", *given)[0] == 0 and len(open_results(out).factoids) == 4
    assert cli("import", f"a={new}", *given)[0] == 0 and len(open_results(out).factoids) == 2
    assert cli("import", f"b={other}", *given)[0] == 0 and len(open_results(out).factoids) == 3
    assert cli("import", f"b={new}", *given)[0] == 0 and len(open_results(out).factoids) == 2


@pytest.mark.parametrize("limit", ["nan", "inf", "-inf"])
def test_a_limit_is_a_number_and_a_refusal_leaves_nothing(cli, tmp_path, limit):
    folder, out = scored(tmp_path / "base", [1, 0.5, 0]), tmp_path / "out"
    code, _, err = cli("import", f"x={folder}", "--out", out, "--at-least", limit)
    assert code == 2 and f"--at-least {limit}: give a finite number" in err and len(err.splitlines()) == 1
    assert not out.exists()
    assert cli("import", f"x={folder}", "--out", out, "--at-least", 0.5)[0] == 0


def test_a_killed_import_goes_on(cli, tmp_path, monkeypatch):
    folder, out = scored(tmp_path / "base", [1, 0, 1]), tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(directory, "write_json", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert cli("import", f"x={folder}", "--out", out)[0] == 130
    assert {file.name for file in out.iterdir()} == {"factoids.parquet", "outcomes"}
    assert cli("import", f"x={folder}", "--out", out)[0] == 0 and open_results(out).checkpoints == ["x"]
    (out / "notes.txt").write_text("mine")
    (out / "results.json").unlink()
    code, _, err = cli("import", f"x={folder}", "--out", out)
    assert code == 2 and "not a results directory" in err


def test_what_a_directory_lost_comes_back_with_those_it_is_of(cli, tmp_path):
    """What was asked is of all its checkpoints, outcomes are of one."""
    folders = {name: scored(tmp_path / name, [1, 0, 1]) for name in "abc"}
    out = tmp_path / "out"
    assert cli("import", *(f"{name}={folders[name]}" for name in "ab"), "--out", out)[0] == 0
    before = contents(out)
    (out / "factoids.parquet").unlink()
    code, _, err = cli("compare", out)
    assert code == 2 and "factoids.parquet: missing" in err and "import a, b again" in err, err
    for names, missing in {"a": "b", "c": "a, b"}.items():
        code, _, err = cli("import", *(f"{name}={folders[name]}" for name in names), "--out", out)
        assert (
            code == 2 and f"import {missing} again in the same command" in err and len(err.splitlines()) == 1
        )
        assert not (out / "factoids.parquet").exists()
    assert cli("import", *(f"{name}={folders[name]}" for name in "ab"), "--out", out)[0] == 0
    assert contents(out) == before
    table_file(out, "b", "outcomes").unlink()
    code, _, err = cli("compare", out)
    assert code == 2 and ".parquet: missing" in err and "import b again" in err
    assert cli("import", f"b={folders['b']}", "--out", out)[0] == 0 and contents(out) == before


def test_a_folder_without_a_label_has_its_whole_name(cli, tmp_path):
    """What looks like a suffix is part of a folder's name, and none of a file's."""
    folder = scored(tmp_path / "model-0.5", [1, 0, 1])
    log = tmp_path / "run-0.5.eval"
    shutil.copyfile(EXPORTS / "inspect" / "base.eval", log)
    assert cli("import", folder, "--out", tmp_path / "out")[0] == 0
    assert open_results(tmp_path / "out").checkpoints == ["model-0.5"]
    given = ["--metric", "match", "--at-least", 0.5]
    assert cli("import", log, "--out", tmp_path / "logs", *given)[0] == 0
    assert open_results(tmp_path / "logs").checkpoints == ["run-0.5"]


def test_two_imports_into_one_folder_do_not_meet(cli, tmp_path):
    folder, out = scored(tmp_path / "base", [1, 0, 1]), tmp_path / "out"
    with elsewhere(one_process(out, "importing")):
        code, _, err = cli("import", f"x={folder}", "--out", out)
        assert code == 2 and "another process is importing here" in err and len(err.splitlines()) == 1
    assert cli("import", f"x={folder}", "--out", out)[0] == 0


def test_labels_and_paths_may_hold_the_sign_between_them(cli, tmp_path, monkeypatch):
    out = tmp_path / "out"
    folder = scored(tmp_path / "lr=1e-4" / "a", [1, 0, 1])
    given = [f"x={folder}", f"lr=1e-5={folder}", folder]
    assert cli("import", *given, "--out", out)[0] == 0
    assert open_results(out).checkpoints == ["x", "lr=1e-5", "a"]
    monkeypatch.chdir(folder)
    assert cli("import", ".", "--out", tmp_path / "here")[0] == 0
    assert open_results(tmp_path / "here").checkpoints == ["a"]
    for wrong, word in (
        ("=x", "write PATH or LABEL=PATH"),
        ("x=", "write PATH or LABEL=PATH"),
        ("x=no/y=z", "no/y=z"),
    ):
        code, _, err = cli("import", wrong, "--out", tmp_path / "none")
        assert code == 2 and word in err and len(err.splitlines()) == 1
    arms = {"x": "none", "lr=1e-5": "replay(ratio=0.1)", "a": "remix(data=kvr:8:test, stages=1)"}
    options = [part for label, arm in arms.items() for part in ("--arm", f"{label}={arm}:0:2")]
    code, text, err = cli("compare", out, *options, "--json")
    assert code == 0, err
    made = [
        tuple(row[key] for key in ("label", "arm", "seed", "stage"))
        for row in json.loads(text)["checkpoints"]
    ]
    assert made == [(label, arm, "0", "2") for label, arm in arms.items()]
    code, _, err = cli("compare", out, "--arm", "x=none:0", "--arm", "x=replay(ratio=0.1):1")
    assert code == 2 and "'x' is given twice" in err
    for wrong in ("x", "=none:0", "x=none", "x=:0", "x=none:0:1:2"):
        code, _, err = cli("compare", out, "--arm", wrong)
        assert code == 2 and "write LABEL=ARM:SEED" in err


def damaged(kind: str, tmp_path: Path) -> Path:
    source = EXPORTS / "inspect" / f"base.{kind}"
    file = tmp_path / f"torn.{kind}"
    content = bytearray(source.read_bytes())
    if kind == "eval":
        content[60] ^= 255  # within the first member
    else:
        content = content[: len(content) // 2]
    file.write_bytes(content)
    return file


@pytest.mark.parametrize("kind", ["eval", "json"])
def test_damaged_logs_are_named(cli, tmp_path, kind):
    file = damaged(kind, tmp_path)
    code, _, err = cli("import", file, "--out", tmp_path / "out")
    assert code == 2 and str(file) in err and len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"doc": {}}\n', ["line 1", "not a sample", "(it has no 'arguments')"]),
        ('{"doc": {}, "arguments": 3, "target": ""}\n', ["line 1", "not a sample", "have another form"]),
        ("not JSON\n", ["line 1", "not JSON"]),
        (sample(0, True) + sample(1, True, doc={"id": "0"}), ["line 2", "another question"]),
        (sample(0, True, metrics=["f1", "bleu"], f1=0.5, bleu=0.1), ["f1, bleu", "--metric"]),
        (sample(0, True, metrics=["f1"], f1=0.5), ["other than 0 and 1", "--at-least"]),
        ("", ["no score"]),
    ],
)
def test_bad_samples_are_one_line(cli, tmp_path, text, words):
    file = tmp_path / "samples_t_2026-01-01T0.jsonl"
    file.write_text(text)
    code, _, err = cli("import", file, "--out", tmp_path / "out")
    assert code == 2 and len(err.splitlines()) == 1, err
    assert all(word in err for word in words), err


def test_a_run_whose_samples_all_failed_says_why(cli, tmp_path):
    log = json.loads((EXPORTS / "inspect" / "base.json").read_text())
    for one in log["samples"]:
        one |= {"scores": {}, "error": {"message": "no network\nand more"}}
    file = tmp_path / "log.json"
    file.write_text(json.dumps(log))
    code, _, err = cli("import", file, "--metric", "match", "--out", tmp_path / "out")
    assert code == 2 and "no score of single facts; 4 of its samples failed, first no network" in err, err
    assert len(err.splitlines()) == 1


def test_what_is_no_result_is_refused(cli, tmp_path):
    code, _, err = cli("import", tmp_path, "--out", tmp_path / "out")
    assert code == 2 and "--log_samples" in err and "Inspect" in err and "OpenUnlearning" in err
    code, _, err = cli("import", EXPORTS / "lm_eval" / "base", "--out", tmp_path / "out")
    assert code == 2 and "--task" in err and FREE in err and CHOSEN in err


def test_a_document_without_an_id_has_its_hash(tmp_path):
    file = tmp_path / "samples_t_2026-01-01T0.jsonl"
    file.write_text(sample(3, True, doc={"question": "?"}))
    assert list(read_one(file).factoids) == ["0" * 16]


def test_exports_name_nothing_of_the_machine_that_made_them():
    for label in SAID:
        header, samples = _opened(EXPORTS / "inspect" / f"{label}.eval")
        text = json.dumps([header, *samples])
        assert "/root" not in text and "/tmp" not in text and "/home" not in text


@pytest.mark.parametrize(("tool", "module"), [("lm_eval", "lm_eval"), ("inspect", "inspect_ai")])
def test_the_tools_make_these_exports_today(tmp_path, tool, module):
    """Where they are installed, or stand in the folder MEMPROBE_TOOLS (pip install --target)."""
    elsewhere = os.environ.get("MEMPROBE_TOOLS", "")
    if importlib.util.find_spec(module) is None and not (Path(elsewhere) / module).is_dir():
        pytest.skip(f"{module} is not installed")
    root = str(Path(__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, *filter(None, [elsewhere])])}
    done = subprocess.run(
        [sys.executable, "-m", "tests.exports.make", str(tmp_path), tool],
        env=environment | {"HF_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    for label in SAID:
        if tool == "lm_eval":
            new, old = (read_one(top / tool / label, task=FREE) for top in (tmp_path, EXPORTS))
        else:
            new, old = (read_one(top / tool / f"{label}.eval") for top in (tmp_path, EXPORTS))
        assert (new.factoids, new.scores, new.errors) == (old.factoids, old.scores, old.errors)
