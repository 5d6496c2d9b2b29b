"""Correlation of what is measured once for each run, where runs come in clusters: the seeds of one arm are no
independent evidence about arms."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
import polars as pl

MIN_CLUSTERS = 4
_EVERY = 7  # clusters of which every order is tried


class RankCorrelation(NamedTuple):
    """Spearman's over clusters, its two-sided permutation p (NaN below :data:`MIN_CLUSTERS`), and the smallest p that
    so few clusters can have."""

    rho: float
    p: float
    clusters: int
    least_p: float


def clustered_rank_correlation(
    x: np.ndarray, y: np.ndarray, cluster: np.ndarray, *, draws: int = 10_000, seed: int = 0
) -> RankCorrelation:
    """Spearman's rank correlation of the clusters' means, tested by exchanging clusters.

    Runs of one cluster go together in every permutation, so that three seeds of an arm count once. With up to seven
    clusters every order is tried, else so many random ones (Phipson & Smyth 2010).

    Args:
        x, y: [run]; a run without one of them, NaN, is left out, for it has no rank.
        cluster: [run], whatever identifies the arm.
    """
    known = ~(np.isnan(x) | np.isnan(y))
    x, y, cluster = x[known], y[known], cluster[known]
    names = list(dict.fromkeys(cluster.tolist()))
    left, right = (
        pl.Series([float(values[cluster == name].mean()) for name in names]).rank().to_numpy()
        for values in (x, y)
    )
    count = len(names)
    if count < MIN_CLUSTERS or np.ptp(left) == 0 or np.ptp(right) == 0:
        return RankCorrelation(np.nan, np.nan, count, np.nan)
    observed = float(np.corrcoef(left, right)[0, 1])
    left = (left - left.mean()) / np.linalg.norm(left - left.mean())
    right = (right - right.mean()) / np.linalg.norm(right - right.mean())
    if count <= _EVERY:
        orders = np.array(list(itertools.permutations(range(count))))
        reach = np.abs(left[orders] @ right)
        p = float((reach >= abs(observed) - 1e-9).mean())
        return RankCorrelation(observed, p, count, 2 / math.factorial(count))
    rng = np.random.default_rng(seed)
    orders = np.array([rng.permutation(count) for _ in range(draws)])
    hits = int((np.abs(left[orders] @ right) >= abs(observed) - 1e-9).sum())
    return RankCorrelation(observed, (1 + hits) / (1 + draws), count, 1 / (1 + draws))
