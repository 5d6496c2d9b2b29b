"""Training runs as lines and flows from checkpoint to checkpoint, and the pairs whose differences are shown."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from memprobe.arms import Arm, arm_names
from memprobe.chains import Chain
from memprobe.members import Member
from memprobe.readings import Readings
from memprobe.sameness import apart, of_several_marks


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

    def stage_of(chain: Chain[Member]) -> tuple[str, tuple[int, str]]:
        return chain.titled(short[chain.arm]), chain.members[-1].stage_order

    several = of_several_marks((stage_of(chain), chain.members[-1].settings, chain) for chain in chains)
    paths = []
    for chain in chains:
        first = [readings.base] if readings.base and readings.base not in chain.members else []
        arm, last = chain.titled(short[chain.arm]), chain.members[-1]
        if stage_of(chain) in several:
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
    naive: dict[tuple[str | None, int, str], dict[str, str | None]] = {}
    for path in paths:
        for place, label, settings in _places(path) if path.naive else ():
            naive.setdefault(place, {})[label] = settings
    for path in paths:
        for place, label, settings in _places(path) if not path.naive else ():
            other = _of_settings(settings, naive.get(place, {}))
            if other is not None and other != label:
                pairs.append(("naive", other, label))
    return [pair for pair in dict.fromkeys(pairs) if readings.same_depths(*pair[1:])]


def _places(path: TrainingPath) -> list[tuple[tuple[str | None, int, str], str, str | None]]:
    """Of each of its checkpoints after a stage, what another arm's must have in common with it; label and settings."""
    every = zip(path.stages, path.stage_names, path.labels, path.settings, strict=True)
    return [
        ((path.seed, stage, name), label, settings) for stage, name, label, settings in every if stage > 0
    ]


def _of_settings(settings: str | None, among: Mapping[str, str | None]) -> str | None:
    """The checkpoint that was trained with these settings, so that a difference from it is of the arm alone.

    Args:
        settings: ``None`` where nothing says them.
        among: those of checkpoints, by label.

    Returns:
        A label; ``None`` where there is none, or several that may be it and are known to differ.
    """
    alike = {label: one for label, one in among.items() if not apart(settings, one)}
    if len(set(alike.values()) - {None}) > 1:
        return None
    return max(alike, key=lambda label: alike[label] is not None, default=None)
