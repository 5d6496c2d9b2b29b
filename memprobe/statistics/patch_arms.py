"""Patches by fate and by arm: from which depth do states bring back what a later stage overwrote?

A pair of checkpoints is a run here: its target's arm, seed and stage, with the stage of its source. Numbers of an arm
are over its seeds, as in :mod:`memprobe.statistics.arms`, and under three seeds each seed is shown alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from memprobe.statistics.arms import Run, are_seeds, arm_differences, arm_means
from memprobe.statistics.erasure import erasure_scores, erasure_summary
from memprobe.statistics.patches import (
    DRAWS,
    FACTS,
    GAP,
    alike_of,
    answers,
    at_every_depth,
    first_depth_summary,
    first_depths,
    moved_shares,
)
from memprobe.statistics.vocabulary import PATCHED

NAMES = ("moved_first", "moved_never")
"""Statistics over seeds, as :data:`memprobe.statistics.vocabulary.PATCHED` has them."""
_SWEEP = ["what", "positions", "direction"]


@dataclass(frozen=True)
class Made:
    """How the target of a pair was made.

    Attributes:
        arm, seed: of the target.
        stage: what was put into what, such as ``1-kvr into 2-lama``.
        before: fingerprints of the checkpoints that the target was trained from.
        rows: hash of the rows of its first stage.
        settings: what stands for all else that its recipe says; ``None`` where nothing says it.
    """

    arm: str
    seed: str
    stage: str
    before: tuple[str, ...] = ()
    rows: str = ""
    settings: str | None = None


def by_fate(
    table: pl.DataFrame,
    *,
    threshold: float = GAP,
    n_layers: int | Mapping[tuple[str, str], int] | None = None,
    draws: int = DRAWS,
) -> pl.DataFrame:
    """First depths by what became of a fact between source and target.

    Args:
        table: in the schema of :data:`memprobe.records.PATCHES`.
        threshold, n_layers, draws: as in :func:`memprobe.statistics.patches.first_depths`.

    Returns:
        As :func:`memprobe.statistics.patches.first_depth_summary`, with ``fate`` (overwritten, retained) in front and
        ``facts``, how many have that fate; ``n`` of them differ enough.
    """
    states = table.filter(pl.col("what") != "weights")
    parts = []
    for fate in FACTS[1:]:
        first = first_depths(states, facts=fate, threshold=threshold, n_layers=n_layers)
        summary = first_depth_summary(first, draws=draws)
        if not summary.is_empty():
            pair = ["source", "target", "what", "positions"]
            facts = answers(states, facts=fate).group_by(pair).agg(facts=pl.col("factoid").n_unique())
            summary = summary.join(facts, on=pair, how="left", maintain_order="left")
            parts.append(summary.select(pl.lit(fate).alias("fate"), pl.all()))
    return pl.concat(parts) if parts else pl.DataFrame()


def by_arm(
    table: pl.DataFrame,
    made: Mapping[tuple[str, str], Made],
    *,
    threshold: float = GAP,
    n_layers: int | Mapping[tuple[str, str], int] | None = None,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """First depths and facts that no depth brings back, over the training seeds of each arm.

    Facts are those that both models say differently enough, under each seed its own; for ``facts`` overwritten and
    retained those with that fate.

    Args:
        made: by (source, target) of the table; pairs that are not in it are left out, and those that were not patched
            at every depth.

    Returns:
        The arms' means, [facts, what, positions, direction] before the columns of
        :func:`memprobe.statistics.arms.arm_means`, and their differences from the first arm, the same before those of
        :func:`memprobe.statistics.arms.arm_differences`. Statistics are :data:`NAMES`.
    """
    made = _apart(made)
    means, differences = [], []
    for facts in FACTS:
        first = at_every_depth(first_depths(table, facts=facts, threshold=threshold, n_layers=n_layers))
        for part in first.drop_nulls("direction").partition_by(_SWEEP, maintain_order=True):
            values = part.with_columns(
                moved_first=pl.col("first").fill_null(pl.col("never_as")).cast(pl.Float64),
                moved_never=pl.col("first").is_null().cast(pl.Float64),
            )
            runs, n = _runs(values, NAMES, made)
            if not runs:
                continue
            head = part.head(1).select(pl.lit(facts).alias("facts"), *_SWEEP)
            deepest = max(part["never_as"].to_list()) - 1
            limits = {name: PATCHED[name].ends(deepest) for name in NAMES}
            means.append(head.join(arm_means(runs, list(NAMES), n, ends=limits), how="cross"))
            if len({run.arm for run in runs}) > 1:
                apart = arm_differences(runs, list(NAMES), n, ends=limits)
                differences.append(head.join(apart, how="cross"))
    return tuple(pl.concat(parts) if parts else pl.DataFrame() for parts in (means, differences))  # pyrefly: ignore


def curves_by_arm(
    table: pl.DataFrame,
    made: Mapping[tuple[str, str], Made],
    *,
    facts: str = "all",
    threshold: float = GAP,
) -> pl.DataFrame:
    """The share moved at every depth (or by every graft), over the training seeds of each arm.

    Returns:
        [what, positions, parts, window, direction, arm, stage, seeds, depth, last, moved, low, high, by_seed]; an
        interval from three seeds on.
    """
    made = _apart(made)
    answered = answers(table.filter(pl.col("control") == ""), facts=facts)
    shares = moved_shares(answered, threshold=threshold).drop_nulls("direction")
    keys = ["what", "positions", "parts", "window", "direction"]
    parts = []
    for part in shares.partition_by(keys, maintain_order=True):
        places = part.select("depth", "last").unique().sort("depth", "last").rows()
        names = [f"{depth}-{last}" for depth, last in places]
        wide = part.with_columns(place=pl.format("{}-{}", "depth", "last")).pivot(
            "place", index=["source", "target", "factoid"], values="moved"
        )
        runs, n = _runs(wide, names, made)
        if runs:
            at = pl.DataFrame(
                [(name, *place) for name, place in zip(names, places, strict=True)],
                schema={"statistic": pl.String, "depth": pl.Int16, "last": pl.Int16},
                orient="row",
            )
            means = arm_means(runs, names, n).join(at, on="statistic", maintain_order="left")
            columns = ["arm", "stage", "seeds", "depth", "last", pl.col("mean").alias("moved"), "low", "high"]
            parts.append(part.head(1).select(keys).join(means.select(*columns, "by_seed"), how="cross"))
    return pl.concat(parts) if parts else pl.DataFrame()


def erasures(table: pl.DataFrame, reference: str, *, draws: int = DRAWS) -> pl.DataFrame:
    """The erasure score of every checkpoint patched, beside a reference, into one that knows the facts.

    Args:
        reference: label of the checkpoint that never had the facts.

    Returns:
        [source, target, facts, n, score, low, high]; empty where the reference was patched into none.
    """
    asked = table.filter(
        (pl.col("what") == "residual") & (pl.col("positions") == "last") & (pl.col("depth") >= 1)
    )
    pairs = asked.select("source", "target").unique(maintain_order=True).rows()
    into = {target for source, target in pairs if source == reference}
    rows = [
        {"source": source, "target": target}
        | erasure_summary(
            erasure_scores(table, full=target, reference=reference, unlearned=source),
            alike_of(table),
            draws=draws,
        )
        for source, target in pairs
        if target in into and source != reference
    ]
    return pl.DataFrame(rows, infer_schema_length=None) if rows else pl.DataFrame()


def _apart(made: Mapping[tuple[str, str], Made]) -> dict[tuple[str, str], Made]:
    """Pairs of one arm, stage and seed, and of an arm trained with several settings, are arms of their own, told apart
    by their target's label."""
    seeds = are_seeds([(one.arm, one.stage, one.seed, one.settings) for one in made.values()])
    return {
        pair: one if is_seed else replace(one, arm=f"{one.arm} ({pair[1]})")
        for (pair, one), is_seed in zip(made.items(), seeds, strict=True)
    }


def _runs(
    values: pl.DataFrame, names: Sequence[str], made: Mapping[tuple[str, str], Made]
) -> tuple[list[Run], int]:
    """A run for each pair that is known, over the facts that any of them has, NaN where it lacks one.

    Args:
        values: [source, target, factoid, *names].
    """
    pairs = [
        pair for pair in values.select("source", "target").unique(maintain_order=True).rows() if pair in made
    ]
    ids = sorted({*values["factoid"]})
    runs = []
    for source, target in pairs:
        one = made[source, target]
        mine = pl.DataFrame({"factoid": ids}).join(
            values.filter((pl.col("source") == source) & (pl.col("target") == target)),
            on="factoid",
            how="left",
            maintain_order="left",
        )
        numbers = mine.select(pl.col(name).cast(pl.Float64).fill_null(np.nan) for name in names).to_numpy()
        runs.append(
            Run.of(
                one.arm,
                one.stage,
                one.seed,
                f"{source} into {target}",
                numbers,
                before=one.before,
                rows=one.rows,
            )
        )
    return runs, len(ids)
