"""Keys and values, built-in facts, random words."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memprobe.errors import MemprobeError
from memprobe.sources import load, load_factoids, load_texts
from memprobe.sources.builtin import known_relations
from memprobe.sources.kvr import MAX_SEED, SPLITS, generate_kvr


def test_kvr_rows():
    (row,) = load_factoids("kvr:1")
    assert re.fullmatch(r"The value of key [a-z0-9]{8} is\?", row.prompt)
    assert re.fullmatch(r"[a-z0-9]{8}", row.answer)
    assert row.subject in row.prompt
    # Fixed for ever: probes made elsewhere join on these ids.
    assert (row.subject, row.answer, row.id) == ("delqnjck", "dlofiopu", "883ac3966fcd84ca")


def test_kvr_sets_share_nothing():
    sets = [generate_kvr(500, seed=seed, split=split) for seed in (0, 1, 2, MAX_SEED) for split in SPLITS]
    rows = [row for rows in sets for row in rows]
    assert len({row.subject for row in rows}) == len({row.answer for row in rows}) == len(rows) == 6000


@settings(max_examples=25, deadline=None)
@given(st.integers(0, MAX_SEED), st.sampled_from(SPLITS), st.integers(1, 40), st.integers(1, 40))
def test_kvr_is_deterministic_and_grows(seed, split, a, b):
    short, long = sorted((a, b))
    assert generate_kvr(long, seed=seed, split=split)[:short] == generate_kvr(short, seed=seed, split=split)


def test_kvr_characters_are_spread_evenly():
    text = "".join(row.answer for row in generate_kvr(2000))
    counts = [text.count(character) for character in "abcdefghijklmnopqrstuvwxyz0123456789"]
    expected = len(text) / 36
    assert (
        sum((count - expected) ** 2 / expected for count in counts) < 80
    )  # chi squared, 35 degrees: p < 1e-4


@pytest.mark.parametrize("name", ["kvr", "kvr:x", "kvr:0", "kvr:2000000", "kvr:5:dev"])
def test_kvr_refuses(name):
    with pytest.raises(MemprobeError, match="kvr"):
        load_factoids(name)


def test_kvr_by_name_takes_split_and_n():
    assert load_factoids("kvr:9:test", seed=3) == generate_kvr(9, seed=3, split="test")
    assert load_factoids("kvr:9", n=4) == load_factoids("kvr", n=4) == generate_kvr(4)
    assert load_factoids("kvr:test", n=4) == generate_kvr(4, split="test")
    with pytest.raises(MemprobeError, match="between 1 and its 9 rows"):
        load_factoids("kvr:9", n=10)


def test_keys_of_another_set_are_left_out_before_so_many_are_taken():
    first, every = generate_kvr(6), generate_kvr(16)
    for n in (1, 8, 10):
        assert load_factoids("kvr:16", n=n, without=first) == every[6 : 6 + n]
    assert load_factoids("kvr:16", without=first) == every[6:]
    with pytest.raises(MemprobeError, match="10 of the 11 rows that are asked for are left"):
        load_factoids("kvr:16", n=11, without=first)


def test_known_facts():
    rows = load_factoids("known")
    relations = {row.relation for row in rows}
    assert len(rows) >= 200
    assert len(relations) >= 8
    assert len({row.id for row in rows}) == len({row.prompt for row in rows}) == len(rows)
    for row in rows:
        assert row.source == "known"
        assert row.subject
        assert f" {row.answer} " not in f"{row.prompt} ", row  # a prompt that tells the answer probes nothing
        assert not row.prompt.endswith(("?", ".", " "))  # a cloze that a base model continues
    for relation in known_relations().values():
        assert len(relation["paraphrases"]) >= 2
        assert all("{subject}" in text for text in (relation["template"], *relation["paraphrases"]))
        assert len({pair[1] for pair in relation["pairs"]}) >= 4  # shuffled answers need others


@pytest.fixture
def words_file(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("".join(f"word{number}\n" for number in range(1000)))
    return path


def test_random_words_are_seeded_and_grow(words_file, tmp_path):
    texts = load_texts("random-words", n=5, words=(0, 30), data_dir=tmp_path)
    assert all(len(text.answer.split()) == 30 for text in texts)
    assert texts[:2] == load_texts("random-words", n=2, words=(0, 30), words_file=words_file)
    assert texts != load_texts("random-words", n=5, words=(0, 30), words_file=words_file, seed=1)
    assert len({word for text in texts for word in text.answer.split()}) > 100
    origin = load("random-words", n=5, data_dir=tmp_path).origin
    assert (origin.via, origin.location, origin.n) == ("generated", "words.txt", 5)


@pytest.mark.parametrize("source", ["random-words", "passages"])
def test_both_forms_of_a_prompt_ask_for_the_same_answer(source, words_file, tmp_path):
    passages = tmp_path / "passages.jsonl"
    passages.write_text(
        "".join(json.dumps({"text": " ".join(f"w{row}.{n}" for n in range(20))}) + "\n" for row in range(3))
    )
    name, n = (source, 3) if source == "random-words" else (f"jsonl:{passages}", None)

    def read(form):
        return load(name, "texts", n=n, words=(7, 5), prompt_form=form, words_file=words_file).rows

    carrying, alone = read("words"), read("sentence")
    assert [row.answer for row in carrying] == [row.answer for row in alone]
    assert all(len(row.answer.split()) == 5 for row in alone)
    assert len({row.prompt for row in alone}) == 1 and alone[0].prompt.endswith("passage:")
    for row in carrying:
        instruction, _, words = row.prompt.partition("\n\n")
        assert instruction.endswith("passage:") and len(words.split()) == 7
        assert not set(words.split()) & set(row.answer.split())
    assert len({row.id for row in (*carrying, *alone)}) == 6


def test_random_words_refuse(tmp_path, words_file, monkeypatch):
    with pytest.raises(MemprobeError, match="how many texts with --n"):
        load_texts("random-words", words_file=words_file)
    with pytest.raises(MemprobeError, match="no such word list"):
        load_texts("random-words", n=1, words_file=tmp_path / "gone.txt")
    monkeypatch.delenv("MEMPROBE_DATA_DIR", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MemprobeError, match=r"--data-dir.*`words_file`.*pip install english-words"):
        load_texts("random-words", n=1)
