"""``memprobe show``: what a probe or a comparison found, printed again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memprobe.cli.app import app
from memprobe.cli.options import Full
from memprobe.cli.terminal import echo, echo_json
from memprobe.errors import MemprobeError

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
    if (folder / COMPARISON).exists():
        from memprobe.cli.show_comparison import print_comparison
        from memprobe.compare.comparison import read_comparison

        comparison = read_comparison(folder / COMPARISON)
        if as_json:
            echo_json(comparison.as_json())
        else:
            print_comparison(comparison, full=full)
        return
    if (folder / OUTCOMES).exists():
        from memprobe.cli.show_comparison import print_outcomes
        from memprobe.compare.outcomes import read_outcomes

        outcomes = read_outcomes(folder / OUTCOMES)
        if as_json:
            echo_json(outcomes.as_json())
        else:
            print_outcomes(outcomes, full=full)
        return
    from memprobe.cli.show_probe import print_summary
    from memprobe.probes import SUMMARY, open_probe

    probe = open_probe(folder)
    if not (folder / SUMMARY).exists():
        raise MemprobeError(f"{folder}: not finished, so there is no summary yet; the same command goes on")
    if as_json:
        echo_json(probe.summary)
        return
    print_summary(probe, full=full)
    for label in probe.checkpoints:
        if label not in probe.finished:
            echo(f"note     {label}: not finished; the same command goes on", err=True)
