"""Recall at every position read, on the same facts: where a subject is enriched before its answer is moved on."""

from __future__ import annotations

import polars as pl

from memprobe.compare.by_lens import chance_by_depth
from memprobe.compare.table import floats, table, with_ends
from memprobe.readings import Readings
from memprobe.statistics.curves import recall_of


@table(
    "checkpoint",
    {"position": pl.String, "depth": pl.Int64, "n": pl.Int64} | with_ends("recall") | floats("chance"),
)
def positions_by_depth(readings: Readings, label: str) -> pl.DataFrame:
    """Recall by depth at each position, on the facts that have all of them, with its chance level."""
    parts = []
    for name, one in readings.by_position.items():
        curve = (
            recall_of([one[label].trajectory], k=readings.k)
            .sort("depth")
            .rename({"low": "recall_low", "high": "recall_high"})
        )
        parts.append(
            curve.select(
                pl.lit(name).alias("position"),
                *("depth", "n", "recall", "recall_low", "recall_high"),
                pl.Series("chance", chance_by_depth(one, label), dtype=pl.Float64),
            )
        )
    return pl.concat(parts) if parts else positions_by_depth.empty.drop("checkpoint")
