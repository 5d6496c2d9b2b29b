"""Other wordings, and tasks that need the answer."""

import pytest

from memprobe.factoids import make_factoid
from memprobe.sources import load_factoids
from memprobe.sources.evaluation import manipulations, paraphrases
from memprobe.sources.wordings import subject_and_relation, wordings

LAMA = make_factoid("The capital of Velm is", "Ost", "lama", relation="P36", subject="Velm", aliases=["O."])
POPQA = make_factoid("Who is the author of Velm?", "Ana", "popqa", relation="author", subject="Velm")
PLAIN = make_factoid("Who sang?", "Bo", "triviaqa")
CLOZE = make_factoid("The colour of Velm is", "red", "file")


@pytest.mark.parametrize(
    "factoid", [LAMA, POPQA, PLAIN, CLOZE, *load_factoids("kvr:1"), *load_factoids("known", n=40)]
)
def test_two_other_wordings_with_the_same_answer(factoid):
    rows = paraphrases([factoid])
    assert len(rows) >= 2
    assert len({factoid.prompt, *(row.prompt for row in rows)}) == len(rows) + 1
    for number, row in enumerate(rows, 1):
        assert row.id == f"{factoid.id}/paraphrase-{number}"
        assert (row.answer, row.aliases, row.source) == (factoid.answer, factoid.aliases, factoid.source)
        assert (factoid.subject or factoid.prompt.split()[-1]) in row.prompt
        assert factoid.answer not in row.prompt


def test_wordings_by_relation():
    assert [row.prompt for row in paraphrases([LAMA])] == [
        "The seat of government of Velm is the city of",
        "Which city is the capital of Velm?",
    ]
    assert paraphrases([POPQA])[0].prompt == "Velm was written by"
    assert paraphrases([CLOZE])[1].prompt == "It is well known that the colour of Velm is"


def test_every_relation_of_the_sets_has_two_wordings_of_its_own():
    own = {entry[1] for source in ("popqa", "entityqa") for entry in wordings()[source].values()}
    for property_, texts in wordings()["paraphrases"].items():
        assert len(set(texts)) >= 2, property_
        assert not own & set(texts), property_
        assert all(text.count("{subject}") == 1 for text in texts), property_
    for source in ("popqa", "entityqa"):
        for property_, wording in wordings()[source].values():
            assert property_ in wordings()["paraphrases"]
            subject, found = subject_and_relation(source, wording.format(subject="Velm's Ost"))
            assert subject == "Velm's Ost"
            assert wordings()[source][found][1] == wording  # P131 and P276 are asked alike


def test_kvr_tasks_need_the_value():
    (pair,) = load_factoids("kvr:1")
    first, backwards = manipulations([pair])
    assert (first.answer, backwards.answer) == (pair.answer[0], pair.answer[::-1])
    assert first.id == f"{pair.id}/first"
    assert pair.subject in backwards.prompt
    assert pair.answer not in first.prompt + backwards.prompt


@pytest.mark.parametrize("source", ["kvr", "known", "popqa", "entityqa", "lama"])
@pytest.mark.parametrize("relation", [None, "kvr", "P36", "author", "capital"])
def test_rows_without_a_subject_are_asked_in_their_own_words(source, relation):
    """Rows of a file may name any source and relation."""
    fact = make_factoid("The value of key abc is?", "xyz", source, relation=relation)
    for row in [*paraphrases([fact]), *manipulations([fact])]:
        assert "abc" in row.prompt and "None" not in row.prompt


def test_facts_are_asked_for_their_first_letter_and_their_truth():
    facts = [
        make_factoid(
            f"Who wrote book {number}?", f"Author {number}", "file", aliases=["Ghost"], relation="author"
        )
        for number in range(200)
    ]
    rows = manipulations(facts)
    first, claims = rows[::2], rows[1::2]
    assert {row.answer for row in first} == {"A"}
    lies = [row for row in claims if row.answer == "no"]
    assert 70 < len(lies) < 130
    for fact, claim in zip(facts, claims, strict=True):
        assert (fact.answer + "?" in claim.prompt) is (claim.answer == "yes")
        assert claim.prompt.startswith("Is it true that the answer to")
    assert rows == manipulations(facts)
    assert rows != manipulations(facts, seed=1)


def test_no_wrong_answer_means_the_truth():
    rows = manipulations([make_factoid("The sky is", "blue", "file")])
    assert rows[1].prompt == "Is it true that the sky is blue? Yes or no:"
    assert rows[1].answer == "yes"
