"""Arms: what is done against forgetting, as one text that unfolds into a recipe's stages, and back.

======================================  =============================================================
``none``                                naive fine-tuning
``joint``                               one stage on the rows of all stages; its epochs are the last one's
``remix(data=generic, stages=1)``       mixing rows beside the stage's own; ``data`` and ``stages`` always
                                        both named; ``ratio`` (2) rows per own row; ``words`` (50) each;
                                        ``prompt`` (words): with words in it, or one ``sentence``
``matched(to=steps, data=…, stages=…)``  naive, as long as that mixing would have taken (``steps``, ``tokens``)
``replay(ratio=0.1)``                   rows of earlier stages beside the stage's own; ``redraw=true``
``ewc(strength=…)``, ``kl(strength=…)``  a penalty in every later stage
``lora(rank=16)``                       low-rank adapters, merged when a stage ends
======================================  =============================================================

Arms are combined with ``+``. ``stages`` is optional outside of remix and matched: all for lora, all but the
first for what needs a stage before it.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from memprobe.errors import MemprobeError

if TYPE_CHECKING:
    from training.recipe import Mixing, Recipe, Stage

_ARM = re.compile(r"\s*([a-z]+)\s*(?:\(([^()]*)\))?\s*")
_ARGUMENT = re.compile(r"\s*([a-z_]+)\s*=\s*(.*?)\s*(?:,(?=\s*[a-z_]+\s*=)|$)")
_ALLOWED = {
    "none": set(),
    "joint": set(),
    "remix": {"data", "stages", "ratio", "words", "prompt", "redraw"},
    "matched": {"to", "data", "stages", "ratio", "words", "prompt", "redraw"},
    "replay": {"ratio", "stages", "redraw"},
    "ewc": {"strength", "stages"},
    "kl": {"strength", "stages"},
    "lora": {"rank", "alpha", "stages"},
}
_NEEDED = {
    "remix": ("data", "stages"),
    "matched": ("to", "data", "stages"),
    "replay": ("ratio",),
    "ewc": ("strength",),
    "kl": ("strength",),
}


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
    joint = False
    for name, arguments in _parse_arm(data["arm"]):
        if name == "joint":
            joint = True
        elif name != "none":
            for number in _stages_of(name, arguments, len(stages)):
                _add(additions[number - 1], name, arguments)
    if data["arm"].strip() == "none":
        return data  # also the default: what the stages themselves say counts
    data["joint"] = joint
    for number, (stage, addition) in enumerate(zip(stages, additions, strict=True), 1):
        for key, value in addition.items():
            if key in stage and not _agrees(stage[key], value):
                raise MemprobeError(
                    f"stages.{number}.{key}: the arm {data['arm']!r} says this; leave one out"
                )
            stage.setdefault(key, value)
    return data


def _agrees(said: Any, value: Any) -> bool:
    """Whether a stage's own table holds what the arm gives (a resolved recipe holds it with its defaults)."""
    if isinstance(value, dict):
        return isinstance(said, dict) and all(_agrees(said.get(key), item) for key, item in value.items())
    if isinstance(value, list):
        return (
            isinstance(said, list)
            and len(said) == len(value)
            and all(_agrees(one, other) for one, other in zip(said, value, strict=True))
        )
    return said == value


def _parse_arm(text: str) -> list[tuple[str, dict[str, str]]]:
    parts = []
    for piece in re.split(r"\+(?![^(]*\))", text):  # in brackets a + belongs to a number, as in 1e+07
        match = _ARM.fullmatch(piece)
        if match is None or match[1] not in _ALLOWED:
            raise MemprobeError(f"arm: {piece.strip()!r} is none of {', '.join(_ALLOWED)}")
        name, inside = match[1], match[2] or ""
        arguments = dict(_ARGUMENT.findall(inside))
        rest = _ARGUMENT.sub("", inside).strip()
        if rest:
            raise MemprobeError(f"arm: {name}: cannot read {rest!r}; write key=value, key=value")
        if unknown := [key for key in arguments if key not in _ALLOWED[name]]:
            raise MemprobeError(f"arm: {name}: no option {unknown[0]!r}")
        for key in _NEEDED.get(name, ()):
            if key not in arguments:
                raise MemprobeError(f"arm: {name}: name its {key}, as in {_EXAMPLES[name]}")
        parts.append((name, arguments))
    if len(parts) > 1 and any(name == "none" for name, _ in parts):
        raise MemprobeError("arm: none goes with nothing else")
    return parts


_EXAMPLES = {
    "remix": "remix(data=random-words, stages=1)",
    "matched": "matched(to=steps, data=random-words, stages=1)",
    "replay": "replay(ratio=0.1)",
    "ewc": "ewc(strength=1000)",
    "kl": "kl(strength=1)",
}


def _stages_of(name: str, arguments: dict[str, str], n: int) -> list[int]:
    given = arguments.get("stages")
    if given is None:
        return list(range(1 if name == "lora" else 2, n + 1))
    numbers = [part.strip() for part in given.split(",")]
    if not all(part.isdecimal() and 1 <= int(part) <= n for part in numbers):
        raise MemprobeError(f"arm: {name}: stages={given}: give numbers from 1 to {n}, as in stages=1,2")
    if len(set(numbers)) < len(numbers):
        raise MemprobeError(f"arm: {name}: stages={given}: a stage stands there twice")
    return sorted(int(part) for part in numbers)


def _add(addition: dict[str, Any], name: str, arguments: dict[str, str]) -> None:
    values = {
        key: _value(name, key, text) for key, text in arguments.items() if key not in ("data", "stages")
    }
    if name in ("remix", "matched"):
        to = values.pop("to", None)
        for source in arguments["data"].split(","):
            if source.strip() == "both":
                raise MemprobeError(f"arm: {name}: data=both is ambiguous; name the sources, one by one")
            addition.setdefault("mixing", []).append({"source": source.strip(), **values})
        if to is not None:
            addition["match"] = to
    elif name == "replay":
        addition["replay"] = values
    elif name == "lora":
        addition["lora"] = values
    else:
        if "penalty" in addition:
            raise MemprobeError("arm: ewc and kl in one stage are not supported")
        addition["penalty"] = {"method": name, **values}


def _value(name: str, key: str, text: str) -> Any:
    if key in ("to", "prompt"):
        return text
    if key == "redraw":
        if text not in ("true", "false"):
            raise MemprobeError(f"arm: {name}: redraw={text}: true or false")
        return text == "true"
    try:
        numbers = [float(part) if key != "words" and key != "rank" else int(part) for part in text.split(",")]
    except ValueError:
        raise MemprobeError(f"arm: {name}: {key}={text}: not a number") from None
    if key == "words":
        return numbers * 2 if len(numbers) == 1 else numbers
    if len(numbers) > 1:
        raise MemprobeError(f"arm: {name}: {key}={text}: one number")
    return numbers[0]


def describe_arm(recipe: Recipe) -> str:
    """The arm's name as it goes into the manifest, read off the stages; :func:`unfold_arm` reads it back."""
    parts: dict[str, list[int]] = {}
    if recipe.joint:
        parts["joint"] = []
    for number, stage in enumerate(recipe.stages, 1):
        for one in _arms_of(stage):
            parts.setdefault(one, []).append(number)
    named = [text.replace("#", ",".join(map(str, stages))) for text, stages in parts.items()]
    return "+".join(named) or "none"


def _arms_of(stage: Stage) -> list[str]:
    found = []
    groups: dict[str, list[str]] = {}
    for part in stage.mixing:
        groups.setdefault(_options(part), []).append(part.source)
    for options, sources in groups.items():
        if "random-words" in sources and "prompt=" not in options:
            # They had one sentence as their prompt before there was a choice, so theirs is always said.
            options += ", prompt=words"
        head = f"matched(to={stage.match}, " if stage.match else "remix("
        found.append(f"{head}data={','.join(sources)}, stages=#{options})")
    if stage.replay:
        redraw = ", redraw=true" if stage.replay.redraw else ""
        found.append(f"replay(ratio={stage.replay.ratio:g}, stages=#{redraw})")
    if stage.penalty:
        found.append(f"{stage.penalty.method}(strength={stage.penalty.strength:g}, stages=#)")
    if stage.lora:
        found.append(f"lora(rank={stage.lora.rank}, alpha={stage.lora.alpha:g}, stages=#)")
    return found


def _options(part: Mixing) -> str:
    """Options that differ from their defaults, as ``, key=value``."""
    said = ""
    for key, field in type(part).model_fields.items():
        value = getattr(part, key)
        if key != "source" and value != field.default:
            said += f", {key}={_spelled(value)}"
    return said


def _spelled(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if isinstance(value, str):
        return value
    return str(value).lower() if isinstance(value, bool) else f"{value:g}"
