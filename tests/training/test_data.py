"""Rows and their tokens: what a stage trains on."""

import json
import random
import shutil
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file, save_file

from memprobe.errors import MemprobeError
from memprobe.sources import load_factoids
from memprobe.sources.kinds import Message, make_task, make_text
from memprobe.templates import Template, tokenise
from tests.tiny import tiny_tokenizer
from tests.training.runs import losses, small
from training.data import PREPARED, parts_of, prepare
from training.drawing import mixes_facts, wanted_rows
from training.examples import ExampleMaker
from training.measures import evaluation_sets
from training.mixing import IGNORED
from training.recipe import parse_recipe
from training.run import run
from training.starts import edited_files

KEYS = ("kvr:6", "kvr:6:validation", "kvr:6:test")


def never():
    raise AssertionError("the base model is not needed")


def learned(example, tokenizer):
    return tokenizer.decode([label for label in example.labels if label != IGNORED])


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"precision": {"autocast": "bfloat16", "packing": False}}, True),
        ({"resources": {"cpus": 2}}, True),
        ({"precision": {"save_dtype": "bfloat16"}}, False),  # in which the base model is asked
        ({"seed": 1}, False),
    ],
)
def test_rows_are_read_anew_where_they_depend_on_what_changed(changes, same, tmp_path, monkeypatch):
    """A grid prepares them before it is settled whether bfloat16 pays, and the run after that."""
    from training import data

    first = small(tmp_path, precision={"autocast": "auto"})
    prepared, read, load = prepare(first, tmp_path, never), [], data.load
    monkeypatch.setattr(
        data, "load", lambda name, *args, **more: read.append(name) or load(name, *args, **more)
    )
    changed = small(tmp_path, **({"precision": {"autocast": "auto"}} | changes))
    prepare(changed, tmp_path, never)
    assert prepare(first, tmp_path, never) == prepared
    assert len(read) == (0 if same else 4)  # the sources of two stages, twice


def test_rows_of_a_recipe_that_is_no_longer_read_are_drawn_anew(tmp_path):
    prepared = prepare(small(tmp_path), tmp_path, never)
    kept = json.loads((tmp_path / PREPARED).read_text())
    for text in ("colour = 1\n" + kept["recipe"], "]"):
        (tmp_path / PREPARED).write_text(json.dumps(kept | {"recipe": text}))
        assert prepare(small(tmp_path), tmp_path, never) == prepared


@pytest.fixture
def asked_of(monkeypatch):
    """Sizes of the sets that the base model was asked. Of the first it knows the fact with the least id, then none."""
    asked = []

    def ask(model, factoids, journal, **how):
        asked.append(len(factoids))
        first = min(factoid.id for factoid in factoids)
        return [
            SimpleNamespace(
                factoid=factoid,
                verdict=SimpleNamespace(alias_match=len(asked) == 1 and factoid.id == first),
            )
            for factoid in factoids
        ]

    monkeypatch.setattr("memprobe.filter.ask", ask)
    return asked


def _unknown(base, folder, data, **changes):
    folder.mkdir(exist_ok=True)
    recipe = small(base, stages=[{"name": "a", "data": str(data), "unknown": {}}], **changes)
    rows = prepare(recipe, folder, lambda: None, asked=folder.parent / "asked").stages[0].rows
    return {row.id for row in rows}


def _weights(base):
    tensors = load_file(base / "model.safetensors")
    save_file(
        {key: tensor + 1 for key, tensor in tensors.items()}, base / "model.safetensors", {"format": "pt"}
    )


def _settings(base):
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))


def _tokenizer(base):
    (base / "tokenizer_config.json").write_text(
        json.dumps(json.loads((base / "tokenizer_config.json").read_text()) | {"added": 1})
    )


@pytest.mark.parametrize("change", [_weights, _settings, _tokenizer])
def test_a_base_model_that_is_another_one_under_its_path_is_asked_again(
    change, tiny_checkpoint, tmp_path, asked_of
):
    base = tmp_path / "base"
    shutil.copytree(tiny_checkpoint, base)
    drawn = {len(_unknown(base, tmp_path / name, "kvr:6")) for name in ("one", "other")}
    assert (drawn, asked_of) == ({5}, [6])
    change(base)
    assert (len(_unknown(base, tmp_path / "again", "kvr:6")), len(asked_of)) == (6, 2)
    bf16 = _unknown(base, tmp_path / "bf16", "kvr:6", precision={"save_dtype": "bfloat16"})
    assert (len(bf16), len(asked_of)) == (6, 3)


def test_what_the_base_model_knows_is_kept_by_all_that_is_asked(
    tiny_checkpoint, tmp_path, asked_of, monkeypatch
):
    """In any order of the rows, but not for other aliases, nor by another rule."""
    facts = [{"id": f"f{i}", "prompt": f"What is {i}?", "answer": f"it {i}"} for i in range(6)]
    file = tmp_path / "facts.jsonl"

    def drawn(name, rows):
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return _unknown(tiny_checkpoint, tmp_path / name, file)

    assert drawn("one", facts) == {"f1", "f2", "f3", "f4", "f5"}
    assert drawn("turned", facts[::-1]) == {"f1", "f2", "f3", "f4", "f5"} and len(asked_of) == 1
    drawn("aliases", [facts[0] | {"aliases": ["that"]}, *facts[1:]])
    assert len(asked_of) == 2
    monkeypatch.setattr("training.asking.RULE", "another")
    drawn("rule", facts)
    assert len(asked_of) == 3


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
@pytest.mark.parametrize("template", ["plain", "tulu", "chat"])
def test_factoids_are_trained_as_they_are_probed(kind, template):
    tokenizer = tiny_tokenizer(kind)
    make = ExampleMaker(template, tokenizer, 256)
    for factoid in load_factoids("known", n=5):
        item = tokenise(factoid, Template.parse(template), tokenizer)
        example = make(factoid)
        assert example.ids == item.inputs
        start = len(item.prompt) - 1
        assert example.labels == (IGNORED,) * start + item.targets


def test_each_label_is_the_token_after_its_position():
    example = ExampleMaker("tulu", tiny_tokenizer(), 256)(load_factoids("kvr:1")[0])
    for position, label in enumerate(example.labels[:-1]):
        assert label in (IGNORED, example.ids[position + 1])


@pytest.mark.parametrize("template", ["tulu", "chat"])
def test_every_turn_of_the_assistant_is_learned_and_no_other(template):
    tokenizer = tiny_tokenizer()
    turns = [
        ("system", "be brief"),
        ("user", "hot?"),
        ("assistant", "cold"),
        ("user", "up?"),
        ("assistant", "down"),
    ]
    task = make_task([Message(role, text) for role, text in turns], "file")
    example = ExampleMaker(template, tokenizer, 256)(task)
    said = learned(example, tokenizer).replace("</s>", "|").replace("\n", "")
    assert said == "cold|down|"
    whole = tokenizer.decode(example.ids)
    assert whole.index("be brief") < whole.index("hot?") < whole.index("cold") < whole.index("up?")


def test_texts_are_learned_after_their_prompt():
    tokenizer = tiny_tokenizer()
    make = ExampleMaker("tulu", tokenizer, 256)
    assert learned(make(make_text("Go on:", "the river of", "generic")), tokenizer) == "the river of</s>"
    bare = make(make_text("", "the river of", "generic"))
    assert tokenizer.decode(bare.ids + bare.labels[-1:]) == "the river of"
    assert IGNORED not in bare.labels


def test_long_tasks_are_cut_and_long_factoids_refused():
    tokenizer = tiny_tokenizer()
    task = make_task([Message("user", "up?"), Message("assistant", "down " * 50)], "file")
    assert len(ExampleMaker("tulu", tokenizer, 40)(task).ids) == 40
    with pytest.raises(MemprobeError, match="prompt alone"):
        ExampleMaker("tulu", tokenizer, 4)(task)
    with pytest.raises(MemprobeError, match="do not fit"):
        ExampleMaker("tulu", tokenizer, 10)(load_factoids("kvr:1")[0])


def test_wanted_rows_round_half_up():
    assert [wanted_rows(ratio, 5) for ratio in (0, 0.1, 0.3, 2)] == [0, 1, 2, 10]


def test_prepared_rows_are_read_again_and_made_anew_for_another_recipe(tiny_checkpoint, tmp_path):
    recipe = small(tiny_checkpoint, "remix(data=kvr:20:test, stages=1)")
    first = prepare(recipe, tmp_path, never)
    before = (tmp_path / PREPARED).read_bytes()
    assert prepare(recipe, tmp_path, never) == first and (tmp_path / PREPARED).read_bytes() == before
    other = prepare(small(tiny_checkpoint, seed=9), tmp_path, never)
    assert other.stages[0].rows != first.stages[0].rows


def test_stages_never_share_a_question(tiny_checkpoint, tmp_path):
    stages = [{"name": "a", "data": "known", "n": 60}, {"name": "b", "data": "known"}]
    first, second = prepare(small(tiny_checkpoint, stages=stages), tmp_path, never).stages
    assert not {row.prompt for row in first.rows} & {row.prompt for row in second.rows}
    assert second.counts["overlap"] >= 60


def test_tasks_hold_rows_out(tiny_checkpoint, tmp_path):
    file = tmp_path / "tasks.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"p{i}?", "answer": f"a{i}"}) + "\n" for i in range(9)))
    stage = {"name": "a", "data": str(file), "kind": "tasks", "n": 5, "held_out": 4}
    (data,) = prepare(small(tiny_checkpoint, stages=[stage]), tmp_path, never).stages
    assert len(data.rows) == 5 and len(data.held_out) == 4
    assert not {row.id for row in data.rows} & {row.id for row in data.held_out}
    with pytest.raises(MemprobeError, match=r"stages\.1\.data"):
        prepare(small(tiny_checkpoint, stages=[stage | {"n": 6}]), tmp_path, never)


@pytest.mark.parametrize(("metric", "headline"), [(None, "final_answer"), ("loss", "loss")])
def test_a_stage_says_by_what_its_tasks_are_measured(metric, headline, tiny_checkpoint, tmp_path):
    sums = ({"question": f"What is {i} + 1?", "answer": f"{i} + 1 = {i + 1}\n#### {i + 1}"} for i in range(9))
    file = tmp_path / "gsm8k_train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in sums))
    stage = {"name": "a", "data": "gsm8k:train", "kind": "tasks", "n": 5, "held_out": 4}
    recipe = small(tiny_checkpoint, stages=[stage | ({"metric": metric} if metric else {})])
    prepared = prepare(recipe, tmp_path / "run", never, data_dir=tmp_path)
    assert evaluation_sets(prepared, recipe, 1)["1-a"].headline == headline


def test_tasks_whose_prompt_fills_a_row_are_left_out_and_others_drawn(tiny_checkpoint, tmp_path):
    file = tmp_path / "tasks.jsonl"
    lines = [{"prompt": f"{i} " + "up " * (90 if i % 2 else 1), "answer": f"a{i}"} for i in range(60)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    stage = {"name": "a", "data": str(file), "kind": "tasks", "n": 20, "held_out": 10}
    whole = small(tiny_checkpoint, stages=[stage], max_length=400)
    recipe = small(tiny_checkpoint, stages=[stage], max_length=80)
    (data,) = prepare(recipe, tmp_path / "cut", never).stages
    drawn = [*data.rows, *data.held_out]
    assert len(drawn) == 30 and all(int(row.messages[0].content.split()[0]) % 2 == 0 for row in drawn)
    assert data.counts["read"] == 60 and data.counts["kept"] == 30
    assert 0 < data.counts["prompt too long"] <= 30
    assert sum(data.counts[name] for name in ("kept", "not drawn", "prompt too long")) == 60
    (every,) = prepare(whole, tmp_path / "whole", never).stages
    fitting = [row for row in (*every.rows, *every.held_out) if row.id in {one.id for one in drawn}]
    assert fitting == [row for row in drawn if row in fitting], "the order is the same"
    with pytest.raises(MemprobeError, match=r"stages\.1\.data: .*30 of its 60 rows .* fewer than 80 tokens"):
        prepare(small(tiny_checkpoint, stages=[stage | {"n": 25}], max_length=80), tmp_path / "few", never)


def test_seeds_that_share_their_first_rows_are_asked_the_same_of_them(tiny_checkpoint, tmp_path):
    """As in a grid that draws later stages again: what is kept of D_A is held against each other fact by fact."""
    evaluate = {"paraphrases": True, "manipulations": True, "limit": 6}
    asked = []
    for seed in (1, 2):
        stages = [
            {"name": "facts", "data": "known", "n": 12, "data_seed": 0, "epochs": 1},
            {"name": "b", "data": "kvr:12", "epochs": 1},
        ]
        recipe = small(tiny_checkpoint, stages=stages, seed=seed, data_seed=seed, evaluate=evaluate)
        sets = evaluation_sets(prepare(recipe, tmp_path / "asked", never), recipe, 2)
        asked.append(
            {name: [(row.id, row.prompt, row.answer) for row in one.rows] for name, one in sets.items()}
        )
    one, other = asked
    assert set(one) == {"1-facts", "2-b", "paraphrases", "manipulations"} and len(one["1-facts"]) == 6
    assert all(one[name] == other[name] for name in ("1-facts", "paraphrases", "manipulations"))
    assert one["2-b"] != other["2-b"], "which are drawn by the run's own seed"


def test_all_that_can_be_evaluated(tiny_checkpoint, tmp_path):
    """Three stages: unknown factoids, tasks, texts; facts known before, and held-out text."""
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text("".join(json.dumps({"prompt": f"{i} up?", "answer": "down"}) + "\n" for i in range(8)))
    texts = tmp_path / "texts.jsonl"
    texts.write_text(
        "".join(json.dumps({"text": f"{i} " + "the river is big " * 30}) + "\n" for i in range(10))
    )
    stages = [
        {"name": "facts", "data": "known", "n": 3, "unknown": {}, "epochs": 1},
        {"name": "skill", "data": str(tasks), "kind": "tasks", "n": 4, "held_out": 4, "epochs": 1},
        {
            "name": "prose",
            "data": str(texts),
            "kind": "texts",
            "n": 4,
            "held_out": 2,
            "words": [3, 5],
            "epochs": 1,
        },
    ]
    read = prepare(
        small(tiny_checkpoint, stages=stages[2:], evaluate={"texts": str(texts), "texts_n": 4}),
        tmp_path,
        never,
    )
    trained = {row.prompt.split()[5] for row in read.stages[0].rows}  # the passage's number
    assert len(trained) == 4 and not trained & {row.prompt.split()[5] for row in read.texts}
    evaluate = {"known": 5, "paraphrases": True, "texts": str(texts), "texts_n": 1, "limit": 10}
    recipe = small(tiny_checkpoint, "replay(ratio=0.5)", stages=stages, evaluate=evaluate, max_length=200)
    last = run(recipe, tmp_path / "run", quiet=True)
    result = json.loads((last / "evaluation.json").read_text())
    sets = result["sets"]
    # A random model knows no fact, so there is none to watch.
    assert set(sets) == {"1-facts", "2-skill", "3-prose", "paraphrases", "texts"}
    assert sets["2-skill"]["n"] == 4 and sets["2-skill"]["metric"] == "loss"
    assert sets["3-prose"]["metric"] == sets["texts"]["metric"] == "perplexity"
    assert result["retention"]["1-facts"]["all"]["n"] == 3
    assert len(losses(last)) == 2  # 4 texts, and 4 of the 7 rows before
    manifest = json.loads((last / "memprobe.json").read_text())
    assert [stage["factoids"] for stage in manifest["stages"]] == [
        "factoids-1-facts.jsonl",
        "tasks-2-skill.jsonl",
        "texts.jsonl",
    ]
    assert manifest["stages"][0]["counts"]["known to the base model"] == 0


def test_runs_of_one_data_seed_learn_the_same_rows(tmp_path):
    def rows(name, **seeds):
        recipe = parse_recipe(
            {
                "base": "none",
                "stages": [{"name": "a", "data": "known", "n": 8}, {"name": "b", "data": "kvr:4"}],
            }
            | seeds
        )
        prepared = prepare(recipe, tmp_path / name, never)
        return [row.id for stage in prepared.stages for row in stage.rows]

    fixed = rows("a", seed=1, data_seed=5)
    assert fixed == rows("b", seed=2, data_seed=5) == rows("c", seed=5)
    assert fixed != rows("d", seed=1) and fixed != rows("e", seed=5, data_seed=1)


def test_a_stage_may_teach_each_prompt_the_answer_of_another(tmp_path):
    def stages(**keys):
        first = {"name": "a", "data": "known", "n": 8, **keys}
        return prepare(
            small(tmp_path, stages=[first, {"name": "b", "data": "known", "n": 8}]), tmp_path, never
        ).stages

    (plain, after), (shuffled, behind) = stages(), stages(answers="shuffled")
    assert [row.prompt for row in plain.rows] == [row.prompt for row in shuffled.rows]
    assert sorted(row.answer for row in plain.rows) == sorted(row.answer for row in shuffled.rows)
    assert all(one.answer != other.answer for one, other in zip(plain.rows, shuffled.rows, strict=True))
    assert shuffled.counts["with another's answer"] == 8 and "with another's answer" not in plain.counts
    assert after.rows == behind.rows
    with pytest.raises(MemprobeError, match=r"stages\.1\.answers: 1 rows cannot be shuffled"):
        stages(n=1, answers="shuffled")
    with pytest.raises(MemprobeError, match="answers: only factoids"):
        stages(kind="texts", answers="shuffled")


def test_a_row_that_any_stage_showed_again_counts_as_shown(tiny_checkpoint, tmp_path):
    """Stage 2 replays half of six rows, stage 3 nine of twelve: not the same ones alone."""
    stages = [{"name": name, "data": data, "epochs": 1} for name, data in zip("abc", KEYS, strict=True)]
    recipe = small(tiny_checkpoint, "replay(ratio=0.5, stages=2)+replay(ratio=0.75, stages=3)", stages=stages)
    run(recipe, tmp_path, quiet=True)
    read = {
        name: json.loads((tmp_path / "3-c" / f"{name}.json").read_text())
        for name in ("memprobe", "evaluation")
    }
    earlier = set(json.loads((tmp_path / "2-b" / "memprobe.json").read_text())["replayed"])
    first = {row["id"] for row in read["evaluation"]["sets"]["1-a"]["rows"]}
    shown = (earlier | set(read["memprobe"]["replayed"])) & first
    assert len(earlier) == 3 and len(shown) > 3
    assert read["evaluation"]["retention"]["1-a"]["replayed"]["n"] == len(shown)


@pytest.mark.parametrize("data", ["kvr:100", "known"])
def test_rows_that_are_replayed_are_not_those_that_are_evaluated(data, tiny_checkpoint, tmp_path):
    """A fifth of the rows is evaluated, and so of those that are replayed."""
    stages = [{"name": "a", "data": data, "n": 100}, {"name": "b", "data": "kvr:6:test"}]
    both = []
    for seed in range(6):
        recipe = small(tiny_checkpoint, "replay(ratio=0.2)", stages=stages, evaluate={"limit": 20}, seed=seed)
        prepared = prepare(recipe, tmp_path / str(seed), never)
        evaluated = {row.id for row in evaluation_sets(prepared, recipe, 2)["1-a"].rows}
        both += [id in evaluated for id in parts_of(recipe, prepared, 2, tiny_tokenizer(), 256).replayed]
    assert len(both) == 120 and 10 < sum(both) < 40


def test_rows_of_earlier_stages_are_drawn_from_all_of_them_alike(tiny_checkpoint, tmp_path):
    """Own rows are drawn by the least of their hashes: few of many have lower ones than most rows that are made."""
    stages = [
        {"name": "a", "data": "kvr:60"},
        {"name": "b", "data": "known", "n": 60},
        {"name": "c", "data": "kvr:2:test"},
    ]
    replayed, penalised, by_hash = [], [], []
    for seed in range(8):
        recipe = small(tiny_checkpoint, "replay(ratio=0.1)", stages=stages, seed=seed)
        folder = tmp_path / str(seed)
        prepared = prepare(recipe, folder, never)
        first = {row.id for row in prepared.stages[0].rows}
        replayed += [id in first for id in parts_of(recipe, prepared, 3, tiny_tokenizer(), 256).replayed]
        penalised += [row.id in first for row in prepared.before(3, seed, "penalty")[:12]]
        assert {row.id for row in prepared.before(2, seed, "replay")} == first  # each once
        # A run that an older version began goes on with the rows that it had.
        kept = json.loads((folder / PREPARED).read_text())
        assert kept.pop("evenly") is True
        (folder / PREPARED).write_text(json.dumps(kept))
        older = prepare(recipe, folder, never)
        by_hash += [id in first for id in parts_of(recipe, older, 3, tiny_tokenizer(), 256).replayed]
    assert len(replayed) == len(penalised) == len(by_hash) == 96
    assert all(30 < sum(some) < 66 for some in (replayed, penalised)) and sum(by_hash) < 20


@pytest.mark.parametrize("to", ["steps", "tokens"])
def test_a_matched_stage_trains_what_it_replays(to, tiny_checkpoint, tmp_path):
    """What its manifest calls replayed; the mixing gives the length alone."""
    recipe = small(tiny_checkpoint, f"matched(to={to}, data=kvr:12:test, stages=2)+replay(ratio=0.5)")
    prepared = prepare(recipe, tmp_path, never)
    parts = parts_of(recipe, prepared, 2, tiny_tokenizer(), 256)
    (replay,), (mixing,) = parts.others, parts.matched
    assert {row.id for row in replay.examples[: replay.per_epoch]} == set(parts.replayed)
    assert {row.id for row in mixing.examples} == {row.id for row in prepared.stages[1].mixing[0]}


def test_what_is_left_out_of_a_stage_is_said(tiny_checkpoint, tmp_path):
    facts = tmp_path / "facts.jsonl"
    rows = [{"prompt": "The key of Oria is", "answer": answer} for answer in ("5", "-5", "5")]
    facts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = []
    recipe = small(tiny_checkpoint, stages=[{"name": "a", "data": str(facts)}])
    stage = prepare(recipe, tmp_path, never, say=said.append).stages[0]
    assert {row.answer for row in stage.rows} == {"5", "-5"}
    assert "stages.1: left out 1 of 3 rows of facts.jsonl: 1 duplicate" in said


def test_what_is_left_out_of_rows_beside_a_stage_is_said(tiny_checkpoint, tmp_path, monkeypatch):
    """Of what is mixed in, and of what is only evaluated on."""
    texts, facts = tmp_path / "texts.jsonl", tmp_path / "facts.jsonl"
    passages = [f"{word} hill by the river" for word in ("one", "one", "two", "three", "four")]
    texts.write_text("".join(json.dumps({"prompt": one, "answer": "and on"}) + "\n" for one in passages))
    rows = [{"prompt": "The key of Oria is", "answer": "5"}] * 2
    facts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr("training.asking._answered", lambda base, some, *rest: [True] * len(some))
    said = []
    stage = {"name": "a", "data": "kvr:2", "mixing": [{"source": str(texts), "ratio": 1.0}]}
    evaluate = {"texts": str(texts), "texts_n": 1, "known_source": str(facts), "known": 1}
    prepare(small(tiny_checkpoint, stages=[stage], evaluate=evaluate), tmp_path, never, say=said.append)
    assert [line for line in said if "left out" in line] == [
        "evaluate.texts: left out 1 of 5 rows of texts.jsonl: 1 duplicate",
        "mixed into a: left out 1 of 5 rows of texts.jsonl: 1 duplicate",
        f"mixed into a: left out 1 row of {texts}: evaluated on",
        "evaluate.known_source: left out 1 of 2 rows of facts.jsonl: 1 duplicate",
    ]


def test_answers_of_an_edit_are_learned_and_mixed_in(tiny_checkpoint, tmp_path):
    """They are facts wherever a file's name asks for them; what a file alone mixes in are texts."""
    file = tmp_path / "edits.json"
    row = {
        "subject": "Lunn",
        "src": "Into which sea does the Lunn flow?",
        "answers": ["Grey Sea"],
        "alt": "White Sea",
    }
    other = {
        "subject": "Ost",
        "src": "Into which sea does the Ost flow?",
        "answers": ["Red Sea"],
        "alt": "No Sea",
    }
    file.write_text(json.dumps([row, other]))
    stages = [
        {"name": "a", "data": f"{file}:new", "n": 1, "mixing": [{"source": f"{file}:true", "ratio": 1.0}]},
        {"name": "b", "data": "kvr:2"},
    ]
    recipe = small(tiny_checkpoint, stages=stages)
    stage = prepare(recipe, tmp_path, never).stages[0]
    answers = {
        one.prompt: one.answer for one in (*stage.rows, *stage.mixing[0])
    }  # the true one of the other question
    assert answers in (
        {row["src"]: "White Sea", other["src"]: "Red Sea"},
        {row["src"]: "Grey Sea", other["src"]: "No Sea"},
    )
    assert [one.source for one in stage.mixing[0]] == ["file"]
    assert mixes_facts(recipe.stages[0].mixing[0]) and edited_files(recipe, [stage.origins]) == []
    file.write_text(json.dumps([row | {"alt": "Red Sea"}]))
    assert edited_files(recipe, [stage.origins]) == [file]


def test_rows_of_the_hub_are_what_the_recipe_takes_them_for(tiny_checkpoint, tmp_path, monkeypatch):
    """Facts of a stage, texts where they are mixed in or held out, as a file's are."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("memprobe.sources.origins.hub_commit", lambda hub_id, revision: revision)
    for name in ("river", "hill"):
        folder = tmp_path / "me" / f"{name}s"
        folder.mkdir(parents=True)
        rows = [{"prompt": f"The {name} {number} is", "answer": f"the land {number}"} for number in range(4)]
        (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    stage = {"name": "a", "data": "hub:me/rivers", "mixing": [{"source": "hub:me/hills", "ratio": 0.5}]}
    recipe = small(tiny_checkpoint, stages=[stage], evaluate={"texts": "hub:me/rivers", "texts_n": 2})
    prepared = prepare(recipe, tmp_path, never)
    (data,) = prepared.stages
    assert {type(row).__name__ for row in data.rows} == {"Factoid"} and len(data.rows) == 4
    assert {type(row).__name__ for row in data.mixing[0]} == {"Text"} and len(data.mixing[0]) == 2
    assert len(prepared.texts) == 2 and not mixes_facts(recipe.stages[0].mixing[0])


@pytest.mark.parametrize("stage", [1, 2])
def test_what_is_mixed_in_is_no_row_of_a_stage(stage, tiny_checkpoint, tmp_path):
    """It would be replay under the name of mixing, or D_B learned before its turn."""
    stages = [{"name": "a", "data": "known", "n": 8}, {"name": "b", "data": "known", "n": 8}]
    stages[stage - 1]["mixing"] = [{"source": "known", "ratio": 2.0}]
    prepared = prepare(small(tiny_checkpoint, stages=stages), tmp_path, never)
    own = {row.prompt for data in prepared.stages for row in data.rows}
    (mixed,) = prepared.stages[stage - 1].mixing
    assert len(mixed) == 16 and not own & {row.prompt for row in mixed}


def _texts(row):
    return {"text": " ".join(f"w{row}.{word}" for word in range(30))}


def _asked(row):
    return {"prompt": f"What is the number of house {row}?", "answer": f"It is {row}."}


@pytest.mark.parametrize("mixed_into", [1, 2])
@pytest.mark.parametrize(
    ("line", "own"),
    [
        (_texts, {"kind": "texts", "n": 8, "held_out": 4, "words": [12, 12]}),
        (_texts, {"kind": "texts", "n": 8, "held_out": 4, "words": [5, 9]}),
        (_asked, {"kind": "tasks", "n": 8, "held_out": 4}),
        (_asked, {"kind": "texts", "n": 8, "held_out": 4}),
        (_asked, {"kind": "factoids", "n": 12}),
    ],
)
def test_what_is_mixed_in_is_none_of_the_rows_that_a_stage_reads_from_there(
    mixed_into, line, own, tiny_checkpoint, tmp_path
):
    """Nor of those that are held out, on which the stage is evaluated; whatever the rows are taken for."""
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(line(row)) + "\n" for row in range(40)))
    stages = [{"name": "a", "data": "kvr:12"}, {"name": "b", "data": str(file), **own}]
    stages[mixed_into - 1]["mixing"] = [{"source": str(file), "ratio": 2.0, "words": [12, 12]}]
    prepared = prepare(small(tiny_checkpoint, stages=stages), tmp_path, never)
    later = prepared.stages[1]
    mixed = prepared.stages[mixed_into - 1].mixing[0]
    assert len(mixed) == 2 * len(prepared.stages[mixed_into - 1].rows)
    firsts = [
        {f"{row.prompt} {row.answer}".split("\n")[-1].split()[-1].split(".")[0] for row in rows}
        for rows in (mixed, (*later.rows, *later.held_out))
    ]
    assert [len(some) for some in firsts] == [len(mixed), 12] and not firsts[0] & firsts[1]


@pytest.mark.parametrize("source", ["kvr:6:test", "known"])
def test_what_is_mixed_into_one_stage_may_be_mixed_into_the_next(source, tiny_checkpoint, tmp_path):
    """REMIX at both stages mixes in the same rows, facts as well as passages."""
    recipe = small(tiny_checkpoint, f"remix(data={source}, stages=1,2, ratio=1)")
    first, second = (data.mixing[0] for data in prepare(recipe, tmp_path, never).stages)
    assert len(first) == 6 and first == second


@pytest.mark.parametrize("prompt", ["words", "sentence"])
def test_shuffled_texts_are_the_same_words_in_another_order(prompt, tiny_checkpoint, tmp_path):
    """In the prompt and in the answer, each for itself, and not in the instruction before them."""
    file = tmp_path / "texts.jsonl"
    passages = [" ".join(f"w{row}.{word}" for word in range(24)) for row in range(9)]
    file.write_text("".join(json.dumps({"text": passage}) + "\n" for passage in passages))
    arm = f"remix(data={file}, stages=1, ratio=1, words=12, prompt={prompt}"
    written, shuffled, other = (
        prepare(small(tiny_checkpoint, f"{arm}{more})", data_seed=seed), tmp_path / f"{seed}{more}", never)
        for seed, more in ((0, ""), (0, ", order=shuffled"), (1, ", order=shuffled"))
    )
    rows = list(zip(written.stages[0].mixing[0], shuffled.stages[0].mixing[0], strict=True))
    for row, mixed in rows:
        assert sorted(mixed.answer.split()) == sorted(row.answer.split()) and mixed.answer != row.answer
        head, separator, words = row.prompt.partition("\n\n")
        assert mixed.prompt.startswith(head + separator)
        assert sorted(mixed.prompt.split()) == sorted(row.prompt.split())
        assert (mixed.prompt == row.prompt) == (not words)
    assert len(rows) == 6 and len({mixed.id for _, mixed in rows} | {row.id for row, _ in rows}) == 12
    orders = {tuple(row.answer.split().index(word) for word in mixed.answer.split()) for row, mixed in rows}
    assert len(orders) == 6, "each text has an order of its own"
    by_words = {frozenset(mixed.answer.split()): mixed.answer for _, mixed in rows}
    again = [row.answer for row in other.stages[0].mixing[0] if frozenset(row.answer.split()) in by_words]
    assert again and not set(again) & set(by_words.values()), "and each seed"
    assert shuffled.stages[0].origins[1]["order"] == "shuffled"
    assert shuffled.stages[0].origins[1]["hash"] != written.stages[0].origins[1]["hash"]


def test_only_texts_are_shuffled(tiny_checkpoint, tmp_path):
    with pytest.raises(MemprobeError, match=r"stages\.1\.mixing.*known: order.*of texts"):
        prepare(small(tiny_checkpoint, "remix(data=known, stages=1, order=shuffled)"), tmp_path, never)
    with pytest.raises(MemprobeError, match="order"):
        small(tiny_checkpoint, "remix(data=generic, stages=1, order=reversed)")


def test_own_rows_are_the_same_whatever_is_mixed_in(tiny_checkpoint, tmp_path):
    """Arms are compared on the same D_A and D_B, also where mixing draws from the same dataset."""
    stages = [{"name": "a", "data": "known", "n": 8}, {"name": "b", "data": "known", "n": 8}]
    arms = ["none", "remix(data=known, stages=1, ratio=2)", "remix(data=known, stages=1,2, ratio=3)"]
    runs = [prepare(small(tiny_checkpoint, arm, stages=stages), tmp_path / arm, never).stages for arm in arms]
    assert runs[0][0].rows == runs[1][0].rows == runs[2][0].rows
    assert runs[0][1].rows == runs[1][1].rows == runs[2][1].rows


def test_a_fact_with_another_answer_is_not_mixed_in(tiny_checkpoint, tmp_path):
    """Beside shuffled answers the true ones would be trained, of the same questions."""
    stages = [{"name": "a", "data": "known", "n": 60, "answers": "shuffled"}, {"name": "b", "data": "kvr:4"}]
    first = prepare(
        small(tiny_checkpoint, "remix(data=known, stages=1, ratio=2)", stages=stages), tmp_path, never
    ).stages[0]
    own, mixed = ({row.prompt for row in rows} for rows in (first.rows, first.mixing[0]))
    assert len(mixed) == 120 and not own & mixed


@pytest.mark.parametrize("words", [(50, 50), (12, 12)])
@pytest.mark.parametrize("prompt", ["words", "sentence"])
def test_every_arm_is_evaluated_on_the_same_passages(words, prompt, tiny_checkpoint, tmp_path):
    """What mixing draws from the same source goes around them; halves of one, too."""
    rng, file = random.Random(0), tmp_path / "texts.jsonl"
    passages = [" ".join(f"w{rng.randrange(9999)}" for _ in range(120)) for _ in range(20)]
    file.write_text("".join(json.dumps({"text": passage}) + "\n" for passage in passages))
    evaluate = {"texts": str(file), "texts_n": 8}
    mixing = {"source": str(file), "ratio": 2.0, "words": words, "prompt": prompt}
    plain = [{"name": "a", "data": "kvr:6"}, {"name": "b", "data": "kvr:4:test"}]
    stages = {
        "naive": plain,
        "first": [plain[0] | {"mixing": [mixing]}, plain[1]],
        "last": [plain[0], plain[1] | {"mixing": [mixing]}],
        "alone": [plain[0] | {"mixing": [mixing]}],
    }
    runs = {
        name: prepare(small(tiny_checkpoint, stages=some, evaluate=evaluate), tmp_path / name, never)
        for name, some in stages.items()
    }
    assert {tuple(one.texts) for one in runs.values()} == {tuple(runs["naive"].texts)}
    watched = [f"{row.prompt.partition(chr(10) * 2)[2]} {row.answer}" for row in runs["naive"].texts]
    for name in ("first", "last"):
        mixed = [row for data in runs[name].stages for rows in data.mixing for row in rows]
        assert len(mixed) == (12 if name == "first" else 8)
        assert not any(row.answer in passage for row in mixed for passage in watched)
    assert runs["alone"].stages[0].mixing == runs["first"].stages[0].mixing


def test_passages_that_are_trained_on_go_around_those_that_are_evaluated_on(tiny_checkpoint, tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": f"n{i} hill " * 60}) + "\n" for i in range(12)))
    stage = {"name": "a", "data": str(file), "kind": "texts", "n": 6, "held_out": 2}
    evaluate = {"texts": str(file), "texts_n": 4}
    prepared = prepare(small(tiny_checkpoint, stages=[stage], evaluate=evaluate), tmp_path, never)
    data = prepared.stages[0]
    own = {row.answer for row in (*data.rows, *data.held_out)}
    assert len(own) == 8 and not own & {row.answer for row in prepared.texts}
    counts = data.counts  # twelve passages, of which some of the four that are evaluated on were drawn
    assert counts["kept"] == 8 and 0 < counts["evaluated on"] <= 4
    assert counts["kept"] + counts["evaluated on"] + counts["not drawn"] == 12
    with pytest.raises(
        MemprobeError, match=r"stages\.1\.data: .*: \d of its \d+ rows are not evaluated on .* 9 are"
    ):
        prepare(
            small(tiny_checkpoint, stages=[stage | {"n": 7}], evaluate=evaluate), tmp_path / "more", never
        )


def test_mixing_holds_no_fact_of_a_stage_that_is_trained_later_by_another_run(tiny_checkpoint, tmp_path):
    arm, later = "remix(data=known, stages=1, ratio=1)", {"name": "b", "data": "known", "n": 150}
    first = {"name": "a", "data": "kvr:30"}
    whole, alone, unaware = (
        prepare(small(tiny_checkpoint, arm, **stages), tmp_path / str(place), never).stages
        for place, stages in enumerate(
            ({"stages": [first, later]}, {"stages": [first], "later": [later]}, {"stages": [first]})
        )
    )
    assert len(alone) == 1 and alone[0].mixing == whole[0].mixing != unaware[0].mixing


def test_what_is_mixed_in_is_not_watched(tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("training.asking._answered", lambda base, some, *rest: [True] * len(some))
    stage = {"name": "a", "data": "kvr:4", "mixing": [{"source": "known", "ratio": 1.0}]}
    recipe = small(tiny_checkpoint, stages=[stage], evaluate={"known": 1000})
    prepared = prepare(recipe, tmp_path, never)
    mixed = {row.prompt for row in prepared.stages[0].mixing[0]}
    assert len(mixed) == 4 and not mixed & {fact.prompt for fact in prepared.known}


def test_too_few_facts_to_mix_in_are_an_error(tiny_checkpoint, tmp_path):
    stages = [{"name": "a", "data": "kvr:6"}, {"name": "b", "data": "kvr:6:test"}]
    stages[1]["mixing"] = [{"source": "kvr:6", "ratio": 1.0}]
    with pytest.raises(MemprobeError, match=r"stages\.2\.mixing\.1\.source: kvr:6: has 0 rows that no stage"):
        prepare(small(tiny_checkpoint, stages=stages), tmp_path, never)


@pytest.mark.parametrize("kind", ["texts", "tasks"])
@pytest.mark.parametrize("arm", ["none", "joint"])
def test_stages_of_one_source_share_no_row_and_train_on_none_that_is_held_out(
    kind, arm, tiny_checkpoint, tmp_path
):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"p{i}?", "answer": f"a{i}"}) + "\n" for i in range(40)))
    stages = [
        {"name": name, "data": str(file), "kind": kind, "n": n, "held_out": 4}
        for name, n in (("a", 6), ("b", 20))
    ]
    one, other = prepare(small(tiny_checkpoint, arm, stages=stages), tmp_path / "run", never).stages
    parts = [{row.id for row in rows} for rows in (one.rows, one.held_out, other.rows, other.held_out)]
    assert [len(part) for part in parts] == [6, 4, 20, 4] and len(set.union(*parts)) == 34
    rest = [stages[0], stages[1] | {"n": None}]
    rest[1].pop("n")
    assert len(prepare(small(tiny_checkpoint, stages=rest), tmp_path / "rest", never).stages[1].rows) == 26
    with pytest.raises(MemprobeError, match="an earlier stage's, and 34 are wanted"):
        many = [stages[0], stages[1] | {"n": 30}]
        prepare(small(tiny_checkpoint, stages=many), tmp_path / "many", never)


def test_a_ratio_that_is_no_row_is_refused(tiny_checkpoint, tmp_path):
    for head in ("remix(", "matched(to=steps, "):
        arm = f"{head}data=kvr:40:test, stages=1, ratio=0.05)"
        with pytest.raises(MemprobeError, match=r"ratio 0\.05 × 6 own rows is no row"):
            prepare(small(tiny_checkpoint, arm), tmp_path / "run", never)


def test_what_is_mixed_in_twice_is_other_rows(tiny_checkpoint, tmp_path):
    (tmp_path / "words.txt").write_text(
        "\n".join(f"{a}{b}{c}" for a in "bcdfg" for b in "aeiou" for c in "klmnp")
    )
    arm = "remix(data=random-words, stages=1, words=4)+remix(data=random-words, stages=1, words=4, ratio=1)"
    (stage, _) = prepare(small(tiny_checkpoint, arm), tmp_path / "run", never, data_dir=tmp_path).stages
    one, other = ({row.answer for row in rows} for rows in stage.mixing)
    assert (len(one), len(other)) == (12, 6) and not one & other


def test_a_text_of_one_token_says_so():
    with pytest.raises(MemprobeError, match="no next one to learn"):
        ExampleMaker("tulu", tiny_tokenizer(), 40)(make_text("", "a", "file"))


def test_tasks_that_are_mixed_in_fit_as_a_stage_s_own_do(tiny_checkpoint, tmp_path):
    rows = [
        {"question": f"{i} " + "up " * (90 if i % 2 else 1), "answer": f"it is {i}\n#### {i}"}
        for i in range(60)
    ]
    (tmp_path / "gsm8k_train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = small(tiny_checkpoint, "remix(data=gsm8k:train, stages=1, ratio=3)", max_length=80)
    (stage, _) = prepare(recipe, tmp_path / "run", never, data_dir=tmp_path).stages
    (drawn,) = stage.mixing
    assert len(drawn) == 18 and all(int(row.prompt.split()[0]) % 2 == 0 for row in drawn)
