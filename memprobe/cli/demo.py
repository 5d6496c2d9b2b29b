"""``memprobe demo``: the first probe, without a checkpoint or facts of one's own."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from memprobe.cli.app import app
from memprobe.cli.browser import open_page
from memprobe.cli.layers import layers
from memprobe.cli.terminal import echo


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="The probe directory.")] = Path("probes/demo"),
    ckpt: Annotated[
        str,
        typer.Option(metavar="SPEC", help="The model: smollm2-135m, gemma3-270m, or a checkpoint of yours."),
    ] = "smollm2-135m",
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh", help="Start over: a probe that --out holds goes once the new one has results."
        ),
    ] = False,
    show: Annotated[
        bool, typer.Option("--open/--no-open", help="Open the page in the browser once it is written.")
    ] = True,
) -> None:
    """Probes a small pretrained model on 295 built-in facts, prints what it finds and opens the report.

    The models smollm2-135m and gemma3-270m come from packages of their own; where one is missing, the command that
    installs it is named. Called again, it reads the finished probe.

    Example: `memprobe demo`
    """
    layers(ckpt=[ckpt], factoids="known", out=out, fresh=fresh)
    if show:
        open_page(out / "report.html")
    echo(
        f"\nThese tables again: memprobe show {shlex.quote(str(out))}. Facts of yours: memprobe layers --help.",
        err=True,
    )
