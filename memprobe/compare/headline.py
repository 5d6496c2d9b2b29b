"""The one table that stands below a verdict, the same on the terminal, in a notebook and in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from typing import Any

import polars as pl

from memprobe import wording
from memprobe.records import GENERATED
from memprobe.statistics.vocabulary import PER_FACTOID, label, shown
from memprobe.wording import form_of, net_of_row, number, of_row


def _mean(row: Mapping[str, Any], key: str, form: str) -> str:
    return of_row(row, key, form) if key in row else ""


EXACT = label("exact")
_FIRST: dict[str, Callable[[Mapping[str, Any]], str]] = {
    EXACT: lambda row: wording.percent_of_some(row["exact"]),
    "never": lambda row: wording.percent_of_some(row["share_never"]),
    "median": lambda row: number(row["lof_median"], ".0f"),
    "mean": lambda row: of_row(row, "lof_restricted_mean", ".1f"),
    "against chance": lambda row: of_row(row, "net_lof_restricted_mean", "+.1f"),
}


_COLUMNS = _FIRST | {
    PER_FACTOID[key].short: partial(_mean, key=PER_FACTOID[key].in_placement, form=form_of(key))
    for key in shown("headline")
}


@dataclass(frozen=True)
class Headline:
    """A table as texts.

    Attributes:
        title, says: what it shows, and what its columns mean.
        columns: their names; the first, of the checkpoints, has none.
        rows: texts.
    """

    title: str
    says: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """As a Markdown table, with what its columns mean below."""
        table = wording.markdown_table(self.columns, self.rows, right=range(1, len(self.columns)))
        return "\n".join([*table, "", self.says])

    def html(self) -> str:
        """As an HTML table."""
        head = "".join(f"<th>{escape(name)}</th>" for name in self.columns)
        body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in self.rows)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table><p>{escape(self.says)}</p>"


def headline(
    placement: pl.DataFrame,
    lenses: pl.DataFrame | None = None,
    *,
    through: str | None = None,
    measure: str = GENERATED,
) -> Headline:
    """What is recalled and where it first surfaces, a row for each checkpoint; below it where it surfaces by the other
    lenses that it was read through.

    Args:
        placement, lenses: the tables of these names.
        through: the lens that ``placement`` is read through; of the others there are no rows where it is not known.
        measure: by which answers were judged, one of :data:`memprobe.records.MEASURES`.
    """
    rows = []
    for row in placement.iter_rows(named=True):
        name = row["checkpoint"] + (" (base)" if row["base"] else "")
        rows.append([name, *(cell(row) for cell in _COLUMNS.values())])
        if lenses is not None and through is not None:
            others = lenses.filter(pl.col("checkpoint") == row["checkpoint"], pl.col("lens") != through)
            rows += [_of_lens(one) for one in others.iter_rows(named=True)]
    beside = " By another lens: the same facts, read in the same pass." if len(rows) > len(placement) else ""
    return Headline(
        "What is recalled, and at which depth it first surfaces",
        f"Mean: counting never as {never_as(placement)}. Against chance: minus the mean of shuffled answers, in "
        f"depths, over facts that have one; negative is earlier than chance.{no_median(placement)}{beside}",
        ["", *(label(measure) if name == EXACT else name for name in _COLUMNS)],
        rows,
    )


def mean_lof(row: Mapping[str, Any]) -> str:
    """Mean first occurrence of a row of the table ``lenses``, with its interval where enough facts occur for one."""
    return of_row({"lof_n": round(row["n"] * (1 - row["never"]))} | dict(row), "lof", ".1f")


def _of_lens(row: Mapping[str, Any]) -> list[str]:
    """A row of the table ``lenses`` below its checkpoint's; what is recalled does not depend on a lens."""
    cells = {
        "never": wording.percent_of_some(row["never"]),
        "mean": mean_lof(row),
        "against chance": net_of_row(row, "net", "+.1f"),
    }
    return [f"  by {row['lens']}", *(cells.get(name, "") for name in _COLUMNS)]


def no_median(placement: pl.DataFrame) -> str:
    """What a dash among the medians says; nothing where there is none."""
    return " No median: more than half never surface." if placement["lof_median"].has_nulls() else ""


def never_as(placement: pl.DataFrame) -> str:
    """The depth that stands for never, where all checkpoints have the same."""
    layers = placement["n_layers"].unique().to_list()
    return f"depth {layers[0] + 1}" if len(layers) == 1 else "one depth further than there are"
