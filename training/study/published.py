"""A study's tables as files and text: CSV, and one Markdown page with the command that makes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from memprobe import retention
from memprobe.arms import Arm
from memprobe.errors import MemprobeError
from memprobe.files import csv_text, write_together
from memprobe.stages import stage_number
from memprobe.wording import markdown_table
from training.study import tables as surfacing
from training.study.claims import claims, specification
from training.study.results import Results


class _Read(NamedTuple):
    """What tables are made of: results, what they say is kept, and their claims."""

    results: Results
    kept: retention.Retention
    tested: pl.DataFrame


_MADE: Mapping[str, Callable[[_Read], pl.DataFrame]] = {
    "claims": lambda of: of.tested.filter("headline").drop("headline"),
    "specification": lambda of: specification(of.tested),
    "forgetting": lambda of: retention.forgetting(of.kept),
    "nats": lambda of: surfacing.nats(of.results),
    "placement": lambda of: surfacing.placement(of.results),
    "spread": lambda of: surfacing.spread(of.results),
    "kept_facts": lambda of: surfacing.kept_before(of.results),
    "depth_and_retention": lambda of: surfacing.depth_and_retention(of.results),
    "lost_facts": lambda of: surfacing.lost_facts(of.results),
    "other_questions": lambda of: retention.other_questions(of.kept),
    **{over: lambda of, over=over: retention.curve(of.kept, over) for over in retention.CURVES},
    "stages": lambda of: retention.stages(of.kept),
    "first_stages": lambda of: retention.first_stages(of.kept),
    "interference": lambda of: retention.interference(of.kept),
    "other_losses": lambda of: retention.other_losses(of.kept),
    "cost": lambda of: retention.cost(of.kept),
}
TABLES = tuple(_MADE)
"""Names of the tables that a study may have."""
_PAGE = "README.md"
_MADE_BY = "Made by `python -m training report"


def tables(results: Results) -> dict[str, pl.DataFrame]:
    """The study's tables by name, each from stored results alone; those without data are left out."""
    read = _Read(results, results.retention, claims(results))
    names = _names(results.cells)
    made = {name: make(read) for name, make in _MADE.items()}
    return {name: _with_names(table, names) for name, table in made.items() if len(table)}


def check_page(folder: Path) -> None:
    """Checks that a folder's page, if it has one, is of an earlier report.

    Raises:
        MemprobeError: somebody else wrote it.
    """
    page = folder / _PAGE
    if page.is_file() and not page.read_bytes().startswith(_MADE_BY.encode()):
        raise MemprobeError(
            f"{page}: is no page that report wrote, and would be replaced; give another --out, or move it"
        )


def publish(results: Results, made: Mapping[str, pl.DataFrame], folder: Path) -> Path:
    """Writes results, tables and the page that shows them; tables of an older report that there are none of now go.

    Returns:
        The page.

    Raises:
        MemprobeError: they cannot be written, or see :func:`check_page`.
    """
    check_page(folder)
    results.write(folder)
    texts = {f"tables/{name}.csv": csv_text(flat(table)) for name, table in made.items()}
    texts[_PAGE] = markdown(made, folder)
    write_together(texts, folder, mark=_PAGE, stale=[f"tables/{name}.csv" for name in TABLES])
    return folder / _PAGE


def _names(cells: pl.DataFrame) -> dict[str, str]:
    """By an arm's text, as it is and as :func:`_in_chain` has it, its name in the grid file."""
    names: dict[str, str] = {}
    for text, arm, third in cells.select("arm_text", "arm", pl.col("d_c").is_not_null()).iter_rows():
        names[text] = names[str(_in_chain(text, 3 if third else 2))] = arm
    return names


def _in_chain(text: str | None, stages: int | None) -> str | None:
    """An arm's text among chains of other lengths: a stage's own says no later stages, which its chain has."""
    if text is None or stages is None:
        return text
    with suppress(MemprobeError):  # it names stages that the chain does not have
        return Arm.of(text).in_chain(stages).text
    return text


def _with_names(table: pl.DataFrame, names: dict[str, str]) -> pl.DataFrame:
    """Arms by their names in the grid file, where a text stands for them."""
    texts = [name for name in ("arm", "against") if name in table.columns]
    if "stage" not in table.columns:
        return table.with_columns(pl.col(texts).replace(names))
    stages = [stage_number(None if stage is None else str(stage)) for stage in table["stage"]]
    named = {
        name: [
            names.get(text, names.get(_in_chain(text, stage) or "", text))
            for text, stage in zip(table[name], stages, strict=True)
        ]
        for name in texts
    }
    return table.with_columns(pl.Series(name, values, dtype=pl.String) for name, values in named.items())


def flat(table: pl.DataFrame) -> pl.DataFrame:
    """Lists as texts, joined by spaces, for CSV; a missing number is ``-``."""
    lists = [name for name, dtype in table.schema.items() if isinstance(dtype, pl.List)]
    texts = [
        pl.col(name).list.eval(pl.element().cast(pl.String).fill_null("-")).list.join(" ") for name in lists
    ]
    return table.with_columns(texts)


def markdown(made: Mapping[str, pl.DataFrame], folder: Path | str) -> str:
    """All tables as one Markdown page, with the command that makes it of what lies in a folder."""
    parts = [f"{_MADE_BY} {folder}`.\n"]
    for name, table in made.items():
        parts.append(f"## {name.replace('_', ' ').capitalize()}\n")
        numbers = {at for at, dtype in enumerate(table.dtypes) if dtype.is_numeric()}
        rows = [[shown(value) for value in row] for row in table.iter_rows()]
        parts += markdown_table(table.columns, rows, right=numbers, gap="")
        parts.append("")
    return "\n".join(parts)


def shown(value: Any) -> str:
    """A cell of a table as text: three digits, lists joined by commas."""
    if value is None:
        return "–"
    if isinstance(value, list):
        return ", ".join(shown(item) for item in value)
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value)
