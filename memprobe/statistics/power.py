"""Power: which difference a design can see."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from scipy import special

from memprobe.statistics.intervals import LEVEL

POWER = 0.8
MOST_SEEDS = 200
"""Beyond which :func:`seeds_needed` gives up."""


def power_of(difference: np.ndarray | float, error: np.ndarray | float, freedom: float) -> np.ndarray:
    """How likely a two-sided t-test at 5 % sees a difference of this size (noncentral t; Cohen 1988, ch. 2).

    Args:
        difference: the true one.
        error: standard error of its estimate.
        freedom: its degrees of freedom.
    """
    apart = np.abs(difference) / np.asarray(error, float)
    edge = special.stdtrit(freedom, 0.5 + LEVEL / 2)
    # NaN far out, where there is next to nothing.
    other_side = np.nan_to_num(special.nctdtr(freedom, apart, -edge))
    return special.nctdtr(freedom, -apart, -edge) + other_side


def detectable(error: float, freedom: float, *, power: float = POWER) -> float:
    """The smallest difference that a two-sided t-test at 5 % sees with this probability.

    Args:
        error, freedom: as in :func:`power_of`; NaN where there is no error.
    """
    if not (np.isfinite(error) and error > 0 and np.isfinite(freedom)):
        return np.nan
    return float(error) * _apart(max(1.0, round(float(freedom), 1)), power)


def detectable_within(low: float, high: float) -> float:
    """:func:`detectable`, of an estimate whose 95 % interval is this, as a normal's."""
    return detectable((high - low) / 2 / special.ndtri(0.5 + LEVEL / 2), 1e9)


@lru_cache(maxsize=4096)
def _apart(freedom: float, power: float) -> float:
    """How many standard errors the truth must be from 0."""
    from scipy import optimize

    normal = special.ndtri(0.5 + LEVEL / 2) + special.ndtri(power)
    if freedom > 1e4:
        return float(normal)
    highest = 2 * normal * special.stdtrit(freedom, 0.5 + LEVEL / 2)
    root = optimize.root_scalar(
        lambda apart: float(power_of(apart, 1.0, freedom)) - power, bracket=(0.01, highest), method="brentq"
    )
    return float(root.root)


def detectable_over_seeds(
    seeds: int, between: float, within: float, *, facts: float = 1.0, power: float = POWER
) -> float:
    """The difference between two arms that so many pairs of seeds can see.

    Args:
        between: variance of a pair's difference by what is peculiar to its seed.
        within: that by its facts, at the size that it was measured at.
        facts: how many times as many facts each seed is asked: ``within`` falls by this factor.
    """
    if seeds < 2:
        return np.nan
    return detectable(np.sqrt((between + within / facts) / seeds), seeds - 1, power=power)


def seeds_needed(
    difference: float, between: float, within: float, *, facts: float = 1.0, power: float = POWER
) -> int | None:
    """How many pairs of seeds see this difference; ``None`` beyond :data:`MOST_SEEDS`.

    Args:
        between, within, facts: as in :func:`detectable_over_seeds`.
    """
    return next(
        (
            seeds
            for seeds in range(2, MOST_SEEDS + 1)
            if detectable_over_seeds(seeds, between, within, facts=facts, power=power) <= difference
        ),
        None,
    )


def scatter(
    pairs: list[np.ndarray], shares: list[np.ndarray], sizes: Sequence[int], n: int
) -> tuple[float, float]:
    """How paired differences of shares scatter over seeds, pooled over pairs of arms: (between, within).

    ``within`` is the binomial variance of a pair's difference, of facts that are answered independently;
    ``between`` is what the variance over seeds has beyond that, 0 where it has nothing. Arms with more pairs of seeds
    count for more in both, as their degrees of freedom do.

    Args:
        pairs: of each pair of arms, [seed] differences.
        shares: of each pair, [2, seed].
        sizes: facts of each seed, of each pair of arms: their noise is what theirs is.
        n: facts that ``within`` is said of.
    """
    several = [at for at, pair in enumerate(pairs) if len(pair) > 1]
    if not several:
        return np.nan, np.nan
    freedom = np.array([len(pairs[at]) - 1 for at in several], float)
    total = np.array([np.var(pairs[at], ddof=1) for at in several])
    answered = np.array([(shares[at] * (1 - shares[at])).sum(0).mean() for at in several])
    noise = answered / np.array([sizes[at] for at in several])
    between, within = np.average(total - noise, weights=freedom), np.average(answered, weights=freedom) / n
    return max(0.0, float(between)), float(within)
