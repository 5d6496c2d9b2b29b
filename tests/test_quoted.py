"""Numbers that pages quote in prose: every interval, with its value, stands in the stored results."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STUDY, STUDY_500 = ("analyses/study/tables", "analyses/study-500/tables")
PAGES = {
    "README.md": (
        STUDY,
        STUDY_500,
        "analyses/where",
        "analyses/lenses",
        "analyses/demo",
        "analyses/instruments/results",
    ),
    "docs/findings/study.md": (STUDY,),
    "docs/findings/where.md": ("analyses/where",),
    "docs/findings/planted-truth.md": ("analyses/instruments/results",),
}
"""Pages with numbers in prose, and the folders that hold what they quote."""
NUMBER = r"[+\-−]?\d+(?:\.\d+)?"
INTERVAL = re.compile(rf"\[({NUMBER})%?, ({NUMBER})%?\]")
BEFORE = 90
"""Characters before an interval among which its value stands."""

Triple = tuple[float, float, float]


def number(text: str) -> float:
    return float(text.replace("−", "-"))


def quoted(text: str) -> Iterator[tuple[str, list[str], str, str]]:
    """(where, numbers before, low, high) of each interval of a text."""
    text = re.sub(r"\s+", " ", text)
    for found in INTERVAL.finditer(text):
        before = text[max(0, found.start() - BEFORE) : found.start()]
        before = before.rpartition("]")[2]  # what an interval before this one speaks of is another number
        before = re.sub(r"\bnone\b", "0", before)
        yield text[max(0, found.start() - 60) : found.end()], re.findall(NUMBER, before), found[1], found[2]


def stored(folder: Path) -> Iterator[Triple]:
    """(value, low, high) of every interval that a folder's tables hold, as columns or in texts."""
    for path in sorted(folder.rglob("*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                known = {
                    name: float(text)
                    for name, text in row.items()
                    if re.fullmatch(r"-?[\d.]+(e-?\d+)?", text or "")
                }
                for name, low in known.items():
                    high = known.get(name.removesuffix("low") + "high")
                    if not name.endswith("low") or high is None:
                        continue
                    yield from ((value, low, high) for value in known.values() if low <= value <= high)
                for text in row.values():
                    yield from _in_text(text or "")
    for path in sorted(folder.rglob("summary.json")):
        yield from _in_json(json.loads(path.read_text(encoding="utf-8")))
    for path in sorted(folder.rglob("*.md")):
        yield from _in_text(path.read_text(encoding="utf-8"))


def _in_json(entry: object) -> Iterator[Triple]:
    if isinstance(entry, dict):
        for name, value in entry.items():
            edges = [entry.get(f"{name}_{end}") for end in ("low", "high")]
            if isinstance(value, float) and None not in edges:
                yield (value, *edges)
            yield from _in_json(value)


def _in_text(text: str) -> Iterator[Triple]:
    for _, before, low, high in quoted(text):
        yield from ((number(one), number(low), number(high)) for one in before[-1:])


def same(text: str, value: float) -> bool:
    """Whether a number is written so, at the digits that it is written with."""
    digits = len(text.partition(".")[2])
    return abs(number(text) - value) <= 0.5001 * 10**-digits


def is_stored(before: list[str], low: str, high: str, known: set[Triple]) -> bool:
    """Whether there is such an interval, in the same unit or in per cent, whichever way it is counted."""
    for value, start, end in known:
        for scale in (1, 100, -1, -100):
            edges = sorted((start * scale, end * scale))
            if (
                same(low, edges[0])
                and same(high, edges[1])
                and any(same(one.lstrip("+-−"), abs(value * scale)) for one in before)
            ):
                return True
    return False


@pytest.mark.parametrize("page", PAGES)
def test_every_interval_that_is_quoted_is_a_stored_one(page):
    known = {triple for folder in PAGES[page] for triple in stored(ROOT / folder)}
    found = list(quoted((ROOT / page).read_text(encoding="utf-8")))
    assert len(found) > 10
    lost = [where for where, before, low, high in found if not is_stored(before, low, high, known)]
    assert not lost, "\n".join(lost)


def test_another_number_is_seen():
    known = {(0.5, 0.319, 0.681), (-1.99, -2.73, -1.24)}
    for text, wanted in (
        ("keeps 50.0 % [31.9, 68.1]", True),
        ("keeps 50 % of them [32, 68]", True),
        ("keeps 51 % [32, 68]", False),
        ("keeps 50 % [31, 68]", False),
        ("1.99 depths earlier [1.24, 2.73]", True),
        ("1.98 depths earlier [1.24, 2.73]", False),
    ):
        ((_, before, low, high),) = quoted(text)
        assert is_stored(before, low, high, known) == wanted, text
