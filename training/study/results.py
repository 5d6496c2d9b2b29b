"""What is published of a study: its tables of results, as files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path

import polars as pl

from memprobe.errors import MemprobeError
from memprobe.files import parquet_errors, write_parquet
from memprobe.retention import AskedOtherwise, Retention
from memprobe.runs import GRID

SETTINGS = ((10, "first"), (1, "all"))
"""(k, token rule) of every table of placement: the paper's top 10, and the strict reading that an answer from a
small alphabet needs."""
READOUTS = ("own", "base-readout")


_AT = {"setup": "text", "k": "number", "token": "text", "readout": "text"}
_ENDS = dict.fromkeys(("low", "high", "p", "detectable"), "number")
COLUMNS: Mapping[str, Mapping[str, str]] = {
    "cells": {
        **dict.fromkeys(("block", "setup", "arm", "d_a", "d_b", "d_c", "arm_text", "mixing", "why"), "text"),
        **dict.fromkeys(("seed", "n", "mixing_ratio", "mixing_words", "replay_ratio"), "number"),
        **dict.fromkeys(("plain_last", "learned"), "yes or no"),
        "labels": "texts in a list",
        "last_metric": "text",
        **dict.fromkeys(("d_a_after_1", "retention", "retention_low", "retention_high"), "number"),
        **dict.fromkeys(("retention_replayed", "retention_unseen", "last_score"), "number"),
        **dict.fromkeys(("known_after_1", "known", "perplexity_after_1", "perplexity"), "number"),
        **dict.fromkeys(("steps", "tokens", "seconds", "cosine_start", "cosine_end"), "number"),
        **dict.fromkeys(("first_order_harm", "weight_change"), "number"),
    },
    "stages": {
        **dict.fromkeys(("setup", "arm", "dataset", "metric"), "text"),
        **dict.fromkeys(("seed", "stage", "n", "value", "low", "high"), "number"),
    },
    "retained": {
        **dict.fromkeys(("setup", "arm", "dataset", "rows", "metric"), "text"),
        **dict.fromkeys(("stage", "seeds", "value", "low", "high"), "number"),
        "by_seed": "numbers in a list",
    },
    "placement": {
        **_AT,
        **dict.fromkeys(("checkpoint", "arm"), "text"),
        **dict.fromkeys(("seed", "stage", "exact", "lof_mean", "lof_sd", "share_never"), "number"),
        **dict.fromkeys(("lof_restricted_mean", "chance_lof_restricted_mean"), "number"),
        **dict.fromkeys(("effective_layers", "depths_per_factoid"), "number"),
    },
    "arms": {
        **_AT,
        **dict.fromkeys(("arm", "stage", "statistic"), "text"),
        **dict.fromkeys(("seeds", "mean"), "number"),
        **_ENDS,
        "by_seed": "numbers in a list",
    },
    "differences": {
        **_AT,
        **dict.fromkeys(("arm", "reference", "stage", "statistic", "in_common"), "text"),
        **dict.fromkeys(("seeds", "reference_seeds", "difference"), "number"),
        **_ENDS,
        **dict.fromkeys(("paired", "significant"), "yes or no"),
    },
    "spread": {
        **_AT,
        **dict.fromkeys(("reference", "checkpoint", "why"), "text"),
        **dict.fromkeys(("sd", "sd_reference", "censored", "reference_censored"), "number"),
        **dict.fromkeys(("ratio", "low", "high", "p", "error"), "number"),
    },
    "lost": {
        **_AT,
        **dict.fromkeys(("reference", "checkpoint"), "text"),
        **dict.fromkeys(("n_lost", "share_lost", "surfaces", "intruded", "deepest"), "number"),
    },
    "kept": {
        **_AT,
        **dict.fromkeys(("stage", "arm", "statistic"), "text"),
        **dict.fromkeys(("seeds", "difference"), "number"),
        **dict.fromkeys(("kept", "lost"), "numbers in a list"),
        **_ENDS,
        "by_seed": "numbers in a list",
    },
    "depth_and_retention": {
        **_AT,
        **dict.fromkeys(("stage", "arm", "statistic"), "text"),
        **dict.fromkeys(("seeds", "correlation"), "number"),
        "facts": "numbers in a list",
        **_ENDS,
        "by_seed": "numbers in a list",
    },
}
"""Of each table of results, the columns that every report reads, and what they hold. A table without any column has no
rows; later versions add columns."""

_KINDS: Mapping[str, Callable[[pl.DataType], bool]] = {
    "text": lambda kind: kind == pl.String,
    "number": lambda kind: kind.is_numeric(),
    "yes or no": lambda kind: kind == pl.Boolean,
    "texts in a list": lambda kind: isinstance(kind, pl.List) and kind.inner in (pl.String, pl.Null),
    "numbers in a list": lambda kind: (
        isinstance(kind, pl.List) and (kind.inner == pl.Null or kind.inner.is_numeric())
    ),
}


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
        return Retention(self.cells, self.stages, self.retained, AskedOtherwise(self.arms, self.differences))

    def write(self, folder: Path) -> None:
        """One Parquet file per table; none of what there was no table of when they were collected."""
        for one in fields(self):
            table, path = getattr(self, one.name), folder / f"{one.name}.parquet"
            if one.default_factory is not MISSING and not table.columns:
                path.unlink(missing_ok=True)
            else:
                write_parquet(table, path)


def read_results(folder: Path) -> Results:
    """Results as :meth:`Results.write` left them.

    Raises:
        MemprobeError: no such folder, none with a study's results, or a table is missing or broken, or lacks a column.
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
        is_new = one.default_factory is not MISSING  # results of before there was such a table have none
        if is_new and not path.exists():
            continue
        with parquet_errors(path):
            tables[name] = pl.read_parquet(path)
        _check_columns(tables[name], name, path)
    return Results(**tables)


def _check_columns(table: pl.DataFrame, name: str, path: Path) -> None:
    """Raises a MemprobeError where a table lacks a column, or one holds what it may not."""
    if not table.columns and name != "cells":  # of a study without such rows
        return
    for column, kind in COLUMNS[name].items():
        if column not in table.columns:
            raise MemprobeError(f"{path}: has no column {column!r}; python -m training report GRID writes it")
        found = table.schema[column]
        if found != pl.Null and not _KINDS[kind](found):
            raise MemprobeError(f"{path}: column {column!r} holds {found}, and should hold {kind}")
