"""The command line: ``memprobe layers | lens | check | compare | sources | filter``.

One module per command. Heavy imports (torch, transformers, plotly) wait inside the commands, so that
``memprobe --help`` answers at once.
"""

from __future__ import annotations

import sys

import typer

from memprobe.errors import MemprobeError

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
    from memprobe.cli import check, layers, lens  # noqa: F401


_register()


@app.callback()
def _common(
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),
) -> None:
    """Where, depth by depth, does a checkpoint hold the facts it memorised?"""


def main() -> None:
    """Runs the command line; bad input becomes one line on standard error and exit code 2."""
    try:
        app()
    except MemprobeError as error:
        if "--debug" in sys.argv:
            raise
        typer.echo(f"memprobe: error: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        if "--debug" in sys.argv:
            raise
        typer.echo("memprobe: interrupted; what is finished is kept, the same command goes on", err=True)
        sys.exit(130)
