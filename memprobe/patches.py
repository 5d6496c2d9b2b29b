"""A directory of patches, opened with one call; :mod:`memprobe.patch_pairs` makes it.

    patches/run.json                what was patched: by pair and kind, with fingerprints and options
    patches/KEY.parquet             one file per pair and kind, never written again; rows of memprobe.records.PATCHES
    patches/parts/                  only while a pair is under way: finished batches
    factoids.parquet                what was asked

A kind is one of ``residual``, ``attn`` and ``mlp`` at one set of positions, or ``weights`` (the sweep of grafts), so
that a later call adds what an earlier one left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from memprobe.errors import MemprobeError, first_line
from memprobe.files import check_valid, parquet_errors, read_json
from memprobe.parquet import check_mark
from memprobe.records import PATCHES
from memprobe.run_file import PatchesFile
from memprobe.starting_over import Work

SCHEMA_VERSION = 1
FOLDER = "patches"
LOCK = ".lock"
KIND = ("source", "target", "what", "positions")
"""What tells the files of patches apart."""
NOT_FINITE = "a logit is not finite"
_MEASURES = [name for name, dtype in PATCHES.items() if dtype == pl.Float32]


@dataclass(frozen=True)
class Patches:
    """A directory of patches, opened.

    ``run`` says what was patched; ``run["pairs"]`` has an entry per file, with source, target, what, positions,
    n_layers, fingerprints and options.
    """

    path: Path
    run: dict[str, Any]

    @cached_property
    def table(self) -> pl.DataFrame:
        """All finished rows, without those of logits that are not finite; see :data:`memprobe.records.PATCHES`."""
        return self._read[0]

    @property
    def errors(self) -> pl.DataFrame:
        """[source, target, what, positions, factoid, error]: facts without rows, and why."""
        return self._read[1]

    @cached_property
    def _read(self) -> tuple[pl.DataFrame, pl.DataFrame]:
        frames, errors = [pl.DataFrame(schema=PATCHES)], []
        entries = [entry for entry in self.run["pairs"].values() if entry["complete"]]
        for file, entry in zip(self.files(), entries, strict=True):
            if mark := entry.get("mark"):  # older ones have none
                check_mark(file, mark)
            rows = read_rows(file)
            frames.append(finite_only(rows))  # older ones held what is not finite
            failed = dict.fromkeys(
                sorted(set(rows["factoid"]) - set(frames[-1]["factoid"])), NOT_FINITE
            ) | entry.get("errors", {})
            at = entry["source"], entry["into"], entry["what"], entry["positions"]
            errors += [(*at, factoid, error) for factoid, error in failed.items()]
        columns = [*KIND, "factoid", "error"]
        return pl.concat(frames), pl.DataFrame(errors, schema=dict.fromkeys(columns, pl.String), orient="row")

    @cached_property
    def factoids(self) -> pl.DataFrame:
        """What was asked; see :data:`memprobe.records.FACTOIDS`."""
        file = self.path / "factoids.parquet"
        with parquet_errors(file):
            return pl.read_parquet(file)

    def files(self) -> list[Path]:
        """The finished files, in the order in which they were patched."""
        finished = [key for key, entry in self.run["pairs"].items() if entry["complete"]]
        return [self.path / FOLDER / f"{key}.parquet" for key in finished]

    @property
    def n_layers(self) -> int:
        """Blocks of the models."""
        return max((entry["n_layers"] for entry in self.run["pairs"].values()), default=0)

    @property
    def layers(self) -> dict[tuple[str, str], int]:
        """Blocks of the models by (source, target) of the table."""
        return {(one["source"], one["into"]): one["n_layers"] for one in self.run["pairs"].values()}

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """(source, target) labels as the table has them, in the order in which they were patched."""
        return list(dict.fromkeys((entry["source"], entry["into"]) for entry in self.run["pairs"].values()))


def open_patches(path: str | Path) -> Patches:
    """Opens a directory that ``memprobe patch`` wrote.

    Raises:
        MemprobeError: there are no patches, or they are of another schema.
    """
    path = Path(path)
    file = path / FOLDER / "run.json"
    if not file.exists():
        raise MemprobeError(f"{path}: holds no patches (memprobe patch --out makes them)")
    run = read_json(file)
    version = run.get("schema") if isinstance(run, dict) else None
    if version != SCHEMA_VERSION:
        raise MemprobeError(f"{file}: schema {version!r}, this memprobe reads {SCHEMA_VERSION}; patch again")
    check_valid(run, PatchesFile, file)
    return Patches(path, run)


def _files(out: Path) -> list[Path]:
    """The patches of a directory, and its factoids where no probe needs them; not the lock of who asks."""
    files = [file for file in (out / FOLDER).glob("*") if file.name != LOCK]
    if not (out / "run.json").exists():
        files += [file for name in ("factoids.parquet", "patches.html") if (file := out / name).exists()]
    return files


def _shows(out: Path) -> bool:
    """Whether some factoids of a pair are patched."""
    return any(any((out / FOLDER).glob(pattern)) for pattern in ("*.parquet", "parts/*/*.parquet"))


PATCHING = Work("patches", there=lambda out: (out / FOLDER / "run.json").exists(), files=_files, shows=_shows)
"""Patches, as ``--fresh`` starts them over."""


def finite_only(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows of :data:`memprobe.records.PATCHES` without the facts of which a log-probability is not finite.

    Such a number is neither moved nor unmoved. Where only a control's is not, that control of the fact goes.
    """
    finite = pl.all_horizontal(pl.col(name).is_finite() for name in _MEASURES)
    fact = [*KIND, "factoid"]
    asked = (finite | (pl.col("control") != "")).all().over(fact)
    return rows.filter(asked & finite.all().over([*fact, "control"]))


def read_rows(file: Path) -> pl.DataFrame:
    """The rows of one file of patches.

    Raises:
        MemprobeError: it is torn, or no file of patches.
    """
    try:
        rows = pl.read_parquet(file)
    except Exception as error:  # polars raises several kinds for a torn file
        raise MemprobeError(f"{file}: cannot be read as Parquet ({first_line(error)})") from error
    if rows.schema != PATCHES:
        raise MemprobeError(f"{file}: its columns are not those of patches")
    return rows
