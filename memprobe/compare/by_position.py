"""Recall at every position read, on the same facts: where a subject is enriched before its answer is moved on."""

from __future__ import annotations

from dataclasses import replace

import polars as pl

from memprobe.compare.by_lens import chance_by_depth
from memprobe.compare.table import floats, table, with_ends
from memprobe.members import Member, common_factoids
from memprobe.readings import Readings
from memprobe.statistics.curves import recall_of


def by_position(readings: Readings) -> dict[str, Readings]:
    """The same checkpoints through the same lens at every position that all were read at, on the facts that have all of
    these positions; this reading's own position first. Empty where there is one only."""
    probes = {id(member.probe): member.probe for member in readings.members}.values()
    own = readings.members[0].probe.position
    shared = [
        name for name in readings.members[0].probe.positions if all(name in one.positions for one in probes)
    ]
    if len(shared) < 2:
        return {}
    named, ids = {}, set(readings.factoids["id"])
    for name in [own, *(name for name in shared if name != own)]:
        members = [replace(member, probe=member.probe.under(position=name)) for member in readings.members]
        ids &= set(common_factoids(members, [])["id"])
        named[name] = members
    factoids = readings.factoids.filter(pl.col("id").is_in(list(ids)))
    if factoids.is_empty():
        return {}
    return {name: _at(readings, members, factoids) for name, members in named.items()}


def _at(readings: Readings, members: list[Member], factoids: pl.DataFrame) -> Readings:
    by_label = {member.label: member for member in members}
    return replace(
        readings,
        members=members,
        reference=by_label[readings.reference.label],
        base=by_label[readings.base.label] if readings.base else None,
        factoids=factoids,
        notes=[],
        second=None,
    )


@table(
    "checkpoint",
    {"position": pl.String, "depth": pl.Int64, "n": pl.Int64} | with_ends("recall") | floats("chance"),
)
def positions_by_depth(readings: Readings, label: str) -> pl.DataFrame:
    """Recall by depth at each position, on the facts that have all of them, with its chance level."""
    parts = []
    for name, one in by_position(readings).items():
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
