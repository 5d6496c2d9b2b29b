"""The numbers in short: the ``checkpoints`` part of ``summary.json``."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from memprobe.probes import Probe
from memprobe.statistics.curves import area, normalised_frequency, recall_by_depth, shuffled_recall
from memprobe.statistics.holding import K_VALUES, trajectories
from memprobe.statistics.intervals import Resamples, wilson
from memprobe.statistics.occurrence import DRAWS, Occurrence, placement_of, restricted

_PARTS = {
    "lof": ("mean", "sd", "restricted_mean", "median"),
    "settled": ("mean", "sd", "restricted_mean", "median"),
}


def summarise(
    probe: Probe, *, k: int = 10, token: str = "first", draws: int = DRAWS, seed: int = 0
) -> dict[str, Any]:
    """A probe's headline numbers by checkpoint; keys are only ever added.

    ``{LABEL: {n, errors, exact_match, exact_tokens, recall: {k: [by depth 0 … n_layers]}, recall_all: {…},
    shuffled: {…}, area, normalised_frequency: [by depth 1 …], lof: {mean, sd, never, …}, shuffled_lof: {…},
    settled: {…}, diversity: {depths_per_factoid, effective_layers}}}``. NAME_low and NAME_high stand beside a
    NAME with an interval. ``k`` and ``token`` are those of everything but ``recall`` (every k in
    :data:`~memprobe.statistics.K_VALUES`) and ``recall_all`` (the rule ``all``). A number that does not exist
    is ``None``; a depth that no factoid has is ``None`` in its list. ``n`` counts factoids with records,
    ``errors`` those without; ``exact_match`` is over those that have it.

    Raises:
        MemprobeError: ``k`` below 1 or an unknown token rule.
    """
    ks = sorted({*K_VALUES, k})
    labels = [label for label in probe.checkpoints if label in set(probe.records["checkpoint"].unique())]
    recall = {one: _by_checkpoint(recall_by_depth(probe.records, k=one, token=token)) for one in ks}
    recall_all = {one: _by_checkpoint(recall_by_depth(probe.records, k=one, token="all")) for one in ks}
    chance = {one: _by_checkpoint(shuffled_recall(probe.controls, k=one, token=token)) for one in ks}
    chance_all = {one: _by_checkpoint(shuffled_recall(probe.controls, k=one, token="all")) for one in ks}
    frequency = _by_checkpoint(normalised_frequency(probe.records, k=k, token=token))
    shuffled = probe.controls.lazy().filter(pl.col("control").str.starts_with("shuffled:"))
    drawn: dict[str, list[Occurrence]] = {}
    for trajectory in trajectories(shuffled, token=token):
        drawn.setdefault(trajectory.checkpoint, []).append(Occurrence.of(trajectory, k))
    found = {t.checkpoint: Occurrence.of(t, k) for t in trajectories(probe.records, token=token)}
    summary: dict[str, Any] = {}
    resamples = None
    for label in labels:
        size = probe.n_layers[label] + 1
        n = len(found[label].factoids)
        if resamples is None or resamples.n != n:
            resamples = Resamples.of(n, draws=draws, seed=seed)
        row = placement_of(found[label], resamples)
        curve = _listed(recall[k][label], "recall", size)
        entry: dict[str, Any] = {"n": n, **_outcomes(probe.outcomes.filter(pl.col("checkpoint") == label))}
        for part in ("recall", "low", "high"):
            name = "recall" if part == "recall" else f"recall_{part}"
            entry[name] = {str(one): _listed(recall[one][label], part, size) for one in ks}
        entry["recall_all"] = {str(one): _listed(recall_all[one][label], "recall", size) for one in ks}
        for name, table in (("shuffled", chance), ("shuffled_all", chance_all)):
            entry[name] = {str(one): _listed(table[one].get(label), "recall", size) for one in ks}
        entry["area"] = None if None in curve else float(area(np.array(curve, float)))
        entry["normalised_frequency"] = _listed(frequency[label], "frequency", size)[1:]
        for name, parts in _PARTS.items():
            entry[name] = {f"{part}{end}": row[f"{name}_{part}{end}"] for part in parts for end in _ENDS}
            entry[name]["n"] = row[f"{name}_n"]
        for end in _ENDS:
            entry["lof"][f"never{end}"] = row[f"share_never{end}"]
            entry["lof"][f"only_full{end}"] = row[f"share_only_full{end}"]
            entry["settled"][f"never{end}"] = row[f"settled_share_never{end}"]
        entry["shuffled_lof"] = _mean_over_draws(drawn.get(label, []), "lof")
        entry["shuffled_settled"] = _mean_over_draws(drawn.get(label, []), "settled")
        names = ("depths_per_factoid", "effective_layers")
        entry["diversity"] = {f"{name}{end}": row[f"{name}{end}"] for name in names for end in _ENDS}
        summary[label] = entry
    return summary


_ENDS = ("", "_low", "_high")


def _by_checkpoint(table: pl.DataFrame) -> dict[str, pl.DataFrame]:
    return {part["checkpoint"][0]: part for part in table.partition_by("checkpoint", maintain_order=True)}


def _listed(table: pl.DataFrame | None, column: str, size: int) -> list[float | None]:
    """A column by depth, ``None`` where a depth is absent."""
    values: list[float | None] = [None] * size
    if table is not None:
        for depth, value in table.select("depth", column).iter_rows():
            values[depth] = value
    return values


def _outcomes(outcomes: pl.DataFrame) -> dict[str, Any]:
    row: dict[str, Any] = {"errors": int(outcomes["error"].is_not_null().sum())}
    for name in ("exact_match", "exact_tokens"):
        known = outcomes.filter(pl.col("error").is_null())[name].drop_nulls()
        share = known.mean() if len(known) else None
        row[name] = share
        low, high = wilson(np.array(np.nan if share is None else share), np.array(len(known)))
        row[f"{name}_low"], row[f"{name}_high"] = (
            None if share is None else float(edge) for edge in (low, high)
        )
    return row


def _mean_over_draws(draws: list[Occurrence], name: str) -> dict[str, float | None]:
    """Each statistic of the shuffled answers, meaned over the draws in which it exists."""
    parts = []
    for found in draws:
        depth = getattr(found, name)
        occurs = depth[~np.isnan(depth)]
        parts.append(
            {
                "mean": occurs.mean() if len(occurs) else np.nan,
                "sd": occurs.std(ddof=1) if len(occurs) > 1 else np.nan,
                "never": np.isnan(depth).mean(),
                "restricted_mean": restricted(depth, found.n_layers).mean(),
            }
        )
    means: dict[str, float | None] = {}
    for statistic in ("mean", "sd", "never", "restricted_mean"):
        values = [part[statistic] for part in parts if not np.isnan(part[statistic])]
        means[statistic] = float(np.mean(values)) if values else None
    return means
