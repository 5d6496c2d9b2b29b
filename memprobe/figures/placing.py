"""Which checkpoint is drawn where: panels, lines and rows, and what they are called."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from memprobe.arms import arm_names, by_kind
from memprobe.members import TrainingPoint, ends_of
from memprobe.sentences import FEWEST_STEPS
from memprobe.stages import after_stage, stage_order

MOST_LINES = 6
"""In one panel: as many as there are colours."""


def places_along(steps: pl.DataFrame) -> dict[str, tuple[str, int, float]]:
    """Of each checkpoint along a training run its run, its step, and its place from 0 (early) to 1 (late).

    Args:
        steps: the table ``steps`` of a comparison; runs of fewer than three checkpoints are told as others are.
    """
    places = {}
    for part in steps.partition_by("run", maintain_order=True):
        if len(part) >= FEWEST_STEPS:
            for at, row in enumerate(part.iter_rows(named=True)):
                places[row["checkpoint"]] = (row["run"], row["step"], at / (len(part) - 1))
    return places


def checkpoint_layout(
    checkpoints: Sequence[Mapping[str, Any]],
    base: str | None,
    chains: Sequence[Sequence[str]] = (),
    *,
    along: Mapping[str, tuple[str, int, float]] = {},
) -> pl.DataFrame:
    """Which checkpoint is drawn where.

    Those along training runs are lines of one panel for each run, coloured by step. Of others up to six are lines of
    one panel; more of them get a panel by arm, with a line for each stage and its seeds, the base model in every
    panel; where arms are not known, six to a panel.

    Args:
        checkpoints: with label, arm, seed and stage (``None`` where not known), in order.
        chains: labels of the stages of one run each; an arm that differs from another in a later stage alone shares
            the other's earlier checkpoints, and has them in its panel too.
        along: of :func:`places_along`.

    Returns:
        [panel, line, seed, checkpoint, along]; the base model may stand there several times. ``along`` is the place
        of a checkpoint along its run, null for others.
    """
    rows: list[tuple[str, str, str | None, str]] = []
    made = [row for row in checkpoints if row["label"] != base]
    runs = list(dict.fromkeys(along[row["label"]][0] for row in checkpoints if row["label"] in along))
    if runs and all(row["label"] in along for row in made):
        for run in runs:
            panel = run if len(runs) > 1 else ""
            if base is not None and base not in along:
                rows.append((panel, "base model", None, base))
            here = [row["label"] for row in checkpoints if along.get(row["label"], ("",))[0] == run]
            rows += [(panel, f"step {along[label][1]:,}", None, label) for label in here]
    elif len(checkpoints) <= MOST_LINES:
        rows = [("", row["label"], None, row["label"]) for row in checkpoints]
    elif all(row["arm"] for row in made) and made:
        names = arm_names([row["arm"] for row in made])
        several = several_seeds(made)
        arms = {row["label"]: row["arm"] for row in made}
        for text in by_kind({row["arm"] for row in made}):
            if base is not None:
                rows.append((names[text], "base model", None, base))
            shared = {label for chain in chains for label in chain if arms.get(chain[-1]) == text}
            mine = [row for row in made if row["arm"] == text or row["label"] in shared]
            for row in sorted(mine, key=in_order):
                seed = row["seed"] if several else None
                rows.append((names[text], after(row) + at_step(row), seed, row["label"]))
    else:
        for start in range(0, len(checkpoints), MOST_LINES):
            part = checkpoints[start : start + MOST_LINES]
            panel = f"checkpoints {start + 1}–{start + len(part)}"
            rows += [(panel, row["label"], None, row["label"]) for row in part]
    names_of = {"panel": pl.String, "line": pl.String, "seed": pl.String, "checkpoint": pl.String}
    layout = pl.DataFrame(rows, schema=names_of, orient="row")
    places = [along[label][2] if label in along else None for label in layout["checkpoint"]]
    return layout.with_columns(pl.Series("along", places, pl.Float64))


def several_seeds(made: Sequence[Mapping[str, Any]]) -> bool:
    """Whether an arm has several seeds after a stage; checkpoints along a stage are no seeds."""
    ends = at_ends(made)
    return len({(row["arm"], row["stage"]) for row in ends}) < len(ends)


def at_ends(made: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The checkpoints that stand for their stages: of several along one the last."""
    points = [
        TrainingPoint(row["label"], row["arm"], row["seed"], row["stage"], row.get("step")) for row in made
    ]
    ends = {one.label for one in ends_of(points)}
    return [row for row in made if row["label"] in ends]


def in_order(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Sorts checkpoints of an arm by stage, seed and step."""
    seed = row["seed"] or ""
    step = row.get("step")
    return (*stage_order(row["stage"]), len(seed), seed, math.inf if step is None else step)


def after(row: Mapping[str, Any]) -> str:
    """After which stage a checkpoint is."""
    return after_stage(row["stage"]).strip() or "trained"


def at_step(row: Mapping[str, Any]) -> str:
    """What tells a checkpoint from others along the same stage."""
    return "" if row.get("step") is None else f", step {row['step']:,}"
