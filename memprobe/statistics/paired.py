"""Paired differences: the same facts in two checkpoints, factoid by factoid.

A difference is always checkpoint minus reference, so a negative difference in depth means "surfaces earlier".
Every table says how many factoids it rests on; a factoid without a value on one side is in neither.
"""

from __future__ import annotations

import itertools

import numpy as np
import polars as pl

from memprobe.errors import MemprobeError
from memprobe.statistics.ends import FREE, SHARE, less, within
from memprobe.statistics.holding import Trajectories
from memprobe.statistics.intervals import (
    Resamples,
    Z,
    bootstrap,
    bootstrap_mean,
    median_interval,
    numbered,
    of_unanimous_shares,
)
from memprobe.statistics.occurrence import Occurrence
from memprobe.statistics.shares import discordant_variance


def differences(
    values: np.ndarray,
    resamples: Resamples,
    *,
    shares: np.ndarray | bool = False,
    seed: int = 0,
) -> pl.DataFrame:
    """Mean paired differences, with everything that is said about them.

    ``low`` and ``high`` are those of :func:`mean_difference`, ``p`` is of :func:`sign_flip`, both of the answers that
    the draws are of: else one could contradict the other. ``effect`` is Cohen's d_z,
    the mean difference over the sd of the differences (Lakens 2013, equation 6); ``dominance`` is the share of factoids
    that go up minus the share that go down (Cliff 1993, within pairs).

    Args:
        values: [factoid, column], checkpoint minus reference, NaN where there is none.
        shares: bool [column], which are differences of shares; the intervals of their means end at −1 and 1.

    Returns:
        [n, difference, low, high, p, effect, dominance], one row per column; null where it does not exist.
    """
    difference, low, high = mean_difference(values, resamples, shares)
    with np.errstate(divide="ignore", invalid="ignore"):
        n = (~np.isnan(values)).sum(0)
        centred = np.where(np.isnan(values), 0.0, values - difference)
        sd = np.sqrt((centred**2).sum(0) / np.where(n > 1, n - 1, np.nan))
        effect = np.where(sd > 0, difference / sd, np.where(difference == 0, 0.0, np.nan))
        dominance = np.nansum(np.sign(values), axis=0) / n
    columns = {
        "n": n,
        "difference": difference,
        "low": low,
        "high": high,
        "p": sign_flip(values, resamples.answer, draws=resamples.draws, seed=seed),
        "effect": np.where(n > 1, effect, np.nan),
        "dominance": dominance,
    }
    return pl.DataFrame(columns).fill_nan(None)


def mean_difference(
    values: np.ndarray, resamples: Resamples, shares: np.ndarray | bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means of paired differences with their intervals, bootstrapped over answers: the same in every table.

    Where all answers agree on a share, which resampling takes for certain, the interval is that of Agresti & Min
    (2005), with one gained and one lost added.

    Args:
        values: [factoid, column], NaN where there is none.
        shares: bool [column], which are differences of shares; the intervals of their means end at −1 and 1.

    Returns:
        Mean, low and high [column], NaN where there is none.
    """
    difference, low, high = bootstrap_mean(values, resamples)
    of_shares = np.broadcast_to(shares, values.shape[1:])
    low, high = _of_unanimous(values, resamples, low, high, of_shares)
    return difference, *within(low, high, [less(SHARE) if one else FREE for one in of_shares])


_ROUNDING = 1e-9  # by which equal differences may be apart


def sign_flip(
    values: np.ndarray, answers: np.ndarray | None = None, *, draws: int = 10_000, seed: int = 0
) -> np.ndarray:
    """Two-sided permutation p-values of mean paired differences (Fisher 1935; Pesarin & Salmaso 2010, ch. 2).

    Under the null hypothesis a difference is as likely as its negative. Factoids that share an answer share
    what makes it easy to reach, so they are flipped together. Patterns of signs that reach farther than the
    observed one count whole, those that reach as far count half: the mid-p (Lancaster 1961; Agresti 2013, section
    1.4.4). Recall moves in whole facts, so that many patterns reach exactly as far, and with all of them counted
    a true null was rejected in 3.9 % instead of 5 %; measures that move smoothly have no such ties, and theirs is
    the exact p. The observed pattern itself, its mirror image and what flipping a zero adds to them count whole,
    so that few facts prove no more than they can: m differences of one sign, the others 0, have p = 2^(1 - m).
    With few answers every pattern is taken once; else p = (1 + hits) / (1 + draws), which is never 0 (Phipson &
    Smyth 2010).

    Args:
        values: [factoid, column], NaN where there is none.
        answers: [factoid], whatever identifies the answer; without it every factoid is flipped for itself.

    Returns:
        [column]; NaN where no factoid has a value.
    """
    group = np.arange(len(values)) if answers is None else numbered(answers)
    filled = np.where(np.isnan(values), 0.0, values)
    sums = np.zeros((group.max() + 1 if len(group) else 0, values.shape[1]))
    np.add.at(sums, group, filled)
    rounding = 1e-9 * np.abs(sums).sum(0)  # equal sums differ by so much
    farther, as_far = np.abs(sums.sum(0)) + rounding, np.abs(sums.sum(0)) - rounding
    # The share of all patterns that are the observed one or its mirror image.
    own = np.minimum(1.0, 2.0 ** (1 - (sums != 0).sum(0)))
    if 2 ** len(sums) <= draws:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=len(sums))))
        reach = np.abs(signs @ sums)
        p = ((reach > farther).mean(0) + (reach >= as_far).mean(0) + own) / 2
    else:
        rng = np.random.default_rng(seed)
        hits = np.zeros(values.shape[1])
        step = max(1, 4_000_000 // len(sums))
        for start in range(0, draws, step):
            rows = min(step, draws - start)
            bits = np.unpackbits(np.frombuffer(rng.bytes(-(-rows * len(sums) // 8)), np.uint8))
            kept = bits[: rows * len(sums)].reshape(rows, -1).astype(np.float64)
            reach = np.abs(2 * (kept @ sums) - sums.sum(0))
            hits += ((reach > farther).sum(0) + (reach >= as_far).sum(0)) / 2
        p = np.minimum(
            1.0, (1 + hits + own / 2 * draws) / (1 + draws)
        )  # of own, the expected number is known
    return np.where(np.isnan(values).all(0), np.nan, p)


def _of_unanimous(
    values: np.ndarray, resamples: Resamples, low: np.ndarray, high: np.ndarray, shares: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Intervals of differences of shares, none of which is without width because all answers agree."""
    low, high = low.copy(), high.copy()
    present = resamples.by_answer((~np.isnan(values)).astype(float))
    total = resamples.by_answer(np.nan_to_num(values))
    for column in np.flatnonzero(shares & ~np.isnan(low)):
        there = present[:, column] > 0
        some = total[there, column] / present[there, column]
        if np.ptp(some) > _ROUNDING:
            continue
        centre, half = some.sum() / (len(some) + 2), Z * np.sqrt(discordant_variance(some))
        low[column], high[column] = centre - half, centre + half
    return low, high


def false_discovery(p: np.ndarray) -> np.ndarray:
    """p-values adjusted for the false-discovery rate (Benjamini & Hochberg 1995); NaN stays NaN and is not
    counted among the tests."""
    # scipy.stats has this too, but takes half a second to import.
    order = np.argsort(p)[: np.count_nonzero(~np.isnan(p))]
    scaled = p[order] * (len(order) / np.arange(1, len(order) + 1))
    q = np.full(len(p), np.nan)
    q[order] = np.clip(np.minimum.accumulate(scaled[::-1])[::-1], 0, 1)
    return q


def differences_by_depth(
    checkpoint: Trajectories,
    reference: Trajectories,
    *,
    k: int,
    resamples: Resamples,
    seed: int = 0,
) -> pl.DataFrame:
    """Paired differences at each depth: recall (mean), log_prob (mean, nats), rank (median).

    Columns as :func:`differences` gives them. For rank the difference is the median of the paired ones with
    its order statistics, and p flips their signs (a sign test), answers together in both: a few facts at rank
    40,000 decide nothing. ``q`` is p adjusted over the depths of that measure.

    Args:
        checkpoint: with the same factoids in the same order as the reference.

    Returns:
        [measure, depth, n, difference, low, high, p, q, effect, dominance]
    """
    missing = (checkpoint.rank < 0) | (reference.rank < 0)
    recall = np.where(missing, np.nan, checkpoint.held(k).astype(float) - reference.held(k))
    log_prob = checkpoint.log_prob.astype(float) - reference.log_prob
    rank = np.where(missing, np.nan, checkpoint.rank - reference.rank.astype(float))
    values = np.column_stack([recall, log_prob, np.sign(rank)])
    shares = np.arange(values.shape[1]) < recall.shape[1]
    every = differences(values, resamples, shares=shares, seed=seed)
    tables = []
    for position, measure in enumerate(("recall", "log_prob", "rank")):
        table = every.slice(position * recall.shape[1], recall.shape[1])
        if measure == "rank":
            medians = np.array([_median(column, resamples) for column in rank.T])
            edges = {name: medians[:, i] for i, name in enumerate(("difference", "low", "high"))}
            table = table.with_columns(pl.Series(name, edge).fill_nan(None) for name, edge in edges.items())
            table = table.with_columns(pl.lit(None, pl.Float64).alias("effect"))  # d_z belongs to means
        q = false_discovery(table["p"].cast(pl.Float64).fill_null(np.nan).to_numpy())
        tables.append(
            table.with_columns(
                pl.lit(measure).alias("measure"),
                pl.Series("depth", np.arange(len(table))),
                pl.Series("q", q).fill_nan(None),
            )
        )
    order = ["measure", "depth", "n", "difference", "low", "high", "p", "q", "effect", "dominance"]
    return pl.concat(tables).select(order)


def _median(values: np.ndarray, resamples: Resamples) -> tuple[float, float, float]:
    """:func:`~memprobe.statistics.intervals.median_interval` of values [factoid], NaN left out, with their answers."""
    there = ~np.isnan(values)
    return median_interval(values[there], None if resamples.answer is None else resamples.answer[there])


def overlap(checkpoint: Occurrence, reference: Occurrence, resamples: Resamples) -> pl.DataFrame:
    """Which depths hold a fact in both checkpoints.

    ``jaccard`` is the share of the facts held in either that are held in both (Jaccard 1912), bootstrapped
    over answers; where all agree on it, Wilson's of those with a fact held in either. The row without a depth takes
    (factoid, depth >= 1) pairs together.

    Returns:
        [depth (null = all), both, either, jaccard, low, high]; both and either as shares of all factoids, in
        the row for all depths as depths per factoid.
    """
    both = (checkpoint.held & reference.held).astype(float)
    either = (checkpoint.held | reference.held).astype(float)
    values = np.column_stack([both, both[:, 1:].sum(1), either, either[:, 1:].sum(1)])
    half = values.shape[1] // 2
    jaccard, low, high = bootstrap(values, resamples, lambda sums, counts: sums[:, :half] / sums[:, half:])
    low, high = of_unanimous_shares(jaccard, low, high, resamples.having(values[:, half:] > 0))
    columns = {"both": values[:, :half].mean(0), "either": values[:, half:].mean(0)}
    depth = pl.Series("depth", [*range(half - 1), None], pl.Int64)
    frame = pl.DataFrame(columns | {"jaccard": jaccard, "low": low, "high": high}).fill_nan(None)
    return frame.select(depth, *frame.columns)


def log_rank(sets: list[Occurrence], *, draws: int = 2_000, seed: int = 0) -> tuple[float, float]:
    """Log-rank test that sets of *different* factoids surface alike, by exchanging factoids between the sets.

    A factoid's score is whether it surfaces, less what was to be expected of it: the sum of the hazards of all depths
    up to its own. Summed over a set that is the observed less the expected number of the log-rank test (Mantel 1966; k
    samples, Peto & Peto 1972, whose variance is that of exchanging, too). Its chi squared is that of many factoids in
    each set: of ten relations of two facts that surface alike it rejected 31 %. So factoids are dealt out anew, so many
    times, and p = (1 + hits) / (1 + draws), which is never 0 (Phipson & Smyth 2010).

    Returns:
        Chi squared, which has len(sets) - 1 degrees of freedom where sets are large, and p; NaN where nothing surfaces,
        all do at one depth, or a set is empty.

    Raises:
        MemprobeError: two sets share factoids; those are compared in pairs instead.
    """
    ids = [set(found.factoids) for found in sets]
    if len(set.union(*ids)) < sum(map(len, ids)):
        raise MemprobeError("the log-rank test is for different factoids; compare the same ones in pairs")
    sizes = np.array([len(found.lof) for found in sets])
    if (sizes == 0).any():
        return np.nan, np.nan
    scores = _log_rank_scores(np.concatenate([found.lof for found in sets]))
    if np.ptp(scores) < _ROUNDING:
        return np.nan, np.nan
    scale = (len(scores) - 1) / (scores**2).sum()
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])

    def chi2(dealt: np.ndarray) -> np.ndarray:
        return scale * (np.add.reduceat(dealt, starts, axis=-1) ** 2 / sizes).sum(-1)

    observed = float(chi2(scores))
    rng = np.random.default_rng(seed)
    step = max(1, 4_000_000 // len(scores))
    hits = 0
    for start in range(0, draws, step):
        dealt = np.tile(scores, (min(step, draws - start), 1))
        hits += int((chi2(rng.permuted(dealt, axis=1, out=dealt)) >= observed * (1 - _ROUNDING)).sum())
    return observed, (1 + hits) / (1 + draws)


def _log_rank_scores(lof: np.ndarray) -> np.ndarray:
    """[factoid], which add up to 0: 1 where it surfaces, less the sum of the hazards up to there; NaN is never."""
    depths, events = np.unique(lof[~np.isnan(lof)], return_counts=True)
    at_risk = len(lof) - np.cumsum(events) + events
    hazard = np.concatenate([[0.0], np.cumsum(events / at_risk)])
    upto = np.searchsorted(depths, np.where(np.isnan(lof), np.inf, lof), side="right")
    return ~np.isnan(lof) - hazard[upto]
