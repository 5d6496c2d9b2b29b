"""``python -m analyses.instruments run | report``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from memprobe.cli.app import Commands, resumable
from memprobe.cli.app import run as run_commands
from memprobe.errors import MemprobeError

HERE = Path(__file__).parent
PLAN = HERE / "plans" / "smollm2-135m.toml"
RESULTS = HERE / "results"
FIGURES = HERE.parents[1] / "figures" / "instruments"

app = typer.Typer(
    cls=Commands,
    name="instruments",
    help="Which instrument finds the fact? Facts are planted in known blocks, and instruments are marked.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="markdown",
)


@app.callback()
def _common(debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error.")) -> None:
    """Facts are planted in known blocks, and instruments are marked."""


@app.command("run")
def run_(
    plan: Annotated[
        Path,
        typer.Argument(
            help="A TOML file; those in analyses/instruments/plans show what one says. [default: smollm2-135m.toml "
            "there]",
            show_default=False,
        ),
    ] = PLAN,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the results; what is in it goes on. [default: runs/instruments/PLAN]"),
    ] = None,
    workers: Annotated[
        int, typer.Option(help="Processes side by side, on one device; each takes the next cell.", min=1)
    ] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
    minutes: Annotated[
        float | None,
        typer.Option(help="Stop after so long and keep what is done; the same command goes on.", min=0),
    ] = None,
    lens: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND=PATH", help="A fitted lens instead of one fitted here: linear, tuned or jacobian."
        ),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder with datasets. [default: MEMPROBE_DATA_DIR]")
    ] = None,
    scratch: Annotated[
        Path | None,
        typer.Option(help="Folder for planted weights and fitted lenses. [default: OUT/.scratch]"),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing but in OUT/log.txt.")] = False,
) -> None:
    """Plants, verifies, and asks every instrument: resumable, in as many processes as wanted."""
    from analyses.instruments.lenses import KINDS
    from analyses.instruments.plan import Options, read_plan
    from analyses.instruments.work import run

    until = None if minutes is None else time.time() + 60 * minutes
    out = out or Path("runs/instruments") / plan.stem
    lenses = []
    for text in lens or []:
        kind, equals, path = text.partition("=")
        if kind not in KINDS or not equals:
            raise MemprobeError(f"--lens {text}: write KIND=PATH with KIND one of {', '.join(KINDS)}")
        lenses.append((kind, Path(path)))
    options = Options(out, scratch or out / ".scratch", data_dir, device, tuple(lenses), until, quiet)
    with resumable(out):
        broken = run(read_plan(plan), options, workers=workers)
    if broken:
        raise MemprobeError(f"{len(broken)} cells could not be worked on: {broken[0]}")


@app.command("small")
def small_(
    out: Annotated[Path, typer.Argument(help="Folder of the checkpoint.")] = Path("runs/instruments-base"),
    seed: Annotated[int, typer.Option(help="Of the weights and the facts.", min=0)] = 0,
) -> None:
    """A small base model that trains on a CPU, for the plan `small.toml`: a Llama of 8 blocks that knows 300 facts."""
    from analyses.instruments.small import KNOWN, write_small

    steps, said = write_small(out, seed)
    typer.echo(f"{out}: {steps} steps, says {said:.1%} of {KNOWN} facts")


@app.command("report")
def report_(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(help="Folders of `run`; several together. [default: the results that are kept]"),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(
            help="Folder of the page, the tables and the kept results. [default: analyses/instruments/results]",
            show_default=False,
        ),
    ] = RESULTS,
    figures: Annotated[
        Path,
        typer.Option(help="Folder of the figure. [default: figures/instruments]", show_default=False),
    ] = FIGURES,
) -> None:
    """The page, the tables and the figure, from runs or from the results that an earlier report kept."""
    from analyses.instruments.report import write_report
    from analyses.instruments.results import read_results

    for file in write_report(read_results(runs or [out]), out, figures):
        typer.echo(str(file))


if __name__ == "__main__":
    run_commands(app, "analyses.instruments")
