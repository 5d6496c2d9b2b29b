"""The facts of a cell: disjoint sets that the base model does not know."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from analyses.instruments.plan import Cell
from memprobe.answers import answer
from memprobe.errors import MemprobeError
from memprobe.factoids import Factoid
from memprobe.models import LensModel
from memprobe.sources import load_factoids
from memprobe.templates import Template, tokenise

LONGEST = 12
"""Answer tokens of a fact at most, so that one long answer does not set the width of every batch."""


def sets_of(
    cell: Cell, base: LensModel, template: str, data_dir: Path | None
) -> tuple[list[list[Factoid]], list[Factoid]]:
    """The sets to plant, and the facts to ask where those are others (``null``).

    Facts have a subject in their prompt and answers that differ from one another, so that no set can be answered from
    what another one taught. Of a dataset those stay that the base model does not answer, greedily.

    Raises:
        MemprobeError: the source has too few such facts.
    """
    wanted = cell.facts * cell.sets * (2 if cell.kind == "null" else 1)
    if cell.source == "kvr":
        chosen = load_factoids(f"kvr:{wanted}", seed=cell.seed)
    else:
        rows = load_factoids(cell.source, seed=cell.seed, data_dir=data_dir)
        rows = in_order(usable(rows, base, template), cell.seed)
        chosen = unknown(rows, base, template, wanted)
        if len(chosen) < wanted:
            raise MemprobeError(
                f"{cell.source} has {len(chosen)} facts that can be planted and that the base does not "
                f"know, and {wanted} are needed"
            )
    planted = cell.facts * cell.sets
    sets = [chosen[start : start + cell.facts] for start in range(0, planted, cell.facts)]
    return sets, chosen[planted:]


def usable(rows: Sequence[Factoid], base: LensModel, template: str) -> list[Factoid]:
    """Those with a subject that stands in the prompt and an answer that is written in few tokens."""
    parsed = Template.parse(template)
    found = []
    for row in rows:
        if not row.subject or row.subject.lower() not in row.prompt.lower():
            continue
        item = tokenise(row, parsed, base.tokenizer, base.max_length, base.n_ids)
        if len(item.answer) <= LONGEST:
            found.append(row)
    return found


def in_order(rows: Sequence[Factoid], seed: int) -> list[Factoid]:
    """A seeded order, each answer once."""
    import hashlib

    mixed = sorted(rows, key=lambda row: hashlib.sha256(f"{seed} {row.id}".encode()).digest())
    found: dict[str, Factoid] = {}
    for row in mixed:
        found.setdefault(row.answer.casefold(), row)
    return list(found.values())


def unknown(rows: Sequence[Factoid], base: LensModel, template: str, wanted: int) -> list[Factoid]:
    """The first rows that the base model does not answer, aliases counted; asked a few more at a time."""
    parsed = Template.parse(template)
    found: list[Factoid] = []
    start = 0
    while len(found) < wanted and start < len(rows):
        asked = rows[start : start + max(8, (wanted - len(found)) * 5 // 4)]
        start += len(asked)
        items = [tokenise(row, parsed, base.tokenizer, base.max_length, base.n_ids) for row in asked]
        knows = {
            name
            for verdicts in answer(base, items)
            for name, verdict in verdicts.items()
            if verdict.exact_match or verdict.alias_match
        }
        found += [row for row in asked if row.id not in knows]
    return found[:wanted]
