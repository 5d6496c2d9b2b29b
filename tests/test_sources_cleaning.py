"""Repeats, conflicts and overlaps, each with its count."""

import itertools
from collections import Counter

import pytest

from memprobe.factoids import make_factoid
from memprobe.sources.cleaning import clean, without_overlap


def fact(prompt, answer, *aliases, **more):
    return make_factoid(prompt, answer, more.pop("source", "test"), aliases=aliases, **more)


def test_equal_rows_and_answers_that_accept_each_other_are_one_fact():
    rows = [
        fact("Where is Velm?", "Ostria", "the east"),
        fact("where is  velm?", "Ostria", "EAST"),
        fact("Where is Velm?", "The East"),
        fact("Who is Velm?", "a man"),
    ]
    counts = Counter()
    kept = clean(rows, "drop", counts)
    assert counts == {"duplicate": 2}
    assert [row.answer for row in kept] == ["Ostria", "a man"]
    assert set(kept[0].aliases) == {"the east", "EAST", "The East"}


@pytest.mark.parametrize(
    ("rule", "answers", "counts"),
    [
        ("drop", ["x"], {"conflict": 3}),
        ("merge", ["Ostria", "x"], {"merged": 2}),
        ("keep", ["Ostria", "Pol", "Quor", "x"], {}),
    ],
)
def test_conflicting_answers(rule, answers, counts):
    rows = [fact("Velm borders", answer, relation="P47") for answer in ("Quor", "Ostria", "Pol")]
    rows.append(fact("Who?", "x"))
    found = Counter()
    kept = clean(rows, rule, found)
    assert sorted(row.answer for row in kept) == answers
    assert +found == Counter(counts)
    assert len(kept) + found.total() == len(rows)
    if rule == "merge":
        assert kept[0].aliases == ("Pol", "Quor")


def test_merging_stays_within_a_relation():
    rows = [
        fact("Velm lies in", "Ostria", relation="P17"),
        fact("Velm lies in", "Ost County", relation="P131"),
        fact("Pol lies in", "Asia", relation="P30"),
        fact("Pol lies in", "Asia", relation="P17"),
    ]
    counts = Counter()
    (kept,) = clean(rows, "merge", counts)
    assert kept.prompt == "Pol lies in"
    assert +counts == Counter({"conflict": 2, "duplicate": 1})


@pytest.mark.parametrize("rule", ["drop", "merge", "keep"])
def test_the_order_of_the_rows_does_not_matter(rule):
    rows = [
        fact("p?", "b", "c"),
        fact("P?", "c"),
        fact("p?", "d", "b"),
        fact("q?", "x", relation="r"),
        fact("q?", "y", relation="r"),
    ]
    results = {
        tuple(sorted((row.id, row.prompt, row.answer, row.aliases) for row in clean(order, rule, Counter())))
        for order in itertools.permutations(rows)
    }
    assert len(results) == 1


def test_overlap_by_question_and_by_subject_and_relation():
    first = [
        fact("What is the capital of Velm?", "Ost", source="popqa", relation="capital", subject="Velm"),
        fact("Who founded Pol?", "Ana", source="entityqa", relation="P112", subject="Pol"),
    ]
    second = [
        fact("what is the capital of velm?", "Quor", source="entityqa"),  # the same question
        fact("The capital of Velm is", "Ost", source="lama", relation="P36", subject="velm"),  # the same fact
        fact("The capital of Pol is", "Ost", source="lama", relation="P36", subject="Pol"),
        fact("no subject", "x", source="lama", relation="P36"),
    ]
    counts = Counter()
    kept = without_overlap(second, first, counts)
    assert kept == second[2:]
    assert counts == {"overlap": 2}


@pytest.mark.parametrize(
    "answers", [("C++", "C#"), ("-5", "5"), ("3.5", "35"), ("The Who", "Who"), ("A", "A.")]
)
@pytest.mark.parametrize(("rule", "left"), [("keep", 2), ("drop", 0)])
def test_answers_that_differ_in_signs_alone_are_in_conflict(answers, rule, left):
    counts = Counter()
    kept = clean([fact("p?", answer) for answer in answers], rule, counts)
    assert len(kept) == left and counts["duplicate"] == 0
    assert all(not row.aliases for row in kept)


def test_one_answer_in_another_case_or_form_of_unicode_is_a_repeat():
    counts = Counter()
    (kept,) = clean([fact("p?", answer) for answer in ("Café", "cafe\u0301")], "keep", counts)
    assert counts["duplicate"] == 1
    # What is named as an alias is accepted, as it is written.
    (kept,) = clean([fact("p?", "C++", "C#"), fact("p?", "C#")], "keep", counts)
    assert {kept.answer, *kept.aliases} == {"C++", "C#"}


@pytest.mark.parametrize("rule", ["drop", "merge", "keep"])
def test_no_row_loses_an_id_of_its_own_to_a_repeat(rule):
    rows = [fact("p?", "x", id="a"), fact("p?", "X", "y", id="b"), fact("P?", "x", "z"), fact("q?", "x")]
    for order in itertools.permutations(rows):
        counts = Counter()
        kept = {row.id: row for row in clean(order, rule, counts)}
        assert kept.keys() == {"a", "b", rows[3].id}
        assert counts == {"duplicate": 1}
        assert [(kept[id].prompt, kept[id].answer) for id in "ab"] == [("p?", "x"), ("p?", "X")]


def test_an_id_stands_for_its_own_answer_also_beside_a_row_without_one():
    (kept,) = clean([fact("p?", "x", id="a"), fact("p?", "X")], "keep", Counter())
    assert (kept.id, kept.answer) == ("a", "x")
