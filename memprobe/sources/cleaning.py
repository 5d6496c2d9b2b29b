"""What is taken out of a dataset, each rule with its count.

Two rows ask the same when their prompts agree after white space and case. Of rows that ask the same,

- equal answers are one row (``duplicate``): equal as texts in lower case (:func:`memprobe.metrics.folded`), so that
  C++ and C#, or 5 and -5, are two;
- answers that accept each other (one is among the other's aliases) are one fact too, and become one row with
  all aliases (``duplicate``);
- rows with ids of their own stay as they are beside their repeats, for other tables may know each by its id;
- other answers are in conflict. Under ``merge`` they are all right (LAMA: a country has several neighbours)
  and become aliases of the answer that sorts first (``merged``), within one relation; what still differs,
  and every conflict under ``drop``, goes with all its rows (``conflict``), for nobody can learn both;
  under ``keep`` it stays.

Nothing depends on the order of the rows.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal

from memprobe.factoids import Factoid, factoid_id, make_factoid
from memprobe.metrics import folded
from memprobe.sources.wordings import property_of

Conflicts = Literal["drop", "merge", "keep"]


def clean(factoids: Iterable[Factoid], conflicts: Conflicts, counts: Counter[str]) -> list[Factoid]:
    """Factoids without repeats and conflicts, in the order of their first appearance.

    ``counts`` gains ``duplicate``, ``merged`` and ``conflict``: rows that are gone.
    """
    groups: dict[str, list[Factoid]] = defaultdict(list)
    for factoid in factoids:
        groups[as_asked(factoid.prompt)].append(factoid)
    kept: list[Factoid] = []
    for group in groups.values():
        answers = _by_answer(group)
        if conflicts == "keep" or len(answers) == 1:
            rows = [row for same in answers for row in _without_repeats(same)]
            counts["duplicate"] += len(group) - len(rows)
            kept.extend(rows)
            continue
        facts = [_unite(same) for same in answers]
        counts["duplicate"] += len(group) - len(facts)
        if conflicts == "merge":
            merged = [_unite(same) for same in _by_answer(_merge_relations(facts))]
            counts["merged"] += len(facts) - len(merged)
            facts = merged
        if len(facts) == 1:
            kept.extend(facts)
        else:
            counts["conflict"] += len(facts)
    return kept


def without_overlap(
    factoids: Sequence[Factoid], first: Iterable[Factoid], counts: Counter[str]
) -> list[Factoid]:
    """The factoids that share neither a question nor (subject, relation) with the set before them.

    ``counts`` gains ``overlap``. Relations are compared as Wikidata properties, so that PopQA's ``capital``
    is LAMA's ``P36``.
    """
    first = list(first)
    prompts = {as_asked(factoid.prompt) for factoid in first}
    facts = {fact for factoid in first if (fact := _fact(factoid))}
    kept = [
        factoid
        for factoid in factoids
        if as_asked(factoid.prompt) not in prompts and _fact(factoid) not in facts
    ]
    counts["overlap"] += len(factoids) - len(kept)
    return kept


def as_asked(text: str) -> str:
    """A prompt after white space and case: two that agree in it ask the same."""
    return " ".join(text.casefold().split())


def _fact(factoid: Factoid) -> tuple[str, str] | None:
    relation = property_of(factoid) or (factoid.relation and f"{factoid.source} {factoid.relation}")
    return (as_asked(factoid.subject), relation) if factoid.subject and relation else None


def _by_answer(group: Sequence[Factoid]) -> list[list[Factoid]]:
    """Rows of one question, those together whose answers accept each other."""
    facts: list[list[Factoid]] = []
    for factoid in sorted(group, key=lambda row: (row.answer, row.id)):
        for fact in facts:
            if any(_accepts(one, factoid) or _accepts(factoid, one) for one in fact):
                fact.append(factoid)
                break
        else:
            facts.append([factoid])
    return facts


def _without_repeats(same: Sequence[Factoid]) -> list[Factoid]:
    """Rows of one fact as one row; as several where several have ids of their own."""
    own = [row for row in same if _has_own_id(row)]
    if len(own) < 2:
        return [_unite(same)]
    first, *others = own
    return [_unite([first, *(row for row in same if not _has_own_id(row))]), *others]


def _has_own_id(row: Factoid) -> bool:
    return row.id != factoid_id(row.source, row.prompt, row.answer)


def _accepts(one: Factoid, other: Factoid) -> bool:
    return folded(other.answer) in {folded(answer) for answer in (one.answer, *one.aliases)}


def _merge_relations(facts: Sequence[Factoid]) -> list[Factoid]:
    by_relation: dict[str | None, list[Factoid]] = defaultdict(list)
    for fact in facts:
        by_relation[fact.relation].append(fact)
    return [_unite(group) for group in by_relation.values()]


def _unite(rows: Sequence[Factoid]) -> Factoid:
    """One factoid with the answer that sorts first and every other answer and alias beside it.

    A row with an id of its own comes before the others: the id stands for its prompt and its answer.
    """
    if len(rows) == 1:
        return rows[0]
    first, *others = sorted(rows, key=lambda row: (not _has_own_id(row), row.answer, row.prompt, row.id))
    aliases = [*first.aliases, *sorted({text for row in others for text in (row.answer, *row.aliases)})]
    united = make_factoid(first.prompt, first.answer, first.source, aliases=aliases, id=first.id)
    popularity = next((row.popularity for row in (first, *others) if row.popularity is not None), None)
    return replace(united, relation=first.relation, subject=first.subject, popularity=popularity)
