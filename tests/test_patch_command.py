"""``memprobe patch`` end to end on tiny checkpoints: files, resuming, grafts, the page, and bad input."""

import json
import shutil

import polars as pl
import pytest

from memprobe import patch_pairs
from memprobe.cli.show_patches import show_patches
from memprobe.files import read_json, write_json
from memprobe.patch_tables import tables_of
from memprobe.patch_writer import locked
from memprobe.patches import PATCHING, open_patches
from memprobe.records import PATCHES
from memprobe.starting_over import _set_aside
from tests.disk import contents
from tests.elsewhere import elsewhere
from tests.patched import write_patched
from tests.tiny import N_LAYERS, save_tiny

FACTS = [("Oria", "Lunn"), ("Selva", "Brack"), ("Tolm", "Ister")]


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    path = tmp_path_factory.mktemp("patch")
    for seed in (0, 1):
        save_tiny(path / f"m{seed}", seed=seed)
    save_tiny(path / "other", "gpt2")
    rows = [
        {"prompt": f"The river of {name} is the", "answer": answer, "subject": name, "id": name}
        for name, answer in FACTS
    ]
    (path / "facts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def options(setup, out, *more, source="m1", into="m0"):
    given = ["--from", setup / source, "--into", setup / into, "--factoids", setup / "facts.jsonl"]
    return ["patch", *given, "--out", out, "--threshold", "0.01", *more]


def test_states_then_weights_into_one_directory(setup, tmp_path, cli, monkeypatch):
    out = tmp_path / "p"
    code, printed, err = cli(*options(setup, out, "--positions", "last,subject", "--html", "--json"))
    assert code == 0, err
    tables = json.loads(printed)
    assert {row["positions"] for row in tables["by_depth"]} == {"last", "subject"}
    assert {row["depth"] for row in tables["by_depth"]} == set(range(N_LAYERS + 1))
    files = sorted(file.name for file in (out / "patches").glob("*.parquet"))
    assert len(files) == 2 and not (out / "patches" / "parts").exists()
    written = {file: (out / "patches" / file).stat().st_mtime_ns for file in files}
    page = (out / "patches.html").read_text()
    assert "patches-data" in page and "Oria" in page
    code, printed, err = cli(*options(setup, out, "--weights", "--parts", "all,mlp"))
    assert code == 0, err
    assert "largest" in printed
    assert {
        file: (out / "patches" / file).stat().st_mtime_ns for file in files
    } == written  # never written again
    found = open_patches(out)
    assert found.table.schema == PATCHES and set(found.table["what"]) == {"residual", "weights"}
    assert found.pairs == [("m1", "m0")] and found.n_layers == N_LAYERS
    # the same call does nothing, another one says why not
    monkeypatch.setattr(patch_pairs, "write_pair", None)
    assert cli(*options(setup, out))[0] == 0
    code, _, err = cli(*options(setup, out, "--depths", "0-1"))
    assert code == 2 and "was patched with depths all" in err
    code, _, err = cli(*options(setup, out, "--template", "{prompt}:{answer}"))
    assert code == 2 and "these patches have template plain; you asked for" in err


def test_facts_of_each_fate_have_a_line(tmp_path, capsys):
    """Overwritten and retained ones, beside grafts, which have no first depth."""
    found = open_patches(write_patched(tmp_path / "p"))
    assert set(found.table["what"]) == {"residual", "weights"}
    show_patches(tables_of(found), 1.0)
    printed = capsys.readouterr().out
    assert "of 11 facts overwritten, 11 differ enough for restoration, s1 into s2 (residual, last)" in printed
    assert "of 1 fact retained, 1 differ enough for restoration, s1 into s2 (residual, last)" in printed
    one = tables_of(found, facts="overwritten")
    show_patches(one | {"fates": one["fates"].filter(fate="overwritten")}, 1.0)
    assert "of 11 facts overwritten" not in capsys.readouterr().out  # all that there are


def test_facts_with_other_subjects_are_others(setup, tmp_path, cli):
    """Where a patch goes depends on them; patches that said nothing of it are gone on with."""
    out, other = tmp_path / "p", tmp_path / "other.jsonl"
    assert cli(*options(setup, out, "--depths", "0"))[0] == 0
    other.write_text((setup / "facts.jsonl").read_text().replace('"subject": "Oria"', '"subject": "river"'))
    given = [other if str(one).endswith(".jsonl") else one for one in options(setup, out, "--depths", "0")]
    code, _, err = cli(*given)
    assert code == 2 and "these patches have the same facts with other subject" in err
    run = read_json(out / "patches" / "run.json")
    del run["factoids"]["content"]
    write_json(run, out / "patches" / "run.json")
    assert cli(*given)[0] == 0


def test_a_killed_run_goes_on(setup, tmp_path, cli, monkeypatch):
    from memprobe import patching

    whole, out = tmp_path / "whole", tmp_path / "p"
    assert cli(*options(setup, whole, "--batch-size", "1"))[0] == 0
    batches = patching.patch_batches

    def killed(*args, **kwargs):
        yield next(batches(*args, **kwargs))
        raise KeyboardInterrupt

    monkeypatch.setattr(patching, "patch_batches", killed)
    code, _, err = cli(*options(setup, out, "--batch-size", "1"))
    assert code == 130 and "the same command goes on" in err
    assert open_patches(out).table.is_empty()
    asked = []

    def counted(*args, **kwargs):
        for table in batches(*args, **kwargs):
            asked.extend(table["factoid"].unique())
            yield table

    monkeypatch.setattr(patching, "patch_batches", counted)
    assert cli(*options(setup, out, "--batch-size", "1"))[0] == 0
    assert len(asked) == len(FACTS) - 1
    assert open_patches(out).table.equals(open_patches(whole).table)


@pytest.mark.parametrize("more", [[], ["--fresh"]])
def test_what_another_process_patches_is_left_alone(setup, tmp_path, cli, more):
    out = tmp_path / "p"
    assert cli(*options(setup, out, "--depths", "0"))[0] == 0
    before = {file.name: file.read_bytes() for file in (out / "patches").iterdir()}
    with elsewhere(locked(out)):
        code, _, err = cli(*options(setup, out, "--depths", "0", *more))
        assert code == 2 and "another process is patching here" in err
        assert (out / "patches" / ".lock").exists()
    assert {file.name: file.read_bytes() for file in (out / "patches").iterdir()} == before
    code, _, err = cli(*options(setup, out, "--depths", "1", "--fresh"))
    assert code == 0 and set(open_patches(out).table["depth"]) == {1}, err


def test_patches_outlive_a_fresh_start_that_fails(setup, tmp_path, cli):
    """Options that are wrong only once the models are there, too; and a kill before the first batch."""
    out = tmp_path / "p"
    assert cli(*options(setup, out, "--depths", "0", "--html"))[0] == 0
    before = contents(out)
    for wrong in (
        ["--what", "nonsense"],
        ["--positions", "first"],
        ["--depths", "99"],
        ["--dtype", "float8"],
    ):
        code, _, err = cli(*options(setup, out, *wrong, "--fresh"))
        assert code == 2 and f"{out} is as it was before --fresh" in err, err
        assert contents(out) == before
    _set_aside(out, PATCHING)
    with locked(out):
        assert (out / "patches" / ".lock").exists() and len(open_patches(out).table)
    assert contents(out) == before


def test_facts_whose_logits_are_not_finite_are_counted(setup, tmp_path, cli, monkeypatch):
    """In states and in weights; and in patches that were written before they were left out."""
    import numpy as np

    from memprobe import grafting, patches, patching

    whole = tmp_path / "whole"
    assert cli(*options(setup, whole, "--positions", "last,subject"))[0] == 0
    read = patching.read_answers

    def broken(lens, streams, items, **more):
        rank, log_prob = read(lens, streams, items, **more)
        bad = np.array([item.factoid.id == "Tolm" for item in items for _ in item.targets])
        return rank, np.where(bad, np.nan, log_prob)

    for module in (patching, grafting):
        monkeypatch.setattr(module, "read_answers", broken)
    out = tmp_path / "p"
    code, printed, err = cli(*options(setup, out, "--positions", "last,subject", "--json"))
    assert code == 0 and "1 factoid gave logits that are not finite" in err
    found = open_patches(out)
    others = open_patches(whole).table.filter(pl.col("factoid") != "Tolm")
    assert set(found.table["factoid"]) == set(others["factoid"])
    rows = json.loads(printed)["errors"]
    assert [(row["factoid"], row["positions"], row["error"]) for row in rows] == [
        ("Tolm", "last", "a logit is not finite"),
        ("Tolm", "subject", "a logit is not finite"),
    ]
    assert {row["facts"] for row in json.loads(printed)["by_depth"]} == {2}
    code, _, err = cli(*options(setup, out, "--weights"))
    assert code == 0 and "1 factoid gave" in err
    with monkeypatch.context() as older:
        older.setattr(patching, "finite_only", lambda rows: rows)
        assert cli(*options(setup, tmp_path / "older"))[0] == 0
    older = patches.open_patches(tmp_path / "older")
    assert "Tolm" in set(patches.read_rows(older.files()[0])["factoid"]) - set(older.table["factoid"])
    assert older.errors["factoid"].to_list() == ["Tolm"]
    for module in (patching, grafting):  # of every fact
        monkeypatch.setattr(
            module, "read_answers", lambda *a, **k: (read(*a, **k)[0], read(*a, **k)[1] * np.nan)
        )
    code, printed, err = cli(*options(setup, tmp_path / "none", "--html"))
    assert code == 2 and "3 factoids gave" in err and "every fact gave logits that are not finite" in err


def test_causal_tracing_and_several_pairs(setup, tmp_path, cli):
    out = tmp_path / "p"
    more = ["--corrupt", "subject", "--positions", "subject", "--no-controls", "--depths", "0,3"]
    code, _, err = cli(*options(setup, out, *more, source="m0"))
    assert code == 0, err
    found = open_patches(out)
    assert found.pairs == [("m0", "m0 corrupted")]
    first = found.table.filter(pl.col("depth") == 0)
    assert (first["log_prob"] - first["source_log_prob"]).abs().max() < 1e-4
    two = ["--from", setup / "m1", "--into", setup / "m0", "--into", f"again={setup / 'm1'}"]
    code, _, err = cli(
        "patch", *two, "--factoids", setup / "facts.jsonl", "--out", tmp_path / "q", "--depths", "1"
    )
    assert code == 0, err
    assert open_patches(tmp_path / "q").pairs == [("m1", "m0"), ("m1", "again")]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--positions", "first"], "--positions first: choose"),
        (["--what", "head"], "--what head: choose"),
        (["--depths", "9"], "--depths 9: m0 has depths 0 to 3"),
        (["--depths", "3-1"], "--depths 3-1"),
        (["--threshold", "0"], "--threshold 0"),
        (["--noise", "-1"], "--noise -1"),
        (["--facts", "some"], "--facts some: choose"),
        (["--weights", "--windows", "9"], "--windows 9: m0 has 3 blocks"),
        (["--weights", "--windows", "x"], "--windows x"),
        (["--weights", "--parts", "ears"], "--parts ears: choose"),
        (["--weights", "--corrupt", "subject"], "does not go with --corrupt"),
        (["--weights", "--depths", "1"], "--depths 1: says which states"),
        (["--weights", "--what", "residual"], "--what residual: says which states"),
        (["--weights", "--positions", "last"], "--positions last: says which states"),
        (["--windows", "1"], "--windows 1: is of grafts; give --weights"),
        (["--parts", "all"], "--parts all: is of grafts; give --weights"),
        (["--noise", "3"], "--noise 3.0: is of causal tracing; give --corrupt"),
        (["--into", "no/such"], "no/such"),
    ],
)
def test_bad_options_are_one_line(setup, tmp_path, cli, more, message):
    code, _, err = cli(*options(setup, tmp_path / "p", *more))
    assert code == 2 and message in err and "Traceback" not in err
    run = tmp_path / "p" / "patches" / "run.json"
    assert not run.exists() or not json.loads(run.read_text())["pairs"], "the corrected call would be refused"


@pytest.mark.parametrize("more", [[], ["--weights"]])
@pytest.mark.parametrize("side", ["source", "into"])
def test_a_tokenizer_larger_than_the_model_is_one_line(setup, tmp_path, cli, more, side):
    from transformers import AutoTokenizer

    shutil.copytree(setup / "m1", larger := tmp_path / "larger")
    tokenizer = AutoTokenizer.from_pretrained(larger)
    tokenizer.add_tokens(["Oria"])
    tokenizer.save_pretrained(larger)
    code, _, err = cli(*options(setup, tmp_path / "p", *more, **{side: larger}))
    assert code == 2 and "the tokenizer does not belong to this model" in err and len(err.splitlines()) == 1


def test_checkpoints_that_do_not_fit_and_facts_that_do_not_differ(setup, tmp_path, cli):
    code, _, err = cli(*options(setup, tmp_path / "p", "--weights", into="other"))
    assert code == 2 and "differ in shape" in err
    code, printed, err = cli(*options(setup, tmp_path / "q", source="m0", into="m0"))
    assert code == 0 and "nothing to restore or erase" in printed


def test_a_fact_without_a_subject_is_refused_before_anything_is_patched(setup, tmp_path, cli):
    """Positions that need none are not patched first: with the subject mended they would be of other facts."""
    rows = (setup / "facts.jsonl").read_text().splitlines()
    (tmp_path / "facts.jsonl").write_text(
        "\n".join([*rows, '{"prompt": "Rivers run to the", "answer": "sea"}'])
    )
    given = ["--from", setup / "m1", "--into", setup / "m0", "--factoids", tmp_path / "facts.jsonl"]
    for more in (["--positions", "last,subject"], ["--corrupt", "subject"]):
        code, _, err = cli("patch", *given, "--out", tmp_path / "p", *more)
        assert code == 2 and "names no subject" in err and not (tmp_path / "p").exists()
