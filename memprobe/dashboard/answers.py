"""The sentences on top of the page, for each top-k and token rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from memprobe import sentences
from memprobe.compare import TABLES
from memprobe.dashboard.series import series_of, steps_table
from memprobe.readings import Readings
from memprobe.statistics.arms import MIN_SEEDS
from memprobe.statistics.controls import held_in_both
from memprobe.statistics.occurrence import ENDS
from memprobe.statistics.vocabulary import label as called


def answer_of(
    readings: Readings,
    headline: Mapping[str, Mapping[str, Any]],
    differences: pl.DataFrame | None,
) -> list[str]:
    """What is recalled, at which depth, whether above chance; for several checkpoints, what changed: between arms where
    they have seeds enough, as ``memprobe compare`` says it.

    Args:
        headline: by label, the numbers of the page's first table.
        differences: [against, reference, checkpoint, statistic, difference, low, high] and, where a second readout was
            probed, fixed_low and fixed_high; none where there is one checkpoint.
    """
    reference = readings.reference
    series = series_of(readings)
    lines = sentences.of_steps(steps_table(readings), called(readings.measure))
    # Of a run, where it ends says more than where it began.
    ends = [one.labels[-1] for one in series[: sentences.MOST]] or [reference.label]
    lines += [_of_checkpoint(readings, label, headline[label]) for label in ends]
    if differences is None:
        return lines
    over = _between_arms(readings)
    if over is not None and over["low"].count():
        return lines + sentences.of_arms(over, len(readings.factoids), called(readings.measure))
    passed = {label for one in series for label in one.labels[:-1]}
    pairs = _pairs(differences, [label for label in readings.labels if label not in passed])
    rows = {
        (row["reference"], row["checkpoint"], row["statistic"]): row
        for row in differences.iter_rows(named=True)
    }
    compared = []
    for before, label in pairs[: sentences.MOST]:
        exact, depth = (rows[before, label, name] for name in ("exact", "lof_restricted"))
        compared.append((label, before, exact, depth, held_in_both(depth)))
    lines += sentences.of_pairs(compared, measure=called(readings.measure))
    if len(pairs) > sentences.MOST:
        lines.append(f"And {len(pairs) - sentences.MOST} more.")
    return lines


def _between_arms(readings: Readings) -> pl.DataFrame | None:
    """The differences over seeds, where an arm has enough of them for an interval: the table costs draws of its own."""
    seeds: dict[tuple[str, str | None], set[str | None]] = {}
    for member in readings.members:
        if member.arm is not None:
            seeds.setdefault((member.arm, member.stage), set()).add(member.seed)
    several = sum(len(of_arm) >= MIN_SEEDS for of_arm in seeds.values())
    return TABLES["arm_differences"](readings) if several > 1 else None


def _pairs(differences: pl.DataFrame, labels: Sequence[str]) -> list[tuple[str, str]]:
    """Each checkpoint with the stage before it where its run is known, else with the reference."""
    reference_of: dict[str, str] = {}
    for against in ("before", "reference"):
        part = differences.filter(pl.col("against") == against)
        for before, label in part.select("reference", "checkpoint").unique(maintain_order=True).iter_rows():
            reference_of.setdefault(label, before)
    return [(reference_of[label], label) for label in labels if label in reference_of]


def _of_checkpoint(readings: Readings, label: str, row: Mapping[str, Any]) -> str:
    chance = row["shuffled"] or {}
    exact = row[readings.measure]
    return sentences.of_checkpoint(
        label,
        n=len(readings.factoids),
        n_layers=readings.member(label).n_layers,
        k=readings.k,
        exact=None if exact is None else exact["value"],
        median=row["lof_median"],
        never=row["share_never"],
        chance_never=chance.get("share_never"),
        net=[row[f"net_lof{end}"] for end in ENDS],
        net_n=row.get("net_lof_n"),
        measure=called(readings.measure),
    )
