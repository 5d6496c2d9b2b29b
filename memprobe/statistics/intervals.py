"""Intervals: Wilson for shares, the bootstrap over factoids for all else, order statistics for medians.

All are 95 % and two-sided. They speak of the checkpoints at hand; :mod:`memprobe.statistics.arms` is for
claims about how checkpoints are made.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from scipy import special

from memprobe.errors import MemprobeError

LEVEL = 0.95
Z = float(special.ndtri(0.5 + LEVEL / 2))
"""Standard errors that an interval of a normal reaches either way."""
_METHOD = "weibull"
FEWEST = {"mean": 10, "mean of those that occur": 20, "sd": 60, "effective layers": 60}
"""Factoids below which a statistic has no interval, for it would not hold 95 %: "too few" is said instead. Where
``tests/benchmarks/interval_coverage.py`` finds that it holds 93 % at least: few facts of one depth and a rare other one
hide the spread altogether."""
FEW = 30
"""Factoids below which a mean has Student's interval: percentiles of draws from so few are no better than the draws."""

MOST_DRAWS = 1_000_000
"""Of a bootstrap."""
_ROOM = 4_000_000_000  # bytes of resamples, one a draw and factoid
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
    """Bootstrap draws over ``n`` factoids, kept as how often each draw holds each factoid.

    A statistic made of means then is one matrix product for all draws, and two checkpoints that are given
    the same draws are compared factoid by factoid.

    Attributes:
        n: how many factoids.
        draws: how many draws.
        counts: uint8 [draw, factoid]; each row sums to ``n`` (multinomial). A nameless file of those bytes, in the
            folder for temporary files, where they take more than :data:`_HELD` bytes.
    """

    n: int
    draws: int
    counts: np.ndarray | BinaryIO

    @classmethod
    def of(cls, n: int, *, draws: int = 10_000, seed: int = 0) -> Resamples:
        """Draws under a seed.

        Raises:
            MemprobeError: there are too many, or no room for them on the disk.
        """
        if draws * n > _ROOM:
            raise MemprobeError(
                f"{draws:,} draws of {n:,} factoids take too much room: give at most {_ROOM // n:,}"
            )
        blocks = _drawn(n, draws, np.random.default_rng(seed))
        if draws * n <= _HELD:
            held = np.empty((draws, n), np.uint8)
            for start, block in zip(range(0, draws, _step(n)), blocks, strict=True):
                held[start : start + len(block)] = block
            return cls(n, draws, held)
        try:
            file = tempfile.TemporaryFile()  # noqa: SIM115 (kept as long as the draws are)
            for block in blocks:
                file.write(block.tobytes())
            file.flush()
        except OSError as error:
            raise MemprobeError(
                f"{draws:,} draws of {n:,} factoids take {draws * n / 1e9:.1f} GB of a folder for temporary files: "
                f"{error.strerror or error}; let TMPDIR name one with room, or ask for fewer draws"
            ) from error
        return cls(n, draws, file)

    def _blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """The draws in parts: which, and uint8 [draw, factoid]."""
        step = _step(self.n)
        for start in range(0, self.draws, step):
            part = slice(start, min(start + step, self.draws))
            if isinstance(self.counts, np.ndarray):
                yield part, self.counts[part]
                continue
            self.counts.seek(start * self.n)
            size = (part.stop - start) * self.n
            yield part, np.frombuffer(self.counts.read(size), np.uint8).reshape(-1, self.n)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """float64 [draw, column]: per draw, the sum of ``values`` [factoid, column] over its factoids.

        The product is in single precision, twice as fast: whole numbers stay exact up to 2^24, others are good
        to about 1e-6, far below the noise of any number of draws.
        """
        values = np.ascontiguousarray(values, np.float32)
        total = np.empty((self.draws, values.shape[1]))
        for part, counts in self._blocks():
            total[part] = counts.astype(np.float32) @ values
        return total

    def squares(self, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """float64 [draw]: per draw, the sum over its factoids of (``values`` [factoid, column] @ ``weights``
        [draw, column])². With influences of factoids that is the variance of the draw's own statistic."""
        values, weights = (np.ascontiguousarray(part, np.float32) for part in (values, weights))
        total = np.empty(self.draws)
        for part, counts in self._blocks():
            influence = weights[part] @ values.T
            np.multiply(influence, influence, out=influence)
            total[part] = np.einsum("df,df->d", influence, counts)
        return total

    def interval(self, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """:func:`percentile_interval` for this number of factoids."""
        return percentile_interval(draws, self.n)


def _step(n: int) -> int:
    """How many draws of ``n`` factoids are made, and worked with, at once."""
    return max(1, 4_000_000 // max(n, 1))


def _drawn(n: int, draws: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """uint8 [draw, factoid], in parts."""
    step = _step(n)
    for start in range(0, draws, step):
        rows = min(step, draws - start)
        cells = rng.integers(0, n, (rows, n), dtype=np.int32) + n * np.arange(rows, dtype=np.int32)[:, None]
        yield np.bincount(cells.ravel(), minlength=rows * n).reshape(rows, n).astype(np.uint8)


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

    NaN cells are left out, and a column's interval is that of a sample of those that are left: Student's of fewer than
    :data:`FEW`, none of fewer than :data:`FEWEST`.
    """
    values = np.asarray(values, np.float64)
    present = ~np.isnan(values)
    n = present.sum(0)
    torn = np.flatnonzero(n < len(values))
    filled = np.where(present, values, 0.0)
    sums = resamples.sums(np.column_stack([filled, present[:, torn]]))
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = filled.sum(0) / n
        draws = sums[:, : len(n)] / resamples.n
        draws[:, torn] = sums[:, torn] / sums[:, len(n) :]
    low, high = resamples.interval(draws)
    for column in torn:
        low[column], high[column] = percentile_interval(draws[:, column], int(n[column]))
    few = np.flatnonzero(n < FEW)
    if len(few):
        half = _student(filled[:, few], present[:, few], mean[few])
        low[few], high[few] = mean[few] - half, mean[few] + half
    return mean, low, high


def _student(filled: np.ndarray, present: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """[column]: half of Student's interval of a mean; NaN where there are too few values."""
    n = present.sum(0)
    known = np.where(n >= FEWEST["mean"], n, 2)
    error = np.sqrt(np.where(present, (filled - mean) ** 2, 0.0).sum(0) / (known - 1) / known)
    return np.where(n >= FEWEST["mean"], special.stdtrit(known - 1, 0.5 + LEVEL / 2) * error, np.nan)


def bootstrap(
    values: np.ndarray, resamples: Resamples | None, statistic: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Value, low and high of ``statistic(sums, counts)``, which need not be a mean; see :func:`accelerated_interval`.

    Both arguments are [draw, column]: the sums of the cells of ``values`` that are not NaN, and how many they
    are; the statistic returns [draw, …]. The value itself comes from the sample taken once. Without ``resamples`` there
    is no interval, nor of fewer factoids than :data:`FEWEST` asks of a mean.
    """
    values = np.asarray(values, np.float64)
    present = ~np.isnan(values)
    filled = np.where(present, values, 0.0)
    n = present.sum(0)
    torn = np.flatnonzero(n < len(values))
    if resamples is None or present.any(1).sum() < FEWEST["mean"]:
        with np.errstate(divide="ignore", invalid="ignore"):
            value = statistic(filled.sum(0)[None], n[None].astype(float))[0]
        return value, np.full_like(value, np.nan), np.full_like(value, np.nan)
    sums = resamples.sums(np.column_stack([filled, present[:, torn]]))
    counts = np.full((len(sums), len(n)), float(resamples.n))
    counts[:, torn] = sums[:, len(n) :]
    with np.errstate(divide="ignore", invalid="ignore"):
        value = statistic(filled.sum(0)[None], n[None].astype(float))[0]
        without = statistic(filled.sum(0) - filled, n - present.astype(float))
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
        left_out: [factoid, statistic], of the sample without one factoid.
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


def median_interval(values: np.ndarray) -> tuple[float, float, float]:
    """Median and the order statistics that enclose it with at least 95 % (Conover 1999, section 3.2).

    Which order statistics they are follows from the binomial distribution alone, so no draws are needed. The
    median is the lower one where the number of values is even, so that it is one of them; infinity is a value
    like any other. NaN bounds where there are too few values (below 6) for any interval at this level.
    """
    values = np.sort(np.asarray(values, float))
    n = len(values)
    if n == 0:
        return np.nan, np.nan, np.nan
    median = float(values[(n - 1) // 2])
    below = special.bdtr(np.arange(n // 2 + 1), n, 0.5)
    outside = int((below <= (1 - LEVEL) / 2).sum())  # how many values each side stays clear of
    if outside == 0:
        return median, np.nan, np.nan
    return median, float(values[outside - 1]), float(values[n - outside])
