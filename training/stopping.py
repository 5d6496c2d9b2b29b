"""Being asked to stop: a worker that gets the signal saves its state after the step that it is at, and ends.

The flag belongs to the process, as signals do. A worker also stops when whoever started it is gone, so that a killed
command leaves no workers behind.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

from memprobe.errors import MemprobeError


class Stopped(MemprobeError):
    """Training ended because the process was asked to stop; its state is kept, and the same command goes on."""


_asked = False
_parent: int | None = None


def listen() -> None:
    """From now on SIGTERM, SIGINT and the end of the parent process ask this process to stop."""
    global _parent
    _parent = os.getppid()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, _ask)


def asked() -> bool:
    """Whether this process was asked to stop."""
    return _asked or (_parent is not None and os.getppid() != _parent)


def _ask(number: int, frame: FrameType | None) -> None:
    global _asked
    _asked = True
