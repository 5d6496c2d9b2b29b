"""``memprobe fit`` from the command line, on tiny models and a file of texts."""

import json
import random

import pytest

from memprobe.fitting import FITTED, fit, load_texts, locked, make_corpus
from memprobe.models import load
from memprobe.sources import load_factoids
from memprobe.starting_over import _set_aside
from tests.disk import contents
from tests.elsewhere import elsewhere
from tests.tiny import SENTENCES


@pytest.fixture
def corpus(tmp_path):
    words = " ".join(SENTENCES).split()
    draw = random.Random(0)
    rows = [{"text": " ".join(draw.choices(words, k=40))} for _ in range(80)]
    file = tmp_path / "texts.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return file


@pytest.mark.parametrize("kind", ["linear", "tuned", "jacobian"])
def test_a_fit_says_what_it_does_and_is_not_done_twice(cli, tiny_checkpoint, corpus, tmp_path, kind):
    out = tmp_path / "fit"
    options = ["--ckpt", tiny_checkpoint, "--kind", kind, "--texts", corpus, "--out", out]
    options += ["--tokens", 400, "--length", 24, "--factoids", "none"]
    code, shown, told = cli("fit", *options)
    assert code == 0, told
    assert f"{kind} lens of tiny" in shown and "KL saved (95 %)" in shown and "…" not in shown
    assert f"{kind} lens of tiny: fitting: " in told and "pieces of work, about" in told
    assert f"{kind} lens of tiny: judging on held-out text: 16 pieces of work, about" in told
    assert f"--lens {kind}={out}" in told
    assert str(corpus) not in (out / "lens.json").read_text()
    before = (out / "lens.safetensors").stat().st_mtime_ns
    code, shown, told = cli("fit", *options, "--json")
    assert code == 0 and "fitting" not in told
    about = json.loads(shown)
    assert [row["depth"] for row in about["depths"]] == [0, 1, 2, 3]
    assert about["corpus"]["origin"]["location"] == "texts.jsonl"
    assert (out / "lens.safetensors").stat().st_mtime_ns == before
    code, _, _ = cli("fit", *options, "--fresh")
    assert code == 0 and (out / "lens.safetensors").stat().st_mtime_ns > before


def test_a_lens_outlives_a_fresh_start_that_fails(cli, tiny_checkpoint, corpus, tmp_path):
    out = tmp_path / "fit"
    options = ["--ckpt", tiny_checkpoint, "--texts", corpus, "--out", out]
    options += ["--tokens", 400, "--length", 24, "--factoids", "none"]
    assert cli("fit", *options, "--kind", "linear")[0] == 0
    before = contents(out)
    for wrong in (["--kind", "linear", "--steps", 4], ["--kind", "tuned", "--steps", 0]):
        code, _, told = cli("fit", *options, *wrong, "--fresh")
        assert code == 2 and "--steps" in told and contents(out) == before
    _set_aside(out, FITTED)
    with locked(out):
        assert contents(out) == before | {".lock": b""}
    _set_aside(out, FITTED)
    code, _, told = cli("fit", *options, "--kind", "tuned")
    assert code == 2 and "holds a lens with another kind" in told and contents(out) == before


@pytest.mark.parametrize("more", [[], ["--fresh"]])
def test_what_another_process_fits_is_left_alone(cli, tiny_checkpoint, corpus, tmp_path, more):
    out = tmp_path / "fit"
    options = ["--ckpt", tiny_checkpoint, "--kind", "linear", "--texts", corpus, "--out", out]
    options += ["--tokens", 400, "--length", 24, "--factoids", "none"]
    assert cli("fit", *options)[0] == 0
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    with elsewhere(locked(out)):
        code, _, told = cli("fit", *options, *more)
        assert code == 2 and "another process is fitting here" in told
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tokens", 90_000], "the corpus is too small"),
        (["--kind", "linear", "--steps", 4], "only a tuned lens takes steps"),
        (["--kind", "jacobian", "--length", 12], "leaves out the first 16 positions"),
        (["--held-out", 0], "--held-out 0: give a whole number of at least 2"),
        (["--texts", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--ckpt", "nowhere"], "nowhere"),
        (["--template", "plain"], "--template plain: is of the facts of the floor"),
        (["--length", 4000], "no rows are left|reads 256 tokens"),
    ],
)
def test_bad_input_is_one_line(cli, tiny_checkpoint, corpus, tmp_path, options, message):
    import re

    given = {
        "--ckpt": tiny_checkpoint,
        "--kind": "linear",
        "--texts": corpus,
        "--tokens": 100,
        "--length": 24,
    }
    given |= dict(zip(options[::2], options[1::2], strict=True))
    arguments = [str(part) for pair in given.items() for part in pair]
    code, _, told = cli("fit", *arguments, "--out", tmp_path / "fit", "--factoids", "none")
    assert code != 0 and re.search(message, told) and "Traceback" not in told
    assert len(told.strip().splitlines()) == 1


def test_each_part_of_a_fit_tells_how_far_it_is(tiny_checkpoint, corpus, tmp_path):
    model = load(str(tiny_checkpoint), device="cpu")
    texts, origin = load_texts(str(corpus), 24)
    parts = make_corpus(model, texts, tokens=400, length=24, held_out=4, origin=origin)
    facts, told = load_factoids("kvr:5"), []
    fit("linear", model, parts, tmp_path / "fit", factoids=facts, progress=lambda *news: told.append(news))
    by_part = {part: [(done, total) for done, total, of in told if of == part] for *_, part in told}
    assert list(by_part) == ["fitting", "judging on held-out text", "measuring the floor"]
    assert by_part["judging on held-out text"] == [(done, 4) for done in range(5)]
    for steps in by_part.values():
        assert steps[0][0] == 0 and steps[-1][0] == steps[-1][1] > 0 and steps == sorted(steps)
