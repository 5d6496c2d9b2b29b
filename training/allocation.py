"""Memory that a training step frees stays with the process, for the next step to take.

glibc's ``malloc`` takes large blocks from the kernel one by one and gives each back when it is freed (``mallopt(3)``:
``M_MMAP_THRESHOLD``, at most 32 MiB by itself). A step frees and takes again what is as large as the weights, in
bfloat16 several times over: casts of weights and of their gradients. Each of its pages is cleared by the kernel anew
when it is first touched, which can take longer than the products that the step is made of.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # malloc.h
_USUAL = ((_MMAP_MAX, 65_536), (_MMAP_THRESHOLD, 32 << 20), (_TRIM_THRESHOLD, 64 << 20))
"""What a process comes to by itself that has freed large blocks: glibc's default, and what it raises thresholds to."""


_GROWTH = 1.2
"""Times what one step alone leaves on the heap, above which unused memory is given back."""
_SHORT = 0.1
"""Of the machine's memory: where less is left, what one process keeps unused may end it or another."""


def nothing() -> None:
    """What is called after a step where no memory is kept."""


class _Heap:
    """Gives back what gaps have taken.

    Blocks of ever other sizes, such as the logits of rows of other lengths, leave gaps that no later block fits into,
    and the heap grows step by step.
    """

    def __init__(self, libc: Any):
        self.libc = libc
        self.largest = 0
        self.fresh = True

    def after_step(self) -> None:
        """Gives back unused pages if the process holds more than steps need that find no gaps, or memory is short."""
        held, machine = psutil.Process().memory_info().rss, psutil.virtual_memory()
        grown = not self.fresh and held > _GROWTH * self.largest
        if self.fresh:
            self.largest, self.fresh = max(self.largest, held), False
        if grown or machine.available < _SHORT * machine.total:
            self.give_back()

    def give_back(self) -> None:
        """Unused pages go back to the kernel; the next step is one that finds no gaps."""
        self.libc.malloc_trim(0)
        self.fresh = True


@contextmanager
def freed_memory_kept() -> Iterator[Callable[[], None]]:
    """Inside, this process keeps what it frees, on the heap; afterwards it gives back what it does not hold.

    For steps on a CPU that take about the same blocks over and over. What is computed stays the same.

    Yields:
        To be called after each step: keeps the heap from growing beyond 1.2 times what the largest step takes that
        finds no gaps in it, and keeps nothing while a tenth of the machine's memory is not available. Where the C
        library is not glibc, it does nothing.
    """
    libc = _glibc()
    if libc is None:
        yield nothing
        return
    libc.mallopt(_TRIM_THRESHOLD, -1)  # never
    libc.mallopt(_MMAP_MAX, 0)
    heap = _Heap(libc)
    try:
        yield heap.after_step
    finally:
        for name, value in _USUAL:
            libc.mallopt(name, value)
        heap.give_back()


def _glibc() -> Any:
    """The C library, if it is glibc: others have no such settings, or a ``mallopt`` that does nothing."""
    try:
        libc = ctypes.CDLL(None)
        return libc if libc.gnu_get_libc_version and libc.mallopt and libc.malloc_trim else None
    except (OSError, AttributeError, TypeError):
        return None
