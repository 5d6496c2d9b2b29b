"""``python -m training run recipe.toml``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memprobe.cli import resumable
from memprobe.cli import run as run_commands

app = typer.Typer(
    name="training",
    help="Makes the checkpoints that memprobe probes.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="markdown",
)


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
    seed: Annotated[int | None, typer.Option(help="Instead of the recipe's own.", min=0)] = None,
    arm: Annotated[
        str | None,
        typer.Option(
            help="What is done against forgetting, instead of the recipe's own, e.g. replay(ratio=0.1)."
        ),
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="Checkpoint to start from instead of the recipe's own.")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder with the datasets' files.", envvar="MEMPROBE_DATA_DIR")
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
        run(chosen, folder, fresh=fresh, data_dir=data_dir)


def main() -> None:
    """The command ``python -m training``."""
    run_commands(app, "training")


if __name__ == "__main__":
    main()
