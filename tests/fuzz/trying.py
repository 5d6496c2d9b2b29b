"""One input through the command line, in this process, and what is wrong with how it ended."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from memprobe.cli.app import UNFORESEEN
from tests.fuzz.inputs import KINDS, Input

NAMED = {"memprobe": "memprobe", "training": "python -m training"}
"""What a program calls itself where it says what is wrong."""


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        wrong: why this may not be; empty where all is well.
        code: its exit code.
        said: the end of what it said.
        input: what it was given.
    """

    wrong: str
    code: int
    said: str
    input: Input


def attempt(kind: str, number: int, seeds: Path, *, seed: int = 0, keep: Path | None = None) -> Ended:
    """Makes input ``number`` of a kind and runs its command.

    Args:
        keep: a folder that the input is left in.
    """
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        try:
            made = KINDS[kind][0](Random(f"{seed} {kind} {number}"), folder, seeds)
        except Exception:  # said as it is: a worker that dies of it looks like a command that does
            return Ended(
                "the input could not be made", -1, traceback.format_exc()[-2000:], Input("", [], what=kind)
            )
        code, out, err = run(made.program, made.arguments, folder)
        if keep is not None:
            shutil.copytree(folder, keep, symlinks=True, dirs_exist_ok=True)
        return Ended(_wrong(made, code, out, err), code, (out + err)[-2000:], made)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wrong(made: Input, code: int, out: str, err: str) -> str:
    said = [
        line
        for line in err.splitlines()
        if line.startswith((f"{NAMED[made.program]}: error:", f"{NAMED[made.program]}: inter"))
    ]
    if code == UNFORESEEN or "Traceback (most recent call last)" in err:
        return "traceback"
    if "panicked at" in err:
        return "noise"
    if code == 0 and made.changed:
        return "a changed table was taken"
    if code != 0 and len(said) != 1 and "Usage:" not in out + err:
        return "no line says why"
    if len(said) == 1 and any(ord(character) < 32 for character in said[0]):
        return "control characters on the terminal"
    return ""


def run(program: str, arguments: list[str], folder: Path) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of a command in a folder; Rust's own lines are among the latter."""
    import typer.main

    from memprobe.cli import main
    from training.__main__ import main as train

    if not hasattr(typer.main.get_command, "cache_info"):  # building the options takes as long as most inputs
        typer.main.get_command = functools.cache(typer.main.get_command)
    out, err = io.StringIO(), io.StringIO()
    before, argv = Path.cwd(), sys.argv
    os.chdir(folder)
    sys.argv = [program, *arguments]
    code = 0
    try:
        with _descriptor() as native, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                (main if program == "memprobe" else train)()
            except SystemExit as ended:
                code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
            except BaseException as error:
                code, text = UNFORESEEN, f"Traceback (most recent call last) {type(error).__name__}: {error}"
                err.write(text)
            native.seek(0)
            err.write(native.read().decode("utf-8", "replace"))
    finally:
        os.chdir(before)
        sys.argv = argv
    return code, out.getvalue(), err.getvalue()


@contextlib.contextmanager
def _descriptor() -> Iterator[io.BufferedRandom]:
    """What is written to the process's standard error past Python."""
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield file
        finally:
            os.dup2(kept, 2)
            os.close(kept)
