"""One table of a probe as a Parquet file: marked when it is written, checked when it is opened.

The mark (rows, columns, bytes, SHA-256) stands in ``run.json``, so that a file that was cut, changed or put in
another's place is found before it is read. What the rows say is checked as well: every depth once, ranks within the
vocabulary, one row a key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from memprobe.errors import MemprobeError
from memprobe.files import parquet_errors, sha256_of
from memprobe.records import TABLES, UNITS
from memprobe.templates import LEAD

_ROUNDING = 1e-3  # nats by which fp32 may miss the bounds of a log-probability or an entropy


def scan_table(path: Path, table: str, added: Mapping[str, Any] | None = None) -> pl.LazyFrame:
    """A table whose columns are held against its schema before anything is read.

    Args:
        table: name in :data:`memprobe.records.TABLES`.
        added: what stands for columns that older files lack.

    Raises:
        MemprobeError: it is missing, torn, or of another schema.
    """
    if not path.is_file():
        raise MemprobeError(f"{path}: missing, so this probe directory is incomplete")
    with parquet_errors(path):
        actual = pl.read_parquet_schema(path)
    schema = TABLES[table]
    lacking = {name: value for name, value in (added or {}).items() if name in schema and name not in actual}
    for name, dtype in schema.items():
        if name not in lacking and actual.get(name) != dtype:
            raise MemprobeError(f"{path}: column {name!r} is {actual.get(name)}, not {dtype}")
    filled = [pl.lit(value, schema[name]).alias(name) for name, value in lacking.items()]
    return pl.scan_parquet(path).with_columns(filled).select(list(schema))


def mark_of(path: Path) -> dict[str, Any]:
    """What ``run.json`` keeps of a table: ``rows``, ``columns``, ``bytes`` and ``sha256``."""
    rows, columns = _shape(path)
    return {"rows": rows, "columns": columns, "bytes": path.stat().st_size, "sha256": sha256_of(path)}


def check_mark(path: Path, mark: Mapping[str, Any]) -> None:
    """Holds a table against its mark.

    Raises:
        MemprobeError: it is missing, or another one than was written.
    """
    if not path.is_file():
        raise MemprobeError(f"{path}: missing, so this probe directory is incomplete")
    size = path.stat().st_size
    if size != mark["bytes"]:
        raise MemprobeError(_changed(path, f"{size:,} bytes, not {mark['bytes']:,}"))
    if sha256_of(path) != mark["sha256"]:
        raise MemprobeError(_changed(path, "its checksum differs"))
    rows, columns = _shape(path)
    for name, actual in (("rows", rows), ("columns", columns)):
        if actual != mark[name]:
            raise MemprobeError(_changed(path, f"{actual:,} {name}, not {mark[name]:,}"))


def _shape(path: Path) -> tuple[int, int]:
    with parquet_errors(path):
        return pl.scan_parquet(path).select(pl.len()).collect().item(), len(pl.read_parquet_schema(path))


def _changed(path: Path, how: str) -> str:
    return f"{path}: changed since it was written ({how}); copy it again, or probe again"


def check_rows(
    rows: pl.LazyFrame,
    table: str,
    path: Path,
    *,
    last: Mapping[str, int],
    vocabulary: Mapping[str, int],
    lenses: Sequence[str],
    positions: Sequence[str],
) -> None:
    """Holds what a table says against what can be: every depth once, ranks in range, one row a key, nothing null.

    Args:
        last: by checkpoint, the depth of the model's own readout.
        vocabulary: by checkpoint, the number of logits.
        lenses, positions: that the probe has.

    Raises:
        MemprobeError: naming the file, the first row that cannot be, and why.
    """
    with parquet_errors(path):
        wrong = _wrong_outcomes(rows) if table == "outcomes" else None
        if table in UNITS:
            wrong = _wrong_units(rows, table, last, vocabulary, lenses, positions)
    if wrong is not None:
        raise MemprobeError(f"{path}: {wrong}; probe again")


def _wrong_units(
    rows: pl.LazyFrame,
    table: str,
    last: Mapping[str, int],
    vocabulary: Mapping[str, int],
    lenses: Sequence[str],
    positions: Sequence[str],
) -> str | None:
    """The first thing that is wrong with records or controls, in words."""
    keys = list(UNITS[table])
    measures = [name for name in ("log_prob", "entropy") if name in TABLES[table]]
    tokens = [name for name in ("token_id", "top1", "rank", "ties") if name in TABLES[table]]
    depth = pl.col("depth")
    units = rows.group_by(keys).agg(
        pl.len().alias("_rows"),
        depth.min().alias("_first"),
        depth.max().alias("_last"),
        _mark(depth).sum().alias("_depths"),
        pl.any_horizontal(pl.exclude(keys).is_null()).any().alias("_null"),
        *(pl.col(name).min().alias(f"_{name}_min") for name in tokens),
        *(pl.col(name).max().alias(f"_{name}_max") for name in tokens),
        *(pl.col(name).is_finite().all().alias(f"_{name}_finite") for name in measures),
        *(pl.col(name).max().alias(f"_{name}_max") for name in measures),
        *(pl.col(name).min().alias(f"_{name}_min") for name in measures),
    )
    limits = pl.LazyFrame(
        {
            "checkpoint": list(last),
            "_end": list(last.values()),
            "_vocabulary": [vocabulary[name] for name in last],
            "_every": [pl.select(_mark(pl.int_range(end + 1)).sum()).item() for end in last.values()],
        },
        schema={"checkpoint": pl.String, "_end": pl.Int64, "_vocabulary": pl.Int64, "_every": pl.UInt64},
    )
    units = units.join(limits, on="checkpoint", how="left")
    end, size = pl.col("_end"), pl.col("_vocabulary")
    # An intrusion may have no token to watch for beside the answer itself: both are -1 there.
    least = (
        pl.when(pl.col("control").str.starts_with("intrusion:")).then(-1).otherwise(0)
        if "control" in keys
        else 0
    )
    wrong = {
        "a value is missing": pl.col("_null") | pl.any_horizontal(pl.col(keys).is_null()),
        "no such checkpoint": end.is_null(),
        "a lens that run.json does not name": ~pl.col("lens").is_in(list(lenses)),
        "a position that run.json does not name": ~pl.col("position").is_in(list(positions)),
        f"an answer token below {LEAD}": pl.col("token") < LEAD,
        "not every depth once": (pl.col("_rows") != end + 1)
        | (pl.col("_depths") != pl.col("_every"))
        | (pl.col("_first") != 0)
        | (pl.col("_last") != end),
    }
    for name in tokens:
        below = least if name in ("rank", "token_id") else 0
        wrong[f"{name} out of range"] = (pl.col(f"_{name}_min") < below) | (pl.col(f"_{name}_max") >= size)
    for name in measures:
        wrong[f"{name} is not a finite number"] = ~pl.col(f"_{name}_finite")
    if measures:
        wrong["log_prob above 0"] = pl.col("_log_prob_max") > _ROUNDING
        wrong["entropy out of range"] = (pl.col("_entropy_min") < -_ROUNDING) | (
            pl.col("_entropy_max") > size.log() + _ROUNDING
        )
    return _first_wrong(units, keys, wrong)


def _mark(depth: pl.Expr) -> pl.Expr:
    """A number of 48 bits for each depth: as many depths have the sum of all only if each is there once.

    But for one case in 2^48; a sum needs no memory, where distinct depths took four GiB for 100,000 facts.
    """
    return depth.cast(pl.Int64).hash(seed=0) // 2**16


def _wrong_outcomes(rows: pl.LazyFrame) -> str | None:
    """The first thing that is wrong with outcomes, in words."""
    keys = ["checkpoint", "factoid"]
    units = rows.group_by(keys).agg(
        pl.len().alias("_rows"),
        (pl.col("error").is_null() & pl.col("exact_tokens").is_null()).any().alias("_open"),
    )
    wrong = {
        "a value is missing": pl.any_horizontal(pl.col(keys).is_null()) | pl.col("_open"),
        "stands twice": pl.col("_rows") > 1,
    }
    return _first_wrong(units, keys, wrong)


def _first_wrong(units: pl.LazyFrame, keys: Sequence[str], wrong: Mapping[str, pl.Expr]) -> str | None:
    why = pl.coalesce(
        *(pl.when(condition.fill_null(value=True)).then(pl.lit(text)) for text, condition in wrong.items())
    )
    wrong_units = units.select(*keys, _why=why).filter(pl.col("_why").is_not_null())
    wrong_units = wrong_units.collect(engine="streaming").sort(keys)
    if wrong_units.is_empty():
        return None
    row = wrong_units.row(0, named=True)
    named = ", ".join(f"{key} {row[key]!r}" for key in keys if key not in ("lens", "position"))
    return f"{named}: {row['_why']}"
