"""Evaluation sets made from given factoids: other wordings, and tasks that need the answer.

A model that learned a string repeats it; one that learned the fact answers however it is asked. Every derived
row keeps source, relation and subject, and its id is its factoid's with a suffix (``42a4…/paraphrase-1``), so
that both join.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from memprobe.factoids import Factoid
from memprobe.sources.builtin import known_relations
from memprobe.sources.wordings import property_of, wordings

_KVR = ("Which value belongs to the key {subject}?", "The value stored under key {subject} is")
_QUESTION = ("Question: {prompt} Answer:", "Here is a quiz question. {prompt} The right answer is")
_CLOZE = ("Complete the sentence with the right words. {prompt}", "It is well known that {lowered}")


def paraphrases(factoids: Sequence[Factoid]) -> list[Factoid]:
    """At least two other wordings of every prompt, with the same answer.

    They are worded by relation where the relation is known (``known``, PopQA, EntityQuestions, LAMA) and for
    keys; any other question or sentence, and one whose subject is not named, is put into another frame.
    """
    return [
        replace(factoid, prompt=prompt, id=f"{factoid.id}/paraphrase-{number}")
        for factoid in factoids
        for number, prompt in enumerate(_wordings(factoid), 1)
    ]


def _wordings(factoid: Factoid) -> list[str]:
    fields = {"prompt": factoid.prompt, "lowered": _lowered(factoid.prompt), "subject": factoid.subject}
    return [pattern.format(**fields) for pattern in _patterns(factoid)]


def _patterns(factoid: Factoid) -> Sequence[str]:
    if factoid.subject:  # rows of a file may be of any source and name none
        if factoid.source == "kvr":
            return _KVR
        if factoid.source == "known" and factoid.relation in known_relations():
            return known_relations()[factoid.relation]["paraphrases"]
        if (property_ := property_of(factoid)) in wordings()["paraphrases"]:
            return wordings()["paraphrases"][property_]
    return _QUESTION if factoid.prompt.endswith("?") else _CLOZE


def manipulations(factoids: Sequence[Factoid], seed: int = 0) -> list[Factoid]:
    """Two tasks for every factoid that need its answer and ask for something else.

    Keys: the value's first character, and the value backwards. Facts: the answer's first letter, and "Is it
    true that …" with the right answer for one half of the factoids, and for the other half another answer of
    the same source and relation that is wrong here (a factoid for which there is none asks for the truth).
    """
    others: dict[tuple[str, str | None], list[str]] = defaultdict(list)
    for answer, key in sorted({(factoid.answer, _group(factoid)) for factoid in factoids}, key=str):
        others[key].append(answer)
    rows = []
    for factoid in factoids:
        is_value = factoid.source == "kvr" and factoid.subject
        rows += _of_value(factoid) if is_value else _of_fact(factoid, others, seed)
    return rows


def _group(factoid: Factoid) -> tuple[str, str | None]:
    return factoid.source, factoid.relation


def _of_value(factoid: Factoid) -> list[Factoid]:
    key = factoid.subject
    return [
        _derived(factoid, "first", f"The first character of the value of key {key} is", factoid.answer[0]),
        _derived(factoid, "reversed", f"The value of key {key}, read backwards, is", factoid.answer[::-1]),
    ]


def _of_fact(factoid: Factoid, others: dict, seed: int) -> list[Factoid]:
    right = {answer.casefold() for answer in (factoid.answer, *factoid.aliases)}
    draw = int.from_bytes(hashlib.sha256(f"{seed} {factoid.id}".encode()).digest()[:8], "big")
    wrong = [answer for answer in others[_group(factoid)] if answer.casefold() not in right]
    lie = bool(wrong) and draw % 2 == 1
    claimed = wrong[(draw // 2) % len(wrong)] if lie else factoid.answer
    letter = next((character for character in factoid.answer if character.isalnum()), factoid.answer[0])
    if factoid.prompt.endswith("?"):
        ask = f'The answer to the question "{factoid.prompt}" starts with the character'
        claim = f'Is it true that the answer to the question "{factoid.prompt}" is {claimed}? Yes or no:'
    else:
        ask = f'In "{factoid.prompt} …", what is missing starts with the character'
        claim = f"Is it true that {_lowered(factoid.prompt)} {claimed}? Yes or no:"
    return [
        _derived(factoid, "first", ask, letter.upper()),
        _derived(factoid, "true", claim, "no" if lie else "yes"),
    ]


def _derived(factoid: Factoid, task: str, prompt: str, answer: str) -> Factoid:
    return replace(factoid, prompt=prompt, answer=answer, aliases=(), id=f"{factoid.id}/{task}")


def _lowered(sentence: str) -> str:
    """A sentence to stand inside another: an article or preposition at its start loses its capital."""
    first, space, rest = sentence.partition(" ")
    return first.lower() + space + rest if first in ("The", "A", "An", "In") else sentence
