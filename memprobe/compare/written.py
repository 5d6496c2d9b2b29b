"""A comparison as it is shown and stored, of records or of answers alone: Markdown, HTML, JSON, a folder of tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import polars as pl

from memprobe.compare.headline import Headline
from memprobe.files import csv_text, json_text, write_together
from memprobe.members import TrainingPoint, ends_of
from memprobe.sameness import of_several_marks
from memprobe.statistics.intervals import MIN_SEEDS


def as_markdown(verdict: Iterable[str], shown: Iterable[Headline], notes: Iterable[str]) -> str:
    """A verdict, tables and notes, as Markdown."""
    parts = list(verdict)
    for table in shown:
        parts += [f"## {table.title}", table.markdown()]
    if listed := "\n".join(f"- {note}" for note in notes):
        parts.append(listed)
    return "\n\n".join(parts) + "\n"


def as_html(verdict: Iterable[str], shown: Iterable[Headline]) -> str:
    """A verdict and tables, for a notebook."""
    return "".join([*(f"<p>{escape(line)}</p>" for line in verdict), *(table.html() for table in shown)])


def as_json(
    schema: int, settings: Mapping[str, Any], notes: Sequence[str], tables: Mapping[str, pl.DataFrame]
) -> dict[str, Any]:
    """Everything as plain JSON: tables are lists of rows."""
    rows = {name: table.to_dicts() for name, table in tables.items()}
    return {"schema": schema, **settings, "notes": notes, "tables": rows}


def write_comparison(
    folder: Path,
    file: str,
    whole: Mapping[str, Any],
    markdown: str,
    tables: Mapping[str, pl.DataFrame],
    names: Iterable[str],
) -> None:
    """``FILE``, its answer as Markdown beside it, and each table that has rows as ``NAME.csv`` (lists joined by
    spaces).

    An older comparison in the folder is replaced whole, with the tables that this one does not have.

    Args:
        whole: what the file says.
        names: every table that such a comparison may have.
    """
    texts = {Path(file).with_suffix(".md").name: markdown}
    for name, table in tables.items():
        if len(table):
            lists = [key for key, dtype in table.schema.items() if dtype == pl.List]
            joined = table.with_columns(pl.col(lists).cast(pl.List(pl.String)).list.join(" "))
            texts[f"{name}.csv"] = csv_text(joined)
    texts[file] = json_text(whole)
    write_together(texts, folder, mark=file, stale=[f"{name}.csv" for name in names])


def notes_on_arms(members: Sequence[TrainingPoint]) -> list[str]:
    """What a reader must know of arms: that one has few seeds, or was trained with other settings than another."""
    return _on_seeds(members) + _on_settings(members)


def _on_seeds(members: Iterable[TrainingPoint]) -> list[str]:
    seeds = Counter((one.arm, one.stage or "") for one in ends_of(members))
    if not seeds or min(seeds.values()) >= MIN_SEEDS:
        return []
    return [FEW_SEEDS]


def _on_settings(members: Iterable[TrainingPoint]) -> list[str]:
    of_stages = of_several_marks((one.stage_order, one.settings, one) for one in ends_of(members))
    if not of_stages:
        return []
    one, other, *_ = of_stages[min(of_stages)]
    return [
        f"{one.label} and {other.label} were trained with other settings, not as other arms alone: a difference "
        "between their arms is of both."
    ]


FEW_SEEDS = (
    f"An arm has fewer than {MIN_SEEDS} seeds: each seed is shown, and no claim about the arm is made."
)
