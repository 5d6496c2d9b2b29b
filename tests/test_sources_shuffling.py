"""Factoids with each other's answers: which there are, and what stays."""

from collections import Counter

import pytest

from memprobe.errors import MemprobeError
from memprobe.factoids import make_factoid
from memprobe.sources.shuffling import shuffle_answers


def facts(answers, aliases=()):
    aliases = dict(aliases)
    return [
        make_factoid(
            f"What is {place}?",
            answer,
            "popqa",
            aliases=aliases.get(place, ()),
            relation="is",
            subject=f"s{place}",
        )
        for place, answer in enumerate(answers)
    ]


@pytest.mark.parametrize("seed", range(20))
def test_every_prompt_gets_a_wrong_answer_of_another_row(seed):
    rows = facts(["Paris", "paris", "Rome", "Bern", "Rome", "Oslo"], {3: ["Rome", "Berne"], 5: ["OSLO "]})
    shuffled = shuffle_answers(rows, seed)
    assert [row.prompt for row in shuffled] == [row.prompt for row in rows]
    assert Counter(row.answer for row in shuffled) == Counter(row.answer for row in rows)
    for row, other in zip(rows, shuffled, strict=True):
        assert other.answer.lower() not in {text.lower().strip() for text in (row.answer, *row.aliases)}
        assert (other.source, other.relation, other.subject) == (row.source, row.relation, row.subject)
        whose = next(one for one in rows if one.answer == other.answer)
        assert set(other.aliases) == set(whose.aliases)
    assert not {row.id for row in rows} & {row.id for row in shuffled}
    assert shuffled == shuffle_answers(rows, seed)


@pytest.mark.parametrize("seed", range(10))
def test_an_alias_that_two_rows_share_makes_either_answer_right_for_both(seed):
    rows = facts(["Roma", "Rome", "Paris", "Bern"], {0: ["Rome"]})
    first, second, *_ = shuffle_answers(rows, seed)
    assert {first.answer, second.answer} == {"Paris", "Bern"}


def test_seeds_draw_other_answers():
    rows = facts([f"answer {place}" for place in range(12)])
    assert len({tuple(row.answer for row in shuffle_answers(rows, seed)) for seed in range(10)}) == 10


def test_the_only_assignment_there_is_is_found():
    rows = facts(["a", "a", "a", "b", "c", "d"])
    for seed in range(10):
        assert [row.answer for row in shuffle_answers(rows, seed)][3:] == ["a", "a", "a"]


@pytest.mark.parametrize("answers", [["a"], ["a", "a", "b"], ["a", "A"], []])
def test_where_there_is_none_it_is_said(answers):
    with pytest.raises(MemprobeError, match=f"{len(answers)} rows cannot be shuffled"):
        shuffle_answers(facts(answers), 0)
