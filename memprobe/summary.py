"""The numbers in short: the ``checkpoints`` part of ``summary.json``."""

from __future__ import annotations

from typing import Any

import polars as pl

from memprobe.compare.by_checkpoint import net_of_chance
from memprobe.probes import Probe
from memprobe.readings import Readings
from memprobe.statistics.curves import frequency_of, recall_of, shuffled_recall_of
from memprobe.statistics.holding import K_VALUES, check_k, check_rule
from memprobe.statistics.occurrence import DRAWS, ENDS
from memprobe.statistics.overview import chance_of, outcome_shares

_PARTS = {
    "lof": ("mean", "sd", "restricted_mean", "median"),
    "settled": ("mean", "sd", "restricted_mean", "median"),
}
_NEVER = {"lof": "share_never", "settled": "settled_share_never"}
_DIVERSITY = ("depths_per_factoid", "effective_layers")


def summarise(
    probe: Probe, *, k: int = 10, token: str = "first", draws: int = DRAWS, seed: int = 0
) -> dict[str, Any]:
    """A probe's headline numbers by checkpoint, each over all of its own factoids; keys are only ever added.

    Args:
        k, token, draws, seed: as of :meth:`memprobe.readings.Readings.of`.

    Returns:
        By label, :func:`summary_of`; checkpoints without records are left out.

    Raises:
        MemprobeError: ``k`` below 1 or an unknown token rule.
    """
    check_k(k)
    check_rule(token)
    begun = set(probe.read("records").select(pl.col("checkpoint").unique()).collect()["checkpoint"])
    return {
        label: summary_of(Readings.of([probe.only([label])], k=k, token=token, draws=draws, seed=seed))
        for label in probe.checkpoints
        if label in begun
    }


def summary_of(readings: Readings) -> dict[str, Any]:
    """The numbers in short of the reference.

    ``{n, errors, exact_match, exact_tokens, recall: {k: [by depth 0 … n_layers]}, recall_all: {…}, shuffled: {…},
    area, normalised_frequency: [by depth 1 …], lof: {mean, sd, never, net, …}, shuffled_lof: {…}, settled: {…},
    diversity: {depths_per_factoid, effective_layers}}``. NAME_low and NAME_high stand beside a NAME with an interval.
    ``n`` of ``lof`` and ``settled`` counts the factoids that have one, ``answers`` their distinct answers.
    ``net`` is the restricted mean minus that of shuffled answers, of the factoids that have any: the mean of paired
    differences, which the difference of two means over other factoids is not.
    ``recall`` and ``shuffled`` hold every k in :data:`~memprobe.statistics.K_VALUES`, ``…_all`` the same under the rule
    ``all``. A number that does not exist is ``None``; a depth that no factoid has is ``None`` in its list. ``n``
    counts factoids with records, ``errors`` those without; ``exact_match`` is over those that have it.
    """
    label = readings.reference.label
    size = readings.reference.n_layers + 1
    ks = sorted({*K_VALUES, readings.k})
    reading, placed = readings[label], readings.placed(label)
    outcomes = readings.rows(label, "outcomes")
    entry: dict[str, Any] = {
        "n": len(readings.factoids),
        "errors": outcomes["error"].count(),
    }
    for name, share in outcome_shares(outcomes).items():
        for end, key in zip(ENDS, ("value", "low", "high"), strict=True):
            entry[f"{name}{end}"] = share and share[key]
    every = readings.under(token="all")
    recall = {one: recall_of([reading.trajectory], k=one) for one in ks}
    recall_all = {one: recall_of([every[label].trajectory], k=one) for one in ks}
    for part in ("recall", "low", "high"):
        name = "recall" if part == "recall" else f"recall_{part}"
        entry[name] = {str(one): _listed(recall[one], part, size) for one in ks}
    entry["recall_all"] = {str(one): _listed(recall_all[one], "recall", size) for one in ks}
    for name, ruled in (("shuffled", readings), ("shuffled_all", every)):
        drawn = {one: shuffled_recall_of(ruled.shuffled(label), k=one) for one in ks}
        entry[name] = {str(one): _listed(drawn[one], "recall", size) for one in ks}
    entry["area"] = placed["area"]
    frequency = frequency_of([reading.trajectory], k=readings.k)
    entry["normalised_frequency"] = _listed(frequency, "frequency", size)[1:]
    for name, parts in _PARTS.items():
        entry[name] = {f"{part}{end}": placed[f"{name}_{part}{end}"] for part in parts for end in ENDS}
        entry[name] |= {f"never{end}": placed[f"{_NEVER[name]}{end}"] for end in ENDS}
        entry[name] |= {"n": placed[f"{name}_n"], "answers": placed[f"{name}_answers"]}
    for end in ENDS:
        entry["lof"][f"only_full{end}"] = placed[f"share_only_full{end}"]
    entry["lof"] |= net_of_chance(readings, label, "net")
    for name, never in _NEVER.items():
        keys = {f"{name}_{part}": part for part in ("mean", "sd", "restricted_mean")} | {never: "never"}
        chance = chance_of(readings.shuffled(label), readings.k, list(keys))
        entry[f"shuffled_{name}"] = {short: chance[key] for key, short in keys.items()}
    entry["diversity"] = {f"{name}{end}": placed[f"{name}{end}"] for name in _DIVERSITY for end in ENDS}
    return entry


def _listed(table: pl.DataFrame, column: str, size: int) -> list[float | None]:
    """A column by depth, ``None`` where a depth is absent."""
    values: list[float | None] = [None] * size
    for depth, value in table.select("depth", column).iter_rows():
        values[depth] = value
    return values
