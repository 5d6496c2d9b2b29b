"""Datasets by name: hub and folder, cleaning, and what is said when neither is there."""

import json
from dataclasses import replace

import pytest

from memprobe.errors import MemprobeError, first_line
from memprobe.factoids import Factoid
from memprobe.sources import load, load_factoids, load_tasks, origins
from memprobe.sources.catalogue import DATASETS

PASSAGE = " ".join(f"word{number}" for number in range(100))

# Rows of our own invention, in the columns of the hub and of the local file.
ROWS = {
    "popqa": (
        {
            "id": 1,
            "subj": "Velmar",
            "prop": "capital",
            "obj": "Ostria City",
            "o_aliases": '["Ostria"]',
            "s_pop": 120,
            "o_pop": 9,
            "question": "What is the capital of Velmar?",
            "possible_answers": '["Ostria City", "Ostria"]',
        },
        {
            "question": "What is the capital of Velmar?",
            "answer": "Ostria City",
            "aliases": ["Ostria City", "Ostria"],
        },
    ),
    "triviaqa": (
        {
            "question": "Who sang the Velm song?",
            "question_id": "x",
            "answer": {
                "value": "Ana Velm",
                "aliases": ["Ana Velm", "A. Velm"],
                "normalized_value": "ana velm",
            },
        },
        {
            "question": "Who sang the Velm song?",
            "answer": "Ana Velm",
            "aliases": ["Ana Velm", "A. Velm"],
            "source": "own",
        },
    ),
    "lama": (
        {
            "uuid": "u",
            "obj_uri": "Q1",
            "obj_label": "Ostria",
            "sub_uri": "Q2",
            "sub_label": "Velmar",
            "predicate_id": "P36",
            "masked_sentence": "[MASK] is it.",
            "template": "The capital of [X] is [Y] .",
        },
        {
            "sub_label": "Velmar",
            "obj_label": "Ostria",
            "uuid": "u",
            "relation": "P36",
            "template": "The capital of [X] is [Y] .",
        },
    ),
    "entityqa": (
        {"question": "Who founded Velmar?", "answers": ["Ana Velm", "Bo Velm"], "relation": "P112"},
        {
            "question": "Who founded Velmar?",
            "answers": ["Ana Velm", "Bo Velm"],
            "relation": "P112",
            "split": "train",
        },
    ),
    "webqa": (
        {"url": "u", "question": "where is velmar?", "answers": ["Ostria", "the east"]},
        {"qId": "q", "qText": "where is velmar?", "answers": ["Ostria", "the east"], "split": "trainmodel"},
    ),
    "gsm8k": ({"question": "1 + 1?", "answer": "2\n#### 2"},) * 2,
    "math": (
        {"problem": "Add $1$ and $1$.", "level": "Level 1", "type": "Algebra", "solution": "\\boxed{2}"},
        {
            "problem": "Add $1$ and $1$.",
            "level": "Level 1",
            "type": "Algebra",
            "solution": "\\boxed{2}",
            "idx": 0,
        },
    ),
    "evolcode": (
        {"instruction": "Print one.", "output": "print(1)"},
        {"instruction": "Print one.", "output": "print(1)", "evolution": 2},
    ),
    "apps": (
        {
            "problem_id": 1,
            "question": "Print one.",
            "solutions": '["print(1)", "print(2 - 1)"]',
            "starter_code": "",
            "difficulty": "interview",
        },
        {
            "problem_id": "1",
            "question": "Print one.",
            "solutions": ["print(1)", "print(2 - 1)"],
            "starter_code": "",
            "metadata": "{}",
        },
    ),
    "mbpp": (
        {
            "task_id": 2,
            "prompt": "Write a function to double a number.",
            "code": "def double(n):\n  return 2 * n",
            "test_list": ["assert double(1) == 2"],
        },
        {
            "task_id": "MbppEval/2",
            "prompt": "def double(n):\n    '''\n    Write a function to double a number.\n    '''\n",
            "entry_point": "double",
            "canonical_solution": "  return 2 * n\n",
            "test": "def check(candidate):\n    assert candidate(1) == 2\n",
        },
    ),
    "ultrachat": (
        {"id": "0", "data": ["Hi?", "Hello.", "Again?", "Yes."]},
        {
            "messages": [
                {"content": "Hi?", "role": "user"},
                {"content": "Hello.", "role": "assistant"},
                {"content": "Again?", "role": "user"},
                {"content": "Yes.", "role": "assistant"},
            ]
        },
    ),
    "generic": ({"content": PASSAGE, "source": "x"}, {"text": PASSAGE, "source": "own"}),
    "fineweb": ({"text": PASSAGE, "url": "u"}, {"text": PASSAGE, "source": "own"}),
    "abstracts": ({"text": PASSAGE, "domain": "x"}, {"text": PASSAGE, "source": "own"}),
}


def write_jsonl(path, *rows):
    path.write_bytes("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Hub sets as folders that `datasets` reads itself, with the configurations and splits of the catalogue."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MEMPROBE_DATA_DIR", raising=False)
    monkeypatch.setattr(origins, "hub_commit", lambda hub_id, revision: "c0ffee")

    def publish(name, *rows):
        dataset = DATASETS[name]
        folder = tmp_path / "hub" / name
        folder.mkdir(parents=True)
        configs = []
        for config in dataset.hub.configs:
            files = []
            for split in dict.fromkeys(split for part in dataset.splits.values() for split in part.hub):
                first = (
                    config == dataset.hub.configs[0] and split == dataset.splits[dataset.default_split].hub[0]
                )
                file = f"{config or 'default'}-{split}.jsonl"
                # A set without rows cannot be read, so other splits hold what cleaning takes for a repeat.
                write_jsonl(folder / file, *(rows if first else rows[:1]))
                files.append(f"  - split: {split}\n    path: {file}")
            configs.append(f"- config_name: {config or 'default'}\n  data_files:\n" + "\n".join(files))
        (folder / "README.md").write_text("---\nconfigs:\n" + "\n".join(configs) + "\n---\n")
        here = replace(dataset, hub=replace(dataset.hub, id=str(folder)))
        monkeypatch.setitem(DATASETS, name, here)

    return publish


@pytest.mark.parametrize("name", DATASETS)
def test_hub_and_folder_give_the_same_rows(name, hub, tmp_path):
    from_hub, local = ROWS[name]
    dataset = DATASETS[name]
    hub(name, from_hub)
    write_jsonl(tmp_path / dataset.splits[dataset.default_split].file, local)
    fetched = load(name, n=1 if dataset.hub.large else None)
    read = load(name, data_dir=tmp_path)
    assert fetched.origin.hash == read.origin.hash
    assert [
        replace(row, popularity=None) if isinstance(row, Factoid) else row for row in fetched.rows
    ] == read.rows
    assert (fetched.origin.via, fetched.origin.revision) == ("hub", "c0ffee")
    assert (read.origin.via, read.origin.location) == ("folder", dataset.splits[dataset.default_split].file)
    assert read.origin.revision.startswith("sha256:")
    for counts in (fetched.counts, read.counts):
        assert counts["read"] == sum(count for rule, count in counts.items() if rule != "read")


def test_fields_of_the_factoid_sets(tmp_path):
    for name in ("popqa", "triviaqa", "lama", "entityqa", "webqa"):
        write_jsonl(tmp_path / DATASETS[name].splits["all"].file, ROWS[name][1])
    meta = {"question": "What is the capital of Velmar?", "metadata": {"obj": "Ostria City", "s_pop": 120}}
    write_jsonl(tmp_path / "popqa_meta_1k.jsonl", meta)
    rows = {
        name: load_factoids(name, data_dir=tmp_path)[0]
        for name in ("popqa", "triviaqa", "lama", "entityqa", "webqa")
    }
    assert rows["popqa"].aliases == ("Ostria",)
    assert (rows["popqa"].subject, rows["popqa"].relation, rows["popqa"].popularity) == (
        "Velmar",
        "capital",
        120.0,
    )
    assert rows["triviaqa"].aliases == ("A. Velm",)
    assert rows["triviaqa"].source == "triviaqa"
    assert (rows["lama"].prompt, rows["lama"].subject) == ("The capital of Velmar is", "Velmar")
    assert (rows["entityqa"].subject, rows["entityqa"].relation) == ("Velmar", "P112")
    assert rows["webqa"].aliases == ("the east",)


@pytest.mark.parametrize(
    ("relation", "template", "prompt"),
    [
        ("P1376", "[X] is the capital of [Y] .", "Velmar is the capital of"),
        ("P190", "[X] and [Y] are twin cities .", "Which city is a twin city of Velmar?"),
        ("P27", "[X] is [Y] citizen .", "Which country is Velmar a citizen of?"),
        ("P9999", "[X] likes [Y] most .", "Velmar likes ____ most. The word in the blank is"),
    ],
)
def test_lama_templates(tmp_path, relation, template, prompt):
    row = {"sub_label": "Velmar", "obj_label": "Ostria", "relation": relation, "template": template}
    write_jsonl(tmp_path / "lama_trex.jsonl", row)
    assert load_factoids("lama", data_dir=tmp_path)[0].prompt == prompt


def test_hub_sets_too_large_are_streamed_to_n(hub):
    hub("ultrachat", *({"id": str(n), "data": [f"question {n}", "answer"]} for n in range(40)))
    assert len(load_tasks("ultrachat", n=7)) == 7
    assert load_tasks("ultrachat", n=7) == load_tasks("ultrachat", n=7)
    with pytest.raises(
        MemprobeError, match="too large to fetch whole; give a --data-dir that has it, or `n`"
    ):
        load_tasks("ultrachat")


def test_without_folder_and_network_the_error_says_what_to_give(monkeypatch, tmp_path):
    monkeypatch.delenv("MEMPROBE_DATA_DIR", raising=False)

    def fail(hub_id, revision):
        raise ConnectionError("no route")

    monkeypatch.setattr(origins, "hub_commit", fail)
    with pytest.raises(MemprobeError) as caught:
        load("popqa")
    for part in (
        "akariasai/PopQA",
        "no route",
        "popqa.jsonl",
        "--data-dir",
        "MEMPROBE_DATA_DIR",
        "HF_HUB_OFFLINE",
    ):
        assert part in str(caught.value)
    with pytest.raises(MemprobeError, match=r"popqa\.jsonl is missing"):
        load("popqa", data_dir=tmp_path)
    monkeypatch.setenv("MEMPROBE_DATA_DIR", str(tmp_path / "gone"))
    with pytest.raises(MemprobeError, match="no such folder"):
        load("popqa")
    with pytest.raises(MemprobeError, match="no split 'tset'; it has train, test"):
        load("gsm8k:tset", data_dir=tmp_path)
    with pytest.raises(MemprobeError, match="the folder holds no split 'train'"):
        load("math:train", data_dir=tmp_path)


def test_splits_by_file_and_by_column(tmp_path):
    for split in ("train", "test"):
        write_jsonl(tmp_path / f"gsm8k_{split}.jsonl", {"question": split, "answer": "1"})
    assert load_tasks("gsm8k", data_dir=tmp_path)[0].prompt == "train"
    assert load_tasks("gsm8k:test", data_dir=tmp_path)[0].prompt == "test"
    rows = [
        {"qText": split, "answers": ["a"], "split": split}
        for split in ("trainmodel", "val", "devtest", "test")
    ]
    write_jsonl(tmp_path / "webquestions.jsonl", *rows)
    assert [row.prompt for row in load_factoids("webqa:train", data_dir=tmp_path)] == [
        "trainmodel",
        "val",
        "devtest",
    ]
    assert [row.prompt for row in load_factoids("webqa:test", data_dir=tmp_path)] == ["test"]
    assert len(load_factoids("webqa", data_dir=tmp_path)) == 4


def test_bad_rows_of_a_dataset_are_named(tmp_path):
    good = {"question": "Who founded Velmar?", "answers": ["Ana"], "relation": "P112", "split": "train"}
    path = tmp_path / "entityquestions.jsonl"
    write_jsonl(path, good, {**good, "answers": []}, {**good, "question": "Who founded\u2028Ost?"})
    with pytest.raises(MemprobeError, match=r"entityquestions\.jsonl line 2: 'answers' is empty"):
        load("entityqa", data_dir=tmp_path)
    loaded = load("entityqa", data_dir=tmp_path, on_bad_row="skip")
    assert (loaded.counts["read"], loaded.counts["bad"], loaded.counts["kept"]) == (3, 2, 1)
    assert "line 3: the question holds the line separator U+2028" in loaded.bad[1]


def test_a_popqa_question_without_its_subject_and_an_apps_problem_without_solution_are_counted(tmp_path):
    rows = [ROWS["popqa"][1], {"question": "What is the capital of ?", "answer": "x", "aliases": ["x"]}]
    write_jsonl(tmp_path / "popqa.jsonl", *rows)
    assert load("popqa", data_dir=tmp_path).counts["unanswered"] == 1
    write_jsonl(tmp_path / "apps_5.jsonl", ROWS["apps"][1], {"question": "Hard.", "solutions": []})
    assert load("apps", data_dir=tmp_path).counts["unanswered"] == 1


def test_kinds_are_checked(tmp_path):
    write_jsonl(tmp_path / "gsm8k_train.jsonl", ROWS["gsm8k"][1])
    with pytest.raises(MemprobeError, match="gsm8k: holds tasks, not factoids"):
        load_factoids("gsm8k", data_dir=tmp_path)


def test_any_hub_set_with_the_columns_of_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(origins, "hub_commit", lambda hub_id, revision: revision)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "owner" / "name"
    folder.mkdir(parents=True)
    write_jsonl(folder / "test.jsonl", *({"question": f"{n}?", "answers": ["a", "b"]} for n in range(5)))
    loaded = load("hub:owner/name@v1:test")
    assert len(loaded.rows) == 5
    assert {row.source for row in loaded.rows} == {"owner/name"}
    assert (loaded.origin.location, loaded.origin.split, loaded.origin.revision) == (
        "owner/name",
        "test",
        "v1",
    )
    write_jsonl(folder / "train.jsonl", *({"text": f"{PASSAGE} {n}"} for n in range(30)))
    texts = load("hub:owner/name", "texts", n=4, words=(10, 91))
    assert len(texts.rows) == 4
    with pytest.raises(MemprobeError, match="gone cannot be read from the hub"):
        load("hub:owner/gone")


@pytest.mark.parametrize(
    ("says", "shown"),
    [
        ("no such file", "no such file"),
        ("to disable it, unset the variable", "to disable it, unset the …"),
        ("x" * 40, "x" * 28 + " …"),
        ("first\nsecond", "first"),
        ("", "ValueError"),
    ],
)
def test_a_long_reason_is_cut_between_words(says, shown):
    assert first_line(ValueError(says), at_most=30) == shown


def test_fewer_facts_than_are_asked_for_is_an_error_for_those_made_too():
    """What is left out of them may be half of them; how many a recipe says is how many are trained."""
    earlier = load_factoids("kvr:3")
    assert len(load_factoids("kvr:6", without=earlier)) == 3, "no number was asked for"
    with pytest.raises(
        MemprobeError, match=r"kvr:6: 3 of the 5 rows that are asked for are left \(.*3 overlap"
    ):
        load_factoids("kvr:6", n=5, without=earlier)
