"""Tables of what else was read in the same pass: the other lenses, and what each block writes towards the answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from memprobe.compare.table import NUMBERS, floats, row, table, with_ends
from memprobe.readings import SHUFFLED, Readings
from memprobe.statistics import attributions as attributed
from memprobe.statistics.controls import CURVES, IS_SHARE, STATISTICS
from memprobe.statistics.curves import recall_of
from memprobe.statistics.lenses import Surfaced, first_occurrence_by_lens
from memprobe.statistics.paired import differences as differences_of
from memprobe.statistics.verdicts import side_of

_LOF = STATISTICS.index("lof_restricted")


@table(
    "checkpoint",
    {"lens": pl.String, "k": pl.Int64, "n": pl.Int64}
    | {"lof_answers": pl.Int64}
    | with_ends("lof")
    | floats("never")
    | {"n_net": pl.Int64}
    | floats("chance")
    | with_ends("net", "difference", "agree")
    | floats("floor", "floor_mean"),
)
def lenses(readings: Readings, label: str) -> pl.DataFrame:
    """Where a checkpoint's answers surface by each lens, whether the lenses agree, and the floors of fitted ones.

    See :func:`memprobe.statistics.lenses.first_occurrence_by_lens`; ``floor`` is how far apart two fits on halves
    of the lens's corpus place a fact, ``floor_mean`` the mean.
    """
    if not _several(readings):
        return lenses.empty.drop("checkpoint")
    surfaced = {}
    for name, one in readings.by_lens.items():
        chance = one.shuffled_values(label)
        surfaced[name] = Surfaced(one[label].values[:, _LOF], chance[:, _LOF])
    surfacing = first_occurrence_by_lens(surfaced, readings.member(label).n_layers, readings.resamples())
    floors = [one.floor(label) for one in readings.by_lens.values()]
    return surfacing.with_columns(
        pl.Series("floor", [floor.lof for floor in floors], dtype=pl.Float64),
        pl.Series("floor_mean", [floor.lof_mean for floor in floors], dtype=pl.Float64),
        k=pl.lit(readings.k),
    )


@table(
    "checkpoint",
    {"lens": pl.String, "depth": pl.Int64, "n": pl.Int64} | with_ends("recall") | floats("chance", "floor"),
)
def lenses_by_depth(readings: Readings, label: str) -> pl.DataFrame:
    """Recall by depth through each lens, its chance level, and how far apart two fits on halves of its corpus read."""
    if not _several(readings):
        return lenses_by_depth.empty.drop("checkpoint")
    parts = []
    for name, one in readings.by_lens.items():
        curve = recall_of([one[label].trajectory], k=readings.k).sort("depth")
        chance = chance_by_depth(one, label)
        floor = list(one.floor(label).recall) or [None] * len(curve)
        parts.append(
            curve.rename({"low": "recall_low", "high": "recall_high"}).select(
                pl.lit(name).alias("lens"),
                *("depth", "n", "recall", "recall_low", "recall_high"),
                pl.Series("chance", chance, dtype=pl.Float64),
                pl.Series("floor", floor, dtype=pl.Float64),
            )
        )
    return pl.concat(parts)


def chance_by_depth(readings: Readings, label: str) -> list[float | None]:
    """Recall by depth of shuffled answers, over the facts that have any."""
    cells = readings.controls(label).get(SHUFFLED)
    depths = readings.member(label).n_layers + 1
    if cells is None:
        return [None] * depths
    start = CURVES.index("recall") * depths
    values = cells.curves[:, start : start + depths]
    known = ~np.isnan(values).any(1)
    return values[known].mean(0).tolist() if known.any() else [None] * depths


def _several(readings: Readings) -> bool:
    """Whether there is more to tell of lenses than that it is the Logit Lens."""
    return len(readings.by_lens) > 1 or readings.run_json["lenses"][readings.lens]["kind"] != "logit"


def differences_by_lens(readings: Readings, pairs: Sequence[tuple[str, str]]) -> pl.DataFrame:
    """Paired differences of every statistic through each lens that is neither the one looked through nor the one that
    stands for the base model's readout.

    Returns:
        [lens, reference, checkpoint, statistic, n, difference, low, high, p, effect, dominance]
    """
    compared = {readings.lens, readings.second.lens if readings.second else readings.lens}
    parts = []
    for name, one in readings.by_lens.items():
        for reference, checkpoint in pairs if name not in compared else ():
            values = one[checkpoint].values - one[reference].values
            drawn = readings.resamples()
            differences = differences_of(values, drawn, shares=IS_SHARE, seed=readings.seed)
            keys = {"lens": name, "reference": reference, "checkpoint": checkpoint}
            front = [pl.lit(value).alias(key) for key, value in keys.items()]
            parts.append(differences.select(*front, pl.Series("statistic", STATISTICS), pl.all()))
    return pl.concat(parts) if parts else pl.DataFrame()


def also_in(readings: Readings, own: pl.DataFrame) -> pl.Series:
    """For each row of differences in the own readout, the other lenses by which it lies on the same side of 0 with all
    of its interval; null where there is no other lens.

    Args:
        own: [reference, checkpoint, statistic, own_low, own_high].
    """
    pairs = own.select("reference", "checkpoint").unique(maintain_order=True).rows()
    others = differences_by_lens(readings, [(str(one), str(other)) for one, other in pairs])
    if others.is_empty():
        return pl.Series("also_in", [None] * len(own), dtype=pl.List(pl.String))
    sides = {
        (r["reference"], r["checkpoint"], r["statistic"], r["lens"]): side_of(r["low"], r["high"])
        for r in others.iter_rows(named=True)
    }
    names = others["lens"].unique(maintain_order=True).to_list()
    held = []
    for one in own.iter_rows(named=True):
        side = side_of(one["own_low"], one["own_high"])
        key = (one["reference"], one["checkpoint"], one["statistic"])
        held.append([name for name in names if side and sides[(*key, name)] == side])
    return pl.Series("also_in", held, dtype=pl.List(pl.String))


@table(
    "checkpoint",
    {"part": pl.String, "depth": pl.Int64, "n": pl.Int64}
    | floats("logit", "low", "high")
    | with_ends("share")
    | {"n_net": pl.Int64}
    | with_ends("net")
    | with_ends("net_share"),
)
def contributions(readings: Readings, label: str) -> pl.DataFrame:
    """What each block, its attention and its MLP write towards the answers, by depth, in logits; its share of what all
    blocks write; and net of shuffled answers: :func:`memprobe.statistics.attributions.contribution_by_depth`."""
    rows = readings.attributions(label)
    if rows.is_empty():
        return contributions.empty.drop("checkpoint")
    by_depth = attributed.contribution_by_depth(
        rows,
        token=readings.token,
        answers=readings.factoids,
        draws=readings.draws,
        seed=readings.seed,
    )
    return by_depth.drop("checkpoint")


@table(
    "checkpoint",
    {"part": pl.String, "n": pl.Int64, "n_net": pl.Int64}
    | with_ends("depth")
    | floats("sd", "chance")
    | with_ends("net"),
)
def largest_contribution(readings: Readings, label: str) -> pl.DataFrame:
    """The depth that writes the most towards a fact's answer, as a placement: its mean, spread, that of shuffled
    answers, and the difference of both, paired by fact."""
    rows = readings.attributions(label)
    if rows.is_empty():
        return largest_contribution.empty.drop("checkpoint")
    place = {factoid: row for row, factoid in enumerate(readings.ids)}
    parts = []
    for part in attributed.parts_of(rows):
        placed = attributed.largest_contribution(rows, token=readings.token, part=part)
        n_layers = readings.member(label).n_layers
        drawn = readings.resamples(np.array([place[factoid] for factoid in placed["factoid"]], np.int64))
        summary = attributed.placed_in_short(placed, drawn, n_layers)
        parts.append(row({"part": part} | summary, largest_contribution.schema))
    return pl.concat(parts)


@table(
    "pair",
    {"part": pl.String, "measure": pl.String, "depth": pl.Int64, "n": pl.Int64}
    | floats(*NUMBERS, "p", "effect", "dominance"),
    aligned=True,
)
def contribution_differences(readings: Readings, reference: str, checkpoint: str) -> pl.DataFrame:
    """Contributions less the reference's, fact by fact: by depth, and (``largest``) of the depth that writes the
    most."""
    ours, theirs = (readings.attributions(label) for label in (checkpoint, reference))
    if ours.is_empty() or theirs.is_empty():
        return contribution_differences.empty.drop("reference", "checkpoint")
    shared = [part for part in attributed.parts_of(ours) if part in attributed.parts_of(theirs)]
    answers = pl.DataFrame({"id": readings.ids, "answer": readings.answers})
    both = pl.concat([theirs, ours])
    parts = []
    for part in shared:
        paired = attributed.paired_contributions(
            both,
            reference,
            answers,
            token=readings.token,
            part=part,
            draws=readings.draws,
            seed=readings.seed,
        )
        parts.append(paired.drop("checkpoint").select(pl.lit(part).alias("part"), pl.all()))
    return pl.concat(parts)
