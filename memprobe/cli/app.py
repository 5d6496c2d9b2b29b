"""The application that the commands add themselves to, and how a command ends.

The commands import from here, :mod:`memprobe.cli` imports the commands: one way only.
"""

from __future__ import annotations

import errno
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from memprobe.errors import Interrupted, MemprobeError, in_own_words


class Commands(TyperGroup):
    """Commands whose bad input is told in their own words: the core names parameters, a command line its options."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Finds a command; of one that is called otherwise here, the error names it."""
        instead = [name for name in _CALLED.get(args[0], ()) if name in self.commands]
        if instead and args[0] not in self.commands:
            ctx.fail(f"No such command {args[0]!r}; there is {' and '.join(instead)}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Runs a command; "`fixed_readout`" in an error becomes ``--fixed-readout``."""
        try:
            return super().invoke(ctx)
        except MemprobeError as error:
            error.args = (in_options(str(error), self.get_command(ctx, ctx.invoked_subcommand or "")),)
            raise
        except Exception as error:
            # The parser does not say of which command some options are that it cannot take apart.
            command = self.get_command(ctx, ctx.invoked_subcommand or "")
            if _of_usage(error) and command is not None and getattr(error, "ctx", None) is None:
                vars(error)["ctx"] = command.context_class(
                    command, info_name=ctx.invoked_subcommand, parent=ctx
                )
            raise


_CALLED = {
    "share": ("push", "pull"),
    "upload": ("push",),
    "download": ("pull",),
    "import-results": ("import",),
    "probe": ("layers",),
}
"""Commands by what somebody may call them who has read the code or another tool's manual."""


def in_options(text: str, command: Any) -> str:
    """A text of the core with each parameter, in back quotes, as the command's option."""
    options = {}
    for parameter in command.params if command is not None else ():
        named = [name for name in parameter.opts if name.startswith("--")]
        for name in (parameter.name, *(name.strip("-").replace("-", "_") for name in named)):
            options[name] = named[0] if named else (parameter.name or "").upper()
    return re.sub(r"`(\w+)`", lambda found: options.get(found[1], found[0]), text)


UNFORESEEN = 70
"""Exit code of an error that is no bad input, as in ``sysexits.h``."""


def application(name: str, text: str) -> typer.Typer:
    """An empty application whose bad input is told as memprobe tells it."""
    return typer.Typer(
        cls=Commands,
        name=name,
        help=text,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        rich_markup_mode="markdown",
    )


app = application("memprobe", "Where, depth by depth, does a checkpoint hold the facts it memorised?")


def _print_version(asked: bool) -> None:
    if asked:
        from memprobe import __version__

        typer.echo(f"memprobe {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: bool = typer.Option(
        False, "--version", help="Print the version.", is_eager=True, callback=_print_version
    ),
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),
) -> None:
    """Where, depth by depth, does a checkpoint hold the facts it memorised?"""


@contextmanager
def resumable(kept: object) -> Iterator[None]:
    """Ctrl-C (or SIGTERM) inside becomes one line that says where the finished part is.

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
    """Runs a command line; bad input becomes one line on standard error and an exit code that is not 0.

    So does what nobody foresaw, as a last resort: that line asks for a report. ``--debug`` shows the traceback of both.
    SIGTERM, by which schedulers end a job, ends it as Ctrl-C does, with exit code 143.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
    try:
        for text in sys.argv[1:]:
            if any("\ud800" <= character <= "\udfff" for character in text):
                raise MemprobeError(f"the argument {text[:60]!a} is not UTF-8; rename what it names")
        code = commands(prog_name=name, standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except (SystemExit, GeneratorExit):
        raise
    except MemprobeError as error:
        if "--debug" in sys.argv:
            raise
        word = "" if isinstance(error, Interrupted) else "error: "
        typer.echo(f"{name}: {word}{one_line(str(error))}", err=True)
        sys.exit(_TERMINATED if isinstance(error.__cause__, _Terminated) else error.exit_code)
    except KeyboardInterrupt as error:
        if "--debug" in sys.argv:
            raise
        typer.echo(f"{name}: interrupted", err=True)
        sys.exit(_TERMINATED if isinstance(error, _Terminated) else Interrupted.exit_code)
    except BaseException as error:  # also what Rust libraries raise: their panics are no Exceptions
        if _of_usage(error):
            _say_usage(name, error)
        if "--debug" in sys.argv:
            raise
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            typer.echo(
                f"{name}: error: no file can be named {one_line(str(error.filename))[:60]}… (too long)",
                err=True,
            )
            sys.exit(MemprobeError.exit_code)
        typer.echo(
            f"{name}: an error that memprobe does not foresee: {one_line(f'{type(error).__name__}: {error}')[:400]}; "
            "please report it with what the same command prints with --debug",
            err=True,
        )
        sys.exit(UNFORESEEN)


class _Terminated(KeyboardInterrupt):
    """SIGTERM, wherever Ctrl-C is waited for."""


_TERMINATED = 128 + signal.SIGTERM


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one ends it where it is
    raise _Terminated


def _of_usage(error: BaseException) -> bool:
    """Whether an exception is the option parser's; it brings a copy of click along, so that no class can be named."""
    return any(kind.__name__ == "ClickException" for kind in type(error).__mro__)


def _say_usage(name: str, error: Any) -> NoReturn:
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()  # the help that was asked for
        sys.exit(error.exit_code)
    context = getattr(error, "ctx", None)
    see = f"{context.command_path if context else name} --help"
    message = in_own_words(one_line(error.format_message())).rstrip(".")
    typer.echo(f"{name}: error: {message} (see {see})", err=True)
    sys.exit(MemprobeError.exit_code)


def one_line(text: str) -> str:
    """A text as a terminal may show it: on one line, its control characters and lone surrogates spelled out."""
    return "".join(
        character
        if character.isprintable() or character == " "
        else " "
        if character in "\n\r\t"
        else character.encode("unicode_escape").decode("ascii")
        for character in text
    )
