"""How questions are worded: by source and relation, and in other words (``wordings.json``)."""

from __future__ import annotations

import json
import re
from functools import cache
from importlib import resources
from typing import Any

from memprobe.factoids import Factoid


@cache
def wordings() -> dict[str, Any]:
    """``popqa`` and ``entityqa``: relation -> (Wikidata property, the set's question with ``{subject}``);
    ``lama questions``: property -> question; ``paraphrases``: property -> a cloze and a question."""
    return json.loads(
        resources.files("memprobe.sources").joinpath("wordings.json").read_text(encoding="utf-8")
    )


def subject_and_relation(source: str, question: str) -> tuple[str, str] | None:
    """What a question of ``popqa`` or ``entityqa`` asks about; None where no wording of the set fits."""
    for relation, pattern in _patterns(source):
        if match := pattern.fullmatch(question):
            return match["subject"], relation
    return None


def property_of(factoid: Factoid) -> str | None:
    """The Wikidata property that a factoid's relation stands for, so that sources can be compared."""
    if factoid.relation is None:
        return None
    entry = wordings().get(factoid.source, {}).get(factoid.relation)
    if entry:
        return entry[0]
    return factoid.relation if factoid.relation in wordings()["paraphrases"] else None


def lama_prompt(relation: str, template: str, subject: str) -> str:
    """A LAMA template as a prompt that ends where the answer starts.

    Where ``[Y]`` ends the sentence the prompt is the sentence up to it. Six relations of T-REx have it in
    the middle (P27, P106, P136, P140, P190, P413): those are asked as a question. Any other such template
    keeps a blank.
    """
    before, _, after = template.partition("[Y]")
    if not after.strip(" ."):
        return before.replace("[X]", subject).strip()
    if question := wordings()["lama questions"].get(relation):
        return question.format(subject=subject)
    sentence = template.replace("[X]", subject).replace("[Y]", "____").replace(" .", ".")
    return f"{sentence} The word in the blank is"


@cache
def _patterns(source: str) -> tuple[tuple[str, re.Pattern[str]], ...]:
    return tuple(
        (relation, re.compile(re.escape(question).replace(r"\{subject\}", "(?P<subject>.+)")))
        for relation, (_, question) in wordings()[source].items()
    )
