"""One checkpoint's records under a token rule and a top-k, and those of its controls. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import polars as pl

from memprobe.errors import MemprobeError
from memprobe.members import Member, collect
from memprobe.probes import Probe
from memprobe.records import GENERATED
from memprobe.statistics.controls import answer_cover, curve_values, values_of
from memprobe.statistics.holding import Trajectories, answer_lengths, trajectories
from memprobe.statistics.occurrence import Occurrence

OUTCOMES = ("exact_match", "exact_tokens", "alias_match")
_AT_ONCE = 10_000
"""Factoids whose rows are read and put in order together: rows take many times what comes of them."""


class Cells(NamedTuple):
    """Values of a checkpoint or of a control, by factoid.

    ``values`` is [factoid, STATISTICS], ``curves`` [factoid, CURVES x depth]; see
    :func:`memprobe.statistics.controls.values_of` and :func:`~memprobe.statistics.controls.curve_values`.
    """

    values: np.ndarray
    curves: np.ndarray


@dataclass(frozen=True, eq=False)
class Reading:
    """One checkpoint's records under a token rule and a top-k, on the common factoids in their common order.

    Attributes:
        everyone: ranks, log-probabilities and entropies of all its factoids, [factoid, depth].
        trajectory: of the common ones.
        outcomes: [exact_match, exact_tokens, alias_match], what the model says, null where that is not known.
        exact: bool [factoid], the model recalls the answer.
        first_rank: [factoid], of the first answer token in the model's own readout; -1 where missing.
        answers: [factoid, token, token_id], the answer's tokens.
    """

    member: Member
    everyone: Trajectories
    trajectory: Trajectories
    outcomes: pl.DataFrame
    exact: np.ndarray
    first_rank: np.ndarray
    answers: pl.DataFrame
    k: int
    token: str

    @cached_property
    def found(self) -> Occurrence:
        """First occurrence, settled depth and the depths that hold each answer."""
        return Occurrence.of(self.trajectory, self.k)

    @cached_property
    def values(self) -> np.ndarray:
        """[factoid, STATISTICS]"""
        return values_of(self.trajectory, self.found, self.exact)

    @property
    def cells(self) -> Cells:
        """Values and curves."""
        return Cells(self.values, curve_values(self.trajectory, self.k))

    @property
    def cover(self) -> float:
        """The share of factoids that the k commonest answer tokens cover."""
        return answer_cover(self.answers, k=self.k, token=self.token)

    @property
    def tokens(self) -> pl.DataFrame:
        """[factoid, length, first]: how many tokens the answer has, and its first."""
        first = self.answers.filter(pl.col("token") == 0).select("factoid", first="token_id")
        return answer_lengths(self.answers).join(first, on="factoid", how="left")


def rows_of(
    member: Member, table: str, columns: Sequence[str] = (), where: pl.Expr | None = None
) -> pl.DataFrame:
    """A checkpoint's rows of a table, of all its factoids, under the label that it has among those compared.

    Args:
        table: records, controls or outcomes.
        columns: some of them, beside checkpoint and factoid; all where empty.
        where: only rows of which this holds; others are not kept in memory.
    """
    rows = _rows(member, table, columns)
    return collect(rows if where is None else rows.filter(where), member.probe)


def counts_of(member: Member, table: str, column: str) -> pl.DataFrame:
    """How many of a checkpoint's rows have which value: [column, count], without order."""
    rows = member.probe.read(table, checkpoints=[member.name])
    return collect(rows.group_by(column).agg(pl.len().alias("count")), member.probe)


def _rows(member: Member, table: str, columns: Sequence[str] = ()) -> pl.LazyFrame:
    lazy = member.probe.read(table, checkpoints=[member.name])
    chosen = lazy.select("checkpoint", "factoid", *columns) if columns else lazy
    return chosen.with_columns(checkpoint=pl.lit(member.label, pl.String))


def _in_parts(rows: pl.LazyFrame, probe: Probe) -> Iterator[pl.DataFrame]:
    """A checkpoint's rows, those of :data:`_AT_ONCE` factoids at a time, in the order of their first rows."""
    if probe.run["factoids"]["n"] <= _AT_ONCE:
        yield collect(rows, probe)
        return
    factoid = pl.col("factoid")
    order = collect(rows.select(factoid.unique(maintain_order=True)), probe)["factoid"]
    for start in range(0, len(order), _AT_ONCE):
        some = order.slice(start, _AT_ONCE).implode()
        yield collect(rows.filter(factoid.is_in(some)), probe)


def common(rows: pl.DataFrame, ids: np.ndarray) -> pl.DataFrame:
    """The rows of some factoids."""
    return rows.filter(pl.col("factoid").is_in(pl.Series(ids, dtype=pl.String).implode()))


def reading_of(member: Member, ids: np.ndarray, *, k: int, token: str, measure: str = GENERATED) -> Reading:
    """Reads a checkpoint's records.

    Args:
        ids: of the common factoids, in their order.
        measure: by which an answer counts as recalled, one of :data:`memprobe.records.MEASURES`.

    Raises:
        MemprobeError: records lack answer tokens or depths.
    """
    lazy = _rows(member, "records", ("token", "token_id", "depth", "rank", "log_prob", "entropy"))
    read, starts, answers = [], [], []
    for records in _in_parts(lazy, member.probe):
        read += trajectories(records, token=token)
        starts.append(
            records.filter(pl.col("token") == 0, pl.col("depth") == member.n_layers).select("factoid", "rank")
        )
        tokens = common(records.filter(pl.col("token") >= 0).select("factoid", "token", "token_id"), ids)
        answers.append(tokens.unique(maintain_order=True))
    if sum(len(part.factoids) for part in read) < len(ids):
        raise MemprobeError(
            f"{member.probe.path}: records of {member.name!r} lack answer tokens; probe it again"
        )
    everyone = Trajectories.joined(read)
    if everyone.n_layers != member.n_layers:
        raise MemprobeError(
            f"{member.probe.path}: records of {member.name!r} end at depth {everyone.n_layers},"
            f" run.json says {member.n_layers}; probe it again"
        )
    trajectory = everyone.select(ids)
    outcomes = rows_of(member, "outcomes", OUTCOMES).unique("factoid")
    joined = (
        pl.DataFrame({"factoid": ids})
        .join(outcomes, on="factoid", how="left", maintain_order="left")
        .join(pl.concat(starts), on="factoid", how="left", maintain_order="left")
    )
    exact = joined[measure].fill_null(False)
    return Reading(
        member=member,
        everyone=everyone,
        trajectory=trajectory,
        outcomes=joined.select(OUTCOMES),
        exact=exact.to_numpy().astype(bool),
        first_rank=joined["rank"].fill_null(-1).to_numpy(),
        answers=pl.concat(answers),
        k=k,
        token=token,
    )


def controls_of(
    member: Member, ids: np.ndarray, *, token: str, lengths: pl.DataFrame
) -> tuple[list[Trajectories], list[Trajectories]]:
    """The draws of a checkpoint's shuffled answers, and the answers of other datasets: none where not probed.

    Args:
        lengths: of the answers themselves, see :func:`memprobe.statistics.holding.by_rule`.
    """
    chosen = _rows(member, "controls", ("control", "token", "depth", "rank"))
    control = pl.col("control")
    kinds: tuple[list[Trajectories], list[Trajectories]] = ([], [])
    for name in collect(chosen.select(control.unique(maintain_order=True)), member.probe)["control"]:
        shuffled = name.startswith("shuffled:")
        rule = token if shuffled else "first"
        parts = [
            drawn
            for part in _in_parts(chosen.filter(control == name), member.probe)
            for drawn in trajectories(common(part, ids), token=rule, lengths=lengths if shuffled else None)
        ]
        if parts:
            kinds[not shuffled].append(Trajectories.joined(parts))
    return kinds
