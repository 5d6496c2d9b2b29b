"""Names before what they name, as in ``LABEL=SPEC``: where a name ends, and that none stands twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from memprobe.errors import MemprobeError

T = TypeVar("T")


def split_name(text: str, fits: Callable[[str, str], bool]) -> tuple[str | None, str]:
    """``NAME=THING`` as (name, thing), either of which may hold ``=`` itself; without one there is no name.

    Args:
        fits: whether a name and a thing can be those that are meant. The split is at the last ``=`` where they can,
            else at the first.
    """
    parts = text.split("=")
    if len(parts) == 1:
        return None, text
    splits = [("=".join(parts[:cut]), "=".join(parts[cut:])) for cut in range(len(parts) - 1, 0, -1)]
    name, thing = next((split for split in splits if fits(split[0], split[1].strip())), splits[-1])
    return name.strip(), thing.strip()


def split_outside(text: str, mark: str) -> list[str]:
    """The pieces of a text between the marks that stand outside brackets, as in ``replay(ratio=0.1):0``."""
    pieces, depth = [""], 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if character == mark and depth <= 0:
            pieces.append("")
        else:
            pieces[-1] += character
    return pieces


def named_once(option: str, named: Iterable[tuple[str, T]]) -> dict[str, T]:
    """What an option that may stand several times says, by name.

    Raises:
        MemprobeError: a name is given twice, so that one of the two would be lost.
    """
    by_name: dict[str, T] = {}
    for name, thing in named:
        if name in by_name:
            raise MemprobeError(f"{option} {name}=…: {name!r} is given twice; give each name once")
        by_name[name] = thing
    return by_name
