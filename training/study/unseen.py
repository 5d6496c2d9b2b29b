"""What an arm with replay keeps of the facts that it does not show again: its headline, as the others were shown."""

from __future__ import annotations

import numpy as np
import polars as pl

from memprobe.statistics.power import detectable_within
from memprobe.statistics.shares import share_difference

UNSEEN = "exact_unseen"
"""The statistic in the table of differences."""


def unseen_differences(differences: pl.DataFrame, learned: pl.DataFrame) -> pl.DataFrame:
    """Rows of :data:`UNSEEN` beside those of exact match: facts not shown again against all facts of the other arm.

    Args:
        differences: as :class:`~training.study.results.Results` holds them; rows of the last stage are answered.
        learned: the cells that learned what they were to learn.

    Returns:
        Rows with the same columns; none where no arm replays.
    """
    if not len(differences):
        return differences
    by_arm = {key: group.sort("seed") for key, group in learned.group_by("setup", "arm_text")}
    stage = pl.col("stage").cast(pl.Int64)
    of = differences.filter(pl.col("statistic") == "exact", stage == stage.max().over("setup"))
    rows = []
    for row in of.iter_rows(named=True):
        group, other = (by_arm.get((row["setup"], row[name])) for name in ("arm", "reference"))
        if group is None or other is None or group["retention_unseen"].null_count():
            continue
        if group["replay_ratio"].null_count():
            continue
        # Which rows of a sample are shown again may depend on the seed: none counts for more facts than it has. Of a
        # seed that has more, its share is the same of the fewer, be that no whole number of facts.
        size = int(group["n_unseen"].min())  # type: ignore[arg-type]
        counts = group["retention_unseen"].to_numpy() * size
        n = int(other["n"][0])
        difference = share_difference(counts, np.rint(other["retention"].to_numpy() * n), size, others_n=n)
        edges = {
            "difference": difference.value,
            "low": difference.low,
            "high": difference.high,
            "p": difference.p,
        }
        flags = {
            "significant": difference.low > 0 or difference.high < 0,
            "detectable": detectable_within(difference.low, difference.high),
        }
        if row["low"] is None:  # too few seeds
            edges |= {"low": None, "high": None, "p": None}
            flags = {"significant": False, "detectable": None}
        seeds = {"seeds": len(group), "reference_seeds": len(other)}
        rows.append({**row, **edges, **flags, **seeds, "statistic": UNSEEN, "paired": False})
    return pl.DataFrame(rows, schema=differences.schema)
