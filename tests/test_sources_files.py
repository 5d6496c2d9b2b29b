"""Own files: JSONL, CSV and Parquet rows, good and bad."""

import csv
import json
from pathlib import Path

import polars as pl
import pytest

from memprobe.errors import MemprobeError
from memprobe.factoids import factoid_id
from memprobe.sources import load, load_factoids, load_tasks, load_texts


def jsonl(path, *rows):
    lines = [row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode() for row in rows]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


FULL = {
    "id": "mine",
    "question": "Which colour is the Velm flag?",
    "answers": ["green", "emerald"],
    "aliases": ["dark green"],
    "relation": "colour",
    "subject": "the Velm flag",
    "popularity": 12,
    "source": "velm",
}


def test_jsonl_csv_and_parquet_hold_the_same_factoids(tmp_path):
    plain = {"prompt": "Velm lies in", "answer": "Ostria"}
    one = load_factoids(str(jsonl(tmp_path / "a.jsonl", FULL, plain)))
    columns = {key: [FULL[key], None] for key in FULL if key not in ("question", "answers")}
    pl.DataFrame(
        {
            **columns,
            "question": [FULL["question"], "Velm lies in"],
            "answers": [["green", "emerald"], ["Ostria"]],
        }
    ).write_parquet(tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text(
        "id,prompt,answers,aliases,relation,subject,popularity,source\r\n"
        'mine,Which colour is the Velm flag?,"[""green"", ""emerald""]","[""dark green""]",colour,the Velm flag,12,'
        "velm\r\n"
        ",Velm lies in,Ostria,,,,,\r\n",
        newline="",
    )
    assert one[0].id == "mine"
    assert one[0].source == "velm"
    assert one[0].aliases == ("emerald", "dark green")
    assert one[0].popularity == 12.0
    assert one[1].id == factoid_id("file", "Velm lies in", "Ostria")
    assert load_factoids(str(tmp_path / "a.parquet")) == one
    assert load_factoids(str(tmp_path / "a.csv")) == one


def test_source_is_never_a_path_and_ids_do_not_depend_on_the_folder(tmp_path):
    (tmp_path / "deep").mkdir()
    row = {"prompt": "p", "answer": "a"}
    here = load(str(jsonl(tmp_path / "a.jsonl", row)))
    there = load(str(jsonl(tmp_path / "deep" / "b.jsonl", row)))
    assert here.rows == there.rows
    assert here.rows[0].source == "file"
    assert "/" not in str(here.origin.location)
    assert here.origin.hash == there.origin.hash


def test_only_newlines_end_lines(tmp_path):
    row = {"prompt": "what\u0085is it?", "answer": "a", "aliases": ["one\u2028two"]}
    (factoid,) = load_factoids(str(jsonl(tmp_path / "a.jsonl", row)))
    assert factoid.prompt == "what\u0085is it?"
    task = {"prompt": "one\u2028two", "answer": "three\u2029four"}
    (read,) = load_tasks(str(jsonl(tmp_path / "b.jsonl", task)))
    assert (read.prompt, read.answer) == ("one\u2028two", "three\u2029four")


GOOD = {"prompt": "p?", "answer": "a"}
BAD_ROWS = {
    "no 'answer'": {"prompt": "q?"},
    "no 'prompt'": {"answer": "a"},
    "'answer' is empty": {"prompt": "q?", "answer": "  "},
    "'answers' is empty": {"prompt": "q?", "answers": []},
    "'prompt' is a list": {"prompt": ["q?"], "answer": "a"},
    "holds something other than text": {"prompt": "q?", "answers": [{"text": "a"}]},
    "U+2028": {"prompt": "one\u2028two?", "answer": "a"},
    "U+2029": {"prompt": "q?", "answer": "one\u2029two"},
    "not a number": {"prompt": "q?", "answer": "a", "popularity": "high"},
    "byte 13 is not UTF-8": b'{"prompt": "\xff", "answer": "a"}',
    "not JSON": b'{"prompt": "q?", "answer": "a"',
    "a JSON list": b"[1, 2]",
    "'answer' is given twice": b'{"prompt": "q?", "answer": "a", "answer": "b"}',
    "'text' is given twice": b'{"prompt": "q?", "answers": {"text": 1, "text": 2}}',
    "not JSON (": b'{"prompt": ' + b"[" * 100_000,
    "'answer' is nan, not a number": b'{"prompt": "q?", "answer": NaN}',
    "'answers' is -inf, not a number": b'{"prompt": "q?", "answers": ["a", -Infinity]}',
    "'popularity' is 'inf', not a number": b'{"prompt": "q?", "answer": "a", "popularity": "inf"}',
    "which is no character": b'{"prompt": "q\\u0000?", "answer": "a"}',
    "no 'answer' or 'answers'; the row has 'Prompt', 'Answer'": {"Prompt": "q?", "Answer": "a"},
    "'answers' is a list without commas": {"prompt": "q?", "answers": "['a' 'b']"},
}


@pytest.mark.parametrize("problem", BAD_ROWS)
def test_bad_rows_are_named_by_file_and_line(tmp_path, problem):
    path = jsonl(tmp_path / "facts.jsonl", GOOD, b"", BAD_ROWS[problem])
    with pytest.raises(MemprobeError) as caught:
        load_factoids(str(path))
    message = str(caught.value)
    assert "facts.jsonl line 3" in message
    assert problem in message
    assert "\n" not in message
    loaded = load(str(path), on_bad_row="skip")
    assert [row.prompt for row in loaded.rows] == ["p?"]
    assert loaded.counts["bad"] == 1
    assert "facts.jsonl line 3" in loaded.bad[0]


@pytest.mark.parametrize("policy", ["fail", "skip"])
def test_a_column_that_no_row_has_is_named_once(tmp_path, policy):
    path = jsonl(tmp_path / "facts.jsonl", {"prompt": "p?", "anwser": "a"}, {"prompt": "q?", "anwser": "b"})
    with pytest.raises(MemprobeError) as caught:
        load(str(path), on_bad_row=policy)
    assert str(caught.value).endswith(
        "facts.jsonl: no row has 'answer' or 'answers'; there are 'prompt', 'anwser'; "
        "'anwser': did you mean 'answer'?"
    )


def test_bad_cells_of_a_csv_are_named_by_line(tmp_path):
    path = tmp_path / "facts.csv"
    path.write_bytes(b'prompt,answer\n"two\nlines?",a\nq?\nr?,\xff\ns?,\n')
    loaded = load(str(path), on_bad_row="skip")
    assert [row.prompt for row in loaded.rows] == ["two\nlines?"]
    assert [line.split(": ")[0].rsplit("/", 1)[-1] for line in loaded.bad] == [
        "facts.csv line 4",
        "facts.csv line 5",
        "facts.csv line 6",
    ]
    with pytest.raises(MemprobeError, match="line 4"):
        load(str(path))


def test_files_that_cannot_be_used(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 and no more")
    for name, problem in {
        "empty.jsonl": "no rows",
        "torn.parquet": "cannot be read as Parquet",
        "gone.jsonl": "no such file",
    }.items():
        with pytest.raises(MemprobeError, match=problem):
            load_factoids(str(tmp_path / name))
    with pytest.raises(MemprobeError, match="no source 'nonsense'"):
        load_factoids("nonsense")


def test_one_id_twice_is_an_error_and_a_repeated_row_without_id_is_not(tmp_path):
    twice = jsonl(tmp_path / "a.jsonl", {**GOOD, "id": "x"}, GOOD, {"prompt": "q?", "answer": "b", "id": "x"})
    with pytest.raises(MemprobeError, match=r"a\.jsonl line 3: the id 'x' stands at .*a\.jsonl line 1"):
        load_factoids(str(twice))
    loaded = load(str(jsonl(tmp_path / "b.jsonl", GOOD, GOOD)))
    assert len(loaded.rows) == 1
    assert loaded.counts["duplicate"] == 1


def test_conflicting_answers_of_a_file_are_kept_unless_asked(tmp_path):
    path = str(jsonl(tmp_path / "a.jsonl", GOOD, {"prompt": "p?", "answer": "b"}))
    assert len(load(path).rows) == 2
    assert load(path, conflicts="merge").rows[0].aliases == ("b",)
    with pytest.raises(MemprobeError, match="no rows are left"):
        load(path, conflicts="drop")


def test_subsets_do_not_depend_on_the_order_and_grow(tmp_path):
    rows = [{"prompt": f"p{number}?", "answer": "a"} for number in range(50)]
    forward = str(jsonl(tmp_path / "a.jsonl", *rows))
    backward = str(jsonl(tmp_path / "b.jsonl", *rows[::-1]))
    assert load_factoids(forward, n=10) == load_factoids(backward, n=10)
    assert load_factoids(forward, n=20)[:10] == load_factoids(forward, n=10)
    assert load_factoids(forward, n=10, seed=1) != load_factoids(forward, n=10)
    with pytest.raises(MemprobeError, match="`n` 51 is not between 1 and its 50 rows"):
        load_factoids(forward, n=51)


def test_jsonl_of_another_name(tmp_path):
    fact = {"prompt": "Velm lies in", "answer": "Ostria"}
    for name in ("facts.txt", "facts", "2026-01-01.facts:new"):
        path = jsonl(tmp_path / name, fact)
        (read,) = load_factoids(f"jsonl:{path}")
        assert (read.prompt, read.answer) == ("Velm lies in", "Ostria")
        assert [task.answer for task in load_tasks(f"jsonl:{path}")] == ["Ostria"]
        assert [text.answer for text in load_texts(f"jsonl:{path}")] == ["Ostria"]
        with pytest.raises(MemprobeError, match=r"no source .* jsonl:FILE"):
            load_factoids(str(path))
    table = tmp_path / "facts.csv"
    table.write_text("prompt,answer\nVelm lies in,Ostria\n")
    assert load_factoids(f"jsonl:{table}") == load_factoids(str(table)) == [read]  # its own ending says more


def test_tasks_and_texts_of_a_file(tmp_path):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    path = jsonl(tmp_path / "t.jsonl", {"messages": turns}, {"instruction": "Add", "output": "Done"})
    tasks = load_tasks(f"jsonl:{path}")
    assert [(task.prompt, task.answer) for task in tasks] == [("Hi", "Hello"), ("Add", "Done")]
    words = " ".join(f"w{number}" for number in range(7))
    path = jsonl(
        tmp_path / "x.jsonl", {"text": words}, {"text": "too short"}, {"prompt": "", "answer": "as it is"}
    )
    loaded = load(str(path), "texts", words=(3, 2))
    assert [row.answer for row in loaded.rows] == ["w3 w4", "as it is"]
    assert loaded.rows[0].prompt == "Complete the following partial passage:\n\nw0 w1 w2"
    assert loaded.counts["short"] == 1
    with pytest.raises(MemprobeError, match="assistant's turn"):
        load_tasks(str(jsonl(tmp_path / "u.jsonl", {"messages": turns[:1]})))
    with pytest.raises(MemprobeError, match="give at least"):
        load_texts(str(path), words=(3, 0))


CSV = {
    "has two columns 'answer'": b"prompt,answer,answer\np?,a,b\n",
    "separated by semicolons": b"prompt;answer\np?;a\n",
    "separated by tabs": b"sep=\t\nprompt\tanswer\np?\ta\n",
    "written in UTF-16": "prompt,answer\r\np?,a\r\n".encode("utf-16"),
    "there are 'Prompt', 'Answer'; 'Answer': did you mean 'answer'": b"Prompt,Answer\np?,a\n",
    "the file may be cut": b"prompt,answer\nq?,b\np?,a",
    "a cell is 'nan', which is no number": b"prompt,answer\np?,nan\n",
}


@pytest.mark.parametrize("problem", CSV)
def test_csv_files_that_could_be_read_in_two_ways_are_refused(tmp_path, problem):
    path = tmp_path / "facts.csv"
    path.write_bytes(CSV[problem])
    with pytest.raises(MemprobeError, match=problem) as caught:
        load_factoids(str(path))
    assert "facts.csv" in str(caught.value)


def test_a_csv_may_end_in_a_quoted_cell_or_a_carriage_return(tmp_path):
    for end in ('"a"', "a\r", "a\r\n"):
        (tmp_path / "a.csv").write_bytes(b"prompt,answer\np?," + end.encode())
        assert load_factoids(str(tmp_path / "a.csv"))[0].answer == "a"


def test_lists_in_cells_are_json_or_as_pandas_writes_them(tmp_path):
    (tmp_path / "a.csv").write_text(
        "question,answers\n"
        """one?,"['Ys', ""Kêr-Is's""]"\n"""
        """two?,"[""Ys"", ""Is""]"\n"""
        "three?,[unknown]\n"
    )
    one, two, three = load_factoids(str(tmp_path / "a.csv"))
    assert (one.answer, one.aliases) == ("Ys", ("Kêr-Is's",))
    assert (two.answer, two.aliases) == ("Ys", ("Is",))
    assert (three.answer, three.aliases) == ("[unknown]", ())


def test_whole_numbers_of_a_parquet_file_have_no_point(tmp_path):
    frame = pl.DataFrame({"prompt": ["a?", "b?"], "answers": [[1889.0, 18.5], [3.0, 4.0]]})
    frame.write_parquet(tmp_path / "lists.parquet")
    one, two = load_factoids(str(tmp_path / "lists.parquet"))
    assert (one.answer, one.aliases, two.answer) == ("1889", ("18.5",), "3")
    frame = pl.DataFrame(
        {"prompt": ["a?", "b?"], "answer": [1931.0, 0.1]}, schema_overrides={"answer": pl.Float32}
    )
    frame.write_parquet(tmp_path / "single.parquet")
    assert [one.answer for one in load_factoids(str(tmp_path / "single.parquet"))] == ["1931", "0.1"]


def test_no_flipped_bit_of_a_parquet_file_ends_in_anything_but_rows_or_one_line(tmp_path, capfd):
    frame = pl.DataFrame({"prompt": ["a?", "b?", "c?"], "answer": ["x", "y", "z"], "aliases": [["v"]] * 3})
    frame.write_parquet(tmp_path / "a.parquet", compression="uncompressed")
    whole = (tmp_path / "a.parquet").read_bytes()
    refused = 0
    for bit in range(0, len(whole) * 8, 7):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        (tmp_path / "b.parquet").write_bytes(damaged)
        try:
            load_factoids(str(tmp_path / "b.parquet"))
        except MemprobeError as error:
            refused += 1
            assert "b.parquet" in str(error)
            assert "\n" not in str(error)
    assert refused > 50
    assert capfd.readouterr().err == ""


LISTS = {
    "a tuple": "('Paris', 'paris')",
    "a tuple, spaced": " ( 'Paris' , 'paris' ) ",
    "a set": "{'Paris', 'paris'}",
    "an array": "array(['Paris', 'paris'], dtype=object)",
    "a list": "['Paris', 'paris']",
    "JSON": '["Paris", "paris"]',
    "double quotes": "[\"Paris\", 'paris']",
    "a tuple within": "[ 'Paris' , \"paris\" ]",
}
NO_LISTS = {
    "'answers' begins as a list": ["['Paris', nan]", "['Paris', 'par", '["Paris", "par', "['Paris', paris]"],
    "'answers' is a dictionary": ["{'name': 'Paris'}", '{"name": "Paris"}'],
    "without commas": ["['Paris' 'paris']", "array(['Paris' 'paris'], dtype='<U5')"],
}
TEXTS = [
    "(Paris)",
    "('Til Tuesday)",
    "(1, 2)",
    "{Paris}",
    "[unknown]",
    "[unknown], say",
    "{",
    "(",
    "[",
    "array(x)",
]


def answers_in(path: Path, cell: str) -> list[str]:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["prompt", "answers"], ["The capital of France is", cell]])
    (factoid,) = load_factoids(str(path))
    return [factoid.answer, *factoid.aliases]


@pytest.mark.parametrize("how", LISTS)
def test_a_cell_holds_a_list_as_python_json_or_numpy_write_it(tmp_path, how):
    assert answers_in(tmp_path / "a.csv", LISTS[how]) == ["Paris", "paris"]


@pytest.mark.parametrize(
    ("words", "cell"), [(words, cell) for words, cells in NO_LISTS.items() for cell in cells]
)
def test_a_cell_that_is_half_a_list_is_named(tmp_path, words, cell):
    with pytest.raises(MemprobeError, match=words):
        answers_in(tmp_path / "a.csv", cell)


@pytest.mark.parametrize("cell", TEXTS)
def test_a_text_in_brackets_stays_a_text(tmp_path, cell):
    assert answers_in(tmp_path / "a.csv", cell) == [cell]


@pytest.mark.parametrize("text", ["[1, 2]", "['Paris']", '["Paris", "paris"]', "{'a': 1}", "['Paris', nan]"])
def test_an_answer_that_is_a_text_stays_it_where_a_file_has_lists(tmp_path, text):
    """A CSV has no lists, so that there a text may be one."""
    row = {"prompt": "Printed is", "answer": text, "aliases": "['b', 'c']"}
    paths = [jsonl(tmp_path / "a.jsonl", row), tmp_path / "a.json", tmp_path / "a.parquet"]
    paths[1].write_text(json.dumps([row]))
    pl.DataFrame([row]).write_parquet(paths[2])
    for path in paths:
        (factoid,) = load_factoids(str(path))
        assert (factoid.answer, factoid.aliases) == (text, ("b", "c"))


def test_whole_numbers_are_written_alike_in_every_format(tmp_path):
    """pandas writes a column of integers with a gap as floats, also into JSON."""
    (tmp_path / "a.jsonl").write_text(
        '{"prompt": "one?", "answer": 1889.0, "aliases": [7.0], "id": 3.0}\n{"prompt": "two?", "answer": 0.5}\n'
    )
    one, two = load_factoids(str(tmp_path / "a.jsonl"))
    assert (one.answer, one.aliases, one.id, two.answer) == ("1889", ("7",), "3", "0.5")


@pytest.mark.parametrize("policy", ["fail", "skip"])
@pytest.mark.parametrize(
    "given,meant", [("relaton", "relation"), ("Subject", "subject"), ("sources", "source")]
)
def test_an_optional_column_that_is_misspelt_is_not_passed_over(tmp_path, policy, given, meant):
    path = jsonl(tmp_path / "facts.jsonl", GOOD, {"prompt": "q?", "answer": "b", given: "x"})
    with pytest.raises(MemprobeError) as caught:
        load(str(path), on_bad_row=policy)
    assert "facts.jsonl line 2" in str(caught.value)
    assert f"the column {given!r} is not one that is read; did you mean {meant!r}?" in str(caught.value)


def test_columns_of_other_meaning_are_left_to_their_owner(tmp_path):
    others = {"resource": "x", "subject_id": "Q1", "idx": "3", "popular": "yes", "related": "y"}
    both = {"relation": "capital", "relations": "many"}
    path = jsonl(tmp_path / "facts.jsonl", {**GOOD, **others}, {"prompt": "q?", "answer": "b", **both})
    assert [one.relation for one in load(str(path)).rows] == [None, "capital"]
