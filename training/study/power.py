"""What a grid can see before it runs: from how the seeds of a stored study scatter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from memprobe.arms import NAIVE
from memprobe.errors import MemprobeError
from memprobe.sources.generated import own_number
from memprobe.statistics.power import detectable_over_seeds, scatter, seeds_needed
from training.grid.cells import Cell
from training.recipe import Recipe

ASKED = (0.20, 0.10)
"""Differences of retention for which the seeds are counted."""


@dataclass(frozen=True)
class Scatter:
    """How differences of retention from naive scatter over pairs of seeds.

    Attributes:
        arms: of how many arms.
        between, within: variances by what is peculiar to a seed, and by its facts, where it has so many.
        facts: of each seed; the fewest that arms have.
    """

    name: str
    arms: int
    between: float
    within: float
    facts: int


def stored_scatter(cells: pl.DataFrame) -> list[Scatter]:
    """Scatter of all arms together, and of the one that scatters most widely.

    Arms that keep nothing or all have none to tell of: their seeds are alike because they must be.

    Args:
        cells: of a study's results.

    Raises:
        MemprobeError: no arm has two seeds beside naive's.
    """
    learned = cells.filter("learned")
    by_arm: list[tuple[str, np.ndarray, np.ndarray, int]] = []
    for (setup,), group in learned.group_by("setup", maintain_order=True):
        naive = group.filter(pl.col("arm_text") == NAIVE).select("seed", naive="retention")
        for (arm,), members in group.filter(pl.col("arm_text") != NAIVE).group_by("arm", maintain_order=True):
            both = members.join(naive, on="seed", how="inner").sort("seed")
            shares = both.select("retention", "naive").to_numpy().T
            if both.height > 1 and 0 < shares[0].mean() < 1:
                name = str(arm) if learned["setup"].n_unique() == 1 else f"{setup}: {arm}"
                by_arm.append((name, shares[0] - shares[1], shares, int(members["n"][0])))
    if not by_arm:
        raise MemprobeError(
            "these results have no arm with two seeds beside naive's, so there is no scatter to go by"
        )
    _, pairs, shares, sizes = map(list, zip(*by_arm, strict=True))
    facts = min(sizes)
    every = Scatter("all arms", len(by_arm), *scatter(pairs, shares, sizes, facts), facts)
    widest = max(by_arm, key=lambda one: float(np.var(one[1], ddof=1)))
    return [
        every,
        Scatter(widest[0], 1, *scatter([widest[1]], [widest[2]], [widest[3]], widest[3]), widest[3]),
    ]


def power_of(cells: Sequence[Cell], scattered: Sequence[Scatter]) -> pl.DataFrame:
    """For each set-up of a grid, the difference from naive that its seeds see in 80 %.

    Returns:
        [setup, facts, seeds, scatter, sd, detectable, seeds for 20 points, seeds for 10 points]: sd over pairs of seeds
        at this number of facts, those of D_A that are evaluated; null where more than 200 seeds would be needed. Where
        the grid does not say how many facts there are, facts and all that follows from them are null.
    """
    seeds: dict[str, set[int]] = {}
    facts: dict[str, int | None] = {}
    for cell in cells:
        seeds.setdefault(cell.node.setup, set()).add(cell.node.recipe.seed)
        facts[cell.node.setup] = _evaluated(cell.node.recipe)
    rows: list[list[object]] = []
    for setup, used in seeds.items():
        for one in scattered:
            number = facts[setup]
            if number is None:
                rows.append([setup, None, len(used), one.name, None, None, *(None for _ in ASKED)])
                continue
            more = number / one.facts
            sd = float(np.sqrt(one.between + one.within / more))
            needed = [seeds_needed(size, one.between, one.within, facts=more) for size in ASKED]
            seen = detectable_over_seeds(len(used), one.between, one.within, facts=more)
            rows.append(
                [setup, number, len(used), one.name, sd, seen if np.isfinite(seen) else None, *needed]
            )
    names = ["setup", "facts", "seeds", "scatter", "sd", "detectable"]
    schema = dict(zip(names, (pl.String, pl.Int64, pl.Int64, pl.String, pl.Float64, pl.Float64), strict=True))
    schema |= {f"seeds for {size * 100:.0f} points": pl.Int64 for size in ASKED}
    return pl.DataFrame(rows, schema=schema, orient="row")


def _evaluated(recipe: Recipe) -> int | None:
    """How many facts of D_A retention is a share of; None where only their source knows."""
    first = recipe.stages[0]
    number = first.n
    if number is None and first.unknown is None:  # the filter leaves fewer
        number = own_number(first.data)
    if number is None or first.kind != "factoids":
        return None
    return min(number, recipe.evaluate.limit)
