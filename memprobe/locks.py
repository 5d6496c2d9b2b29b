"""A folder, or a piece of work, for one process: a locked file, which the system gives up when its process ends."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from memprobe.errors import MemprobeError


@contextmanager
def held(path: Path) -> Iterator[bool]:
    """Whether the block holds a lock file: it does until it ends, unless another process has it."""
    from filelock import Timeout

    with ExitStack() as stack:
        try:
            stack.enter_context(_lock(path))
            mine = True
        except Timeout:
            mine = False
        yield mine


@contextmanager
def one_process(out: Path, doing: str, *, lock: str = ".lock") -> Iterator[bool]:
    """Holds a folder for one process; inside, the same thread may take it again. Where nothing came of it, it goes.

    Args:
        doing: what processes do there, for the message: ``probing``.
        lock: the lock file, below the folder.

    Yields:
        Whether this thread did not hold it before.

    Raises:
        MemprobeError: another process holds it, or it cannot be written.
    """
    from filelock import Timeout

    path = out / lock
    with ExitStack() as stack:
        try:
            first = stack.enter_context(_lock(path, again=True, empty=dict.fromkeys((path.parent, out))))
        except Timeout as error:
            raise MemprobeError(
                f"{out}: another process is {doing} here; wait for it, or give --out"
            ) from error
        except OSError as error:
            raise MemprobeError(f"{out}: cannot be written ({error.strerror})") from error
        yield first


@contextmanager
def _lock(path: Path, *, again: bool = False, empty: Iterable[Path] = ()) -> Iterator[bool]:
    """Takes a lock file, or raises filelock's Timeout.

    Args:
        again: the same thread may take it while it holds it.
        empty: folders that go at the end if they are empty.
    """
    from filelock import FileLock

    lock = FileLock(path, timeout=0, is_singleton=again)
    first = not lock.is_locked
    path.parent.mkdir(parents=True, exist_ok=True)
    lock.acquire()
    try:
        yield first
    finally:
        if first:
            # The file goes while it is held: whoever has opened it by then sees that it has no name and opens it anew.
            # After its release one process could take it under the old name and another under a new one.
            with suppress(OSError):  # Windows keeps a file that is open
                path.unlink()
                for folder in empty:
                    folder.rmdir()
        lock.release()
