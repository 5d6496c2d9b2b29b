"""The same facts through several lenses: where they surface by each, and whether the lenses agree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import polars as pl

from memprobe.statistics.controls import means_of
from memprobe.statistics.intervals import FEWEST, Resamples, bootstrap_mean, wilson

NEAR = 2
"""Two lenses agree on a fact where its first occurrences are at most so many depths apart."""


class Surfaced(NamedTuple):
    """Restricted first occurrence through one lens, by factoid in one order: never counts as n_layers + 1.

    ``chance`` is that of shuffled answers, the mean over their draws; NaN where a fact has none.
    """

    lof: np.ndarray
    chance: np.ndarray


def first_occurrence_by_lens(
    surfaced: Mapping[str, Surfaced], n_layers: int, resamples: Resamples, *, near: int = NEAR
) -> pl.DataFrame:
    """First occurrence by each lens, paired by fact with the first lens; 95 % over factoids.

    ``lof`` is the restricted mean, like ``net`` without an interval where facts of fewer than 20 answers occur, as in
    :func:`memprobe.statistics.placement`, and ``never`` the share of facts that never surface; ``chance`` is the
    restricted mean of shuffled answers, over the facts that have any, and ``net`` the answers' own less that, paired by
    fact: below 0 is earlier than chance. ``difference`` is lens less the first lens, paired by fact, and ``agree`` the
    share of facts that both place within ``near`` depths.

    Returns:
        [lens, n, lof_answers, lof, lof_low, lof_high, never, n_net, chance, net, net_low, net_high, difference,
        difference_low, difference_high, agree, agree_low, agree_high], a row for each lens in order; ``lof_answers`` is
        of how many answers a fact occurs, the last six are null for the first.
    """
    rows = []
    first: np.ndarray | None = None
    for lens, (lof, chance) in surfaced.items():
        apart = lof - (lof if first is None else first)
        values = np.column_stack([chance, lof - chance, apart])
        mean, low, high = bootstrap_mean(values, resamples)
        agree = np.array([(np.abs(apart) <= near).mean()])
        ends = wilson(agree, np.array([len(lof)]))
        occur = int(resamples.having(lof <= n_layers))
        row = {"lens": lens, "n": len(lof), "lof_answers": occur} | means_of(
            {"lof_restricted": lof}, resamples
        )
        row = {name.replace("lof_restricted", "lof"): value for name, value in row.items()}
        if occur < FEWEST["mean of those that occur"]:
            row |= {"lof_low": np.nan, "lof_high": np.nan}
            low[1] = high[1] = np.nan  # few hits are luck, and chance is known from several draws
        row |= {"never": (lof > n_layers).mean(), "n_net": int((~np.isnan(chance)).sum()), "chance": mean[0]}
        row |= {"net": mean[1], "net_low": low[1], "net_high": high[1]}
        beside = {"difference": mean[2], "difference_low": low[2], "difference_high": high[2]}
        beside |= {"agree": agree[0], "agree_low": ends[0][0], "agree_high": ends[1][0]}
        rows.append(row | (dict.fromkeys(beside, None) if first is None else beside))
        first = lof if first is None else first
    return pl.DataFrame(rows, infer_schema_length=None).fill_nan(None)
