"""``comparison.json`` read back: a schema for what it says, and tables of the schemas that they were made by."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import polars as pl
from pydantic import BaseModel, ConfigDict, Field

from memprobe.errors import MemprobeError, first_line
from memprobe.files import check_valid, read_json

Count = Annotated[int, Field(ge=0)]


class _Open(BaseModel):
    """Keeps keys that it does not know; takes no text for a number."""

    model_config = ConfigDict(extra="allow", strict=True)


class ComparedCheckpoint(_Open):
    """One checkpoint that was compared."""

    label: str
    arm: str | None
    seed: str | None
    stage: str | None
    step: int | None
    n_layers: Count | None


class ComparisonFile(_Open):
    """``comparison.json``; ``tables`` are lists of rows."""

    version: Literal[1] = Field(alias="schema")
    notes: list[str]
    tables: dict[str, list[dict[str, Any]]]
    checkpoints: Annotated[list[ComparedCheckpoint], Field(min_length=1)]
    reference: str
    base: str | None
    k: Annotated[int, Field(ge=1)]
    token: Literal["first", "last", "all"]
    draws: Count
    factoids: Count


_NEEDED = ("placement", "curves", "survival")
_BY_DEPTH = (
    "curves",
    "survival",
    "net_by_depth",
    "differences_by_depth",
    "lenses_by_depth",
    "positions_by_depth",
    "contributions",
)
"""Tables whose rows each have a depth; in others a row may be of all depths."""
_OF_ARMS = ("arms", "arm_differences", "paths")  # their references are arms


def read_stored(
    path: Path, schemas: dict[str, pl.Schema]
) -> tuple[dict[str, Any], list[str], dict[str, pl.DataFrame]]:
    """(settings, notes, tables) of a ``comparison.json``; tables that it does not hold are empty.

    Raises:
        MemprobeError: the file is missing or broken, or says what it may not.
    """
    whole = read_json(path)
    if not isinstance(whole, dict) or not {"tables", "notes", "checkpoints"} <= whole.keys():
        raise MemprobeError(f"{path}: is not a comparison; memprobe compare --out writes one")
    check_valid(whole, ComparisonFile, path)
    held = whole["tables"]
    if missing := [name for name in _NEEDED if name not in held]:
        raise MemprobeError(f"{path}: tables: {missing[0]} is missing; compare again")
    labels = {row["label"] for row in whole["checkpoints"]}
    tables = {}
    for name, schema in schemas.items():
        try:
            tables[name] = pl.DataFrame(held.get(name, []), schema=schema)
        except (pl.exceptions.PolarsError, TypeError, ValueError, OverflowError) as error:
            raise MemprobeError(
                f"{path}: tables.{name}: not as memprobe compare writes it ({first_line(error)})"
            ) from error
        keys = ["checkpoint", "reference"] if name != "overlap" else []
        for column in [*keys, *(["depth"] if name in _BY_DEPTH else [])]:
            if column in schema and tables[name][column].null_count():
                raise MemprobeError(f"{path}: tables.{name}: a row without {column}; compare again")
        for column in ("checkpoint", "reference"):
            if column in schema and name not in _OF_ARMS and (odd := set(tables[name][column]) - labels):
                stranger = sorted(map(repr, odd))[0]
                raise MemprobeError(f"{path}: tables.{name}: {column} {stranger} is none of the checkpoints")
    placed = set(tables["placement"]["checkpoint"])
    for key in ("reference", "base"):
        if whole[key] is not None and whole[key] not in labels & placed:
            raise MemprobeError(f"{path}: {key}: {whole[key]!r} is none of the checkpoints in it")
    settings = {key: value for key, value in whole.items() if key not in ("tables", "notes", "schema")}
    return settings, whole["notes"], tables
