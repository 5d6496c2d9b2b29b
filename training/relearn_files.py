"""The tables of ``relearn --out``: a row for each checkpoint, which a later call goes on from, and one for each arm."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import polars as pl

from memprobe.checkpoints import Checkpoint
from memprobe.errors import MemprobeError
from memprobe.files import check_pages, parquet_errors, replacing, write_parquet
from memprobe.identity import identity_of
from memprobe.locks import held
from memprobe.manifests import Manifest
from memprobe.sameness import other_checkpoint
from training.relearn import Relearned
from training.relearn_arms import arm_table

_TYPES = {"str": pl.String, "int": pl.Int64, "float": pl.Float64, "tuple[str, ...]": pl.List(pl.String)}
SCHEMA = pl.Schema({one.name: _TYPES[str(one.type).removesuffix(" | None")] for one in fields(Relearned)})
_OPTIONS = {"n_most": "n", "relearn_seed": "seed"}


def relearn_table(relearned: Iterable[Relearned]) -> pl.DataFrame:
    """One row a checkpoint, in the order given; columns are the fields of :class:`training.relearn.Relearned`."""
    return pl.DataFrame([asdict(row) | {"before": list(row.before)} for row in relearned], schema=SCHEMA)


def measured_before(out: Path, asked: Mapping[str, Any]) -> list[Relearned]:
    """The rows of a table that is gone on with; none where there is no table.

    Args:
        asked: as :func:`training.relearn.asked_with` has it.

    Raises:
        MemprobeError: the file is no such table or that of an older version, or its rows were measured otherwise.
    """
    if not out.exists():
        return []
    check_pages(out)
    with parquet_errors(out):
        table = pl.read_parquet(out)
    if unlike := [name for name, kind in SCHEMA.items() if table.schema.get(name) != kind]:
        raise MemprobeError(
            f"--out {out}: is not as relearn writes it now (column {unlike[0]}), so it cannot be gone on with; give "
            "another --out"
        )
    rows = [
        Relearned(**row | {"before": tuple(row["before"])})
        for row in table.select(*SCHEMA).iter_rows(named=True)
    ]
    for row in rows:
        for name, value in asked.items():
            if (stored := getattr(row, name)) != value:
                option = f"--{_OPTIONS.get(name, name).replace('_', '-')}"
                said = f"was measured with {option} {stored}, not {value}"
                if name == "never_learned_hash":
                    said = "was measured with other rows in the file of --never-learned"
                raise MemprobeError(f"--out {out}: {said}; give another --out")
    return rows


def gone_on_with(
    rows: Sequence[Relearned], given: Sequence[tuple[Checkpoint, Manifest]]
) -> tuple[list[Relearned | None], list[Relearned]]:
    """The row that was measured of each checkpoint, under the label that it has now, and the rows of others."""
    found = [_found_in(rows, *one) for one in given]
    others = [row for row in rows if row not in found]
    now = [
        row and replace(row, checkpoint=checkpoint.label)
        for row, (checkpoint, _) in zip(found, given, strict=True)
    ]
    return now, others


def _found_in(rows: Sequence[Relearned], checkpoint: Checkpoint, manifest: Manifest) -> Relearned | None:
    """The row that was measured of a checkpoint: of the same model, trained as the same arm, seed and stage."""
    if not rows:
        return None
    identity, made = identity_of(checkpoint), (manifest.arm, manifest.seed, manifest.stage)
    same = (
        row
        for row in rows
        if (row.arm, row.seed, row.stage) == made and other_checkpoint(asdict(row), identity) is None
    )
    return next(same, None)


def write_tables(relearned: Sequence[Relearned], out: Path) -> None:
    """Writes a row for each checkpoint, and beside it the table of arms.

    Raises:
        MemprobeError: they cannot be written.
    """
    table, arms = files_of_tables(out)
    write_parquet(relearn_table(relearned), table)
    write_parquet(arm_table(relearned), arms)


@contextmanager
def alone(out: Path | None) -> Iterator[None]:
    """Holds a table for one command: of two that go on with the same rows, the last would drop what the other added.

    Raises:
        MemprobeError: another command measures into it, or its folder cannot be written.
    """
    if out is None:
        yield
        return
    check_tables(out)
    with held(out.with_name(f".{out.name}.lock")) as mine:
        if not mine:
            raise MemprobeError(
                f"--out {out}: another command measures into this table; wait for it, or give another --out"
            )
        yield


def check_tables(out: Path) -> None:
    """Checks that :func:`write_tables` can write, before there is anything to lose.

    Raises:
        MemprobeError: it cannot, or the name is not that of a Parquet file.
    """
    if out.suffix != ".parquet":
        raise MemprobeError(
            f"--out {out}: the table is written as Parquet; give a name that ends in .parquet"
        )
    for file in files_of_tables(out):
        with suppress(_Tried), replacing(file):
            raise _Tried  # and leaves what lies there


class _Tried(Exception):
    """A file can be written."""


def files_of_tables(out: Path) -> tuple[Path, Path]:
    """Where :func:`write_tables` writes: the rows of checkpoints, and those of arms."""
    return out, out.with_name(f"{out.stem}-arms{out.suffix}")
