"""The one exception that stands for bad input, and how it names what there is instead."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import AfterValidator

_CHOICES = ("choose", "give")
_MOST = 20
"""Names listed of what a file or a folder holds, which may be many; of choices, which are memprobe's own, all are."""


class MemprobeError(Exception):
    """Something a user can mend: the message is one line that says what is wrong, where, and how to mend it.

    The command line prints it without a traceback and exits with ``exit_code``.
    """

    exit_code = 2


class Interrupted(MemprobeError):
    """Ctrl-C in long work; the message says what was kept."""

    exit_code = 130


def among(given: object, known: Iterable[object], *, before: str = "choose") -> str:
    """What there is instead of a name that is not: ``choose plain, tulu, chat; did you mean tulu?``

    Args:
        before: how the list begins: ``choose`` or ``give`` where the choice is closed.
    """
    names = list(dict.fromkeys(map(str, known)))
    many = len(names) > _MOST and before not in _CHOICES
    shown = [*names[:_MOST], f"{len(names) - _MOST} more"] if many else names
    text = f"{before} {', '.join(shown) or 'none'}"
    folded = {name.casefold(): name for name in names}
    near = difflib.get_close_matches(str(given).casefold(), folded, 1)
    return text + (f"; did you mean {folded[near[0]]}?" if near else "")


def one_of(names: Collection[str]) -> AfterValidator:
    """Of a schema's text: one of some names, as in ``kind: Annotated[str, one_of(KINDS)]``."""
    from pydantic import AfterValidator

    def check(name: str) -> str:
        if name not in names:
            raise ValueError(f"{name!r} is none of {', '.join(names)}")
        return name

    return AfterValidator(check)


def first_line(error: BaseException, *, at_most: int | None = None) -> str:
    """The first line of what an exception says, else its name; cut between words to ``at_most`` characters."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if at_most is None or len(line) <= at_most:
        return line
    words = textwrap.wrap(line, at_most - len(" …"), break_on_hyphens=False)  # breaks a word that is longer
    return f"{words[0]} …"


def in_own_words(message: object) -> str:
    """A message of pydantic's (typer reads options by it, too) without what it puts before a validator's own words."""
    return str(message).replace("Value error, ", "")
