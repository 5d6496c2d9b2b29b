"""Whole runs: what they leave, how they go on after a kill, and what they refuse."""

import json
import re
import shlex
import shutil
import signal
import sys
import tomllib
from pathlib import Path

import polars as pl
import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from memprobe.answers import generate
from memprobe.checkpoints import resolve
from memprobe.cli.app import app as memprobe_app
from memprobe.errors import MemprobeError
from memprobe.manifests import read_manifest
from memprobe.models import load
from memprobe.probes import open_probe
from memprobe.sources import load_factoids
from memprobe.templates import Template, tokenise
from tests.disk import contents
from tests.training.runs import ROOT, losses, metrics, other_weights, python, same_weights, small, weights
from training.__main__ import app
from training.data import prepare
from training.evaluate import evaluate
from training.measures import evaluation_sets
from training.recipe import parse_recipe, read_recipe, to_toml
from training.run import run

EVERYTHING = (
    "remix(data=kvr:20:test, stages=1,2, ratio=1) + replay(ratio=0.5, redraw=true) + ewc(strength=10)"
)
STAGE_FILES = {
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "memprobe.json",
    "factoids.jsonl",
    "metrics.jsonl",
    "evaluation.json",
    "recipe.toml",
}


@pytest.fixture(scope="module")
def tiny(tiny_checkpoint, tmp_path_factory):
    """The shipped recipe `tiny`, as its comment says to run it."""
    out = tmp_path_factory.mktemp("tiny") / "run"
    recipe = read_recipe(ROOT / "training" / "recipes" / "tiny.toml")
    run(recipe.model_copy(update={"base": str(tiny_checkpoint)}), out, quiet=True)
    return out


@pytest.mark.parametrize("autocast", ["none", "bfloat16"])
def test_what_is_evaluated_is_what_lies_on_the_disk(autocast, tiny_checkpoint, tmp_path):
    """The model in memory stands for it; training's mixed precision must not blur what is said of it."""
    recipe = small(tiny_checkpoint, precision={"autocast": autocast}, evaluate={"interference": True})
    last = run(recipe, tmp_path / "run", quiet=True)
    said = json.loads((last / "evaluation.json").read_text())
    prepared = prepare(recipe, tmp_path / "other", lambda: load(str(tiny_checkpoint)))
    sets = evaluation_sets(prepared, recipe, 2)
    read_again = json.loads(json.dumps(evaluate(load(str(last)), sets)))
    assert said["sets"] == read_again
    moved = {}
    for name, start in {"stage": last.parent / "1-a", "base": tiny_checkpoint}.items():
        before, after = weights(start), weights(last)
        moved[name] = sum(float((after[key] - before[key]).double().square().sum()) for key in after) ** 0.5
    assert said["weight_change"] == pytest.approx(moved, rel=1e-6)
    assert 0 < moved["stage"] < moved["base"]
    assert said["interference"]["end"]["delta_norm"]["overall"] == pytest.approx(moved["stage"], rel=1e-5)


def test_the_tiny_recipe_leaves_whole_checkpoints(tiny):
    assert {path.name for path in tiny.iterdir() if path.is_dir()} == {"0-base", "1-kvr", "2-others"}
    assert {path.name for path in (tiny / "0-base").iterdir()} == {"evaluation.json"}
    for folder in (tiny / "1-kvr", tiny / "2-others"):
        assert {path.name for path in folder.iterdir()} >= STAGE_FILES
    assert not [path for path in tiny.rglob("*") if path.suffix in (".bin", ".pt", ".pth", ".pkl")]
    assert tomllib.loads((tiny / "recipe.toml").read_text())["seed"] == 0


def test_the_manifest_says_where_a_checkpoint_comes_from(tiny):
    checkpoint = resolve(str(tiny))
    manifest = checkpoint.manifest
    assert manifest is not None and checkpoint.path.name == "2-others"
    assert (manifest.stage, manifest.stage_name, manifest.seed) == (2, "others", 0)
    assert manifest.arm == "remix(data=kvr:8:test, stages=1)" and manifest.template == "tulu"
    assert manifest.steps == len(losses(tiny / "2-others"))
    assert load_factoids(str(manifest.stage_factoids(1))) == load_factoids("kvr:4")
    assert load_factoids(str(manifest.stage_factoids(2))) == load_factoids("kvr:4:validation")
    first = read_manifest(tiny / "1-kvr")
    assert first is not None and manifest.data["parent"]["spec"] == "../1-kvr"
    assert first.data["parent"]["fingerprint"] == first.data["base"]["fingerprint"]
    assert manifest.data["versions"]["torch"] == torch.__version__


def test_the_tiny_recipe_learns_and_forgets(tiny):
    first, second = (
        json.loads((tiny / name / "evaluation.json").read_text()) for name in ("1-kvr", "2-others")
    )
    assert first["sets"]["1-kvr"]["scores"]["exact_match"]["value"] == 1.0
    assert second["sets"]["1-kvr"]["scores"]["exact_match"]["value"] < 1.0
    assert second["retention"]["1-kvr"]["unseen"]["n"] == 4
    assert set(second["sets"]) == {"1-kvr", "2-others", "paraphrases", "manipulations"}
    measured = second["interference"]
    assert -1 <= measured["end"]["cosine_a_b"]["overall"] <= 1
    assert measured["end"]["delta_norm"]["overall"] > 0 and "delta_norm" not in measured["start"]
    assert len(measured["start"]["cosine_a_b"]["blocks"]) == 3


@pytest.mark.parametrize(("arm", "measured"), [("joint", False), ("none", True)])
def test_joint_training_has_nothing_that_pulls_against_d_a(arm, measured, tiny_checkpoint, tmp_path):
    """Its own rows begin with D_A, which would be held against itself."""
    recipe = small(tiny_checkpoint, arm, evaluate={"interference": True})
    last = run(recipe, tmp_path, quiet=True)
    assert ("interference" in json.loads((last / "evaluation.json").read_text())) is measured


def test_the_accuracy_matrix_begins_with_the_base_model(tiny, tiny_checkpoint):
    base = evaluation(tiny / "0-base")
    assert (base["stage"], base["stage_name"]) == (0, "0-base")
    assert set(base["sets"]) == {"1-kvr", "2-others", "paraphrases", "manipulations"}
    rows = {row["id"]: row["prediction"] for row in base["sets"]["2-others"]["rows"]}
    lens_model = load(str(tiny_checkpoint))
    for factoid in load_factoids("kvr:4:validation"):
        item = tokenise(factoid, Template("tulu"), lens_model.tokenizer)
        (said,) = generate(lens_model, [item.prompt], max_new_tokens=len(item.answer) + 8, end=item.end)
        assert said.strip().startswith(rows[factoid.id].strip()[:8]) and rows[factoid.id] != factoid.answer
    matrix = pl.read_csv(tiny / "accuracy.csv")
    assert matrix["stage"].to_list() == ["0-base", "1-kvr", "2-others"]
    assert matrix["1-kvr"].to_list()[:2] == [0.0, 1.0] and matrix["2-others"].to_list()[:2] == [0.0, None]
    with pytest.raises(MemprobeError, match="0-base"):  # it is no checkpoint
        resolve(str(tiny / "0-base"))


def test_runs_may_share_what_the_base_model_was_asked(tiny_checkpoint, tmp_path, monkeypatch):
    from training import evaluate as module

    asked, inner = [], module.evaluate
    monkeypatch.setattr(
        module, "evaluate", lambda model, sets: asked.append(list(sets)) or inner(model, sets)
    )
    for name, second in (("one", "kvr:6:validation"), ("other", "kvr:6:test")):
        stages = [{"name": "a", "data": "kvr:6", "epochs": 1}, {"name": "b", "data": second, "epochs": 1}]
        run(small(tiny_checkpoint, stages=stages), tmp_path / name, quiet=True, asked=tmp_path / "asked")
    one, other = (evaluation(tmp_path / name / "0-base")["sets"] for name in ("one", "other"))
    assert one["1-a"] == other["1-a"] and one["2-b"] != other["2-b"]
    stages_of_both = [["1-a"], ["1-a", "2-b"]]
    assert asked == [["1-a"], ["2-b"], *stages_of_both, ["2-b"], *stages_of_both]


def test_a_stage_that_did_not_learn_its_factoids_says_so(tiny, tiny_checkpoint, tmp_path):
    assert evaluation(tiny / "1-kvr")["learned"] is True
    last = run(small(tiny_checkpoint, "ewc(strength=1e9)"), tmp_path, quiet=True)
    assert evaluation(last)["learned"] is False
    log = (tmp_path / "log.txt").read_text()
    assert f"done: memprobe layers --ckpt {shlex.quote(str(tmp_path / '1-a'))} --ckpt" in log
    assert "2-b: 2-b: exact_match 0.000" in log and "2-b: learned 0.0% of b, so what it keeps" in log


def test_memprobe_reads_a_run_without_another_word(tiny, tmp_path):
    out = tmp_path / "probe"
    result = CliRunner().invoke(memprobe_app, ["layers", "--ckpt", str(tiny / "1-kvr"), "--out", str(out)])
    assert result.exit_code == 0, result.output
    probe = open_probe(out)
    assert probe.factoids["id"].to_list() == [factoid.id for factoid in load_factoids("kvr:4")]
    assert probe.outcomes["exact_match"].all() and probe.run["template"] == "tulu"


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(int(sys.argv[3]))
from training import one_stage, run as module, stage
from training.recipe import read_recipe

where, count = sys.argv[4], 0
def kill(after):
    global count
    count += 1
    if count == after:
        os.kill(os.getpid(), signal.SIGKILL)

def before(owner, name, after):
    inner = getattr(owner, name)
    def wrapped(*arguments, **options):
        kill(after)
        return inner(*arguments, **options)
    setattr(owner, name, wrapped)

points = {
    "in a step": (stage.StageTrainer, "compute_loss", 10),
    "in a step of stage 2": (stage.StageTrainer, "compute_loss", 34),
    "while saving": (stage.StageTrainer, "_save_scaler", 3),
    "before the mark": (stage, "mark_complete", 4),
    "while evaluating": (one_stage.OneStage, "_finish", 1),
    "between stages": (one_stage.OneStage, "_penalty", 2),
}
before(*points[where])
module.run(read_recipe(Path(sys.argv[1])), Path(sys.argv[2]), quiet=True)
print("never reached")
"""


GOES_ON = {
    "in a step": "1-a: goes on after step 4",
    "in a step of stage 2": "1-a: done before(.|\n)*2-b: goes on after step",
    "while saving": "1-a: checkpoint-3 was half-written, deleted\n.*\n.*1-a: goes on after step 2",
    "before the mark": "1-a: checkpoint-4 was half-written, deleted",
    "while evaluating": "1-a: goes on after step",
    "between stages": "1-a: done before",
}


def eventful(base):
    """Everything that has state: a redrawn replay, EWC, two micro-batches a step, a state after every step."""
    return small(base, EVERYTHING, save_minutes=0, optimiser={"lr": 1e-3, "batch": 4, "micro_batch": 2})


@pytest.fixture(scope="module")
def unbroken(tiny_checkpoint, tmp_path_factory):
    return run(eventful(tiny_checkpoint), tmp_path_factory.mktemp("unbroken"), quiet=True)


@pytest.mark.parametrize(
    "where",
    [
        "in a step",
        "in a step of stage 2",
        "while saving",
        "before the mark",
        "while evaluating",
        "between stages",
    ],
)
def test_killed_anywhere_the_same_command_ends_in_the_same_weights(
    where, unbroken, tiny_checkpoint, tmp_path, quick_python
):
    recipe = tmp_path / "r.toml"
    recipe.write_text(to_toml(eventful(tiny_checkpoint)))
    out = tmp_path / "run"
    killed = python(quick_python, KILLED, recipe, out, torch.get_num_threads(), where)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-1500:]
    assert not (out / "2-b").exists()
    last = run(read_recipe(recipe), out, quiet=True)
    assert re.search(GOES_ON[where], (out / "log.txt").read_text())
    assert same_weights(last, unbroken)
    assert losses(last) == losses(unbroken)
    assert not (out / ".state").exists()


@pytest.mark.parametrize(
    ("places", "moved"),
    [
        ("blocks=2", r"model\.layers\.1\."),
        ("blocks=1-2, parts=mlp", r"model\.layers\.[01]\.mlp\."),
        ("blocks=3, parts=attn+norms", r"model\.layers\.2\.(self_attn|.*norm)"),
        ("parts=head", r"model\.norm|lm_head"),
    ],
)
def test_a_stage_trains_the_weights_it_names_and_no_other(places, moved, tiny_checkpoint, tmp_path):
    stages = [{"name": "a", "data": "kvr:6", "epochs": 2, "train": places}]
    stages += [{"name": "b", "data": "kvr:6:validation", "epochs": 1}]
    recipe = small(tiny_checkpoint, "ewc(strength=1)", stages=stages, evaluate={"interference": True})
    last = run(recipe, tmp_path / "run", quiet=True)
    base, first, second = weights(tiny_checkpoint), weights(last.parent / "1-a"), weights(last)
    changed = {name for name in base if not torch.equal(base[name], first[name])}
    assert changed == {name for name in base if re.match(moved, name)}
    assert all(not torch.equal(first[name], second[name]) for name in base)
    assert parse_recipe(tomllib.loads(to_toml(recipe))) == recipe


def test_a_stage_of_one_block_under_ewc_holds_that_block(tiny_checkpoint, tmp_path):
    stages = [{"name": "a", "data": "kvr:6", "epochs": 1}]
    stages += [{"name": "b", "data": "kvr:6:validation", "epochs": 2, "train": "blocks=2"}]
    last = run(small(tiny_checkpoint, "ewc(strength=10)", stages=stages), tmp_path / "run", quiet=True)
    first, second = weights(last.parent / "1-a"), weights(last)
    changed = {name for name in first if not torch.equal(first[name], second[name])}
    assert changed == {name for name in first if name.startswith("model.layers.1.")}
    assert json.loads((last / "metrics.jsonl").read_text().splitlines()[-1])["penalty"] > 0


def test_a_block_that_the_model_does_not_have_is_named(tiny_checkpoint, tmp_path):
    stages = [{"name": "a", "data": "kvr:6", "train": "blocks=4"}]
    with pytest.raises(MemprobeError, match=r"stages\.1\.train: blocks=4-4, but there are blocks 1 to 3"):
        run(small(tiny_checkpoint, stages=stages), tmp_path / "run", quiet=True)


@pytest.mark.parametrize("arm", ["lora(rank=4)", "kl(strength=0.5)", "joint"])
def test_other_arms_go_on_as_well(arm, tiny_checkpoint, tmp_path, monkeypatch):
    from training import stage

    recipe = small(tiny_checkpoint, arm, save_minutes=0)
    whole = run(recipe, tmp_path / "whole", quiet=True)
    inner, calls = stage.StageTrainer.compute_loss, []

    def broken(*arguments, **options):
        calls.append(1)
        if len(calls) == 8:
            raise OSError("a fault")
        return inner(*arguments, **options)

    monkeypatch.setattr(stage.StageTrainer, "compute_loss", broken)
    with pytest.raises(MemprobeError, match="a fault"):
        run(recipe, tmp_path / "run", quiet=True)
    last = run(recipe, tmp_path / "run", quiet=True)
    assert "goes on after step" in (tmp_path / "run" / "log.txt").read_text()
    assert same_weights(last, whole) and losses(last) == losses(whole)


def test_a_run_that_is_done_is_left_alone(tiny, tiny_checkpoint):
    before = {path: path.stat().st_mtime_ns for path in tiny.rglob("*.safetensors")}
    recipe = read_recipe(ROOT / "training" / "recipes" / "tiny.toml")
    run(recipe.model_copy(update={"base": str(tiny_checkpoint)}), tiny, quiet=True)
    assert before == {path: path.stat().st_mtime_ns for path in tiny.rglob("*.safetensors")}


def test_a_run_that_is_done_needs_no_weights_to_get_its_base_row(tiny, tiny_checkpoint, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(
        tiny, out, ignore=shutil.ignore_patterns("*.safetensors", "config.json", "0-base", "*.csv")
    )
    recipe = read_recipe(ROOT / "training" / "recipes" / "tiny.toml")
    run(recipe.model_copy(update={"base": str(tiny_checkpoint)}), out, quiet=True)
    assert evaluation(out / "0-base") == evaluation(tiny / "0-base")
    assert (out / "accuracy.csv").read_text() == (tiny / "accuracy.csv").read_text()


def test_two_states_are_kept_and_all_go_at_the_end(tiny_checkpoint, tmp_path, monkeypatch):
    from training import stage

    seen = []
    inner = stage.complete_states
    monkeypatch.setattr(
        stage,
        "complete_states",
        lambda folder: seen.append(len(list(folder.glob("checkpoint-*")))) or inner(folder),
    )
    run(small(tiny_checkpoint, save_minutes=0), tmp_path, quiet=True)
    assert max(seen) == 3  # two, and the newest before the oldest goes
    assert not list(tmp_path.rglob("checkpoint-*"))


def test_states_are_in_the_order_of_their_steps(tmp_path):
    """As words, checkpoint-9 comes after checkpoint-100, and the newest states would be the ones that go."""
    from training.states import COMPLETE, complete_states

    for step in (100, 9, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / COMPLETE).write_text("{}")
    assert [path.name for path in complete_states(tmp_path)] == [
        "checkpoint-9",
        "checkpoint-10",
        "checkpoint-100",
    ]


def test_a_torn_state_is_deleted_and_not_used(tiny_checkpoint, tmp_path):
    from training.states import COMPLETE, newest_state, remove_torn

    for step in (10, 20, 9):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if step != 20:
            (folder / COMPLETE).write_text("{}")
    newest = newest_state(tmp_path)
    assert newest is not None and newest.name == "checkpoint-10"
    assert remove_torn(tmp_path) == ["checkpoint-20"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-9"]


def test_a_changed_recipe_is_refused_with_what_differs(tiny_checkpoint, tmp_path):
    run(small(tiny_checkpoint), tmp_path, quiet=True)
    with pytest.raises(MemprobeError, match=r"seed: 0 -> 5.*--fresh"):
        run(small(tiny_checkpoint, seed=5), tmp_path, quiet=True)
    run(
        small(tiny_checkpoint, save_minutes=60, loggers=["tensorboard"]), tmp_path, quiet=True
    )  # trains the same
    last = run(small(tiny_checkpoint, seed=5), tmp_path, fresh=True, quiet=True)
    manifest = read_manifest(last)
    assert manifest is not None and manifest.seed == 5


def own_recipe(folder, base, lr="1e-3", train=""):
    """A recipe of the user's own in a folder, with a comment in it."""
    folder.mkdir(exist_ok=True)
    stages = [
        f'[[stages]]\nname = "{name}"\ndata = "kvr:4{split}"\nepochs = 1\n'
        for name, split in (("a", ""), ("b", ":test"))
    ]
    text = f'# six months of notes\nbase = "{base}"\n[optimiser]\nlr = {lr}\nbatch = 4\nmicro_batch = 4\n'
    path = folder / "recipe.toml"
    path.write_text(text + stages[0] + stages[1] + train)
    return path


def training(*words):
    """What the command says, or the error that it ends in."""
    told = CliRunner().invoke(app, ["run", *map(str, words)])
    assert told.exception is None or isinstance(told.exception, MemprobeError), told.exception
    return told.output if told.exception is None else f"error: {told.exception}"


def test_a_recipe_that_is_read_is_never_written_over(tiny_checkpoint, tmp_path):
    """Nor is a folder that holds one a run's."""
    path = own_recipe(tmp_path / "mine", tiny_checkpoint)
    before = path.read_text()
    for options in ([], ["--fresh"]):
        told = training(path, "--out", path.parent, *options)
        assert "error: " in told and "another --out than the folder of the recipe" in told
        assert [file.name for file in path.parent.iterdir()] == ["recipe.toml"] and path.read_text() == before
    with pytest.raises(MemprobeError, match=r"holds 'recipe\.toml' and is not a run directory"):
        run(small(tiny_checkpoint), path.parent, quiet=True)
    assert path.read_text() == before


def test_a_run_is_held_against_what_it_was_begun_with(tiny_checkpoint, tmp_path):
    """Not against its recipe.toml, which may be the file that is read, and edited."""
    out = tmp_path / "run"
    assert "error" not in training(own_recipe(tmp_path / "mine", tiny_checkpoint), "--out", out)
    own = out / "recipe.toml"
    assert "error" not in training(own, "--out", out), "as it was resolved"
    assert "error: --fresh: replaces" in training(own, "--out", out, "--fresh") and own.exists()
    shutil.rmtree(out / "2-b")
    own.write_text(own.read_text().replace("lr = 0.001", "lr = 0.1"))
    for prepared in (True, False):
        if not prepared:  # as in a copy without hidden files
            (out / ".prepared.json").unlink()
        assert "optimiser.lr: 0.001 -> 0.1" in training(own, "--out", out)
        assert not (out / "2-b").exists()


def test_a_recipe_may_be_mended_until_something_was_measured(tiny_checkpoint, tmp_path):
    """Blocks that the model does not have, in whatever stage, are found before anything is trained."""
    out = tmp_path / "run"
    path = own_recipe(tmp_path / "mine", tiny_checkpoint, train='train = "blocks=50"\n')
    assert "error: stages.2.train: blocks=50" in training(path, "--out", out)
    assert not list(out.glob("*-*"))
    own_recipe(tmp_path / "mine", tiny_checkpoint, train='train = "blocks=1"\n')
    assert "error" not in training(path, "--out", out)
    assert 'train = "blocks=1"' in (out / "recipe.toml").read_text()


def test_a_run_goes_on_from_wherever_its_files_are_named(tiny_checkpoint, tmp_path, monkeypatch):
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "facts.jsonl").write_text('{"prompt": "River A is", "answer": "B"}\n' * 1)
    (folder / "texts.jsonl").write_text(
        json.dumps({"text": "All rivers of the land run down to the sea. " * 12}) + "\n"
    )
    path = own_recipe(folder, tiny_checkpoint)
    evaluate = '[evaluate]\ntexts = "texts.jsonl"\ntexts_n = 1\n'
    path.write_text(
        path.read_text().replace('"kvr:4"', '"facts.jsonl"').replace("[[stages]]", evaluate + "[[stages]]", 1)
    )
    monkeypatch.chdir(folder)
    assert "error" not in training("recipe.toml", "--out", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "2-b")
    monkeypatch.chdir(tmp_path)
    # A namesake here is not what the recipe beside it means.
    (tmp_path / "texts.jsonl").write_text(
        json.dumps({"text": "No river of the land runs up to any hill. " * 12}) + "\n"
    )
    told = training("rows/recipe.toml", "--out", tmp_path / "run")
    assert "error" not in told and "1-a: done before" in told
    (folder / "facts.jsonl").write_text('{"prompt": "River A is", "answer": "C"}\n')
    assert "facts.jsonl: was another file" in training("rows/recipe.toml", "--out", tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"precision": {"fsdp": True}}, r"precision\.fsdp: .*this is one; .*torchrun"),
        ({"loggers": ["tensorbord"]}, r"loggers: no logger 'tensorbord'; .*did you mean tensorboard\?"),
        (
            {"loggers": ["mlflow"]},
            r"loggers: mlflow cannot be used here; install it, or leave it out",
        ),
    ],
)
def test_what_cannot_be_trained_here_is_said_before_anything(
    changes, words, tiny_checkpoint, tmp_path, monkeypatch
):
    monkeypatch.setattr("transformers.integrations.integration_utils.is_mlflow_available", lambda: False)
    changed = small(tiny_checkpoint, precision={"autocast": "auto"} | changes.pop("precision", {}), **changes)
    with pytest.raises(MemprobeError, match=words):
        run(changed, tmp_path / "run", quiet=True, asked=tmp_path / "asked")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_folder_of_answers_that_is_none_is_named(place, tiny_checkpoint, tmp_path):
    """Not the run's directory, which is as it should be."""
    (tmp_path / "file").write_text("")
    with pytest.raises(
        MemprobeError, match=r"^(--asked )?.*/file(/below)?: (is no folder|Not a directory)"
    ) as error:
        run(small(tiny_checkpoint), tmp_path / "run", quiet=True, asked=tmp_path / place)
    assert str(tmp_path / "run") not in str(error.value) and not list(tmp_path.glob("run/*-a"))


def files_below(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def begun(tiny_checkpoint, tmp_path):
    """A run of two short stages, the first one and the text to watch from files, on a base model of its own."""
    base = broken(tiny_checkpoint, tmp_path / "base")
    rows, texts = tmp_path / "rows.jsonl", tmp_path / "texts.jsonl"
    rows.write_text(
        "".join(json.dumps({"prompt": f"River {i} is", "answer": f"A{i}"}) + "\n" for i in "abcd")
    )
    texts.write_text(json.dumps({"text": "All rivers of the land run down to the sea. " * 12}) + "\n")
    stages = [{"name": "a", "data": str(rows), "epochs": 1}, {"name": "b", "data": "kvr:4", "epochs": 1}]
    recipe = small(base, stages=stages, evaluate={"texts": str(texts), "texts_n": 1})
    run(recipe, tmp_path / "run", quiet=True)
    return recipe, tmp_path / "run"


@pytest.mark.parametrize("left", ["1-a", ""])
def test_a_base_model_of_other_settings_is_another_one(left, begun):
    """The same tensors, made into a model otherwise."""
    recipe, out = begun
    for name in {"1-a", "2-b"} - set(left.split()):
        shutil.rmtree(out / name)
    config = Path(recipe.base) / "config.json"
    told = json.loads(config.read_text())
    config.write_text(json.dumps(told | {"rms_norm_eps": 0.5}))
    with pytest.raises(MemprobeError, match="had the same weights with other settings then"):
        run(recipe, out, quiet=True)
    config.write_text(json.dumps(told))
    assert run(recipe, out, quiet=True).exists()


@pytest.mark.parametrize("left", ["1-a 2-b", "1-a", "2-b", ""])
def test_a_run_goes_on_from_its_own_base_model_alone(left, begun):
    """The recipe names a path, under which another model may lie by now; of no stage, the base model was evaluated."""
    recipe, out = begun
    for name in {"1-a", "2-b"} - set(left.split()):
        shutil.rmtree(out / name)
    other_weights(Path(recipe.base))
    before = files_below(out)
    with pytest.raises(
        MemprobeError, match=r"run: was begun with another base model \(.*base had other weights"
    ):
        run(recipe, out, quiet=True)
    assert {path: content for path, content in files_below(out).items() if path.name != "log.txt"} == {
        path: content for path, content in before.items() if path.name != "log.txt"
    }


@pytest.mark.parametrize("left", ["1-a 2-b", "1-a"])
@pytest.mark.parametrize("changed", ["weights", "settings"])
def test_a_stage_goes_on_from_the_one_that_was_saved_alone(changed, left, begun):
    """Also where no later stage says what that one was: it does itself."""
    recipe, out = begun
    if left == "1-a":
        shutil.rmtree(out / "2-b")
    if changed == "weights":
        other_weights(out / "1-a")
    else:
        config = out / "1-a" / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"rms_norm_eps": 0.5}))
    with pytest.raises(
        MemprobeError, match=rf"1-a: is not the checkpoint that was saved there \(.*1-a had .*{changed} then"
    ):
        run(recipe, out, quiet=True)
    assert {path.name for path in out.glob("?-?")} == set(left.split())


@pytest.mark.parametrize(
    ("changed", "said"),
    [("weights", "other weights"), ("settings", "the same weights with other settings")],
)
def test_a_stage_goes_on_from_the_one_that_lies_before_it_alone(changed, said, begun):
    """Whatever the first one's own manifest says, or does not say as in older versions."""
    recipe, out = begun
    said_first, said_second = (
        json.loads((out / name / "memprobe.json").read_text()) for name in ("1-a", "2-b")
    )
    own = said_first["checkpoint"]
    assert own | {"spec": "../1-a"} == said_second["parent"] and {"fingerprint", "settings"} < own.keys()
    if changed == "settings":
        config = out / "1-a" / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"rms_norm_eps": 0.5}))
    else:
        other_weights(out / "1-a")
    (out / "1-a" / "memprobe.json").write_text(
        json.dumps({key: value for key, value in said_first.items() if key != "checkpoint"})
    )
    with pytest.raises(
        MemprobeError, match=rf"2-b: was trained from another checkpoint \(.*1-a had {said} then"
    ):
        run(recipe, out, quiet=True)


def test_manifests_of_older_versions_are_gone_on_with(begun):
    recipe, out = begun
    for name in ("1-a", "2-b"):
        said = json.loads((out / name / "memprobe.json").read_text())
        del said["checkpoint"], said["parent"]["settings"]
        (out / name / "memprobe.json").write_text(json.dumps(said))
    run(recipe, out, quiet=True)
    shutil.rmtree(out / "2-b")
    assert run(recipe, out, quiet=True).exists()


@pytest.mark.parametrize("left", ["1-a 2-b", "1-a", ""])
@pytest.mark.parametrize("edited", ["rows.jsonl", "texts.jsonl"])
def test_a_file_that_was_edited_is_refused_by_name(edited, left, begun):
    recipe, out = begun
    for name in {"1-a", "2-b"} - set(left.split()):
        shutil.rmtree(out / name)
    file = out.parent / edited
    file.write_text(file.read_text().replace("A", "The"))
    with pytest.raises(MemprobeError, match=rf"{edited}: was another file when .*run was begun"):
        run(recipe, out, quiet=True)
    assert {path.name for path in out.glob("?-?")} == set(left.split())


def test_rows_that_are_read_again_are_those_that_were_trained_on(begun):
    """Where the rows that were kept are gone, each stage says what it was trained on."""
    recipe, out = begun
    (out / ".prepared.json").unlink()
    run(recipe, out, quiet=True)
    (out / ".prepared.json").unlink()
    file = out.parent / "rows.jsonl"
    file.write_text(file.read_text().replace("A", "The"))
    with pytest.raises(MemprobeError, match=r"1-a: was trained on other rows of a \(.*rows\.jsonl\)"):
        run(recipe, out, quiet=True)


def test_a_file_may_be_mended_before_anything_was_trained_on_it(begun):
    recipe, out = begun
    prepared = json.loads((out / ".prepared.json").read_text())
    shutil.rmtree(out)
    out.mkdir()
    (out / ".prepared.json").write_text(json.dumps(prepared))
    file = out.parent / "rows.jsonl"
    file.write_text(file.read_text().replace("A", "The"))
    run(recipe, out, quiet=True)
    assert {fact.answer[:3] for fact in load_factoids(str(out / "1-a" / "factoids.jsonl"))} == {"The"}


def test_a_directory_in_use_is_refused(tiny_checkpoint, tmp_path):
    with FileLock(tmp_path / ".lock"), pytest.raises(MemprobeError, match="another process"):
        run(small(tiny_checkpoint), tmp_path, quiet=True)


def test_fresh_deletes_what_runs_write_alone(tiny_checkpoint, tmp_path):
    run(small(tiny_checkpoint), tmp_path, quiet=True)
    for name in ("notes", ".git"):
        (tmp_path / name).mkdir()
    run(small(tiny_checkpoint, stages=[{"name": "c", "data": "kvr:3"}]), tmp_path, fresh=True, quiet=True)
    folders = {path.name for path in tmp_path.iterdir() if path.is_dir()}
    assert folders == {"0-base", "1-c", "notes", ".git"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"base": "./missing"},
        {"stages": [{"name": "a", "data": "nowhere.jsonl"}]},
        {"stages": [{"name": "a", "data": "kvr:6"}], "max_length": 3},
    ],
)
def test_a_run_outlives_a_fresh_start_that_fails(tiny_checkpoint, tmp_path, wrong):
    out = tmp_path / "run"
    run(small(tiny_checkpoint), out, quiet=True)
    before = contents(out)
    with pytest.raises(MemprobeError, match="is as it was before --fresh"):
        run(parse_recipe(small(tiny_checkpoint).model_dump() | wrong), out, fresh=True, quiet=True)
    assert contents(out) == before


def test_a_directory_with_other_things_is_refused_and_kept(tiny_checkpoint, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(MemprobeError, match=r"thesis\.tex"):
        run(small(tiny_checkpoint), tmp_path, fresh=True, quiet=True)
    assert (tmp_path / "thesis.tex").exists()


def test_checkpoints_along_the_way(tiny_checkpoint, tmp_path):
    stages = [{"name": "a", "data": "kvr:6", "epochs": 3, "checkpoints": {"epochs": 1}}]
    last = run(small(tiny_checkpoint, stages=stages), tmp_path, quiet=True)
    steps = [tmp_path / "along" / "1-a" / f"step-{step}" for step in (2, 4)]
    assert sorted((tmp_path / "along" / "1-a").iterdir()) == steps
    manifest = read_manifest(steps[0])
    assert manifest is not None and manifest.steps == 2
    assert not same_weights(steps[0], steps[1]) and not same_weights(steps[1], last)
    assert len(losses(steps[1])) == 4


def test_how_far_weights_are_from_the_base_does_not_depend_on_what_memory_holds(tiny_checkpoint, tmp_path):
    """A model of bfloat16 is held against the base as it lies there, not as it was rounded when it was read."""
    recipe = small(tiny_checkpoint, precision={"weights": "bfloat16", "save_dtype": "bfloat16"})
    run(recipe, tmp_path / "whole", quiet=True)
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed", symlinks=True)
    shutil.rmtree(tmp_path / "resumed" / "2-b")  # as if it was killed after stage 1
    run(recipe, tmp_path / "resumed", quiet=True)
    changes = [
        json.loads((tmp_path / name / "2-b" / "evaluation.json").read_text())["weight_change"]
        for name in ("whole", "resumed")
    ]
    assert same_weights(tmp_path / "whole" / "2-b", tmp_path / "resumed" / "2-b")
    assert changes[0] == changes[1]
    base, now = weights(tiny_checkpoint), weights(tmp_path / "whole" / "2-b")
    by_hand = sum((now[name].double() - base[name].double()).square().sum() for name in now) ** 0.5
    assert changes[0]["base"] == pytest.approx(float(by_hand), rel=1e-6)


def test_weights_in_float16_are_refused(tiny_checkpoint):
    with pytest.raises(MemprobeError, match=r"precision\.weights"):
        small(tiny_checkpoint, precision={"weights": "float16"})


def test_kl_begins_at_nothing_in_the_precision_of_training(tiny_checkpoint, tmp_path):
    """At the first step the model is the one that it is held to, computed alike."""
    run(small(tiny_checkpoint, "kl(strength=1)", precision={"autocast": "bfloat16"}), tmp_path, quiet=True)
    first, *later = [step["penalty"] for step in metrics(tmp_path / "2-b")]
    assert abs(first) < 1e-6 and max(later) > 1e-6


def test_save_dtype(tiny_checkpoint, tmp_path):
    last = run(small(tiny_checkpoint, precision={"save_dtype": "bfloat16"}), tmp_path, quiet=True)
    assert {tensor.dtype for tensor in weights(last).values()} == {torch.bfloat16}
    assert json.loads((last / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    "precision",
    [{"weights": "bfloat16"}, {"autocast": "bfloat16", "gradient_checkpointing": True}],
    ids=["bf16 weights", "bf16 autocast, gradient checkpointing"],
)
def test_precisions_come_close_to_fp32(precision, tiny_checkpoint, tmp_path):
    plain = run(small(tiny_checkpoint), tmp_path / "plain", quiet=True)
    other = run(small(tiny_checkpoint, precision=precision), tmp_path / "other", quiet=True)
    assert losses(other) != losses(plain)
    assert losses(other) == pytest.approx(losses(plain), rel=0.05)


def test_a_tied_unembedding_is_written_once(tmp_path):
    from tests.tiny import save_tiny

    base = save_tiny(tmp_path / "base", "llama-tied")
    last = run(small(base, precision={"save_dtype": "bfloat16"}), tmp_path / "run", quiet=True)
    assert "lm_head.weight" not in weights(last) and weights(last).keys() == weights(base).keys()


def test_the_joint_arm_trains_one_stage_on_all(tiny_checkpoint, tmp_path):
    last = run(small(tiny_checkpoint, "joint"), tmp_path, quiet=True)
    manifest = read_manifest(last)
    assert manifest is not None and last.name == "2-joint" and manifest.arm == "joint"
    assert manifest.data["parent"]["fingerprint"] == manifest.data["base"]["fingerprint"]
    assert len(load_factoids(str(manifest.stage_factoids(1)))) == 6
    assert manifest.steps == 9  # 12 rows, 3 epochs, batches of 4


@pytest.mark.parametrize("epochs", [(4, 2), (2, 4)])
def test_no_fact_is_seen_less_often_in_joint_training_than_in_other_arms(tiny_checkpoint, tmp_path, epochs):
    stages = [
        {"name": name, "data": data, "epochs": times}
        for name, data, times in zip("ab", ("kvr:6", "kvr:6:validation"), epochs, strict=True)
    ]
    last = run(small(tiny_checkpoint, "joint", stages=stages), tmp_path, quiet=True)
    manifest = read_manifest(last)
    assert manifest is not None and manifest.steps == 12  # 12 rows, 4 epochs, batches of 4


def test_replayed_and_unseen_rows_are_told_apart(tiny_checkpoint, tmp_path):
    last = run(small(tiny_checkpoint, "replay(ratio=0.5)"), tmp_path, quiet=True)
    found = json.loads((last / "evaluation.json").read_text())["retention"]["1-a"]
    assert {name: part["n"] for name, part in found.items()} == {"all": 6, "replayed": 3, "unseen": 3}


def test_stop_rules(tiny_checkpoint, tmp_path):
    def stopped(name, stop, **changes):
        stages = [{"name": "a", "data": "kvr:2", "epochs": 300, "stop": stop}]
        last = run(small(tiny_checkpoint, stages=stages, **changes), tmp_path / name, quiet=True)
        manifest = read_manifest(last)
        assert manifest is not None
        return manifest.steps, manifest.data["stopped"], last

    quick = {"optimiser": {"lr": 5e-3, "batch": 2, "schedule": "constant"}}
    steps, why, last = stopped("loss", {"loss": 0.5, "steps": 3}, **quick)
    assert 3 <= steps < 300 and why == "loss below 0.5 for 3 steps"
    found = losses(last)
    assert all(loss < 0.5 for loss in found[-3:]) and found[-4] >= 0.5
    steps, why, last = stopped("exact", {"exact_match": True}, **quick)
    assert steps < 300 and why == "every own row is exact"
    result = json.loads((last / "evaluation.json").read_text())
    assert result["sets"]["1-a"]["scores"]["exact_tokens"]["value"] == 1.0


def evaluation(folder):
    return json.loads((folder / "evaluation.json").read_text())


def broken(base, path):
    shutil.copytree(base, path)
    return path


def test_a_loss_that_turns_nan_stops_the_run(tiny_checkpoint, tmp_path):
    optimiser = {"lr": 1e30, "batch": 4, "clip": 1e30}
    with pytest.raises(MemprobeError, match=r"1-a: (loss|grad_norm) is (nan|inf) at step \d"):
        run(small(tiny_checkpoint, optimiser=optimiser, save_minutes=0), tmp_path, quiet=True)
    states = list((tmp_path / ".state" / "1-a").glob("checkpoint-*"))
    assert states, "those from before, from which a run with other settings could go on"
    for state in states:
        tensors = load_file(state / "model.safetensors").values()
        assert all(torch.isfinite(tensor).all() for tensor in tensors)


def test_a_full_disk_leaves_the_run_resumable(tiny_checkpoint, tmp_path, monkeypatch, unbroken):
    from training import stage

    inner, calls = stage.mark_complete, []

    def full(folder, content):
        calls.append(folder)
        if len(calls) == 4:
            raise OSError(28, "No space left on device")
        inner(folder, content)

    monkeypatch.setattr(stage, "mark_complete", full)
    with pytest.raises(MemprobeError, match=r"step 4 could not be saved .*No space left"):
        run(eventful(tiny_checkpoint), tmp_path, quiet=True)
    assert sorted(path.name for path in tmp_path.rglob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]
    assert same_weights(run(eventful(tiny_checkpoint), tmp_path, quiet=True), unbroken)


@pytest.mark.parametrize("name", ["training.checkpoint.save_model", "training.one_stage.evaluation_sets"])
def test_a_disk_that_fills_while_the_checkpoint_is_saved(
    name, tiny_checkpoint, tmp_path, monkeypatch, unbroken
):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(name, full)
        with pytest.raises(MemprobeError, match=r"1-a: the checkpoint could not be saved .*No space left"):
            run(eventful(tiny_checkpoint), tmp_path, quiet=True)
    assert not (tmp_path / "1-a").exists() and not list(tmp_path.rglob("saving-*"))
    assert same_weights(run(eventful(tiny_checkpoint), tmp_path, quiet=True), unbroken)
    assert "1-a: goes on after step" in (tmp_path / "log.txt").read_text()


def test_a_base_model_that_is_not_causal(tiny_checkpoint, tmp_path):
    base = broken(tiny_checkpoint, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"architectures": ["BertForMaskedLM"]}))
    with pytest.raises(MemprobeError, match="BertForMaskedLM, not a causal LM"):
        run(small(base), tmp_path / "run", quiet=True)


def test_a_torn_base_model(tiny_checkpoint, tmp_path):
    base = broken(tiny_checkpoint, tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    tensors.pop("model.norm.weight")
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MemprobeError, match=r"missing.*model\.norm\.weight"):
        run(small(base), tmp_path / "run", quiet=True)


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ({"data": "kvr:6", "n": 7}, r"stages\.1\.data: .*7"),
        (
            {"data": "kvr:6", "mixing": [{"source": "kvr:5:test", "ratio": 2}]},
            r"stages\.1\.mixing\.1\.source: .*12",
        ),
        ({"data": "kvr:6", "kind": "tasks"}, r"stages\.1\.data: .*not tasks"),
    ],
)
def test_too_few_rows_are_named_by_key_before_anything_is_trained(stage, said, tiny_checkpoint, tmp_path):
    with pytest.raises(MemprobeError, match=said):
        run(small(tiny_checkpoint, stages=[{"name": "a"} | stage]), tmp_path, quiet=True)
    assert not (tmp_path / "1-a").exists() and not (tmp_path / "recipe.toml").exists()


def test_rows_that_do_not_fit_are_found_before_the_first_stage(tiny_checkpoint, tmp_path):
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text(
        "".join(json.dumps({"prompt": f"{i} up " * 80, "answer": "down"}) + "\n" for i in range(4))
    )
    late = {"name": "b", "data": str(tasks), "kind": "tasks", "held_out": 1}
    recipe = small(tiny_checkpoint, stages=[{"name": "a", "data": "kvr:6"}, late], max_length=100)
    with pytest.raises(
        MemprobeError,
        match=r"stages\.2\.data: .*0 of its 4 rows have a prompt of fewer than 100 tokens.*max_length",
    ):
        run(recipe, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run" / "1-a").exists()


def test_the_command_line(tiny_checkpoint, tmp_path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text(to_toml(small(tiny_checkpoint)))
    result = CliRunner().invoke(app, ["run", str(recipe), "--out", str(tmp_path / "run"), "--seed", "3"])
    assert result.exit_code == 0, result.output
    lines = (tmp_path / "run" / "log.txt").read_text().splitlines()
    assert any("exact_match" in line for line in lines) and "memprobe layers" in lines[-1]
    assert parse_recipe(tomllib.loads((tmp_path / "run" / "recipe.toml").read_text())).seed == 3


def test_errors_are_one_line(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text("colour = 3")
    script = "import sys; from training.__main__ import main; sys.argv[1:] = ['run', sys.argv[1]]; main()"
    done = python([sys.executable], script, path)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("python -m training: error: ") and "colour" in done.stderr


def test_a_step_of_many_tokens_is_taken_in_pieces_and_comes_to_the_same(tiny_checkpoint, tmp_path):
    whole = small(tiny_checkpoint)
    rows = 4 * 40  # tokens of a step, about
    optimiser = whole.optimiser.model_copy(update={"micro_tokens": rows // 3})
    pieces = whole.model_copy(update={"optimiser": optimiser})
    for name, recipe in {"whole": whole, "pieces": pieces}.items():
        run(recipe, tmp_path / name, quiet=True)
    one, other = (weights(tmp_path / name / "2-b") for name in ("whole", "pieces"))
    assert all(torch.allclose(one[name], other[name], atol=1e-4) for name in one)
    assert losses(tmp_path / "pieces" / "1-a") == pytest.approx(losses(tmp_path / "whole" / "1-a"), rel=1e-4)
    assert not same_weights(tmp_path / "pieces" / "2-b", tmp_path / "whole" / "2-b"), (
        "it was summed otherwise"
    )


def test_a_run_takes_no_lock_in_the_repository(monkeypatch):
    """A killed run must not leave ``index.lock`` behind, after which git refuses every commit."""
    from training import checkpoint

    asked = []
    real = checkpoint.subprocess.run
    monkeypatch.setattr(
        checkpoint.subprocess, "run", lambda line, **how: asked.append(line) or real(line, **how)
    )
    checkpoint._commit()
    assert asked and all("--no-optional-locks" in line for line in asked)
