"""Whether something can be written at a path: asked before long work, and again when it is written."""

from __future__ import annotations

from pathlib import Path

from memprobe.errors import MemprobeError


def check_file(path: Path) -> None:
    """Refuses a path at which no file can be written.

    Raises:
        MemprobeError: it is a folder, a device or the like, or lies below a file.
    """
    if path.exists() and not path.is_file():
        raise MemprobeError(f"{path}: is {kind_at(path)}, not a file; nothing is written there")
    _check_above(path)


def check_folder(path: Path) -> None:
    """Refuses a path at which no folder can be made.

    Raises:
        MemprobeError: it is a file, or lies below one.
    """
    if path.exists() and not path.is_dir():
        raise MemprobeError(f"{path}: is {kind_at(path)}, not a folder; nothing is written there")
    _check_above(path)


def _check_above(path: Path) -> None:
    for above in path.parents:
        if above.exists():
            if not above.is_dir():
                raise MemprobeError(f"{path}: cannot be written ({above} is {kind_at(above)}, not a folder)")
            return


def kind_at(path: Path) -> str:
    """What is at a path, in words."""
    if path.is_dir():
        return "a folder"
    if path.is_file():
        return "a file"
    return "a device" if path.is_char_device() or path.is_block_device() else "no ordinary file"
