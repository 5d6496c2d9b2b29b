"""What processes on several machines share: a folder that all reach, or the URL of a storage."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from memprobe.errors import MemprobeError, first_line
from memprobe.files import replacing

OFTEN = 30.0
"""Seconds between two looks at what is new on a node."""
_HALF = ".half"  # what the name of a file ends with that is being written


def stand_in(where: str) -> None:
    """Makes relative paths mean what they mean to the driver, where a node has its folder."""
    if Path(where).is_dir():
        os.chdir(where)


def absolute(storage: str) -> str:
    """A storage as processes with other working directories name it."""
    return storage if "://" in storage else str(Path(storage).resolve())


def storage_at(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it.

    Raises:
        MemprobeError: no such protocol, or what it needs is not installed.
    """
    from fsspec.core import url_to_fs

    try:
        files, root = url_to_fs(url)
    except (ValueError, ImportError, OSError) as error:
        raise MemprobeError(f"--storage {url}: {first_line(error)}") from error
    return files, root.rstrip("/")


class Mirror:
    """A folder here and its like in a storage: what is needed is brought, what is new or changed is taken there.

    Paths are relative to both. Links and lock files stay where they are. What goes wrong in the storage is raised as a
    MemprobeError that names it.

    Attributes:
        here: the folder.
        last: what goes after all others, the larger the later: what says that others are whole.
    """

    def __init__(self, url: str, here: Path, last: Callable[[str], int] = lambda _path: 0):
        """A mirror of what may not be there yet.

        Raises:
            MemprobeError: see :func:`storage_at`.
        """
        self.files, self.root = storage_at(url)
        self.url, self.here, self.last = url, here, last
        self._alike: dict[str, tuple[int, int]] = {}  # size and time of what is the same in both
        self._pushing = threading.Lock()

    def listed(self, under: str) -> list[str]:
        """Paths of all files in the storage below one of them, or that one alone."""
        found = []
        with self._reached(), suppress(FileNotFoundError):
            self.files.invalidate_cache()
            found = self.files.find(f"{self.root}/{under}")
        return [path.removeprefix(f"{self.root}/") for path in found if not path.endswith(_HALF)]

    def pull(self, under: str, wanted: Callable[[str], bool] = lambda _path: True) -> None:
        """Brings the files below a path, over what is here."""
        for path in sorted(filter(wanted, self.listed(under)), key=self._order):
            self.bring(path)

    def bring(self, path: str) -> None:
        """Brings one file that is in the storage, over what is here."""
        with replacing(self.here / path) as file, self._reached():
            self.files.get_file(f"{self.root}/{path}", str(file))
        self._alike[path] = _mark(self.here / path)

    def read(self, path: str) -> str | None:
        """What a small file in the storage says; ``None`` where there is none."""
        with self._reached(), suppress(FileNotFoundError):
            return self.files.cat_file(f"{self.root}/{path}").decode("utf-8", "replace")
        return None

    def write(self, text: str, path: str) -> None:
        """Writes a small file in the storage."""
        target = f"{self.root}/{path}"
        with self._reached():
            self.files.makedirs(target.rpartition("/")[0], exist_ok=True)
            self.files.pipe_file(target, text.encode())

    def push(self, under: str) -> None:
        """Takes the files below a path that are new or changed to the storage, and deletes there what is gone here."""
        with self._pushing:
            there = {path: _mark(self.here / path) for path in self._local(under)}
            for path in sorted(there, key=self._order):
                if self._alike.get(path) != there[path]:
                    with self._reached():
                        if self._put(path):
                            self._alike[path] = there[path]
            inside = (path for path in self._alike if path == under or path.startswith(f"{under}/"))
            self.delete([path for path in inside if path not in there])

    def delete(self, paths: list[str]) -> None:
        """Deletes files in the storage, what says that others are whole before those."""
        for path in sorted(paths, key=self._order, reverse=True):
            with self._reached(), suppress(FileNotFoundError):
                self.files.rm_file(f"{self.root}/{path}")
            self._alike.pop(path, None)

    @contextmanager
    def pushing(self, *under: str, seconds: float = OFTEN) -> Iterator[None]:
        """Pushes paths every so often meanwhile, so that another machine can go on, and at the end."""
        ended = threading.Event()

        def often() -> None:
            while not ended.wait(seconds):
                with suppress(Exception):  # a storage that is not reached for a moment; at the end it is said
                    for path in under:
                        self.push(path)

        thread = threading.Thread(target=often, name="to-storage", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            for path in under:
                self.push(path)

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """What goes wrong in a storage as one line: each kind has exceptions of its own."""
        try:
            yield
        except MemprobeError:
            raise
        except Exception as error:
            raise MemprobeError(f"--storage {self.url}: {first_line(error)}") from error

    def _order(self, path: str) -> tuple[int, str]:
        return self.last(path), path

    def _local(self, under: str) -> list[str]:
        """Regular files below a path here, without what links lead to."""
        top = self.here / under
        if top.is_file() and not top.is_symlink():
            return [under]
        found = []
        for folder, _, names in os.walk(top):
            paths = (Path(folder, name) for name in names if not name.endswith(".lock"))
            found += [path.relative_to(self.here).as_posix() for path in paths if not path.is_symlink()]
        return found

    def _put(self, path: str) -> bool:
        """One file, which readers never see half: object storages take it whole, others get it under another name.

        Returns:
            Whether it was there still.
        """
        target, whole = f"{self.root}/{path}", self.files.async_impl
        written = target if whole else f"{target}{_HALF}"
        self.files.makedirs(target.rpartition("/")[0], exist_ok=True)
        try:
            self.files.put_file(str(self.here / path), written)
        except FileNotFoundError:
            if (self.here / path).exists():  # it is the storage that is not there, such as a bucket
                raise
            return False
        if not whole:
            self.files.mv(written, target)
        return True


def _mark(path: Path) -> tuple[int, int]:
    """Tells a file that changed; zeros where it is gone."""
    try:
        about = path.stat()
    except FileNotFoundError:
        return 0, 0
    return about.st_size, about.st_mtime_ns
