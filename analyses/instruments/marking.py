"""An instrument's verdict against the truth, fact by fact."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from analyses.instruments.instruments import Verdict

VERDICTS = {
    "instrument": pl.String,
    "set": pl.Int16,
    "fact": pl.Int32,
    "depth": pl.Float32,
    "rank": pl.Float32,
    "among": pl.Float32,
    "part": pl.String,
    "strength": pl.Float32,
}
"""One row per instrument and fact.

    set      the planted set, from 0; -1 where the fact was not planted in a place of its own
    fact     its index in the cell
    depth    what the instrument names; null where it names none
    rank     of the true block by the instrument's scores, 1 is the highest, ties count half; of two true blocks the
             better one's
    among    1 where, of the blocks of all sets, the fact's own has the highest score; shared between ties
    part     attn or mlp, of instruments that tell them apart
    strength the largest score of any block, in the instrument's own unit; null of instruments that give a depth alone,
             where a fact has no scores, and in results from before it was kept
"""


def marked(
    name: str, verdict: Verdict, sets: Sequence[int], truth: Sequence[tuple[int, int]] | None
) -> pl.DataFrame:
    """Rows of :data:`VERDICTS`.

    Args:
        sets: of every fact, its set; -1 for none.
        truth: by set, the first and the last block; ``None`` where nobody knows.
    """
    rank = among = [None] * len(sets)
    if truth is not None:
        rank = [rank_of(verdict.score[row], truth[one]) for row, one in enumerate(sets)]
        among = [among_sets(verdict.score[row], one, truth) for row, one in enumerate(sets)]
    columns = {
        "instrument": [name] * len(sets),
        "set": list(sets),
        "fact": list(range(len(sets))),
        "depth": _known(verdict.depth),
        "rank": rank,
        "among": among,
        "part": list(verdict.part) if verdict.part is not None else [None] * len(sets),
        "strength": _known(verdict.strength) if verdict.strength is not None else [None] * len(sets),
    }
    return pl.DataFrame(columns, schema=VERDICTS)


def _known(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]


def with_all_columns(table: pl.DataFrame) -> pl.DataFrame:
    """A table of verdicts with the columns that an older one lacks, all null, and whatever it has beside them."""
    lacking = [pl.lit(None, kind).alias(name) for name, kind in VERDICTS.items() if name not in table.columns]
    return table.with_columns(lacking).select(*VERDICTS, pl.exclude(*VERDICTS))


def rank_of(score: np.ndarray, blocks: tuple[int, int]) -> float:
    """The rank of the better of some blocks (first and last, from 1) among all, ties counted half."""
    own = score[blocks[0] - 1 : blocks[1]].max()
    return float((score > own).sum() + ((score == own).sum() + 1) / 2)


def among_sets(score: np.ndarray, own: int, truth: Sequence[tuple[int, int]]) -> float:
    """1 where the fact's own place has the highest score of all places; a tie of n is 1 / n."""
    best = np.array([score[first - 1 : last].max() for first, last in truth])
    return float(best[own] == best.max()) / float((best == best.max()).sum())
