"""How far a stage is: part of every saved state, and a line of ``metrics.jsonl`` for each optimiser step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from memprobe.errors import MemprobeError, in_own_words
from memprobe.files import read_json, write_text


@dataclass
class Progress:
    """How far a stage is, beside what Trainer keeps: part of every saved state.

    Attributes:
        step: optimiser steps done.
        below: steps in a row with a loss below the stop rule's.
        tokens: input tokens seen, without padding.
        seconds: spent training, in every process that worked on the stage up to its last saved state.
        right, seen: own rows answered exactly, and seen, in this epoch (by the first process).
        stopped: why the stage ended.
        exact: share of own rows answered exactly in the last epoch that ended.
    """

    step: int = 0
    below: int = 0
    tokens: int = 0
    seconds: float = 0.0
    right: int = 0
    seen: int = 0
    stopped: str | None = None
    exact: float | None = None


def saved_progress(path: Path) -> Progress:
    """How far a saved state is.

    Raises:
        MemprobeError: the file says something else.
    """
    try:
        return TypeAdapter(Progress).validate_python(read_json(path))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = ".".join(map(str, problem["loc"]))
        raise MemprobeError(
            f"{path}: {key}: {in_own_words(problem['msg'])}; delete the state's folder"
        ) from error


def add_metrics(path: Path, step: int, epoch: float, exact: float | None, logs: Mapping[str, Any]) -> None:
    """Appends the line of one optimiser step.

    Args:
        exact: share of own rows answered exactly in the last epoch that ended.
        logs: what Trainer logged.
    """
    numbers = {key: value for key, value in logs.items() if key != "epoch" and isinstance(value, int | float)}
    line = {"step": step, "epoch": epoch, **numbers, "exact": exact}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def cut_metrics(path: Path, step: int) -> None:
    """Takes out the lines of steps that will be done again, and a last line cut off by a kill."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").split("\n"):
        try:
            if line and json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, TypeError, KeyError, RecursionError):  # cut off, or no line of ours
            continue
    write_text("".join(kept), path)
