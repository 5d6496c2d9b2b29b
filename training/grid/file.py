"""A grid file: what all runs have in common, and which are wanted. See :mod:`training.grid`."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from memprobe.errors import MemprobeError, among, there_are
from memprobe.files import read_toml
from training.recipe import Recipe
from training.settings import Name, Settings, check_kind, validated

Scalar = int | float | str
Redraw = Literal["nothing", "later", "all"]


MOST = 10_000
"""Cells of a block: no study has so many, and to plan a million takes hours."""
MOST_STAGES = 3
"""Of a chain: what is told of a cell (D_A, D_B and D_C) knows no more."""


_SAID_BY_BLOCKS = ("seed", "arm", "stages", "later", "joint")


class Block(Settings):
    """Cells that belong together: chains of stages × axes × seeds × arms.

    Attributes:
        name: of the block, as ``--block`` takes it.
        like: a block before this one, which has what this one does not say, such as more seeds of the same.
        stages: chains of two or three names of the grid's ``data``; they and arms may be those of ``like``.
        arms: names of the grid's ``arms``.
        seeds: one run for each.
        axes: by name, what ``{name}`` stands for; an axis that a cell does not use does not multiply it.
        keep, redraw: instead of the grid's.
    """

    name: Name
    like: str | None = None
    stages: tuple[tuple[str, ...], ...] = Field(min_length=1)
    arms: tuple[str, ...] = Field(min_length=1)
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    axes: dict[Name, Annotated[tuple[Scalar, ...], Field(min_length=1)]] = Field(default_factory=dict)
    keep: Literal["records", "weights"] | None = None
    redraw: Redraw | None = None


class Grid(Settings):
    """A grid file.

    Attributes:
        recipe: keys of a recipe that all cells share.
        data: a recipe's stage, by name.
        arms: an arm's text, by name.
        blocks: in order of priority.
        keep: what stays of a finished cell: its probe and evaluations, or its weights too.
        redraw: what a seed draws beside the order of rows and everything in training: ``nothing``, so that all seeds
            learn the same rows; ``later``, the rows of later stages and all mixing rows, while D_A is the same for all
            seeds and can be probed as one; or ``all``, D_A too (only where nothing is probed).
        after: ``module:function``, called with a finished cell's run directory before its weights go.
        probe: probe the stages of each cell; a study of retention alone does without.
        probe_n: of so many of D_A's factoids, a seeded subset (default: all of them). Records grow with it, while what
            is kept is evaluated on all rows.
        base_readout: also probe with the base model's unembedding.
        launch: for stages that several processes train, what stands before ``-m training run …``, such as
            ``torchrun --standalone --nproc-per-node 4``; default: this process trains them.
    """

    recipe: dict[str, Any]
    data: dict[Name, dict[str, Any]]
    arms: dict[Name, str]
    blocks: tuple[Block, ...] = Field(min_length=1)
    keep: Literal["records", "weights"] = "records"
    redraw: Redraw = "nothing"
    after: str | None = None
    probe: bool = True
    probe_n: int | None = Field(None, ge=1)
    base_readout: bool = True
    launch: str | None = Field(None, min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _blocks_as_they_are_meant(cls, value: dict[str, Any]) -> dict[str, Any]:
        """Blocks that are like others have all keys."""
        blocks = value.get("blocks")
        if not isinstance(blocks, list):
            return value
        whole: dict[str, Any] = {}
        filled = []
        for number, block in enumerate(blocks, start=1):
            if isinstance(block, dict):
                like = block.get("like")
                if isinstance(like, str) and like not in whole:
                    known = there_are(like, whole, before="before it there are")
                    raise ValueError(f"blocks.{number}.like: no block {like!r}; {known}")
                block = (whole[like] if isinstance(like, str) else {}) | block
                whole[str(block.get("name"))] = block
            filled.append(block)
        return value | {"blocks": filled}


def read_grid(path: Path) -> Grid:
    """A validated grid file.

    Raises:
        MemprobeError: with the file, the key and what is wrong with it.
    """
    data = read_toml(path)
    check_kind(data, path, "grid")
    grid = validated(Grid, data, str(path))
    for key in grid.recipe:
        if key in _SAID_BY_BLOCKS:
            raise MemprobeError(f"{path}: recipe.{key}: the grid says this in its blocks; leave it out")
        if key not in (known := [name for name in Recipe.model_fields if name not in _SAID_BY_BLOCKS]):
            raise MemprobeError(f"{path}: recipe.{key}: unknown key; {among(key, known, before='there are')}")
    for block in grid.blocks:
        for place, names in (("stages", itertools.chain(*block.stages)), ("arms", block.arms)):
            known = grid.data if place == "stages" else grid.arms
            if unknown := [name for name in names if name not in known]:
                table = "data" if place == "stages" else "arms"
                raise MemprobeError(
                    f"{path}: block {block.name}: {place}: no {unknown[0]!r} in [{table}]; "
                    f"{there_are(unknown[0], known, before='it has')}"
                )
        if odd := [chain for chain in block.stages if not 2 <= len(chain) <= MOST_STAGES]:
            raise MemprobeError(
                f"{path}: block {block.name}: stages: {list(odd[0])} is no chain of two or three"
            )
        sizes = (block.stages, block.seeds, block.arms, *block.axes.values())
        if (wanted := math.prod(map(len, sizes))) > MOST:
            raise MemprobeError(f"{path}: block {block.name}: asks for {wanted:,} cells, at most {MOST:,}")
        if "all" in (grid.redraw, block.redraw) and (block.redraw or "all") == "all" and grid.probe:
            raise MemprobeError(
                f"{path}: block {block.name}: redraw = 'all' gives each seed a D_A of its own, and a probe holds one; "
                "use 'later', or probe = false"
            )
    names = [block.name for block in grid.blocks]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise MemprobeError(f"{path}: two blocks are called {repeated[0]!r}")
    return grid
