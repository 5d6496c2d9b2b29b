"""``memprobe push`` and ``memprobe pull``: probes to and from others."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from memprobe.cli.app import app
from memprobe.cli.asked import refuse_given
from memprobe.cli.terminal import echo


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A probe directory.")],
    to: Annotated[
        str,
        typer.Argument(
            metavar="WHERE",
            help="OWNER/NAME of a data set on the Hugging Face hub, or a folder (./…, /…, ~/…).",
        ),
    ],
    public: Annotated[
        bool, typer.Option("--public", help="If this command creates the data set, make it public.")
    ] = False,
    message: Annotated[str | None, typer.Option(help="Message of the commit.", show_default=False)] = None,
) -> None:
    """Shares a probe: its tables, a card that says what they hold, and a report. No weights.

    Paths in run.json are shortened to their last part. The facts that were asked are published too: check their
    licence.

    Example: `memprobe push probes/demo me/smollm2-known`
    """
    from memprobe import sharing

    if not sharing.on_hub(to):
        refuse_given(
            {"--public": public or None, "--message": message},
            "is of a data set on the hub (OWNER/NAME), and a folder has none; leave it out",
        )
    echo(sharing.push(folder, to, private=not public, message=message))


@app.command()
def pull(
    source: Annotated[
        str,
        typer.Argument(
            metavar="WHERE", help="OWNER/NAME[@REVISION] of a data set that push made, or a folder."
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="The probe directory to create; it must not exist yet, or be empty.")
    ],
) -> None:
    """Fetches a probe that somebody shared, checks its tables against their checksums and writes its report again.

    Example: `memprobe pull me/smollm2-known --out probes/theirs`
    """
    from memprobe import sharing

    pulled = sharing.pull(source, out)
    echo(repr(pulled))
    echo(
        f"tables: memprobe show {shlex.quote(str(out))}; page: memprobe open {shlex.quote(str(out))}",
        err=True,
    )
