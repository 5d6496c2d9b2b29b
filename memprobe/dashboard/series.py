"""Checkpoints along a training run on the page: how they look, and what training does to them step by step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from memprobe import palette, plots
from memprobe.members import Series
from memprobe.plots import Sketch
from memprobe.reading import Reading
from memprobe.readings import Readings
from memprobe.sentences import FEWEST_STEPS
from memprobe.statistics.occurrence import ENDS
from memprobe.statistics.overview import STATE_NAMES, state_shares, states_of
from memprobe.statistics.vocabulary import STATISTICS

OVER_STEPS = {
    "exact": "exact",
    "recall_full": "recall_full",
    "lof_restricted": "lof_restricted_mean",
    "share_never": "share_never",
}
"""Statistics that are drawn over steps, each with its name in a row of placement."""


def series_of(readings: Readings) -> list[Series]:
    """The runs that enough of these checkpoints lie along to be told as one."""
    return [one for one in readings.series if len(one.members) >= FEWEST_STEPS]


def looks_of(readings: Readings) -> dict[str, dict[str, str]]:
    """How each checkpoint looks: along a run by its step, early to late, else by its place among all."""
    looks = {label: palette.style(position) for position, label in enumerate(readings.labels)}
    for position, one in enumerate(series_of(readings)):
        along = palette.along(len(one.members))
        shared = palette.style(position * len(palette.COLOURS))  # several runs differ in their dashes
        for label, look in zip(one.labels, along, strict=True):
            looks[label] = look | {"dash": shared["dash"]}
    return looks


def step_figures(readings: Readings, read: Mapping[str, Reading]) -> dict[str, Sketch]:
    """Statistics over the steps of all runs, and what has become of the facts over those of each.

    Args:
        read: the checkpoints of ``readings`` by label.
    """
    series = series_of(readings)
    if not series:
        return {}
    figures = {}
    for name, column in OVER_STEPS.items():
        rows = [
            [one.name, label, step, *(readings.placed(label)[f"{column}{end}"] for end in ENDS)]
            for one in series
            for step, label in zip(one.steps, one.labels, strict=True)
        ]
        schema = {"run": pl.String, "checkpoint": pl.String, "step": pl.Int64}
        table = pl.DataFrame(
            rows, schema=schema | dict.fromkeys(("value", "low", "high"), pl.Float64), orient="row"
        )
        figures[f"step-{name}"] = plots.step_lines.sketch(table, y="", percent=STATISTICS[name].share)
    for position, one in enumerate(series):
        shares = [
            state_shares(states_of(read[label].exact, read[label].found.held)).with_columns(
                step=pl.lit(step), checkpoint=pl.lit(label)
            )
            for step, label in zip(one.steps, one.labels, strict=True)
        ]
        figures[f"fates-{position}"] = plots.fate_areas.sketch(pl.concat(shares), names=STATE_NAMES)
    return figures


def steps_table(readings: Readings) -> pl.DataFrame:
    """[run, step, checkpoint, n_layers, exact, lof_restricted_mean], for :func:`memprobe.sentences.of_steps`."""
    rows: list[dict[str, Any]] = [
        {"run": one.name, "step": step, "checkpoint": member.label, "n_layers": member.n_layers}
        | {name: readings.placed(member.label)[name] for name in ("exact", "lof_restricted_mean")}
        for one in series_of(readings)
        for step, member in zip(one.steps, one.members, strict=True)
    ]
    return pl.DataFrame(rows, schema=_STEPS)


_STEPS = {"run": pl.String, "step": pl.Int64, "checkpoint": pl.String, "n_layers": pl.Int64} | dict.fromkeys(
    ("exact", "lof_restricted_mean"), pl.Float64
)
