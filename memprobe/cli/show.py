"""``memprobe show``: what a probe or a comparison found, printed again."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from memprobe.cli.app import app
from memprobe.cli.options import Full
from memprobe.cli.terminal import echo, echo_json
from memprobe.errors import MemprobeError

_NAMED = 3
"""Folders that an error lists."""
COMPARISON, OUTCOMES = "comparison.json", "outcomes.json"


@app.command()
def show(
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="A probe directory, or a folder of memprobe compare --out."),
    ],
    full: Full = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print its JSON instead of tables.")] = False,
) -> None:
    """Prints the tables of a probe or a comparison again; no model is needed.

    Examples:

    `memprobe show probes/demo`

    `memprobe show tables/ --json`
    """
    if stored := next((folder / name for name in (COMPARISON, OUTCOMES) if (folder / name).exists()), None):
        from memprobe.cli.show_comparison import print_comparison, print_notes, print_outcomes
        from memprobe.compare.comparison import read_comparison
        from memprobe.compare.outcomes import read_outcomes

        of_depths = stored.name == COMPARISON
        result: Any = (read_comparison if of_depths else read_outcomes)(stored)
        if as_json:
            echo_json(result.as_json())
        else:
            (print_comparison if of_depths else print_outcomes)(result, full=full)
            print_notes(result.notes, seeds=full)
        return
    from memprobe.results.directory import is_results
    from memprobe.runs import GRID

    if is_results(folder):
        where = shlex.quote(str(folder))
        raise MemprobeError(
            f"{folder}: holds results of other tools, not a probe; memprobe compare {where} shows them"
        )
    if any((folder / name).exists() for name in (GRID, "cells.parquet")):
        raise MemprobeError(
            f"{folder}: holds a study, not a probe; python -m training report {shlex.quote(str(folder))} prints its "
            f"tables, memprobe dashboard {shlex.quote(str(folder))} shows it"
        )
    from memprobe.cli.show_probe import print_summary
    from memprobe.probes import RUN, SUMMARY, nothing_yet, open_probe

    if folder.is_dir() and not (folder / RUN).exists():
        raise MemprobeError(f"{folder}: {_what_instead(folder, (RUN, COMPARISON, OUTCOMES))}")
    probe = open_probe(folder)
    if not probe.checkpoints:
        raise MemprobeError(nothing_yet(folder))
    if not (folder / SUMMARY).exists():
        raise MemprobeError(f"{folder}: not finished, so there is no summary yet; the same command goes on")
    if as_json:
        echo_json(probe.summary)
        return
    print_summary(probe, full=full)
    for label in probe.checkpoints:
        if label not in probe.finished:
            echo(f"note     {label}: not finished; the same command goes on", err=True)


def _what_instead(folder: Path, shown: Sequence[str]) -> str:
    """Why a folder cannot be shown, and what lies in it that can: folders with one of the files ``shown``."""
    of = "not a probe directory (memprobe layers --out makes one), nor a folder of memprobe compare --out"
    below = sorted(
        {
            file.parent
            for name in shown
            for at in ("*", "*/*", "*/*/*")
            for file in folder.glob(f"{at}/{name}")
        }
    )
    if not below:
        return of
    more = f" and {len(below) - _NAMED} more" if len(below) > _NAMED else ""
    return f"{of}; below it are {', '.join(map(str, below[:_NAMED]))}{more}"
