"""The room of lenses: a checkpoint through every lens that read it, curves in one plot and depths in a table."""

from __future__ import annotations

from typing import Any

import polars as pl

from memprobe import plots
from memprobe.compare import TABLES
from memprobe.compare.beside import lens_cells, lens_columns
from memprobe.plots import Sketch
from memprobe.readings import Readings

MOST = 6
"""Checkpoints that the room shows: each costs a pass over the records of every lens."""


def has_room(readings: Readings) -> bool:
    """Whether these readings tell of several lenses: those through the first one do, for all."""
    return len(readings.by_lens) > 1 and next(iter(readings.by_lens)) == readings.lens


def lenses_room(readings: Readings) -> tuple[dict[str, Sketch], list[list[str]]]:
    """Curves of recall by lens, a figure for each checkpoint, and the table of first occurrences, its head first."""
    labels = readings.labels[:MOST]
    curves, placed = (TABLES[name](readings, labels) for name in ("lenses_by_depth", "lenses"))
    figures = {f"lenses-{at}": _curves(curves.filter(checkpoint=label)) for at, label in enumerate(labels)}
    head = ["Checkpoint", *(name.capitalize() for name in lens_columns(readings.lens))]
    return figures, [head, *([row["checkpoint"], *lens_cells(row)] for row in placed.iter_rows(named=True))]


def _curves(table: pl.DataFrame) -> Sketch:
    """Recall by depth, a line for each lens."""
    table = table.drop("checkpoint").rename({"lens": "checkpoint"})
    recall = table.rename({"recall_low": "low", "recall_high": "high"})
    chance = recall.select(
        "checkpoint", "depth", pl.col("chance").alias("recall"), low="chance", high="chance"
    )
    figure = plots.recall_curves.sketch(recall, chance if chance["recall"].null_count() == 0 else None)
    for trace in figure.data:  # a line is a lens here, which the choice of checkpoints does not concern
        meta: dict[str, Any] = dict(trace.get("meta") or {})
        trace["meta"] = {"lens": meta.pop("checkpoint", None)} | meta
    return figure
