"""By group: the same statistics for each relation, popularity, answer length and so on."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import polars as pl

from memprobe.errors import MemprobeError, among
from memprobe.statistics.controls import means_of
from memprobe.statistics.intervals import Resamples
from memprobe.statistics.occurrence import ENDS, Occurrence, placement_of
from memprobe.statistics.paired import log_rank

GROUPINGS = ("relation", "source", "popularity", "answer-length", "first-token", "outcome")
GROUPED = ("lof_mean", "lof_restricted_mean", "recall_full", "share_never")
"""Statistics of a group."""


def check_by(by: Iterable[str]) -> list[str]:
    """Groupings as a list.

    Raises:
        MemprobeError: one of them is unknown.
    """
    asked = list(by)
    for name in asked:
        if name not in GROUPINGS:
            raise MemprobeError(f"--by {name}: {among(name, GROUPINGS)}")
    return asked


def group_labels(
    factoids: pl.DataFrame, tokens: pl.DataFrame, paths: np.ndarray | None, *, by: str
) -> list[str]:
    """The group of each factoid.

    ``popularity`` is its quarter among those that have one (ties together, upwards); ``answer-length`` is in
    tokens; ``first-token`` is how many of these factoids begin their answer with the same token;
    ``outcome`` is the path from the reference to the checkpoint, e.g. 1→0.

    Args:
        factoids: the rows of ``factoids.parquet``, in order.
        tokens: [factoid, length, first]: the answer's tokens as the checkpoint's tokenizer makes them.
        paths: [factoid], for ``outcome``.

    Raises:
        MemprobeError: an unknown grouping, or one that this probe has no data for.
    """
    check_by([by])
    if by == "outcome":
        if paths is None:
            raise MemprobeError("--by outcome: there is no other checkpoint to take outcomes from")
        return [str(path) for path in paths]
    if by in ("relation", "source"):
        return [value if value is not None else "none" for value in factoids[by]]
    if by == "popularity":
        popularity = factoids["popularity"].cast(pl.Float64).fill_null(np.nan).to_numpy()
        known = popularity[~np.isnan(popularity)]
        if not len(known):
            raise MemprobeError("--by popularity: these factoids have none")
        quarter = np.searchsorted(np.quantile(known, [0.25, 0.5, 0.75]), popularity, side="left")
        return [
            "unknown" if np.isnan(p) else f"quarter {q + 1}" for p, q in zip(popularity, quarter, strict=True)
        ]
    joined = factoids.select(pl.col("id").alias("factoid")).join(
        tokens, on="factoid", how="left", maintain_order="left"
    )
    if by == "answer-length":
        return [f"{n} token{'s' * (n > 1)}" for n in joined["length"]]
    alike = joined.select(pl.len().over("first"))["len"]
    return ["unique" if n == 1 else "shared by 2–9" if n < 10 else "shared by 10+" for n in alike]


def by_group(
    found: Occurrence, labels: list[str], draws: Callable[[np.ndarray], Resamples], *, seed: int = 0
) -> pl.DataFrame:
    """Placement by group, the log-rank test over the groups beside it.

    Groups hold different factoids, so nothing is paired here.

    Args:
        draws: of some of the factoids, bool [factoid].
        seed: of the test's permutations.

    Returns:
        [group, n, lof_n, lof_answers, lof_mean, lof_restricted_mean, recall_full, share_never with …_low and …_high,
        log_rank_p]
    """
    groups = [(name, np.array(labels) == name) for name in sorted(set(labels))]
    parts = [found.select(member) for _, member in groups]
    p = log_rank(parts, seed=seed)[1] if len(parts) > 1 else np.nan
    rows = []
    for (name, member), part in zip(groups, parts, strict=True):
        resamples = draws(member)
        row = placement_of(part, resamples) | means_of({"recall_full": part.held[:, -1]}, resamples)
        shown = {f"{key}{end}": row[f"{key}{end}"] for key in GROUPED for end in ENDS}
        counts = {"n": len(part.factoids), "lof_n": row["lof_n"], "lof_answers": row["lof_answers"]}
        rows.append({"group": name} | counts | shown | {"log_rank_p": p})
    numbers = [f"{key}{end}" for key in GROUPED for end in ENDS]
    schema = {"group": pl.String} | dict.fromkeys(("n", "lof_n", "lof_answers"), pl.Int64)
    schema |= dict.fromkeys([*numbers, "log_rank_p"], pl.Float64)
    return pl.DataFrame(rows, schema=schema).with_columns(pl.col("log_rank_p").fill_nan(None))
