"""Who may work where: one command in a grid's directory, and of its workers one at a stage.

A claim is a locked file: the system gives it up when its process ends, however it ends. On Ray there are none but the
command's own: its tasks are handed out by one process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from memprobe.errors import MemprobeError
from training.grid.cells import Node


class Taken(Exception):
    """Another process trains this stage or cell."""


@contextmanager
def only_command(out: Path) -> Iterator[None]:
    """Holds a grid's directory for one command; the system gives it up when the process ends, however it ends.

    Raises:
        MemprobeError: another command is at this grid.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(out / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise MemprobeError(
            f"{out}: another command is at this grid; wait for it, or give --out. --workers N trains N cells "
            "beside each other here, --engine ray on many machines"
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def claim(out: Path, node: Node) -> Iterator[None]:
    """Holds a stage for this one of a command's workers; the system gives it up when the process ends.

    Raises:
        Taken: another worker holds it.
    """
    from filelock import FileLock, Timeout

    path = out / ".claims" / f"{node.name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise Taken from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def base_alone(out: Path, setup: str) -> Iterator[bool]:
    """Whether this worker is the one that probes a set-up's base model; it is until the block ends."""
    from filelock import FileLock, Timeout

    path = out / ".claims" / setup / ".base.lock"
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
