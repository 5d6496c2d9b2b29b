"""Whether the strength with which a depth is named tells planted facts from others asked of the same planted model.

A model of kind ``null`` was planted as one of kind ``several`` or ``single`` with the same sets, places and seed; this
one was asked about the facts that were planted, the other about facts that nobody planted.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from analyses.instruments.scores import DRAWS, drawn_first, ends_of, nested_weights

KEPT = 0.95
"""Share of the planted facts whose strength reaches the threshold at which alarms are counted."""
_KEY = ["source", "planted", "size"]


def told_apart(facts: pl.DataFrame, *, draws: int = DRAWS, seed: int = 0) -> pl.DataFrame:
    """By instrument, how well strength tells planted facts from others.

    Args:
        facts: of :func:`analyses.instruments.results.facts_of`; rows that do not count are left out, and so are
            instruments that give a depth alone.

    Returns:
        [source, planted, size, kind, instrument, models, n (planted facts), others (facts that nobody planted),
        auc (the chance that a planted fact has the larger strength of a pair from one model, ties counted half, a mean
        over models: the area under the ROC curve; 0.5 is chance), auc_low, auc_high (over models, their sets and the
        facts of those), alarms (share of the others that reach the strength which :data:`KEPT` of the planted facts of
        their model reach, a mean over models)]. A fact without scores counts as weaker than any other.
    """
    counted = facts.filter("counts")
    null, planted = counted.filter(kind="null"), counted.filter(pl.col("kind").is_in(["several", "single"]))
    rows = []
    for condition in planted.partition_by([*_KEY, "kind", "instrument"], maintain_order=True):
        shared = {name: condition[name][0] for name in (*_KEY, "kind", "instrument")}
        others = null.filter(**{name: shared[name] for name in (*_KEY, "instrument")})
        models = [
            (mine, of_seed)
            for mine in condition.partition_by("cell", maintain_order=True)
            if len(of_seed := others.filter(seed=mine["seed"][0], places=mine["places"][0]))
            and mine["strength"].count()
            and of_seed["strength"].count()
        ]
        if models:
            rows.append(shared | _of_models(models, draws, seed))
    return pl.DataFrame(rows, infer_schema_length=None)


def _of_models(
    models: list[tuple[pl.DataFrame, pl.DataFrame]], draws: int, seed: int
) -> dict[str, float | int | None]:
    rng = np.random.default_rng(seed)
    areas, alarms, drawn = [], [], np.zeros((len(models), draws))
    for number, (planted, others) in enumerate(models):
        ours, theirs = (one["strength"].fill_null(-np.inf).to_numpy() for one in (planted, others))
        above = (ours[:, None] > theirs) + 0.5 * (ours[:, None] == theirs)
        areas.append(above.mean())
        threshold = np.quantile(ours, 1 - KEPT, method="lower")
        alarms.append((theirs >= threshold).mean())
        here = [
            nested_weights(one["cell"].to_list(), one["set"].to_list(), draws, seed + 2 * number + side)
            for side, one in enumerate((planted, others))
        ]
        weights = [one / one.sum(1, keepdims=True) for one in here]
        drawn[number] = np.einsum("di,ij,dj->d", weights[0], above, weights[1])
    # A draw of models; of each drawn one some draw of its facts.
    chosen = rng.integers(0, len(models), (draws, len(models)))
    first = len(np.unique(drawn_first(pl.concat([planted for planted, _ in models]))))
    low, high = ends_of(drawn[chosen, rng.integers(0, draws, chosen.shape)].mean(1), first)
    return {
        "models": len(models),
        "n": sum(len(planted) for planted, _ in models),
        "others": sum(len(others) for _, others in models),
        "auc": float(np.mean(areas)),
        "auc_low": low,
        "auc_high": high,
        "alarms": float(np.mean(alarms)),
    }
