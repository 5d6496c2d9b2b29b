"""What ``--fresh`` replaces: old work stays until the new has something to show, and comes back where it has not.

    OUT/.NAME-moving    old files on their way aside, or back
    OUT/.NAME-before    all of them, at the places that they had

So an option that turns out to be wrong, Ctrl-C before the first result, or a kill loses nothing: whoever holds the
directory next settles what is left (:func:`settle`).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memprobe.errors import MemprobeError


@dataclass(frozen=True)
class Work:
    """One kind of work in a directory, whose files may lie there beside others.

    Attributes:
        name: part of the name of the folder where old work waits.
        there: whether a directory holds such work.
        files: what it wrote, and nothing else: files, and folders that are all its own.
        shows: whether something is finished that is worth more than what was there before.
    """

    name: str
    there: Callable[[Path], bool]
    files: Callable[[Path], list[Path]]
    shows: Callable[[Path], bool]

    def moving(self, out: Path) -> Path:
        """Where some of the old files are while they are moved."""
        return out / f".{self.name}-moving"

    def before(self, out: Path) -> Path:
        """Where all of them wait."""
        return out / f".{self.name}-before"

    def owns(self, name: str) -> bool:
        """Whether old work waits under a name in its directory."""
        return name in (f".{self.name}-moving", f".{self.name}-before")


class Before:
    """Old work that waits.

    Attributes:
        there: whether there was any.
    """

    def __init__(self, out: Path, work: Work, there: bool):
        self.there = self._waits = there
        self._out, self._work = out, work

    def settle(self) -> None:
        """Lets the old work go if the new shows something by now."""
        if self._waits and self._work.shows(self._out):
            self._waits = False
            settle(self._out, self._work)

    def watching(self, progress: Callable[..., None]) -> Callable[..., None]:
        """A function that is told of progress, and settles whenever it is."""

        def update(*news: Any) -> None:
            self.settle()
            progress(*news)

        return update


@contextmanager
def starting_over(out: Path, work: Work, *, fresh: bool) -> Iterator[Before]:
    """Sets the work in a directory aside while new work begins; whoever calls this holds the directory.

    Where the block ends with an exception before the new work shows anything, the old comes back as it was, and what
    the new has left goes. Else the old goes, at the end or where :meth:`Before.settle` is called.

    Args:
        fresh: whether to start over; if not, only what a killed process left is settled.

    Raises:
        MemprobeError: the files cannot be moved.
    """
    settle(out, work)
    there = fresh and work.there(out)
    try:
        if there:
            try:
                _set_aside(out, work)
            except OSError as error:
                raise MemprobeError(f"{out}: cannot be written ({error.strerror})") from error
        yield Before(out, work, there)
    except BaseException as error:
        if settle(out, work) and isinstance(error, MemprobeError):
            error.args = (f"{error}; {out} is as it was before --fresh",)
        raise
    shutil.rmtree(work.before(out), ignore_errors=True)


def settle(out: Path, work: Work) -> bool:
    """Decides between old work that waits, if any does, and new: the new where it shows something, else the old.

    Returns:
        Whether the old came back.
    """
    moving, before = work.moving(out), work.before(out)
    if before.is_dir():
        if work.shows(out):
            shutil.rmtree(before, ignore_errors=True)
        else:
            _delete(work.files(out), out)
            before.rename(moving)  # from here on there is no new work, whenever this is killed
    if not moving.is_dir():
        return False
    _put_back(moving, out)
    return True


def _set_aside(out: Path, work: Work) -> None:
    moving = work.moving(out)
    moving.mkdir()
    for file in work.files(out):
        place = moving / file.relative_to(out)
        place.parent.mkdir(parents=True, exist_ok=True)
        file.replace(place)
        _drop_empty(file.parent, out)
    moving.rename(work.before(out))


def _put_back(source: Path, target: Path) -> None:
    for one in source.iterdir():
        place = target / one.name
        if place.is_dir() and one.is_dir() and not one.is_symlink():
            _put_back(one, place)
        else:
            one.replace(place)
    source.rmdir()


def _delete(files: Iterable[Path], out: Path) -> None:
    for file in files:
        if file.is_dir() and not file.is_symlink():
            shutil.rmtree(file)
        else:
            file.unlink(missing_ok=True)
        _drop_empty(file.parent, out)


def _drop_empty(folder: Path, top: Path) -> None:
    """Removes a folder below another if nothing is left in it, and so those above it."""
    while folder != top and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent
