"""Whether two instruments name the same depth of the same fact: where the truth is known, and where nobody knows it.

Depths are ranked within each model, so that what tells one model from another counts as no agreement. Pairs are those
of instruments that were asked of models with ordinary fine-tuning (kind ``full``), for there is the question.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import polars as pl
from scipy.stats import rankdata

from analyses.instruments.scores import CONDITION, DRAWS, drawn_first, ends_of, mean_of, nested_weights

RIGHT = 0.75
"""Share of planted facts whose block an instrument names exactly, from which it is one that ought to agree."""
FEWEST = 20
"""Facts for which both name a depth, below which nothing is said of a pair."""
_READING = r" (half|jump|tau|parts|k=\d+)$"


def agreement(facts: pl.DataFrame, *, draws: int = DRAWS, seed: int = 0) -> pl.DataFrame:
    """How far the depths that two instruments name go together, fact by fact.

    Args:
        facts: of :func:`analyses.instruments.results.facts_of`; those are left out that do not count, that nobody
            planted, or that were planted into a part of a block.

    Returns:
        [kind, source, planted, size, one, other, models, n (facts for which both name a depth), correlation
        (Spearman's, within models; null where an instrument names one depth throughout every model), within1 (share of
        facts with depths at most one apart), within1_shuffled (the same were one's depths dealt to the facts of the
        model at random)], correlation and within1 with ``_low`` and ``_high`` over models, their sets and the facts of
        those
    """
    counted = facts.filter("counts", pl.col("kind") != "null", pl.col("planted") == "all")
    asked = counted.filter(kind="full")["instrument"].unique(maintain_order=True).to_list()
    rows = []
    for condition in counted.filter(pl.col("instrument").is_in(asked)).partition_by(
        CONDITION, maintain_order=True
    ):
        table = condition.pivot("instrument", index=["cell", "set", "fact"], values="depth")
        weights = nested_weights(table["cell"].to_list(), table["set"].to_list(), draws, seed)
        shared = {name: condition[name][0] for name in CONDITION}
        for one, other in combinations([name for name in asked if name in table.columns], 2):
            both = table[one].is_not_null() & table[other].is_not_null()
            if both.sum() >= FEWEST:
                pair = table.filter(both).select("cell", "set", one=one, other=other)
                rows.append(
                    shared | {"one": one, "other": other} | _of_pair(pair, weights[:, both.to_numpy()])
                )
    return pl.DataFrame(rows, infer_schema_length=None)


def _of_pair(pair: pl.DataFrame, weights: np.ndarray) -> dict[str, float | int | None]:
    """Agreement of two instruments. pair: cell, set, and the depths one and other. weights: [draw, fact]."""
    depths, cells = pair.select("one", "other").to_numpy().astype(float), pair["cell"].to_numpy()
    models, first = [cells == cell for cell in np.unique(cells)], drawn_first(pair)
    ranks = np.zeros_like(depths)
    for mine in models:
        ranks[mine] = rankdata(depths[mine], axis=0)
    near = (np.abs(depths[:, 0] - depths[:, 1]) <= 1).astype(float)
    dealt = sum((np.abs(depths[mine, :1] - depths[mine, 1:].T) <= 1).mean(1).sum() for mine in models)
    [whole] = correlation(ranks, models, np.ones((1, len(depths))))
    estimates = {
        "correlation": (
            float(whole) if np.isfinite(whole) else None,
            *ends_of(correlation(ranks, models, weights), len(np.unique(first))),
        ),
        "within1": mean_of(near, weights, first, share=True),
    }
    return {
        "models": len(models),
        "n": len(depths),
        **{
            f"{name}{end}": value
            for name, triple in estimates.items()
            for end, value in zip(("", "_low", "_high"), triple, strict=True)
        },
        "within1_shuffled": float(dealt / len(depths)),
    }


def correlation(ranks: np.ndarray, models: list[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """Pearson's correlation of ranks about the mean of each model, for each draw; NaN where a side does not vary.

    Args:
        ranks: [fact, 2], given within models.
        models: of each, which facts are its own, bool [fact].
        weights: [draw, fact], how often a draw holds each fact.
    """
    together, squares = np.zeros(len(weights)), np.zeros((2, len(weights)))
    for mine in models:
        held, one, other = weights[:, mine], ranks[mine, 0], ranks[mine, 1]
        size = np.maximum(held.sum(1), 1)
        means = held @ one / size, held @ other / size
        together += held @ (one * other) - size * means[0] * means[1]
        squares += [
            held @ (one * one) - size * means[0] ** 2,
            held @ (other * other) - size * means[1] ** 2,
        ]
    squares[squares < 1e-6] = np.nan  # rounding leaves a little where nothing varies
    return together / np.sqrt(squares[0] * squares[1])


def ought_to_agree(pairs: pl.DataFrame, found: pl.DataFrame) -> pl.DataFrame:
    """Pairs of instruments that are both right about planted truth, there and after ordinary fine-tuning.

    Of several depths read off the same evidence (half, jump, k = 10 …) only the one that is right most often is taken.

    Args:
        pairs: of :func:`agreement`.
        found: rows of :func:`analyses.instruments.scores.scores` of one kind of model with known truth.

    Returns:
        of pairs in ``full``, and with the suffix ``_planted`` where the truth is known; those that agree most are first
    """
    if pairs.is_empty() or found.is_empty():
        return pairs.clear()
    scored = found.group_by("instrument", maintain_order=True).agg(pl.col("exact").min(), pl.len())
    right = scored.filter(pl.col("exact") >= RIGHT, len=found["source"].n_unique()).sort(
        "exact", descending=True, maintain_order=True
    )
    evidence = pl.col("instrument").str.replace(_READING, "")
    right = right.unique(evidence, keep="first", maintain_order=True)["instrument"].implode()
    both = pairs.filter(pl.col("one").is_in(right), pl.col("other").is_in(right))
    keys = ["source", "one", "other"]
    planted = both.filter(kind=found["kind"][0], size=found["size"][0])
    return (
        both.filter(kind="full")
        .join(planted, on=keys, how="left", suffix="_planted", maintain_order="left")
        .sort("source", "correlation", descending=[False, True], nulls_last=True, maintain_order=True)
    )
