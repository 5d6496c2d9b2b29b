"""``memprobe sources``: the list, rows as the model sees them, and rows written out."""

import json
import shutil

import pytest

from memprobe import checkpoints
from memprobe.sources import load_factoids, load_texts
from memprobe.sources.evaluation import paraphrases
from tests.disk import contents


@pytest.fixture
def sources(cli, monkeypatch, tmp_path):
    monkeypatch.setenv("MEMPROBE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MEMPROBE_DATA_DIR", raising=False)

    return lambda *arguments: cli("sources", *arguments)


@pytest.fixture
def folder(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    rows = [
        {"question": f"What is the capital of Velm {number}?", "answer": f"Ost {number}", "aliases": []}
        for number in range(3)
    ]
    lines = [json.dumps(row | {"aliases": ["Ost"]}) for row in [*rows, rows[0]]]
    (data / "popqa.jsonl").write_text("\n".join(lines) + "\n")
    lama = {
        "sub_label": "Velm 1",
        "obj_label": "Ost",
        "relation": "P36",
        "template": "The capital of [X] is [Y] .",
    }
    lamas = [lama, {**lama, "sub_label": "Pol"}]
    (data / "lama_trex.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lamas))
    (data / "words.txt").write_text("one\ntwo\nthree\n")
    return data


def test_the_list_says_rows_kind_licence_and_where_from(sources, folder):
    code, out, _ = sources("--data-dir", folder)
    assert code == 0
    lines = {line.split()[0]: line for line in out.splitlines() if line.split()}
    assert all(part in lines["popqa"] for part in ("factoids", "4", "3", "MIT", "folder: popqa.jsonl"))
    assert "missing in the folder (triviaqa.jsonl)" in lines["triviaqa"]
    assert {"known", "kvr:N", "gsm8k", "ultrachat", "generic", "random-words", "self"} <= set(lines)
    code, out, _ = sources()
    assert "hub: akariasai/PopQA" in out
    code, out, _ = sources("--data-dir", folder, "--json")
    popqa = next(one for one in json.loads(out) if one["name"] == "popqa")
    assert code == 0 and popqa["counts"]["read"] == 4 and popqa["counts"]["kept"] == 3
    code, out, err = sources("popqa", "--n", 2, "--data-dir", folder, "--json")
    told = json.loads(out)
    assert code == 0 and "popqa: 3 factoids" in err and told["counts"]["kept"] == 3
    assert [row["answer"][:3] for row in told["rows"]] == ["Ost", "Ost"]


def test_rows_are_shown_in_the_template_with_token_counts(sources, folder, tiny_checkpoint):
    code, out, err = sources("popqa", "--n", 1, "--data-dir", folder)
    assert code == 0
    assert "What is the capital of Velm" in out
    assert "3 factoids of 4 rows (without 1 duplicate)" in err
    assert "sha256:" in err
    code, out, err = sources(
        "popqa", "--n", 1, "--data-dir", folder, "--ckpt", tiny_checkpoint, "--template", "tulu"
    )
    assert code == 0, err
    assert "<|user|>\nWhat is the capital of Velm" in out
    assert "</s>" in out
    assert " tokens" in out
    code, _, err = sources("popqa", "--data-dir", folder, "--template", "tulu")
    assert code == 2
    assert "give --ckpt" in err


def test_overlaps_are_dropped_and_rows_written(sources, folder, tmp_path):
    out_file = tmp_path / "d_b.jsonl"
    code, _, err = sources("lama", "--without", "popqa", "--data-dir", folder, "--all", "--out", out_file)
    assert code == 0
    assert "1 overlap" in err
    (row,) = load_factoids(str(out_file))
    assert row == load_factoids("lama", data_dir=folder)[1]


def test_variants(sources, folder, tmp_path):
    out_file = tmp_path / "p.jsonl"
    sources("popqa", "--variant", "paraphrases", "--data-dir", folder, "--all", "--out", out_file)
    assert load_factoids(str(out_file)) == paraphrases(load_factoids("popqa", data_dir=folder))
    code, _, err = sources("random-words", "--variant", "manipulations", "--data-dir", folder)
    assert code == 2
    assert "--variant manipulations: is of factoids, and random-words holds texts" in err


def test_the_models_own_passages_are_cached_by_what_it_is_known_by(
    sources, tiny_checkpoint, tmp_path, monkeypatch
):
    code, out, err = sources("self", "--ckpt", tiny_checkpoint, "--n", 3, "--words", 2, 2)
    assert code == 0, err
    assert "Complete the following partial passage:" in out
    assert checkpoints.fingerprint(checkpoints.resolve(str(tiny_checkpoint)))[:16] in err
    first = load_texts("self", n=3, words=(2, 2), base=str(tiny_checkpoint))
    monkeypatch.setattr("memprobe.models.load", None)  # from the cache, without the model
    assert load_texts("self", n=3, words=(2, 2), base=str(tiny_checkpoint)) == first
    assert load_texts("self", n=2, words=(2, 2), base=str(tiny_checkpoint)) == first[:2]
    assert all(len(text.answer.split()) == 2 for text in first)
    other = shutil.copytree(tiny_checkpoint, tmp_path / "other")  # the same tensors, another model
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    with pytest.raises(TypeError, match="NoneType"):
        load_texts("self", n=3, words=(2, 2), base=str(other))
    code, _, err = sources("self", "--n", 3)
    assert code == 2
    assert "--ckpt" in err


@pytest.mark.parametrize(
    ("name", "more", "out"),
    [
        ("popqa", [], "popqa.jsonl"),
        ("lama", ["--without", "popqa"], "popqa.jsonl"),
        ("random-words", ["--words-file", "words.txt"], "words.txt"),
        ("own.jsonl", [], "own.jsonl"),
        ("own.jsonl:true", [], "own.jsonl"),
        ("jsonl:words.txt", [], "words.txt"),
        ("lama", ["--without", "own.jsonl"], "own.jsonl"),
    ],
)
def test_rows_are_not_written_over_what_they_are_made_of(sources, folder, monkeypatch, name, more, out):
    monkeypatch.chdir(folder)
    (folder / "own.jsonl").write_text('{"prompt": "The capital of Velm is", "answer": "Ost"}\n')
    before = contents(folder)
    code, _, err = sources(name, *more, "--data-dir", folder, "--out", folder / out)
    assert code == 2 and "are both" in err and len(err.splitlines()) == 1, err
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--out", "new.jsonl"], "--out new.jsonl: is of one source"),
        (["--n", "5", "--data-dir", "."], "--n 5: is of one source"),  # as it is without the option
        (
            ["texts.jsonl", "--holds", "texts", "--without", "own.jsonl"],
            "--without own.jsonl: is of factoids",
        ),
        (
            ["random-words", "--conflicts", "drop"],
            "--conflicts drop: is of factoids, and random-words holds texts",
        ),
        (
            ["gsm8k", "--variant", "paraphrases"],
            "--variant paraphrases: is of factoids, and gsm8k holds tasks",
        ),
        (["own.jsonl", "--words", "50", "50"], "--words 50, 50: is of texts, and own.jsonl holds factoids"),
        (["own.jsonl:true", "--prompt-form", "sentence"], "--prompt-form sentence: is of texts"),
        (["texts.jsonl", "--holds", "texts", "--words-file", "words.txt"], "is of random-words alone"),
        (["random-words", "--all", "--out", "new.jsonl"], "--all: random-words has no end"),
        (["own.jsonl", "--all"], "--all: is of rows that are written"),
        (["own.jsonl", "--all", "--n", "1", "--out", "new.jsonl"], "--n 1: --all writes all rows"),
        (
            ["own.jsonl", "--template", "plain", "--out", "new.jsonl"],
            "--template plain: is of rows that are shown",
        ),
        (["own.jsonl", "--ckpt", "base", "--out", "new.jsonl"], "--ckpt base: counts the tokens"),
        (
            ["own.jsonl", "--json", "--out", "new.jsonl"],
            "--out new.jsonl: is of rows that are shown or written",
        ),
        (["own.jsonl", "--json", "--template", "tulu"], "--template tulu: is of rows that are shown"),
        (["own.jsonl", "--json", "--ckpt", "base"], "--ckpt base: is of rows that are shown"),
    ],
)
def test_options_that_change_nothing_of_a_source_are_refused(sources, folder, monkeypatch, arguments, said):
    monkeypatch.chdir(folder)
    (folder / "own.jsonl").write_text('{"prompt": "The capital of Velm is", "answer": "Ost"}\n')
    (folder / "texts.jsonl").write_text(json.dumps({"text": "word " * 200}) + "\n")
    before = contents(folder)
    code, _, err = sources(*arguments)
    assert code == 2 and said in err and len(err.splitlines()) == 1, err
    assert contents(folder) == before


def test_a_set_too_large_to_fetch_is_not_written_in_part(sources, tmp_path):
    code, _, err = sources("ultrachat", "--all", "--out", tmp_path / "all.jsonl")
    assert code == 2 and "too large to fetch whole" in err, err
    assert not list(tmp_path.iterdir())
