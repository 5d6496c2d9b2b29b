"""What vouches for the tables of a probe of schema 1, which was written without checksums.

    first opening:  content in range ─> facts as run.json, recalls and shares as summary.json say ─> checksums.json
    every other:    tables ─> checksums.json

A value that was changed before the first opening, and that moves neither a recall nor a share, cannot be noticed: a
note says so once. Bringing the probe to the present schema (``memprobe layers`` into the same directory) marks each
table in ``run.json`` instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import BaseModel, ConfigDict

from memprobe.errors import MemprobeError
from memprobe.factoids import factoids_hash
from memprobe.files import read_valid, write_json
from memprobe.parquet import mark_of, parquet_errors
from memprobe.records import factoids_from_frame
from memprobe.run_file import TableMark, read_summary

CHECKSUMS = "checksums.json"
_CLOSE = 1e-9  # between two means of the same zeros and ones
_MEND = "; copy the probe again, or probe again"
_RULES = {
    "first": pl.col("rank").filter(pl.col("token") == 0).first(),
    "last": pl.col("rank").filter(pl.col("token") == pl.col("token").max()).first(),
    "all": pl.col("rank").max(),
}
"""The rank that a token rule holds against k, of one factoid at one depth."""


class ChecksumsFile(BaseModel):
    """``checksums.json``: of each table as it was first opened."""

    model_config = ConfigDict(extra="forbid", strict=True)

    records: TableMark
    controls: TableMark
    outcomes: TableMark
    factoids: TableMark


def kept_marks(folder: Path) -> dict[str, dict[str, Any]] | None:
    """The marks of tables by name, where they were opened before.

    Raises:
        MemprobeError: the file is broken.
    """
    file = folder / CHECKSUMS
    return read_valid(file, ChecksumsFile) if file.exists() else None


def vouch(
    folder: Path, run: Mapping[str, Any], tables: Mapping[str, pl.LazyFrame], facts: pl.DataFrame
) -> str:
    """Holds tables against ``run.json`` and ``summary.json`` and keeps their marks; what a reader must know of it.

    Args:
        run: of a probe whose checkpoints are all finished.
        tables: records, controls and outcomes, whose content is in range.
        facts: the factoids.

    Raises:
        MemprobeError: they are of other facts, or a recall or a share is another one than the summary says.
    """
    labels, rule = list(run["checkpoints"]), str(run["token"])
    _check_facts(folder, run, tables, facts)
    known = read_summary(folder, run)["checkpoints"] if (folder / "summary.json").exists() else {}
    for label in labels:
        _check(folder, label, rule, tables, known.get(label, {}))
    held = "its numbers equal summary.json's" if known else "there is no summary.json to hold them against"
    note = f"{folder}: its tables were written without checksums ({held}"
    try:
        write_json(
            {name: mark_of(folder / f"{name}.parquet") for name in ChecksumsFile.model_fields},
            folder / CHECKSUMS,
        )
    except MemprobeError:  # read-only, such as somebody else's
        return f"{note}, and none can be kept here), so that some changes cannot be noticed"
    return f"{note}); {CHECKSUMS} keeps them from now on, and what was changed before may be unnoticed"


def _check_facts(
    folder: Path, run: Mapping[str, Any], tables: Mapping[str, pl.LazyFrame], facts: pl.DataFrame
) -> None:
    asked = run["factoids"]
    if len(facts) != asked["n"] or factoids_hash(factoids_from_frame(facts)) != asked["hash"]:
        raise MemprobeError(f"{folder}: factoids.parquet holds other facts than run.json says{_MEND}")
    for name, rows in tables.items():
        with parquet_errors(folder):
            ids = set(rows.select(pl.col("factoid").unique()).collect()["factoid"])
        if strange := sorted(ids - set(facts["id"])):
            raise MemprobeError(
                f"{folder}: {name}.parquet names a fact {strange[0]!r} that was not asked{_MEND}"
            )


def _check(
    folder: Path, label: str, rule: str, tables: Mapping[str, pl.LazyFrame], known: Mapping[str, Any]
) -> None:
    for name, expected in (
        ("recall", _recalls(tables["records"], label, rule)),
        ("recall_all", _recalls(tables["records"], label, "all")),
        ("shuffled", _recalls(tables["controls"], label, rule)),
    ):
        for k, curve in known.get(name, {}).items():
            actual = expected(int(k))
            for depth, value in enumerate(curve):
                _hold(folder, f"{label}: {name} of the top {k} at depth {depth}", actual.get(depth), value)
    for name in ("exact_match", "exact_tokens"):
        if name in known:
            with parquet_errors(folder):
                rows = tables["outcomes"].filter(pl.col("checkpoint") == label)
                actual = rows.select(pl.col(name).cast(pl.Float64).mean()).collect().item()
            _hold(folder, f"{label}: {name}", actual, known[name])


def _recalls(rows: pl.LazyFrame, label: str, rule: str) -> Callable[[int], dict[int, float]]:
    """A function k -> {depth: share}; of shuffled answers the mean of each factoid's draws first."""
    rows = rows.filter(pl.col("checkpoint") == label, pl.col("token") >= 0)
    keys = ["factoid", "depth"]
    if "control" in rows.collect_schema():
        rows = rows.filter(pl.col("control").str.starts_with("shuffled:"))
        keys.append("control")
    with parquet_errors(Path(label)):
        ranks = rows.group_by(keys).agg(rank=_RULES[rule]).collect()

    def shares(k: int) -> dict[int, float]:
        held = ranks.with_columns(held=(pl.col("rank") < k).cast(pl.Float64))
        means = held.group_by("factoid", "depth").agg(pl.col("held").mean())
        return dict(means.group_by("depth").agg(pl.col("held").mean()).iter_rows())

    return shares


def _hold(folder: Path, what: str, actual: float | None, value: float | None) -> None:
    if (actual is None) != (value is None) or (
        actual is not None and value is not None and abs(actual - value) > _CLOSE
    ):
        shown = ["none" if one is None else f"{one:.4f}" for one in (actual, value)]
        raise MemprobeError(
            f"{folder}: {what} is {shown[0]} by its tables and {shown[1]} by summary.json, so that one of them was "
            f"changed{_MEND}"
        )
