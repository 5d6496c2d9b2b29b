"""What a fact being known means: by which tool, task, metric and limit it was judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

EXACT_MATCH = "exact_match"
_NAMED = 3  # labels that are named where many are alike


@dataclass(frozen=True, slots=True)
class Measure:
    """How the facts of one checkpoint were judged.

    Attributes:
        metric: whose score decides.
        at_least: the score from which on a fact is known.
        task, tool: of which results it is; ``None`` of a probe, whose greedy answers memprobe judged itself.
    """

    metric: str = EXACT_MATCH
    at_least: float = 1.0
    task: str | None = None
    tool: str | None = None

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> Measure:
        """Of an entry in ``results.json``."""
        return cls(entry["metric"], float(entry["at_least"]), entry["task"], entry["tool"])

    def __str__(self) -> str:
        limit = "" if self.at_least == 1 else f" of at least {self.at_least:g}"
        where = "of a probe" if self.tool is None else f"of task {self.task} in {self.tool}"
        return f"{self.metric}{limit} {where}"


def notes_on_measures(measures: Mapping[str, Measure]) -> list[str]:
    """What a reader must know of how checkpoints were judged, by label: alike by something else, or not alike.

    A probe's verdict and another tool's exact match are one measure.
    """
    groups: dict[Measure, list[str]] = {}
    for label, measure in measures.items():
        groups.setdefault(measure, []).append(label)
    other = next((one for one in groups if one.tool is not None and _exact(one)), None)
    if other is not None and (probes := groups.pop(Measure(), None)):
        groups[other] += probes
    if len(groups) > 1:
        how = "; ".join(f"{_names(labels)} by {measure}" for measure, labels in groups.items())
        return [f"Facts were not judged alike, so that a difference may be one of measure: {how}."]
    return [
        f"Here exact match stands for {measure}, the measure of every checkpoint."
        for measure in groups
        if measure.metric != EXACT_MATCH
    ]


def _exact(measure: Measure) -> bool:
    return (measure.metric, measure.at_least) == (EXACT_MATCH, 1)


def _names(labels: list[str]) -> str:
    more = f" and {len(labels) - _NAMED} more" if len(labels) > _NAMED else ""
    return ", ".join(labels[:_NAMED]) + more
