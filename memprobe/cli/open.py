"""``memprobe open``: the newest probe, in the browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memprobe.cli.app import app
from memprobe.cli.browser import open_page
from memprobe.cli.terminal import echo
from memprobe.errors import MemprobeError

PROBES = Path("probes")
"""Where memprobe layers puts probes by itself."""


@app.command("open")
def open_command(
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="DIR",
            help="A probe directory, or a folder above some. [default: probes]",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Opens the report of the newest probe in the browser.

    The report is written anew where records have come since; a probe under way shows what is there.

    Examples:

    `memprobe open`

    `memprobe open probes/demo`
    """
    from memprobe.dashboard import write_report
    from memprobe.files import replacing
    from memprobe.probe_writer import REPORT
    from memprobe.probes import RUN, open_probe
    from memprobe.studies import probes_below

    top = folder or PROBES
    probes = probes_below(top)
    if not probes:
        more = "" if folder else "; name a folder, or make one: memprobe layers --ckpt smollm2-135m"
        raise MemprobeError(f"{top}: holds no probe directory{more}")
    newest = max(probes, key=lambda path: (path / RUN).stat().st_mtime_ns)
    report = newest / REPORT
    if not report.exists() or report.stat().st_mtime_ns < (newest / RUN).stat().st_mtime_ns:
        with replacing(report) as path:
            write_report(open_probe(newest), path)
    echo(str(report))
    open_page(report)
