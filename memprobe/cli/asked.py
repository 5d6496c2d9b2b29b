"""What commands make of what they are asked, before they work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from memprobe.errors import MemprobeError
from memprobe.places import check_file

if TYPE_CHECKING:
    from memprobe.checkpoints import Checkpoint
    from memprobe.cluster import Engine
    from memprobe.factoids import Factoid
    from memprobe.sources import Loaded
    from memprobe.sources.rows import OnBadRow


def factoids_of(
    name: str | None,
    checkpoints: list[Checkpoint],
    n: int | None,
    seed: int,
    data_dir: Path | None,
    on_bad_row: OnBadRow,
) -> Loaded:
    """The factoids that a command is asked about: those named, else what the checkpoints learned first, else ``known``.

    Raises:
        MemprobeError: they learned different ones, or the source has no such rows.
    """
    from memprobe.sources import load

    if name is None:
        manifests = [checkpoint.manifest for checkpoint in checkpoints if checkpoint.manifest]
        files = {str(manifest.stage_factoids()): manifest.data["stages"][0]["hash"] for manifest in manifests}
        if len(set(files.values())) > 1:
            raise MemprobeError(
                "the checkpoints were trained on different factoids in stage 1; give --factoids"
            )
        name = next(iter(files), "known")
    return load(name, "factoids", n=n, seed=seed, data_dir=data_dir, on_bad_row=on_bad_row)


def say_left_out(loaded: Loaded) -> None:
    """Says what a source held that is not among the rows: no rule takes a fact away without a word."""
    from memprobe.cli.terminal import echo

    for line in loaded.left_out():
        echo(f"left out {line}", err=True)


def other_factoids(name: str, seed: int, data_dir: Path | None, *, instead: str) -> list[Factoid]:
    """All factoids of a source beside those that a command asks; says what is left out.

    Args:
        instead: how the command is given a file of them: ``--factoids FILE``.

    Raises:
        MemprobeError: there is no such source, or it has a bad row.
    """
    from memprobe.sources import TooLarge, load

    try:
        loaded = load(name, "factoids", seed=seed, data_dir=data_dir)
    except TooLarge as error:
        raise error.where_all_is_read(instead) from error
    say_left_out(loaded)
    return loaded.factoids


def batch_size_of(text: str) -> int | Literal["auto"]:
    """``auto``, or a whole number.

    Raises:
        MemprobeError: it is neither.
    """
    if text == "auto":
        return "auto"
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text)):
        raise MemprobeError(f"--batch-size {text}: give auto, or a whole number of at least 1")
    return int(text)


def refuse_given(options: Mapping[str, object], why: str) -> None:
    """Refuses options that nothing would come of.

    Args:
        options: values by name; ``None``, or an empty list, where the option was not given, and ``True`` for a flag.
        why: what they belong to.

    Raises:
        MemprobeError: one was given.
    """
    for name, value in options.items():
        if value is True:
            raise MemprobeError(f"{name}: {why}")
        if value not in (None, []):
            given = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
            raise MemprobeError(f"{name} {given}: {why}")


def options_given(context: typer.Context, *names: str) -> dict[str, object]:
    """The options that stand on the command line, as :func:`refuse_given` takes them.

    A default is none of them, whatever its value, and neither is a value from the environment.

    Args:
        names: of parameters, of which others are left out; none for all.
    """
    found: dict[str, object] = {}
    for one in context.command.params:
        source = context.get_parameter_source(one.name or "")
        written = source is not None and source.name == "COMMANDLINE" and one.param_type_name == "option"
        if written and (not names or one.name in names):
            found[one.opts[0]] = context.params[one.name or ""]
    return found


def refuse_same_file(reads: Iterable[tuple[str, Path]], writes: Iterable[tuple[str, Path]]) -> None:
    """Refuses to write over what the same command reads, or to write two things into one file.

    Args:
        reads: (what it is given by, file) of everything that is read.
        writes: the same of everything that is written.

    Raises:
        MemprobeError: a file is named twice, by whatever path.
    """
    known = list(reads)
    for option, file in writes:
        for other, there in known:
            if _same_file(there, file):
                raise MemprobeError(f"{other} and {option} are both {file}; give two files")
        known.append((option, file))


def check_page(out: Path, option: str = "--out") -> None:
    """Checks that a page may be written to a file, before there is any work to lose.

    Raises:
        MemprobeError: it is a directory, or lies in a file; it is not named as a page, or what lies there is none.
    """
    if out.is_dir():
        raise MemprobeError(f"{option} {out}: a directory; name the file")
    try:
        check_file(out)
    except MemprobeError as error:
        raise MemprobeError(f"{option} {error}") from error
    if out.suffix.lower() not in (".html", ".htm"):
        raise MemprobeError(f"{option} {out}: a page is written; give a name that ends in .html")
    if out.exists():
        with out.open("rb") as file:
            start = file.read(64)
        if start.strip() and not start.lstrip().lower().startswith((b"<!doctype html", b"<html")):
            raise MemprobeError(f"{option} {out}: holds something else than a page; give another name")


def refuse_other_text(text: str, out: Path, what: str) -> None:
    """Refuses to write a text over another one.

    Args:
        what: is written, in the plural.

    Raises:
        MemprobeError: the file is there and is not empty, and holds something else.
    """
    if out.is_file() and (held := out.read_bytes()) and held != text.encode("utf-8"):
        raise MemprobeError(
            f"--out {out}: holds other {what}; give another name, or --fresh to write over it"
        )


def _same_file(one: Path, other: Path) -> bool:
    if one.exists() and other.exists():
        return one.samefile(other)
    return one.resolve() == other.resolve()


def engine_of(text: str | None, resources: str | None, storage: str | None) -> Engine | None:
    """The cluster that ``--engine`` names.

    Raises:
        MemprobeError: no such engine, or what is said of one without naming it.
    """
    if text is None:
        refuse_given(
            {"--resources": resources, "--storage": storage},
            "works on a cluster alone; give --engine ray with it",
        )
        return None
    from memprobe.cli.terminal import echo
    from memprobe.cluster import parse_engine

    return replace(parse_engine(text, resources, storage), say=partial(echo, err=True))


def slug(label: str) -> str:
    """A label as part of a file name."""
    return "".join(char if char.isalnum() or char in "._" else "-" for char in label)


def status(text: str) -> Any:
    """Says on the terminal what goes on, while it goes on."""
    from memprobe.cli.terminal import terminal

    return terminal(stderr=True).status(text)
