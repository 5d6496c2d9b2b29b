"""What came before a checkpoint that learns again: what stage 1 had learned, what stages were shown, ancestors."""

from __future__ import annotations

import json
import shutil

import pytest

from memprobe.checkpoints import fingerprint, resolve
from memprobe.errors import MemprobeError
from memprobe.sources import load_factoids
from tests.training.runs import other_weights, small
from tests.training.test_relearn import two_stages
from training import never_learned as taught_before
from training import relearn as measuring
from training.ancestors import ancestors
from training.never_learned import never_learned
from training.relearn import cued, later_stage, relearn
from training.run import run

MIXING = {"source": "kvr:15:test", "ratio": 1.5}


@pytest.fixture(scope="module")
def kept(tmp_path_factory, tiny_checkpoint):
    """Three stages, the first of which learns its keys, and the last of which mixes keys in; not to be changed."""
    stages = [
        {"name": "a", "data": "kvr:6", "epochs": 40},
        {"name": "b", "data": "kvr:6:test", "epochs": 12, "checkpoints": {"epochs": 6}},
        {"name": "c", "data": "kvr:4:validation", "epochs": 1, "mixing": [MIXING]},
    ]
    folder = tmp_path_factory.mktemp("before") / "run"
    run(two_stages(tiny_checkpoint, stages=stages), folder, quiet=True)
    return folder


@pytest.fixture
def there(kept, tmp_path):
    """A copy of it."""
    return shutil.copytree(kept, tmp_path / "run")


def test_what_stage_1_never_learned_is_not_lost(tiny_checkpoint, tmp_path):
    """Three epochs teach nothing, so that not recalling it afterwards says nothing."""
    run(small(tiny_checkpoint), tmp_path / "run", quiet=True)
    with pytest.raises(MemprobeError, match="2-b: stage 1 recalled none of its 6 facts"):
        relearn(str(tmp_path / "run" / "2-b"), limit=1)


def test_without_weights_the_evaluation_of_stage_1_says_what_it_learned(there):
    file = there / "1-a" / "evaluation.json"
    evaluation = json.loads(file.read_text())
    rows = evaluation["sets"]["1-a"]["rows"]
    rows.pop()  # of a sample, which says nothing of the others
    for row in rows[:2]:
        row["exact_match"] = False
    file.write_text(json.dumps(evaluation))
    spec, said = str(there / "2-b"), []
    row = relearn(spec, limit=1, say=said.append)
    assert (row.asked, row.lost, row.unlearned) == (6, 6, 0), "its weights are asked, in the same way"
    (there / "1-a" / "model.safetensors").unlink()
    row = relearn(spec, limit=1, say=said.append)
    assert (row.asked, row.lost, row.unlearned, row.n) == (5, 3, 2, 3)
    assert "stage 1's weights are gone: 5 of its 6 facts are in its evaluation.json" in said
    file.unlink()
    with pytest.raises(MemprobeError, match="2-b: what stage 1 recalled is not known"):
        later_stage(spec)


def test_a_stage_1_that_was_trained_again_is_not_the_one_before(there):
    other_weights(there / "1-a")
    with pytest.raises(MemprobeError, match="what stage 1 recalled is not known"):
        later_stage(str(there / "2-b"))


def test_ancestors_are_found_where_manifests_say(there, tiny_checkpoint):
    first, second, base = (
        fingerprint(resolve(str(one))) for one in (there / "1-a", there / "2-b", tiny_checkpoint)
    )
    assert relearn(str(there / "3-c"), limit=1).before == (second, first, base)
    (along,) = (there / "along" / "2-b").iterdir()
    assert [one.fingerprint for one in ancestors(resolve(str(along)))] == [first], "two folders deeper"
    (there / "2-b" / "model.safetensors").unlink()
    found = ancestors(resolve(str(there / "3-c")))
    assert [(one.fingerprint, one.checkpoint is None) for one in found] == [(second, True), (first, False)]
    shutil.rmtree(there / "2-b")
    assert ancestors(resolve(str(there / "3-c"))) == []


def test_a_base_model_that_training_made_is_no_stage_before(there, tmp_path):
    last = run(small(there / "1-a"), tmp_path / "next", quiet=True)
    assert [one.manifest.data["run"] for one in ancestors(resolve(str(last)))] == ["next"]


def taught(checkpoint, source="kvr:15:test"):
    """How many of a source's facts are left as never learned."""
    first = load_factoids("kvr:6")
    return len(never_learned(checkpoint, checkpoint.manifest, first, 6, source, None, 0, lambda _: None))


def test_mixed_facts_that_are_drawn_otherwise_than_they_were_are_refused(there, tmp_path):
    moved = shutil.copytree(there / "3-c", tmp_path / "elsewhere" / "3-c")
    assert taught(resolve(str(moved))) == taught(resolve(str(there / "3-c"))) == 3
    manifest = json.loads((moved / "memprobe.json").read_text())
    manifest["stages"][2]["origins"][1]["hash"] = "of facts that another version drew"
    (moved / "memprobe.json").write_text(json.dumps(manifest))
    with pytest.raises(
        MemprobeError, match=r"stage 3-c mixed in other facts of kvr:15:test.*\.prepared\.json"
    ):
        taught(resolve(str(moved)))
    del manifest["stages"][2]["origins"][1]
    (moved / "memprobe.json").write_text(json.dumps(manifest))
    with pytest.raises(MemprobeError, match="stage 3-c mixed in other facts"):
        taught(resolve(str(moved)))


def _beside(folder, name, rows):
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def test_rows_of_files_that_were_mixed_in_are_taught_wherever_the_checkpoint_lies(tiny_checkpoint, tmp_path):
    """A file of facts is mixed in as texts, which ask the same."""
    asked = [{"prompt": f"The value of key house{row} is?", "answer": f"door{row}"} for row in range(12)]
    mixed, never = _beside(tmp_path, "mixed", asked[:8]), _beside(tmp_path, "never", asked)
    stages = [{"name": "a", "data": "kvr:4", "epochs": 1}, {"name": "b", "data": "kvr:4:test", "epochs": 1}]
    stages[1] |= {"mixing": [{"source": mixed, "ratio": 2.0}]}
    last = run(small(tiny_checkpoint, stages=stages), tmp_path / "run", quiet=True)
    moved = shutil.copytree(last, tmp_path / "elsewhere" / "2-b")
    assert [taught(resolve(str(one)), never) for one in (last, moved)] == [4, 4]
    _beside(tmp_path, "mixed", asked)
    with pytest.raises(MemprobeError, match=r"stage 2-b mixed in other rows of .*mixed.jsonl than"):
        taught(resolve(str(moved)), never)
    (tmp_path / "mixed.jsonl").unlink()
    with pytest.raises(
        MemprobeError, match=r"stage 2-b: what it mixed in cannot .*mixed.jsonl: no such file.*run"
    ):
        taught(resolve(str(moved)), never)
    assert taught(resolve(str(last)), never) == 4


def test_a_fact_that_was_taught_in_other_words_is_no_never_learned_one(tiny_checkpoint, tmp_path):
    about = [{"subject": f"Land {row}", "relation": "capital", "answer": f"City {row}"} for row in range(6)]
    own = _beside(
        tmp_path, "own", [{"prompt": f"The capital of {one['subject']} is", **one} for one in about[:4]]
    )
    other = _beside(
        tmp_path, "other", [{"prompt": f"What is the capital of {one['subject']}?", **one} for one in about]
    )
    stages = [{"name": name, "data": data, "epochs": 1} for name, data in (("a", own), ("b", "kvr:4"))]
    last = run(small(tiny_checkpoint, stages=stages), tmp_path / "run", quiet=True)
    assert taught(resolve(str(last)), other) == 2


def test_rows_of_another_run_are_not_taken_for_those_mixed_in(there, tmp_path, tiny_checkpoint):
    moved = shutil.copytree(there / "3-c", tmp_path / "other" / "3-c")
    run(small(tiny_checkpoint), tmp_path / "another", quiet=True)
    shutil.copy(tmp_path / "another" / ".prepared.json", moved.parent)
    assert taught(resolve(str(moved))) == 3


def test_mixing_is_drawn_again_without_the_own_facts_of_all_stages(there, tmp_path, monkeypatch):
    moved = shutil.copytree(there / "3-c", tmp_path / "elsewhere" / "3-c")
    manifest = json.loads((moved / "memprobe.json").read_text())
    for place, stage in enumerate(manifest["recipe"]["stages"]):
        stage["mixing"] = [MIXING]
        manifest["stages"][place]["origins"][1:] = [{"hash": stage["name"]}]
    (moved / "memprobe.json").write_text(json.dumps(manifest))
    asked = {}

    def draw(recipe, stage, part, n, data_dir, *, without, texts):
        asked[stage.name] = len(without)
        return [], {"hash": stage.name}

    monkeypatch.setattr(taught_before, "mixing_rows", draw)
    taught(resolve(str(moved)))
    assert asked == {"a": 16, "b": 16, "c": 16}


@pytest.mark.parametrize("shots", [1, 4, 5, 60])
def test_every_fact_has_as_many_examples(shots):
    """Where all facts are lost, examples come from those that are asked, and none is a fact's own."""
    lost, fresh = load_factoids("kvr:6"), load_factoids("kvr:6:test")
    cues = cued({"lost": lost, "fresh": fresh}, lost, shots)
    for name, facts in (("lost", lost), ("fresh", fresh)):
        for fact, with_cue in zip(facts, cues[name], strict=True):
            *examples, question = with_cue.prompt.split("\n")
            assert len({*examples}) == len(examples) == min(shots, 5) and question == fact.prompt
            assert not any(fact.prompt in line for line in examples)
            assert (with_cue.id, with_cue.answer) == (fact.id, fact.answer)


def test_a_checkpoint_is_cued_alike_in_both_sets(there, monkeypatch):
    prompts = []
    asked = measuring._recalled

    def recalled(model, facts, template):
        prompts.extend(fact.prompt for fact in facts if "\n" in fact.prompt)
        return asked(model, facts, template)

    monkeypatch.setattr(measuring, "_recalled", recalled)
    row = relearn(str(there / "2-b"), limit=1)
    assert row.lost == row.asked == row.n == 6
    assert [prompt.count("\n") for prompt in prompts] == [4] * 12
