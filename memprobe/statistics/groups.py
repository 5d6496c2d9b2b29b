"""By group: the same statistics for each relation, popularity, answer length and so on."""

from __future__ import annotations

import numpy as np
import polars as pl

from memprobe.errors import MemprobeError, among
from memprobe.statistics.intervals import Resamples, bootstrap_mean, wilson
from memprobe.statistics.occurrence import Occurrence, restricted
from memprobe.statistics.paired import log_rank

GROUPINGS = ("relation", "source", "popularity", "answer-length", "first-token", "outcome")


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
    if by not in GROUPINGS:
        raise MemprobeError(f"--by {by}: {among(by, GROUPINGS)}")
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


def by_group(found: Occurrence, labels: list[str], resamples: Resamples) -> pl.DataFrame:
    """Placement by group, the log-rank test over the groups beside it.

    Groups hold different factoids, so nothing is paired here. Wilson for shares; else draws are over all
    factoids, each group taking its own.

    Returns:
        [group, n, lof_mean, lof_restricted_mean, recall_full, share_never with …_low and …_high, log_rank_p]
    """
    names = list(dict.fromkeys(sorted(labels)))
    member = np.array(labels)[:, None] == np.array(names)
    n = member.sum(0)
    table: dict[str, object] = {"group": names, "n": n}

    def put(name: str, edges: tuple[np.ndarray, ...]) -> None:
        table.update({f"{name}{end}": edge for end, edge in zip(("", "_low", "_high"), edges, strict=True)})

    for name, depth in (
        ("lof_mean", found.lof),
        ("lof_restricted_mean", restricted(found.lof, found.n_layers)),
    ):
        put(name, bootstrap_mean(np.where(member, depth[:, None], np.nan), resamples))
    for name, holds in (("recall_full", found.held[:, -1]), ("share_never", np.isnan(found.lof))):
        share = (member & holds[:, None]).sum(0) / n
        put(name, (share, *wilson(share, n)))
    p = log_rank([found.select(column) for column in member.T])[1] if len(names) > 1 else np.nan
    return pl.DataFrame(table | {"log_rank_p": np.full(len(names), p)}, nan_to_null=True)
