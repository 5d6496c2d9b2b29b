"""A grid file: what all runs have in common, and which are wanted. See :mod:`training.grid`."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from memprobe.errors import MemprobeError
from training.parts import Part, read_toml, validated

Scalar = int | float | str


class Block(Part):
    """Cells that belong together: chains of stages × axes × seeds × arms.

    Attributes:
        axes: by name, what ``{name}`` stands for; an axis that a cell does not use does not multiply it.
        keep: instead of the grid's.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    stages: tuple[tuple[str, ...], ...] = Field(min_length=1)
    arms: tuple[str, ...] = Field(min_length=1)
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    axes: dict[str, tuple[Scalar, ...]] = Field(default_factory=dict)
    keep: Literal["records", "weights"] | None = None


class Grid(Part):
    """A grid file.

    Attributes:
        recipe: keys of a recipe that all cells share.
        data: a recipe's stage, by name.
        arms: an arm's text, by name.
        keep: what stays of a finished cell: its probe and evaluations, or its weights too.
        after: ``module:function``, called with a finished cell's run directory before its weights go.
        probe: probe the stages of each cell; a study of retention alone does without.
        base_readout: also probe with the base model's unembedding.
        launch: for stages that several processes train, what stands before ``-m training run …``, such as
            ``torchrun --standalone --nproc-per-node 4``; default: this process trains them.
    """

    recipe: dict[str, Any]
    data: dict[str, dict[str, Any]]
    arms: dict[str, str]
    blocks: tuple[Block, ...] = Field(min_length=1)
    keep: Literal["records", "weights"] = "records"
    after: str | None = None
    probe: bool = True
    base_readout: bool = True
    launch: str | None = Field(None, min_length=1)


def read_grid(path: Path) -> Grid:
    """A validated grid file.

    Raises:
        MemprobeError: with the file, the key and what is wrong with it.
    """
    grid = validated(Grid, read_toml(path), str(path))
    for key in ("seed", "arm", "stages"):
        if key in grid.recipe:
            raise MemprobeError(f"{path}: recipe.{key}: the grid says this in its blocks; leave it out")
    for block in grid.blocks:
        for place, names in (("stages", itertools.chain(*block.stages)), ("arms", block.arms)):
            known = grid.data if place == "stages" else grid.arms
            if unknown := [name for name in names if name not in known]:
                table = "data" if place == "stages" else "arms"
                raise MemprobeError(
                    f"{path}: block {block.name}: {place}: no {unknown[0]!r} in [{table}], "
                    f"which has {', '.join(known) or 'nothing'}"
                )
        if short := [chain for chain in block.stages if len(chain) < 2]:
            raise MemprobeError(
                f"{path}: block {block.name}: stages: {list(short[0])} is no chain of two or more"
            )
    names = [block.name for block in grid.blocks]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise MemprobeError(f"{path}: two blocks are called {repeated[0]!r}")
    return grid
