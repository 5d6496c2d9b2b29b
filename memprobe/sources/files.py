"""Anyone's own rows: JSONL, JSON, CSV and Parquet files of factoids."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from memprobe import wording
from memprobe.errors import MemprobeError
from memprobe.factoids import Factoid, make_factoid
from memprobe.sources.rows import BadRow, BadRows, Columns, NoColumn, Row, near, read_rows, text_of, texts_of
from memprobe.sources.shapes import Target, in_plain_shape, squad_rows

PROMPTS = ("prompt", "question")
ANSWERS = ("answer", "answers")
OPTIONAL = ("aliases", "relation", "id", "subject", "popularity", "source")
_MISSPELT = 0.9
"""One letter too many, too few or another, in a name of five letters or more; ``resource`` is another word."""
_EXAMPLES = {
    ".jsonl": 'one fact a line, such as {"prompt": …, "answer": …}',
    ".json": 'a list of facts, such as [{"prompt": …, "answer": …}]',
    ".csv": "a first line prompt,answer and below it one fact a line",
    ".parquet": "a table with columns prompt and answer",
}
"""Of files without rows, what to give."""
_BREAKS = ("\u2028", "\u2029")


def read_factoid_file(
    path: Path, bad: BadRows, targets: Sequence[Target] = ("true",), *, jsonl: bool = False
) -> list[Factoid]:
    """Factoids of a JSONL, JSON, CSV or Parquet file, in order, repeated rows included.

    Columns: ``prompt`` or ``question``; ``answer``, or ``answers`` whose first is the answer and whose others
    are aliases; optional are those of :data:`OPTIONAL`. In a CSV
    a list is written as JSON; elsewhere an ``answer`` that is a text is that text, as in ``"[1, 2]"``.
    Rows of CounterFact, zsRE and SQuAD are read as they are published
    (:mod:`memprobe.sources.shapes`). A row keeps its own ``id``; its source is its ``source`` column or ``file``.

    Args:
        targets: which answers are facts: true ones, edited ones, or both of each row.
        jsonl: see :func:`memprobe.sources.rows.read_rows`.

    Raises:
        MemprobeError: the file cannot be read, has no rows or other columns, one id stands twice, or a bad row under
            the policy ``fail``.
    """
    places: dict[str, str] = {}
    factoids = []
    for row, factoid in _factoids(path, bad, targets, jsonl):
        if row.columns.get("id") is not None:
            if factoid.id in places:
                raise MemprobeError(
                    f"{row.where}: the id {factoid.id!r} stands at {places[factoid.id]} already"
                )
            places[factoid.id] = row.where
        factoids.append(factoid)
    if not factoids:
        if bad.named:
            rows = wording.count(len(bad.named), "row")
            raise MemprobeError(
                f"{path}: no rows are left, {rows} cannot be read; the first is {bad.named[0]}"
            )
        raise MemprobeError(
            f"{path}: no rows; give {_EXAMPLES.get(path.suffix.lower(), _EXAMPLES['.jsonl'])}"
        )
    return factoids


def _factoids(
    path: Path, bad: BadRows, targets: Sequence[Target], jsonl: bool
) -> Iterator[tuple[Row, Factoid]]:
    asked = False
    seen: set[tuple[str, ...]] = set()
    for row in _unfolded(read_rows(path, bad, jsonl=jsonl), bad):
        if (names := tuple(row.columns)) not in seen:
            _refuse_misspelt(row.where, names)
            seen.add(names)
        try:
            factoids = [factoid_of(row.columns, target=target, cells=row.cells) for target in targets]
        except NoColumn as problem:
            if not asked:
                _refuse_other_columns(path, problem, targets, jsonl)
            asked = True
            bad.add(row.where, str(problem))
            continue
        except (BadRow, MemprobeError) as problem:
            bad.add(row.where, str(problem))
            continue
        yield from ((row, factoid) for factoid in factoids)


def _refuse_misspelt(where: str, names: Sequence[str]) -> None:
    """An optional column that is misspelt would be passed over, and what is asked of it done without.

    Raises:
        MemprobeError: a column is written like one of :data:`OPTIONAL` that is not there.
    """
    lacking = [name for name in OPTIONAL if name not in names]
    known = (*PROMPTS, *ANSWERS, *OPTIONAL)
    if found := near(lacking, [name for name in names if name not in known], _MISSPELT):
        given, meant = found
        raise MemprobeError(
            f"{where}: the column {given!r} is not one that is read; did you mean {meant!r}? Rename it, or leave it out"
        )


def _refuse_other_columns(path: Path, problem: NoColumn, targets: Sequence[Target], jsonl: bool) -> None:
    """Where no row has the column, it is the name that is wrong and not the rows, and leaving them out leaves nothing.

    Raises:
        MemprobeError: so.
    """
    skipped = BadRows("skip")
    for row in _unfolded(read_rows(path, skipped, jsonl=jsonl), skipped):
        try:
            factoid_of(row.columns, target=targets[0], cells=row.cells)
        except NoColumn as other:
            if other.names == problem.names:
                continue
            return
        except (BadRow, MemprobeError):
            return
        return
    meant = "; {!r}: did you mean {!r}?".format(*problem.near) if problem.near else ""
    raise MemprobeError(f"{path}: no row has {problem.wanted}; there are {problem.there}{meant}")


def _unfolded(rows: Iterator[Row], bad: BadRows) -> Iterator[Row]:
    """Rows, and the questions inside a file of SQuAD's original shape."""
    for row in rows:
        if not isinstance(row.columns.get("data"), list) or any(name in row.columns for name in PROMPTS):
            yield row
            continue
        try:
            for number, columns in enumerate(squad_rows(row.columns), 1):
                yield Row(columns, f"{row.where}, question {number}")
        except BadRow as problem:
            bad.add(row.where, str(problem))


def factoid_of(
    columns: Columns, source: str = "file", target: Target = "true", *, cells: bool = False
) -> Factoid:
    """One row as a factoid; ``source`` stands where the row names none.

    Args:
        target: see :func:`memprobe.sources.shapes.in_plain_shape`.
        cells: see :class:`memprobe.sources.rows.Row`.

    Raises:
        BadRow: a field is missing, empty, of a wrong type, or breaks a line inside the prompt or the answer.
    """
    columns = in_plain_shape(columns, target)
    one = not cells and isinstance(columns.get("answer"), str)
    answers = [text_of(columns, "answer")] if one else texts_of(columns, *ANSWERS)
    aliases = texts_of(columns, "aliases") if columns.get("aliases") not in (None, [], "", "[]") else []
    return make_factoid(
        one_line(text_of(columns, *PROMPTS), "the prompt"),
        one_line(answers[0], "the answer"),
        optional(columns, "source") or source,
        aliases=[*answers[1:], *aliases],
        relation=optional(columns, "relation"),
        subject=optional(columns, "subject"),
        popularity=_number(columns, "popularity"),
        id=optional(columns, "id"),
    )


def one_line(text: str, field: str) -> str:
    """The text as it is.

    Raises:
        BadRow: it holds a separator that some programs read as the end of a line, e.g. U+2028.
    """
    for character in _BREAKS:
        if character in text:
            raise BadRow(f"{field} holds the line separator U+{ord(character):04X}")
    return text


def optional(columns: Columns, name: str) -> str | None:
    """A column's text, or None where the row has none."""
    return None if columns.get(name) in (None, "") else text_of(columns, name)


def _number(columns: Columns, name: str) -> float | None:
    if (text := optional(columns, name)) is None:
        return None
    try:
        number = float(text)
    except ValueError:
        raise BadRow(f"{name!r} is {text[:60]!r}, not a number") from None
    if not math.isfinite(number):
        raise BadRow(f"{name!r} is {text!r}, not a number")
    return number
