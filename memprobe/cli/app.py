"""The application that the commands add themselves to, and how a command ends.

The commands import from here, :mod:`memprobe.cli` imports the commands: one way only.
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
