"""Marks become scores: shares and means with intervals over seeds, sets and facts, against chance.

An interval resamples models (seeds) first, then the sets of each, then the facts of each set; with one model, sets and
facts alone. Where all facts of a share agree, it is that of shares over models instead. Chance is what the best
constant guess would have scored, and what the same verdicts would score were they dealt to the facts of the model at
random.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from memprobe.statistics.intervals import percentile_interval
from memprobe.statistics.shares import share_over_seeds

CONDITION = ["kind", "source", "planted", "size"]
MEASURES = ("exact", "within1", "error", "rank", "among", "named", "right_part")
SHARES = ("exact", "within1", "named", "right_part")
"""Of these, what is so or not so for every fact (``among`` can be shared by several blocks)."""
DRAWS = 1000


def scores(
    facts: pl.DataFrame, by: Sequence[str] = CONDITION, *, draws: int = DRAWS, seed: int = 0
) -> pl.DataFrame:
    """Scores of every instrument in every condition.

    Args:
        facts: of :func:`analyses.instruments.results.facts_of`; rows that do not count are left out.
        by: columns that make a condition.

    Returns:
        [*by, instrument, models, sets, n], then each of :data:`MEASURES` with ``_low`` and ``_high``, and of exact,
        within1 and error ``_constant`` and ``_shuffled``: chance.
    """
    rows = []
    counted = facts.filter("counts")
    for condition in counted.partition_by(list(by), maintain_order=True):
        one = condition.partition_by("instrument", maintain_order=True)
        weights: dict[tuple[tuple[str, int], ...], np.ndarray] = {}
        for part in one:
            places = tuple(part.select("cell", "set").iter_rows())
            if places not in weights:
                weights[places] = nested_weights(part["cell"].to_list(), part["set"].to_list(), draws, seed)
            rows.append(
                {name: part[name][0] for name in (*by, "instrument")} | _scored(part, weights[places])
            )
    return pl.DataFrame(rows, infer_schema_length=None)


def _scored(part: pl.DataFrame, weights: np.ndarray) -> dict[str, float | int | None]:
    models, sets, first = part["cell"].n_unique(), part.select("cell", "set").n_unique(), drawn_first(part)
    row: dict[str, float | int | None] = {"models": models, "sets": sets, "n": len(part)}
    for name in MEASURES:
        values = part[name].cast(pl.Float64).to_numpy().astype(float)
        found = mean_of(values, weights, first, share=name in SHARES)
        row |= dict(zip((name, f"{name}_low", f"{name}_high"), found, strict=True))
    return row | chance(part)


def drawn_first(facts: pl.DataFrame) -> np.ndarray:
    """[fact], the number of what an interval draws first: model, or set in the only model, or the fact itself."""
    for by in (["cell"], ["cell", "set"]):
        if facts.select(by).n_unique() > 1:
            keys = facts.select(by).rows()
            numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
            return np.array([numbers[key] for key in keys])
    return np.arange(len(facts))


def mean_of(
    values: np.ndarray, weights: np.ndarray, first: np.ndarray, *, share: bool
) -> tuple[float | None, float | None, float | None]:
    """The mean of the values that are there, and its interval; None where there is none.

    Draws from facts that all agree give that value again and take it for certain. A share's interval is then that of
    :func:`memprobe.statistics.shares.share_over_seeds`, over what is drawn first.

    Args:
        values: [fact], NaN where there is none.
        weights: [draw, fact], of :func:`nested_weights`.
        first: [fact], of :func:`drawn_first`.
        share: whether every value is 0 or 1.
    """
    present = ~np.isnan(values)
    if not present.any():
        return None, None, None
    filled = np.where(present, values, 0.0)
    mean = float(filled.sum() / present.sum())
    if share and mean in (0, 1):
        sizes = np.bincount(first, present)
        _, low, high, _ = share_over_seeds((mean * sizes)[sizes > 0], sizes[sizes > 0])
        return mean, low, high
    with np.errstate(invalid="ignore", divide="ignore"):
        drawn = (weights @ filled) / (weights @ present.astype(float))
    return mean, *ends_of(drawn, len(np.unique(first)))


def ends_of(drawn: np.ndarray, n: int) -> tuple[float | None, float | None]:
    """The interval of what was drawn [draw], NaN where a draw gave no number; None where there is none."""
    low, high = (float(end[0]) for end in percentile_interval(drawn[:, None], n))
    return low if np.isfinite(low) else None, high if np.isfinite(high) else None


def nested_weights(models: Sequence[str], sets: Sequence[int], draws: int, seed: int) -> np.ndarray:
    """[draw, fact]: how often a draw of models, then of sets in each, then of facts in each, holds each fact."""
    rng = np.random.default_rng(seed)
    groups: dict[str, dict[int, list[int]]] = {}
    for row, (model, one) in enumerate(zip(models, sets, strict=True)):
        groups.setdefault(model, {}).setdefault(one, []).append(row)
    nested = [[np.array(rows) for rows in of_model.values()] for of_model in groups.values()]
    weights = np.zeros((draws, len(models)), np.float32)
    for draw in weights:
        for model in rng.integers(0, len(nested), len(nested)):
            chosen = nested[model]
            for place in rng.integers(0, len(chosen), len(chosen)):
                rows = chosen[place]
                np.add.at(draw, rows[rng.integers(0, len(rows), len(rows))], 1)
    return weights


def chance(part: pl.DataFrame) -> dict[str, float | None]:
    """What exact, within1 and error come to by chance, for the facts of one instrument in one condition."""
    nothing = dict.fromkeys(
        [f"{name}_{kind}" for name in ("exact", "within1", "error") for kind in ("constant", "shuffled")]
    )
    if part["first"].null_count():
        return nothing
    first, last = part["first"].to_numpy(), part["last"].to_numpy()
    guesses = np.arange(1, int(part["n_layers"].max()) + 1)  # pyrefly: ignore[bad-argument-type]
    away = _error(guesses[None, :].astype(float), first[:, None], last[:, None])
    found = {
        "exact_constant": float((away == 0).mean(0).max()),
        "within1_constant": float((away <= 1).mean(0).max()),
        "error_constant": float(away.mean(0).min()),
    }
    depth = part["depth"].cast(pl.Float64).to_numpy()
    cells = part["cell"].to_numpy()
    sums = {"exact": 0.0, "within1": 0.0, "error": 0.0, "errors": 0.0}
    for cell in np.unique(cells):
        mine = cells == cell
        dealt = _error(depth[mine][:, None], first[mine][None, :], last[mine][None, :])
        named = ~np.isnan(dealt)
        sums["exact"] += (np.where(named, dealt, np.inf) == 0).mean(1).sum()
        sums["within1"] += (np.where(named, dealt, np.inf) <= 1).mean(1).sum()
        sums["error"] += np.nansum(dealt) / mine.sum()
        sums["errors"] += named[:, 0].sum()
    return found | {
        "exact_shuffled": float(sums["exact"] / len(part)),
        "within1_shuffled": float(sums["within1"] / len(part)),
        "error_shuffled": float(sums["error"] / sums["errors"]) if sums["errors"] else None,
    }


def _error(depth: np.ndarray, first: np.ndarray, last: np.ndarray) -> np.ndarray:
    return np.maximum(np.maximum(first - depth, depth - last), 0.0) + 0 * depth


def costs(cells: Sequence[dict], device: str | None = None) -> pl.DataFrame:
    """[instrument, forwards, backwards (a fact), seconds (a model of 64 facts or so)]: medians over cells.

    Args:
        device: cells of this device alone.
    """
    rows = [
        {"instrument": name} | cost
        for cell in cells
        if device is None or cell["device"] == device
        for name, cost in cell["costs"].items()
    ]
    schema = {"instrument": pl.String, "forwards": pl.Float64, "backwards": pl.Float64, "seconds": pl.Float64}
    return (
        pl.DataFrame(rows, schema=schema).group_by("instrument", maintain_order=True).agg(pl.all().median())
    )


def planting(cells: Sequence[dict]) -> pl.DataFrame:
    """How planting went: [kind, source, planted, size, models, invalid, sets, learned, steps, own, others].

    ``own`` and ``others`` are the means over learned sets of what is still said of the set, and of the others, with the
    set's block reset.
    """
    rows = []
    for cell in cells:
        learned = cell["learned"]
        own = [
            value
            for value, known in zip(cell["reset_own"], learned, strict=True)
            if known and value is not None
        ]
        rest = [
            value
            for value, known in zip(cell["reset_others"], learned, strict=True)
            if known and value is not None
        ]
        rows.append(
            {"kind": cell["kind"], "source": cell["source"], "planted": cell["part"], "size": cell["facts"]}
            | {
                "models": 1,
                "invalid": int(cell["valid"] is False),
                "sets": len(learned),
                "learned": sum(learned),
            }
            | {"steps": cell["steps"], "own": _average(own), "others": _average(rest)}
        )
    schema = {"own": pl.Float64, "others": pl.Float64}
    return (
        pl.DataFrame(rows, schema_overrides=schema)
        .group_by(CONDITION, maintain_order=True)
        .agg(
            pl.col("models", "invalid", "sets", "learned").sum(),
            pl.col("steps").median(),
            pl.col("own", "others").mean(),
        )
    )


def _average(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def unlearned(cells: Sequence[dict]) -> pl.DataFrame:
    """The sets that were not learned: [cell, block, said]."""
    rows = [
        {"cell": cell["name"], "block": cell["blocks"][number][0], "said": cell["said"][number]}
        for cell in cells
        if cell["blocks"]
        for number, known in enumerate(cell["learned"])
        if not known
    ]
    return pl.DataFrame(rows, schema={"cell": pl.String, "block": pl.Int64, "said": pl.Float64})


def quartiles(facts: pl.DataFrame) -> pl.DataFrame:
    """Where the named depths lie: [kind, source, planted, size, instrument, models, n, named, q1, median, q3]."""
    return facts.group_by(*CONDITION, "instrument", maintain_order=True).agg(
        models=pl.col("cell").n_unique(),
        n=pl.len(),
        named=pl.col("named").mean(),
        q1=pl.col("depth").quantile(0.25, "linear"),
        median=pl.col("depth").median(),
        q3=pl.col("depth").quantile(0.75, "linear"),
    )
