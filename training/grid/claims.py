"""Who may work where: one command in a grid's directory, and of its workers one at a stage.

A claim is a locked file: the system gives it up when its process ends, however it ends. On Ray there are none but the
command's own: its tasks are handed out by one process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from memprobe.errors import MemprobeError
from training.grid.cells import Node


class Taken(Exception):
    """Another process trains this stage or cell."""


@contextmanager
def _held(path: Path) -> Iterator[bool]:
    """Whether the block holds a lock file: it does until it ends, unless another process has it."""
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


@contextmanager
def only_command(out: Path) -> Iterator[None]:
    """Holds a grid's directory for one command.

    Raises:
        MemprobeError: another command is at this grid.
    """
    with _held(out / ".lock") as held:
        if not held:
            raise MemprobeError(
                f"{out}: another command is at this grid; wait for it, or give --out. --workers N trains N cells "
                "beside each other here, --engine ray on many machines"
            )
        yield


@contextmanager
def claim(out: Path, node: Node) -> Iterator[None]:
    """Holds a stage for this one of a command's workers.

    Raises:
        Taken: another worker holds it.
    """
    with _held(out / ".claims" / f"{node.name}.lock") as held:
        if not held:
            raise Taken
        yield


def base_alone(out: Path, setup: str) -> AbstractContextManager[bool]:
    """Whether this worker is the one that probes a set-up's base model; it is until the block ends."""
    return _held(out / ".claims" / setup / ".base.lock")
