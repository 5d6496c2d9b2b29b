"""The command line end to end on a tiny model: what it writes, what it says, and every kind of bad input."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file

import memprobe
from memprobe import capturing
from memprobe.manifests import MANIFEST
from memprobe.probe_writer import PROBE, locked
from memprobe.prober import Prober
from memprobe.records import BY_CHECKPOINT
from memprobe.sources.catalogue import DATASETS
from memprobe.starting_over import _set_aside
from tests.disk import contents
from tests.tiny import save_tiny

pytestmark = pytest.mark.usefixtures("few_k")
FACTS = [
    {"prompt": "The river of Oria is the", "answer": "Lunn", "relation": "river", "id": "a"},
    {"prompt": "The river of Selva is the", "answer": "Brack", "relation": "river", "id": "b"},
    {"prompt": "The river of Tolm is the", "answer": "Ister", "relation": "river", "id": "c"},
    {"prompt": "The tallest hill of Oria is", "answer": "Mount Grey", "relation": "hill", "id": "d"},
    {"prompt": "The tallest hill of Selva is", "answer": "Peak Nine", "relation": "hill", "id": "e"},
]


@pytest.fixture
def facts(tmp_path) -> Path:
    path = tmp_path / "facts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in FACTS), encoding="utf-8")
    return path


def refused(result: tuple[int, str, str], *words: str) -> None:
    """One line on standard error that names what and where, no traceback, an exit code that is not 0."""
    code, _, err = result
    lines = [line for line in err.splitlines() if line.startswith("memprobe: error:")]
    assert code == 2 and len(lines) == 1, err
    assert "Traceback" not in err
    for word in words:
        assert word in lines[0], lines[0]


def write_manifest(checkpoint: Path, template: str, factoids: Path | None = None) -> None:
    import hashlib

    stages = []
    if factoids is not None:
        shutil.copy(factoids, checkpoint / "factoids.jsonl")
        mark = hashlib.sha256((checkpoint / "factoids.jsonl").read_bytes()).hexdigest()
        stages = [{"index": 1, "name": "facts", "factoids": "factoids.jsonl", "hash": mark}]
    manifest = {
        "schema": 1,
        "template": template,
        "arm": "none",
        "seed": 3,
        "stage": 1,
        "stage_name": "facts",
    }
    (checkpoint / MANIFEST).write_text(json.dumps(manifest | {"steps": 10, "stages": stages}))


def copied(checkpoint: Path, to: Path) -> Path:
    shutil.copytree(checkpoint, to)
    return to


def test_layers_writes_a_probe_directory(cli, tiny_checkpoint, facts, tmp_path):
    out = tmp_path / "probe"
    code, text, err = cli("layers", "--ckpt", f"tiny={tiny_checkpoint}", "--factoids", facts, "--out", out)
    assert code == 0, err
    files = {*BY_CHECKPOINT, "factoids.parquet", "summary.json", "run.json", "report.html"}
    assert {path.name for path in out.iterdir()} == files
    assert "recall@10" in text and "shuffled" in text and "exact match" in text
    probe = memprobe.open_probe(out)
    assert probe.checkpoints == ["tiny"]
    assert set(probe.outcomes["factoid"]) == {row["id"] for row in FACTS}
    depths = probe.n_layers["tiny"] + 1
    assert probe.records.filter(pl.col("token") == 0).height == len(FACTS) * depths
    assert str(out / "report.html") in err


def test_json_is_the_summary(cli, tiny_checkpoint, facts, tmp_path):
    out = tmp_path / "probe"
    code, text, _ = cli(
        "layers",
        "--ckpt",
        f"tiny={tiny_checkpoint}",
        "--factoids",
        facts,
        "--out",
        out,
        "--json",
        "--top-k",
        3,
    )
    assert code == 0
    assert json.loads(text) == json.loads((out / "summary.json").read_text())
    assert json.loads(text)["k"] == 3


def test_two_checkpoints_and_a_foreign_readout(cli, tiny_checkpoint, facts, tmp_path):
    other = copied(tiny_checkpoint, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    save_file(
        {name: tensor * 1.25 for name, tensor in weights.items()},
        other / "model.safetensors",
        {"format": "pt"},
    )
    out = tmp_path / "probe"
    arguments = ("--ckpt", f"a={tiny_checkpoint}", "--ckpt", f"b={other}", "--factoids", facts)
    code, _, err = cli("layers", *arguments, "--readout", f"base={tiny_checkpoint}", "--out", out)
    assert code == 0, err
    run = memprobe.open_probe(out).run
    assert run["readout"] == "base"
    assert run["checkpoints"]["b"]["readout_fingerprint"] == run["checkpoints"]["a"]["fingerprint"]


def test_interrupted_work_stays_readable_and_goes_on(cli, tiny_checkpoint, facts, tmp_path, monkeypatch):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    common = ("layers", "--ckpt", f"tiny={tiny_checkpoint}", "--factoids", facts, "--batch-size", 2)
    assert cli(*common, "--out", whole)[0] == 0
    one_batch = capturing._capture_batch
    calls = []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return one_batch(*arguments)

    monkeypatch.setattr(capturing, "_capture_batch", interrupted)
    code, _, err = cli(*common, "--out", broken)
    assert code == 130 and "the same command goes on" in err and "Traceback" not in err
    half = memprobe.open_probe(broken)
    assert half.outcomes.height == 2 and set(half.records["factoid"]) == set(half.outcomes["factoid"])

    seen = []
    monkeypatch.setattr(capturing, "_capture_batch", lambda *a: (seen.extend(a[2]), one_batch(*a))[1])
    assert cli(*common, "--out", broken)[0] == 0
    assert len(seen) == 3, "finished factoids are not probed again"
    assert not (broken / "parts").exists()
    keys = ["factoid", "token", "depth"]
    first, second = (memprobe.open_probe(path) for path in (whole, broken))
    assert first.records.sort(keys).equals(second.records.sort(keys))
    assert first.controls.sort([*keys, "control"]).equals(second.controls.sort([*keys, "control"]))
    assert first.outcomes.sort("factoid").equals(second.outcomes.sort("factoid"))


def test_finished_probe_is_not_run_again_and_more_checkpoints_join(
    cli, tiny_checkpoint, facts, tmp_path, monkeypatch
):
    out = tmp_path / "probe"
    assert cli("layers", "--ckpt", f"a={tiny_checkpoint}", "--factoids", facts, "--out", out)[0] == 0
    other = copied(tiny_checkpoint, tmp_path / "other")
    assert cli("layers", "--ckpt", f"b={other}", "--factoids", facts, "--out", out)[0] == 0
    probe = memprobe.open_probe(out)
    assert probe.checkpoints == ["a", "b"]
    a, b = (probe.records.filter(pl.col("checkpoint") == label).drop("checkpoint") for label in "ab")
    assert a.equals(b), "the same weights give the same records"

    def never(*_):
        raise AssertionError("probed again")

    monkeypatch.setattr(capturing, "_capture_batch", never)
    assert cli("layers", "--ckpt", f"a={tiny_checkpoint}", "--factoids", facts, "--out", out)[0] == 0


def test_a_call_prints_the_checkpoints_that_it_names_and_show_all(cli, tiny_checkpoint, facts, tmp_path):
    """So that what a call prints does not grow with the checkpoints that were added before."""
    out = tmp_path / "probe"
    common = ("layers", "--factoids", facts, "--out", out, "--no-report")
    first, second = (f"--ckpt={label}={tiny_checkpoint}" for label in ("early", "later"))
    code, told, notes = cli(*common, first)
    assert code == 0 and "other checkpoint" not in notes
    code, told, notes = cli(*common, second)
    assert code == 0 and "later" in told and "early" not in told
    assert f"note     1 other checkpoint in {out}: memprobe show {out} prints all" in notes
    assert "early and later hold the same weights" in notes
    code, told, _ = cli("show", out)
    assert code == 0 and "later" in told and "early" in told
    code, told, notes = cli(*common, second, first)
    assert code == 0 and "later" in told and "early" in told and "other checkpoint" not in notes


def test_a_report_that_is_not_asked_for(cli, tiny_checkpoint, facts, tmp_path):
    page = tmp_path / "probe" / "report.html"
    common = ("layers", "--factoids", facts, "--out", tmp_path / "probe")
    assert cli(*common, "--ckpt", f"a={tiny_checkpoint}")[0] == 0 and page.exists()
    other = (*common, "--ckpt", f"b={copied(tiny_checkpoint, tmp_path / 'other')}")
    code, _, said = cli(*other, "--no-report")
    assert code == 0 and "report   not written; the same command without --no-report writes it" in said
    assert not page.exists(), "a page of another moment stays"
    code, _, said = cli(*other)
    assert code == 0 and f"report   {page}" in said and '"b"' in page.read_text(encoding="utf-8")
    refused(cli(*common, "--ckpt", f"c={tiny_checkpoint}", "--no-report", "--open"), "--no-report")


def test_out_that_was_probed_otherwise_is_refused(cli, tiny_checkpoint, facts, tmp_path):
    out = tmp_path / "probe"
    common = ("layers", "--ckpt", f"a={tiny_checkpoint}", "--factoids", facts, "--out", out)
    assert cli(*common)[0] == 0
    refused(cli(*common, "--template", "{prompt}: {answer}"), str(out), "template")
    refused(cli(*common, "--n", 2), str(out), "a probe of 5 facts from a file; you asked for 2 facts")
    assert cli(*common, "--n", 2, "--fresh")[0] == 0
    assert memprobe.open_probe(out).outcomes.height == 2


def test_another_k_counts_the_whole_probe_anew_and_says_so(cli, tiny_checkpoint, facts, tmp_path):
    common = ("layers", "--factoids", facts, "--out", tmp_path / "a b", "--ckpt")
    assert "counted by" not in cli(*common, f"a={tiny_checkpoint}", "--ckpt", f"b={tiny_checkpoint}")[2]
    code, _, said = cli(*common, f"b={tiny_checkpoint}", "--k", 5)
    assert code == 0 and "is now counted by top 5, token rule first (was top 10, token rule first)" in said
    assert f"memprobe show '{tmp_path / 'a b'}' prints all" in said
    assert memprobe.open_probe(tmp_path / "a b").checkpoints == ["a", "b"]


def test_several_lenses_and_positions_in_one_probe(cli, tiny_checkpoint, tmp_path):
    ckpts = ["--ckpt", f"base={tiny_checkpoint}", "--ckpt", f"same={tiny_checkpoint}"]
    out = tmp_path / "p"
    lenses = ["--lens", "logit", "--lens", "logit@base"]
    asked = ["--factoids", "known", "--n", 6, "--positions", "answer,subject", "--out", out]
    code, _, err = cli("layers", *ckpts, *lenses, *asked)
    assert code == 0, err
    probe = memprobe.open_probe(out)
    assert probe.lenses == ["logit", "logit@base"] and probe.positions == ["answer", "subject"]
    assert cli("layers", *ckpts, *lenses, *asked, "--no-report")[0] == 0, "the same call goes on"
    refused(cli("layers", *ckpts, *asked), "has lens", "you asked for", "--fresh")
    refused(cli("layers", *ckpts, "--readout", "base", *lenses, *asked), "--readout", "--lens")
    refused(cli("layers", *ckpts, "--lens", "logits", *asked), "--lens logits")
    refused(
        cli("layers", "--ckpt", f"base={tiny_checkpoint}", "--lens", "logit@bsae", *asked),
        "bsae: no such file",
        "labels here are base; did you mean base?",
    )
    refused(
        cli("layers", *ckpts, *lenses, *asked[:-4], "--positions", "end", "--out", tmp_path / "q"),
        "choose answer",
    )


def test_lens_and_check_take_several_lenses(cli, tiny_checkpoint, tmp_path):
    prompt = ["--ckpt", tiny_checkpoint, "--prompt", "The river of Oria is the", "--answer", "Lunn"]
    page = tmp_path / "page.html"
    lenses = ["--lens", "logit", "--lens", f"logit@other={tiny_checkpoint}"]
    code, text, err = cli("lens", *prompt, *lenses, "--out", page)
    assert code == 0, err
    assert "logit: rank" in text and "logit@other: rank" in text and page.exists()
    code, text, _ = cli("lens", *prompt, *lenses, "--json")
    told = json.loads(text)
    assert code == 0 and [one["lens"] for one in told["lenses"]] == ["logit", "logit@other"]
    assert told["lenses"][0]["tokens"][0] and len(told["lenses"][0]["answer_ranks"]) == 4, "by depth"
    once = cli("lens", *prompt)[1]
    assert "logit" not in once
    by_other = cli("lens", *prompt, *lenses[2:])[1]
    assert by_other.startswith("Read through logit@other, the model says") and "logit@other: rank" in by_other
    assert "logit:" not in once and "rank" in once
    code, text, err = cli("check", "--ckpt", tiny_checkpoint, *lenses)
    assert code == 0 and "logit, logit@other" in text
    refused(cli("check", "--ckpt", tiny_checkpoint, "--lens", f"tuned={tmp_path / 'none'}"), "no such file")


def test_out_in_use_is_refused_and_kept(cli, tiny_checkpoint, facts, tmp_path):
    probe = ["layers", "--ckpt", f"a={tiny_checkpoint}", "--factoids", facts, "--out", tmp_path / "p"]
    assert cli(*probe)[0] == 0
    before = {path: path.read_bytes() for path in (tmp_path / "p").rglob("*") if path.is_file()}
    with FileLock(tmp_path / "p" / ".lock"):
        refused(cli(*probe), str(tmp_path / "p"), "another process", "--out")
        refused(cli(*probe, "--fresh"), "another process")
    (tmp_path / "p" / ".lock").unlink(missing_ok=True)
    assert {path: path.read_bytes() for path in (tmp_path / "p").rglob("*") if path.is_file()} == before
    assert cli(*probe, "--fresh")[0] == 0


def test_two_intrusions_of_one_name_are_refused(cli, tiny_checkpoint, facts, tmp_path):
    given = ["--intrusion", "d=kvr:3:test", "--intrusion", "d=kvr:5:validation"]
    probe = ["layers", "--ckpt", tiny_checkpoint, "--factoids", facts, "--out", tmp_path / "p"]
    refused(cli(*probe, *given), "--intrusion", "'d' is given twice")
    assert not (tmp_path / "p").exists()


def test_a_probe_outlives_a_fresh_start_that_fails(cli, tiny_checkpoint, facts, tmp_path, monkeypatch):
    """Options that are wrong only once the model is there, too; Ctrl-C before the first batch; and a kill."""
    out = tmp_path / "p"
    probe = ["layers", "--ckpt", f"a={tiny_checkpoint}", "--factoids", facts, "--out", out]
    assert cli(*probe, "--keep-residuals", "1", "--attributions")[0] == 0
    before = contents(out)
    for wrong in (["--positions", "nonsense"], ["--lens", "nonsense"], ["--template", "{prompt}"]):
        refused(cli(*probe, *wrong, "--fresh"), f"{out} is as it was before --fresh")
        assert contents(out) == before
    with monkeypatch.context() as patched:
        patched.setattr(Prober, "read", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        code, _, err = cli(*probe, "--fresh")
        assert code == 130 and f"{out} is as it was before --fresh" in err, err
        assert contents(out) == before
    _set_aside(out, PROBE)
    with locked(out):
        assert contents(out) == before | {".lock": b""}
    (out / "patches").mkdir()
    for name in ("notes.txt", "patches/a.parquet"):
        (out / name).write_text("mine")
    code, _, err = cli(*probe, "--fresh")
    assert code == 0 and not (out / "residuals").exists()
    assert (out / "notes.txt").read_text() == "mine", "what is no probe's stays where it is"
    assert (out / "patches" / "a.parquet").read_text() == "mine" and "the patches stay" in err


def test_bf16_says_how_many_ranks_it_changes(cli, tiny_checkpoint, facts, tmp_path):
    found = {}
    for dtype in ("float32", "bfloat16"):
        out = tmp_path / dtype
        arguments = ["--factoids", facts, "--top-k", 5, "--dtype", dtype, "--out", out]
        code, _, err = cli("layers", "--ckpt", f"a={tiny_checkpoint}", *arguments)
        assert code == 0, err
        found[dtype] = memprobe.open_probe(out)
    keys = ["factoid", "token", "depth"]
    both = found["bfloat16"].records.join(found["float32"].records, on=keys)
    entry = found["bfloat16"].run["checkpoints"]["a"]["precision"]
    assert entry["changed"] == (both["rank"] != both["rank_right"]).mean() > 0
    assert entry["crossed"] == ((both["rank"] < 5) != (both["rank_right"] < 5)).mean()
    assert (entry["ranks"], entry["factoids"], entry["k"]) == (len(both), len(FACTS), 5)
    assert f"a: in bfloat16; {entry['changed']:.1%} of {len(both)} ranks differ from fp32" in err
    assert "precision" not in found["float32"].run["checkpoints"]["a"]


def test_manifest_gives_factoids_and_template(cli, tiny_checkpoint, facts, tmp_path):
    checkpoint = copied(tiny_checkpoint, tmp_path / "trained")
    write_manifest(checkpoint, "{prompt} -> {answer}", facts)
    out = tmp_path / "probe"
    code, _, err = cli("layers", "--ckpt", checkpoint, "--ckpt", f"base={tiny_checkpoint}", "--out", out)
    assert code == 0, err
    run = memprobe.open_probe(out).run
    assert run["template"] == "{prompt} -> {answer}"
    assert run["factoids"]["n"] == len(FACTS)
    assert run["checkpoints"]["trained"]["manifest"]["seed"] == 3
    assert run["checkpoints"]["trained"]["manifest"]["stages"][0]["hash"]  # by which rows arms are paired


def test_help_imports_nothing_heavy():
    script = """
import sys
from memprobe.cli import main
sys.argv = ["memprobe", "--help"]
try:
    main()
except SystemExit:
    pass
heavy = ("torch", "transformers", "polars", "plotly", "scipy", "numpy", "datasets")
print([name for name in heavy if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_check_says_what_was_found(cli, tiny_checkpoint, tmp_path):
    other = copied(tiny_checkpoint, tmp_path / "copy")
    code, text, _ = cli("check", "--ckpt", f"a={tiny_checkpoint}", "--ckpt", f"b={other}", "--json")
    found = json.loads(text)
    assert code == 0 and found["same_weights"] == [["a", "b"]]
    assert found["checkpoints"][0]["ok"] and found["checkpoints"][0]["largest_difference"] <= 1e-4


def test_check_goes_on_after_a_bad_checkpoint(cli, tiny_checkpoint, tmp_path):
    broken = copied(tiny_checkpoint, tmp_path / "nan")
    weights = load_file(broken / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] = torch.nan
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    code, text, err = cli("check", "--ckpt", f"bad={broken}", "--ckpt", f"good={tiny_checkpoint}")
    assert code == 2 and "1 of 2" in err
    assert "NaN" in text and "good" in text


def test_lens_prints_and_writes_a_page(cli, tiny_checkpoint, tmp_path):
    page = tmp_path / "lens.html"
    code, text, err = cli(
        "lens",
        "--ckpt",
        tiny_checkpoint,
        "--prompt",
        "The river of Oria is",
        "--answer",
        "Lunn",
        "--best",
        2,
        "--out",
        page,
    )
    assert code == 0, err
    assert "p(answer)" in text and page.stat().st_size > 10_000
    assert text.startswith("The model says “") and "rank" in text.splitlines()[0]


# Bad input, a test each.


def test_no_such_path(cli, tmp_path):
    refused(cli("layers", "--ckpt", tmp_path / "nowhere"), "nowhere", "no such file or directory")


def test_directory_without_config(cli, tmp_path):
    (tmp_path / "empty").mkdir()
    refused(cli("layers", "--ckpt", tmp_path / "empty"), "empty", "config.json")


def test_truncated_safetensors(cli, tiny_checkpoint, tmp_path):
    torn = copied(tiny_checkpoint, tmp_path / "torn")
    file = torn / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    refused(cli("layers", "--ckpt", torn), "model.safetensors", "truncated or corrupt")


def test_missing_weights(cli, tiny_checkpoint, facts, tmp_path):
    half = copied(tiny_checkpoint, tmp_path / "half")
    weights = load_file(half / "model.safetensors")
    dropped = next(name for name in weights if "mlp" in name)
    del weights[dropped]
    save_file(weights, half / "model.safetensors", {"format": "pt"})
    refused(cli("layers", "--ckpt", half, "--factoids", facts, "--out", tmp_path / "p"), "missing", dropped)


def test_nan_weights(cli, tiny_checkpoint, facts, tmp_path):
    broken = copied(tiny_checkpoint, tmp_path / "nan")
    weights = load_file(broken / "model.safetensors")
    name = max(weights)
    weights[name].view(-1)[-1] = torch.nan
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    refused(cli("layers", "--ckpt", broken, "--factoids", facts, "--out", tmp_path / "p"), "NaN", name)


def test_pickled_weights_need_the_option(cli, tiny_checkpoint, facts, tmp_path):
    pickled = copied(tiny_checkpoint, tmp_path / "pickled")
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    refused(cli("layers", "--ckpt", pickled, "--factoids", facts), "pickled", "--allow-pickle")
    code, _, err = cli(
        "layers", "--ckpt", pickled, "--factoids", facts, "--allow-pickle", "--out", tmp_path / "probe"
    )
    assert code == 0, err


def test_empty_factoid_file(cli, tiny_checkpoint, tmp_path):
    (tmp_path / "none.jsonl").write_text("")
    refused(cli("layers", "--ckpt", tiny_checkpoint, "--factoids", tmp_path / "none.jsonl"), "none.jsonl")


def test_row_without_an_answer(cli, tiny_checkpoint, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a b", "answer": "c"}\n{"prompt": "only a prompt"}\n')
    refused(
        cli("layers", "--ckpt", tiny_checkpoint, "--factoids", tmp_path / "bad.jsonl"),
        "bad.jsonl",
        "2",
        "answer",
    )


def test_one_id_twice(cli, tiny_checkpoint, tmp_path):
    rows = [FACTS[0], FACTS[1] | {"id": "a"}]
    (tmp_path / "twice.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    refused(cli("layers", "--ckpt", tiny_checkpoint, "--factoids", tmp_path / "twice.jsonl"), "'a'")


def test_answer_that_the_tokenizer_cannot_write(cli, tiny_checkpoint, facts, tmp_path, monkeypatch):
    from memprobe import templates

    monkeypatch.setattr(templates, "_answer_ids", lambda *_: [])
    refused(
        cli("layers", "--ckpt", tiny_checkpoint, "--factoids", facts, "--out", tmp_path / "p"),
        "has no tokens",
        "factoid",
    )


def test_prompt_beyond_the_context(cli, tiny_checkpoint, tmp_path):
    (tmp_path / "long.jsonl").write_text(
        json.dumps({"prompt": "river " * 3000, "answer": "Lunn", "id": "long"})
    )
    result = cli(
        "layers", "--ckpt", tiny_checkpoint, "--factoids", tmp_path / "long.jsonl", "--out", tmp_path / "p"
    )
    refused(result, "factoid long", "context")


def test_tokenizer_without_end_or_pad_token(cli, tiny_checkpoint, facts, tmp_path):
    bare = copied(tiny_checkpoint, tmp_path / "bare")
    config = json.loads((bare / "tokenizer_config.json").read_text())
    for key in ("eos_token", "pad_token"):
        config.pop(key, None)
    (bare / "tokenizer_config.json").write_text(json.dumps(config))
    (bare / "special_tokens_map.json").unlink(missing_ok=True)
    common = ("layers", "--ckpt", bare, "--factoids", facts)
    refused(cli(*common, "--template", "tulu", "--out", tmp_path / "p1"), "end token")
    code, _, err = cli(*common, "--out", tmp_path / "p2")
    assert code == 0, err


def test_unknown_template_field(cli, tiny_checkpoint, facts):
    refused(
        cli("layers", "--ckpt", tiny_checkpoint, "--factoids", facts, "--template", "{question} {answer}"),
        "{question}",
    )


def test_top_k_zero(cli, tiny_checkpoint):
    refused(cli("layers", "--ckpt", tiny_checkpoint, "--top-k", 0), "--top-k", "greater than or equal to 1")


OPTIONS = {
    "--batch-size ²": ["layers", "--ckpt", "x", "--batch-size", "²"],
    "--seed": ["layers", "--ckpt", "x", "--seed", 2**32],
    "--draws": ["compare", "p", "--draws", 99999999999],
    "--nix": ["layers", "--ckpt", "x", "--nix"],
    "--ckpt": ["layers"],
    "No such command": ["nix"],
    r"'\udcff=ck' is not UTF-8": ["layers", "--ckpt", "\udcff=ck"],
}


@pytest.mark.parametrize("problem", OPTIONS)
def test_options_that_cannot_be_are_one_line_too(cli, problem):
    refused(cli(*OPTIONS[problem]), problem)


def test_without_a_command_there_is_help(cli):
    code, out, err = cli()
    assert code == 2 and "Commands" in out + err


def test_manifests_whose_templates_differ(cli, tiny_checkpoint, facts, tmp_path):
    one, two = copied(tiny_checkpoint, tmp_path / "one"), copied(tiny_checkpoint, tmp_path / "two")
    write_manifest(one, "plain")
    write_manifest(two, "{prompt} = {answer}")
    arguments = ("layers", "--ckpt", one, "--ckpt", two, "--factoids", facts)
    refused(cli(*arguments), "one", "two", "--template")
    assert cli(*arguments, "--template", "plain", "--out", tmp_path / "probe")[0] == 0


def test_two_checkpoints_of_one_label(cli, tiny_checkpoint):
    refused(cli("layers", "--ckpt", f"x={tiny_checkpoint}", "--ckpt", f"x={tiny_checkpoint}"), "'x'")


def test_out_that_is_a_file(cli, tiny_checkpoint, facts, tmp_path):
    (tmp_path / "taken").write_text("mine")
    refused(
        cli("layers", "--ckpt", tiny_checkpoint, "--factoids", facts, "--out", tmp_path / "taken"), "taken"
    )
    assert (tmp_path / "taken").read_text() == "mine"


def test_out_below_a_file_cannot_be_written(cli, tiny_checkpoint, facts, tmp_path):
    (tmp_path / "file").write_text("mine")
    refused(
        cli("layers", "--ckpt", tiny_checkpoint, "--factoids", facts, "--out", tmp_path / "file" / "p"),
        "file",
    )


def test_full_disk_keeps_what_is_finished(cli, tiny_checkpoint, facts, tmp_path, monkeypatch):
    out = tmp_path / "probe"
    assert cli("layers", "--ckpt", f"a={tiny_checkpoint}", "--factoids", facts, "--out", out)[0] == 0
    before = memprobe.open_probe(out).records

    def full(self, *_, **__):
        raise pl.exceptions.ComputeError("underlying IO error: No space left on device (os error 28)")

    monkeypatch.setattr(pl.DataFrame, "write_parquet", full)
    monkeypatch.setattr(pl.LazyFrame, "sink_parquet", full)
    refused(
        cli("layers", "--ckpt", f"b={tiny_checkpoint}", "--factoids", facts, "--out", out), "No space left"
    )
    monkeypatch.undo()
    after = memprobe.open_probe(out)
    assert after.records.equals(before)
    assert not list(out.glob(".*")), "no temporary files are left"


@pytest.mark.parametrize(("name", "codes"), [("SIGINT", (130, -signal.SIGINT)), ("SIGTERM", (143,))])
def test_signals_to_the_real_process(tiny_checkpoint, facts, tmp_path, name, codes):
    script = (
        "import os, signal, sys; from memprobe import capturing; one = capturing._capture_batch\n"
        "def first_then_interrupt(*a):\n"
        "    tables = one(*a)\n"
        f"    os.kill(os.getpid(), signal.{name})\n"
        "    return tables\n"
        "capturing._capture_batch = first_then_interrupt\n"
        f"sys.argv = ['memprobe', 'layers', '--ckpt', {str(tiny_checkpoint)!r}, '--factoids', {str(facts)!r},\n"
        f"            '--batch-size', '2', '--out', {str(tmp_path / 'p')!r}]\n"
        "from memprobe.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode in codes, done.stderr
    assert "Traceback" not in done.stderr and "goes on" in done.stderr


@pytest.mark.parametrize("kind", [RuntimeError, BaseException])
def test_what_nobody_foresaw_is_one_line_that_asks_for_a_report(kind, capsys, monkeypatch):
    import typer

    from memprobe.cli import app as application

    commands = typer.Typer(pretty_exceptions_enable=False)

    @commands.command()
    def broken() -> None:
        raise kind("half \ud800 and \x1b]0;title\x07\nand more")

    monkeypatch.setattr("sys.argv", ["broken"])
    with pytest.raises(SystemExit) as ended:
        application.run(commands, "broken")
    said = capsys.readouterr().err
    assert ended.value.code == application.UNFORESEEN
    assert said.count("\n") == 1 and "--debug" in said and "\x1b" not in said and "Traceback" not in said


LONG = "a" * 300  # no file can be called so
TOO_LONG = {
    "ckpt": ["layers", "--ckpt", LONG],
    "labelled": ["check", "--ckpt", f"x={LONG}"],
    "tokenizer": ["check", "--ckpt", "CKPT", "--tokenizer", LONG],
    "factoids": ["layers", "--ckpt", "CKPT", "--factoids", LONG],
    "out": ["layers", "--ckpt", "CKPT", "--factoids", "FACTS", "--out", LONG],
    "compare": ["compare", LONG],
    "dashboard": ["dashboard", LONG, "--out", "d.html"],
    "figures": ["figures", LONG, "--out", "f"],
    "sources": ["sources", LONG],
    "show": ["show", LONG],
    "filter": ["filter", "--ckpt", "CKPT", "--factoids", "FACTS", "--out", f"{LONG}.jsonl"],
}


@pytest.mark.parametrize("what", TOO_LONG)
def test_names_that_no_file_can_have_are_bad_input(cli, tiny_checkpoint, facts, tmp_path, monkeypatch, what):
    monkeypatch.chdir(tmp_path)
    known = {"CKPT": str(tiny_checkpoint), "FACTS": str(facts)}
    refused(cli(*(known.get(text, text) for text in TOO_LONG[what])), "a" * 40)


def test_bad_input_cannot_write_to_the_terminal(cli, tiny_checkpoint, tmp_path):
    (tmp_path / "facts.jsonl").write_text(
        json.dumps({"prompt": "\x1b]0;title\x07", "answer": "\ud800"}) + "\n"
    )
    result = cli(
        "layers", "--ckpt", tiny_checkpoint, "--factoids", tmp_path / "facts.jsonl", "--out", tmp_path / "p"
    )
    refused(result, "line 1")
    assert "\x1b" not in str(result)


@pytest.mark.parametrize(
    "command",
    [
        "layers --ckpt {ckpt} --factoids {file} --out {out}",
        "layers --ckpt {ckpt} --factoids kvr:2 --intrusion other={file} --out {out}",
        "filter --ckpt {ckpt} --factoids {file} --out {out}",
        "patch --from a={ckpt} --into b={ckpt} --factoids {file} --out {out}",
        "fit --kind linear --ckpt {ckpt} --factoids {file} --texts missing.jsonl --out {out}",
        "sources {file}",
    ],
)
def test_every_command_says_what_it_leaves_out_of_its_factoids(cli, tiny_checkpoint, tmp_path, command):
    file = tmp_path / "facts.jsonl"
    rows = [{"prompt": "The river of Oria is the", "answer": answer} for answer in ("C++", "C#", "c#")]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    places = {"ckpt": tiny_checkpoint, "file": file, "out": tmp_path / "out"}
    _, _, err = cli(*command.format(**places).split())
    assert "1 duplicate" in err and "of 3 rows" in err, err


def test_rows_that_a_tokenizer_cannot_write_are_left_out_and_named(cli, tmp_path):
    tiny = save_tiny(tmp_path / "tiny", tokenizer="sentencepiece")
    written = json.loads((tiny / "tokenizer.json").read_text(encoding="utf-8"))
    written["normalizer"]["normalizers"].insert(
        0, {"type": "Replace", "pattern": {"String": "Ž"}, "content": "Z"}
    )
    (tiny / "tokenizer.json").write_text(json.dumps(written), encoding="utf-8")
    other = {"prompt": "The river of Tolm is the", "answer": "Žar", "id": "gone"}
    long = {"prompt": "The river of " * 300, "answer": "Ister", "id": "long"}
    file = tmp_path / "facts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in (*FACTS, other, long)), encoding="utf-8")
    arguments = ("layers", "--ckpt", tiny, "--factoids", file, "--out", tmp_path / "probe")
    refused(cli(*arguments), "gone", "cannot be written in this tokenizer")
    code, _, err = cli(*arguments, "--on-bad-row", "skip", "--fresh")
    assert code == 0, err
    assert "left out factoid gone" in err and "left out factoid long" in err
    probe = memprobe.open_probe(tmp_path / "probe")
    assert sorted(probe.factoids["id"]) == ["a", "b", "c", "d", "e"]
    assert probe.run["factoids"]["n"] == 5


@pytest.mark.parametrize(
    "command",
    [
        "layers --ckpt a={ckpt} --lens logit@b={ckpt} --factoids {facts} --out {out}",
        "check --ckpt {ckpt}",
        "lens --ckpt {ckpt} --prompt The",
        "fit --kind linear --ckpt {ckpt} --factoids {facts} --texts {facts} --out {out}",
        "filter --ckpt {ckpt} --factoids {facts} --out {out}",
        "patch --from a={ckpt} --into b={ckpt} --factoids {facts} --out {out}",
    ],
)
def test_a_base_model_that_nothing_is_read_with_is_refused(cli, tiny_checkpoint, facts, tmp_path, command):
    places = {"ckpt": tiny_checkpoint, "facts": facts, "out": tmp_path / "out"}
    result = cli(*command.format(**places).split(), "--base", "nothere")
    refused(result, "--base nothere", "no checkpoint here is one")
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    cli, tiny_checkpoint, facts, tmp_path, monkeypatch
):
    def never(*_, **__):
        raise AssertionError("nothing is read for nothing")

    below = facts / "out.jsonl"
    monkeypatch.setattr("memprobe.checkpoints.resolve", never)
    asked = ["filter", "--ckpt", tiny_checkpoint, "--factoids", facts]
    refused(cli(*asked, "--out", tmp_path), f"{tmp_path}: is a folder, not a file")
    refused(cli(*asked, "--out", below), f"{below}: cannot be written ({facts} is a file, not a folder)")
    refused(cli(*asked, "--out", tmp_path / "o", "--known", below), "is a file, not a folder")
    refused(cli("compare", tmp_path / "none", "--out", facts), f"{facts}: is a file, not a folder")
    refused(cli("compare", tmp_path / "none", "--out", below), f"({facts} is a file, not a folder)")
    refused(cli("figures", tmp_path / "none", "--out", below), f"({facts} is a file, not a folder)")
    locked = tmp_path / "locked"
    locked.mkdir()
    access = os.access
    # Root may write anywhere.
    monkeypatch.setattr(
        "os.access",
        lambda at, mode, **more: access(at, mode, **more) and not (at == locked and mode & os.W_OK),
    )
    said = f"(no permission to write in {locked})"
    refused(cli(*asked, "--out", locked / "out.jsonl"), said)
    refused(cli("dashboard", tmp_path / "none", "--out", locked / "page.html"), said)
    for out in (locked, locked / "new" / "newer"):
        refused(cli("compare", tmp_path / "none", "--out", out), f"{out}: cannot be written {said}")
        refused(cli("figures", tmp_path / "none", "--out", out), f"{out}: cannot be written {said}")
    assert not list(locked.iterdir())


def test_bad_names_are_answered_with_what_there_is(cli, tiny_checkpoint, facts, tmp_path):
    asked = ["layers", "--ckpt", tiny_checkpoint, "--factoids"]
    refused(cli(*asked, tmp_path, "--out", tmp_path / "p"), f"{tmp_path}: is a folder; give a ")
    refused(
        cli(*asked, facts, "--out", tmp_path / "p", "--device", "gpu"),
        "--device gpu: give auto, cpu, cuda, cuda:1 or mps; did you mean cuda?",
    )
    refused(cli("figures", tmp_path, "--only", "foo"), "restoration, grafts")


@pytest.mark.parametrize(
    "arguments",
    [["sources", "generic", "--words", "12,12"], ["layers", "--nope"], ["check", "--ckpt"], ["show"]],
)
def test_wrong_usage_names_the_help_of_its_command(cli, arguments):
    refused(cli(*arguments), f"(see memprobe {arguments[0]} --help)")


@pytest.mark.parametrize(
    ("command", "instead"),
    [
        ("fit --kind linear --ckpt {ckpt} --factoids none --out {out}", "--texts FILE"),
        ("layers --ckpt {ckpt} --factoids known --intrusion x=big --out {out}", "--intrusion NAME=FILE"),
        ("fit --kind linear --ckpt {ckpt} --factoids big --out {out}", "--factoids FILE"),
        ("layers --ckpt {ckpt} --factoids big --out {out}", "--n where"),
    ],
)
def test_advice_on_large_sets_can_be_followed(cli, tiny_checkpoint, tmp_path, monkeypatch, command, instead):
    popqa = DATASETS["popqa"]
    big = replace(popqa, name="big", hub=replace(popqa.hub, large=True))
    monkeypatch.setitem(DATASETS, "big", big)
    monkeypatch.delenv("MEMPROBE_DATA_DIR", raising=False)
    result = cli(*command.format(ckpt=tiny_checkpoint, out=tmp_path / "out").split())
    refused(result, "is too large to fetch whole; give a --data-dir that has it, or ", instead)
    assert (instead == "--n where") == ("--n" in result[2])


def test_the_demo_starts_over_where_its_error_says_so(cli, tiny_checkpoint, facts, tmp_path):
    out = tmp_path / "p"
    assert cli("layers", "--ckpt", tiny_checkpoint, "--factoids", facts, "--out", out)[0] == 0
    asked = ["demo", "--ckpt", tiny_checkpoint, "--out", out, "--no-open"]
    refused(cli(*asked), "--fresh to start over")
    code, _, err = cli(*asked, "--fresh")
    assert code == 0 and "of 295 facts" in cli("show", out)[1], err
