"""Tables with rows for each checkpoint: curves, placement, survival, what is net of controls, groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from memprobe.compare.table import floats, row, table, with_ends
from memprobe.readings import NET_OF_SHUFFLED, SHUFFLED, Readings
from memprobe.statistics.curves import curves_of
from memprobe.statistics.groups import GROUPED, by_group, group_labels
from memprobe.statistics.occurrence import ENDS, kaplan_meier
from memprobe.statistics.overview import state_shares, states_of
from memprobe.statistics.vocabulary import BESIDE, PER_FACTOID, PLACED

_NET = {"n": pl.Int64} | floats("value", "chance", "net", "low", "high")
_CHANCE = {key: PER_FACTOID[key].in_placement for key in NET_OF_SHUFFLED}
"""Chance levels that stand in the placement table: of which statistic, under which name."""
_COUNTS = ("n", "n_layers", "lof_n", "lof_answers", "settled_n", "settled_answers")
PLACEMENT = dict.fromkeys(_COUNTS, pl.Int64) | with_ends(*PLACED)
"""Columns of :func:`memprobe.statistics.occurrence.placement_of`."""


@table("checkpoint", {"control": pl.String, "statistic": pl.String} | _NET)
def net(readings: Readings, label: str) -> pl.DataFrame:
    """Every statistic net of every control."""
    return readings.net(label)[0]


@table("checkpoint", {"control": pl.String, "measure": pl.String, "depth": pl.Int64} | _NET)
def net_by_depth(readings: Readings, label: str) -> pl.DataFrame:
    """Recall and log-probability by depth, net of every control."""
    return readings.net(label)[1]


@table(
    "checkpoint",
    {"depth": pl.Int64, "n": pl.Int64}
    | with_ends("recall")
    | floats("chance", "net", "net_low", "net_high")
    | with_ends("frequency", "log_prob", "entropy", "median_rank")
    | floats("floor"),
)
def curves(readings: Readings, label: str) -> pl.DataFrame:
    """Recall, its chance level and other measures by depth; ``floor``: how far two fits of a fitted lens read apart."""
    by_depth = readings.net(label)[1].filter(control=SHUFFLED, measure="recall")
    recall = curves_of(
        readings[label].trajectory,
        k=readings.k,
        net=by_depth if len(by_depth) else None,
        resamples=readings.resamples(),
    )
    floor = dict(enumerate(readings.floor(label).recall))
    return recall.with_columns(
        pl.col("depth").replace_strict(floor, default=None, return_dtype=pl.Float64).alias("floor")
    )


def net_of_chance(readings: Readings, label: str, name: str) -> dict[str, float | None]:
    """First occurrence (restricted mean) minus that of shuffled answers, over the facts that have any: the mean of
    paired differences with its interval, as NAME, NAME_low and NAME_high, and NAME_n, how many facts these are."""
    rows = readings.net(label)[0].filter(control=SHUFFLED, statistic="lof_restricted")
    values = next(rows.select("net", "low", "high", "n").iter_rows(), (None, None, None, 0))
    return {f"{name}{end}": value for end, value in zip((*ENDS, "_n"), values, strict=True)}


@table(
    "checkpoint",
    {"base": pl.Boolean}
    | PLACEMENT
    | with_ends(*BESIDE)
    | floats(*(f"chance_{name}" for name in _CHANCE.values()))
    | with_ends("net_lof_restricted_mean")
    | {"net_lof_restricted_mean_n": pl.Int64}
    | floats("answer_cover", "lof_floor"),
)
def placement(readings: Readings, label: str) -> pl.DataFrame:
    """Where a checkpoint's answers surface, in one row, with its chance levels; ``lof_floor`` is how far apart two fits
    of a fitted lens place the mean first occurrence."""
    values: dict[str, Any] = dict(readings.placed(label))
    shuffled = readings.net(label)[0].filter(control=SHUFFLED)
    beside = {one["statistic"]: one for one in shuffled.iter_rows(named=True)}
    for statistic, name in _CHANCE.items():
        values[f"chance_{name}"] = beside.get(statistic, {}).get("chance")
    values |= net_of_chance(readings, label, "net_lof_restricted_mean")
    values["answer_cover"] = readings[label].cover
    values["lof_floor"] = readings.floor(label).lof_mean
    base = readings.base is not None and readings.base.label == label
    return row({"base": base} | values, placement.schema)


@table(
    "checkpoint",
    {"of": pl.String, "depth": pl.Int64, "at_risk": pl.Int64, "events": pl.Int64}
    | floats("survival", "low", "high"),
)
def survival(readings: Readings, label: str) -> pl.DataFrame:
    """The share that has not surfaced, or not settled, by each depth."""
    occurrence = readings[label].found
    parts = [
        kaplan_meier(depth, occurrence.n_layers).select(pl.lit(name).alias("of"), pl.all())
        for name, depth in (("lof", occurrence.lof), ("settled", occurrence.settled))
    ]
    return pl.concat(parts)


@table(
    "checkpoint",
    {"by": pl.String, "group": pl.String}
    | dict.fromkeys(("n", "lof_n", "lof_answers"), pl.Int64)
    | with_ends(*GROUPED)
    | floats("log_rank_p"),
)
def groups(readings: Readings, label: str, by: Sequence[str] = ()) -> pl.DataFrame:
    """Placement by group of facts; by outcome, paths go from the reference to the checkpoint."""
    reading, origin = readings[label], readings.reference
    path = None
    if label != origin.label:
        steps = zip(readings[origin.label].exact, reading.exact, strict=True)
        path = np.array([f"{int(before)}→{int(after)}" for before, after in steps])
    parts = []
    for grouping in by:
        if grouping == "outcome" and path is None and len(readings) > 1:
            continue  # the reference itself has no outcome to go from
        labels = group_labels(readings.factoids, reading.tokens, path, by=grouping)
        rows = by_group(reading.found, labels, readings.resamples, seed=readings.seed)
        parts.append(rows.select(pl.lit(grouping).alias("by"), pl.all()))
    return pl.concat(parts) if parts else groups.empty.drop("checkpoint")


@table("checkpoint", {"state": pl.String, "n": pl.Int64} | floats("share", "low", "high"))
def states(readings: Readings, label: str) -> pl.DataFrame:
    """How many facts are recalled, only surface at some depth, or are absent."""
    read = readings[label]
    return state_shares(states_of(read.exact, read.found.held))
