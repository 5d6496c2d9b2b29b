"""Files that a reader never sees half written: atomic writes of text, JSON and Parquet, and JSON back in."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from memprobe.errors import MemprobeError

if TYPE_CHECKING:
    from pydantic import BaseModel

_STALE = 3600.0  # seconds after which a temporary file is nobody's


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends well: readers never see half.

    Raises:
        MemprobeError: the folder cannot be written or the disk is full; ``path`` is left as it was.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".{path.name}.*"):
            # An old one is left by a process that was killed; a young one may be another's, at work.
            if time.time() - left.stat().st_mtime > _STALE:
                left.unlink(missing_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        temporary.chmod(0o644)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, pl.exceptions.ComputeError) as error:  # polars tells of a full disk in the second way
        raise MemprobeError(f"{path}: cannot be written ({first_line(error)})") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_parquet(frame: pl.DataFrame | pl.LazyFrame, path: Path) -> None:
    """Writes a table atomically; a lazy one is streamed."""
    with replacing(path) as temporary:
        if isinstance(frame, pl.LazyFrame):
            frame.sink_parquet(temporary)
        else:
            frame.write_parquet(temporary)


def write_text(text: str, path: Path) -> None:
    """Writes UTF-8 text atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(value: Any, path: Path) -> None:
    """Writes JSON atomically. NaN and infinity are refused: they are not JSON."""
    write_text(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n", path)


def read_json(path: Path) -> Any:
    """Reads JSON.

    Raises:
        MemprobeError: the file is missing or broken.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise MemprobeError(f"{path}: cannot be read as JSON ({first_line(error)})") from error


def read_valid(path: Path, schema: type[BaseModel]) -> dict[str, Any]:
    """Reads JSON that must fit a schema; what is returned is as it stands in the file.

    Raises:
        MemprobeError: the file is missing or broken, or does not fit; it names the key and what is wrong there.
    """
    value = read_json(path)
    check_valid(value, schema, path)
    return value


def check_valid(value: Any, schema: type[BaseModel], path: Path) -> None:
    """Holds what a JSON file says against a schema.

    Raises:
        MemprobeError: naming the file, the key and what is wrong there.
    """
    from pydantic import ValidationError

    try:
        schema.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        said = first["msg"].removeprefix("Value error, ")
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise MemprobeError(f"{path}: {key + ': ' if key else ''}{said}{more}") from error


def first_line(error: BaseException) -> str:
    """The first line of what an exception says, else its name."""
    return (str(error).splitlines() or [type(error).__name__])[0]
