"""Training runs as lines and flows from checkpoint to checkpoint, and the pairs whose differences are shown."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from memprobe.arms import Arm, arm_names
from memprobe.readings import Readings


@dataclass(frozen=True)
class TrainingPath:
    """The checkpoints of one training run, from the base model on."""

    name: str
    arm: str
    naive: bool
    seed: str | None
    stages: list[int]
    stage_names: list[str]
    labels: list[str]
    settings: list[str | None]


def paths_of(readings: Readings) -> list[TrainingPath]:
    """The training runs of several checkpoints that :attr:`Readings.chains` tells of."""
    chains = [
        chain for chain in readings.chains if all(one.stage_number is not None for one in chain.members)
    ]
    short = arm_names(list(dict.fromkeys(chain.arm for chain in chains)))
    marks: dict[tuple[str, tuple[int, str]], set[str]] = {}
    for chain in chains:
        last = chain.members[-1]
        if last.settings is not None:
            marks.setdefault((chain.arm, last.stage_order), set()).add(last.settings)
    paths = []
    for chain in chains:
        first = [readings.base] if readings.base and readings.base not in chain.members else []
        arm, last = chain.titled(short[chain.arm]), chain.members[-1]
        if len(marks.get((chain.arm, last.stage_order), ())) > 1 and chain.ends != last.label:
            arm = f"{arm} ({last.label})"  # trained with other settings, so no seed of the others
        paths.append(
            TrainingPath(
                name=f"{arm}, seed {chain.seed}" if chain.seed else arm,
                arm=arm,
                naive=Arm.of(chain.arm).is_naive,
                seed=chain.seed or None,
                stages=[0] * len(first) + [member.stage_order[0] for member in chain.members],
                stage_names=["base"] * len(first) + [member.stage_title for member in chain.members],
                labels=[member.label for member in first] + chain.labels,
                settings=[None] * len(first) + [member.settings for member in chain.members],
            )
        )
    return [path for path in paths if len(path.labels) > 1]


def from_reference(readings: Readings, without: Collection[str] = ()) -> list[TrainingPath]:
    """A path from the reference to each other checkpoint, where no training run is known.

    Args:
        without: checkpoints that are followed otherwise.
    """
    origin = readings.reference.label
    return [
        TrainingPath(
            f"{origin} → {label}", label, False, None, [0, 1], [origin, label], [origin, label], [None, None]
        )
        for label in readings.labels
        if label != origin and label not in without
    ]


def pairs_of(readings: Readings, paths: Sequence[TrainingPath]) -> list[tuple[str, str, str]]:
    """(against what, reference, checkpoint) of every difference that is shown."""
    origin = readings.reference.label
    pairs = [("reference", origin, label) for label in readings.labels if label != origin]
    for path in paths:
        pairs += [("before", one, other) for one, other in itertools.pairwise(path.labels)]
    # Held against naive training of the same settings: a difference is of the arm alone.
    naive: dict[tuple[str | None, int, str, str | None], str] = {}
    for path in paths:
        if path.naive:
            naive |= dict(zip(_places(path), path.labels, strict=True))
    for path in paths:
        for place, stage, label in zip(_places(path), path.stages, path.labels, strict=True):
            other = naive.get(place)
            if stage > 0 and other is not None and other != label:
                pairs.append(("naive", other, label))
    return [pair for pair in dict.fromkeys(pairs) if readings.same_depths(*pair[1:])]


def _places(path: TrainingPath) -> list[tuple[str | None, int, str, str | None]]:
    """Of each of its checkpoints, what another arm's must have in common with it."""
    return [(path.seed, *place) for place in zip(path.stages, path.stage_names, path.settings, strict=True)]
