"""Arms: claims about how checkpoints are made, which need several training seeds.

An interval over factoids says how sure we are of *these* checkpoints. What another seed would have given is known only
from other seeds: both are random here, and crossed, since every seed is asked the same factoids.

    Run ─ _in_common ─┬─ seeds paired ───> Student's t over pairs        _paired
                      └─ independent ──┬─> yes-or-no: beta-binomial      statistics.shares
                                       └─> else: Welch's t               _estimate
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import polars.selectors as cs
from scipy import special

from memprobe.sameness import of_several_marks
from memprobe.statistics.ends import FREE, Ends, less, within
from memprobe.statistics.intervals import LEVEL, MIN_SEEDS
from memprobe.statistics.power import detectable, detectable_within
from memprobe.statistics.shares import discordant_variance, share_difference, share_over_seeds

MIN_SHARE_PAIRS = 5
"""Pairs of seeds below which a yes-or-no statistic's difference has the share model's interval all the same: Student's
quantile for two or three degrees of freedom is worth less than what is known of binomial noise, and what pairs have in
common makes their difference more certain than that of independent seeds, not less."""
PREFIX, ROWS_BY_SEED, ROWS, NOTHING = "stage before", "rows of each seed", "rows", "nothing"
"""What two arms' runs have in common: the checkpoint that a seed's runs start from, rows that differ between seeds, the
same rows in every seed, or nothing. In the first two cases seeds are pairs."""


@dataclass(frozen=True, eq=False)
class Run:
    """What one checkpoint (one seed of an arm, at one stage) brings.

    Attributes:
        means: [statistic], over factoids.
        influence: [factoid, statistic]: by how much each factoid moves the mean. Summed squares are the variance of
            the mean over factoids that a bootstrap estimates, without its noise.
        before: fingerprints of the checkpoints that this one was trained from, the base model's among them.
        rows: what identifies the factoids that were trained on.
    """

    arm: str
    stage: str
    seed: str
    label: str
    means: np.ndarray
    influence: np.ndarray
    before: tuple[str, ...] = ()
    rows: str = ""

    @classmethod
    def of(
        cls,
        arm: str,
        stage: str,
        seed: str,
        label: str,
        values: np.ndarray,
        *,
        before: Sequence[str] = (),
        rows: str = "",
    ) -> Run:
        """From the values themselves, [factoid, statistic]; NaN where a factoid has none."""
        present = ~np.isnan(values)
        n = present.sum(0)
        with np.errstate(divide="ignore", invalid="ignore"):
            means = np.where(present, values, 0.0).sum(0) / n
            influence = np.where(present, values - means, 0.0) / n
        return cls(arm, stage, seed, label, means, influence, tuple(before), rows)

    def of_own_facts(self) -> Run:
        """The same of a run whose factoids no other run was asked: what scatters are seeds as a whole, and factoids,
        which are others under each, have no part of their own."""
        return replace(self, influence=np.zeros((1, self.influence.shape[1])))

    def only(self, columns: Sequence[int]) -> Run:
        """With some of the statistics."""
        return replace(self, means=self.means[columns], influence=self.influence[:, columns])


class _Estimate(NamedTuple):
    """Each [statistic]; NaN where there is none. ``detectable`` is the smallest difference that as many seeds and facts
    see with 80 % probability (:mod:`memprobe.statistics.power`)."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray
    detectable: np.ndarray


def arm_means(
    runs: list[Run],
    names: list[str],
    n: int,
    *,
    ends: Mapping[str, Ends] | None = None,
    binary: Collection[str] = (),
    differences: bool = False,
    complete: bool = False,
) -> pl.DataFrame:
    """Each arm's mean over seeds, at each stage, with its interval: of each statistic, over the seeds that have it.

    See :func:`arm_differences` for the interval; under three seeds there is none.

    Args:
        ends: the least and the most that each can be, where its interval ends, too; :data:`~.ends.FREE` where a name
            is missing.
        binary: those that each factoid has or has not: theirs is :func:`~.shares.share_over_seeds`.
        differences: whether each run holds differences, which end at least less most, and at most less least.
        complete: whether a statistic that some seed lacks has no mean: where what it lacks says something of it, as a
            fact that is not learned again says how little was saved.

    Returns:
        [arm, stage, seeds, statistic, mean, low, high, p, detectable, by_seed]; ``seeds`` counts those that have the
        statistic, or all where none has it; ``p`` and ``detectable`` as in :func:`arm_differences`, of the mean against
        0, for those that can lie on either side of it.
    """
    limits = _limits(names, ends, differences=differences)
    rows = []
    for (arm, stage), members in _by_arm(runs).items():
        by_seed = np.array([run.means for run in members])
        of_arm: dict[int, list[Any]] = {}
        for columns, having, _ in _with_numbers(members, complete=complete):
            estimate = _estimate(having, [], n)
            low, high = within(estimate.low, estimate.high, [limits[i] for i in columns])
            for k, i in enumerate(columns):
                if names[i] in binary and len(having) >= MIN_SEEDS and n and not np.isnan(estimate.value[k]):
                    variance = _fact_variance([(1, having)], n)[k]
                    _, low[k], high[k], _ = share_over_seeds(_counts(having, k, n), n, fact_variance=variance)
                seeds = [None if np.isnan(value) else float(value) for value in by_seed[:, i]]
                least, most = limits[i]
                against_0 = (estimate.p[k], estimate.detectable[k]) if least < 0 < most else (np.nan, np.nan)
                edges = [estimate.value[k], low[k], high[k], *against_0]
                of_arm[i] = [arm, stage, len(having), names[i], *edges, seeds]
        rows += [of_arm[i] for i in range(len(names))]
    schema = {"arm": pl.String, "stage": pl.String, "seeds": pl.Int64, "statistic": pl.String}
    schema |= dict.fromkeys(("mean", "low", "high", "p", "detectable"), pl.Float64)
    schema |= {"by_seed": pl.List(pl.Float64)}
    return pl.DataFrame(rows, schema=schema, orient="row").with_columns(cs.float().fill_nan(None))


def _limits(names: Sequence[str], ends: Mapping[str, Ends] | None, *, differences: bool) -> list[Ends]:
    limits = [(ends or {}).get(name, FREE) for name in names]
    return [less(one) for one in limits] if differences else limits


def _with_numbers(
    members: Sequence[Run], others: Sequence[Run] = (), *, complete: bool = False
) -> Iterator[tuple[list[int], list[Run], list[Run]]]:
    """Statistics by which runs have a number for them: their places, and the runs of either side that do, reduced to
    them. All runs stand for what none has."""
    sides = [list(members), list(others)]
    there = ~np.isnan([run.means for side in sides for run in side])
    patterns: dict[bytes, list[int]] = {}
    for i, column in enumerate(there.T):
        patterns.setdefault(column.tobytes(), []).append(i)
    for columns in patterns.values():
        column, first = there[:, columns[0]], len(members)
        ones, theirs = (
            [
                run.only(columns)
                for run, has in zip(side, known, strict=True)
                if has or complete or not known.any()
            ]
            for side, known in zip(sides, (column[:first], column[first:]), strict=True)
        )
        yield columns, ones, theirs


def arm_differences(
    runs: list[Run],
    names: list[str],
    n: int,
    *,
    reference: str | None = None,
    ends: Mapping[str, Ends] | None = None,
    binary: Collection[str] = (),
    complete: bool = False,
) -> pl.DataFrame:
    """Differences between arms at the same stage, over the training seeds that have a statistic.

    The interval is the difference ± Student's quantile times its standard error. The error is what resampling
    seeds within each arm and then factoids (the same ones for every run) would give with draws without end,
    less what that counts twice. Of an arm's S seeds, the variance of the run means over S holds what is peculiar
    to a seed *and* what is peculiar to a factoid under one seed; the factoids' variance of the difference holds
    the latter once more, beside what a factoid does to the whole arm. So with s² over seeds of run means, F the
    variance over factoids of the difference of the arms' means, and I that of a run's mean minus its arm's, meaned
    over seeds with S - 1,

        variance = Σ s² / S + max(0, F - Σ I / S),

    the unbiased estimate for crossed random effects, which the two-level bootstrap exceeds (Owen 2007; Searle,
    Casella & McCulloch 1992, section 5.3). Degrees of freedom are Satterthwaite's of 1946, V² / Σ (v² / f) over the
    terms v with f of their own, which are few enough where one arm's seeds scatter three times as widely as the
    other's, and a little too few where they scatter alike. The interval is never narrower than that over seeds without
    the factoids' part.

    Two cases have a rule of their own. Where the runs of a seed start from one checkpoint, or are trained on rows
    that no other seed has, seeds are pairs: s² is then that of the pairs' differences. For yes-or-no statistics it is
    at least what binomial noise alone would give, since a few pairs may agree by chance. And yes-or-no statistics of
    independent seeds, or of fewer than :data:`MIN_SHARE_PAIRS` pairs, have the interval of
    :func:`~memprobe.statistics.shares.share_difference`.

    Fewer than three pairs are taken for independent seeds. The difference is over the seeds that the interval is over:
    those of the pairs, or all of either arm. With fewer than three seeds on a side there is no interval and
    ``significant`` is null: the seeds are shown, and that is all they can say. Nor is there one where nothing scatters
    at all.

    Args:
        runs: all runs; arms are compared with ``reference`` (default: the first arm).
        n: how many factoids the means are over.
        ends: the least and the most that each statistic can be; the intervals of differences end at least less most,
            and at most less least.
        binary: statistics that each factoid has or has not.
        complete: as in :func:`arm_means`.

    Returns:
        [arm, reference, stage, statistic, seeds, reference_seeds, in_common, paired, difference, low, high, p,
        significant, detectable]; seeds of either arm are those that the difference is over, ``in_common`` is one of
        :data:`PREFIX`, :data:`ROWS_BY_SEED`, :data:`ROWS` and :data:`NOTHING`, ``paired`` whether the interval is one
        over pairs, ``detectable`` the difference that so many seeds, scattering as these do, see in 80 %.
    """
    groups = _by_arm(runs)
    reference = reference if reference is not None else runs[0].arm
    limits = _limits(names, ends, differences=True)
    rows = []
    for (arm, stage), members in groups.items():
        others = groups.get((reference, stage), [])
        if arm == reference or not others:
            continue
        of_arm: dict[int, list[Any]] = {}
        for columns, ones, theirs in _with_numbers(members, others, complete=complete):
            shared = in_common(ones, theirs)
            pairs = _pairs(ones, theirs) if shared in (PREFIX, ROWS_BY_SEED) else []
            paired = len(pairs) >= MIN_SEEDS
            called = [names[i] for i in columns]
            plain = _paired(pairs, called, n, binary) if paired else _estimate(ones, theirs, n)
            low, high = within(plain.low, plain.high, [limits[i] for i in columns])
            plain = plain._replace(low=low, high=high)
            enough = min(len(ones), len(theirs)) >= MIN_SEEDS
            for k, i in enumerate(columns):
                numbers = [part[k] for part in plain]
                share = names[i] in binary and len(pairs) < MIN_SHARE_PAIRS
                if share and enough and n and not np.isnan(numbers[0]):
                    numbers = _independent_shares(ones, theirs, k, n)
                known = not np.isnan(numbers[1])
                significant = bool(numbers[1] > 0 or numbers[2] < 0) if known else None
                counts = [len(pairs)] * 2 if paired and not share else [len(ones), len(theirs)]
                front = [arm, reference, stage, names[i], *counts, shared, paired and not share]
                of_arm[i] = [*front, *numbers[:4], significant, numbers[4]]
        rows += [of_arm[i] for i in range(len(names))]
    schema: dict[str, type[pl.DataType]] = {
        "arm": pl.String,
        "reference": pl.String,
        "stage": pl.String,
        "statistic": pl.String,
        "seeds": pl.Int64,
        "reference_seeds": pl.Int64,
        "in_common": pl.String,
        "paired": pl.Boolean,
        **dict.fromkeys(("difference", "low", "high", "p"), pl.Float64),
        "significant": pl.Boolean,
        "detectable": pl.Float64,
    }
    return pl.DataFrame(rows, schema=schema, orient="row").with_columns(cs.float().fill_nan(None))


def are_seeds(made: Sequence[tuple[str, str, str, str | None]]) -> list[bool]:
    """Which runs may be drawn as seeds of their arm; the others are arms of their own.

    Args:
        made: (arm, stage, seed, settings) of each; the last stands for all else that its recipe says, and is ``None``
            where nothing says it.

    Returns:
        Of each whether it is the only one of its arm, stage and seed, and all runs of its arm and stage were trained
        with the same settings, as far as they say with which.
    """
    often = Counter(one[:3] for one in made)
    settings = of_several_marks((one[:2], one[3], one) for one in made)
    return [often[one[:3]] == 1 and one[:2] not in settings for one in made]


def student(values: np.ndarray) -> tuple[float | None, float | None]:
    """Student's interval of a mean over seeds; none for fewer than :data:`MIN_SEEDS`, nor where nothing scatters."""
    if len(values) < MIN_SEEDS or np.ptp(values) < 1e-9:
        return None, None
    error = values.std(ddof=1) / np.sqrt(len(values))
    half = special.stdtrit(len(values) - 1, 0.5 + LEVEL / 2) * error
    return float(values.mean() - half), float(values.mean() + half)


def in_common(members: Sequence[Run], others: Sequence[Run]) -> str:
    """What the runs of two arms have in common; see :data:`PREFIX`."""
    by_seed = {run.seed: run for run in others}
    pairs = [(run, by_seed[run.seed]) for run in members if run.seed in by_seed]
    if not pairs:
        return NOTHING
    known = [set(run.before) for run in (*members, *others) if run.before]
    constant = set.intersection(*known) if known else set()  # the base model is no block
    if len(pairs) > 1 and all((set(one.before) & set(other.before)) - constant for one, other in pairs):
        return PREFIX
    if all(one.rows and one.rows == other.rows for one, other in pairs):
        return ROWS if len({one.rows for one, _ in pairs}) == 1 else ROWS_BY_SEED
    return NOTHING


def _by_arm(runs: list[Run]) -> dict[tuple[str, str], list[Run]]:
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.arm, run.stage), []).append(run)
    return groups


def _pairs(members: list[Run], others: list[Run]) -> list[Run]:
    """One run per seed that both arms have, holding the difference."""
    by_seed = {run.seed: run for run in others}
    return [
        Run(run.arm, run.stage, run.seed, run.label, run.means - other.means, run.influence - other.influence)
        for run in members
        if (other := by_seed.get(run.seed)) is not None
    ]


def _paired(pairs: list[Run], names: list[str], n: int, binary: Collection[str]) -> _Estimate:
    """Student's t over pairs of seeds, each holding a difference."""
    floor = np.zeros(len(names))
    for i, name in enumerate(names):
        if name in binary:
            answers = [run.influence[:, i] * n + run.means[i] for run in pairs]
            floor[i] = np.mean([discordant_variance(one) for one in answers])
    return _estimate(pairs, [], n, floor=floor)


def _independent_shares(members: list[Run], others: list[Run], i: int, n: int) -> list[float]:
    """[difference, low, high, p, detectable] of one statistic, over all seeds of either arm."""
    sides = [[(1, members)], [(1, others)], [(1, members), (-1, others)]]
    one, other, both = (float(_fact_variance(side, n)[i]) for side in sides)
    counts = _counts(members, i, n), _counts(others, i, n)
    value, low, high, p = share_difference(*counts, n, fact_variances=(one, other, both))
    return [value, low, high, p, detectable_within(low, high)]


def _counts(members: list[Run], i: int, n: int) -> np.ndarray:
    return np.array([run.means[i] * n for run in members])


def _fact_variance(sides: list[tuple[int, list[Run]]], n: int) -> np.ndarray:
    """[statistic]: variance of the (difference of the) arms' means by what factoids do under every seed."""
    if n < 2:
        return np.zeros_like(sides[0][1][0].means)
    arms = np.zeros_like(sides[0][1][0].influence)
    twice = np.zeros(arms.shape[1])
    for sign, side in sides:
        influence = np.array([run.influence for run in side])  # [seed, factoid, statistic]
        mean = influence.mean(0)
        arms += sign * mean
        if len(side) > 1:
            twice += ((influence - mean) ** 2).sum((0, 1)) / (len(side) - 1) / len(side)
    unbiased = n / (n - 1)  # the sum of squared influences is the variance with n below
    return unbiased * np.clip((arms**2).sum(0) - twice, 0, None)


def _estimate(members: list[Run], others: list[Run], n: int, *, floor: np.ndarray | float = 0.0) -> _Estimate:
    """Mean of ``members`` minus that of ``others`` (if any); ``floor`` is the least variance over seeds."""
    sides = [(1, members), *([(-1, others)] if others else [])]
    value = np.sum([sign * np.mean([run.means for run in side], axis=0) for sign, side in sides], axis=0)
    nothing = np.full_like(value, np.nan)
    if min(len(side) for _, side in sides) < MIN_SEEDS or n < 2:
        return _Estimate(value, nothing, nothing, nothing, nothing)
    terms: list[tuple[np.ndarray, int]] = []  # (variance, its degrees of freedom)
    for _, side in sides:
        over = np.maximum(np.var([run.means for run in side], axis=0, ddof=1), floor)
        terms.append((over / len(side), len(side) - 1))
    terms.append((_fact_variance(sides, n), n - 1))
    rounding = (1e-9 * np.maximum(1.0, np.abs(value))) ** 2
    half, p, seen = np.zeros_like(value), np.zeros_like(value), np.zeros_like(value)
    # Facts may seem to matter, and lend their many degrees of freedom, where they do not: the interval is no narrower
    # than that over seeds alone.
    for some in (terms, terms[:-1]):
        variance = np.sum([term for term, _ in some], axis=0)
        error = np.where(
            variance > rounding, np.sqrt(variance), np.nan
        )  # without scatter there is no error to tell of
        with np.errstate(divide="ignore", invalid="ignore"):
            parts = np.sum([term**2 / freedom for term, freedom in some], axis=0)
            freedom = variance**2 / parts
            half = np.fmax(half, special.stdtrit(freedom, 0.5 + LEVEL / 2) * error)
            p = np.fmax(p, 2 * special.stdtr(freedom, -np.abs(value) / error))
        far = np.array([detectable(one, f) for one, f in zip(error, freedom, strict=True)])
        seen = np.fmax(seen, far)
    known = half > 0
    half, p, seen = (np.where(known, one, np.nan) for one in (half, p, seen))
    return _Estimate(value, value - half, value + half, p, seen)
