"""Arms: claims about how checkpoints are made, which need several training seeds.

A bootstrap over factoids says how sure we are of *these* checkpoints. What another seed would have given is
known only from other seeds: they are resampled first, then factoids.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
import polars.selectors as cs
from scipy import special

from memprobe.statistics.intervals import LEVEL

MIN_SEEDS = 3


@dataclass(frozen=True, eq=False)
class Run:
    """What one checkpoint (one seed of an arm, at one stage) brings.

    Attributes:
        means: [statistic], over factoids.
        draws: [draw, statistic], the same over resampled factoids; the draws of all runs are the same ones.
    """

    arm: str
    stage: str
    seed: str
    label: str
    means: np.ndarray
    draws: np.ndarray


def arm_means(runs: list[Run], names: list[str], n: int, *, seed: int = 0) -> pl.DataFrame:
    """Each arm's mean over seeds, at each stage, with its interval.

    See :func:`arm_differences` for the interval; under three seeds there is none.

    Returns:
        [arm, stage, seeds, statistic, mean, low, high, by_seed]
    """
    rows = []
    for (arm, stage), members in _by_arm(runs).items():
        mean, low, high, _ = _estimate(members, [], n, seed)
        values = np.array([run.means for run in members])
        for i, name in enumerate(names):
            by_seed = [None if np.isnan(value) else float(value) for value in values[:, i]]
            rows.append([arm, stage, len(members), name, mean[i], low[i], high[i], by_seed])
    schema = {"arm": pl.String, "stage": pl.String, "seeds": pl.Int64, "statistic": pl.String}
    schema |= {"mean": pl.Float64, "low": pl.Float64, "high": pl.Float64, "by_seed": pl.List(pl.Float64)}
    return pl.DataFrame(rows, schema=schema, orient="row").with_columns(cs.float().fill_nan(None))


def arm_differences(
    runs: list[Run], names: list[str], n: int, *, reference: str | None = None, seed: int = 0
) -> pl.DataFrame:
    """Differences between arms at the same stage, over training seeds.

    Hierarchical bootstrap: seeds are resampled within each arm, then factoids, the same ones for every run.
    A resampled seed's deviation from its arm's mean is stretched by sqrt(S / (S - 1)), without which the
    variance of a mean of S seeds comes out too small by (S - 1) / S (Davison & Hinkley 1997, section 3.8).
    The interval is the difference ± Student's quantile times the draws' sd, with Satterthwaite's degrees of
    freedom from the seeds of both arms and from the factoids: percentiles of three seeds cannot reach 95 %.
    What is peculiar to a factoid under one seed is drawn twice, which errs on the cautious side (Owen 2007).
    With fewer than three seeds on a side there is no interval and ``significant`` is null: the seeds are
    shown, and that is all they can say.

    Args:
        runs: all runs; arms are compared with ``reference`` (default: the first arm).
        n: how many factoids the means are over.

    Returns:
        [arm, reference, stage, statistic, seeds, reference_seeds, difference, low, high, p, significant]
    """
    groups = _by_arm(runs)
    reference = reference if reference is not None else runs[0].arm
    rows = []
    for (arm, stage), members in groups.items():
        others = groups.get((reference, stage), [])
        if arm == reference or not others:
            continue
        difference, low, high, p = _estimate(members, others, n, seed)
        enough = min(len(members), len(others)) >= MIN_SEEDS
        for i, name in enumerate(names):
            significant = bool(low[i] > 0 or high[i] < 0) if enough else None
            edges = [difference[i], low[i], high[i], p[i]]
            rows.append([arm, reference, stage, name, len(members), len(others), *edges, significant])
    schema = {"arm": pl.String, "reference": pl.String, "stage": pl.String, "statistic": pl.String}
    schema |= {"seeds": pl.Int64, "reference_seeds": pl.Int64}
    schema |= dict.fromkeys(("difference", "low", "high", "p"), pl.Float64) | {"significant": pl.Boolean}
    return pl.DataFrame(rows, schema=schema, orient="row").with_columns(cs.float().fill_nan(None))


def _by_arm(runs: list[Run]) -> dict[tuple[str, str], list[Run]]:
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.arm, run.stage), []).append(run)
    return groups


def _estimate(
    members: list[Run], others: list[Run], n: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Mean of ``members`` minus that of ``others`` (if any), low, high and p, each [statistic]."""
    rng = np.random.default_rng(seed)
    sides = [(1, members), *([(-1, others)] if others else [])]
    value = np.sum([sign * np.mean([run.means for run in side], axis=0) for sign, side in sides], axis=0)
    nothing = np.full_like(value, np.nan)
    if min(len(side) for _, side in sides) < MIN_SEEDS:
        return value, nothing, nothing, nothing
    total = factoids = np.zeros((members[0].draws.shape[0], len(value)))
    by_seeds = []  # (variance of the mean that seeds bring, how many seeds)
    for sign, side in sides:
        draws = np.array([run.draws for run in side])  # [seed, draw, statistic]
        centre = draws.mean(0)
        count = len(side)
        chosen = rng.integers(0, count, (count, draws.shape[1]))
        resampled = draws[chosen, np.arange(draws.shape[1])].mean(0)
        total = total + sign * (centre + np.sqrt(count / (count - 1)) * (resampled - centre))
        factoids = factoids + sign * centre
        by_seeds.append((np.var([run.means for run in side], axis=0, ddof=1) / count, count))
    se = np.std(total, axis=0, ddof=1)
    of_factoids = np.var(factoids, axis=0, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        whole = of_factoids + sum(variance for variance, _ in by_seeds)
        parts = of_factoids**2 / (n - 1) + sum(variance**2 / (count - 1) for variance, count in by_seeds)
        freedom = np.where(whole > 0, whole**2 / parts, n - 1)
        half = special.stdtrit(freedom, 0.5 + LEVEL / 2) * se
        p = np.where(se > 0, 2 * special.stdtr(freedom, -np.abs(value) / se), np.where(value == 0, 1.0, 0.0))
    return value, value - half, value + half, p
