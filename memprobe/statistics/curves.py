"""Curves over depth: recall@k, its chance level from shuffled answers, and normalised frequency."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import polars as pl

from memprobe.errors import MemprobeError
from memprobe.statistics.asking import Ranks, asked
from memprobe.statistics.ends import Ends, within
from memprobe.statistics.holding import Trajectories, answer_lengths, trajectories
from memprobe.statistics.intervals import (
    FEWEST,
    Resamples,
    bootstrap,
    bootstrap_mean,
    median_interval,
    of_unanimous_shares,
    wilson,
)


def recall_by_depth(frame: Ranks, *, k: int | None = None, token: str | None = None) -> pl.DataFrame:
    """recall@k(d): the share of factoids whose answer is in the top k at depth d, under the token rule.

    Args:
        frame: records, or a probe.
        k, token: the top k and the token rule; of a probe, by default those that it was made with.

    Returns:
        [checkpoint, (control,) depth, n, recall, low, high]; Wilson intervals; ``n`` factoids have that depth.
    """
    frame, k, token = asked(frame, k, token)
    return recall_of(trajectories(frame, token=token), k=k)


def recall_of(captured: Iterable[Trajectories], *, k: int) -> pl.DataFrame:
    """:func:`recall_by_depth` of trajectories, so that many k need the records only once."""
    parts = []
    for part in captured:
        n = (part.rank >= 0).sum(0)
        depths = n.nonzero()[0]
        recall = part.held(k).sum(0)[depths] / n[depths]
        parts.append(_labelled(part, depths).with_columns(n=pl.Series(n[depths]), recall=pl.Series(recall)))
    return _with_wilson(_concat(parts, {"n": pl.Int64, "recall": pl.Float64}))


def shuffled_recall(
    controls: Ranks,
    *,
    k: int | None = None,
    token: str | None = None,
    records: pl.DataFrame | pl.LazyFrame | None = None,
) -> pl.DataFrame:
    """recall@k(d) of shuffled answers, the chance level: the mean over the ``shuffled:…`` draws.

    A factoid's value is its mean over the draws. The interval is Wilson's on the number of factoids, which is
    not too narrow: a value between 0 and 1 varies no more than a yes or no with the same mean.

    Args:
        controls: controls, or a probe.
        k, token: the top k and the token rule; of a probe, by default those that it was made with.
        records: of the same factoids, where ``controls`` is a table: a rule that needs more than the first token leaves
            out draws that are shorter than the answer (see :func:`memprobe.statistics.holding.by_rule`).

    Returns:
        [checkpoint, depth, n, recall, low, high]

    Raises:
        MemprobeError: the rule needs ``records``, and they are not given.
    """
    if not isinstance(controls, pl.DataFrame | pl.LazyFrame):
        records = controls.records
    controls, k, token = asked(controls, k, token, table="controls")
    if records is None and token != "first":
        raise MemprobeError(
            f"`token` {token!r} needs the lengths of the answers: give `records`, or the probe in place of a table"
        )
    lengths = None if records is None or token == "first" else answer_lengths(records)
    draws = controls.lazy().filter(pl.col("control").str.starts_with("shuffled:"))
    return shuffled_recall_of(trajectories(draws, token=token, lengths=lengths), k=k)


def shuffled_recall_of(draws: Iterable[Trajectories], *, k: int) -> pl.DataFrame:
    """:func:`shuffled_recall` of the draws' trajectories."""
    by_checkpoint: dict[str, list[Trajectories]] = {}
    for draw in draws:
        by_checkpoint.setdefault(draw.checkpoint, []).append(draw)
    parts = []
    for label, group in by_checkpoint.items():
        place = {
            factoid: row
            for row, factoid in enumerate(dict.fromkeys(np.concatenate([d.factoids for d in group])))
        }
        holds, drawn = np.zeros((2, len(place), group[0].rank.shape[1]))
        for draw in group:  # a factoid may lack a control in some draws
            rows = [place[factoid] for factoid in draw.factoids]
            holds[rows] += draw.held(k)
            drawn[rows] += draw.rank >= 0
        n = (drawn > 0).sum(0)
        depths = n.nonzero()[0]
        recall = (holds / np.maximum(drawn, 1)).sum(0)[depths] / n[depths]
        keys = pl.DataFrame({"checkpoint": [label] * len(depths), "depth": pl.Series(depths, dtype=pl.Int16)})
        parts.append(keys.with_columns(n=pl.Series(n[depths]), recall=pl.Series(recall)))
    return _with_wilson(_concat(parts, {"n": pl.Int64, "recall": pl.Float64}))


def normalised_frequency(frame: Ranks, *, k: int | None = None, token: str | None = None) -> pl.DataFrame:
    """Occurrences at depth d divided by all occurrences over depths 1 … n_layers (the paper's figure 4, left).

    Args:
        frame: records or controls, or a probe.
        k, token: the top k and the token rule; of a probe, by default those that it was made with.

    Returns:
        [checkpoint, (control,) depth, frequency] for depths >= 1; null where nothing occurs at any of them.
    """
    frame, k, token = asked(frame, k, token)
    return frequency_of(trajectories(frame, token=token), k=k)


def frequency_of(captured: Iterable[Trajectories], *, k: int) -> pl.DataFrame:
    """:func:`normalised_frequency` of trajectories."""
    parts = []
    for part in captured:
        depths = (part.rank >= 0).sum(0).nonzero()[0]
        depths = depths[depths >= 1]
        counts = part.held(k).sum(0)[depths]
        shares = counts / counts.sum() if counts.sum() else np.full(len(depths), np.nan)
        parts.append(_labelled(part, depths).with_columns(frequency=pl.Series(shares).fill_nan(None)))
    return _concat(parts, {"frequency": pl.Float64})


def _labelled(part: Trajectories, depths: np.ndarray) -> pl.DataFrame:
    """[checkpoint, (control,) depth] of one trajectory."""
    names = {"checkpoint": part.checkpoint} | ({} if part.control is None else {"control": part.control})
    columns = {name: [value] * len(depths) for name, value in names.items()}
    return pl.DataFrame(columns | {"depth": pl.Series(depths, dtype=pl.Int16)})


def _concat(parts: list[pl.DataFrame], measures: dict[str, type[pl.DataType]]) -> pl.DataFrame:
    schema: dict[str, type[pl.DataType]] = {"checkpoint": pl.String, "depth": pl.Int16, **measures}
    return (
        pl.concat([part.cast({name: schema[name] for name in measures}) for part in parts])
        if parts
        else pl.DataFrame(schema=schema)
    )


def area(recall: np.ndarray) -> np.ndarray:
    """Area under the recall curve as a share of its largest value: the trapezoid rule over depths.

    Args:
        recall: [..., depth 0 … n_layers].

    Returns:
        [...], in 0 … 1; the mean over depth of the share of facts that have surfaced there.
    """
    return np.trapezoid(recall, axis=-1) / (recall.shape[-1] - 1)


def _frequencies(held: np.ndarray, resamples: Resamples) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[depth]: occurrences at a depth over all, with their intervals.

    Args:
        held: [factoid, depth from 1 on], 1 where a depth holds the answer.
    """
    frequency, low, high = bootstrap(held, resamples, lambda sums, counts: sums / sums.sum(1)[:, None])
    occur = int(resamples.having(np.asarray(held.any(1))))
    if occur < FEWEST["mean of those that occur"]:
        nothing = np.full_like(frequency, np.nan)
        return frequency, nothing, nothing
    return frequency, *of_unanimous_shares(frequency, low, high, np.full(len(frequency), occur))


def _means(values: np.ndarray, resamples: Resamples, ends: Ends) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[depth]: means over factoids of values [factoid, depth], with their intervals."""
    mean, low, high = bootstrap_mean(values, resamples)
    return mean, *within(low, high, [ends] * len(mean))


def curves_of(
    trajectory: Trajectories, *, k: int, net: pl.DataFrame | None, resamples: Resamples
) -> pl.DataFrame:
    """Every curve of one checkpoint, with its 95 % band.

    ``recall`` (Wilson); ``chance`` the same of shuffled answers and ``net`` their difference, paired by
    factoid; ``frequency`` the normalised frequency (null at depth 0); ``log_prob`` and ``entropy`` the means,
    in nats; ``median_rank`` by order statistics. All but recall and rank are bootstrapped over factoids; frequencies
    have no interval where those of fewer than 20 answers occur, and Wilson's of those where all that occur agree.

    Args:
        net: [depth, chance, net, low, high], recall net of shuffled answers as
            :func:`memprobe.statistics.controls.net_tables` gives it; ``None`` where there are none.

    Returns:
        [depth, n, recall, recall_low, recall_high, chance, net…, frequency…, log_prob…, entropy…, median_rank…]
    """
    missing = trajectory.rank < 0
    holds = np.where(missing, np.nan, trajectory.held(k).astype(float))
    n = (~missing).sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        recall = np.nansum(holds, axis=0) / n
    beside = np.full((4, len(n)), np.nan)
    if net is not None:
        beside[:, net["depth"].to_numpy()] = net.select("chance", "net", "low", "high").to_numpy().T
    frequency = _frequencies(np.nan_to_num(holds)[:, 1:], resamples)
    log_prob = _means(trajectory.log_prob, resamples, (-np.inf, 0.0))
    entropy = _means(trajectory.entropy, resamples, (0.0, np.inf))
    medians = np.array([median_interval(column[column >= 0]) for column in trajectory.rank.T]).T
    curves = {
        "recall": (recall, *wilson(recall, n)),
        "net": tuple(beside[1:]),
        "frequency": tuple(np.concatenate([[np.nan], edge]) for edge in frequency),
        "log_prob": log_prob,
        "entropy": entropy,
        "median_rank": tuple(medians),
    }
    columns = {"depth": np.arange(len(n)), "n": n}
    for name, edges in curves.items():
        columns |= {f"{name}{end}": edge for end, edge in zip(("", "_low", "_high"), edges, strict=True)}
        if name == "recall":
            columns["chance"] = beside[0]
    return pl.DataFrame(columns).fill_nan(None)


def _with_wilson(shares: pl.DataFrame) -> pl.DataFrame:
    low, high = wilson(shares["recall"].to_numpy(), shares["n"].to_numpy())
    return shares.with_columns(pl.Series("low", low), pl.Series("high", high))
