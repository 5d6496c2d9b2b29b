"""``memprobe figures``: figures for papers, each beside what made it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memprobe.cli import options
from memprobe.cli.app import app
from memprobe.cli.asked import options_given, refuse_given
from memprobe.cli.terminal import echo

_NAMES = (
    "recall, frequency, lof, survival, heatmap, differences, spread, kept, steps, lenses, positions, "
    "contributions (of probes and comparisons); "
    "forgetting, stages, replay_ratio, mixing_ratio, mixing_length, penalty_strength, interference, "
    "other_questions (of training runs); "
    "restoration, grafts (of patches)"
)


@app.command("figures")
def figures_command(
    typer_context: typer.Context,
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR…",
            help="Probe directories, training runs, folders of memprobe compare --out or memprobe patch, or what lies "
            "above them, such as a whole grid. Or the JSON files beside figures, to draw these again from the data in "
            "them.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the figures.")] = Path("figures"),
    only: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help=f"{_NAMES}. Repeatable. [default: all]")
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="LABEL",
            help="Differences are taken from this checkpoint, where a probe has it. [default: the first]",
            show_default=False,
        ),
    ] = None,
    top_k: options.ProbesTopK = None,
    token: options.ProbesTokenRule = None,
    lens: options.ProbesLens = None,
    position: options.ProbesPosition = None,
    width: Annotated[
        int | None,
        typer.Option(
            metavar="89|183",
            help="Millimetres: one column of a page, or two. [default: 89, or as a JSON file says]",
            show_default=False,
        ),
    ] = None,
    formats: Annotated[
        str, typer.Option("--format", help="pdf, png, svg: one or more, with commas between them.")
    ] = "pdf,png",
    draws: options.Draws = 10_000,
) -> None:
    """Draws a study for a paper: PDF and PNG, fonts embedded, each beside a JSON of what made it.

    Reads records and evaluations; no model, no weights. What cannot be drawn is named with the reason. NAME.json
    holds the command, the inputs' hashes, the settings and the data drawn; the LoF table is lof.csv and lof.md.
    The same inputs give the same bytes.

    Examples:

    `memprobe figures probes/stages --reference base`

    `memprobe figures runs/study --out figures/study --width 183 --only forgetting --only lof -k 1 --token all`

    `memprobe figures figures/study/forgetting.json --width 89 --format svg --out slides`
    """
    from memprobe.figures import write_figures

    if all(path.suffix == ".json" for path in paths):
        refuse_given(
            options_given(typer_context, "reference", "top_k", "token", "lens", "position", "draws"),
            "is of probes, and the JSON beside a figure holds what was drawn of them; give the probes, or leave it out",
        )
    written = write_figures(
        paths,
        out,
        only=only or (),
        reference=reference,
        k=top_k,
        token=token,
        lens=lens,
        position=position,
        width=width,
        formats=[name.strip() for name in formats.split(",")],
        draws=draws,
        say=lambda text: echo(text, err=True),
    )
    for path in written:
        echo(path)
