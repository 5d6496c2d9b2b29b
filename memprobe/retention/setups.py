"""Which runs are one set-up: those of which arms, and seeds of an arm, may be held against each other.

Cells are of one set-up where their grid says so. Other runs are where all that their recipes say of training agrees but
the seeds and the arm: runs that differ in a learning rate are no seeds of one another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from memprobe.recipes import settings_in
from memprobe.runs import RunDirectory

_N, _BASE = "n", "base"


def setups_of(runs: Sequence[RunDirectory]) -> dict[Path, str]:
    """By run directory, the name of its set-up: of a cell as its grid has it (``kvr-lama-n64``), else ``kvr → lama``.

    Cells of different grids are never one set-up. Other runs are where datasets, their size, the base model and all
    else that is trained alike agree. Where two set-ups share their datasets, their names say in what they differ: in
    the number of facts and the base model, and in settings that do not go with these, as ``kvr → lama, n = 32`` or
    ``kvr → lama, optimiser.lr = 0.0001``.
    """
    names: dict[Path, str] = {}
    cells = {run.path: run.setup for run in runs if run.setup is not None}
    for path, folder in cells.items():
        same = {other for other in cells.values() if other.name == folder.name}
        grid = folder.parent.parent
        unique = len({other.parent.parent.name for other in same}) == len(same)
        names[path] = folder.name if len(same) == 1 else f"{grid.name if unique else grid}/{folder.name}"
    groups: dict[str, dict[Path, dict[str, str]]] = {}
    for run in runs:
        if run.path not in cells:
            title = " → ".join(stage.name for stage in run.recipe.stages)
            groups.setdefault(title, {})[run.path] = _said(run)
    for title, group in groups.items():
        told = _told(list(group.values()))
        for path, said in group.items():
            names[path] = ", ".join([title, *(said.get(key, f"{key} unset") for key in told)])
    return names


def _told(alike: Sequence[Mapping[str, str]]) -> list[str]:
    """The settings that the names of set-ups on the same datasets tell."""

    def apart(*keys: str) -> int:
        return len({tuple(said.get(key) for key in keys) for said in alike})

    first = [key for key in (_N, _BASE) if apart(key) > 1]
    others = dict.fromkeys(key for said in alike for key in said if key not in (_N, _BASE))
    return [*first, *(key for key in others if apart(*first, key) > apart(*first))]


def _said(run: RunDirectory) -> dict[str, str]:
    """What a run's recipe says of its training but for seeds and arm: by setting, as the name of a set-up tells it."""
    last = run.trained[len(run.datasets)].evaluation
    first = last.sets.get(run.datasets[0]) if last else None
    said = {_N: f"n = {first.n}" if first else "n unset", _BASE: run.recipe.base or "base unset"}
    recipe = run.recipe.model_dump(exclude={"base"})
    for stage in recipe["stages"]:
        stage.pop("name")
    return said | {key: f"{key} = {text}" for key, text in settings_in(recipe).items()}
