"""What a probe's ``run.json`` says of its fitted lenses: the floor below which their differences mean nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from memprobe import wording
from memprobe.records import POSITION, SUBJECT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from memprobe.probes import Probe


@dataclass(frozen=True)
class Floor:
    """How far apart two fits on disjoint halves of a lens's corpus read the same facts, by the rule ``first``.

    Attributes:
        lof: mean over facts of the distance between their first occurrences, in depths.
        lof_mean: distance between the means, in depths.
        recall: distance between recalls by depth; empty in older probes.
    """

    lof: float | None
    lof_mean: float | None
    recall: Sequence[float]


UNKNOWN = Floor(None, None, ())
WITH_FLOOR = ("lof", "lof_restricted")
"""Statistics of a fact whose mean's floor is measured."""


def floor_of(probe: Probe, lens: str, *, k: int, token: str = "first") -> Floor:
    """The floor of one of a probe's lenses; unknown of lenses that were not fitted, and where it was not measured: it
    is for the first answer token and some k, at the position that predicts the answer."""
    measured = floors_of(probe.run["lenses"][lens])
    at = measured.get(str(k)) if token == "first" and probe.position == POSITION else None
    return Floor(at.get("lof"), at.get("lof_mean"), at.get("recall") or ()) if at else UNKNOWN


def floors_of(entry: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """By k as a text, what a lens in ``run.json`` says of its floor; empty where it does not."""
    fitted = entry.get("fitted") or {}
    return (fitted.get("floor") or {}).get("k") or {}


def notes_on_view(probe: Probe) -> list[str]:
    """What a reader must know of the lens and the position that a probe is looked through."""
    notes = []
    entry = probe.run["lenses"][probe.lens]
    if entry["kind"] != "logit":
        at = {k: floor.get("lof_mean") for k, floor in floors_of(entry).items()}
        distances = ", ".join(
            f"{wording.number(value)} (k = {k})" for k, value in at.items() if value is not None
        )
        read = f"Read through the fitted lens {probe.lens}"
        if not distances:
            notes.append(
                f"{read}, whose file names no floor: how far another corpus would move a depth is not known."
            )
        elif probe.position != POSITION:
            notes.append(
                f"{read}. Its floor is measured where the answer is predicted: how far another corpus would move a "
                "depth here is not known."
            )
        else:
            notes.append(
                f"{read}. Its floor: two fits on halves of its corpus place the mean first occurrence (first token) "
                f"{distances} depths apart; a smaller difference from another lens says nothing."
            )
    if probe.position == SUBJECT:
        without = {
            label: (entry.get("without_subject") or {}).get("n", 0)
            for label, entry in probe.run["checkpoints"].items()
        }
        most = max(without.values(), default=0)
        omitted = f"; {wording.count(most, 'fact')} without one left out" if most else ""
        notes.append(f"Read at the last token of the subject, not where the answer is predicted{omitted}.")
    return notes
