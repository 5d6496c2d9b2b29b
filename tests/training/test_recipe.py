"""Recipes: what is read, what is refused, and that the shipped ones are valid."""

import tomllib
from pathlib import Path

import pytest

import training
from memprobe.errors import MemprobeError
from training.alike import differences
from training.recipe import file_of, parse_recipe, read_recipe, to_toml, without_folder

SHIPPED = sorted((Path(training.__file__).parent / "recipes").glob("*.toml"))


def recipe(arm="none", **changes):
    stages = [{"name": "a", "data": "kvr:8"}, {"name": "b", "data": "known"}, {"name": "c", "data": "known"}]
    return {"base": "base", "arm": arm, "stages": stages} | changes


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipes_are_valid_and_small_enough_to_read(path):
    found = read_recipe(path)
    assert parse_recipe(tomllib.loads(to_toml(found))) == found
    assert len(path.read_text().splitlines()) <= 60


def test_the_shipped_set():
    assert {"tiny", "demo", "llama3-8b-paper"} <= {path.stem for path in SHIPPED}
    assert sum(path.stem.startswith("smollm2-") for path in SHIPPED) >= 2


def test_the_papers_settings_are_the_defaults():
    found = parse_recipe(recipe())
    optimiser = found.optimiser
    assert (optimiser.lr, optimiser.betas, optimiser.eps) == (5e-5, (0.9, 0.95), 1e-8)
    assert (optimiser.weight_decay, optimiser.clip, optimiser.batch) == (0.0, 1.0, 32)
    assert (optimiser.schedule, optimiser.warmup) == ("cosine", 0.05)
    assert found.template == "tulu" and found.stages[0].epochs == 20


@pytest.mark.parametrize(
    ("arm", "name"),
    [
        ("none", "none"),
        ("joint", "joint"),
        ("remix(stages=2,1, data=generic)", "remix(data=generic, stages=1,2)"),
        (
            "remix(data=generic,random-words, stages=1)",
            "remix(data=generic,random-words, stages=1, prompt=words)",
        ),
        (
            "remix(data=random-words, stages=1, prompt=sentence)",
            "remix(data=random-words, stages=1, prompt=sentence)",
        ),
        (
            "remix(data=generic, stages=1, words=12, ratio=3)",
            "remix(data=generic, stages=1, ratio=3, words=12,12)",
        ),
        ("matched(to=steps, data=generic, stages=2)", "matched(to=steps, data=generic, stages=2)"),
        ("replay(ratio=0.1)", "replay(ratio=0.1, stages=2,3)"),
        ("replay(ratio=0.1, redraw=true, stages=3)", "replay(ratio=0.1, stages=3, redraw=true)"),
        ("ewc(strength=1000)", "ewc(strength=1000, stages=2,3)"),
        ("ewc(strength=1e7)", "ewc(strength=1e+07, stages=2,3)"),
        ("kl(strength=0.5, stages=2)", "kl(strength=0.5, stages=2)"),
        ("lora(rank=8)", "lora(rank=8, alpha=32, stages=1,2,3)"),
        (
            "remix(data=generic, stages=1) + replay(ratio=0.1)",
            "remix(data=generic, stages=1)+replay(ratio=0.1, stages=2,3)",
        ),
    ],
)
def test_arms_unfold_and_are_named_the_same_again(arm, name):
    found = parse_recipe(recipe(arm))
    assert found.arm == found.arm_name == name
    again = parse_recipe(recipe(name))
    assert again == found
    assert parse_recipe(tomllib.loads(to_toml(found))) == found


def test_an_arm_reaches_the_stages_it_names():
    found = parse_recipe(recipe("remix(data=random-words, stages=1,3, words=12)"))
    assert [len(stage.mixing) for stage in found.stages] == [1, 0, 1]
    assert found.stages[0].mixing[0].words == (12, 12) and found.stages[0].mixing[0].ratio == 2


def test_stages_can_say_for_themselves():
    stages = [
        {"name": "a", "data": "kvr:8", "mixing": [{"source": "generic", "ratio": 1}]},
        {"name": "b", "data": "known", "penalty": {"method": "kl", "strength": 2}},
    ]
    found = parse_recipe({"base": "base", "stages": stages})
    assert found.arm == "remix(data=generic, stages=1, ratio=1)+kl(strength=2, stages=2)"


def changed_stage(**changes):
    return recipe(stages=[{"name": "a", "data": "kvr:8"} | changes])


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (recipe(colour="red"), "colour: unknown key"),
        (changed_stage(size=3), r"stages\.1\.size: unknown key"),
        (recipe(optimiser={"lr": "high"}), r"optimiser\.lr: .*'high'"),
        (recipe(optimiser={"lr": True}), r"optimiser\.lr: a number, not true"),
        (recipe(optimiser={"lr": "3e-4"}), r"optimiser\.lr: a number, not a text"),
        (recipe(optimiser={"betas": [2.0, 0.9]}), r"optimiser\.betas\.1: .*less than 1 \(not 2\.0\)"),
        (recipe(optimiser={"betas": [0.9, 1.0]}), r"optimiser\.betas\.2: .*less than 1"),
        (recipe(optimiser={"betas": [-0.1, 0.9]}), r"optimiser\.betas\.1: .*greater than or equal to 0"),
        (recipe(optimiser={"betas": [0.9, True]}), r"optimiser\.betas: a number, not true"),
        (recipe(precision={"packing": 1}), r"precision\.packing: true or false"),
        (recipe(evaluate={"interference": "yes"}), r"evaluate\.interference: true or false"),
        (changed_stage(epochs=True), r"stages\.1\.epochs: a number, not true"),
        (
            changed_stage(mixing=[{"source": "generic", "ratio": "2"}]),
            r"stages\.1\.mixing\.1\.ratio: a number",
        ),
        (recipe(optimiser={"lr": 0}), r"optimiser\.lr: .*greater than 0"),
        (recipe(optimiser={"lr": float("nan")}), r"optimiser\.lr"),
        (recipe(seed=-1), "seed"),
        (recipe(template="{prompt}"), "template"),
        (recipe(stages=[]), "stages"),
        ({"stages": [{"name": "a", "data": "known"}]}, "base: missing"),
        (changed_stage(mixing=[{"source": "generic", "ratio": -1}]), r"stages\.1\.mixing\.1\.ratio.*-1"),
        (changed_stage(match="steps"), "match"),
        (changed_stage(replay={"ratio": 0.1}), "stage before"),
        (changed_stage(name="a/b"), r"stages\.1\.name"),
        (changed_stage(train="block=5"), r"stages\.1\.train: .*'block' is not blocks="),
        (changed_stage(train="blocks=0"), r"stages\.1\.train: .*counted from 1"),
        (changed_stage(train="blocks=5, parts=head"), r"stages\.1\.train: .*lie outside the blocks"),
        (changed_stage(train="blocks=5", lora={"rank": 2}), "train: lora trains adapters"),
        (changed_stage(kind="tasks", unknown={}), "only factoids"),
        (changed_stage(metric="loss"), "metric: loss is of tasks; factoids have a metric of their own"),
        (changed_stage(checkpoints={"steps": 1, "epochs": 1}), "one of them"),
        (recipe(stages=[{"name": "a", "data": "known"}] * 2), "'a'"),
        (recipe("remix(data=both, stages=1)"), "both"),
        (recipe("remix(data=generic)"), "stages"),
        (recipe("remix(stages=1)"), "data"),
        (recipe("remix(data=generic, stages=4)"), "1 to 3"),
        (recipe("remix(data=generic, stages=both)"), "1 to 3"),
        (recipe("remix(data=generic, stages=1, tokens=3)"), "tokens"),
        (recipe("magic"), "magic"),
        (recipe("none + joint"), "none"),
        (recipe("joint + replay(ratio=0.1)"), "joint"),
        (recipe("ewc(strength=high)"), "high"),
        (
            recipe("remix(data=generic, stages=1)+matched(to=steps, data=kvr:9, stages=1)"),
            "trains none of it",
        ),
        (
            recipe("matched(to=steps, data=kvr:9, stages=1)+remix(data=generic, stages=1)"),
            "trains none of it",
        ),
        (recipe("ewc(strength=1) + kl(strength=1)"), "not supported"),
        (recipe("ewc(strength=1) + lora(rank=2)"), r"stages\.2\.penalty: ewc .*lora"),
        (recipe("ewc(strength=1)", precision={"fsdp": True}), r"stages\.2\.penalty: ewc .*precision\.fsdp"),
        (recipe("kl(strength=1)", precision={"fsdp": True}), r"stages\.2\.penalty: kl .*precision\.fsdp"),
        (recipe("lora(rank=2)", precision={"fsdp": True}), r"stages\.1\.lora: .*precision\.fsdp"),
        (
            changed_stage(train="blocks=5") | {"precision": {"fsdp": True}},
            r"stages\.1\.train: .*precision\.fsdp",
        ),
        (recipe("remix(data=generic, stages=1, ratio=-2)"), r"stages\.1\.mixing\.1\.ratio.*-2"),
        (recipe("replay(ratio=-0.1)"), r"stages\.2\.replay\.ratio.*-0\.1"),
        (recipe("replay(ratio=2)"), "ratio"),
    ],
)
def test_bad_values_are_named_by_key(data, said):
    with pytest.raises(MemprobeError, match=said) as error:
        parse_recipe(data, "some.toml")
    assert str(error.value).startswith("some.toml: ") and "\n" not in str(error.value)


def test_a_stage_and_the_arm_cannot_contradict_each_other():
    stages = [{"name": "a", "data": "known", "mixing": [{"source": "self"}]}]
    with pytest.raises(MemprobeError, match=r"stages\.1\.mixing"):
        parse_recipe({"base": "b", "arm": "remix(data=generic, stages=1)", "stages": stages})


def write(path, data="kvr:4", extra=""):
    path.write_text(f'base = "b"\n{extra}\n[[stages]]\nname = "a"\ndata = "{data}"\n')
    return path


def test_files_are_found_beside_the_recipe(tmp_path):
    (tmp_path / "facts.jsonl").write_text('{"prompt": "p", "answer": "a"}\n')
    found = read_recipe(write(tmp_path / "r.toml", "facts.jsonl"), seed=7)
    assert found.stages[0].data == str(tmp_path / "facts.jsonl") and found.seed == 7


@pytest.mark.parametrize(
    "before",
    [
        "remix(data=generic, stages=1,2, words=12)",
        "matched(to=steps, data=generic, stages=2)",
        "replay(ratio=0.5)+kl(strength=1)",
        "lora(rank=2)",
        "joint",
    ],
)
@pytest.mark.parametrize("asked", ["none", "replay(ratio=0.1)", "ewc(strength=3)", "joint"])
def test_an_arm_that_is_asked_for_is_the_whole_arm(before, asked, tmp_path):
    """Of a run's own recipe, whose stages spell its arm out."""
    path = tmp_path / "recipe.toml"
    path.write_text(to_toml(parse_recipe(recipe(before))))
    assert read_recipe(path, arm=asked) == parse_recipe(recipe(asked))
    assert read_recipe(path) == parse_recipe(recipe(before))


@pytest.mark.parametrize(
    ("data", "extra", "said"),
    [
        ("gone.jsonl", "", r"stages\.1\.data: no file gone\.jsonl"),
        ("gone.json:new", "", r"stages\.1\.data: no file gone\.json here"),
        ("gone.json:old", "", r"stages\.1\.data: gone\.json:old: which answers\? choose true, new, both"),
        ("wikipedia", "", r"stages\.1\.data: no source 'wikipedia'"),
        ("kvr:4", 'evaluate.texts = "prose"', r"evaluate\.texts: no source"),
        # A grid would come to these after hours of other cells.
        ("kvr:4:tset", "", r"stages\.1\.data: kvr: no split 'tset'"),
        ("kvr:0", "", r"stages\.1\.data: kvr:0: give 1 to"),
        ("kvr:test", "", r"stages\.1\.data: kvr:test: give the number of pairs"),
        ("popqa:tset", "", r"stages\.1\.data: popqa: no split 'tset'; it has all"),
        ("known:train", "", r"stages\.1\.data: no source 'known:train'"),
        ("hub:", "", r"stages\.1\.data: no source 'hub:'"),
        (
            "kvr:4",
            'arm = "remix(data=random-words:9, stages=1)"',
            r"mixing\.1\.source: random-words:9: .* no parts",
        ),
        ("kvr:4", 'arm = "remix(data=kvr:4:tset, stages=1)"', r"mixing\.1\.source: kvr: no split"),
        ("kvr:4", 'evaluate.texts = "generic:tset"', r"evaluate\.texts: generic: no split"),
        ("kvr:4", 'arm = "remix(data=prose, stages=1)"', r"stages\.1\.mixing\.1\.source: no source"),
        ("kvr:4", "seed = ", "cannot be read as TOML"),
        ("kvr:4", "a." * 2000 + "b = 1", "nested too deeply"),
        ("kvr:4", 'arm = "lora(rank=1000000000)"', r"lora\.rank: .* less than or equal to 65536"),
    ],
)
def test_missing_sources_are_named_by_file_and_key(tmp_path, data, extra, said):
    path = write(tmp_path / "r.toml", data, extra)
    with pytest.raises(MemprobeError, match=said) as error:
        read_recipe(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("name", ["edits.json:new", "edits.json:both", "jsonl:facts.txt", "facts.csv"])
def test_every_name_of_a_file_is_found_beside_the_recipe(tmp_path, name):
    bare = name.removeprefix("jsonl:").partition(":")[0]
    (tmp_path / bare).write_text("")
    found = read_recipe(write(tmp_path / "r.toml", name, f'arm = "remix(data={name}, stages=1)"'))
    there = name.replace(bare, str(tmp_path / bare))
    assert found.stages[0].data == found.stages[0].mixing[0].source == there
    assert file_of(there) == tmp_path / bare and without_folder(there) == name
    assert parse_recipe(tomllib.loads(to_toml(found))).stages == found.stages


def test_a_set_of_the_hub_is_a_source(tmp_path):
    found = read_recipe(write(tmp_path / "r.toml", "hub:me/rivers@v1:train"))
    assert found.stages[0].data == "hub:me/rivers@v1:train" and file_of(found.stages[0].data) is None


def test_a_recipe_that_is_not_there(tmp_path):
    with pytest.raises(MemprobeError, match="no such file"):
        read_recipe(tmp_path / "none.toml")


def test_differences_name_the_keys():
    old, new = parse_recipe(recipe()), parse_recipe(recipe(seed=3, optimiser={"lr": 1e-3}))
    assert differences(old, new) == ["seed: 0 -> 3", "optimiser.lr: 5e-05 -> 0.001"]
    fixed = parse_recipe(recipe(seed=3, data_seed=0))
    assert differences(old, fixed) == ["seed: 0 -> 3", "data_seed: null -> 0"]
    assert parse_recipe(tomllib.loads(to_toml(fixed))) == fixed and fixed.rows_seed == old.rows_seed == 0
    assert differences(old, old) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [("train", "blocks=1"), ("lora", {"rank": 2, "alpha": 4}), ("checkpoints", {"epochs": 1})],
)
def test_joint_takes_what_the_last_stage_is_told(key, value):
    """What another is told would be passed over."""
    stages = recipe()["stages"]
    stages[0] = stages[0] | {key: value}
    with pytest.raises(MemprobeError, match=rf"stages.1.{key}: joint trains one stage"):
        parse_recipe(recipe("joint", stages=stages))
    everywhere = [stage | {key: value} for stage in recipe()["stages"]]
    assert parse_recipe(recipe("joint", stages=everywhere)).joint
    if key == "lora":
        with pytest.raises(MemprobeError, match=r"stages\.1\.lora"):
            parse_recipe(recipe("joint+lora(rank=2, alpha=4, stages=1)"))


def test_files_to_evaluate_on_are_those_beside_the_recipe(tmp_path, monkeypatch):
    beside, here = tmp_path / "beside", tmp_path / "here"
    for folder in (beside, here):
        folder.mkdir()
        for name in ("texts.jsonl", "known.jsonl"):
            (folder / name).write_text("{}\n")
    path = beside / "recipe.toml"
    path.write_text(
        'base = "base"\n[evaluate]\ntexts = "texts.jsonl"\nknown_source = "known.jsonl"\n'
        '[[stages]]\nname = "a"\ndata = "kvr:4"\n'
    )
    monkeypatch.chdir(here)
    found = read_recipe(path).evaluate
    assert (found.texts, found.known_source) == (str(beside / "texts.jsonl"), str(beside / "known.jsonl"))
    (beside / "texts.jsonl").unlink()
    assert read_recipe(path).evaluate.texts == "texts.jsonl", "where there is none beside it, the one here"


@pytest.mark.parametrize(
    "arm",
    [
        "replay(ratio=0.1)+replay(ratio=0.5)",
        "lora(rank=2)+lora(rank=4)",
        "ewc(strength=1)+kl(strength=1)",
        "replay(ratio=0.1, stages=2)+replay(ratio=0.5, stages=2,3)",
    ],
)
def test_two_of_a_kind_in_one_stage_are_refused(arm):
    with pytest.raises(MemprobeError, match=r"arm: (\w+ twice|two penalties) in one stage"):
        parse_recipe(recipe(arm))


def test_two_of_a_kind_in_two_stages_are_one_each():
    found = parse_recipe(recipe("replay(ratio=0.1, stages=2)+replay(ratio=0.5, stages=3)"))
    assert [stage.replay and stage.replay.ratio for stage in found.stages] == [None, 0.1, 0.5]


def test_what_is_left_out_of_settings_is_what_recipes_have():
    """``memprobe`` reads recipes without ``training``, by the names of their keys: none of them is of old."""
    from memprobe.recipes import _LEFT_OUT
    from training.recipe import Recipe
    from training.recipe_tables import Mixing, Optimiser, Precision, Stage

    fields = {name for one in (Recipe, Stage, Mixing, Optimiser, Precision) for name in one.model_fields}
    assert fields >= _LEFT_OUT


def test_a_grid_is_no_recipe_and_a_recipe_no_grid():
    """Each is told apart by what it is, with the command for it, and not by the keys that it lacks."""
    from training.grid import read_grid

    recipes, grids = (Path(training.__file__).parent / name / "tiny.toml" for name in ("recipes", "grids"))
    with pytest.raises(MemprobeError, match=r"tiny\.toml: this is a grid, .* training grid "):
        read_recipe(grids)
    with pytest.raises(MemprobeError, match=r"tiny\.toml: this is a recipe, .* training run "):
        read_grid(recipes)
    assert read_recipe(recipes).stages and read_grid(grids).blocks
