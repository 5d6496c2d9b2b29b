"""When does a depth hold an answer? The token rules, and the tables that follow from them alone.

Every other statistic starts from :func:`by_rule` (one rank per factoid and depth) or :func:`held`.
Functions take a frame in the schema of records or of controls; with controls, results carry ``control``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import polars as pl

from memprobe.errors import MemprobeError, among
from memprobe.statistics.asking import Ranks, asked

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

K_VALUES = (1, 5, 10, 20, 50, 100)
TokenRule = Literal["first", "last", "all"]
"""Which answer tokens must be in the top k for a factoid to be held at a depth."""
TOKEN_RULES: tuple[TokenRule, ...] = ("first", "last", "all")


def check_rule(token: str) -> None:
    """Refuses a token rule that does not exist.

    Raises:
        MemprobeError: so.
    """
    if token not in TOKEN_RULES:
        raise MemprobeError(f"`token` {token!r}: {among(token, TOKEN_RULES)}")


def check_k(k: int) -> None:
    """Refuses a top-k that nothing can be in.

    Raises:
        MemprobeError: so.
    """
    if k < 1:
        raise MemprobeError(f"top-k is {k}: give 1 or more")


def answer_lengths(records: pl.DataFrame | pl.LazyFrame) -> pl.DataFrame:
    """How many tokens each factoid's answer has: [(checkpoint,) factoid, length]."""
    answers = records.lazy().filter(pl.col("token") >= 0)
    keys = unit_keys(answers.collect_schema().names())
    return answers.group_by(keys).agg(length=pl.col("token").max() + 1).collect()


def by_rule(
    frame: pl.DataFrame | pl.LazyFrame, *, token: str, lengths: pl.DataFrame | None = None
) -> pl.DataFrame:
    """One row per factoid and depth: the answer under a token rule.

    ``rank`` is that of the first or the last answer token; under ``all`` it is the worst rank of any answer
    token, so that ``rank < k`` says that all of them are in the top k. ``log_prob`` under ``all`` is the sum
    (the answer as a whole, each token given the true ones before it), ``entropy`` the mean. The end token
    (-1) belongs to no rule. A depth without a row for a token that the rule needs is left out.

    Args:
        lengths: of :func:`answer_lengths`, for controls: a shuffled answer shorter than the factoid's own has no rows
            for the tokens beyond its end, and would be asked fewer of them than the answer is. Such a draw is left out
            where the rule needs those tokens. Without them every draw is taken for as long as its answer.

    Returns:
        [checkpoint, (control,) factoid, depth, rank, (log_prob, entropy)]; the order of checkpoints, controls
        and factoids is that of their first rows, depths ascend.

    Raises:
        MemprobeError: unknown rule; a frame of several lenses or positions.
    """
    check_rule(token)
    lazy = frame.lazy()
    columns = lazy.collect_schema().names()
    _one_view(lazy, columns)
    keys = unit_keys(columns)
    measures = [name for name in ("rank", "log_prob", "entropy") if name in columns]
    answers = lazy.filter(pl.col("token") >= 0).select(*keys, "depth", "token", *measures)
    if lengths is not None and token != "first":
        joined = answers.join(lengths.lazy(), on=unit_keys(lengths.columns), maintain_order="left")
        answers = joined.filter(pl.col("token").max().over(keys) == pl.col("length") - 1)
    if token == "first":
        chosen = answers.filter(pl.col("token") == 0)
    elif token == "last":
        chosen = answers.filter(pl.col("token") == pl.col("token").max().over(keys))
    else:
        combined = {"rank": pl.col("rank").max(), "log_prob": pl.col("log_prob").sum()}
        combined["entropy"] = pl.col("entropy").mean()
        chosen = (
            answers.group_by(*keys, "depth", maintain_order=True)
            .agg(*(combined[name] for name in measures), pl.len().alias("tokens"))
            .filter(pl.col("tokens") == pl.col("tokens").max().over(keys))
        )
    return in_order(chosen.select(*keys, "depth", *measures).collect(), keys)


def unit_keys(columns: list[str]) -> list[str]:
    """What tells one trajectory over depth from another, through one lens at one position."""
    return [name for name in ("checkpoint", "control", "factoid") if name in columns]


def _one_view(lazy: pl.LazyFrame, columns: list[str]) -> None:
    """Refuses ranks of several lenses or positions in one frame, which no rule may mix."""
    named = [name for name in ("lens", "position") if name in columns]
    if not named:
        return
    for name, values in lazy.select(pl.col(named).unique().implode()).collect().to_dict().items():
        views = values[0].to_list() if len(values) else []
        if len(views) > 1:
            raise MemprobeError(
                f"ranks of several {name}{'es' if name == 'lens' else 's'} ({', '.join(sorted(views))}) in one table:"
                " choose one (Probe.under, Probe.read)"
            )


def in_order(frame: pl.DataFrame, keys: list[str]) -> pl.DataFrame:
    """Rows by each key's order of first appearance, then by depth where there is one."""
    first = [pl.col("_row").min().over(key).alias(f"_{key}") for key in keys]
    by = [f"_{key}" for key in keys] + (["depth"] if "depth" in frame.columns else [])
    return frame.with_row_index("_row").with_columns(first).sort(by).select(frame.columns)


def held(frame: Ranks, *, k: int | None = None, token: str | None = None) -> pl.DataFrame:
    """Which depths hold which answers: rank < k under the token rule.

    Args:
        frame: records or controls, or a probe.
        k, token: the top k and the token rule; of a probe, by default those that it was made with.

    Returns:
        [checkpoint, (control,) factoid, depth, held]

    Raises:
        MemprobeError: ``k`` is below 1, or the rule is unknown.
    """
    frame, k, token = asked(frame, k, token)
    check_k(k)
    ruled = by_rule(frame, token=token)
    return ruled.select(*unit_keys(ruled.columns), "depth", (pl.col("rank") < k).alias("held"))


@dataclass(frozen=True, eq=False)
class Trajectories:
    """One checkpoint (or one of its controls) as arrays over [factoid, depth 0 … n_layers].

    Attributes:
        checkpoint: label.
        control: ``None`` for the answers themselves.
        factoids: ids, [factoid].
        rank: int32 [factoid, depth], under the token rule; -1 where the depth is missing.
        log_prob: float32 [factoid, depth], nats; NaN where missing. Empty [0, 0] for controls.
        entropy: likewise.
    """

    checkpoint: str
    control: str | None
    factoids: np.ndarray
    rank: np.ndarray
    log_prob: np.ndarray
    entropy: np.ndarray

    @property
    def n_layers(self) -> int:
        """The deepest depth, which is the model's own readout."""
        return self.rank.shape[1] - 1

    @classmethod
    def joined(cls, parts: Sequence[Trajectories]) -> Trajectories:
        """Those of one checkpoint (and control) whose factoids were read in parts; the deepest depth of any is its own.

        Args:
            parts: at least one.
        """
        first = parts[0]
        if len(parts) == 1:
            return first
        deepest = max(part.n_layers for part in parts)

        def whole(arrays: list[np.ndarray], missing: float) -> np.ndarray:
            if not arrays[0].size:
                return arrays[0]
            sides = [((0, 0), (0, deepest + 1 - array.shape[1])) for array in arrays]
            padded = [
                np.pad(array, side, constant_values=missing)
                for array, side in zip(arrays, sides, strict=True)
            ]
            return np.concatenate(padded)

        return cls(
            first.checkpoint,
            first.control,
            np.concatenate([part.factoids for part in parts]),
            whole([part.rank for part in parts], -1),
            whole([part.log_prob for part in parts], np.nan),
            whole([part.entropy for part in parts], np.nan),
        )

    def held(self, k: int) -> np.ndarray:
        """bool [factoid, depth]; a missing depth does not hold the answer.

        Raises:
            MemprobeError: ``k`` is below 1.
        """
        check_k(k)
        return (self.rank >= 0) & (self.rank < k)

    def select(self, factoids: np.ndarray) -> Trajectories:
        """The rows of these ids, in their order.

        Raises:
            KeyError: one of them is not here.
        """
        position = {factoid: row for row, factoid in enumerate(self.factoids)}
        rows = np.array([position[factoid] for factoid in factoids], dtype=np.int64)
        parts = [part[rows] if part.size else part for part in (self.rank, self.log_prob, self.entropy)]
        return Trajectories(self.checkpoint, self.control, np.asarray(factoids), *parts)


def trajectories(
    frame: pl.DataFrame | pl.LazyFrame, *, token: str, lengths: pl.DataFrame | None = None
) -> Iterator[Trajectories]:
    """The records or controls as arrays, one checkpoint (and control) after another.

    The deepest depth is the checkpoint's own, so that a factoid without a row there has it missing. ``lengths`` is that
    of :func:`by_rule`.
    """
    ruled = by_rule(frame, token=token, lengths=lengths)
    groups = ["checkpoint", "control"] if "control" in ruled.columns else ["checkpoint"]
    depths = dict(ruled.group_by("checkpoint").agg(pl.col("depth").max()).iter_rows())
    for part in ruled.partition_by(groups, maintain_order=True):
        checkpoint = part["checkpoint"][0]
        ids = part["factoid"].unique(maintain_order=True)
        rows = part["factoid"].replace_strict(ids, np.arange(len(ids)), return_dtype=pl.Int64).to_numpy()
        cells = rows, part["depth"].to_numpy().astype(np.int64)
        shape = len(ids), depths[checkpoint] + 1

        yield Trajectories(
            checkpoint=checkpoint,
            control=part["control"][0] if "control" in part.columns else None,
            factoids=ids.to_numpy(),
            rank=_dense(part, "rank", np.int32(-1), cells, shape),
            log_prob=_dense(part, "log_prob", np.float32(np.nan), cells, shape),
            entropy=_dense(part, "entropy", np.float32(np.nan), cells, shape),
        )


def _dense(
    part: pl.DataFrame,
    name: str,
    missing: np.int32 | np.float32,
    cells: tuple[np.ndarray, np.ndarray],
    shape: tuple[int, int],
) -> np.ndarray:
    """A column as an array over [factoid, depth], with ``missing`` where there is no row."""
    if name not in part.columns:
        return np.empty((0, 0), missing.dtype)
    array = np.full(shape, missing)
    array[cells] = part[name].to_numpy()
    return array
