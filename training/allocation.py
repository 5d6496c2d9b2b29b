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

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # malloc.h
_USUAL = ((_MMAP_MAX, 65_536), (_MMAP_THRESHOLD, 32 << 20), (_TRIM_THRESHOLD, 64 << 20))
"""What a process comes to by itself that has freed large blocks: glibc's default, and what it raises thresholds to."""


def nothing() -> None:
    """What gives unused memory back where none is kept."""


@contextmanager
def freed_memory_kept() -> Iterator[Callable[[], None]]:
    """Inside, this process keeps what it frees, on the heap; afterwards it gives back what it does not hold.

    For steps on a CPU that take about the same blocks over and over. Blocks of ever other sizes leave gaps, and the
    heap grows: call what is yielded every few steps. What is computed stays the same.

    Yields:
        What gives back the pages that nothing lies on; where the C library is not glibc, it does nothing.
    """
    libc = _glibc()
    if libc is None:
        yield nothing
        return
    libc.mallopt(_TRIM_THRESHOLD, -1)  # never
    libc.mallopt(_MMAP_MAX, 0)

    def give_back() -> None:
        libc.malloc_trim(0)

    try:
        yield give_back
    finally:
        for name, value in _USUAL:
            libc.mallopt(name, value)
        give_back()


def _glibc() -> Any:
    """The C library, if it is glibc: others have no such settings, or a ``mallopt`` that does nothing."""
    try:
        libc = ctypes.CDLL(None)
        return libc if libc.gnu_get_libc_version and libc.mallopt and libc.malloc_trim else None
    except (OSError, AttributeError, TypeError):
        return None
