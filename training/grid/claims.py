"""Who may work where: one command in a grid's directory, and of its workers one at a stage.

A claim is a locked file: the system gives it up when its process ends, however it ends. On Ray there are none but the
command's own, on the machine where it runs: its tasks are handed out by one process, and what several stages would ask
of the base model is asked in tasks before them. A task holds the run and the probe that it writes, as whoever writes
there does, and waits for no other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from memprobe.errors import MemprobeError
from memprobe.locks import held
from training.grid.cells import Node


class Taken(Exception):
    """Another process trains this stage or cell."""


@contextmanager
def only_command(out: Path) -> Iterator[None]:
    """Holds a grid's directory for one command.

    Raises:
        MemprobeError: another command is at this grid.
    """
    with held(out / ".lock") as mine:
        if not mine:
            raise MemprobeError(
                f"{out}: another command is working on this grid; wait for it, or give another --out. --workers N "
                "trains N cells beside each other here, --engine ray on many machines"
            )
        yield


@contextmanager
def claim(out: Path, node: Node) -> Iterator[None]:
    """Holds a stage for this one of a command's workers.

    Raises:
        Taken: another worker holds it.
    """
    with held(out / ".claims" / f"{node.name}.lock") as mine:
        if not mine:
            raise Taken
        yield


def base_alone(out: Path, setup: str) -> AbstractContextManager[bool]:
    """Whether this worker is the one that probes a set-up's base model; it is until the block ends."""
    return held(out / ".claims" / setup / ".base.lock")
