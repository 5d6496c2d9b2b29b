"""CounterFact, zsRE and SQuAD as they are published: made-up rows in their shapes."""

from __future__ import annotations

import json

import polars as pl
import pytest

from memprobe.errors import MemprobeError
from memprobe.sources import load_factoids

COUNTERFACT = {
    "case_id": 7,
    "pararel_idx": 11,
    "requested_rewrite": {
        "prompt": "The mother tongue of {} is",
        "relation_id": "P103",
        "target_new": {"str": "Selvan", "id": "Q2"},
        "target_true": {"str": "Orian", "id": "Q1"},
        "subject": "Ada Lunn",
    },
    "paraphrase_prompts": ["Ada Lunn spoke"],
}
ZSRE = {
    "subject": "Lunn",
    "src": "Which sea does the Lunn flow into?",
    "pred": "Grey Sea",
    "rephrase": "Into which sea goes the Lunn?",
    "alt": "White Sea",
    "answers": ["Grey Sea", "the Grey Sea"],
    "loc": "nq question: who runs",
    "loc_ans": "nobody",
    "cond": "Grey Sea >> White Sea || Which sea does the Lunn flow into?",
}
SQUAD = {
    "id": "57a",
    "title": "Oria",
    "context": "The capital of Oria is Osk.",
    "question": "What is the capital of Oria?",
    "answers": {"text": ["Osk", "Osk", "Osk city"], "answer_start": [23, 23, 23]},
}
NESTED = {
    "version": "1.1",
    "data": [
        {
            "title": "Oria",
            "paragraphs": [
                {
                    "context": SQUAD["context"],
                    "qas": [
                        {
                            "id": "57a",
                            "question": SQUAD["question"],
                            "answers": [{"text": "Osk", "answer_start": 23}],
                        }
                    ],
                }
            ],
        }
    ],
}


@pytest.mark.parametrize("ending", ["json", "jsonl"])
@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (COUNTERFACT, ("7", "The mother tongue of Ada Lunn is", "Orian", (), "P103", "Ada Lunn")),
        (ZSRE, (None, ZSRE["src"], "Grey Sea", ("the Grey Sea",), None, "Lunn")),
        (SQUAD, ("57a", SQUAD["question"], "Osk", ("Osk city",), None, None)),
    ],
    ids=["counterfact", "zsre", "squad"],
)
def test_rows_as_published(tmp_path, row, expected, ending):
    file = tmp_path / f"rows.{ending}"
    file.write_text(json.dumps([row]) if ending == "json" else json.dumps(row) + "\n")
    (fact,) = load_factoids(str(file))
    id, *others = expected
    assert (fact.prompt, fact.answer, fact.aliases, fact.relation, fact.subject) == tuple(others)
    assert id is None or fact.id == id


@pytest.mark.parametrize("row", [COUNTERFACT, ZSRE | {"id": 3}], ids=["counterfact", "zsre"])
def test_an_edited_answer_is_a_fact_of_its_own(tmp_path, row):
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([row]))
    (true,) = load_factoids(f"{file}:true")
    (new,) = load_factoids(f"{file}:new")
    assert [true] == load_factoids(str(file)) and [true, new] == load_factoids(f"{file}:both")
    assert (
        new.answer
        == {"counterfact": "Selvan", "zsre": "White Sea"}["zsre" if "src" in row else "counterfact"]
    )
    assert (new.prompt, new.subject, new.aliases) == (true.prompt, true.subject, ())
    assert (true.source, new.source) == ("file", "edit") and new.id == f"{true.id}-new"


def test_what_has_no_edited_answer_is_named(tmp_path):
    file = tmp_path / "rows.json"
    for row, said in (
        (SQUAD, "rows of CounterFact and zsRE have one"),
        (ZSRE | {"alt": None}, "no edited answer 'alt'"),
    ):
        file.write_text(json.dumps([row]))
        with pytest.raises(MemprobeError, match=said):
            load_factoids(f"{file}:new")
    with pytest.raises(MemprobeError, match="which answers"):
        load_factoids(f"{file}:old")


def test_a_probe_ranks_both_answers_of_an_edit(tiny_checkpoint, tmp_path, cli):
    rows = [COUNTERFACT | {"case_id": i} for i in range(3)]
    for i, row in enumerate(rows):
        row["requested_rewrite"] = row["requested_rewrite"] | {"subject": f"Ada {i}"}
    (tmp_path / "edits.json").write_text(json.dumps(rows))
    code, _, err = cli(
        "layers",
        "--ckpt",
        tiny_checkpoint,
        "--factoids",
        f"{tmp_path / 'edits.json'}:both",
        "--out",
        tmp_path / "p",
    )
    assert code == 0, err
    ranks = pl.read_parquet(next((tmp_path / "p" / "records").glob("*.parquet")))
    assert set(ranks["factoid"]) == {"0", "1", "2", "0-new", "1-new", "2-new"}


def test_squad_nested_and_in_parquet(tmp_path):
    (tmp_path / "train-v1.1.json").write_text(json.dumps(NESTED))
    (fact,) = load_factoids(str(tmp_path / "train-v1.1.json"))
    assert (fact.id, fact.answer) == ("57a", "Osk")
    pl.DataFrame([SQUAD]).write_parquet(tmp_path / "squad.parquet")
    (fact,) = load_factoids(str(tmp_path / "squad.parquet"))
    assert (fact.id, fact.answer, fact.aliases) == ("57a", "Osk", ("Osk city",))


@pytest.mark.parametrize(
    ("whole", "words"),
    [
        ([SQUAD | {"answers": {"text": [], "answer_start": []}}], "row 1: has no answer"),
        ([SQUAD | {"answers": {"start": []}}], "without a list 'text'"),
        ([{"requested_rewrite": {"prompt": "x {}", "subject": "s"}}], "lacks 'target_true'"),
        (
            [{"requested_rewrite": {"prompt": "x", "subject": "s", "target_true": {"str": "y"}}}],
            "without one {}",
        ),
        ({"data": [{"paragraphs": [{"qas": [{"id": 1}]}]}]}, "not SQuAD's"),
        (["text"], "row 1: a JSON str"),
        ("{", "not JSON"),
    ],
)
def test_what_has_such_a_shape_in_part_is_named(tmp_path, whole, words):
    file = tmp_path / "rows.json"
    file.write_text(whole if isinstance(whole, str) else json.dumps(whole))
    with pytest.raises(MemprobeError) as caught:
        load_factoids(str(file))
    assert words in str(caught.value) and "rows.json" in str(caught.value)
