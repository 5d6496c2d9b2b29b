"""Training runs among checkpoints: stage after stage, each from the one before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic

from memprobe.members import AnyPoint, along


@dataclass(frozen=True)
class Chain(Generic[AnyPoint]):
    """The checkpoints of one training run, in the order of training, without the base model.

    Attributes:
        ends: the last stage's title where runs share their first stages and end on different data.
    """

    arm: str
    seed: str
    members: list[AnyPoint]
    ends: str | None = None

    @property
    def labels(self) -> list[str]:
        """Of its checkpoints."""
        return [member.label for member in self.members]

    def titled(self, name: str) -> str:
        """The name of its arm, with where it ends where that tells it from others."""
        return f"{name} → {self.ends}" if self.ends else name


def chains_of(members: Sequence[AnyPoint]) -> list[Chain[AnyPoint]]:
    """The training runs among checkpoints: those of one arm and seed, stage after stage.

    Of several checkpoints along one stage the last step stands for it. Runs that share their first stages and end on
    different data make a chain each. Where manifests say what each was trained from, a chain is of parents and
    children, whatever arm a parent bears: arms that differ from stage 2 on share stage 1, and a chain is of the arm of
    its last stage. Else it is of stages by their numbers.
    """
    made: dict[tuple[str, str], dict[tuple[tuple[int, str], str, str | None], AnyPoint]] = {}
    for member in sorted(members, key=along):
        if member.arm is not None and member.stage is not None:
            stages = made.setdefault((member.arm, member.seed or ""), {})
            stages[member.stage_order, member.stage_title, member.settings] = member
    chains = []
    parent_of = _parents_of([one for stages in made.values() for one in stages.values()])
    for (arm, seed), stages in made.items():
        by_stage = [stages[key] for key in sorted(stages, key=lambda key: key[0])]
        told = all(one.parent is not None and one.fingerprint is not None for one in by_stage)
        runs = _by_parents(by_stage, parent_of) if told else _by_number(by_stage)
        titles = [run[-1].stage_title for run in runs]
        for run, title in zip(runs, titles, strict=True):
            ends = title if titles.count(title) == 1 else run[-1].label
            chains.append(Chain(arm, seed, run, ends if len(runs) > 1 else None))
    return chains


def _parents_of(everyone: Sequence[AnyPoint]) -> dict[str, AnyPoint]:
    """By label, the checkpoint that each was trained from: one of its own arm and seed, where several have its weights.

    A parent that is not here is stood for by the one checkpoint along its stage, of the same arm and seed, where there
    is one.
    """
    parents = {}
    for one in everyone:
        own = [other for other in everyone if (other.arm, other.seed) == (one.arm, one.seed)]
        if one.parent is None:
            continue
        before = (one.stage_number or 0) - 1
        way = [other for other in own if other.step is not None and other.stage_number == before]
        if same := [other for other in (*everyone, *own) if other.fingerprint == one.parent]:
            parents[one.label] = same[-1]
        elif len(way) == 1:
            parents[one.label] = way[0]
    return parents


def _by_parents(points: Sequence[AnyPoint], parent_of: Mapping[str, AnyPoint]) -> list[list[AnyPoint]]:
    """A run for each checkpoint of an arm that none was trained from, back to the first that is here.

    Args:
        parent_of: see :func:`_parents_of`.
    """
    parents = {parent.label for parent in parent_of.values()}
    runs = []
    for leaf in points:
        if leaf.label in parents:
            continue
        run = [leaf]
        while (earlier := parent_of.get(run[0].label)) is not None and earlier not in run:
            run.insert(0, earlier)
        runs.append(run)
    return runs


def _by_number(points: Sequence[AnyPoint]) -> list[list[AnyPoint]]:
    """A run for each checkpoint of the last stage; of an earlier one, the first stands for all."""
    orders = sorted({one.stage_order for one in points})
    *early, last = ([one for one in points if one.stage_order == order] for order in orders)
    return [[*(some[0] for some in early), one] for one in last]
