"""Raw rows of JSONL, CSV and Parquet files, each with the place it came from.

Lines end at "\\n" only: U+2028 and its like are ordinary characters inside a field.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from memprobe.errors import MemprobeError

Columns = Mapping[str, Any]
OnBadRow = Literal["fail", "skip"]
ROW_FILES = (".jsonl", ".csv", ".parquet")


@dataclass(frozen=True, slots=True)
class Row:
    """One row: column -> value, and where it stands, such as ``facts.jsonl line 3``."""

    columns: Columns
    where: str


class BadRow(Exception):
    """What is wrong with a row; :meth:`BadRows.add` turns it into an error or a count."""


@dataclass
class BadRows:
    """What to do with rows that cannot be read: refuse the first, or leave them out and keep their names.

    Attributes:
        policy: ``fail`` raises at the first bad row, ``skip`` goes on.
        named: one line per row left out: file, line, and what is wrong.
    """

    policy: OnBadRow = "fail"
    named: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.policy not in get_args(OnBadRow):
            raise MemprobeError(f"--on-bad-row {self.policy!r}: give fail or skip")

    def add(self, where: str, problem: str) -> None:
        """Records a bad row.

        Raises:
            MemprobeError: under ``fail``, naming file and line.
        """
        if self.policy == "fail":
            raise MemprobeError(
                f"{where}: {problem} (mend the row, or leave such rows out with --on-bad-row skip)"
            )
        self.named.append(f"{where}: {problem}")


def read_rows(path: Path, bad: BadRows) -> Iterator[Row]:
    """Rows of a ``.jsonl``, ``.csv`` or ``.parquet`` file, in order.

    Raises:
        MemprobeError: no such file, another kind of file, a file that is not what its name says, or a row
            that is not UTF-8 or not JSON under the policy ``fail``.
    """
    readers = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}
    if path.suffix.lower() not in readers:
        raise MemprobeError(f"{path}: give a file that ends in {', '.join(readers)}")
    if not path.is_file():
        raise MemprobeError(f"{path}: no such file")
    return readers[path.suffix.lower()](path, bad)


def read_lines(path: Path, bad: BadRows) -> Iterator[tuple[str, str]]:
    """The non-empty lines of a UTF-8 text file, each as (text, place)."""
    try:
        with path.open("rb") as file:  # binary files end lines at \n alone
            for number, line in enumerate(file, 1):
                if text := _decode(line, f"{path} line {number}", bad):
                    yield text, f"{path} line {number}"
    except OSError as error:
        raise MemprobeError(f"{path}: cannot be read ({error.strerror})") from error


def _decode(line: bytes, where: str, bad: BadRows) -> str:
    try:
        return line.decode("utf-8").removeprefix("\ufeff").strip(" \t\r\n")
    except UnicodeDecodeError as error:
        bad.add(where, f"byte {error.start + 1} is not UTF-8")
        return ""


def _jsonl(path: Path, bad: BadRows) -> Iterator[Row]:
    for text, where in read_lines(path, bad):
        try:
            columns = json.loads(text)
        except ValueError as error:
            bad.add(where, f"not JSON ({error})")
            continue
        if isinstance(columns, dict):
            yield Row(columns, where)
        else:
            bad.add(where, f"a JSON {type(columns).__name__}, not an object")


def _csv(path: Path, bad: BadRows) -> Iterator[Row]:
    try:
        lines = path.read_bytes().decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    except OSError as error:
        raise MemprobeError(f"{path}: cannot be read ({error.strerror})") from error
    reader = csv.reader(io.StringIO(lines, newline=""), strict=True)
    try:
        header = next(reader, [])
        start = reader.line_num + 1
        for cells in reader:
            where, start = f"{path} line {start}", reader.line_num + 1
            if not cells:
                continue
            if any("\udc80" <= character <= "\udcff" for cell in cells for character in cell):
                bad.add(where, "a byte is not UTF-8")
            elif len(cells) != len(header):
                bad.add(where, f"{len(cells)} cells under {len(header)} column names")
            else:  # an empty cell is a missing value
                yield Row({name: cell for name, cell in zip(header, cells, strict=True) if cell != ""}, where)
    except csv.Error as error:
        raise MemprobeError(f"{path} line {reader.line_num}: not CSV ({error})") from error


def _parquet(path: Path, bad: BadRows) -> Iterator[Row]:
    import polars as pl

    try:
        frame = pl.read_parquet(path)
    except Exception as error:  # polars raises several kinds for a torn file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise MemprobeError(f"{path}: cannot be read as Parquet ({reason})") from error
    for number, columns in enumerate(frame.iter_rows(named=True), 1):
        yield Row(
            {name: value for name, value in columns.items() if value is not None}, f"{path} row {number}"
        )


def text_of(columns: Columns, *names: str) -> str:
    """The first of these columns that the row has, as text without outer white space.

    Raises:
        BadRow: none of them is there, or it is empty or no text.
    """
    for name in names:
        if columns.get(name) is None:
            continue
        value = columns[name]
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise BadRow(f"{name!r} is a {type(value).__name__}, not text")
        if isinstance(value, float) and value != value:
            raise BadRow(f"{name!r} is not a number")
        if not (text := str(value).strip()):
            raise BadRow(f"{name!r} is empty")
        return text
    raise BadRow(f"no {' or '.join(repr(name) for name in names)}")


def texts_of(columns: Columns, *names: str) -> list[str]:
    """The first of these columns that the row has, as a list of texts; a text that is a JSON list is read.

    Raises:
        BadRow: none of them is there, or one holds something other than text, or all are empty.
    """
    for name in names:
        if columns.get(name) is None:
            continue
        value = columns[name]
        if isinstance(value, str):
            value = _json_list(value)
        if not isinstance(value, list | tuple):
            value = [value]
        if not all(isinstance(text, str | int | float) and not isinstance(text, bool) for text in value):
            raise BadRow(f"{name!r} holds something other than text")
        if not (texts := [text for text in (str(text).strip() for text in value) if text]):
            raise BadRow(f"{name!r} is empty")
        return texts
    raise BadRow(f"no {' or '.join(repr(name) for name in names)}")


def _json_list(text: str) -> Any:
    if text.lstrip().startswith("["):
        try:
            return json.loads(text)
        except ValueError:
            pass
    return text
