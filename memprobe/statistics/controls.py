"""Controls: what a statistic would be by chance, what is left of it net of that, and whether a placement holds
in another readout.

A control is read at the same positions as the fact: shuffled answers (another factoid's), the base model (the same
answer, before training) or intrusions (answers of another dataset). It gives every factoid a value of the same
statistic, so that "net" is always the mean of paired differences, see :func:`net_of`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import polars as pl

from memprobe.statistics.holding import Trajectories, check_rule
from memprobe.statistics.intervals import FEWEST, Resamples, bootstrap, of_unanimous_shares, wilson
from memprobe.statistics.occurrence import Occurrence, put, put_share
from memprobe.statistics.paired import mean_difference
from memprobe.statistics.verdicts import on_one_side
from memprobe.statistics.vocabulary import PER_FACTOID

STATISTICS = tuple(PER_FACTOID)
"""Per-factoid values whose means are compared; see :func:`values_of`."""
SHARES = tuple(key for key, row in PER_FACTOID.items() if row.share)
"""Those of them whose means are shares."""
IS_SHARE = np.array([key in SHARES for key in STATISTICS])
"""[STATISTICS], which of them are."""
BINARY = tuple(key for key, row in PER_FACTOID.items() if row.interval == "wilson")
"""Those of them that a factoid has or has not."""

CURVES = ("recall", "log_prob")
"""Per-factoid values by depth; see :func:`curve_values`."""


def values_of(trajectory: Trajectories, found: Occurrence, exact: np.ndarray | None = None) -> np.ndarray:
    """Every statistic of a factoid, see :data:`memprobe.statistics.vocabulary.PER_FACTOID`.

    Args:
        trajectory: whose ``found`` are the occurrences; controls have no log_prob.
        exact: bool [factoid]; ``None`` for controls.

    Returns:
        float64 [factoid, STATISTICS]; NaN where there is none.
    """
    columns = [row.of(trajectory, found, exact) for row in PER_FACTOID.values() if row.of is not None]
    return np.column_stack(columns).astype(float)


def means_of(values: Mapping[str, np.ndarray], resamples: Resamples) -> dict[str, float | None]:
    """Means over factoids, each with the interval that :mod:`~memprobe.statistics.vocabulary` names for it.

    Args:
        values: by statistic of a factoid, [factoid], NaN where there is none.

    Returns:
        NAME, NAME_low and NAME_high of each; ``None`` where a number does not exist.
    """
    row: dict[str, float | None] = {}
    for name, column in values.items():
        if PER_FACTOID[name].interval == "wilson":
            put_share(row, name, column[~np.isnan(column)])
        else:
            mean, low, high = bootstrap(column[:, None], resamples, lambda sums, counts: sums / counts)
            if PER_FACTOID[name].share:
                low, high = of_unanimous_shares(mean, low, high, resamples.having(~np.isnan(column)))
            put(row, name, float(mean[0]), float(low[0]), float(high[0]))
    return row


def curve_values(trajectory: Trajectories, k: int) -> np.ndarray:
    """float64 [factoid, CURVES x depth]: whether each depth holds the answer, then its log_prob there (nats).

    NaN where the depth is missing, and for the log_prob of controls, which have none.
    """
    recall = np.where(trajectory.rank < 0, np.nan, trajectory.held(k))
    has_log_prob = trajectory.log_prob.size
    return np.column_stack([recall, trajectory.log_prob if has_log_prob else np.full(recall.shape, np.nan)])


def answer_cover(records: pl.DataFrame | pl.LazyFrame, *, k: int, token: str) -> float:
    """The share of factoids that naming the k commonest answer tokens would cover, whatever the prompt.

    A lens that has learnt only which tokens answers are made of scores this much. Under the rule ``all`` each
    token index has its own k commonest tokens, and a factoid is covered where all of its tokens are.

    Args:
        records: of one checkpoint.
    """
    check_rule(token)
    tokens = (
        records.lazy().filter(pl.col("token") >= 0).select("factoid", "token", "token_id").unique().collect()
    )
    if token == "first":
        tokens = tokens.filter(pl.col("token") == 0)
    elif token == "last":
        tokens = tokens.filter(pl.col("token") == pl.col("token").max().over("factoid"))
        tokens = tokens.with_columns(token=pl.lit(0))
    common = (
        tokens.group_by("token", "token_id")
        .len()
        .sort("token", "len", "token_id", descending=[False, True, False])
        .group_by("token", maintain_order=True)
        .head(k)
        .with_columns(covered=pl.lit(True))
    )
    joined = tokens.join(common, on=["token", "token_id"], how="left")
    covered = joined.group_by("factoid").agg(pl.col("covered").is_not_null().all())["covered"]
    return float(np.mean(covered.to_numpy())) if len(covered) else float("nan")


def by_control(draws: list[Trajectories], factoids: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """What :func:`values_of` and :func:`curve_values` are of a control: by factoid, the mean over its draws.

    Args:
        draws: one checkpoint's trajectories of one control, such as ``shuffled:0`` … ``shuffled:4``.
        factoids: ids, giving the order of rows.

    Returns:
        [factoid, STATISTICS] and [factoid, CURVES x depth]; NaN where no draw has a value. A mean first
        occurrence is over the draws that occur.
    """
    position = {factoid: row for row, factoid in enumerate(factoids)}
    total, count = np.zeros((0, 0)), np.zeros((0, 0), np.int32)
    for draw in draws:
        kept = np.array([factoid in position for factoid in draw.factoids], dtype=bool)
        rows = np.array([position[factoid] for factoid in draw.factoids[kept]], dtype=np.int64)
        cells = np.column_stack([values_of(draw, Occurrence.of(draw, k)), curve_values(draw, k)])[kept]
        if not total.size:
            shape = len(factoids), cells.shape[1]
            total, count = np.zeros(shape), np.zeros(shape, np.int32)
        there = ~np.isnan(cells)
        total[rows] += np.where(there, cells, 0.0)
        count[rows] += there
    with np.errstate(invalid="ignore"):
        mean = np.where(count > 0, total / count, np.nan)
    return mean[:, : len(STATISTICS)], mean[:, len(STATISTICS) :]


def net_of(
    values: np.ndarray, control: np.ndarray, resamples: Resamples, *, shares: np.ndarray | bool = False
) -> pl.DataFrame:
    """Any per-factoid statistic net of a control: the mean of ``values - control``, with the interval of
    :func:`~memprobe.statistics.paired.mean_difference`.

    Args:
        values, control: [factoid, column]; a factoid without one of them is left out of all that is said.
        shares: bool [column], which are shares; the interval of what is net of another ends at −1 and 1.

    Returns:
        [n, value, chance, net, low, high], one row per column, net being value - chance; null where no factoid has
        both.
    """
    paired = values - control
    missing = np.isnan(paired)
    n = (~missing).sum(0)
    net, low, high = mean_difference(paired, resamples, shares)
    with np.errstate(divide="ignore", invalid="ignore"):
        value, chance = (np.where(missing, 0.0, one).sum(0) / n for one in (values, control))
    columns = {"n": n, "value": value, "chance": chance, "net": net, "low": low, "high": high}
    return pl.DataFrame(columns).fill_nan(None)


def net_tables(
    own: tuple[np.ndarray, np.ndarray],
    controls: Mapping[str, tuple[np.ndarray, np.ndarray]],
    resamples: Resamples,
    *,
    drawn: Collection[str] = (),
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Every statistic and every curve of one checkpoint, net of each of its controls.

    Few hits of its own are a matter of luck, which their spread does not show, while a level that is the mean of
    several draws is known better. So what is known of where facts surface has no interval where few of them do
    (:data:`_OF_OCCURRENCE`), as in :func:`memprobe.statistics.placement`; and that of what a fact has or has not is no
    narrower than Wilson's of the share itself where fewer than 10 facts are on one side.

    Args:
        own: :func:`values_of` and :func:`curve_values` of the checkpoint.
        controls: the same by name of control, of the same factoids in the same order.
        drawn: names of controls that are the mean of several draws, as shuffled answers are.

    Returns:
        [control, statistic, n, value, chance, net, low, high] and [control, measure, depth, n, value, …]; without
        the rows that the control has no values for.
    """
    parts: tuple[list[pl.DataFrame], list[pl.DataFrame]] = ([], [])
    n_depths = own[1].shape[1] // len(CURVES)
    keys = (
        pl.DataFrame({"statistic": STATISTICS}),
        pl.DataFrame(
            {"measure": np.repeat(CURVES, n_depths), "depth": np.tile(range(n_depths), len(CURVES))}
        ),
    )
    recall = (keys[1]["measure"] == "recall").to_numpy()
    shares, binary = (IS_SHARE, recall), (np.isin(STATISTICS, BINARY), recall)
    for name, control in controls.items():
        for part, key, share, yes_or_no, values, beside in zip(
            parts, keys, shares, binary, own, control, strict=True
        ):
            known = (~np.isnan(values - beside)).any(0)
            table = net_of(values[:, known], beside[:, known], resamples, shares=share[known])
            if name in drawn:
                table = _of_few_hits(table, yes_or_no[known])
                if "statistic" in key.columns:
                    table = _of_few_occurrences(
                        table, key.filter(pl.Series(known))["statistic"], values, beside, resamples
                    )
            labels = key.filter(pl.Series(known)).select(pl.lit(name).alias("control"), *key.columns)
            part.append(pl.concat([labels, table], how="horizontal"))
    numbers = {"n": pl.Int64} | dict.fromkeys(("value", "chance", "net", "low", "high"), pl.Float64)
    overall = pl.DataFrame(schema={"control": pl.String, "statistic": pl.String, **numbers})
    by_depth = pl.DataFrame(schema={"control": pl.String, "measure": pl.String, "depth": pl.Int64, **numbers})
    return pl.concat([overall, *parts[0]]), pl.concat([by_depth, *parts[1]])


_OF_OCCURRENCE = {
    "lof_restricted": ("lof", FEWEST["mean of those that occur"]),
    "settled_restricted": ("settled", FEWEST["mean of those that occur"]),
    "depths_per_factoid": ("lof", FEWEST["mean"]),
    "area": ("lof", FEWEST["mean"]),
}
"""Statistics that few facts decide where few surface, or settle: the one that those alone have, and how many it
takes."""


def _of_few_occurrences(
    table: pl.DataFrame, names: pl.Series, values: np.ndarray, control: np.ndarray, resamples: Resamples
) -> pl.DataFrame:
    """:func:`net_of`, without the intervals of :data:`_OF_OCCURRENCE` where too few facts surface or settle."""
    enough = []
    for name in names:
        if name not in _OF_OCCURRENCE:
            enough.append(True)
            continue
        place, (decides, fewest) = STATISTICS.index(name), _OF_OCCURRENCE[name]
        compared = ~np.isnan(values[:, place] - control[:, place])
        occur = compared & ~np.isnan(values[:, STATISTICS.index(decides)])
        enough.append(int(resamples.having(occur)) >= fewest)
    return table.with_columns(pl.when(pl.Series(enough, dtype=pl.Boolean)).then(pl.col("low", "high")))


def _of_few_hits(table: pl.DataFrame, binary: np.ndarray) -> pl.DataFrame:
    """:func:`net_of`, whose intervals of yes-or-no statistics reach as far as Wilson's where hits or misses are few."""
    n, value, chance = (
        table[name].cast(pl.Float64).fill_null(np.nan).to_numpy() for name in ("n", "value", "chance")
    )
    few = binary & (np.fmin(value, 1 - value) * n < FEWEST["mean"] - 0.5)
    low, high = (table[name].cast(pl.Float64).fill_null(np.nan).to_numpy() for name in ("low", "high"))
    least, most = wilson(value, n)
    widened = {
        "low": np.where(few, np.minimum(low, least - chance), low),
        "high": np.where(few, np.maximum(high, most - chance), high),
    }
    return table.with_columns(**{name: pl.Series(end) for name, end in widened.items()}).fill_nan(None)


def placement_claims(own: pl.DataFrame, fixed: pl.DataFrame | None) -> pl.DataFrame:
    """Which placement differences are held: only those that hold in the checkpoint's own readout and in the
    base model's (fine-tuning moves the unembedding, and with it every depth's ranks).

    Args:
        own: [reference, checkpoint, statistic, difference, low, high, …] read with each one's own unembedding.
        fixed: the same read with the base model's; ``None`` where that was not probed.

    Returns:
        [reference, checkpoint, statistic, own_difference, own_low, own_high, fixed_difference, fixed_low,
        fixed_high, held]; ``held`` is :func:`~memprobe.statistics.verdicts.on_one_side` of the two.
    """
    keys = ["reference", "checkpoint", "statistic"]
    numbers = ["difference", "low", "high"]
    table = own.select(*keys, *(pl.col(name).alias(f"own_{name}") for name in numbers))
    if fixed is None:
        none = [pl.lit(None, pl.Float64).alias(f"fixed_{name}") for name in numbers]
        return table.with_columns(*none, pl.lit(None, pl.Boolean).alias("held"))
    other = fixed.select(*keys, *(pl.col(name).alias(f"fixed_{name}") for name in numbers))
    joined = table.join(other, on=keys, how="left", maintain_order="left")
    edges = joined.select("own_low", "own_high", "fixed_low", "fixed_high").iter_rows()
    held = [on_one_side((low, high), (other_low, other_high)) for low, high, other_low, other_high in edges]
    return joined.with_columns(pl.Series("held", held, dtype=pl.Boolean))


def held_in_both(row: Mapping[str, Any]) -> bool | None:
    """The same of a difference with low, high, and of the base model's readout, where it was probed, fixed_low and
    fixed_high."""
    return on_one_side((row["low"], row["high"]), (row.get("fixed_low"), row.get("fixed_high")))
