"""Rooms of what else one pass read: a checkpoint through every lens and at every position, and what its blocks write.

Each is a figure for a checkpoint, and a table. They are there where the probe has more than one lens or position, or
attributions, and stand with the readings through the first lens at the first position.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import polars as pl

from memprobe import plots, wording
from memprobe.compare import TABLES
from memprobe.compare.beside import PARTS, is_net, lens_cells, lens_columns, written
from memprobe.plots import Sketch
from memprobe.readings import Readings
from memprobe.statistics.vocabulary import label as called

MOST = 6
"""Checkpoints that these rooms show: each costs a pass over the records of every lens."""


@dataclass(frozen=True)
class Beside:
    """What one top-k and token rule show in these rooms.

    Attributes:
        figures: by name, ``ROOM-NUMBER`` of the checkpoint.
        tables: by room, rows of texts, the head first; ``also_in`` stands with the differences.
    """

    figures: dict[str, Sketch] = field(default_factory=dict)
    tables: dict[str, list[list[str]]] = field(default_factory=dict)


def beside_of(readings: Readings) -> Beside:
    """The rooms that these readings have."""
    beside, labels, probe = Beside(), readings.labels[:MOST], readings.members[0].probe
    if probe.lens != probe.lenses[0] or probe.position != probe.positions[0]:
        return beside
    if len(readings.by_lens) > 1:
        curves, placed = (TABLES[name](readings, labels) for name in ("lenses_by_depth", "lenses"))
        _draw(beside, "lenses", labels, curves, lambda rows: _curves(rows, "lens"))
        head = ["Checkpoint", *(name.capitalize() for name in lens_columns(readings.lens))]
        rows = [[row["checkpoint"], *lens_cells(row)] for row in placed.iter_rows(named=True)]
        beside.tables["lenses"] = [head, *rows]
        if rows := _also_in(readings, labels):
            beside.tables["also_in"] = rows
    positions = TABLES["positions_by_depth"](readings, labels)
    if len(positions):
        _draw(beside, "positions", labels, positions, lambda rows: _curves(rows, "position"))
        beside.tables["positions"] = _by_position(positions, readings.k)
    contributions = TABLES["contributions"](readings, labels)
    if len(contributions):
        net = is_net(contributions)
        value = {"net": "value", "net_low": "low", "net_high": "high"} if net else {"logit": "value"}
        edges = ["low", "high"] if net else []
        shown = contributions.drop(edges).rename(value)
        _draw(
            beside, "written", labels, shown, lambda rows: plots.contribution_curves.sketch(rows, names=PARTS)
        )
        table = written(TABLES["largest_contribution"](readings, labels), contributions)
        head, *columns = table.columns
        beside.tables["written"] = [["Checkpoint", *columns], *(list(row) for row in table.rows)]
    return beside


def _draw(beside: Beside, room: str, labels: list[str], table: pl.DataFrame, draw: Any) -> None:
    for at, label in enumerate(labels):
        beside.figures[f"{room}-{at}"] = draw(table.filter(checkpoint=label))


def _curves(table: pl.DataFrame, line: str) -> Sketch:
    """Recall by depth, a line for each lens or position."""
    table = table.drop("checkpoint").rename({line: "checkpoint"})
    recall = table.rename({"recall_low": "low", "recall_high": "high"})
    chance = recall.select(
        "checkpoint", "depth", pl.col("chance").alias("recall"), low="chance", high="chance"
    )
    figure = plots.recall_curves.sketch(recall, chance.drop_nulls("recall"))
    # A line is no checkpoint here, which the choice of checkpoints does not concern.
    for trace in figure.data:
        meta: dict[str, Any] = dict(trace.get("meta") or {})
        trace["meta"] = {line: meta.pop("checkpoint", None)} | meta
    return figure


def _by_position(table: pl.DataFrame, k: int) -> list[list[str]]:
    """The most that a depth holds at each position, and where; the facts are those that have every position."""
    rows = []
    for part in table.partition_by("checkpoint", "position", maintain_order=True):
        most = part.sort("recall", "depth", descending=[True, False]).row(0, named=True)
        last = part.sort("depth").row(-1, named=True)
        share = [wording.of_row(row, "recall", ".1%") for row in (most, last)]
        chance = wording.percent(most["chance"])
        rows.append(
            [
                most["checkpoint"],
                most["position"],
                str(most["n"]),
                str(most["depth"]),
                share[0],
                chance,
                share[1],
            ]
        )
    head = [
        "Checkpoint",
        "Read at",
        "Facts",
        "Depth of the most",
        f"Recall@{k} there",
        "By chance",
        "At full depth",
    ]
    return [head, *rows]


def _also_in(readings: Readings, labels: list[str]) -> list[list[str]]:
    """Differences of placement whose interval leaves 0 out, and the other lenses that say so too."""
    pairs = [pair for pair in readings.pairs if pair[1] in labels and readings.same_depths(*pair)]
    if not pairs:
        return []
    claims = TABLES["claims"](readings, own=TABLES["differences"](readings, pairs))
    known = claims.filter(pl.col("also_in").is_not_null(), pl.col("own_low").is_not_null())
    rows = [claim_cells(row) for row in known.iter_rows(named=True)]
    return [claim_head(lenses=True), *rows] if rows else []


def claim_head(*, lenses: bool) -> list[str]:
    """Names of :func:`claim_cells`."""
    head = ["Checkpoint", "Against", "Statistic", "Own readout", "Base model’s readout", "Held"]
    return [*head, "Also by lens"] if lenses else head


def claim_cells(row: Any, *, lenses: bool = True) -> list[str]:
    """The texts of one row of the table ``claims``."""
    form = wording.form_of(row["statistic"], signed=True)
    numbers = [
        wording.interval(row[f"{which}_difference"], row[f"{which}_low"], row[f"{which}_high"], form)
        for which in ("own", "fixed")
    ]
    held = wording.MISSING if row["held"] is None else wording.HELD[row["held"]]
    cells = [row["checkpoint"], row["reference"], called(row["statistic"]), *numbers, held]
    if not lenses:
        return cells
    also = row["also_in"]
    return [*cells, wording.MISSING if also is None else ", ".join(also) or "none"]
