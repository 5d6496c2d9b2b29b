"""Another process, as far as locks go: a lock is a thread's own."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager


@contextmanager
def elsewhere(holding: AbstractContextManager[object]) -> Iterator[None]:
    """Enters a lock in another thread, and leaves it there."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(holding.__enter__).result()
        try:
            yield
        finally:
            pool.submit(holding.__exit__, None, None, None).result()
