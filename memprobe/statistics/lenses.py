"""The same facts through several lenses: where they surface by each, and whether the lenses agree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from memprobe.statistics.holding import trajectories
from memprobe.statistics.intervals import Resamples, bootstrap_mean, wilson
from memprobe.statistics.occurrence import Occurrence, restricted

if TYPE_CHECKING:
    from memprobe.probes import Probe

NEAR = 2
"""Two lenses agree on a fact where its first occurrences are at most so many depths apart."""


def compare_lenses(
    probe: Probe, *, k: int = 10, token: str = "first", near: int = NEAR, draws: int = 10_000, seed: int = 0
) -> pl.DataFrame:
    """First occurrence of a probe's facts by each of its lenses, at the probe's position; 95 % over factoids.

    ``lof`` is the restricted mean (never counts as n_layers + 1) and ``never`` the share of those; ``chance`` is the
    restricted mean of shuffled answers, over the facts that have any, and ``net`` the answers' own less that, paired by
    fact: below 0 is earlier than chance. ``difference`` is lens less the first lens, paired by fact, and ``agree`` the
    share of facts that both place within ``near`` depths.

    Returns:
        One row per checkpoint and lens: [checkpoint, lens, k, n, lof, lof_low, lof_high, never, n_net, chance, net,
        net_low, net_high, difference, difference_low, difference_high, agree, agree_low, agree_high]; the last six are
        null for the first lens.
    """
    rows: list[dict[str, Any]] = []
    for label in probe.finished:
        first: dict[str, float] | None = None
        for view in probe.views():
            own, shuffled = _placed(view, label, k, token)
            facts = sorted(own)
            resamples = Resamples.of(len(facts), draws=draws, seed=seed)
            lof = np.array([own[fact] for fact in facts])
            chance = np.array([shuffled.get(fact, np.nan) for fact in facts])
            first = first or own
            apart = lof - np.array([first[fact] for fact in facts])
            values = np.column_stack([lof, chance, lof - chance, apart])
            mean, low, high = bootstrap_mean(values, resamples)
            never = lof > view.n_layers[label]
            agree = np.array([(np.abs(apart) <= near).mean()])
            ends = wilson(agree, np.array([len(facts)]))
            row = {"checkpoint": label, "lens": view.lens, "k": k, "n": len(facts)}
            row |= {"lof": mean[0], "lof_low": low[0], "lof_high": high[0], "never": never.mean()}
            row |= {"n_net": int((~np.isnan(chance)).sum()), "chance": mean[1]}
            row |= {"net": mean[2], "net_low": low[2], "net_high": high[2]}
            beside = {"difference": mean[3], "difference_low": low[3], "difference_high": high[3]}
            beside |= {"agree": agree[0], "agree_low": ends[0][0], "agree_high": ends[1][0]}
            rows.append(row | (beside if first is not own else dict.fromkeys(beside, None)))
    return pl.DataFrame(rows, infer_schema_length=None).fill_nan(None)


def _placed(view: Probe, label: str, k: int, token: str) -> tuple[dict[str, float], dict[str, float]]:
    """Restricted first occurrence by fact, of answers and (mean over draws) of shuffled answers."""
    here = pl.col("checkpoint") == label
    n_layers = view.n_layers[label]
    [answers] = trajectories(view.records.filter(here), token=token)
    found = Occurrence.of(answers, k)
    own = dict(zip(found.factoids.tolist(), restricted(found.lof, n_layers).tolist(), strict=True))
    drawn: dict[str, list[float]] = {}
    draws = view.controls.filter(here & pl.col("control").str.starts_with("shuffled:"))
    for draw in trajectories(draws, token=token):
        control = Occurrence.of(draw, k)
        for fact, depth in zip(control.factoids.tolist(), restricted(control.lof, n_layers), strict=True):
            drawn.setdefault(fact, []).append(float(depth))
    return own, {fact: float(np.mean(depths)) for fact, depths in drawn.items()}
