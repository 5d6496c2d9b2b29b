"""Raw rows of JSONL, JSON, CSV and Parquet files, each with the place it came from.

Lines end at "\\n" only: U+2028 and its like are ordinary characters inside a field. What could be read in two ways is
refused rather than guessed: a key or a column given twice, a last line without its end, another separator or encoding.
"""

from __future__ import annotations

import ast
import csv
import difflib
import io
import json
import math
import re
import tokenize
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from memprobe.errors import MemprobeError, first_line
from memprobe.files import check_pages, parquet_errors

Columns = Mapping[str, Any]
OnBadRow = Literal["fail", "skip"]
ROW_FILES = (".jsonl", ".json", ".csv", ".parquet")
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}
_NO_NUMBERS = ("nan", "NaN", "inf", "-inf", "+inf")
"""What programs write into a CSV for numbers that are none; as words they are written otherwise."""
_SHOWN = 8  # columns that an error lists
_EXACT = 2**53  # whole numbers beyond this are not exact in a float


@dataclass(frozen=True, slots=True)
class Row:
    """One row: column -> value, and where it stands, such as ``facts.jsonl line 3``.

    Attributes:
        cells: whether all values are texts, as in a CSV, so that a list can only be written as one.
    """

    columns: Columns
    where: str
    cells: bool = False


class BadRow(Exception):
    """What is wrong with a row; :meth:`BadRows.add` turns it into an error or a count."""


class NoColumn(BadRow):
    """A row has none of the columns that a field is taken from.

    Attributes:
        names: of those columns; ``wanted`` as a text.
        there: the columns that it has, as a text.
        near: one of them that is written like one of ``names``, with that; ``None`` where there is none.
    """

    def __init__(self, names: Sequence[str], columns: Columns):
        shown = [repr(str(name)[:40]) for name in columns]
        more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
        self.names = tuple(names)
        self.wanted = " or ".join(repr(name) for name in names)
        self.there = f"{', '.join(shown[:_SHOWN]) or 'nothing'}{more}"
        self.near = near(names, columns)
        super().__init__(f"no {self.wanted}; the row has {self.there}")


def near(names: Sequence[str], columns: Iterable[str], likeness: float = 0.75) -> tuple[str, str] | None:
    """The first column that is written like one of ``names``, with that.

    Args:
        likeness: :meth:`difflib.SequenceMatcher.ratio` from which on it is, whatever the case.
    """
    for given in columns:
        if match := difflib.get_close_matches(str(given).strip().casefold(), names, 1, likeness):
            return str(given)[:40], match[0]
    return None


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
                f"{where}: {problem} (mend the row; memprobe layers, filter, patch and sources leave such rows out "
                "with --on-bad-row skip)"
            )
        self.named.append(f"{where}: {problem}")


def read_rows(path: Path, bad: BadRows, *, jsonl: bool = False) -> Iterator[Row]:
    """Rows of a ``.jsonl``, ``.json``, ``.csv`` or ``.parquet`` file, in order.

    Args:
        jsonl: a file of another name is read as JSONL.

    Raises:
        MemprobeError: no such file, another kind of file, a file that is not what its name says, or a row
            that is not UTF-8 or not JSON under the policy ``fail``.
    """
    readers = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}
    kind = path.suffix.lower()
    if kind not in readers and not jsonl:
        raise MemprobeError(f"{path}: give a file that ends in {', '.join(readers)}")
    if not path.is_file():
        raise MemprobeError(f"{path}: no such file")
    return readers.get(kind, _jsonl)(path, bad)


def read_lines(path: Path, bad: BadRows) -> Iterator[tuple[str, str]]:
    """The non-empty lines of a UTF-8 text file, each as (text, place).

    Raises:
        MemprobeError: it cannot be read, is UTF-16, or a line is not UTF-8 under the policy ``fail``.
    """
    try:
        with path.open("rb") as file:  # binary files end lines at \n alone
            for number, line in enumerate(file, 1):
                if number == 1:
                    _refuse_utf16(path, line)
                if text := _decode(line, f"{path} line {number}", bad):
                    yield text, f"{path} line {number}"
    except OSError as error:
        raise MemprobeError(f"{path}: cannot be read ({error.strerror})") from error


def _refuse_utf16(path: Path, start: bytes) -> None:
    if start.startswith(_UTF16) or start[1:2] == b"\0":
        raise MemprobeError(f"{path}: is written in UTF-16; save it as UTF-8")


def _decode(line: bytes, where: str, bad: BadRows) -> str:
    try:
        return line.decode("utf-8").removeprefix("\ufeff").strip(" \t\r\n")
    except UnicodeDecodeError as error:
        bad.add(where, f"byte {error.start + 1} is not UTF-8")
        return ""


def _jsonl(path: Path, bad: BadRows) -> Iterator[Row]:
    for text, where in read_lines(path, bad):
        try:
            columns = json.loads(text, object_pairs_hook=_once_each)
        except BadRow as problem:
            bad.add(where, str(problem))
        except (ValueError, RecursionError) as error:
            if where.endswith(" line 1") and _is_json(path):
                raise MemprobeError(
                    f"{path}: is one JSON value over several lines, not a row a line; name it {path.stem}.json"
                ) from error
            bad.add(where, f"not JSON ({first_line(error)})")
        else:
            if isinstance(columns, dict):
                yield Row(columns, where)
            else:
                bad.add(where, f"a JSON {type(columns).__name__}, not an object")


def _is_json(path: Path) -> bool:
    """Whether a file as a whole is a JSON list or object."""
    with suppress(OSError, ValueError, RecursionError):
        return isinstance(json.loads(path.read_bytes()), dict | list)
    return False


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; the same key twice is refused, for nothing says which of its values is meant."""
    by_key = dict(pairs)
    if len(by_key) < len(pairs):
        raise BadRow(f"{_twice([key for key, _ in pairs])!r} is given twice")
    return by_key


def _twice(names: Sequence[str]) -> str | None:
    return next((name for place, name in enumerate(names) if name in names[:place]), None)


def _json(path: Path, bad: BadRows) -> Iterator[Row]:
    """A list of rows; of another JSON file its one row, which is for the reader to unfold."""
    try:
        whole = json.loads(path.read_bytes(), object_pairs_hook=_once_each)
    except OSError as error:
        raise MemprobeError(f"{path}: cannot be read ({error.strerror})") from error
    except (BadRow, ValueError, RecursionError) as error:
        raise MemprobeError(f"{path}: not JSON ({first_line(error)}); one row a line is JSONL") from error
    for number, columns in enumerate(whole if isinstance(whole, list) else [whole], 1):
        where = f"{path} row {number}"
        if isinstance(columns, dict):
            yield Row(columns, where)
        else:
            bad.add(where, f"a JSON {type(columns).__name__}, not an object")


def _csv(path: Path, bad: BadRows) -> Iterator[Row]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise MemprobeError(f"{path}: cannot be read ({error.strerror})") from error
    _refuse_utf16(path, content[:2])
    lines = content.decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    # Where a quoted cell is not closed, the reader says so; a bare one may have been cut anywhere.
    cut = bool(lines) and lines[-1] not in '\n\r"'
    reader = csv.reader(io.StringIO(lines, newline=""), strict=True)
    try:
        header = next(reader, [])
        _check_header(path, header)
        start = reader.line_num + 1
        for cells in reader:
            where, start = f"{path} line {start}", reader.line_num + 1
            if not cells:
                continue
            if any("\udc80" <= character <= "\udcff" for cell in cells for character in cell):
                bad.add(where, "a byte is not UTF-8")
            elif len(cells) != len(header):
                bad.add(where, f"{len(cells)} cells under {len(header)} column names")
            elif cut and start > lines.count("\n") + 1:
                bad.add(
                    where,
                    "the last line has no end, so the file may be cut; end it with a new line if it is whole",
                )
            elif wrong := next((cell for cell in cells if cell.strip() in _NO_NUMBERS), None):
                bad.add(where, f"a cell is {wrong.strip()!r}, which is no number; leave it empty")
            else:  # an empty cell is a missing value
                named = zip(header, cells, strict=True)
                yield Row({name: cell for name, cell in named if cell != ""}, where, cells=True)
    except csv.Error as error:
        raise MemprobeError(f"{path} line {reader.line_num}: not CSV ({error})") from error


def _check_header(path: Path, header: Sequence[str]) -> None:
    if len(header) == 1:
        for separator, called in _SEPARATORS.items():
            if separator in header[0] or header[0].lower().strip() == f"sep={separator}":
                raise MemprobeError(f"{path}: its cells are separated by {called}; save it with commas")
    if (doubled := _twice([name for name in header if name])) is not None:
        raise MemprobeError(f"{path}: has two columns {doubled!r}; keep one of them")


def _parquet(path: Path, bad: BadRows) -> Iterator[Row]:
    import polars as pl

    del bad  # a table that can be opened has no rows that cannot be read

    check_pages(path)
    with parquet_errors(path):
        frame = pl.read_parquet(path)
        # 0.1 in 32 bits is 0.1, not its 17 digits in 64.
        short = [name for name, dtype in frame.schema.items() if dtype == pl.Float32]
        frame = frame.with_columns(pl.col(short).cast(pl.String).cast(pl.Float64))
    for number, columns in enumerate(frame.iter_rows(named=True), 1):
        yield Row(
            {name: value for name, value in columns.items() if value is not None},
            f"{path} row {number}",
        )


def text_of(columns: Columns, *names: str) -> str:
    """The first of these columns that the row has, as text without outer white space.

    Raises:
        BadRow: it is empty or no text; :class:`NoColumn`, none of them is there.
    """
    name, value = _first_of(columns, names)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise BadRow(f"{name!r} is a {type(value).__name__}, not text")
    if not (text := _as_text(name, value)):
        raise BadRow(f"{name!r} is empty")
    return text


def texts_of(columns: Columns, *names: str) -> list[str]:
    """The first of these columns that the row has, as a list of texts; a text that is a list is read.

    Lists in a text are JSON, or Python's own as pandas writes them.

    Raises:
        BadRow: one holds something other than text, or all are empty; :class:`NoColumn`, none of them is there.
    """
    name, value = _first_of(columns, names)
    if isinstance(value, str):
        value = _list_in(name, value)
    if not isinstance(value, list | tuple):
        value = [value]
    if not all(isinstance(text, str | int | float) and not isinstance(text, bool) for text in value):
        raise BadRow(f"{name!r} holds something other than text")
    if not (texts := [text for text in (_as_text(name, one) for one in value) if text]):
        raise BadRow(f"{name!r} is empty")
    return texts


def _first_of(columns: Columns, names: Sequence[str]) -> tuple[str, Any]:
    for name in names:
        if columns.get(name) is not None:
            return name, columns[name]
    raise NoColumn(names, columns)


def _as_text(name: str, value: str | float) -> str:
    """Whole numbers without a point: programs store a column of integers with a gap as one of floats."""
    if isinstance(value, float) and not math.isfinite(value):
        raise BadRow(f"{name!r} is {value}, not a number")
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        value = int(value)
    return str(value).strip()


def _list_in(name: str, text: str) -> Any:
    """What a text that may be a list says: the list, or the text itself where it is none.

    Raises:
        BadRow: it begins as a list of quoted texts and is none, has no commas between them (as numpy prints a list),
            or is a dictionary.
    """
    stripped = text.strip()
    if stripped.startswith("array([") and (end := stripped.rfind("]")) > 0:
        stripped = stripped[len("array(") : end + 1]
    if stripped[:1] not in ("[", "(", "{"):
        return text
    try:
        read = json.loads(stripped)
    except (ValueError, RecursionError):
        read = _python(name, stripped)
    if isinstance(read, dict):
        raise BadRow(f"{name!r} is a dictionary; write the texts in it as a list")
    if isinstance(read, tuple) and not all(isinstance(one, str) for one in read):
        return text  # (1, 2) is a text that somebody wrote
    return text if read is None or not isinstance(read, list | tuple) else list(read)


def _python(name: str, text: str) -> Any:
    """A list, tuple or dictionary as Python writes it, a set in the order in which it stands; ``None`` for others."""
    try:
        written = ast.parse(text, mode="eval").body
        read = (
            tuple(map(ast.literal_eval, written.elts))
            if isinstance(written, ast.Set)
            else ast.literal_eval(written)
        )
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        strings = sum(token.type == tokenize.STRING for token in tokens)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError, tokenize.TokenError) as error:
        if re.match(r"\[\s*['\"]", text):  # and not [unknown], say
            raise BadRow(
                f'{name!r} begins as a list and is none; write it as JSON, ["one", "another"]'
            ) from error
        return None
    if isinstance(read, list | tuple) and strings > sum(isinstance(one, str) for one in read):
        raise BadRow(f'{name!r} is a list without commas; write it as JSON, such as ["one", "another"]')
    return read
