"""Shares over training seeds: how many of an arm's facts are kept, near 0 and near 1 too.

Student's t over seeds breaks down at the ends: three seeds that keep nothing scatter by nothing, so that their
interval is [0, 0], and every difference from them is "significant". What is known there is binomial. Seed s keeps y_s
of n facts, y_s ~ Binomial(n, p_s), with p_s ~ Beta of mean m and intraclass correlation ρ: a beta-binomial (Skellam
1948; Williams 1975). The interval is that of the posterior of m, by summation over a grid: Jeffreys' prior for m, which
is flat in the angle θ = arcsin √m (Brown, Cai & DasGupta 2001), and ρ ~ Beta(1, 6), by which seeds scatter about as
widely as those of fine-tuning runs do: their variance is one seventh of its largest value on average.

Seeds that are asked the same facts have those in common: what a fact adds to every seed does not shrink with the number
of seeds. Its variance v (of the mean over seeds; :mod:`memprobe.statistics.arms`) is taken out of each seed's binomial
noise and added to the posterior as a normal on the scale of θ, where the variance of a share is about 1 / (4 n).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from statistics import harmonic_mean
from typing import NamedTuple

import numpy as np
from scipy import special

from memprobe.statistics.intervals import LEVEL

SCATTER = 6.0
"""Of the prior Beta(1, SCATTER) of the correlation of two facts of one seed."""
_ANGLES, _SCATTERS = 400, 32
_ANGLE = (np.arange(_ANGLES) + 0.5) / _ANGLES * np.pi / 2
_MEAN = np.sin(_ANGLE) ** 2
_QUANTILE = (np.arange(_SCATTERS) + 0.5) / _SCATTERS
_RHO = -np.expm1(
    np.log1p(-(_QUANTILE**2)) / SCATTER
)  # closer together towards 0; each stands for 2 q of the prior
_A = _MEAN[:, None] * (1 - _RHO) / _RHO
_B = (1 - _MEAN)[:, None] * (1 - _RHO) / _RHO
_TAIL = (1 - LEVEL) / 2
_MOST_COMMON = (
    0.95  # of a seed's binomial variance, what facts can have in common: else nothing is left for the seed
)


class Share(NamedTuple):
    """A share, or a difference of two, with its interval; ``p`` is of the difference against 0, NaN for a share."""

    value: float
    low: float
    high: float
    p: float


def share_over_seeds(counts: np.ndarray, n: int | np.ndarray, *, fact_variance: float = 0.0) -> Share:
    """An arm's share, in runs of other seeds.

    Args:
        counts: [seed], how many of ``n`` facts each seed keeps.
        n: facts of every seed; or [seed], each seed's own, where the share is that of all facts of all seeds.
        fact_variance: of the mean over seeds, by what facts do to every seed; 0 where it is not known.

    Returns:
        The interval begins at 0 where no seed keeps a fact, and ends at 1 where each keeps all.
    """
    weights, common = _posterior(counts, n, fact_variance)
    if common:
        from scipy import ndimage

        spread = np.sqrt(common / (4 * np.mean(n))) / (np.pi / 2 / _ANGLES)
        weights = ndimage.gaussian_filter1d(weights, spread, mode="reflect")
    share, low, high = _ends(weights, counts, n, _TAIL)
    return Share(share, low, high, np.nan)


def share_difference(
    counts: np.ndarray,
    others: np.ndarray,
    n: int,
    *,
    others_n: int | None = None,
    fact_variances: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> Share:
    """The share of one arm minus that of another, their seeds being independent.

    The interval reaches from the difference as far as the squared distances of the two shares from their own ends add
    up to (Newcombe 1998, method 10; Donner & Zou 2012). That of the posteriors' difference falls short of the truth
    where one share is near 0 and the other near 1, each posterior being drawn inwards.

    Args:
        counts, others: [seed], how many of ``n`` facts each seed keeps.
        others_n: of the other arm, where it is asked another number of them.
        fact_variances: as in :func:`share_over_seeds`, of either arm and of the difference.

    Returns:
        ``p`` is twice the tail at which the interval ends at 0.
    """
    sides = [
        (_posterior(one, size, variance)[0], one, size)
        for one, size, variance in zip((counts, others), (n, others_n or n), fact_variances[:2], strict=True)
    ]

    def interval(tail: float) -> tuple[float, float, float]:
        (one, low, high), (other, other_low, other_high) = (_ends(*side, tail) for side in sides)
        facts = special.ndtri(tail) ** 2 * fact_variances[2]
        down = np.sqrt((one - low) ** 2 + (other_high - other) ** 2 + facts)
        up = np.sqrt((high - one) ** 2 + (other - other_low) ** 2 + facts)
        return one - other, max(-1.0, one - other - down), min(1.0, one - other + up)

    def apart(log_tail: float) -> float:
        """How far the interval's nearer end is from 0; negative where it holds 0."""
        value, low, high = interval(np.exp(log_tail))
        return low if value > 0 else -high

    value, low, high = interval(_TAIL)
    least, most = np.log(1e-9), np.log(0.5)
    if value == 0 or apart(most) <= 0:
        p = 1.0
    elif apart(least) > 0:
        p = 2e-9
    else:
        from scipy import optimize

        p = 2 * float(np.exp(optimize.brentq(apart, least, most, xtol=1e-4)))
    return Share(value, low, high, p)


def _ends(
    weights: np.ndarray, counts: np.ndarray, n: int | np.ndarray, tail: float
) -> tuple[float, float, float]:
    """The share as it is, and the posterior's quantiles, which do not leave it outside."""
    share = float(np.mean(counts)) / float(np.mean(n))
    low, high = np.sin(np.interp([tail, 1 - tail], np.cumsum(weights) - weights / 2, _ANGLE)) ** 2
    return share, min(share, float(low)) if share > 0 else 0.0, max(share, float(high)) if share < 1 else 1.0


def size_over_seeds(sizes: Iterable[float]) -> int:
    """Of how many facts a share over seeds is, where seeds are asked different numbers of them: the harmonic mean, as
    their variances have it."""
    return max(1, round(harmonic_mean(sizes)))


def discordant_variance(difference: np.ndarray) -> float:
    """The binomial variance of a mean paired difference of two yes-or-no answers, with one fact gained and one lost
    added to those that were, so that it is not 0 where none differs (Agresti & Min 2005).

    Args:
        difference: [factoid] of -1, 0 and 1; or between them, where an answer is the mean of several yes or no.
    """
    n = len(difference) + 2
    moved = float(np.square(difference).sum()) + 2
    return (moved / n - (float(difference.sum()) / n) ** 2) / n


def _posterior(counts: np.ndarray, n: int | np.ndarray, fact_variance: float) -> tuple[np.ndarray, float]:
    """Weights of the angles, and which part of a seed's binomial variance its facts have in common with other seeds."""
    size = float(np.mean(n))
    share = float(np.mean(counts)) / size
    whole = share * (1 - share) / size
    common = min(_MOST_COMMON, max(0.0, fact_variance / whole)) if whole > 0 else 0.0
    seeds = sorted((float(kept), float(of)) for kept, of in np.broadcast(counts, n))
    # To two digits, so that what was computed before can be looked up.
    return _weights(tuple(seeds), round(common, 2)), common


@lru_cache(maxsize=4096)
def _weights(seeds: tuple[tuple[float, float], ...], common: float) -> np.ndarray:
    log = sum(_seed(count, n, common) for count, n in seeds) + np.log(_QUANTILE)
    weights = np.exp(log - log.max()).sum(1)
    return weights / weights.sum()


@lru_cache(maxsize=1024)
def _seed(count: float, n: float, common: float) -> np.ndarray:
    """Log-likelihood [angle, ρ] of one seed, without the binomial coefficient."""
    kept, size = count / (1 - common), n / (1 - common)
    return special.betaln(_A + kept, _B + size - kept) - special.betaln(_A, _B)
