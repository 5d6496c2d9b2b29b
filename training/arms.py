"""An arm (:mod:`memprobe.arms`) unfolds into a recipe's stages, and is read off them again."""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from memprobe.arms import KINDS, Arm, Part
from memprobe.errors import MemprobeError, among

WRITTEN = ("mixing", "match", "replay", "penalty", "lora")
"""Keys of a stage that an arm says; of the recipe it says ``joint``."""


def unfold_arm(data: dict[str, Any]) -> dict[str, Any]:
    """Writes what the arm's text says into the stages that it names.

    Raises:
        MemprobeError: the text cannot be read, or a stage says something else already.
    """
    data = json.loads(json.dumps(data))
    stages = data.get("stages")
    if not isinstance(stages, list) or not all(isinstance(stage, dict) for stage in stages):
        return data
    additions: list[dict[str, Any]] = [{} for _ in stages]
    arm = Arm.parse(data["arm"])
    for part in arm.parts:
        for number in part.stages_of(len(stages)):
            _add(additions[number - 1], part)
    if arm.is_naive:
        return data  # also the default: what the stages themselves say counts
    data["joint"] = arm.is_joint
    for number, (stage, addition) in enumerate(zip(stages, additions, strict=True), 1):
        for key, value in addition.items():
            if key in stage and not _agrees(stage[key], value):
                raise MemprobeError(
                    f"stages.{number}.{key}: the arm {data['arm']!r} says this; leave one out"
                )
            stage.setdefault(key, value)
    return data


def with_arm(data: dict[str, Any], text: str) -> dict[str, Any]:
    """A resolved recipe's data with its arm's text; without any where that cannot be read back, as with a file whose
    folder has a comma in its name: the stages say all of it."""
    said = data | {"arm": text}
    try:
        unfold_arm(said)
    except MemprobeError:
        return {key: value for key, value in data.items() if key != "arm"}
    return said


def without_arm(data: dict[str, Any]) -> dict[str, Any]:
    """A recipe's data without what an arm writes into it, so that another one can."""
    data = {key: value for key, value in data.items() if key not in ("arm", "joint")}
    stages = data.get("stages")
    if isinstance(stages, list) and all(isinstance(stage, dict) for stage in stages):
        data["stages"] = [
            {key: value for key, value in stage.items() if key not in WRITTEN} for stage in stages
        ]
    return data


def _agrees(given: Any, value: Any) -> bool:
    """Whether a stage's own table holds what the arm gives (a resolved recipe holds it with its defaults)."""
    if isinstance(value, dict):
        return isinstance(given, dict) and all(_agrees(given.get(key), item) for key, item in value.items())
    if isinstance(value, list):
        return (
            isinstance(given, list)
            and len(given) == len(value)
            and all(_agrees(one, other) for one, other in zip(given, value, strict=True))
        )
    return given == value


def _add(addition: dict[str, Any], part: Part) -> None:
    """Puts one thing that an arm does into a stage."""
    values = {
        key: _value(part.name, key, text)
        for key, text in part.options.items()
        if key not in ("data", "stages", "to")
    }
    if part.name in ("remix", "matched"):
        if "mixing" in addition and addition.get("match") != part.options.get("to"):
            raise MemprobeError(
                "arm: remix and matched, or two lengths to match, in one stage: a matched stage trains none of it"
            )
        for source in part.sources:
            if part.sources.count(source) > 1:
                raise MemprobeError(f"arm: {part.name}: data={part.options['data']}: names {source} twice")
            if source == "both":
                raise MemprobeError(f"arm: {part.name}: data=both is ambiguous; name the sources, one by one")
            addition.setdefault("mixing", []).append({"source": source, **values})
        if "to" in part.options:
            addition["match"] = part.options["to"]
    elif part.is_penalty:
        if "penalty" in addition:
            raise MemprobeError("arm: two penalties in one stage are not supported")
        addition["penalty"] = {"method": part.name, **values}
    elif part.name in KINDS:
        if part.name in addition:
            raise MemprobeError(f"arm: {part.name} twice in one stage: give it once")
        addition[part.name] = values
    else:
        raise MemprobeError(
            f"arm: no arm {part.name!r}; {among(part.name, KINDS)}; a penalty names its strength, as in kl(strength=1)"
        )


def _value(name: str, key: str, text: str) -> Any:
    if key in ("prompt", "order"):
        return text
    if key == "redraw":
        if text not in ("true", "false"):
            raise MemprobeError(f"arm: {name}: redraw={text}: give true or false")
        return text == "true"
    try:
        numbers = [int(part) if part.strip().isdecimal() else float(part) for part in text.split(",")]
    except ValueError:
        raise MemprobeError(f"arm: {name}: {key}={text}: not a number") from None
    if key == "words":
        return numbers * 2 if len(numbers) == 1 else numbers
    if len(numbers) > 1:
        raise MemprobeError(f"arm: {name}: {key}={text}: give one number")
    return numbers[0]


def arm_of(stages: Sequence[Any], *, joint: bool) -> Arm:
    """The arm in its canonical spelling, read off stages; :func:`unfold_arm` gives the same stages again.

    Args:
        stages: of a validated recipe (:class:`training.recipe_tables.Stage`).
        joint: whether they are trained as one.
    """
    parts_of: dict[str, tuple[Part, list[int]]] = {}
    if joint:
        parts_of["joint"] = (Part("joint", {}), [])
    for number, stage in enumerate(stages, 1):
        for part in _parts_of(stage):
            parts_of.setdefault(str(part), (part, []))[1].append(number)
    return Arm.made_of(
        [
            Part(
                part.name,
                {
                    key: ",".join(map(str, numbers)) if key == "stages" else value
                    for key, value in part.options.items()
                },
            )
            for part, numbers in parts_of.values()
        ]
    )


def _parts_of(stage: Any) -> Iterator[Part]:
    """What a stage does, with ``stages`` still to be filled in."""
    # Neighbours alone share a part: rows are drawn in the order of their sources, which the text keeps.
    for _, some in itertools.groupby(stage.mixing, lambda one: _changed(one, without={"source"})):
        group = list(some)
        options, sources = _changed(group[0], without={"source"}), [one.source for one in group]
        if "random-words" in sources:
            # They had one sentence as their prompt before there was a choice, so theirs is always said.
            options.setdefault("prompt", "words")
        to = {"to": stage.match} if stage.match else {}
        head = {**to, "data": ",".join(sources), "stages": ""}
        yield Part("matched" if stage.match else "remix", head | options)
    if stage.replay:
        redraw = {"redraw": "true"} if stage.replay.redraw else {}
        yield Part("replay", {"ratio": _spelled(stage.replay.ratio), "stages": ""} | redraw)
    if stage.penalty:
        head = {"strength": _spelled(stage.penalty.strength), "stages": ""}
        yield Part(stage.penalty.method, head | _changed(stage.penalty, without={"method", "strength"}))
    if stage.lora:
        alpha = _spelled(stage.lora.alpha)
        yield Part("lora", {"rank": str(stage.lora.rank), "alpha": alpha, "stages": ""})


def _changed(part: Any, *, without: Collection[str]) -> dict[str, str]:
    """Options of a part of a stage that differ from their defaults."""
    return {
        key: _spelled(value)
        for key, field in type(part).model_fields.items()
        if key not in without and (value := getattr(part, key)) != field.default
    }


def _spelled(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if isinstance(value, str):
        return value
    short = f"{value:g}"
    return short if float(short) == value else repr(value)  # it is read back as it is
