"""What a page shows beside curves and placement: shares by depth, chance levels, differences, and flows of fates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from memprobe.statistics.holding import Trajectories
from memprobe.statistics.intervals import Resamples, wilson
from memprobe.statistics.occurrence import Occurrence, placement_of
from memprobe.statistics.paired import mean_difference
from memprobe.statistics.vocabulary import PER_FACTOID, STATISTICS

STATES = ("said", "surfaces", "absent")
"""What has become of a fact: the model recalls it; it only surfaces at some depth; it does not even surface."""
STATE_NAMES = {"said": "exact", "surfaces": "surfaces only", "absent": "absent"}
"""What each of :data:`STATES` is called."""


def depth_shares(depths: Mapping[str, tuple[np.ndarray, int]]) -> pl.DataFrame:
    """The share of factoids whose first occurrence (or settled depth) is each depth 1 … n_layers.

    Args:
        depths: by checkpoint, the depth of each factoid (NaN = never) and n_layers.

    Returns:
        [checkpoint, depth, share]; depth null is never.
    """
    parts = []
    for label, (depth, n_layers) in depths.items():
        inner = np.arange(1, n_layers + 1)
        shares = [*(depth[:, None] == inner).mean(0), np.isnan(depth).mean()]
        schema = {"checkpoint": pl.String, "depth": pl.Int64, "share": pl.Float64}
        columns = {"checkpoint": [label] * len(shares), "depth": [*inner.tolist(), None], "share": shares}
        parts.append(pl.DataFrame(columns, schema=schema))
    return pl.concat(parts)


def outcome_shares(outcomes: pl.DataFrame) -> dict[str, dict[str, float] | None]:
    """Shares of ``exact_match`` and ``exact_tokens``, with Wilson intervals, over the factoids that have them.

    Args:
        outcomes: :attr:`memprobe.reading.Reading.outcomes` of one checkpoint.

    Returns:
        By name, value, low and high; ``None`` where no factoid has it.
    """
    shares: dict[str, dict[str, float] | None] = {}
    for name in ("exact_match", "exact_tokens"):
        values = outcomes[name].drop_nulls().to_numpy()
        shares[name] = None
        if len(values):
            low, high = wilson(values.mean(), np.array(len(values)))
            shares[name] = {"value": float(values.mean()), "low": float(low), "high": float(high)}
    return shares


def exact_of(shares: Mapping[str, Any]) -> Any:
    """In :func:`outcome_shares`, or an entry of ``summary.json``: what :func:`memprobe.records.measure_of` says."""
    return shares["exact_tokens"] if shares["exact_match"] is None else shares["exact_match"]


def chance_of(draws: Sequence[Trajectories], k: int, names: Sequence[str]) -> dict[str, float | None]:
    """Chance levels: numbers of :func:`~memprobe.statistics.occurrence.placement_of` of shuffled answers.

    What every fact has is meaned over the draws of a fact and then over facts, as
    :func:`~memprobe.statistics.controls.net_of` does it, for facts may have different numbers of draws; what
    is of the facts that occur is meaned over the draws in which it exists. ``None`` where it exists in none.
    """
    found = [Occurrence.of(draw, k) for draw in draws]
    means: dict[str, float | None] = {}
    for name in names:
        if of := _OF_EVERY_FACT.get(name):
            parts = [
                pl.DataFrame({"factoid": one.factoids, "value": np.asarray(of(draw, one, None), float)})
                for draw, one in zip(draws, found, strict=True)
            ]
            by_fact = pl.concat(parts).group_by("factoid", maintain_order=True).mean() if parts else None
            means[name] = (
                None if by_fact is None or by_fact.is_empty() else float(by_fact["value"].to_numpy().mean())
            )
            continue
        values = [value for one in found if (value := placement_of(one, None)[name]) is not None]
        means[name] = float(np.mean(values)) if values else None
    return means


_OF_EVERY_FACT: dict[str, Callable[..., np.ndarray]] = {
    **{row.in_placement: row.of for row in PER_FACTOID.values() if row.of is not None and not row.on},
    "share_never": lambda trajectory, found, exact: np.isnan(found.lof).astype(float),
    "settled_share_never": lambda trajectory, found, exact: np.isnan(found.settled).astype(float),
}
"""By number of placement, its value for each fact [factoid], as :data:`PER_FACTOID` has it."""


def paired_means(values: np.ndarray, names: Sequence[str], resamples: Resamples) -> pl.DataFrame:
    """Means of paired differences with their intervals, and no test:
    :func:`~memprobe.statistics.paired.differences` in short, of several pairs at once.

    Args:
        values: [factoid, pair, statistic], checkpoint minus reference; NaN where there is none.
        names: of the statistics.

    Returns:
        [pair, statistic, n, difference, low, high]; ``pair`` is the position.
    """
    pairs = values.shape[1]
    cells = values.reshape(len(values), -1)
    shares = np.array([STATISTICS[name].share for name in names] * pairs)
    difference, low, high = mean_difference(cells, resamples, shares)
    columns = {
        "pair": np.repeat(np.arange(pairs), len(names)),
        "statistic": list(names) * pairs,
        "n": (~np.isnan(cells)).sum(0),
    }
    return pl.DataFrame(columns | {"difference": difference, "low": low, "high": high}).fill_nan(None)


def states_of(exact: np.ndarray, held: np.ndarray) -> np.ndarray:
    """What has become of each fact in one checkpoint, as an index into :data:`STATES`.

    Args:
        exact: bool [factoid], the model recalls the answer.
        held: bool [factoid, depth 0 … n_layers], see :func:`memprobe.statistics.held`.
    """
    return np.where(exact, 0, np.where(held[:, 1:].any(1), 1, 2))


def state_shares(states: np.ndarray) -> pl.DataFrame:
    """How many facts of one checkpoint are in which state.

    Args:
        states: int [factoid], see :func:`states_of`.

    Returns:
        [state, n, share, low, high], every state; Wilson intervals.
    """
    n = np.bincount(states, minlength=len(STATES))
    share = n / len(states) if len(states) else np.full(len(n), np.nan)
    low, high = wilson(share, np.full(len(n), len(states)))
    columns = {"state": list(STATES), "n": n, "share": share, "low": low, "high": high}
    return pl.DataFrame(columns).fill_nan(None)


def flows(states: np.ndarray) -> pl.DataFrame:
    """How many facts go from which state to which, from one checkpoint to the next.

    Args:
        states: int [factoid, checkpoint], see :func:`states_of`, in the order of training.

    Returns:
        [step, source, target, n, share, low, high], every pair of states; shares of all facts, Wilson intervals.
    """
    total, kinds = len(states), len(STATES)
    parts = []
    for step in range(states.shape[1] - 1):
        pairs = states[:, step] * kinds + states[:, step + 1]
        n = np.bincount(pairs, minlength=kinds**2)
        share = n / total if total else np.full(len(n), np.nan)
        low, high = wilson(share, np.full(len(n), total))
        columns = {
            "step": np.full(len(n), step),
            "source": [source for source in STATES for _ in STATES],
            "target": [target for _ in STATES for target in STATES],
        }
        columns |= {"n": n, "share": share, "low": low, "high": high}
        parts.append(pl.DataFrame(columns).fill_nan(None))
    return pl.concat(parts)
