"""``python -m training run RECIPE | grid GRID | report DIR | relearn CHECKPOINT``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memprobe.cli.app import application, resumable
from memprobe.cli.app import run as run_commands
from memprobe.cli.asked import engine_of, options_given, refuse_given, refuse_same_file
from memprobe.cli.options import MAX_SEED, DataDir, EngineText, StorageText
from memprobe.cli.terminal import echo
from memprobe.errors import MemprobeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from training.grid.file import Grid

app = application("training", "Makes the checkpoints that memprobe probes.")

Blocks = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Only the cells that this block of the grid file wants; may be given several times, first things first. "
        "[default: all, in the file's order]",
        show_default=False,
    ),
]


def _finite(value: float | None) -> float | None:
    """An option's number, which may be nan or inf for typer: a limit that never comes."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value:g} is not a finite number")
    return value


def _above_zero(value: float) -> float:
    """An option's number, bounded as in a recipe; a least value of typer's is itself taken, and so is nan."""
    if not 0 < value < math.inf:
        raise typer.BadParameter(f"{value:g} is not a finite number above 0")
    return value


@app.callback()
def _common(debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error.")) -> None:
    """Makes the checkpoints that memprobe probes."""


@app.command("run")
def run_(
    recipe: Annotated[Path, typer.Argument(help="A TOML file; see those in training/recipes.")],
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
            help="What to do against forgetting, in place of the recipe's arm, e.g. replay(ratio=0.1)."
        ),
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="Checkpoint to start from instead of the recipe's own.")
    ] = None,
    data_dir: DataDir = None,
    asked: Annotated[
        Path | None,
        typer.Option(
            help="Folder that keeps the base model's answers; runs that share it ask the base model once. "
            "[default: in the run directory, while it trains]",
            show_default=False,
        ),
    ] = None,
    fresh: Annotated[
        bool,
        typer.Option("--fresh", help="Start over: a run that --out holds goes once the new one has results."),
    ] = False,
) -> None:
    """Trains the stages of a recipe; each becomes a checkpoint.

    If it is killed, the same command continues where it stopped. Probe what is finished with
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
    from training.directories import check_read
    from training.run import run

    check_read(recipe, folder, fresh=fresh)
    with resumable(folder):
        run(chosen, folder, fresh=fresh, data_dir=data_dir, asked=asked)


@app.command("grid")
def grid_(
    typer_context: typer.Context,
    grid: Annotated[Path, typer.Argument(help="A TOML file; see those in training/grids.")],
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
            help="Only print the smallest difference of retention that the grid's seeds and facts can detect, and how "
            "many seeds smaller ones need, if its runs vary as those of --scatter did.",
        ),
    ] = False,
    scatter: Annotated[
        Path, typer.Option(help="Results of a study, as report writes them, for --power.")
    ] = Path("analyses/study"),
    block: Blocks = None,
    data_dir: DataDir = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="How many processes train cells side by side on this machine; they may share one GPU. One that is "
            "killed, as for want of memory, is started again, be it the only one. [default: the command itself trains]",
            min=1,
            show_default=False,
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            help="Start no cell after this many minutes; with 0, none at all. Running cells get --grace more seconds, "
            "then save their state.",
            min=0,
            callback=_finite,
        ),
    ] = None,
    grace: Annotated[
        float, typer.Option(help="Seconds that running cells get after --minutes.", min=1, callback=_finite)
    ] = 60.0,
    engine: EngineText = None,
    storage: StorageText = None,
    worker: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Trains, evaluates and probes every cell of a study, in order of priority.

    Stages that cells share are trained once. If it is killed, the same command continues; a cell that fails is
    named, and the others continue. Probes and evaluations are kept; weights only where the grid says so.

    Examples:

    `python -m training grid training/grids/tiny.toml`

    `python -m training grid training/grids/smollm2-study.toml --data-dir data --dry-run`

    `python -m training grid training/grids/smollm2-study.toml --power`

    `python -m training grid training/grids/smollm2-study.toml --workers 16 --minutes 120`

    `python -m training grid training/grids/smollm2-paper.toml --data-dir data --block triviaqa-lama`

    `python -m training grid training/grids/smollm2-study.toml --out /shared/study --engine ray`
    """
    from training.grid import cells_in, cells_of, plan, read_grid, run_grid, run_on_ray, run_workers
    from training.show import print_plan, print_power

    works = ("workers", "minutes", "grace", "engine", "storage")
    if power:
        refuse_given(
            options_given(typer_context, "out", "dry_run", "data_dir", *works),
            "--power reads the grid's file and the results of --scatter alone; leave one of them out",
        )
    elif dry_run:
        refuse_given(options_given(typer_context, *works), "--dry-run trains nothing; leave one of them out")
    else:
        refuse_given(
            options_given(typer_context, "scatter"), "is of --power and --dry-run; give one of them with it"
        )
    if minutes is None:
        refuse_given(
            options_given(typer_context, "grace"), "is the time after --minutes; give --minutes with it"
        )
    cluster = engine_of(engine, None, storage)
    if cluster is not None and not (workers is None and minutes is None):
        raise MemprobeError("--workers and --minutes are for processes here: leave them out, or --engine")
    wanted, blocks = read_grid(grid), tuple(block or ())
    folder = out or Path("runs") / f"{grid.stem}-grid"  # recipes of that name have runs/NAME
    if power:
        print_power(cells_in(cells_of(wanted, grid), blocks, grid), scatter)
        return
    if dry_run:
        from memprobe.cli.terminal import terminal

        cells = cells_in(cells_of(wanted, grid), blocks, grid)
        with terminal(stderr=True).status("reading the data of every stage, to count its tokens") as status:
            # One line that changes; a log, which has none, is told of each stage, as that may take long.
            say = status.update if status.console.is_terminal else status.console.print
            ahead = plan(wanted, grid, folder, blocks=blocks, data_dir=data_dir, say=say)
        print_plan(ahead)
        try:
            print_power(cells, scatter)
        except MemprobeError as error:  # a plan needs no stored study
            echo(f"power    not known: {error}")
        return
    if worker is not None:
        _work(wanted, grid, folder, blocks, data_dir, worker)
        return
    with resumable(folder):
        if cluster is not None:
            broken = run_on_ray(wanted, grid, folder, engine=cluster, blocks=blocks, data_dir=data_dir)
        elif workers is not None or minutes is not None:
            broken = run_workers(
                wanted,
                grid,
                folder,
                workers=workers or 1,
                blocks=blocks,
                minutes=minutes,
                grace=grace,
                data_dir=data_dir,
            )
        else:
            broken = run_grid(wanted, grid, folder, blocks=blocks, data_dir=data_dir)
    if broken:
        raise MemprobeError(
            f"{len(broken)} cells could not be trained, first {broken[0]}; the same command tries them again"
        )


def _work(
    wanted: Grid, grid: Path, folder: Path, blocks: Sequence[str], data_dir: Path | None, number: int
) -> None:
    """One of the processes that ``--workers`` starts."""
    from training.grid import run_grid
    from training.grid.crew import Crew
    from training.stopping import listen

    listen()
    run_grid(wanted, grid, folder, blocks=blocks, data_dir=data_dir, quiet=True, crew=Crew(folder, number))


@app.command("report")
def report_(
    folder: Annotated[
        Path, typer.Argument(help="A grid's directory, or the results that this command left of one.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Where results, tables and README.md, the page that shows them, go. [default: results in the grid's "
            "directory, or where they are]",
            show_default=False,
        ),
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option(
            help="Where figures go. [default: figures, below the tables; of stored results only if it is there]",
            show_default=False,
        ),
    ] = None,
    block: Blocks = None,
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

    `python -m training report runs/smollm2-paper-grid --block popqa-lama --block triviaqa-lama --out analyses/paper`

    `python -m training report analyses/study --figures figures/study`
    """
    from memprobe.runs import GRID
    from training.show import print_results
    from training.study.published import check_page, publish, tables
    from training.study.results import read_results

    fresh, cells = (folder / GRID).exists(), None
    target = out or (folder / "results" if fresh else folder)
    check_page(target)  # before records are read, which takes long
    if fresh:
        from training.grid import names_in
        from training.study.collect import collect

        cells = names_in(folder, block) if block else None
        results = collect(folder, draws=draws, cells=cells, say=_aside)
    elif block:
        raise MemprobeError(
            f"--block: {folder} holds no {GRID}, and stored results are those of all their blocks"
        )
    else:
        results = read_results(folder)
    made = tables(results)  # all of them, before anything is written
    page = publish(results, made, target)
    where = figures or target / "figures"
    drawn = []
    if figures or fresh or where.is_dir():
        from training.study.figures import draw  # takes as long to import as the tables take

        grid = folder if fresh else None
        options = "".join(f" --block {name}" for name in block or ())
        drawn = draw(
            results, made, grid, target, where, draws=draws, cells=cells, options=options, say=_aside
        )
    print_results(made)
    _aside(f"tables   {page}")
    _aside(f"figures  {len(drawn)} in {where}" if drawn else "figures  none (--figures DIR draws them)")


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
    lr: Annotated[float, typer.Option(help="Learning rate of AdamW.", callback=_above_zero)] = 1e-4,
    batch: Annotated[int, typer.Option(help="Facts per training step.", min=1)] = 4,
    limit: Annotated[int, typer.Option(help="The most training steps.", min=1)] = 60,
    shots: Annotated[int, typer.Option(help="Solved examples in the prompt.", min=1)] = 4,
    n: Annotated[int | None, typer.Option(help="The most facts in each set.", min=2)] = None,
    seed: Annotated[int, typer.Option(help="Seed of the choice and the order.", min=0, max=MAX_SEED)] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda …")] = "auto",
    data_dir: DataDir = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Also write the table as Parquet, NAME.parquet, and beside it NAME-arms.parquet, by arm over seeds; "
            "what a table there holds of these options is not measured again."
        ),
    ] = None,
) -> None:
    """Are forgotten facts gone, or only out of reach? Counts the steps that bring them back.

    Prints a row for each checkpoint: the steps and examples that forgotten and never-learned facts need, the savings
    (the share of steps that forgotten facts save), and what a prompt with solved examples brings back without training.
    Forgotten are facts that stage 1 recalled, whose weights or evaluation.json are read where the run lies. For several
    checkpoints it adds a table of arms over their seeds, with the difference from naive. The checkpoints are not
    changed. If it is killed, the same command with `--out` goes on.

    Example: `python -m training relearn runs/naive/2-lama runs/remix/2-lama`
    """
    from training.relearn import asked_with, later_stage, relearn
    from training.relearn_arms import arm_table
    from training.relearn_files import (
        alone,
        files_of_tables,
        gone_on_with,
        measured_before,
        write_tables,
    )
    from training.show import print_relearned, relearned_line

    options: dict[str, Any] = {
        **{"fresh": fresh, "lr": lr, "batch": batch, "limit": limit, "shots": shots, "n": n, "seed": seed},
        "data_dir": data_dir,
    }
    with alone(out):
        # What would end a later measurement is said before the first, which may take an hour.
        stored = []
        if out is not None:
            from memprobe.sources import files_of

            read = files_of(fresh, data_dir) if fresh is not None else []
            table, arms = files_of_tables(out)
            refuse_same_file(
                [("--never-learned", file) for file in read],
                [("--out", table), ("the table of arms beside --out", arms)],
            )
            stored = measured_before(out, asked_with(**options))
        given, others = gone_on_with(stored, [later_stage(spec)[:2] for spec in checkpoints])
        for place, spec in enumerate(checkpoints):
            if (row := given[place]) is not None:
                _aside(f"{spec}: measured before, as {out} says")
            else:
                row = relearn(
                    spec, **options, device=device, say=lambda line, spec=spec: _aside(f"{spec}: {line}")
                )
            given[place] = row
            echo(relearned_line(row))
            if out is not None:  # after each: what is measured is kept
                write_tables([row for row in given if row is not None] + others, out)
        if others:
            _aside(f"{out}: also holds {len(others)} checkpoints that were measured before")
        relearned = [row for row in given if row is not None] + others
        if len(relearned) > 1:
            print_relearned(arm_table(relearned))


def _aside(line: str) -> None:
    echo(line, err=True)


def main() -> None:
    """The command ``python -m training``."""
    run_commands(app, "python -m training")


if __name__ == "__main__":
    main()
