"""The command line: ``memprobe layers | lens | check | compare | figures | sources | filter``.

One module per command. Heavy imports (torch, transformers, plotly) wait inside the commands, so that
``memprobe --help`` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from memprobe.errors import Interrupted, MemprobeError

app = typer.Typer(
    name="memprobe",
    help="Where, depth by depth, does a checkpoint hold the facts it memorised?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="markdown",
)


def _register() -> None:
    """Imports the command modules, each of which adds its command to :data:`app`."""
    from memprobe.cli import check, compare, dashboard, figures, filter, layers, lens, sources  # noqa: F401


@app.callback()
def _common(
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),
) -> None:
    """Where, depth by depth, does a checkpoint hold the facts it memorised?"""


@contextmanager
def resumable(kept: object) -> Iterator[None]:
    """Ctrl-C inside becomes one line that says where the finished part is.

    Raises:
        Interrupted: on Ctrl-C.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        raise Interrupted(
            f"interrupted; what is finished is kept in {kept}, the same command goes on"
        ) from error


def run(commands: typer.Typer, name: str) -> None:
    """Runs a command line; bad input becomes one line on standard error and an exit code that is not 0."""
    try:
        commands()
    except MemprobeError as error:
        if "--debug" in sys.argv:
            raise
        word = "" if isinstance(error, Interrupted) else "error: "
        typer.echo(f"{name}: {word}{error}", err=True)
        sys.exit(error.exit_code)


def main() -> None:
    """The command ``memprobe``."""
    run(app, "memprobe")


_register()  # last: the commands import from here
