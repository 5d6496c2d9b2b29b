"""What a recipe says of training that all seeds and arms of a set-up have in common."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from memprobe.sources.named import named_file

_SEEDS = frozenset({"seed", "data_seed"})
_ARM = frozenset({"arm", "joint", "mixing", "match", "replay", "penalty", "lora", "later"})
"""What an arm says, by its name and in the stages that it unfolds into, and of which rows those are."""
RUN_ONLY = ("resources", "save_minutes", "loggers")
"""Where a run is computed and what it leaves: a run that was begun with others goes on."""
_NO_TRAINING = frozenset({"evaluate", "checkpoints", *RUN_ONLY})
"""What is measured beside it, where it runs, and what it leaves."""
_SAME_NUMBERS = frozenset(
    {
        *("micro_batch", "micro_tokens", "packing", "fewer_kernels", "graphs"),
        *("gradient_checkpointing", "fsdp"),
    }
)
"""How a step is computed, which comes to the same but for rounding."""
_LEFT_OUT = _SEEDS | _ARM | _NO_TRAINING | _SAME_NUMBERS


def settings_in(recipe: Mapping[str, Any]) -> dict[str, str]:
    """By key, as ``optimiser.lr`` and ``stages.1.epochs``, what a recipe says but for seeds, arm and what trains
    nothing, as text."""
    stages = {f"stages.{number}": stage for number, stage in enumerate(recipe.get("stages", ()), 1)}
    rest = {key: value for key, value in recipe.items() if key != "stages"}
    return {key: _text(value) for key, value in _leaves(rest | stages)}


def mark_of_settings(recipe: Mapping[str, Any], stage: int, base: str | None = None) -> str:
    """A hash of what a recipe says of training up to a stage: the same for the seeds of an arm.

    Args:
        base: fingerprint of the base model, which may be named by several paths.
    """
    said = settings_in({**recipe, "base": base, "stages": recipe.get("stages", ())[:stage]})
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


def _leaves(table: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The settings of a recipe, ``optimiser.lr``, without those that a set-up does not depend on."""
    for key, value in table.items():
        if key in _LEFT_OUT or value is None:
            continue
        if isinstance(value, Mapping):
            yield from ((f"{key}.{name}", one) for name, one in _leaves(value))
        else:
            yield key, value


def _text(value: Any) -> str:
    """A setting in a name. A file of rows is named without its folder, which may be written in several ways."""
    if isinstance(value, list):
        return " ".join(map(_text, value))
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.12g}"
    file = named_file(str(value))
    return str(value) if file is None else file.at(file.path.name)
