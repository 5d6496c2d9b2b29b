"""``memprobe dashboard``: one interactive page over probes, training runs and comparisons."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from memprobe.cli.app import app
from memprobe.cli.asked import check_page, options_given, refuse_given
from memprobe.cli.browser import open_page
from memprobe.cli.options import FixedReadout, Open, Reference
from memprobe.cli.terminal import echo
from memprobe.errors import MemprobeError


@app.command("dashboard")
def dashboard_command(
    typer_context: typer.Context,
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR…",
            help="Probe directories, training runs, patches, folders of memprobe compare --out or of a study's tables, "
            "or what lies above them.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="The page.")] = Path("dashboard.html"),
    show: Open = False,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            help="Show a running job: a server on this machine alone makes the page anew when files change, "
            "until Ctrl-C. No file is written.",
        ),
    ] = False,
    port: Annotated[
        int, typer.Option(help="Port of the --watch server; 0 picks a free one.", min=0, max=65535)
    ] = 0,
    reference: Reference = None,
    fixed_readout: FixedReadout = None,
) -> None:
    """Writes one interactive page over a study: a file that opens offline, in any browser.

    It holds what there is: curves, distributions, differences, fates and every factoid of the probes; scores and
    learning curves of the training runs; what patches move; comparisons, also of other tools' results. Its address
    keeps what a reader has chosen, so that a view can be sent as a link.

    Examples:

    `memprobe dashboard probes/demo-training runs/demo-naive runs/demo-remix --open`

    `memprobe dashboard probes/stages probes/patch-s1-s2 --open`

    `memprobe dashboard --watch runs/my-run`
    """
    from memprobe.dashboard import write_dashboard
    from memprobe.studies import open_study

    options: dict[str, Any] = {"reference": reference, "fixed_readout": fixed_readout or []}
    if watch:
        refuse_given(
            options_given(typer_context, "out"),
            "--watch serves the page and writes no file; leave one of them out",
        )
        _watch(paths, port, show, options)
        return
    refuse_given(options_given(typer_context, "port"), "is of the server; give --watch with it")
    check_page(out)
    study = open_study(paths)
    write_dashboard(study, out, say=_say, **options)
    held = [
        f"{len(shown)} {name if len(shown) == 1 else plural}"
        for name, plural, shown in (
            ("probe", "probes", study.probes),
            ("training run", "training runs", study.runs),
            ("comparison", "comparisons", study.comparisons),
            ("directory of patches", "directories of patches", study.patches),
            ("published result", "published results", study.results),
            ("result of other tools", "results of other tools", study.outcomes),
        )
        if shown
    ]
    _say(f"{', '.join(held)}; {out.stat().st_size / 1e6:.1f} MB")
    echo(str(out))
    if show:
        open_page(out)


def _watch(paths: list[Path], port: int, show: bool, options: dict[str, Any]) -> None:
    from memprobe.dashboard.watch import Watch, run

    for path in paths:
        if not path.exists():
            raise MemprobeError(f"{path}: no such directory")

    def started(address: str) -> None:
        echo(address)
        _say("Ctrl-C stops it")
        if show:
            open_page(address)

    run(Watch(paths, **options), port=port, started=started, say=_say)


def _say(text: str) -> None:
    echo(text, err=True)
