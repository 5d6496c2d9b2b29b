"""Curves over depth: recall@k, its chance level from shuffled answers, and normalised frequency."""

from __future__ import annotations

import numpy as np
import polars as pl

from memprobe.statistics.holding import Trajectories, held, in_order
from memprobe.statistics.intervals import Resamples, bootstrap, bootstrap_mean, median_interval, wilson


def recall_by_depth(frame: pl.DataFrame | pl.LazyFrame, *, k: int, token: str) -> pl.DataFrame:
    """recall@k(d): the share of factoids whose answer is in the top k at depth d, under the token rule.

    Returns:
        [checkpoint, (control,) depth, n, recall, low, high]; Wilson intervals; ``n`` factoids have that depth.
    """
    table = held(frame, k=k, token=token)
    keys = [name for name in ("checkpoint", "control") if name in table.columns]
    shares = table.group_by(*keys, "depth", maintain_order=True).agg(
        pl.len().cast(pl.Int64).alias("n"), pl.col("held").mean().alias("recall")
    )
    return _with_wilson(in_order(shares, keys))


def shuffled_recall(controls: pl.DataFrame | pl.LazyFrame, *, k: int, token: str) -> pl.DataFrame:
    """recall@k(d) of shuffled answers, the chance level: the mean over the ``shuffled:…`` draws.

    A factoid's value is its mean over the draws. The interval is Wilson's on the number of factoids, which is
    not too narrow: a value between 0 and 1 varies no more than a yes or no with the same mean.

    Returns:
        [checkpoint, depth, n, recall, low, high]
    """
    table = held(controls.lazy().filter(pl.col("control").str.starts_with("shuffled:")), k=k, token=token)
    per_factoid = table.group_by("checkpoint", "factoid", "depth", maintain_order=True).agg(
        pl.col("held").mean()
    )
    shares = per_factoid.group_by("checkpoint", "depth", maintain_order=True).agg(
        pl.len().cast(pl.Int64).alias("n"), pl.col("held").mean().alias("recall")
    )
    return _with_wilson(in_order(shares, ["checkpoint"]))


def normalised_frequency(frame: pl.DataFrame | pl.LazyFrame, *, k: int, token: str) -> pl.DataFrame:
    """Occurrences at depth d divided by all occurrences over depths 1 … n_layers (the paper's figure 4, left).

    Returns:
        [checkpoint, (control,) depth, frequency] for depths >= 1; null where nothing occurs at any of them.
    """
    table = held(frame, k=k, token=token).filter(pl.col("depth") >= 1)
    keys = [name for name in ("checkpoint", "control") if name in table.columns]
    counts = table.group_by(*keys, "depth", maintain_order=True).agg(pl.col("held").sum().alias("count"))
    total = pl.col("count").sum().over(keys)
    frequency = pl.when(total > 0).then(pl.col("count") / total).alias("frequency")
    return in_order(counts, keys).select(*keys, "depth", frequency)


def area(recall: np.ndarray) -> np.ndarray:
    """Area under the recall curve as a share of its largest value: the trapezoid rule over depths.

    Args:
        recall: [..., depth 0 … n_layers].

    Returns:
        [...], in 0 … 1; the mean over depth of the share of facts that have surfaced there.
    """
    return np.trapezoid(recall, axis=-1) / (recall.shape[-1] - 1)


def curves_of(trajectory: Trajectories, *, k: int, chance: np.ndarray, resamples: Resamples) -> pl.DataFrame:
    """Every curve of one checkpoint, with its 95 % band.

    ``recall`` (Wilson); ``chance`` the same of shuffled answers and ``net`` their difference, paired by
    factoid; ``frequency`` the normalised frequency (null at depth 0); ``log_prob`` and ``entropy`` the means,
    in nats; ``median_rank`` by order statistics. All but recall and rank are bootstrapped over factoids.

    Args:
        chance: [factoid, depth], how often shuffled answers are held; NaN where there are none.

    Returns:
        [depth, n, recall, recall_low, recall_high, chance, net…, frequency…, log_prob…, entropy…, median_rank…]
    """
    missing = trajectory.rank < 0
    holds = np.where(missing, np.nan, trajectory.held(k).astype(float))
    n = (~missing).sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        recall = np.nansum(holds, axis=0) / n
        chance_mean = np.nansum(chance, axis=0) / (~np.isnan(chance)).sum(0)
    frequency = bootstrap(
        np.nan_to_num(holds)[:, 1:], resamples, lambda sums, counts: sums / sums.sum(1)[:, None]
    )
    means = bootstrap_mean(
        np.column_stack([holds - chance, trajectory.log_prob, trajectory.entropy]), resamples
    )
    net, log_prob, entropy = zip(*(np.split(edge, 3) for edge in means), strict=True)
    medians = np.array([median_interval(column[column >= 0]) for column in trajectory.rank.T]).T
    curves = {
        "recall": (recall, *wilson(recall, n)),
        "net": net,
        "frequency": tuple(np.concatenate([[np.nan], edge]) for edge in frequency),
        "log_prob": log_prob,
        "entropy": entropy,
        "median_rank": tuple(medians),
    }
    columns = {"depth": np.arange(len(n)), "n": n}
    for name, edges in curves.items():
        columns |= {f"{name}{end}": edge for end, edge in zip(("", "_low", "_high"), edges, strict=True)}
        if name == "recall":
            columns["chance"] = chance_mean
    return pl.DataFrame(columns, nan_to_null=True)


def _with_wilson(shares: pl.DataFrame) -> pl.DataFrame:
    low, high = wilson(shares["recall"].to_numpy(), shares["n"].to_numpy())
    return shares.with_columns(pl.Series("low", low), pl.Series("high", high))
