"""The probe directory: opened, and read table by table.

A probe directory holds::

    records.parquet    one row per (checkpoint, factoid, answer token, depth)
    controls.parquet   the same keys and `control`: ranks of other tokens at the same positions
    outcomes.parquet   one row per (checkpoint, factoid): what the model says in full
    factoids.parquet   what was asked
    summary.json       the numbers in short
    run.json           what was run
    report.html        the interactive report
    parts/             only while a checkpoint is being probed: finished batches

No torch here: these tables open on any laptop.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from memprobe.errors import MemprobeError
from memprobe.files import first_line, read_json
from memprobe.records import ADDED, SCHEMA_VERSION, TABLES


@dataclass(frozen=True)
class Probe:
    """A probe directory, opened. Tables are read when first asked for.

    ``run`` says what was run: per checkpoint its fingerprint and n_layers, the template, lens, readout,
    tokenisation rule, factoid hash and versions. ``tokens`` in it maps token ids to their text.
    """

    path: Path
    run: dict[str, Any]

    @property
    def checkpoints(self) -> list[str]:
        """Labels, in the order in which they were named."""
        return list(self.run["checkpoints"])

    @cached_property
    def records(self) -> pl.DataFrame:
        """One row per (checkpoint, factoid, answer token, depth); see :data:`RECORDS`."""
        return self._read("records")

    @cached_property
    def controls(self) -> pl.DataFrame:
        """Ranks of control tokens at the same positions; see :data:`CONTROLS`."""
        return self._read("controls")

    @cached_property
    def outcomes(self) -> pl.DataFrame:
        """One row per (checkpoint, factoid); see :data:`OUTCOMES`."""
        return self._read("outcomes")

    @cached_property
    def factoids(self) -> pl.DataFrame:
        """What was asked; see :data:`FACTOIDS`."""
        return self._read("factoids")

    @cached_property
    def summary(self) -> dict[str, Any]:
        """``summary.json``."""
        return read_json(self.path / "summary.json")

    @property
    def tokens(self) -> dict[int, str]:
        """Text of every token id that occurs in the records; where tokenizers differ, see :meth:`token_text`."""
        return {int(key): text for key, text in self.run.get("tokens", {}).items()}

    def token_text(self, label: str, token_id: int) -> str:
        """Text of a token id as a checkpoint's own tokenizer writes it."""
        own = self.run["checkpoints"][label].get("tokens", {})
        return own.get(str(token_id), self.run["tokens"][str(token_id)])

    @property
    def n_layers(self) -> dict[str, int]:
        """Depth of the model's own readout, by checkpoint."""
        return {label: entry["n_layers"] for label, entry in self.run["checkpoints"].items()}

    def fingerprint(self, label: str) -> str:
        """Of the checkpoint's weights, however they are read out."""
        return str(self.run["checkpoints"][label]["fingerprint"])

    def only(self, labels: Iterable[str]) -> Probe:
        """This probe with some of its checkpoints, in the order given."""
        entries = self.run["checkpoints"]
        return Probe(self.path, self.run | {"checkpoints": {label: entries[label] for label in labels}})

    def scan(self, table: str) -> pl.LazyFrame:
        """A table as a lazy frame: finished checkpoints, and the finished batches of one under way.

        Raises:
            MemprobeError: the table is missing, truncated, or of another schema.
        """
        schema = TABLES[table]
        whole = self.path / f"{table}.parquet"
        if table == "factoids":
            return scan_table(whole, schema)
        finished = [label for label, entry in self.run["checkpoints"].items() if entry["complete"]]
        frames = [scan_table(whole, schema).filter(pl.col("checkpoint").is_in(finished))] if finished else []
        for label in self.run["checkpoints"]:
            if label not in finished:
                frames += [scan_table(file, schema) for file in part_files(self.path, label, table)]
        return pl.concat([pl.LazyFrame(schema=schema), *frames])

    def _read(self, table: str) -> pl.DataFrame:
        return self.scan(table).collect()


def open_probe(path: str | Path) -> Probe:
    """Opens a probe directory.

    Raises:
        MemprobeError: there is none, or it was written under another schema version.
    """
    path = Path(path)
    if not (path / "run.json").exists():
        raise MemprobeError(
            f"{path}: no run.json, so this is no probe directory (memprobe layers --out makes one)"
        )
    run = read_json(path / "run.json")
    if run.get("schema") != SCHEMA_VERSION:
        raise MemprobeError(
            f"{path}: written under schema {run.get('schema')!r}, this memprobe reads {SCHEMA_VERSION}; probe again"
        )
    return Probe(path, run)


def part_files(path: Path, label: str, table: str) -> list[Path]:
    """The finished batches of a checkpoint under way, in order."""
    return sorted(parts_dir(path, label).glob(f"{table}-*.parquet"))


def parts_dir(path: Path, label: str) -> Path:
    """Where a checkpoint's finished batches wait; a label may hold characters that a file name may not."""
    return path / "parts" / hashlib.sha256(label.encode()).hexdigest()[:12]


def scan_table(path: Path, schema: pl.Schema) -> pl.LazyFrame:
    """A Parquet file whose columns are checked against its schema before anything is read."""
    if not path.exists():
        raise MemprobeError(f"{path}: missing, so this probe directory is incomplete")
    try:
        found = pl.read_parquet_schema(path)
    except Exception as error:  # polars raises several kinds for a torn file
        raise MemprobeError(f"{path}: cannot be read as Parquet ({first_line(error)})") from error
    added = [name for name in ADDED if name in schema and name not in found]
    for name, dtype in schema.items():
        if name not in added and found.get(name) != dtype:
            raise MemprobeError(f"{path}: column {name!r} is {found.get(name)}, not {dtype}")
    empty = {name: pl.lit(None, schema[name]) for name in added}
    return pl.scan_parquet(path).with_columns(**empty).select(list(schema))
