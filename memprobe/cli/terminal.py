"""What reaches the terminal: texts of files are shown, never obeyed.

A label, a relation or a prompt may hold what moves a cursor, sets a window's title, or is markup to rich. All that the
command line prints goes through here, where control characters are spelled out and markup is plain text.
"""

from __future__ import annotations

import json
import os
import re
from functools import cache
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

# Control characters but tab and newline, halves of characters, and what turns the direction of writing.
_OBEYED = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def spelled(text: str) -> str:
    """A text with those characters spelled out, as ``\\x1b``, that a terminal would obey."""
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def echo(text: object = "", *, err: bool = False) -> None:
    """Prints a line."""
    typer.echo(spelled(str(text)), err=err)


def echo_json(value: Any) -> None:
    """Prints JSON; what a terminal would obey is written as JSON's own escapes, so that it reads back the same."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    typer.echo(_OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


def terminal(**options: Any) -> Console:
    """A console of rich that spells out what it is given; options are rich's."""
    return _console_class()(markup=False, emoji=False, **options)


WIDTH = 100
"""Columns of tables in a file or a pipe, which have no width of their own; the variable ``COLUMNS`` says otherwise."""


def wide_terminal(**options: Any) -> Console:
    """A console for tables and sentences, as wide as the terminal is; options are rich's."""
    console = terminal(**options)
    if not console.is_terminal and not os.environ.get("COLUMNS", "").isdecimal():
        console.width = WIDTH
    return console


def progress_bar(console: Console, *fields: str, elapsed: bool = True) -> Progress:
    """Bars of tasks, drawn where the console is a terminal.

    Args:
        fields: what else stands in a line, such as ``{task.fields[rate]}``.
        elapsed: also the time that has passed.
    """
    from rich import progress as of

    text = "  ".join(fields)
    return of.Progress(
        of.TextColumn("{task.description}", markup=False),
        of.BarColumn(),
        of.MofNCompleteColumn(),
        *([of.TextColumn(text, markup=False)] if text else []),
        *([of.TimeElapsedColumn()] if elapsed else []),
        of.TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def plain_table() -> Table:
    """A table without lines, two spaces between its columns."""
    from rich.table import Table

    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))


def print_table(
    console: Console,
    title: str,
    columns: list[str],
    rows: list[list[str]],
    *,
    left: int = 1,
    says: str | None = None,
) -> None:
    """Prints a title, what a reader must know, and rows of text.

    Args:
        left: columns that are aligned to the left; numbers are to the right.
    """
    from rich.text import Text

    table = plain_table()
    for position, column in enumerate(columns):
        table.add_column(Text(column), justify="left" if position < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print()
    console.print(Text(title, "bold"))
    if says:
        console.print(Text(says, "dim"))
    console.print(table)


@cache
def _console_class() -> type[Console]:
    from collections.abc import Iterable

    from rich.console import Console
    from rich.segment import Segment

    class Terminal(Console):
        # The one place that all of it passes, live displays too; what rich itself sends is marked as control.
        def _render_buffer(self, buffer: Iterable[Segment]) -> str:
            return super()._render_buffer(
                part if part.control else part._replace(text=spelled(part.text)) for part in buffer
            )

    return Terminal
