"""Synthetic run directories: evaluations of invented runs, no training needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from memprobe.files import write_json, write_text
from memprobe.statistics.intervals import wilson


def write_run(
    path: Path,
    scores: Sequence[Sequence[float]],
    *,
    names: Sequence[str] = ("kvr", "lama"),
    arm: str = "none",
    seed: int = 0,
    additions: Mapping[int, str] | None = None,
    tasks: Sequence[str] = (),
    replayed: int = 0,
    n: int = 32,
    steps: int = 80,
    tokens: int = 4000,
    cosine: float | None = None,
) -> Path:
    """Writes the files of a run that a study is read from.

    Args:
        scores: by stage, the share of each dataset so far that is exact; ``[[1.0], [0.25, 1.0]]``.
        names: the stages'.
        additions: by stage (from 1), lines of TOML after it, such as ``[stages.replay]``.
        tasks: names of stages that are skills, not factoids.
        replayed: how many rows of D_A the last stage trained on again.
        cosine: of the gradients of D_A and of the last stage's rows, as that stage began.
    """
    stages = []
    for number, name in enumerate(names, 1):
        kind = "tasks" if name in tasks else "factoids"
        stages.append(
            f'[[stages]]\nname = "{name}"\ndata = "{name}:{n}"\nkind = "{kind}"\n'
            + (additions or {}).get(number, "")
        )
    head = f'base = "tiny"\nseed = {seed}\narm = "{arm}"\njoint = {str(arm == "joint").lower()}\n\n'
    write_text(head + "\n".join(stages), path / "recipe.toml")
    first = len(names) if arm == "joint" else 1
    for stage, values in enumerate(scores, first):
        folder = path / f"{stage}-{'joint' if arm == 'joint' else names[stage - 1]}"
        sets = {
            f"{i}-{names[i - 1]}": _set(
                value, n, "final_answer" if names[i - 1] in tasks else "exact_match", seed
            )
            for i, value in enumerate(values, 1)
        }
        again = [f"row {i}" for i in range(replayed)] if stage == len(names) else []
        keys = {"schema": 1, "stage": stage, "arm": arm}
        measured = {"sets": sets, "retention": {}}
        if cosine is not None and stage == len(names):
            measured["interference"] = {"start": {"cosine_a_b": {"overall": cosine}}}
        write_json(keys | {"stage_name": folder.name} | measured, folder / "evaluation.json")
        made = {"run": path.name, "seed": seed, "steps": steps, "tokens": tokens, "replayed": again}
        write_json(keys | {"stage_name": names[stage - 1]} | made, folder / "memprobe.json")
    return path


def _set(share: float, n: int, metric: str, seed: int) -> dict[str, Any]:
    """The first rows are the exact ones, from a place that the seed moves on by one."""
    right = round(share * n)
    low, high = wilson(np.array(right / n), np.array(n))
    return {
        "kind": "task" if metric == "final_answer" else "factoids",
        "metric": metric,
        "template": "plain",
        "n": n,
        "scores": {metric: {"value": right / n, "low": float(low), "high": float(high)}},
        "rows": [{"id": f"row {i}", metric: (i - seed) % n < right} for i in range(n)],
        "left_out": {},
    }
