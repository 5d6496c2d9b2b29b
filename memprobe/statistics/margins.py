"""Retention in nats, given how surely each fact was known before: one covariate, one slope over all runs.

A fact that stage 1 left with a wide margin is lost later than one that it left barely known, whatever the arm. What the
margin explains is no difference between arms, and taking it out leaves less scatter (analysis of covariance: Fisher
1932, Statistical Methods for Research Workers, section 49.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from memprobe.statistics.arms import Run

GIVEN_MARGIN = "log_prob_given_margin"
"""The statistic in the tables of arms."""
_SUREST = 1e-7  # what float32 can tell from a probability of 1


def margin(log_prob: np.ndarray) -> np.ndarray:
    """The answer's log-odds against everything else, in nats, from its log-probability."""
    away = np.maximum(-log_prob.astype(float), _SUREST)
    return -away - np.log(-np.expm1(-away))


def given_margin(after: Sequence[np.ndarray], before: Sequence[np.ndarray | None]) -> list[np.ndarray]:
    """Log-probabilities after a stage, as they would be with the same margins in every run.

    The slope is the one within runs, pooled over all of them: b = Σ (x - x̄)(y - ȳ) / Σ (x - x̄)². It is taken as known:
    all facts of all runs bear on it, the difference of two arms' mean margins multiplies its error.

    Args:
        after: of each run, [factoid], nats.
        before: of each run, the margins after its first stage, [factoid]; ``None`` where there are none.

    Returns:
        Of each run, [factoid]: y - b (x - mean of all x); NaN where it has no margin.
    """
    apart = [
        (x - x[there].mean(), y - y[there].mean(), there)
        for x, y in zip(before, after, strict=True)
        if x is not None and (there := ~np.isnan(x) & ~np.isnan(y)).any()
    ]
    over = sum(float((x[there] ** 2).sum()) for x, _, there in apart)
    slope = sum(float((x * y)[there].sum()) for x, y, there in apart) / over if over else 0.0
    known = [x for x in before if x is not None]
    middle = float(np.nanmean(np.concatenate(known))) if known else 0.0
    return [
        np.full_like(y, np.nan, float) if x is None else y - slope * (x - middle)
        for x, y in zip(before, after, strict=True)
    ]


def with_statistic(runs: Sequence[Run], values: Sequence[np.ndarray]) -> list[Run]:
    """Runs with one more statistic behind the others, each from its values by factoid."""
    extended = []
    for run, one in zip(runs, values, strict=True):
        more = Run.of(run.arm, run.stage, run.seed, run.label, one[:, None])
        means = np.concatenate([run.means, more.means])
        extended.append(replace(run, means=means, influence=np.hstack([run.influence, more.influence])))
    return extended
