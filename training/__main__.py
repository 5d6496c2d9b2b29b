"""``python -m training run RECIPE | grid GRID | report DIR | relearn CHECKPOINT``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memprobe.cli.app import application, resumable
from memprobe.cli.app import run as run_commands
from memprobe.cli.asked import engine_of
from memprobe.cli.options import MAX_SEED, DataDir, EngineText
from memprobe.cli.terminal import echo
from memprobe.errors import MemprobeError

if TYPE_CHECKING:
    import polars as pl

    from training.grid import Plan
    from training.grid.file import Grid

app = application("training", "Makes the checkpoints that memprobe probes.")


@app.callback()
def _common(debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error.")) -> None:
    """Makes the checkpoints that memprobe probes."""


@app.command("run")
def run_(
    recipe: Annotated[
        Path, typer.Argument(help="A TOML file; those in training/recipes show what one says.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="The run directory; an interrupted run in it goes on. [default: runs/RECIPE, with the seed "
            "where --seed is given]",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed in place of the recipe's own.", min=0, max=MAX_SEED)
    ] = None,
    arm: Annotated[
        str | None,
        typer.Option(
            help="What is done against forgetting, instead of the recipe's own, e.g. replay(ratio=0.1)."
        ),
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="Checkpoint to start from instead of the recipe's own.")
    ] = None,
    data_dir: DataDir = None,
    asked: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the base model's answers; runs that give the same one ask it once. "
            "[default: in the run directory, while it trains]",
            show_default=False,
        ),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete the run that --out already holds.")] = False,
) -> None:
    """Trains a recipe's stages, one checkpoint each.

    Killed at any moment, the same command goes on where it was. What is finished is probed with
    `memprobe layers --ckpt RUN` (its last stage) or `--ckpt RUN/1-NAME`.

    Examples:

    `python -m training run training/recipes/demo.toml --out runs/naive`

    `python -m training run training/recipes/demo.toml --arm "remix(data=self, stages=1)" --out runs/remix`

    `torchrun --nproc-per-node 2 -m training run training/recipes/llama3-8b-paper.toml --seed 1`
    """
    from training.recipe import read_recipe

    chosen = read_recipe(recipe, seed=seed, arm=arm, base=base)
    name = recipe.stem if seed is None else f"{recipe.stem}-seed{seed}"
    folder = out or Path("runs") / name
    from training.run import run

    with resumable(folder):
        run(chosen, folder, fresh=fresh, data_dir=data_dir, asked=asked)


@app.command("grid")
def grid_(
    grid: Annotated[Path, typer.Argument(help="A TOML file; those in training/grids show what one says.")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Where everything goes; a grid begun there goes on. [default: runs/GRID-grid]",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Only print the cells, what they share, an estimate of time and disk, and what --power prints.",
        ),
    ] = False,
    power: Annotated[
        bool,
        typer.Option(
            "--power",
            help="Only print which difference of retention the grid's seeds and facts can see, and how many "
            "seeds smaller ones need, if its runs scatter as those of --scatter did.",
        ),
    ] = False,
    scatter: Annotated[
        Path, typer.Option(help="Results of a study, as report writes them, for --power.")
    ] = Path("analyses/study"),
    data_dir: DataDir = None,
    workers: Annotated[
        int,
        typer.Option(
            help="Processes that train cells beside each other, here: as many as there are cores, also where they "
            "share one GPU.",
            min=1,
        ),
    ] = 1,
    minutes: Annotated[
        float | None,
        typer.Option(
            help="Begin no cell after so many minutes. Those that run have --grace more; then they save their states.",
            min=0,
        ),
    ] = None,
    grace: Annotated[float, typer.Option(help="Seconds after --minutes, see there.", min=1)] = 60.0,
    engine: EngineText = None,
    worker: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Trains, evaluates and probes every cell of a study, in order of priority.

    Stages that cells share are trained once. Killed at any moment, the same command goes on; a cell that
    breaks is named and the others go on. Probes and evaluations are kept, and weights where the grid says so.

    Examples:

    `python -m training grid training/grids/tiny.toml`

    `python -m training grid training/grids/smollm2-study.toml --data-dir data --dry-run`

    `python -m training grid training/grids/smollm2-study.toml --power`

    `python -m training grid training/grids/smollm2-study.toml --workers 16 --minutes 120`

    `python -m training grid training/grids/smollm2-study.toml --out /shared/study --engine ray`
    """
    from training.grid import plan, read_grid, run_grid, run_on_ray, run_workers

    cluster = engine_of(engine, None, None)
    if cluster is not None and (workers > 1 or minutes is not None):
        raise MemprobeError("--workers and --minutes are for processes here: leave them out, or --engine")
    wanted = read_grid(grid)
    folder = out or Path("runs") / f"{grid.stem}-grid"  # recipes of that name have runs/NAME
    if power:
        _print_power(wanted, grid, scatter)
        return
    if dry_run:
        from memprobe.cli.terminal import terminal

        with terminal(stderr=True).status("reading the data of every stage, to count its tokens"):
            ahead = plan(wanted, grid, folder, data_dir=data_dir)
        _print_plan(ahead)
        try:
            _print_power(wanted, grid, scatter)
        except MemprobeError as error:  # a plan needs no stored study
            echo(f"power    not known: {error}")
        return
    if worker is not None:
        _work(wanted, grid, folder, data_dir, worker)
        return
    with resumable(folder):
        if cluster is not None:
            broken = run_on_ray(wanted, grid, folder, engine=cluster, data_dir=data_dir)
        elif workers > 1 or minutes is not None:
            broken = run_workers(
                wanted,
                grid,
                folder,
                workers=workers,
                minutes=minutes,
                grace=grace,
                data_dir=data_dir,
            )
        else:
            broken = run_grid(wanted, grid, folder, data_dir=data_dir)
    if broken:
        raise MemprobeError(
            f"{len(broken)} cells could not be trained, first {broken[0]}; the same command tries them again"
        )


def _work(wanted: Grid, grid: Path, folder: Path, data_dir: Path | None, number: int) -> None:
    """One of the processes that ``--workers`` starts."""
    from training.grid import run_grid
    from training.grid.crew import Crew
    from training.stopping import listen

    listen()
    run_grid(wanted, grid, folder, data_dir=data_dir, quiet=True, crew=Crew(folder, number))


@app.command("report")
def report_(
    folder: Annotated[
        Path, typer.Argument(help="A grid's directory, or the results that this command left of one.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Where results and tables go. [default: results in the grid's directory, or where they are]",
            show_default=False,
        ),
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option(help="Where figures go. [default: figures, below the tables]", show_default=False),
    ] = None,
    draws: Annotated[
        int, typer.Option(help="Resamples of the bootstrap, where records are read.", min=100, max=1_000_000)
    ] = 2000,
) -> None:
    """Writes a study's tables as CSV and Markdown, and its figures, from a grid's directory or its stored results.

    Reads what is finished; nothing is trained or probed, and no weights are needed. `--out` holds all that the
    tables are made from, and each figure's JSON what it is drawn from, small enough to publish: from these the same
    command makes tables and figures again.

    Examples:

    `python -m training report runs/smollm2-study-grid --out analyses/study --figures figures/study`

    `python -m training report analyses/study --figures figures/study`
    """
    from memprobe.files import csv_text, write_text
    from memprobe.runs import GRID
    from training.study.collect import collect, read_results
    from training.study.figures import draw
    from training.study.published import flat, markdown, tables

    fresh = (folder / GRID).exists()
    results = collect(folder, draws=draws, say=_aside) if fresh else read_results(folder)
    target = out or (folder / "results" if fresh else folder)
    results.write(target)
    made = tables(results)
    for name, table in made.items():
        write_text(csv_text(flat(table)), target / "tables" / f"{name}.csv")
    write_text(markdown(made, f"python -m training report {target}"), target / "README.md")
    drawn = draw(
        results,
        made,
        folder if fresh else None,
        target,
        figures or target / "figures",
        draws=draws,
        say=_aside,
    )
    _print_results(made)
    _aside(f"tables   {target / 'README.md'}")
    _aside(f"figures  {len(drawn)} in {drawn[0].parent}" if drawn else "figures  none")


@app.command("relearn")
def relearn_(
    checkpoints: Annotated[
        list[str], typer.Argument(help="Checkpoints of stage 2 or later, such as runs/a/2-lama of each arm.")
    ],
    fresh: Annotated[
        str | None,
        typer.Option(
            "--never-learned",
            metavar="SOURCE",
            help="A source of never-learned facts of the same kind. [default for KVR: others are made]",
            show_default=False,
        ),
    ] = None,
    lr: Annotated[float, typer.Option(help="Learning rate of AdamW.")] = 1e-4,
    batch: Annotated[int, typer.Option(help="Facts a step.", min=1)] = 4,
    limit: Annotated[int, typer.Option(help="Steps at most.", min=1)] = 60,
    shots: Annotated[int, typer.Option(help="Solved examples of a cue.", min=1)] = 4,
    n: Annotated[int | None, typer.Option(help="Facts in each set at most.", min=2)] = None,
    seed: Annotated[int, typer.Option(help="Seed of the choice and the order.", min=0, max=MAX_SEED)] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda …")] = "auto",
    data_dir: DataDir = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Also write the table as Parquet, and beside it NAME-arms.parquet, by arm over seeds."
        ),
    ] = None,
) -> None:
    """Gone, or only out of reach? Steps until facts that a stage took are back, against never-learned ones.

    Prints a row for each checkpoint: steps and examples of both, savings (what the lost ones do without), and what
    a cue of solved examples brings back without training; then, of several checkpoints, a table of arms over their
    seeds, with the difference from naive. The checkpoints are left as they are.

    Example: `python -m training relearn runs/naive/2-lama runs/remix/2-lama`
    """
    from memprobe.files import write_parquet
    from training.relearn import relearn, relearn_table
    from training.relearn_arms import arm_table

    found = []
    for spec in checkpoints:
        found.append(
            relearn(
                spec,
                fresh=fresh,
                lr=lr,
                batch=batch,
                limit=limit,
                shots=shots,
                n=n,
                seed=seed,
                device=device,
                data_dir=data_dir,
                say=lambda line, spec=spec: _aside(f"{spec}: {line}"),
            )
        )
        if out is not None:
            write_parquet(relearn_table(found), out)  # after each: what is measured is kept
            write_parquet(arm_table(found), out.with_name(f"{out.stem}-arms{out.suffix}"))
        row = found[-1]
        ends = "" if row.savings_low is None else f" [{row.savings_low:.2f}, {row.savings_high:.2f}]"
        echo(
            f"{row.checkpoint} ({row.arm}): {row.lost} of {row.asked} facts lost; {row.n} of them are back after "
            f"{row.steps_lost:.1f} steps ({row.examples_lost:.0f} examples), never-learned ones after "
            f"{row.steps_fresh:.1f} ({row.examples_fresh:.0f}): savings {row.savings:.2f}{ends}; "
            f"cued {row.cued_lost:.0%} against {row.cued_fresh:.0%}, "
            f"{row.gain_lost:+.1f} against {row.gain_fresh:+.1f} nats"
        )
    if len(found) > 1:
        _print_relearned(arm_table(found))


def _aside(line: str) -> None:
    echo(line, err=True)


def _print_relearned(arms: pl.DataFrame) -> None:
    """Learning again by arm: savings with their interval over seeds, every seed, and what lies behind them."""
    from rich.table import Column, Table

    from memprobe import wording
    from memprobe.arms import arm_names
    from memprobe.cli.terminal import terminal
    from memprobe.statistics.vocabulary import label

    names = arm_names({*arms["arm"]})
    form, signed = wording.form_of("savings"), wording.form_of("savings", signed=True)
    table = Table(
        Column("arm", overflow="fold"),
        "stage",
        *(Column(head, justify="right") for head in ("savings", "by seed", "minus naive", "steps", "cued")),
        title=f"{label('savings')}, over training seeds",
    )
    for (arm, stage), group in arms.group_by("arm", "stage", maintain_order=True):
        rows = {row["statistic"]: row for row in group.iter_rows(named=True)}
        savings = rows["savings"]
        apart = (savings["difference"], savings["difference_low"], savings["difference_high"])
        steps, cued = (
            " / ".join(wording.number(rows[f"{name}_{side}"]["mean"], unit) for side in ("lost", "fresh"))
            for name, unit in (("steps", ".1f"), ("cued", ".0%"))
        )
        table.add_row(
            names[str(arm)],
            str(stage),
            wording.interval(savings["mean"], savings["low"], savings["high"], form),
            ", ".join(wording.number(value, form) for value in savings["by_seed"]),
            wording.interval(*apart, signed),
            steps,
            cued,
        )
    terminal().print(table)
    echo("steps and cued: lost / never-learned facts; no interval under three seeds")


def _print_results(made: dict[str, pl.DataFrame]) -> None:
    """Retention by arm, and the claims that could be tested."""
    import polars as pl
    from rich.table import Column, Table

    from memprobe.cli.terminal import terminal
    from memprobe.statistics.verdicts import NOT_TESTED
    from training.study.published import shown

    console = terminal()
    columns = ["after stage 1", "retention", "95 %", "by seed", "D_B", "tokens ×"]
    for (setup,), group in made["forgetting"].group_by("setup", maintain_order=True):
        table = Table(
            Column("arm", overflow="fold"),
            "learned",
            *columns,
            title=str(setup),
            title_justify="left",
            box=None,
        )
        for row in group.iter_rows(named=True):
            edges = "–" if row["low"] is None else f"{row['low']:.1%} – {row['high']:.1%}"
            shares = [_percent(row[name]) for name in ("d_a_after_1", "retention")]
            seeds = " ".join(_percent(value) for value in row["by_seed"] or [])
            metric = row["last_metric"]
            percent = metric in ("exact_match", None)
            last = _percent(row["last_score"]) if percent else f"{metric} {shown(row['last_score'])}"
            learned = f"{row['cells'] - row['failed']}/{row['cells']}"
            table.add_row(row["arm"], learned, *shares, edges, seeds, last, shown(row["tokens"]))
        console.print(table)
    claims = made["claims"]
    tested = claims.filter(pl.col("verdict") != NOT_TESTED)
    table = Table("claim", "", "verdict", "evidence", title="Claims", title_justify="left", box=None)
    for row in tested.iter_rows(named=True):
        reading = "" if row["k"] is None else f", top {row['k']}, {row['token']}"
        against = f" against {row['against']}" if row["against"] else ""
        table.add_row(
            f"{row['setup']}: {row['claim']}{reading}", row["arm"] + against, row["verdict"], row["evidence"]
        )
    if len(tested):
        console.print(table)
    console.print(f"{len(claims) - len(tested)} claims are not tested; the tables say why", highlight=False)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _print_power(wanted: Grid, grid: Path, scatter: Path) -> None:
    """Which differences a grid can see, by set-up."""
    from rich.table import Column, Table

    from memprobe.cli.terminal import terminal
    from training.grid.cells import cells_of
    from training.study.collect import read_results
    from training.study.power import power_of, stored_scatter

    scattered = stored_scatter(read_results(scatter).cells)
    made = power_of(cells_of(wanted, grid), scattered)
    folded = [Column(name, overflow="fold") for name in made.columns]
    table = Table(*folded, box=None, padding=(0, 2, 0, 0))
    for row in made.iter_rows(named=True):
        points = [f"{100 * row[name]:.1f}" if row[name] is not None else "-" for name in ("sd", "detectable")]
        first = [str(row[name]) for name in ("setup", "facts", "seeds", "scatter")]
        needed = ["over 200" if row[name] is None else str(row[name]) for name in made.columns[-2:]]
        table.add_row(*first, *points, *needed)
    console = terminal()
    console.print(table)
    console.print(
        f"In points of retention, against naive, at 80 % power and 5 %: if pairs of seeds scatter as in {scatter}, "
        "all arms together and the one that scatters most.",
        highlight=False,
        soft_wrap=True,
    )


def _print_plan(plan: Plan) -> None:
    from rich.table import Table

    from memprobe.cli.terminal import terminal

    table = Table("cell", "block", "", box=None, padding=(0, 2, 0, 0))
    for name, block, done in plan.cells:
        table.add_row(name, block, "done" if done else "")
    console = terminal()
    console.print(table)
    for name, count in plan.shared.items():
        console.print(f"shared   {name} by {count} cells", highlight=False)
    hours = None if plan.per_second is None else plan.tokens / plan.per_second / 3600
    time = (
        "its rate is known after the first stage"
        if hours is None
        else f"about {hours:.1f} h at the {plan.per_second:.0f} tokens/s measured here"
    )
    console.print(
        f"time     {plan.stages} stages to train, at most {plan.tokens:,} tokens: {time}", highlight=False
    )
    console.print(
        f"disk     at most {plan.peak_stages * plan.stage_bytes / 2**30:.1f} GiB of weights at once "
        f"({plan.peak_stages} stages)",
        highlight=False,
    )


def main() -> None:
    """The command ``python -m training``."""
    run_commands(app, "training")


if __name__ == "__main__":
    main()
