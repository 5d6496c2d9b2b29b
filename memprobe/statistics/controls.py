"""Controls: what a statistic would be by chance, and whether a placement holds in another readout."""

from __future__ import annotations

import numpy as np
import polars as pl

from memprobe.statistics.holding import Trajectories, check_rule
from memprobe.statistics.intervals import Resamples, bootstrap_mean
from memprobe.statistics.occurrence import first_depth, restricted


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


def chance_held(shuffled: list[Trajectories], factoids: np.ndarray, n_depths: int, k: int) -> np.ndarray:
    """How often a factoid's shuffled answers are in the top k at each depth: the mean over draws.

    Args:
        shuffled: one checkpoint's ``shuffled:…`` controls.
        factoids: ids, giving the order of rows.

    Returns:
        float64 [factoid, depth]; NaN where a factoid has no draw.
    """
    return _mean_over_draws(shuffled, factoids, lambda one: one.held(k).astype(float), n_depths)


def chance_lof(shuffled: list[Trajectories], factoids: np.ndarray, k: int) -> np.ndarray:
    """[factoid]: the first occurrence of shuffled answers, "never" as n_layers + 1, meaned over draws."""

    def depth(one: Trajectories) -> np.ndarray:
        return restricted(first_depth(one.held(k)), one.n_layers)[:, None]

    return _mean_over_draws(shuffled, factoids, depth, 1)[:, 0]


def net_of(values: np.ndarray, control: np.ndarray, resamples: Resamples) -> tuple[np.ndarray, ...]:
    """Any per-factoid statistic net of a control: the mean of ``values - control``, low and high by column.

    Args:
        values, control: [factoid, column]; a factoid without one of them is left out.
    """
    return bootstrap_mean(values - control, resamples)


def placement_claims(own: pl.DataFrame, fixed: pl.DataFrame | None) -> pl.DataFrame:
    """Which placement differences are held: only those that hold in the checkpoint's own readout and in the
    base model's (fine-tuning moves the unembedding, and with it every depth's ranks).

    Args:
        own: [reference, checkpoint, statistic, difference, low, high, …] read with each one's own unembedding.
        fixed: the same read with the base model's; ``None`` where that was not probed.

    Returns:
        [reference, checkpoint, statistic, own_difference, own_low, own_high, fixed_difference, fixed_low,
        fixed_high, held]; ``held`` is null where the fixed readout is not known, and true only where both
        intervals lie on the same side of 0.
    """
    keys = ["reference", "checkpoint", "statistic"]
    numbers = ["difference", "low", "high"]
    table = own.select(*keys, *(pl.col(name).alias(f"own_{name}") for name in numbers))
    if fixed is None:
        none = [pl.lit(None, pl.Float64).alias(f"fixed_{name}") for name in numbers]
        return table.with_columns(*none, pl.lit(None, pl.Boolean).alias("held"))
    other = fixed.select(*keys, *(pl.col(name).alias(f"fixed_{name}") for name in numbers))
    joined = table.join(other, on=keys, how="left", maintain_order="left")
    up = (pl.col("own_low") > 0) & (pl.col("fixed_low") > 0)
    down = (pl.col("own_high") < 0) & (pl.col("fixed_high") < 0)
    known = pl.col("fixed_low").is_not_null() & pl.col("own_low").is_not_null()
    return joined.with_columns(pl.when(known).then(up | down).alias("held"))


def _mean_over_draws(shuffled, factoids: np.ndarray, of, width: int) -> np.ndarray:
    position = {factoid: row for row, factoid in enumerate(factoids)}
    total, count = np.zeros((len(factoids), width)), np.zeros((len(factoids), 1))
    for one in shuffled:
        kept = np.array([factoid in position for factoid in one.factoids], dtype=bool)
        rows = np.array([position[factoid] for factoid in one.factoids[kept]], dtype=np.int64)
        total[rows] += of(one)[kept]
        count[rows] += 1
    with np.errstate(invalid="ignore"):
        return np.where(count > 0, total / count, np.nan)
