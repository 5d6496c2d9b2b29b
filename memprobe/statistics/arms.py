"""Arms: claims about how checkpoints are made, which need several training seeds.

A bootstrap over factoids says how sure we are of *these* checkpoints. What another seed would have given is
known only from other seeds: both are random here, and crossed, since every seed is asked the same factoids.
"""

from __future__ import annotations

from collections.abc import Collection
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


def arm_means(runs: list[Run], names: list[str], n: int, *, shares: Collection[str] = ()) -> pl.DataFrame:
    """Each arm's mean over seeds, at each stage, with its interval.

    See :func:`arm_differences` for the interval; under three seeds there is none.

    Args:
        shares: names of those that lie between 0 and 1; their intervals end there, of which Student's knows nothing.

    Returns:
        [arm, stage, seeds, statistic, mean, low, high, by_seed]
    """
    rows = []
    for (arm, stage), members in _by_arm(runs).items():
        mean, low, high, _ = _estimate(members, [], n)
        values = np.array([run.means for run in members])
        bounded = [i for i, name in enumerate(names) if name in shares]
        low[bounded], high[bounded] = np.clip(low[bounded], 0, 1), np.clip(high[bounded], 0, 1)
        for i, name in enumerate(names):
            by_seed = [None if np.isnan(value) else float(value) for value in values[:, i]]
            rows.append([arm, stage, len(members), name, mean[i], low[i], high[i], by_seed])
    schema = {"arm": pl.String, "stage": pl.String, "seeds": pl.Int64, "statistic": pl.String}
    schema |= {"mean": pl.Float64, "low": pl.Float64, "high": pl.Float64, "by_seed": pl.List(pl.Float64)}
    return pl.DataFrame(rows, schema=schema, orient="row").with_columns(cs.float().fill_nan(None))


def arm_differences(
    runs: list[Run], names: list[str], n: int, *, reference: str | None = None
) -> pl.DataFrame:
    """Differences between arms at the same stage, over training seeds.

    The interval is the difference ± Student's quantile times its standard error. The error is what resampling
    seeds within each arm and then factoids (the same ones for every run) would give with draws without end,
    less what that counts twice. Of an arm's S seeds, the variance of the run means over S holds what is peculiar
    to a seed *and* what is peculiar to a factoid under one seed; the factoids' bootstrap of the difference holds
    the latter once more, beside what a factoid does to the whole arm. So with s² over seeds of run means, F the
    bootstrap variance of the difference of the arms' means, and I the bootstrap variance of a run's mean minus
    its arm's, meaned over seeds with S - 1,

        variance = Σ s² / S + max(0, F - Σ I / S),

    the unbiased estimate for crossed random effects, which the two-level bootstrap exceeds (Owen 2007; Searle,
    Casella & McCulloch 1992, section 5.3). Degrees of freedom are Welch's of 1947, V² / Σ (v² / (f + 2)) - 2 over
    the terms v with f of their own: Satterthwaite's of 1946 come out too few where f is 2 or 4, as s⁴ is larger
    than σ⁴ on average. In simulation the interval holds the truth in 94.5 % with three and with five seeds; where one
    arm's seeds scatter three times as widely as the other's, in 92.9 % and 93.8 %: how wide each arm scatters is
    known from so few seeds alone (the Behrens-Fisher problem; tests/benchmarks/interval_coverage.json).

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
        difference, low, high, p = _estimate(members, others, n)
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
    members: list[Run], others: list[Run], n: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Mean of ``members`` minus that of ``others`` (if any), low, high and p, each [statistic]."""
    sides = [(1, members), *([(-1, others)] if others else [])]
    value = np.sum([sign * np.mean([run.means for run in side], axis=0) for sign, side in sides], axis=0)
    nothing = np.full_like(value, np.nan)
    if min(len(side) for _, side in sides) < MIN_SEEDS or n < 2:
        return value, nothing, nothing, nothing
    unbiased = n / (n - 1)  # a bootstrap's variance is that of the sample with n below
    arms = np.zeros((len(members[0].draws), len(value)))
    twice = np.zeros_like(value)
    terms = []  # (variance, its degrees of freedom)
    for sign, side in sides:
        draws = np.array([run.draws for run in side], float)  # [seed, draw, statistic]
        mean = draws.mean(0)
        count = len(side)
        arms += sign * mean
        terms.append((np.var([run.means for run in side], axis=0, ddof=1) / count, count - 1))
        twice += np.var(draws - mean, axis=1).sum(0) / (count - 1) / count
    terms.append((unbiased * np.clip(np.var(arms, axis=0) - twice, 0, None), n - 1))
    variance = np.sum([term for term, _ in terms], axis=0)
    se = np.sqrt(variance)
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = np.sum([term**2 / (freedom + 2) for term, freedom in terms], axis=0)
        freedom = np.where(variance > 0, variance**2 / parts - 2, n - 1)
        half = special.stdtrit(freedom, 0.5 + LEVEL / 2) * se
        p = np.where(se > 0, 2 * special.stdtr(freedom, -np.abs(value) / se), np.where(value == 0, 1.0, 0.0))
    return value, value - half, value + half, p
