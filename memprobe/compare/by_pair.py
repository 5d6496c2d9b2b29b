"""Tables with rows for each pair of checkpoints: differences, spread, overlap, fates, claims of placement."""

from __future__ import annotations

import numpy as np
import polars as pl

from memprobe.compare.by_checkpoint import PLACEMENT
from memprobe.compare.by_lens import also_in
from memprobe.compare.table import NUMBERS, floats, row, table, with_ends
from memprobe.readings import ARM_STATISTICS, Readings
from memprobe.statistics.controls import IS_SHARE, STATISTICS, placement_claims
from memprobe.statistics.ends import less, within
from memprobe.statistics.fates import fates as fates_of
from memprobe.statistics.fates import kept_against_lost, lost_in_short
from memprobe.statistics.fates import lost_facts as lost_facts_of
from memprobe.statistics.latent import SPREAD, spread_of, unlucky
from memprobe.statistics.occurrence import Occurrence, placement_of
from memprobe.statistics.paired import differences as differences_of
from memprobe.statistics.paired import differences_by_depth as by_depth_of
from memprobe.statistics.paired import overlap as overlap_of
from memprobe.statistics.vocabulary import ends

EVERYONE, BOTH = "all", "exact in both"
"""On which facts a difference is: all common ones, or those that both checkpoints say."""
CLAIMED = ("lof", "lof_restricted", "settled", "settled_restricted", "depths_per_factoid", "area")
"""Statistics of placement, whose differences must hold in the base model's readout too."""
_FACTS = {"path": pl.String, "n": pl.Int64} | floats("share", "low", "high")


def _on(readings: Readings, reference: str, checkpoint: str) -> list[tuple[str, np.ndarray]]:
    both = readings[reference].exact & readings[checkpoint].exact
    chosen = ((EVERYONE, np.ones(len(both), bool)), (BOTH, both))
    return [(on, which) for on, which in chosen if which.any()]


@table(
    "pair",
    {"on": pl.String, "statistic": pl.String, "n": pl.Int64} | floats(*NUMBERS, "p", "effect", "dominance"),
    aligned=True,
)
def differences(readings: Readings, reference: str, checkpoint: str) -> pl.DataFrame:
    """Paired differences of every statistic, on all facts and on those that both checkpoints say."""
    values = readings[checkpoint].values - readings[reference].values
    parts = []
    for on, which in _on(readings, reference, checkpoint):
        drawn = readings.resamples(which)
        compared = differences_of(values[which], drawn, shares=IS_SHARE, seed=readings.seed)
        front = pl.lit(on).alias("on"), pl.Series("statistic", STATISTICS)
        parts.append(compared.select(*front, pl.all()))
    return pl.concat(parts)


@table("pair", {"of": pl.String} | PLACEMENT, aligned=True)
def placement_exact_in_both(readings: Readings, reference: str, checkpoint: str) -> pl.DataFrame:
    """Placement of both checkpoints on the facts that both say."""
    parts = []
    for on, which in _on(readings, reference, checkpoint):
        for label in (reference, checkpoint) if on == BOTH else ():
            drawn = readings.resamples(which)
            place = placement_of(readings[label].found.select(which), drawn)
            parts.append(row({"of": label} | place, placement_exact_in_both.schema))
    return pl.concat(parts) if parts else placement_exact_in_both.empty.drop("reference", "checkpoint")


@table("pair", {"on": pl.String} | SPREAD, aligned=True)
def spread(readings: Readings, reference: str, checkpoint: str) -> pl.DataFrame:
    """The scale of latent depths over the reference's, net of the lucky hits that shuffled answers share."""
    parts = []
    lucky, other_lucky = (
        unlucky([Occurrence.of(one, readings.k) for one in readings.shuffled(label)])
        for label in (checkpoint, reference)
    )
    for on, which in _on(readings, reference, checkpoint):
        ours, theirs = (readings[label].found.select(which) for label in (checkpoint, reference))
        numbers = spread_of(ours, theirs, chance=lucky, reference_chance=other_lucky)
        parts.append(row({"on": on} | numbers, spread.schema))
    return pl.concat(parts)


@table(
    "pair",
    {"measure": pl.String, "depth": pl.Int64, "n": pl.Int64}
    | floats(*NUMBERS, "p", "q", "effect", "dominance"),
    aligned=True,
)
def differences_by_depth(readings: Readings, reference: str, checkpoint: str) -> pl.DataFrame:
    """Paired differences of recall, log-probability and rank at each depth."""
    return by_depth_of(
        readings[checkpoint].trajectory,
        readings[reference].trajectory,
        k=readings.k,
        resamples=readings.resamples(),
        seed=readings.seed,
    )


@table("pair", {"depth": pl.Int64} | floats("both", "either", "jaccard", "low", "high"), aligned=True)
def overlap(readings: Readings, reference: str, checkpoint: str) -> pl.DataFrame:
    """Which depths hold a fact in both checkpoints."""
    return overlap_of(readings[checkpoint].found, readings[reference].found, readings.resamples())


@table("pair", _FACTS)
def fates(readings: Readings, reference: str, checkpoint: str) -> pl.DataFrame:
    """How many facts were kept, lost and gained."""
    return fates_of(np.column_stack([readings[reference].exact, readings[checkpoint].exact]))


@table(
    "pair",
    {"factoid": pl.String, "deepest": pl.Int64, "rank": pl.Int64}
    | floats("log_prob", "log_prob_change")
    | {"intruder": pl.String, "intruder_rank": pl.Int64, "intruded": pl.Boolean},
)
def lost_facts(readings: Readings, reference: str, checkpoint: str) -> pl.DataFrame:
    """Where each lost answer went."""
    ours, theirs = readings[checkpoint], readings[reference]
    return lost_facts_of(
        ours.trajectory,
        theirs.trajectory,
        theirs.exact & ~ours.exact,
        k=readings.k,
        intrusions=readings.intrusions(checkpoint),
        first_rank=ours.first_rank,
    )


@table(
    "pair",
    {"n": pl.Int64, "n_intruded": pl.Int64}
    | with_ends("surfaces", "full", "intruded")
    | floats("deepest", "log_prob", "log_prob_change", "intruder_rank"),
)
def lost(readings: Readings, reference: str, checkpoint: str) -> pl.DataFrame:
    """:data:`lost_facts` in one row."""
    return row(lost_in_short(lost_facts.rows(readings, reference, checkpoint), readings.k), lost.schema)


@table(
    "pair",
    {"n_kept": pl.Int64, "n_lost": pl.Int64, "statistic": pl.String} | floats(*NUMBERS, "detectable"),
)
def kept(readings: Readings, reference: str, checkpoint: str) -> pl.DataFrame:
    """Whether the reference's facts that the checkpoint still recalls had surfaced there earlier than the others."""
    before, after = readings[reference].exact, readings[checkpoint].exact
    still, gone = before & after, before & ~after
    if min(still.sum(), gone.sum()) < 2:
        return kept.empty.drop("reference", "checkpoint")
    held = kept_against_lost(readings.with_net(reference), still, gone, readings.answers)
    columns = {"statistic": ARM_STATISTICS, "difference": held.difference}
    n_layers = readings.member(reference).n_layers
    low, high = within(held.low, held.high, [less(ends(name, n_layers)) for name in ARM_STATISTICS])
    columns |= {"low": low, "high": high, "detectable": held.detectable}
    counts = [pl.lit(int(which.sum())).alias(name) for name, which in (("n_kept", still), ("n_lost", gone))]
    against_lost = pl.DataFrame(columns).fill_nan(None).filter(pl.col("statistic") != "exact")
    return against_lost.select(*counts, pl.all())


@table(
    "all",
    {"reference": pl.String, "checkpoint": pl.String, "statistic": pl.String}
    | floats(*(f"{which}_{name}" for which in ("own", "fixed") for name in NUMBERS))
    | {"held": pl.Boolean, "also_in": pl.List(pl.String)},
)
def claims(readings: Readings, own: pl.DataFrame | None = None) -> pl.DataFrame:
    """Differences of placement in the own readout beside those in the base model's, and the other lenses by which they
    lie on the same side of 0.

    Args:
        own: the table ``differences``, where it is made already.
    """
    own = differences(readings) if own is None else own
    own = own.filter(pl.col("on") == EVERYONE, pl.col("statistic").is_in(CLAIMED))
    second = readings.second
    if second is None or own.is_empty():
        return _with_lenses(readings, placement_claims(own, None))
    there = set(second.labels)
    parts = []
    for reference, checkpoint in own.select("reference", "checkpoint").unique(maintain_order=True).rows():
        if not there.issuperset((reference, checkpoint)):
            continue
        values = second[checkpoint].values - second[reference].values
        compared = differences_of(values, readings.resamples(), shares=IS_SHARE)
        keys = [pl.lit(reference).alias("reference"), pl.lit(checkpoint).alias("checkpoint")]
        parts.append(compared.select(*keys, pl.Series("statistic", STATISTICS), pl.all()))
    return _with_lenses(readings, placement_claims(own, pl.concat(parts) if parts else None))


def _with_lenses(readings: Readings, table: pl.DataFrame) -> pl.DataFrame:
    return table.with_columns(also_in(readings, table))
