"""Intervals: Wilson for shares, the bootstrap over factoids for all else, order statistics for medians.

Factoids that share an answer are resampled together, see :class:`Resamples`. All are 95 % and two-sided. They speak of
the checkpoints at hand; :mod:`memprobe.statistics.arms` is for claims about how checkpoints are made.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import BinaryIO

import numpy as np
from scipy import special

from memprobe.errors import MemprobeError

LEVEL = 0.95
Z = float(special.ndtri(0.5 + LEVEL / 2))
"""Standard errors that an interval of a normal reaches either way."""
_METHOD = "weibull"
FEWEST = {"mean": 10, "mean of those that occur": 20, "sd": 60, "effective layers": 60}
"""Distinct answers below which a statistic has no interval, for it would not hold 95 %: "too few" is said instead.
Where ``tests/benchmarks/interval_coverage.py`` finds that it holds 93 % at least, of factoids with an answer each: few
facts of one depth and a rare other one hide the spread altogether. All of them count answers, for it is answers that
are drawn, and the facts of one may be one lucky hit: of a mean those that have a value, of the others those with a fact
that occurs. Medians and shares at one checkpoint count facts."""
MIN_SEEDS = 3
"""Training seeds below which nothing over seeds has an interval; see :mod:`memprobe.statistics.arms`."""
FEW = 30
"""Answers below which a mean has Student's interval: percentiles of draws from so few are no better than the draws."""

MOST_DRAWS = 1_000_000
"""Of a bootstrap."""
_ROOM = 4_000_000_000  # bytes of resamples, one a draw and answer
_HELD = 2**28  # of which so many are held in memory


def check_draws(draws: int, seed: int = 0) -> None:
    """Refuses a number of draws, or a seed, that no interval can be made with.

    Raises:
        MemprobeError: so.
    """
    if draws < 100:
        raise MemprobeError(f"{draws} draws say nothing about a 95 % interval: give 100 or more")
    if draws > MOST_DRAWS:
        raise MemprobeError(f"{draws} draws: more than {MOST_DRAWS:,} change no digit that is shown")
    if seed < 0:
        raise MemprobeError(f"`seed` {seed}: give 0 or more")


def wilson(share: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The score interval of a share (Wilson 1927), elementwise; NaN where ``n`` is 0."""
    share, n = np.asarray(share, float), np.asarray(n, float)
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = Z**2 / n
        centre = (share + spread / 2) / (1 + spread)
        half = np.sqrt(spread * (share * (1 - share) + spread / 4)) / (1 + spread)
    # At 0 and at 1 the interval ends exactly there; rounding must not push it past.
    low, high = np.where(share == 0, 0.0, centre - half), np.where(share == 1, 1.0, centre + half)
    return np.where(n > 0, low, np.nan), np.where(n > 0, high, np.nan)


def of_unanimous_shares(
    share: np.ndarray, low: np.ndarray, high: np.ndarray, n: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Bootstrap intervals of shares, but Wilson's where they are without width: all factoids agree, which resampling
    takes for certain. A value between 0 and 1 varies no more than a yes or no with the same mean.

    Args:
        share, low, high: [statistic].
        n: factoids that have each.
    """
    flat = high - low <= 1e-6  # as exact as sums of draws are
    ends = wilson(share, n)
    low, high = (np.where(flat, of, end) for of, end in zip(ends, (low, high), strict=True))
    return low, high


@dataclass(frozen=True, eq=False)
class Resamples:
    """Bootstrap draws over the answers of ``n`` factoids, kept as how often each draw holds each answer.

    Factoids that share an answer share what makes it easy to reach, so that they are drawn together, all or none (the
    cluster bootstrap: Davison & Hinkley 1997, section 3.8; Field & Welsh 2007), as
    :func:`~memprobe.statistics.paired.sign_flip` flips them together. Drawn one by one, as if each told something of
    its own, eight facts an answer that always go together moved an interval off a true 0 in 50 % instead of 5 %. Where
    every factoid has an answer of its own that is the ordinary bootstrap.

    A statistic made of means then is one matrix product for all draws, and two checkpoints that are given
    the same draws are compared factoid by factoid.

    Attributes:
        n: how many factoids.
        draws: how many draws.
        counts: uint8 [draw, answer]; each row sums to :attr:`units` (multinomial). A nameless file of those bytes, in
            the folder for temporary files, where they take more than :data:`_HELD` bytes.
        answer: int [factoid], the number of its answer from 0; ``None`` where each has its own.
    """

    n: int
    draws: int
    counts: np.ndarray | BinaryIO
    answer: np.ndarray | None = None

    @classmethod
    def of(
        cls, n: int, *, answers: np.ndarray | None = None, draws: int = 10_000, seed: int = 0
    ) -> Resamples:
        """Draws under a seed.

        Args:
            answers: [factoid], whatever identifies the answer; without it every factoid counts for itself.

        Raises:
            MemprobeError: there are too many, or no room for them on the disk.
        """
        answer = None if answers is None else numbered(answers)
        units = n if answer is None else int(answer.max(initial=-1)) + 1
        what = "factoids" if units == n else "answers"
        if draws * units > _ROOM:
            raise MemprobeError(
                f"{draws:,} draws of {units:,} {what} take too much room: give at most {_ROOM // units:,}"
            )
        blocks = _drawn(units, draws, np.random.default_rng(seed))
        if draws * units <= _HELD:
            held = np.empty((draws, units), np.uint8)
            for start, block in zip(range(0, draws, _step(units)), blocks, strict=True):
                held[start : start + len(block)] = block
            return cls(n, draws, held, answer)
        try:
            file = tempfile.TemporaryFile()  # noqa: SIM115 (kept as long as the draws are)
            for block in blocks:
                file.write(block.tobytes())
            file.flush()
        except OSError as error:
            raise MemprobeError(
                f"{draws:,} draws of {units:,} {what} take {draws * units / 1e9:.1f} GB of a folder for temporary "
                f"files: {error.strerror or error}; let TMPDIR name one with room, or ask for fewer draws"
            ) from error
        return cls(n, draws, file, answer)

    @cached_property
    def units(self) -> int:
        """How many are drawn: distinct answers."""
        return self.n if self.answer is None else int(self.answer.max(initial=-1)) + 1

    @cached_property
    def sizes(self) -> np.ndarray:
        """float64 [draw]: how many factoids each draw holds, by which a sum is divided for a mean; answers of several
        factoids make them differ."""
        if self.units == self.n:
            return np.full(self.draws, float(self.n))
        return self.sums(np.ones((self.n, 1)))[:, 0]

    def by_answer(self, values: np.ndarray) -> np.ndarray:
        """float64 [answer, column]: the sums of ``values`` [factoid, column] over each answer's factoids; the values as
        they are where each has an answer of its own."""
        if self.answer is None or self.units == self.n:
            return values
        order = np.argsort(self.answer, kind="stable")
        starts = np.searchsorted(self.answer[order], np.arange(self.units))
        return np.add.reduceat(np.asarray(values, float)[order], starts, axis=0)

    def having(self, present: np.ndarray) -> np.ndarray:
        """int [column]: of how many answers a factoid has a value, ``present`` being bool [factoid, column]."""
        return (self.by_answer(present) > 0).sum(0)

    def _blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """The draws in parts: which, and uint8 [draw, answer]."""
        step = _step(self.units)
        for start in range(0, self.draws, step):
            part = slice(start, min(start + step, self.draws))
            if isinstance(self.counts, np.ndarray):
                yield part, self.counts[part]
                continue
            self.counts.seek(start * self.units)
            size = (part.stop - start) * self.units
            yield part, np.frombuffer(self.counts.read(size), np.uint8).reshape(-1, self.units)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """float64 [draw, column]: per draw, the sum of ``values`` [factoid, column] over its factoids.

        The product is in single precision, twice as fast: whole numbers stay exact up to 2^24, others are good
        to about 1e-6, far below the noise of any number of draws.
        """
        values = np.ascontiguousarray(self.by_answer(values), np.float32)
        total = np.empty((self.draws, values.shape[1]))
        for part, counts in self._blocks():
            total[part] = counts.astype(np.float32) @ values
        return total

    def squares(self, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """float64 [draw]: per draw, the sum over its answers of (their factoids' summed ``values`` [factoid, column] @
        ``weights`` [draw, column])². With influences of factoids, of which those of one answer add up, that is the
        variance of the draw's own statistic."""
        values = np.ascontiguousarray(self.by_answer(values), np.float32)
        weights = np.ascontiguousarray(weights, np.float32)
        total = np.empty(self.draws)
        for part, counts in self._blocks():
            influence = weights[part] @ values.T
            np.multiply(influence, influence, out=influence)
            total[part] = np.einsum("df,df->d", influence, counts)
        return total


def numbered(answers: np.ndarray) -> np.ndarray:
    """int [factoid]: the number of each one's answer, from 0."""
    answers = np.asarray(answers)
    if not np.issubdtype(answers.dtype, np.integer):
        answers = answers.astype(str)
    return np.unique(answers, return_inverse=True)[1]


def _step(units: int) -> int:
    """How many draws of so many answers are made, and worked with, at once."""
    return max(1, 4_000_000 // max(units, 1))


def _drawn(units: int, draws: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """uint8 [draw, answer], in parts."""
    step = _step(units)
    for start in range(0, draws, step):
        rows = min(step, draws - start)
        cells = (
            rng.integers(0, units, (rows, units), dtype=np.int32)
            + units * np.arange(rows, dtype=np.int32)[:, None]
        )
        yield np.bincount(cells.ravel(), minlength=rows * units).reshape(rows, units).astype(np.uint8)


def percentile_interval(draws: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The expanded percentile interval of bootstrap ``draws`` [draw, …] from a sample of ``n``.

    The plain percentile interval is too narrow by about sqrt((n - 1) / n) and by the normal's quantile where
    Student's belongs; the expanded one moves the percentiles out accordingly (Hesterberg 2015, "What Teachers
    Should Know About the Bootstrap", section 5.3). A percentile is the draw at (draws + 1) p, beyond which lie the
    wanted share of all draws that could be made (Hyndman & Fan 1996, type 6; numpy's default falls
    short of it). Draws in
    which the statistic does not exist (NaN) are left out. NaN for a sample of one.
    """
    draws = np.asarray(draws, float)
    nothing = np.full(draws.shape[1:], np.nan)
    if n < 2:
        return nothing, nothing
    tail = special.ndtr(np.sqrt(n / (n - 1)) * special.stdtrit(n - 1, (1 - LEVEL) / 2))
    if not np.isnan(draws).any():
        columns = np.ascontiguousarray(draws.T)  # so that each statistic's draws lie together
        low, high = np.quantile(columns, [tail, 1 - tail], axis=-1, method=_METHOD)
        return low.T, high.T
    exists = ~np.isnan(draws).all(axis=0)
    low, high = nothing.copy(), nothing.copy()
    if exists.any():
        low[exists], high[exists] = np.nanquantile(draws[:, exists], [tail, 1 - tail], axis=0, method=_METHOD)
    return low, high


def bootstrap_mean(values: np.ndarray, resamples: Resamples) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, low and high of each column of ``values`` [factoid, column].

    NaN cells are left out, and a column's interval is that of a sample of the answers that are left: Student's of fewer
    than :data:`FEW`, none of fewer than :data:`FEWEST`. A draw's mean is the ratio of its sums.
    """
    values = np.asarray(values, np.float64)
    present = ~np.isnan(values)
    n, units = present.sum(0), resamples.having(present)
    torn = np.flatnonzero(n < len(values))
    filled = np.where(present, values, 0.0)
    sums = resamples.sums(np.column_stack([filled, present[:, torn]]))
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = filled.sum(0) / n
        draws = sums[:, : len(n)] / resamples.sizes[:, None]
        draws[:, torn] = sums[:, torn] / sums[:, len(n) :]
    low, high = percentile_interval(draws, resamples.units)
    for column in torn:
        low[column], high[column] = percentile_interval(draws[:, column], int(units[column]))
    few = np.flatnonzero(units < FEW)
    if len(few):
        half = _student(filled[:, few], present[:, few], mean[few], resamples)
        low[few], high[few] = mean[few] - half, mean[few] + half
    return mean, low, high


def _student(filled: np.ndarray, present: np.ndarray, mean: np.ndarray, resamples: Resamples) -> np.ndarray:
    """[column]: half of Student's interval of a mean; NaN where there are too few values.

    The mean of answers of several factoids is a ratio, whose error is that of what each answer's factoids add up to
    apart from the mean (Davison & Hinkley 1997, section 2.7.2, the delta method).
    """
    n, units = present.sum(0), resamples.having(present)
    known = np.where(units >= FEWEST["mean"], units, 2)
    apart = resamples.by_answer(np.where(present, filled - mean, 0.0))
    error = np.sqrt((apart**2).sum(0) / (known - 1) / known) * (units / np.maximum(n, 1))
    half = special.stdtrit(known - 1, 0.5 + LEVEL / 2) * error
    return np.where(units >= FEWEST["mean"], half, np.nan)


def bootstrap(
    values: np.ndarray, resamples: Resamples | None, statistic: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Value, low and high of ``statistic(sums, counts)``, which need not be a mean; see :func:`accelerated_interval`.

    Both arguments are [draw, column]: the sums of the cells of ``values`` that are not NaN, and how many they
    are; the statistic returns [draw, …]. The value itself comes from the sample taken once. Without ``resamples`` there
    is no interval, nor of fewer answers than :data:`FEWEST` asks of a mean.
    """
    values = np.asarray(values, np.float64)
    present = ~np.isnan(values)
    filled = np.where(present, values, 0.0)
    n = present.sum(0)
    torn = np.flatnonzero(n < len(values))
    if resamples is None or resamples.having(np.atleast_1d(present.any(1))) < FEWEST["mean"]:
        with np.errstate(divide="ignore", invalid="ignore"):
            value = statistic(filled.sum(0)[None], n[None].astype(float))[0]
        return value, np.full_like(value, np.nan), np.full_like(value, np.nan)
    sums = resamples.sums(np.column_stack([filled, present[:, torn]]))
    counts = np.repeat(resamples.sizes[:, None], len(n), axis=1)
    counts[:, torn] = sums[:, len(n) :]
    with np.errstate(divide="ignore", invalid="ignore"):
        value = statistic(filled.sum(0)[None], n[None].astype(float))[0]
        without = statistic(
            filled.sum(0) - resamples.by_answer(filled), n - resamples.by_answer(present.astype(float))
        )
        low, high = accelerated_interval(value, statistic(sums[:, : len(n)], counts), without)
    return value, low, high


def accelerated_interval(
    value: np.ndarray, draws: np.ndarray, left_out: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Bias-corrected and accelerated: :func:`percentile_interval` for what is no mean (BCa, Efron 1987).

    The sd of a sample of skewed depths, for one, falls short of that of what it was sampled from, and a draw's falls
    short of the sample's by as much again; the share of draws below the value says by how far. The acceleration,
    how the standard error changes with the value, is the jackknife's.

    Args:
        value: [statistic], of the sample.
        draws: [draw, statistic].
        left_out: [answer, statistic], of the sample without one answer's factoids.
    """
    low, high = np.full(len(value), np.nan), np.full(len(value), np.nan)
    n = len(left_out)
    if n < 2:
        return low, high
    tail = np.sqrt(n / (n - 1)) * special.stdtrit(n - 1, (1 - LEVEL) / 2)
    for i, column in enumerate(draws.T):
        exists = column[~np.isnan(column)]
        if not len(exists) or np.isnan(value[i]):
            continue
        same = np.abs(exists - value[i]) <= 1e-6 * max(1.0, abs(value[i]))
        below = ((exists < value[i]) & ~same).mean() + same.mean() / 2
        edge = 0.5 / len(exists)
        bias = special.ndtri(np.clip(below, edge, 1 - edge))
        without = left_out[~np.isnan(left_out[:, i]), i]
        influence = (without.mean() if len(without) else np.nan) - without
        scale = (influence**2).sum() ** 1.5
        acceleration = (influence**3).sum() / (6 * scale) if scale > 0 else 0.0
        moved = bias + np.array([tail, -tail])
        shares = special.ndtr(bias + moved / (1 - acceleration * moved))
        low[i], high[i] = np.quantile(exists, shares, method=_METHOD)
    return low, high


def studentised_interval(
    value: float, error: float, draws: np.ndarray, errors: np.ndarray
) -> tuple[float, float]:
    """Bootstrap-t (Efron 1981; Davison & Hinkley 1997, section 5.2): each draw's distance from the value is measured
    in the draw's own standard error, as the value's distance from the truth is.

    For a statistic whose error is estimated too small, and whose bias and error change together: a draw has both
    faults once more, so that its studentised distance is off as the value's is.

    Args:
        value, error: of the sample.
        draws, errors: [draw]; draws without a value or with an error of 0 are left out.

    Returns:
        low, high; NaN where the sample's error is 0, for then it tells nothing of its own uncertainty.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = (draws - value) / errors
    distance = distance[np.isfinite(distance)]
    if not error > 0 or not len(distance):
        return np.nan, np.nan
    near, far = np.quantile(distance, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method=_METHOD)
    return value - far * error, value - near * error


def median_interval(values: np.ndarray, answers: np.ndarray | None = None) -> tuple[float, float, float]:
    """Median and the order statistics that enclose it with at least 95 % (Conover 1999, section 3.2).

    Which order statistics they are follows from the binomial distribution alone, so no draws are needed. The
    median is the lower one where the number of values is even, so that it is one of them; infinity is a value
    like any other. NaN bounds where there are too few values (below 6) for any interval at this level.

    With ``answers`` the values of one answer go together, and the order statistics lie as far out as the share of
    values below the median errs by answers (Woodruff 1952); none of fewer answers than :data:`FEWEST` asks of a mean.

    Args:
        answers: int [value], the number of its answer.
    """
    values = np.asarray(values, float)
    given, values = values, np.sort(values)
    n = len(values)
    if n == 0:
        return np.nan, np.nan, np.nan
    median = float(values[(n - 1) // 2])
    below = special.bdtr(np.arange(n // 2 + 1), n, 0.5)
    outside = int((below <= (1 - LEVEL) / 2).sum())  # how many values each side stays clear of
    if answers is not None:
        units, group = np.unique(answers, return_inverse=True)
        if len(units) < n:
            # Below the median or up to it: an answer of many values may lie right there.
            sides = [np.bincount(group, side - side.mean()) for side in (given < median, given <= median)]
            known = max(len(units), 2)
            error = np.sqrt(max((side**2).sum() for side in sides) * known / (known - 1))  # in values
            far = special.stdtrit(known - 1, 0.5 + LEVEL / 2) * error
            outside = min(outside, int(n / 2 - far)) if len(units) >= FEWEST["mean"] else 0
    if outside <= 0:
        return median, np.nan, np.nan
    return median, float(values[outside - 1]), float(values[n - outside])
