"""Whether something can be written at a path: asked before long work, and again when it is written."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from memprobe.errors import MemprobeError


def check_file(path: Path) -> None:
    """Refuses a path at which no file can be written.

    Raises:
        MemprobeError: it is a folder, a device or the like, or lies below a file or in a folder that is not to be
            written in.
    """
    if path.exists() and not path.is_file():
        raise MemprobeError(f"{path}: is {kind_at(path)}, not a file; nothing is written there")
    _check_above(path, path.parents)


def check_folder(path: Path) -> None:
    """Refuses a path at which no folder can be made.

    Raises:
        MemprobeError: it is a file, lies below one, or is not to be written in.
    """
    if path.exists() and not path.is_dir():
        raise MemprobeError(f"{path}: is {kind_at(path)}, not a folder; nothing is written there")
    _check_above(path, [path, *path.parents])


def _check_above(path: Path, folders: Iterable[Path]) -> None:
    above = next(folder for folder in folders if folder.exists())
    if not above.is_dir():
        raise MemprobeError(f"{path}: cannot be written ({above} is {kind_at(above)}, not a folder)")
    if not os.access(above, os.W_OK | os.X_OK):
        raise MemprobeError(f"{path}: cannot be written (no permission to write in {above})")


def kind_at(path: Path) -> str:
    """What is at a path, in words."""
    if path.is_dir():
        return "a folder"
    if path.is_file():
        return "a file"
    return "a device" if path.is_char_device() or path.is_block_device() else "no ordinary file"
