"""Spread of first occurrences beyond what a shift explains: a latent depth, seen through the model's last block.

A first occurrence can be no deeper than the model. Where facts move away from the last depth, their sd grows for that
reason alone, and where they move towards it, it shrinks; no comparison of the sds of what is seen can tell. So each
fact has a latent depth, which the model's blocks cut off: one that lies beyond block n - 1 is first read at the last
depth, if training made the model recall the answer, or never. How many of those are recalled is of no interest here,
so both count alike, as "deeper than n - 1": a likelihood with one free mass at the last depth and one at never, of
which the share of either cancels. A latent depth within (d - 1, d] is seen as d, one of at most 1 as 1.

A lens also names answers by luck, at depths that no fact's own depth moves. What is seen is the earlier of a fact's
latent depth and such a hit (competing risks; Prentice et al. 1978), of which shuffled answers tell: they have the lucky
hits and no fact.

The latent depths of checkpoint and reference have one shape, a location and a scale each. The shape is sinh-arcsinh
(Jones & Pewsey 2009): the normal's with skewness and weight of tails to fit, shrunk towards the normal by normal priors
on both. What is tested is the log of the ratio of the scales, whose error is of the sandwich kind over facts, so that a
fact in both checkpoints counts once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl
from scipy import special

from memprobe.statistics.intervals import LEVEL, MIN_SEEDS
from memprobe.statistics.occurrence import Occurrence

MOST_CENSORED = 0.5
"""Share of facts at the last depth or never, in either checkpoint, beyond which the scale is not estimable."""
FEWEST_SEEN = 20
"""Facts below the last depth that either checkpoint needs."""
FEWEST_DEPTHS = 4
"""Depths below the last one at which either checkpoint needs facts: two or three fit any scale."""
_SKEW_SD, _TAIL_SD = 1.0, 0.5
_STEP, _LEAST = 1e-3, 1e-12
_PARAMETERS = 6  # location and log scale of the reference, shift, log ratio, skewness, log tail weight


@dataclass(frozen=True)
class LatentSpread:
    """What two checkpoints' first occurrences say of the spread of their latent depths.

    Attributes:
        n: facts that are in both.
        censored, reference_censored: share of them at the last depth or never.
        shift: of the location, in depths.
        ratio: of the scales, checkpoint over reference; 1 where the reference was only moved.
        low, high, p: of the ratio against 1; NaN, as are shift and ratio, where ``why`` says why not.
        error: standard error of the ratio's logarithm.
        why: why it is not estimable, or "".
    """

    n: int
    censored: float
    reference_censored: float
    shift: float
    ratio: float
    low: float
    high: float
    p: float
    error: float
    why: str = ""


def latent_spread(
    checkpoint: Occurrence,
    reference: Occurrence,
    *,
    chance: np.ndarray | None = None,
    reference_chance: np.ndarray | None = None,
) -> LatentSpread:
    """Whether the checkpoint's latent depths spread more widely than the reference's.

    Args:
        checkpoint: with the same factoids in the same order as the reference, of as many layers.
        chance, reference_chance: [depth 1 … n_layers], share of shuffled answers that no depth up to this one holds
            (:func:`unlucky`); without them no hit is held to be luck.

    Returns:
        Not estimable where more than half of the facts are censored, or fewer than 20 are seen at fewer than 4
        depths below the last, in either checkpoint. In simulation (``tests/benchmarks/interval_coverage.py``) a pure
        shift is called "more" or "less" as rarely as a test at 5 % may, for normal, skewed and heavy-tailed depths and
        with lucky hits that shuffled answers share; depths of two separate groups break it.
    """
    n = reference.n_layers
    seen = [np.where(np.isnan(one.lof), n, one.lof).astype(int) for one in (reference, checkpoint)]
    histograms = [np.bincount(depth - 1, minlength=n) for depth in seen]
    censored = [float(counts[-1] / len(seen[0])) if len(seen[0]) else np.nan for counts in histograms]
    why = _not_estimable(histograms)
    lucky = [np.ones(n) if one is None else one for one in (reference_chance, chance)]
    fitted, error = (np.full(_PARAMETERS, np.nan), np.nan) if why else _fit(seen, histograms, lucky)
    if not why and not (np.isfinite(error) and error > 0):
        why, fitted = "the fit does not settle", np.full(_PARAMETERS, np.nan)
    freedom = len(seen[0]) - _PARAMETERS
    half = special.stdtrit(max(freedom, 1), 0.5 + LEVEL / 2) * error
    low, ratio, high = np.exp([fitted[3] - half, fitted[3], fitted[3] + half])
    return LatentSpread(
        n=len(seen[0]),
        censored=censored[1],
        reference_censored=censored[0],
        shift=float(fitted[2]),
        ratio=float(ratio),
        low=float(low),
        high=float(high),
        p=float(2 * special.stdtr(max(freedom, 1), -abs(fitted[3]) / error)),
        error=float(error),
        why=why,
    )


SPREAD = {
    **dict.fromkeys(("sd", "sd_reference", "censored", "reference_censored", "shift", "ratio"), pl.Float64),
    **dict.fromkeys(("low", "high", "p", "error"), pl.Float64),
    "why": pl.String,
}
"""Columns of :func:`spread_of`."""


def spread_of(
    checkpoint: Occurrence,
    reference: Occurrence,
    *,
    chance: np.ndarray | None = None,
    reference_chance: np.ndarray | None = None,
) -> dict[str, float | str | None]:
    """One row of a table of spread: sds of what occurs, which say nothing of a cause, and :func:`latent_spread`.

    Args:
        checkpoint, reference, chance, reference_chance: as in :func:`latent_spread`.

    Returns:
        :data:`SPREAD`; ``None`` where a number does not exist.
    """
    latent = latent_spread(checkpoint, reference, chance=chance, reference_chance=reference_chance)
    row: dict[str, float | str | None] = {"sd": _sd(checkpoint), "sd_reference": _sd(reference)}
    row |= {name: getattr(latent, name) for name in SPREAD if name not in row}
    return {
        name: None if isinstance(value, float) and not np.isfinite(value) else value
        for name, value in row.items()
    }


def _sd(found: Occurrence) -> float:
    occurs = found.lof[~np.isnan(found.lof)]
    return float(occurs.std(ddof=1)) if len(occurs) > 1 else np.nan


class RatioOverSeeds(NamedTuple):
    """Log ratio of the scales over seeds, with its interval; NaN under three seeds."""

    log_ratio: float
    low: float
    high: float
    p: float
    seeds: int


def ratio_over_seeds(log_ratios: Sequence[float], errors: Sequence[float]) -> RatioOverSeeds:
    """One ratio from those of several seeds, each against the reference of its own seed.

    Student's t over seeds, whose variance is at least what the fits say of themselves: a few seeds may agree by chance,
    and the facts that they share make them agree more.

    Args:
        log_ratios, errors: of the seeds where it is estimable.
    """
    values, own = np.asarray(log_ratios, float), np.asarray(errors, float)
    seeds = len(values)
    mean = float(values.mean()) if seeds else np.nan
    if seeds < MIN_SEEDS:
        return RatioOverSeeds(mean, np.nan, np.nan, np.nan, seeds)
    error = float(np.sqrt(max(np.var(values, ddof=1) / seeds, (own**2).mean() / seeds)))
    half = special.stdtrit(seeds - 1, 0.5 + LEVEL / 2) * error
    p = 2 * special.stdtr(seeds - 1, -abs(mean) / error)
    return RatioOverSeeds(mean, mean - half, mean + half, float(p), seeds)


def unlucky(shuffled: Sequence[Occurrence]) -> np.ndarray | None:
    """Share of shuffled answers that no depth up to this one holds, over all draws; [depth 1 … n_layers].

    ``None`` where there are none.
    """
    if not shuffled:
        return None
    depths = np.arange(1, shuffled[0].n_layers + 1)
    lof = np.concatenate([one.lof for one in shuffled])
    return np.mean(~(lof[:, None] <= depths), axis=0)


def _not_estimable(histograms: list[np.ndarray]) -> str:
    total = histograms[0].sum()
    if total == 0:
        return "no facts"
    for counts in histograms:
        if counts[-1] > MOST_CENSORED * total:
            return f"{counts[-1] / total:.0%} at the last depth or never"
        if counts[:-1].sum() < FEWEST_SEEN:
            return f"{counts[:-1].sum()} facts below the last depth"
        if (counts[:-1] > 0).sum() < FEWEST_DEPTHS:
            return f"facts at {(counts[:-1] > 0).sum()} depths below the last"
    return ""


def _fit(
    seen: list[np.ndarray], histograms: list[np.ndarray], lucky: list[np.ndarray]
) -> tuple[np.ndarray, float]:
    """The parameters at the posterior's mode, and the standard error of the log ratio."""
    from scipy import optimize

    edges = np.arange(1.0, len(histograms[0]))

    share = np.array(lucky)[:, : len(edges)]

    def logs(at: np.ndarray) -> np.ndarray:
        place, log_scale = np.array([[at[0], at[0] + at[2]], [at[1], at[1] + at[3]]])[:, :, None]
        return _log_cells(edges, place, log_scale, float(at[4]), float(at[5]), share)

    def loss(at: np.ndarray) -> float:
        fits = sum(float(counts @ log) for counts, log in zip(histograms, logs(at), strict=True))
        return -fits + 0.5 * ((at[4] / _SKEW_SD) ** 2 + (at[5] / _TAIL_SD) ** 2)

    middle = [float(np.median(depth)) - 0.5 for depth in seen]
    wide = max(float(np.std(seen[0])), 0.5)
    start = np.array([middle[0], np.log(wide), middle[1] - middle[0], 0.0, 0.0, 0.0])
    at = optimize.minimize(loss, start, method="BFGS", options={"gtol": 1e-4, "maxiter": 300}).x
    steps = np.eye(_PARAMETERS) * _STEP

    def slope(at: np.ndarray) -> np.ndarray:
        return np.array([(loss(at + step) - loss(at - step)) / (2 * _STEP) for step in steps])

    curvature = np.array([(slope(at + step) - slope(at - step)) / (2 * _STEP) for step in steps])
    sides = [(logs(at + step), logs(at - step)) for step in steps]
    scores = np.column_stack(
        [
            sum((up[i] - down[i])[seen[i] - 1] for i in (0, 1)) / (2 * _STEP)
            for up, down in sides  # [factoid, parameter]
        ]
    )
    scores -= scores.mean(0)
    try:
        inverse = np.linalg.inv((curvature + curvature.T) / 2)
    except np.linalg.LinAlgError:
        return at, np.nan
    n = len(scores)
    variance = (inverse @ (scores.T @ scores) @ inverse)[3, 3] * n / (n - 1)
    return at, float(np.sqrt(variance)) if variance > 0 else np.nan


def _log_cells(
    edges: np.ndarray,
    place: np.ndarray,
    log_scale: np.ndarray,
    skew: float,
    log_tail: float,
    lucky: np.ndarray,
) -> np.ndarray:
    """Log-probability [checkpoint, depth] of each depth 1 … n, the last one being all that is deeper than n - 1.

    Args:
        place, log_scale: [checkpoint, 1].
        lucky: [checkpoint, edge].
    """
    at = np.sinh(np.clip(np.exp(log_tail) * np.arcsinh((edges - place) / np.exp(log_scale)) - skew, -50, 50))
    beyond = np.empty((len(place), len(edges) + 2))
    beyond[:, 0], beyond[:, -1] = 1.0, 0.0
    np.multiply(special.ndtr(-at), lucky, out=beyond[:, 1:-1])
    return np.log(np.maximum(beyond[:, :-1] - beyond[:, 1:], _LEAST))
