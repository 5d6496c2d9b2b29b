"""The checkpoints of probe directories: what each is called, how it was made, which belong together."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypedDict, TypeVar

import polars as pl

from memprobe.comparable import check_alike
from memprobe.errors import MemprobeError, first_line, there_are
from memprobe.factoids import SameFacts
from memprobe.files import short_names
from memprobe.lineage import base_named
from memprobe.probes import Probe
from memprobe.records import ARGMAX, GENERATED, measure_of
from memprobe.sameness import of_several_marks, same_model
from memprobe.stages import STEP, stage_number, stage_order
from memprobe.wording import listed

_STEP = re.compile(STEP + r"|@(\d+)(?![\w.-])")
"""A step in a label. What stands behind @ is one where it is a number as a whole: a commit, a date or a version begins
with digits, too."""


@dataclass(frozen=True)
class TrainingPoint:
    """What may be one of an arm's checkpoints.

    Attributes:
        label: what it is called.
        arm, seed, stage: of its training run; ``None`` where it is of none.
        step: of its stage, where it is one of several along it; ``None`` at its end.
        settings: what stands for all else that its recipe says (:func:`memprobe.recipes.mark_of_settings`); ``None``
            where nothing says it, or the caller says of which arm it is.
        fingerprint, parent: of its weights, and of those that it was trained from; ``None`` where nothing says them.
    """

    label: str
    arm: str | None
    seed: str | None
    stage: str | None
    step: int | None
    settings: str | None = field(default=None, kw_only=True)
    fingerprint: str | None = field(default=None, kw_only=True)
    parent: str | None = field(default=None, kw_only=True)

    @property
    def stage_title(self) -> str:
        """Tells stages of one place in the order apart."""
        return self.stage or ""

    @property
    def stage_order(self) -> tuple[int, str]:
        """Stages by number; those without one last."""
        return stage_order(self.stage)

    @property
    def stage_number(self) -> int | None:
        """That its stage begins with."""
        return stage_number(self.stage)


@dataclass(frozen=True)
class Member(TrainingPoint):
    """One checkpoint: where its records are, and what it is called there.

    Attributes:
        name: its label in ``probe``.
    """

    probe: Probe
    name: str

    @property
    def entry(self) -> dict[str, Any]:
        """What ``run.json`` says of it."""
        return self.probe.run["checkpoints"][self.name]

    @property
    def manifest(self) -> dict[str, Any]:
        """How it was trained; empty where that is not known."""
        return self.entry.get("manifest") or {}

    @property
    def n_layers(self) -> int:
        """Depth of the model's own readout."""
        return self.probe.n_layers[self.name]

    @property
    def stage_title(self) -> str:
        """Number and name of its stage."""
        return f"{self.stage or ''} {self.manifest.get('stage_name') or ''}".strip()


AnyPoint = TypeVar("AnyPoint", bound=TrainingPoint)


def along(one: TrainingPoint) -> float:
    """Sorts the checkpoints of one stage by their steps; one without a step is the stage's end."""
    return math.inf if one.step is None else one.step


def check_apart(members: Iterable[TrainingPoint]) -> None:
    """Refuses two checkpoints of one arm, stage, seed and step, and seeds of an arm that were trained with other
    settings, which are no seeds of one another; reads no records.

    Raises:
        MemprobeError: so.
    """
    of_arms = [one for one in members if one.arm is not None]
    settings = of_several_marks(((one.arm, one.stage or ""), one.settings, one) for one in of_arms)
    for first, other, *_ in settings.values():
        raise MemprobeError(
            f"{first.label} and {other.label} are both arm {other.arm!r}, stage {other.stage!r}, and were trained with "
            "other settings, so that they are no seeds of one arm: tell them apart with `arms`"
        )
    seen: dict[tuple[str | int | None, ...], str] = {}
    for one in of_arms:
        key = (one.arm, one.stage or "", one.seed or "", one.step)
        if key in seen:
            step = "" if one.step is None else f", step {one.step}"
            raise MemprobeError(
                f"{seen[key]} and {one.label} are both arm {key[0]!r}, stage {key[1]!r}, seed {key[2]!r}{step}:"
                " tell them apart with `arms`"
            )
        seen[key] = one.label


def ends_of(members: Iterable[AnyPoint]) -> list[AnyPoint]:
    """The checkpoints of an arm, one for each stage and seed: of several along a stage the last step."""
    ends: dict[tuple[str, str, str], AnyPoint] = {}
    for one in members:
        if one.arm is not None:
            key = (one.arm, one.stage or "", one.seed or "")
            if key not in ends or along(one) > along(ends[key]):
                ends[key] = one
    return list(ends.values())


@dataclass(frozen=True)
class Series:
    """Checkpoints along one training run, in the order of their steps.

    Attributes:
        name: of the run.
        steps: of the optimiser, one for each member; each once.
    """

    name: str
    members: list[Member]
    steps: list[int]

    @property
    def labels(self) -> list[str]:
        """Of its checkpoints."""
        return [member.label for member in self.members]


def series_of(members: Sequence[Member], *, least: int = 2) -> list[Series]:
    """The training runs that several checkpoints lie along: those of a callback, of one stage, or whose labels differ
    in the step alone.

    Args:
        least: runs with fewer checkpoints are left out.
    """
    runs: dict[tuple[str, str | None], list[dict[int, Member]]] = {}
    for member in members:
        manifest = member.manifest
        step = member.step if member.step is not None else manifest.get("step", manifest.get("steps"))
        if step is None:
            continue
        if member.arm is not None and member.stage is not None:
            name = ", ".join(
                filter(None, [member.arm, member.seed and f"seed {member.seed}", member.stage_title])
            )
        elif member.step is not None:
            name = _STEP.sub("", member.label).rstrip("-_@:/= ") or "training"
        else:
            continue
        # Two checkpoints of one step, or trained with other settings, are of two runs.
        alike = runs.setdefault((name, member.settings), [])
        run = next((steps for steps in alike if int(step) not in steps), None)
        if run is None:
            alike.append(run := {})
        run[int(step)] = member
    found = [(name, steps) for (name, _), alike in runs.items() for steps in alike if len(steps) >= least]
    names = [name for name, _ in found]
    return [
        Series(
            name if names.count(name) == 1 else f"{name}, from {steps[min(steps)].label}",
            [steps[step] for step in sorted(steps)],
            sorted(steps),
        )
        for name, steps in found
    ]


def members_of(
    probes: Sequence[Probe], arms: Mapping[str, tuple[str, str, str]], notes: list[str]
) -> list[Member]:
    """Every checkpoint of these probes; a label that several of them use is told apart by their folders.

    Raises:
        MemprobeError: a checkpoint is given twice, or ``arms`` names none.
    """
    named = [(probe, name) for probe in probes for name in probe.checkpoints]
    times = {name: [other for _, other in named].count(name) for _, name in named}
    folders = dict(zip(map(id, probes), short_names([probe.path for probe in probes]), strict=True))
    members: list[Member] = []
    for probe, name in named:
        label = name if times[name] == 1 else f"{folders[id(probe)]}/{name}"
        if any(member.label == label for member in members):
            raise MemprobeError(f"{probe.path}: checkpoint {name!r} is given twice; name each directory once")
        entry = probe.run["checkpoints"][name]
        if not entry.get("complete", True):
            notes.append(f"{label} is not finished: what is there is compared.")
        manifest = entry.get("manifest") or {}
        given = arms.get(label)
        made = given if given is not None else made_by(manifest)
        told = trained_from(entry)
        if given is not None:
            told["settings"] = None
        members.append(Member(label, *made, step_of(name, entry), probe, name, **told))
    if unknown := [label for label in arms if label not in {member.label for member in members}]:
        raise MemprobeError(f"`arms`: no checkpoint {unknown[0]!r}; {_instead(unknown[0], members)}")
    return members


def made_by(manifest: Mapping[str, Any]) -> tuple[str | None, str | None, str | None]:
    """(arm, seed, stage), as a manifest tells them."""
    arm, seed, stage = (
        None if (value := manifest.get(key)) is None else str(value) for key in ("arm", "seed", "stage")
    )
    return arm, seed, stage


class TrainedFrom(TypedDict):
    """What a checkpoint was trained with and from; see :class:`TrainingPoint`."""

    settings: str | None
    fingerprint: str | None
    parent: str | None


def trained_from(entry: Mapping[str, Any]) -> TrainedFrom:
    """Of an entry of ``run.json``, what :class:`TrainingPoint` has of weights and settings."""
    manifest = entry.get("manifest") or {}
    parent = manifest.get("parent") or {}
    return {
        "settings": manifest.get("recipe_mark"),
        "fingerprint": entry.get("fingerprint"),
        "parent": parent.get("fingerprint"),
    }


def step_of(name: str, entry: Mapping[str, Any]) -> int | None:
    """Of a probe along training: ``step`` in its entry in ``run.json`` or its manifest, else in its label
    (``step-200``, ``step=200``, ``NAME@200``)."""
    for source in (entry, entry.get("manifest") or {}):
        if source.get("step") is not None:
            return int(source["step"])
    match = _STEP.search(name)
    return int(match[1] or match[2]) if match else None


def base_of(members: list[Member], notes: list[str]) -> Member | None:
    """The base model among checkpoints: the one that holds the weights which manifests name as theirs.

    Where no manifest names any, as in older probes, it is the one checkpoint without a manifest among others that have
    one, or the one called base. Several probes may hold the same base model: of those the first.
    """
    bare = [member for member in members if not member.manifest]
    if bases := {base_named(member.manifest) for member in members} - {None}:
        of_runs = [member for member in members if member.fingerprint in bases]
        # A run that goes on from another's checkpoint names that one, which has a base model itself.
        found = [member for member in of_runs if member in bare] or of_runs
        if not found and bare:
            notes.append(_no_base([member.label for member in bare]))
        return found[0] if len({member.fingerprint for member in found}) == 1 else None
    if len(bare) == 1 < len(members):
        return bare[0]
    called = [member for member in members if member.name == "base"]
    return called[0] if called and all(same_model(called[0].entry, one.entry) for one in called) else None


def _no_base(labels: Sequence[str]) -> str:
    """That checkpoints without a manifest are no base model, and how one of them is made one all the same."""
    some = listed(_few(labels))
    one = "it is" if len(labels) == 1 else "one of them is"
    return (
        f"No base model is here: {some} {'is' if len(labels) == 1 else 'are'} of other weights than those that the "
        f"other checkpoints say they were trained from. Where {one} the base model all the same, quantised or saved "
        "again, name it: memprobe compare --base LABEL, in Python base=LABEL."
    )


def _few(labels: Sequence[str]) -> list[str]:
    """The first three, and how many more."""
    return [*labels[:3], *([f"{len(labels) - 3} more"] if len(labels) > 3 else [])]


def named(members: Sequence[Member], label: str, parameter: str) -> Member:
    """The checkpoint of that label.

    Raises:
        MemprobeError: there is none; the message names the parameter.
    """
    for member in members:
        if member.label == label:
            return member
    raise MemprobeError(f"`{parameter}` {label!r}: no such checkpoint; {_instead(label, members)}")


def _instead(label: str, members: Sequence[Member]) -> str:
    return there_are(label, [member.label for member in members])


def in_readout_of(members: Sequence[Member], fixed: Sequence[Probe]) -> list[Member]:
    """The checkpoints that probes in another readout hold of these, under the labels here.

    A checkpoint is that of the same directory, else of the same label, else the only one that has its name.

    Raises:
        MemprobeError: those probes are not alike in all else, or hold other weights.
    """
    check_alike([members[0].probe, *fixed], but=("readout",))
    check_alike(fixed)
    found = []
    for there in members_of(fixed, {}, []):
        same_name = [one for one in members if one.name == there.name]
        matches = (
            [one for one in same_name if one.probe.path == there.probe.path],
            [one for one in members if one.label == there.label],
            same_name,
        )
        match = next(filter(None, matches), [])
        if len(match) != 1:
            continue
        own = match[0]
        if not same_model(there.entry, own.entry):
            raise MemprobeError(
                f"{there.probe.path}: {there.name!r} has other weights than {own.label!r} in "
                f"{own.probe.path}; probe both again, or give the same checkpoints"
            )
        found.append(replace(own, probe=there.probe, name=there.name))
    return found


def notes_on_counting(probes: Sequence[Probe], k: int | None, token: str | None) -> list[str]:
    """That probes were counted otherwise than they are together, where nobody says how they are to be."""
    first, *others = ((k or int(one.run["k"]), token or str(one.run["token"])) for one in probes)
    unlike = next((probe for probe, one in zip(probes[1:], others, strict=True) if one != first), None)
    if unlike is None:
        return []
    return [
        f"Counted as {probes[0].path} was probed, top {first[0]} and token rule {first[1]}; {unlike.path} was probed "
        f"under top {unlike.run['k']} and {unlike.run['token']}. Give both to choose (-k, --token)."
    ]


def common_factoids(members: list[Member], notes: list[str]) -> pl.DataFrame:
    """Rows of the factoids that every checkpoint has records of, in the order of the first probe.

    Raises:
        MemprobeError: there is none, or one id stands for two facts.
    """
    facts = members[0].probe.factoids
    common, most = None, 0
    for member in members:
        lazy = member.probe.read("records", checkpoints=[member.name])
        here = set(collect(lazy.select(pl.col("factoid").unique()), member.probe)["factoid"])
        if not here:
            raise MemprobeError(f"{member.probe.path}: no records of {member.name!r}; probe it again")
        most = max(most, len(here))
        common = here if common is None else common & here
        if not common:
            raise MemprobeError(
                f"{member.probe.path}: {member.label} shares no factoid with the checkpoints before it:"
                " probe the same factoids"
            )
    assert common is not None
    if len(common) < most:
        notes.append(f"Compared on the {len(common)} factoids that every checkpoint has, of up to {most}.")
    same = SameFacts()
    for probe in {id(member.probe): member.probe for member in members}.values():
        rows = probe.factoids.filter(pl.col("id").is_in(list(common))).select("id", "prompt", "answer")
        same.add(rows.iter_rows(), str(probe.path))
    notes += same.note()
    facts = facts.filter(pl.col("id").is_in(list(common)))
    if facts.height < len(common):
        raise MemprobeError(f"{members[0].probe.path}: factoids.parquet lacks factoids of its own records")
    return facts


def common_measure(members: Sequence[Member], notes: list[str]) -> str:
    """By which of :data:`memprobe.records.MEASURES` all checkpoints are judged: one that every one of them has."""
    measures = {
        one.label: measure_of(collect(one.probe.read("outcomes", checkpoints=[one.name]), one.probe))
        for one in members
    }
    lacking = [label for label, measure in measures.items() if measure == ARGMAX]
    if not lacking:
        return GENERATED
    whose = "any checkpoint" if len(lacking) == len(members) else listed(_few(lacking))
    notes.append(
        "Here exact match stands for exact tokens, the argmax of every answer token: nothing says what "
        f"{whose} would generate."
    )
    return ARGMAX


def collect(lazy: pl.LazyFrame, probe: Probe) -> pl.DataFrame:
    """A lazy table, read.

    Raises:
        MemprobeError: it cannot be.
    """
    try:
        return lazy.collect(engine="streaming")
    except (pl.exceptions.PolarsError, OSError) as error:
        raise MemprobeError(
            f"{probe.path}: its tables cannot be read ({first_line(error)}); probe again"
        ) from error
