"""What is published of a study: its tables of results, as files."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path

import polars as pl

from memprobe.errors import MemprobeError
from memprobe.files import parquet_errors, write_parquet
from memprobe.retention import Asked, Retention
from memprobe.runs import GRID

SETTINGS = ((10, "first"), (1, "all"))
"""(k, token rule) of every table of placement: the paper's top 10, and the strict reading that an answer from a
small alphabet needs."""
READOUTS = ("own", "base-readout")


@dataclass(frozen=True)
class Results:
    """What is published of a grid; :func:`tables` needs no more.

    Attributes:
        cells: one row per finished cell.
        stages: one row per cell, stage and evaluated dataset.
        retained: each stage's dataset after each stage, over seeds; see :class:`memprobe.retention.Retention`.
        placement: one row per set-up, reading, readout and checkpoint.
        arms: over seeds; see :func:`memprobe.statistics.arms.arm_means`. With the statistics of
            :mod:`memprobe.retention.asked`, as the differences.
        differences: over seeds, against naive and its controls; see
            :func:`memprobe.statistics.arms.arm_differences`. With ``exact_unseen``, see :mod:`training.study.unseen`.
        spread: of latent depths, seed by seed against naive; see :mod:`memprobe.statistics.latent`.
        lost: of the facts lost to a later stage, what the lens still reads.
        kept: of the facts kept by it, where they had surfaced before; see :func:`memprobe.compare.kept_facts`.
        depth_and_retention: whether those that had surfaced earlier are left more probable by it; see
            :func:`memprobe.compare.depth_and_retention`. Empty in results of before there was such a table.
    """

    cells: pl.DataFrame
    stages: pl.DataFrame
    retained: pl.DataFrame
    placement: pl.DataFrame
    arms: pl.DataFrame
    differences: pl.DataFrame
    spread: pl.DataFrame
    lost: pl.DataFrame
    kept: pl.DataFrame
    depth_and_retention: pl.DataFrame = field(default_factory=pl.DataFrame)

    @property
    def retention(self) -> Retention:
        """What :mod:`memprobe.retention` makes tables of."""
        return Retention(self.cells, self.stages, self.retained, Asked(self.arms, self.differences))

    def write(self, folder: Path) -> None:
        """One Parquet file per table."""
        for name, table in vars(self).items():
            write_parquet(table, folder / f"{name}.parquet")


def read_results(folder: Path) -> Results:
    """Results as :meth:`Results.write` left them.

    Raises:
        MemprobeError: no such folder, none with a study's results, or a table is missing or broken.
    """
    if not folder.is_dir():
        raise MemprobeError(f"{folder}: no such folder")
    if not any((folder / f"{name}.parquet").exists() for name in Results.__dataclass_fields__):
        raise MemprobeError(
            f"{folder}: holds neither a grid ({GRID}) nor the results that report left of one"
        )
    tables = {}
    for one in fields(Results):
        name, path = one.name, folder / f"{one.name}.parquet"
        if (
            one.default_factory is not MISSING and not path.exists()
        ):  # results of before there was such a table
            continue
        with parquet_errors(path):
            tables[name] = pl.read_parquet(path)
    return Results(**tables)
