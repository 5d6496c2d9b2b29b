"""Files that a reader never sees half written: atomic writes of text, JSON and Parquet, and JSON and TOML back in."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import platform
import re
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import polars as pl
import psutil

from memprobe.errors import MemprobeError, first_line, in_own_words
from memprobe.places import check_file, kind_at

if TYPE_CHECKING:
    from pydantic import BaseModel

    Read = TypeVar("Read", bound=BaseModel)

_STALE = 3600.0  # seconds after which a temporary file of another machine is nobody's


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends well: readers never see half.

    A link stays, and what it points at is replaced. What processes that were killed have left in the folder is removed.

    Raises:
        MemprobeError: the folder cannot be written, the disk is full, or ``path`` is a folder, a device or the like;
            it is left as it was.
    """
    temporary = None
    try:
        target = pointed_at(path)
        check_file(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target.parent)
        handle, name = tempfile.mkstemp(
            prefix=f".{target.name[:40]}.{_OURS}-{os.getpid()}-", dir=target.parent
        )
        os.close(handle)
        temporary = Path(name)
        temporary.chmod(0o644)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    except MemprobeError:
        raise
    except Exception as error:
        # polars and matplotlib tell of a full disk in exceptions of their own.
        if (cause := _disk_error(error)) is None and not isinstance(error, pl.exceptions.ComputeError):
            raise
        raise MemprobeError(f"{path}: cannot be written ({_reason(cause or error)})") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def pointed_at(path: Path) -> Path:
    """Where what is written under a path lies: a link stays, and its end is written.

    Raises:
        MemprobeError: the link leads back to itself.
    """
    try:
        target = path.resolve() if path.is_symlink() else path
    except RuntimeError:  # a circle, which later Pythons give back as it is
        target = path
    if target.is_symlink():
        raise MemprobeError(f"{path}: is a link that leads back to itself, so nothing can be written there")
    return target


def _disk_error(error: BaseException) -> OSError | None:
    """The error of the operating system that an exception is, or that of the disk that it came from."""
    if isinstance(error, OSError):
        return error
    before = error.__cause__ or error.__context__
    while before is not None:
        if isinstance(before, OSError) and before.errno in _DISK:
            return before
        before = before.__cause__ or before.__context__
    return None


_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}


def _namespace() -> str:
    """Eight digits for those who share our process ids."""
    try:
        space = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        space = ""
    return hashlib.sha256(f"{platform.node()} {space}".encode()).hexdigest()[:8]


_OURS = _namespace()
_TEMPORARY = re.compile(r"\..+\.([0-9a-f]{8})-(\d{1,9})-\w+")


def _sweep(folder: Path) -> None:
    """Removes temporary files whose process is gone; those of other machines when they are an hour old."""
    for file in folder.glob(".*.*-*-*"):
        match = _TEMPORARY.fullmatch(file.name)
        if match is None:
            continue
        with contextlib.suppress(OSError):  # another worker may be first
            ours = match[1] == _OURS
            gone = not psutil.pid_exists(int(match[2])) if ours else False
            if gone or time.time() - file.stat().st_mtime > _STALE:
                file.unlink()


def write_parquet(frame: pl.DataFrame | pl.LazyFrame, path: Path) -> None:
    """Writes a table atomically; a lazy one is streamed."""
    with replacing(path) as temporary:
        if isinstance(frame, pl.LazyFrame):
            frame.sink_parquet(temporary)
        else:
            frame.write_parquet(temporary)


ROW_GROUP = 2**17
"""Rows that are in memory at once where a table is written piece by piece."""


def write_rows(pieces: Iterable[pl.DataFrame], schema: pl.Schema, path: Path) -> None:
    """Writes a table atomically from pieces that come one by one; the same rows are the same bytes, however divided."""
    from pyarrow import parquet

    def arrow(frame: pl.DataFrame) -> Any:
        return frame.rechunk().to_arrow(compat_level=pl.CompatLevel.oldest()).combine_chunks()

    with replacing(path) as temporary:
        waiting = pl.DataFrame(schema=schema)
        with parquet.ParquetWriter(temporary, arrow(waiting).schema, compression="zstd") as writer:
            for piece in pieces:
                waiting = pl.concat([waiting, piece])
                while len(waiting) > ROW_GROUP:
                    writer.write_table(arrow(waiting[:ROW_GROUP]), row_group_size=ROW_GROUP)
                    waiting = waiting[ROW_GROUP:]
            writer.write_table(arrow(waiting), row_group_size=ROW_GROUP)


def write_text(text: str, path: Path) -> None:
    """Writes UTF-8 text atomically.

    Raises:
        MemprobeError: see :func:`replacing`; or the text holds half a character, as names that are not UTF-8 do.
    """
    data = _utf8(text, path)
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_together(texts: Mapping[str, str], folder: Path, *, mark: str, stale: Iterable[str] = ()) -> None:
    """Writes files that belong together: all of them, or none where the disk is full.

    Args:
        texts: by file name.
        mark: the file that says that the others are whole: it goes first and comes last, so that no reader takes a
            mixture of old and new for one.
        stale: names that go where ``texts`` lacks them.

    Raises:
        MemprobeError: see :func:`write_text`.
    """
    with contextlib.ExitStack() as stack:
        for name in sorted(texts, key=lambda name: name != mark):  # put in place in reverse: the mark last
            stack.enter_context(replacing(folder / name)).write_bytes(_utf8(texts[name], folder / name))
        for name in (mark, *(name for name in stale if name not in texts)):
            (folder / name).unlink(missing_ok=True)


def _utf8(text: str, path: Path) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise MemprobeError(
            f"{path}: cannot be written ({error.object[error.start]!a} is half a character; "
            "is a file or a label named in another encoding?)"
        ) from error


_NUMBER = r"(-|[+-]?\d+(\.\d+)?([eE][+-]?\d+)?)"
_NUMBERS = f"^{_NUMBER}( {_NUMBER})*$"


def csv_text(frame: pl.DataFrame) -> str:
    """A table as CSV that a spreadsheet does not run: texts that it would take for a formula begin with ``'``.

    Numbers in a row, and ``-`` for one that is missing, are no formula.
    """
    texts = pl.col(pl.String)
    formula = texts.str.contains(r"^[=+\-@\t\r]") & ~texts.str.contains(_NUMBERS)
    return frame.with_columns(pl.when(formula).then("'" + texts).otherwise(texts).name.keep()).write_csv()


def write_json(value: Any, path: Path) -> None:
    """Writes JSON atomically. NaN and infinity are refused: they are not JSON."""
    write_text(json_text(value), path)


def json_text(value: Any) -> str:
    """A value as the text of a JSON file."""
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def exists(text: str) -> bool:
    """Whether there is a file or folder of that name (``~`` is the home folder); what no file can be called is none."""
    try:
        return Path(text).expanduser().exists()
    except (OSError, ValueError, RuntimeError):
        return False


def read_json(path: Path, *, own: bool = True) -> Any:
    """Reads JSON.

    Args:
        own: whether the file is memprobe's: such hold no NaN, and no key twice. Others' may.

    Raises:
        MemprobeError: the file is missing or broken.
    """
    strict: dict[str, Any] = {"object_pairs_hook": _once_each, "parse_constant": _no_number} if own else {}
    try:
        value = json.loads(_text_of(path), **strict)
    except (OSError, ValueError, RecursionError) as error:
        raise MemprobeError(f"{path}: cannot be read as JSON ({_reason(error)})") from error
    _refuse_deep(value, path)
    return value


def read_toml(path: Path) -> dict[str, Any]:
    """Reads TOML.

    Raises:
        MemprobeError: the file is missing or broken.
    """
    try:
        value = tomllib.loads(_text_of(path))
    except FileNotFoundError as error:
        raise MemprobeError(f"{path}: no such file") from error
    except (OSError, ValueError, RecursionError) as error:
        raise MemprobeError(f"{path}: cannot be read as TOML ({_reason(error)})") from error
    _refuse_deep(value, path)
    return value


def _reason(error: Exception) -> str:
    """Of a file that is named already: the system's words alone, which else name it again behind a number."""
    return getattr(error, "strerror", None) or first_line(error)


def _text_of(path: Path) -> str:
    if path.exists() and not path.is_file():  # a device may have no end
        raise OSError(f"it is {kind_at(path)}")
    return path.read_text(encoding="utf-8")


DEEPEST = 100
"""Lists and tables in each other that a file may hold: whatever checks or writes them calls itself once for each."""


def _refuse_deep(value: Any, path: Path) -> None:
    inside = [value]
    for _ in range(DEEPEST):
        inside = [
            one
            for outer in inside
            if isinstance(outer, dict | list)
            for one in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(one, dict | list)
        ]
        if not inside:
            return
    raise MemprobeError(f"{path}: nested too deeply")


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    by_key = dict(pairs)
    if len(by_key) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} stands twice")
    return by_key


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no JSON")


def read_valid(path: Path, schema: type[BaseModel], *, own: bool = True) -> dict[str, Any]:
    """Reads JSON that must fit a schema; what is returned is as it stands in the file.

    Args:
        own: see :func:`read_json`.

    Raises:
        MemprobeError: the file is missing or broken, or does not fit; it names the key and what is wrong there.
    """
    value = read_json(path, own=own)
    check_valid(value, schema, path)
    return value


def check_valid(value: Any, schema: type[BaseModel], path: Path | str) -> None:
    """:func:`validated`, for what is read as it stands."""
    validated(schema, value, path)


def validated(schema: type[Read], value: Any, path: Path | str) -> Read:
    """What a file says, as a schema.

    Raises:
        MemprobeError: it does not fit; naming the file, the key and what is wrong there.
    """
    from pydantic import ValidationError

    try:
        return schema.model_validate(value)
    except RecursionError as error:
        raise MemprobeError(f"{path}: nested too deeply") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        reason = "missing" if first["type"] == "missing" else _problem(first)
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise MemprobeError(f"{path}: {key + ': ' if key else ''}{reason}{more}") from error


def _problem(problem: Mapping[str, Any]) -> str:
    text = in_own_words(problem["msg"])
    if not text.startswith("Input should be"):
        return text
    text = text.split(" or instance of ")[0]
    return f"{text.replace('Input should be', 'should be')}, and is {repr(problem['input'])[:60]}"


_quiet = threading.Lock()


@contextmanager
def _quiet_panics() -> Iterator[None]:
    """Keeps what Rust prints of a panic off the terminal: the exception that follows says it in one line.

    The file descriptor is the process's, so that one thread at a time borrows it; others go on as they are.
    """
    if not _quiet.acquire(blocking=False):
        yield
        return
    kept = None
    try:
        with contextlib.suppress(OSError):  # no standard error to be kept quiet
            sys.stderr.flush()
            kept = os.dup(2)
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 2)
            os.close(nowhere)
        yield
    finally:
        if kept is not None:
            os.dup2(kept, 2)
            os.close(kept)
        _quiet.release()


@contextmanager
def parquet_errors(path: Path) -> Iterator[None]:
    """Turns what polars says of a broken file into one line that names it.

    Raises:
        MemprobeError: so.
    """
    try:
        with _quiet_panics():
            yield
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError) as error:
        raise MemprobeError(f"{path}: cannot be read as Parquet ({first_line(error)})") from error


def check_pages(path: Path) -> None:
    """Reads a Parquet file of unknown origin once, a part at a time.

    A damaged page may name a size of hundreds of gigabytes. Arrow says so; polars sets the memory aside, and its
    process dies without a word.

    Raises:
        MemprobeError: the file cannot be read.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            for _ in file.iter_batches():
                pass
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise MemprobeError(f"{path}: cannot be read as Parquet ({first_line(error)})") from error


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex digits.

    Raises:
        MemprobeError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise MemprobeError(f"{path}: cannot be read ({error.strerror})") from error


def short_names(paths: Sequence[Path]) -> list[str]:
    """Each path's last parts, as few as tell it from the others."""
    parts = [path.resolve().parts for path in paths]
    names = []
    for mine in parts:
        length = 1
        while length < len(mine) and sum(other[-length:] == mine[-length:] for other in parts) > 1:
            length += 1
        names.append("/".join(mine[-length:]))
    return names
