"""The one exception that stands for bad input, and how it names what there is instead."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import AfterValidator

_MOST = 20
"""Names listed of what may be many."""


class MemprobeError(Exception):
    """Something a user can mend: the message is one line that says what is wrong, where, and how to mend it.

    The command line prints it without a traceback and exits with ``exit_code``.
    """

    exit_code = 2


class Interrupted(MemprobeError):
    """Ctrl-C in long work; the message says what was kept."""

    exit_code = 130


def among(given: object, choices: Iterable[object], *, before: str = "choose") -> str:
    """What there is instead of a name that is not: ``choose plain, tulu, chat; did you mean tulu?``

    Args:
        choices: memprobe's own, all of which are listed.
        before: how the list begins.
    """
    names = list(dict.fromkeys(map(str, choices)))
    return f"{before} {', '.join(names) or 'none'}" + _near(given, names)


def there_are(given: object, held: Iterable[object], *, before: str = "there are") -> str:
    """:func:`among`, of names that a file, a folder or a command line holds, of which the first 20 are listed."""
    names = list(dict.fromkeys(map(str, held)))
    more = len(names) - _MOST
    shown = [*names[:_MOST], f"{more} more"] if more > 0 else names
    return f"{before} {', '.join(shown) or 'none'}" + _near(given, names)


def is_near(given: object, names: Iterable[str]) -> bool:
    """Whether a name looks like one of these, misspelt."""
    return bool(_near(given, list(names)))


def _near(given: object, names: Collection[str]) -> str:
    folded = {name.casefold(): name for name in names}
    near = difflib.get_close_matches(str(given).casefold(), folded, 1)
    return f"; did you mean {folded[near[0]]}?" if near else ""


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
