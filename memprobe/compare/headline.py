"""The one table that stands below a verdict, the same on the terminal, in a notebook and in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from memprobe import wording
from memprobe.wording import number, of_row

if TYPE_CHECKING:
    import polars as pl

_COLUMNS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "recalled": lambda row: wording.percent(row["exact"], 0),
    "never": lambda row: wording.percent(row["share_never"], 0),
    "median": lambda row: number(row["lof_median"], ".0f"),
    "mean": lambda row: of_row(row, "lof_restricted_mean", ".1f"),
    "against chance": lambda row: of_row(row, "net_lof_restricted_mean", "+.1f"),
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
        lines = [self.columns, ["---", *["---:"] * (len(self.columns) - 1)], *self.rows]
        cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
        return "\n".join([*(f"| {' | '.join(line)} |" for line in cells), "", self.says])

    def html(self) -> str:
        """As an HTML table."""
        head = "".join(f"<th>{escape(name)}</th>" for name in self.columns)
        body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in self.rows)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table><p>{escape(self.says)}</p>"


def headline(placement: pl.DataFrame) -> Headline:
    """What is recalled and where it first surfaces, a row for each checkpoint.

    Args:
        placement: the table of that name.
    """
    rows = [
        [row["checkpoint"] + (" (base)" if row["base"] else ""), *(cell(row) for cell in _COLUMNS.values())]
        for row in placement.iter_rows(named=True)
    ]
    return Headline(
        "What is recalled, and at which depth it first surfaces",
        f"Mean: counting never as {never_as(placement)}. Against chance: minus the mean of shuffled answers, in "
        "depths; negative is earlier than chance. No median: more than half never surface.",
        ["", *_COLUMNS],
        rows,
    )


def never_as(placement: pl.DataFrame) -> str:
    """The depth that stands for never, where all checkpoints have the same."""
    layers = placement["n_layers"].unique().to_list()
    return f"depth {layers[0] + 1}" if len(layers) == 1 else "one depth further than there are"
