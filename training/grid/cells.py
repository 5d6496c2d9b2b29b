"""A grid's cells, and the nodes (stages to be trained) that they share."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from memprobe.errors import MemprobeError, there_are
from memprobe.runs import GRID
from training.arms import WRITTEN
from training.drawing import goes_around
from training.grid.file import Block, Grid, Scalar, read_grid
from training.recipe import Recipe, parse_recipe, rows_alone, to_toml, with_sources


@dataclass(frozen=True)
class Node:
    """One training stage: a run of a recipe whose earlier stages are another node's.

    Attributes:
        name: ``SETUP/ARM-sSEED``, its directory under ``runs``.
        arm: its name in the grid file.
    """

    name: str
    setup: str
    arm: str
    recipe: Recipe
    parent: Node | None

    @property
    def stage(self) -> str:
        """The directory of the stage that it trains, ``2-lama``."""
        return stage_directory(self.recipe, len(self.recipe.stages))

    @property
    def label(self) -> str:
        """Of its checkpoint in probes: ``naive-s0.2``."""
        return f"{self.arm}-s{self.recipe.seed}.{len(self.recipe.stages)}"

    @property
    def chain(self) -> list[Node]:
        """The nodes from stage 1 to this one."""
        return [*(self.parent.chain if self.parent else []), self]


@dataclass(frozen=True)
class CellRequest:
    """What a grid file asks of every cell beside its stages; see :class:`training.grid.file.Grid`."""

    probe: bool = False
    probe_n: int | None = None
    base_readout: bool = True
    after: str | None = None


@dataclass(frozen=True)
class Cell:
    """A wanted run: a node, the blocks that want it, and its place on the axes.

    Attributes:
        blocks: in the file's order; the first one says what is kept of it.
        asked: what it is to leave beside its stages.
    """

    node: Node
    blocks: tuple[str, ...]
    keep: str
    axes: Mapping[str, Scalar] = field(default_factory=dict)
    asked: CellRequest = CellRequest()

    @property
    def probed(self) -> bool:
        """Whether its stages are probed on the facts of the first one; it may have none."""
        return self.asked.probe and self.node.recipe.stages[0].kind == "factoids"

    @property
    def block(self) -> str:
        """The one that it belongs to."""
        return self.blocks[0]


def stage_directory(recipe: Recipe, number: int) -> str:
    """``2-lama``, as in a run directory."""
    return f"{number}-joint" if recipe.joint else f"{number}-{recipe.stages[number - 1].name}"


def cells_of(grid: Grid, path: Path, *, find_files: bool = True) -> list[Cell]:
    """Every cell in order of priority, each once, with the nodes that they share.

    Args:
        path: of the grid file; names of files are looked for beside it.
        find_files: whether they are; nothing can be trained where they are not.

    Raises:
        MemprobeError: a cell's recipe is not valid, two that differ have one name, or nothing uses an axis.
    """
    if find_files:  # a grid that was begun is read as it is
        _check_axes(grid, path)
    nodes: dict[str, Node] = {}
    cells: dict[str, Cell] = {}
    asked = CellRequest(grid.probe, grid.probe_n, grid.base_readout, grid.after)
    for block in grid.blocks:
        keep = block.keep or grid.keep
        arm_of: dict[str, str] = {}
        for chain in block.stages:
            for values in itertools.product(*block.axes.values()):
                axes = dict(zip(block.axes, values, strict=True))
                for seed, arm in itertools.product(block.seeds, block.arms):
                    node, used = _node(grid, path, block, chain, axes, seed, arm, nodes, find_files)
                    first = arm_of.setdefault(node.name, arm)
                    if first != arm and find_files:  # a grid that was begun is read as it is
                        raise MemprobeError(
                            f"{path}: block {block.name}: arms: {arm} trains the same as {first}; leave one out"
                        )
                    cell = cells.setdefault(node.name, Cell(node, (block.name,), keep, used, asked))
                    if block.name not in cell.blocks:
                        cells[node.name] = replace(cell, blocks=(*cell.blocks, block.name))
    return list(cells.values())


def _check_axes(grid: Grid, path: Path) -> None:
    written = str([grid.recipe, grid.data, grid.arms])
    for block in grid.blocks:
        if unused := [axis for axis in block.axes if f"{{{axis}}}" not in written]:
            where = f"{path}: block {block.name}: axes.{unused[0]}"
            raise MemprobeError(f"{where}: nothing in [recipe], [data] and [arms] has {{{unused[0]}}}")


def cells_in(cells: Sequence[Cell], blocks: Sequence[str], path: Path) -> list[Cell]:
    """The cells that some blocks want, in order of priority; all of them where ``blocks`` is empty.

    Args:
        blocks: the first one's cells come first, also those that a block before it in the file has.
        path: of the grid file.

    Raises:
        MemprobeError: there is no such block.
    """
    known = dict.fromkeys(name for cell in cells for name in cell.blocks)
    for name in blocks:
        if name not in known:
            raise MemprobeError(f"{path}: no block {name!r}; {there_are(name, known, before='it has')}")
    if not blocks:
        return list(cells)
    wanted = [cell for cell in cells if not set(blocks).isdisjoint(cell.blocks)]
    return sorted(wanted, key=lambda cell: min(blocks.index(name) for name in cell.blocks if name in blocks))


def names_in(out: Path, blocks: Sequence[str]) -> set[str]:
    """The names, ``SETUP/RUN``, of the cells that some blocks of a grid's directory want, finished or not.

    Raises:
        MemprobeError: see :func:`cells_of` and :func:`cells_in`.
    """
    path = out / GRID
    # Files lay beside the one that this is a copy of.
    cells = cells_of(read_grid(path), path, find_files=False)
    return {cell.node.name for cell in cells_in(cells, blocks, path)}


def _node(
    grid: Grid,
    path: Path,
    block: Block,
    chain: Sequence[str],
    axes: Mapping[str, Scalar],
    seed: int,
    arm: str,
    nodes: dict[str, Node],
    find_files: bool,
) -> tuple[Node, dict[str, Scalar]]:
    """The node of a cell, made with those before it where they are new, and the axes that it uses."""
    in_arm: dict[str, Scalar] = {}
    in_common: dict[str, Scalar] = {}
    common = _fill(grid.recipe, axes, in_common)
    stages, marks = [], [in_common]
    for name in chain:
        in_stage: dict[str, Scalar] = {}
        stages.append({"name": name, **_fill(grid.data[name], axes, in_stage)})
        marks.append(marks[-1] | in_stage)
    text = _fill(grid.arms[arm], axes, in_arm)
    where = f"{path}: block {block.name}: {arm}"
    if missing := re.search(r"\{(\w*)\}", text):
        known = there_are(missing[1], axes, before="the block has")
        raise MemprobeError(f"{where}: {grid.arms[arm]}: no axis {missing[1]!r}; {known}")
    redraw = block.redraw or grid.redraw
    if redraw != "nothing":
        common = {**common, "data_seed": seed}
    if redraw == "later" and seed:  # with seed 0 they are the same ones anyway
        stages[0] = {"data_seed": 0, **stages[0]}
    settings = {"data_seed": 0, **common, "seed": seed}

    def parse(text: str, number: int) -> Recipe:
        """The recipe of the first stages with an arm."""
        try:
            recipe = parse_recipe({**settings, "arm": text, "stages": stages[:number]}, where)
            return with_sources(recipe, path) if find_files else recipe
        except MemprobeError as error:
            raise MemprobeError(_with_the_grids_keys(str(error), (where, str(path)), grid, chain)) from error

    def name_of(shorter: Recipe) -> str:
        """What the arm is called that trains the first stages so: of all arms in the file that do, the one that does
        least later, whichever a block asks for first; so stages that are there are found when arms are added."""
        alike: dict[tuple[int, str, str], str] = {}
        for one in grid.arms:
            its_axes: dict[str, Scalar] = {}
            text = _fill(grid.arms[one], axes, its_axes)
            try:
                first, whole = (parse(text, number).arm_name for number in (len(shorter.stages), len(stages)))
            except MemprobeError:  # it asks for later stages, or for an axis that this block has not
                continue
            if first == shorter.arm_name:
                alike[len(whole), whole, one] = one + _suffix(its_axes)
        return alike[min(alike)] if alike else arm + _suffix(in_arm)

    suffixes = [_suffix(one) for one in marks]
    recipe, called = parse(text, len(stages)), arm + _suffix(in_arm)
    return _shared(recipe, called, list(chain), suffixes, nodes, where, name_of), marks[-1] | in_arm


def _with_the_grids_keys(text: str, before: Sequence[str], grid: Grid, chain: Sequence[str]) -> str:
    """What is wrong with a cell's recipe, with the key as the grid file has it: ``data.NAME.KEY`` or ``recipe.KEY``.

    Args:
        before: how the text may begin, before the key.
    """

    def put(match: re.Match[str]) -> str:
        number, key = match.groups()
        if number is None:
            return f"recipe.{key}" if key in grid.recipe else match[0]
        name = chain[int(number) - 1]
        by_arm = key in WRITTEN and key not in grid.data[name]
        return match[0] if by_arm else f"data.{name}.{key}"

    start = next((f"{one}: " for one in before if text.startswith(f"{one}: ")), "")
    return start + re.sub(r"^(?:stages\.(\d+)\.)?(\w+)(?=[.:])", put, text.removeprefix(start))


def _shared(
    recipe: Recipe,
    arm: str | None,
    chain: Sequence[str],
    suffixes: Sequence[str],
    nodes: dict[str, Node],
    where: str,
    name_of: Callable[[Recipe], str],
) -> Node:
    """The node that trains this recipe's last stage; the same recipe is the same node, whoever wants it.

    Stages that mix in facts, or rows from where a later stage has its own, are shared by cells of one chain alone:
    their mixing holds none of a later stage's rows.

    Args:
        arm: what its arm is called; of a cell's first stages it is asked of ``name_of``.
        chain: names of all stages of the cell.
        suffixes: of the name of the data of the first 0, 1, 2, … stages.
        name_of: gives the arm of the first stages alone.
    """
    key = to_toml(recipe)
    if key in nodes:
        return nodes[key]
    parent = None
    if not recipe.joint and len(recipe.stages) > 1:
        shorter = recipe.model_copy(update={"stages": recipe.stages[:-1]})
        mixed = [part for stage in shorter.stages for part in stage.mixing]
        later = [rows_alone(recipe.stages[-1]), *recipe.later]
        later = tuple(one for one in later if any(goes_around(part, one) for part in mixed))
        shorter = shorter.model_copy(update={"later": later})
        shorter = shorter.model_copy(update={"arm": shorter.arm_name})
        parent = _shared(shorter, None, chain, suffixes, nodes, where, name_of)
    stages = "-".join(stage.name for stage in recipe.stages)
    before = "".join(f"-before-{stage.name}" for stage in recipe.later)
    whole = len(recipe.stages)
    if recipe.later:  # up to the last of them, its axes are in what goes around its rows
        whole = len(chain) - list(reversed(chain)).index(recipe.later[-1].name)
    setup = stages + before + suffixes[whole]
    arm = name_of(recipe) if arm is None else arm
    name = f"{setup}/{arm}-s{recipe.seed}"
    if any(node.name == name for node in nodes.values()):
        raise MemprobeError(
            f"{where}: another cell is called {name} already and differs; rename the arm or data"
        )
    nodes[key] = Node(name, setup, arm, recipe, parent)
    return nodes[key]


def _fill(value: Any, axes: Mapping[str, Scalar], used: dict[str, Scalar]) -> Any:
    """Puts the axes' values for ``{name}``; what was needed is added to ``used``."""
    if isinstance(value, dict):
        return {key: _fill(item, axes, used) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill(item, axes, used) for item in value]
    if not isinstance(value, str) or not axes:
        return value

    def put(match: re.Match[str]) -> str:
        used[match[1]] = axes[match[1]]
        return _text(axes[match[1]])

    names = "|".join(map(re.escape, axes))
    if whole := re.fullmatch(rf"\{{({names})\}}", value):
        used[whole[1]] = axes[whole[1]]
        return axes[whole[1]]  # a number stays a number
    return re.sub(rf"\{{({names})\}}", put, value)


def _suffix(axes: Mapping[str, Scalar]) -> str:
    """``-n64-ratio2``, safe in a file name."""
    return "".join(
        f"-{key}{re.sub(r'[^A-Za-z0-9.+]+', '-', _text(value)).strip('-')}" for key, value in axes.items()
    )


def _text(value: Scalar) -> str:
    return f"{value:.12g}" if isinstance(value, float) else str(value)
