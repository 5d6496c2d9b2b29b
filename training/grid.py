"""A grid: many runs that share their first stages, in order of priority, on one machine or on several.

A grid file says what all runs have in common, and which are wanted::

    keep = "records"                      # or "weights"
    [recipe]                              # every key of a recipe but seed, arm and stages
    base = "smollm2-135m"
    [data.kvr]                            # a stage of a recipe, by name
    data = "kvr:{n}"
    [arms]
    naive = "none"
    [[blocks]]                            # the first block is complete before the second begins
    name = "kvr-lama"
    stages = [["kvr", "lama"]]            # each a chain of two or three names in [data]
    arms = ["naive"]
    seeds = [0, 1, 2]
    axes = { n = [64] }                   # what {n} stands for, anywhere in [recipe], [data] and [arms]

Each distinct prefix of stages is trained once::

    OUT/grid.toml  log.txt
    OUT/runs/SETUP/ARM-sSEED/             a run directory; earlier stages are links to the run that they come from
        cell.json                         how it ended, and what it cost
    OUT/probes/SETUP/own/                 a probe directory: the base model and every cell's stages, on D_A
    OUT/probes/SETUP/base-readout/        the same read with the base model's unembedding

SETUP names the data and the axes that they depend on, ``kvr-lama-n64``. Killed at any moment, the same command
goes on. Processes that share OUT share the work: each takes the first cell that no other is at. Weights go as soon
as nothing needs them, except where ``keep`` says so.
"""

from __future__ import annotations

import importlib
import itertools
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from memprobe.checkpoints import MANIFEST, resolve
from memprobe.errors import MemprobeError
from memprobe.factoids import Factoid
from memprobe.files import read_json, write_json, write_text
from memprobe.studies import CELL, GRID
from training.data import Prepared, parts_of, prepare
from training.measures import shares_learned
from training.mixing import Schedule
from training.recipe import Evaluate, Recipe, parse_recipe, read_toml, to_toml, validated, with_sources
from training.report import Report

if TYPE_CHECKING:
    from memprobe.models import LensModel

LOG = "log.txt"
RECORDS = (MANIFEST, "evaluation.json", "metrics.jsonl", "recipe.toml")
"""Of a stage, what stays when its weights go; so do the rows of its datasets."""

_POLL = 10.0  # seconds between two looks at cells that other processes are training

Scalar = int | float | str


class Block(BaseModel):
    """Cells that belong together: chains of stages × axes × seeds × arms.

    Attributes:
        axes: by name, what ``{name}`` stands for; an axis that a cell does not use does not multiply it.
        keep: instead of the grid's.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    stages: tuple[tuple[str, ...], ...] = Field(min_length=1)
    arms: tuple[str, ...] = Field(min_length=1)
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    axes: dict[str, tuple[Scalar, ...]] = {}
    keep: Literal["records", "weights"] | None = None


class Grid(BaseModel):
    """A grid file.

    Attributes:
        recipe: keys of a recipe that all cells share.
        data: a recipe's stage, by name.
        arms: an arm's text, by name.
        keep: what stays of a finished cell: its probe and evaluations, or its weights too.
        after: ``module:function``, called with a finished cell's run directory before its weights go.
        base_readout: also probe with the base model's unembedding.
        launch: for stages that several processes train, what stands before ``-m training run …``, such as
            ``torchrun --standalone --nproc-per-node 4``; default: this process trains them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    recipe: dict[str, Any]
    data: dict[str, dict[str, Any]]
    arms: dict[str, str]
    blocks: tuple[Block, ...] = Field(min_length=1)
    keep: Literal["records", "weights"] = "records"
    after: str | None = None
    base_readout: bool = True
    launch: str | None = Field(None, min_length=1)


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


class _Taken(Exception):
    """Another process trains this stage or cell."""


@dataclass(frozen=True)
class Cell:
    """A wanted run: a node, the block that wants it, and its place on the axes."""

    node: Node
    block: str
    keep: str
    axes: Mapping[str, Scalar] = field(default_factory=dict)


def stage_directory(recipe: Recipe, number: int) -> str:
    """``2-lama``, as in a run directory."""
    return f"{number}-joint" if recipe.joint else f"{number}-{recipe.stages[number - 1].name}"


# ------------------------------------------------------------------------------------------- reading


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


def cells_of(grid: Grid, path: Path) -> list[Cell]:
    """Every cell in order of priority, each once, with the nodes that they share.

    Args:
        path: of the grid file; names of files are looked for beside it.

    Raises:
        MemprobeError: a cell's recipe is not valid, or two that differ have one name.
    """
    nodes: dict[str, Node] = {}
    cells: dict[str, Cell] = {}
    for block in grid.blocks:
        keep = block.keep or grid.keep
        for chain in block.stages:
            for values in itertools.product(*block.axes.values()):
                axes = dict(zip(block.axes, values, strict=True))
                for seed, arm in itertools.product(block.seeds, block.arms):
                    node, used = _node(grid, path, block, chain, axes, seed, arm, nodes)
                    cells.setdefault(node.name, Cell(node, block.name, keep, used))
    return list(cells.values())


def _node(
    grid: Grid,
    path: Path,
    block: Block,
    chain: Sequence[str],
    axes: Mapping[str, Scalar],
    seed: int,
    arm: str,
    nodes: dict[str, Node],
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
    recipe = parse_recipe({"data_seed": 0, **common, "seed": seed, "arm": text, "stages": stages}, where)
    recipe = with_sources(recipe, path)
    suffixes = [_suffix(one) for one in marks]
    return _shared(recipe, arm + _suffix(in_arm), suffixes, nodes, where), marks[-1] | in_arm


def _shared(recipe: Recipe, arm: str, suffixes: list[str], nodes: dict[str, Node], where: str) -> Node:
    """The node that trains this recipe's last stage; the same recipe is the same node, whoever wants it.

    Args:
        suffixes: of the name of the data of the first 0, 1, 2, … stages.
    """
    key = to_toml(recipe)
    if key in nodes:
        return nodes[key]
    parent = None
    if not recipe.joint and len(recipe.stages) > 1:
        shorter = recipe.model_copy(update={"stages": recipe.stages[:-1]})
        parent = _shared(shorter.model_copy(update={"arm": shorter.arm_name}), arm, suffixes, nodes, where)
    setup = "-".join(stage.name for stage in recipe.stages) + suffixes[len(recipe.stages)]
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


def deal(cells: Sequence[Cell], shard: int, shards: int) -> list[Cell]:
    """The cells of one of ``shards`` machines (counted from 1), in order.

    Cells that share stages stay together, so that machines need nothing of each other; each such group goes
    to the machine that has the fewest stages to train so far.
    """
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.node.chain[0].name, []).append(cell)
    loads = [0] * shards
    mine: set[str] = set()
    for group in groups.values():
        machine = loads.index(min(loads))
        loads[machine] += len({node.name for cell in group for node in cell.node.chain})
        if machine == shard - 1:
            mine |= {cell.node.name for cell in group}
    return [cell for cell in cells if cell.node.name in mine]


# ------------------------------------------------------------------------------------------- running


def run_grid(
    grid: Grid,
    path: Path,
    out: Path,
    *,
    shard: tuple[int, int] = (1, 1),
    data_dir: Path | None = None,
    quiet: bool = False,
) -> list[str]:
    """Trains, probes and evaluates every cell that is not there yet.

    Several processes may do this in one ``out``; each returns when all cells are done.

    Args:
        path: of the grid file.
        shard: (i, n): only the i-th of n parts.

    Returns:
        One line for each cell that could not be trained; the others are there.

    Raises:
        MemprobeError: bad input before anything is trained, or a directory that cannot be written.
    """
    cells = cells_of(grid, path)
    mine = deal(cells, *shard)
    after = _function(grid.after, path) if grid.after else None
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_text(path.read_text(encoding="utf-8"), out / GRID)
    except OSError as error:
        raise MemprobeError(f"{out}: cannot be written ({error.strerror})") from error
    report = Report(out / LOG, quiet=quiet)
    part = f", part {shard[0]} of {shard[1]}" if shard[1] > 1 else ""
    done = sum(_is_done(out, cell) for cell in mine)
    report.say(f"{out}: {len(mine)} cells{part}, {done} done before")
    broken: dict[str, str] = {}
    waiting = False
    while left := [cell for cell in mine if not _is_done(out, cell) and cell.node.name not in broken]:
        for cell in left:
            try:
                with _claim(out, cell.node):
                    if not _is_done(out, cell):  # by another process, since the list was made
                        place = f"[{mine.index(cell) + 1}/{len(mine)}]"
                        report.say(f"{place} {cell.node.name}: {cell.node.recipe.arm_name}")
                        _finish_cell(grid, cell, out, after, report, data_dir=data_dir, quiet=quiet)
            except _Taken:
                continue
            except MemprobeError as error:
                broken[cell.node.name] = f"{cell.node.name}: {error}"
                report.say(f"{cell.node.name}: {error}")
            waiting = False
            _drop_weights(mine, out)
            break  # the first cell that is free now may be one that was not
        else:
            if not waiting:
                report.say(f"{len(left)} cells are being trained by other processes; waiting for them")
            waiting = True
            time.sleep(_POLL)
    _drop_weights(mine, out)
    report.say(
        f"{out}: {len(mine) - len(broken)} of {len(mine)} cells are done; python -m training report {out}"
    )
    return list(broken.values())


@contextmanager
def _claim(out: Path, node: Node) -> Iterator[None]:
    """Holds a stage for this process; the system gives it up when the process ends, however it ends.

    Raises:
        _Taken: another process holds it.
    """
    from filelock import FileLock, Timeout

    path = out / ".claims" / f"{node.name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise _Taken from error
    try:
        yield
    finally:
        lock.release()


def directory(out: Path, node: Node) -> Path:
    """A node's run directory."""
    return out / "runs" / node.name


def _is_done(out: Path, cell: Cell) -> bool:
    return (directory(out, cell.node) / CELL).exists()


def _finish_cell(
    grid: Grid,
    cell: Cell,
    out: Path,
    after: Callable[[Path], object] | None,
    report: Report,
    *,
    data_dir: Path | None,
    quiet: bool,
) -> None:
    """Trains the nodes of a cell that are missing, probes its stages, and says how it ended.

    Raises:
        _Taken: another process trains one of its earlier stages.
    """
    *before, last = cell.node.chain
    for node in before:
        if not _is_trained(out, node):
            with _claim(out, node):
                _train(grid, node, out, report, data_dir=data_dir, quiet=quiet)
    prepared = _train(grid, last, out, report, data_dir=data_dir, quiet=quiet)
    seconds = _probe(grid, cell, out, prepared, report)
    folder = directory(out, cell.node)
    if after is not None:
        after(folder)
    ended = _outcome(cell, out) | {"seconds_probed": seconds}
    write_json(ended, folder / CELL)
    report.say(f"{cell.node.name}: {'learned' if ended['learned'] else 'FAILED: ' + ended['why']}")


def _train(
    grid: Grid, node: Node, out: Path, report: Report, *, data_dir: Path | None, quiet: bool
) -> Prepared:
    """Trains one stage, unless it is there; the rows of the run."""
    from filelock import FileLock

    from training.run import run

    folder = directory(out, node)
    folder.mkdir(parents=True, exist_ok=True)
    if node.parent is not None:
        _link_stages(directory(out, node.parent), folder)
    # What the base model knows is asked once for the whole grid, by one process at a time.
    with FileLock(out / ".asked.lock"):
        prepared = prepare(
            node.recipe,
            folder,
            lambda: _base_model(node.recipe.base),
            data_dir=data_dir,
            say=report.say,
            asked=out / ".asked",
        )
    if not _is_trained(out, node):
        if grid.launch:
            _launch(grid.launch, node, out, data_dir=data_dir, quiet=quiet)
        else:
            run(node.recipe, folder, data_dir=data_dir, quiet=quiet, asked=out / ".asked")
    return prepared


def _launch(launch: str, node: Node, out: Path, *, data_dir: Path | None, quiet: bool) -> None:
    """Trains a stage in processes of its own.

    Raises:
        MemprobeError: they cannot be started, or end with an error.
    """
    folder = directory(out, node)
    recipe = folder / ".recipe.toml"
    write_text(to_toml(node.recipe), recipe)
    command = [*shlex.split(launch), "-m", "training", "run", str(recipe)]
    command += ["--out", str(folder), "--asked", str(out / ".asked")]
    command += ["--data-dir", str(data_dir)] if data_dir is not None else []
    try:
        ended = subprocess.run(command, stderr=subprocess.DEVNULL if quiet else None, check=False)
    except OSError as error:
        raise MemprobeError(f"launch: {command[0]}: cannot be started ({error.strerror})") from error
    if ended.returncode:
        raise MemprobeError(f"{folder}: {launch} ended with exit code {ended.returncode}; see {folder / LOG}")


def _is_trained(out: Path, node: Node) -> bool:
    return (directory(out, node) / node.stage / MANIFEST).exists()


def _base_model(spec: str) -> LensModel:
    from memprobe.models import load

    return load(spec)


def _link_stages(parent: Path, folder: Path) -> None:
    """Makes a parent run's stages those of this run."""
    for stage in sorted(parent.iterdir()):
        link = folder / stage.name
        if (stage / MANIFEST).exists() and not link.exists():
            link.unlink(missing_ok=True)
            link.symlink_to(os.path.relpath(stage.resolve(), folder.resolve()), target_is_directory=True)


def _probe(grid: Grid, cell: Cell, out: Path, prepared: Prepared, report: Report) -> float:
    """Probes the base model and the cell's stages on D_A; seconds. What the probe has already is kept."""
    from filelock import FileLock

    from memprobe.probing import probe

    factoids = [row for row in prepared.stages[0].rows if isinstance(row, Factoid)]
    if not factoids:
        report.say(f"{cell.node.name}: stage 1 has no factoids to probe")
        return 0.0
    recipe = cell.node.recipe
    intrusions = {
        stage.name: [row for row in data.rows if isinstance(row, Factoid)]
        for stage, data in zip(recipe.stages[1:], prepared.stages[1:], strict=True)
        if stage.kind == "factoids"
    }
    checkpoints = [resolve(f"base={recipe.base}")]
    checkpoints += [resolve(f"{node.label}={directory(out, node) / node.stage}") for node in cell.node.chain]
    began = time.monotonic()
    readouts = {"own": None} | ({"base-readout": recipe.base} if grid.base_readout else {})
    for name, readout in readouts.items():
        folder = out / "probes" / cell.node.setup / name
        folder.parent.mkdir(parents=True, exist_ok=True)
        report.say(f"{cell.node.name}: probing {', '.join(c.label for c in checkpoints)} ({name})")
        with FileLock(folder.parent / f".{name}.lock"):
            probe(
                checkpoints,
                factoids,
                folder,
                template=recipe.template,
                readout=readout,
                intrusions=intrusions,
                origin=prepared.stages[0].origins[0],
            )
    return round(time.monotonic() - began, 1)


def _outcome(cell: Cell, out: Path) -> dict[str, Any]:
    """How a cell ended: whether each factoid stage was learned, and what every stage cost."""
    recipe, problems, stages = cell.node.recipe, [], []
    for node in cell.node.chain:
        folder = directory(out, node)
        manifest = read_json(folder / node.stage / MANIFEST)
        sets = read_json(folder / node.stage / "evaluation.json")["sets"]
        for name, share in shares_learned(recipe, len(node.recipe.stages), sets).items():
            if share < 1:
                problems.append(f"{name} ended at {share:.1%} exact match, not 100 %")
        stages.append(
            {
                "stage": node.stage,
                "run": node.name,
                "label": node.label,
                "steps": manifest["steps"],
                "tokens": manifest["tokens"],
                "seconds": manifest.get("seconds"),  # older runs did not count them
            }
        )
    return {
        "block": cell.block,
        "setup": cell.node.setup,
        "arm": cell.node.arm,
        "seed": recipe.seed,
        "axes": dict(cell.axes),
        "learned": not problems,
        "why": "; ".join(problems),
        "stages": stages,
    }


def _drop_weights(cells: Sequence[Cell], out: Path) -> None:
    """Removes the weights that no cell keeps and none still needs."""
    needed = {
        node.name
        for cell in cells
        if cell.keep == "weights" or not _is_done(out, cell)
        for node in cell.node.chain
    }
    for node in {node.name: node for cell in cells for node in cell.node.chain}.values():
        folder = directory(out, node) / node.stage
        if node.name not in needed and (folder / "config.json").exists():
            for file in folder.iterdir():
                if file.name not in RECORDS and file.suffix != ".jsonl":
                    shutil.rmtree(file) if file.is_dir() else file.unlink()


def _function(spec: str, path: Path) -> Callable[[Path], object]:
    module, _, name = spec.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise MemprobeError(
            f"{path}: after: no function {spec!r} ({error}); write module:function"
        ) from error
    return found


# ------------------------------------------------------------------------------------------- planning


@dataclass(frozen=True)
class Plan:
    """What a grid takes.

    Attributes:
        cells: name, block, whether it is done.
        shared: node -> how many cells start from it.
        tokens: input tokens of all stages that are still to be trained.
        per_second: tokens trained a second, measured on the stages that are there; None while there are none.
        stages: to be trained.
        stage_bytes: of one stage's weights on the disk.
        peak_stages: whose weights lie there at once, at most.
    """

    cells: list[tuple[str, str, bool]]
    shared: dict[str, int]
    tokens: int
    per_second: float | None
    stages: int
    stage_bytes: int
    peak_stages: int


def plan(
    grid: Grid, path: Path, out: Path, *, shard: tuple[int, int] = (1, 1), data_dir: Path | None = None
) -> Plan:
    """What is to be done, and what it takes at the rate of what is done. Loads rows and a tokenizer, no model.

    Tokens are those of the longest course that a stage may take; a stop rule may end it before.
    """
    cells = deal(cells_of(grid, path), *shard)
    nodes = {node.name: node for cell in cells for node in cell.node.chain}
    missing = [node for node in nodes.values() if not _is_trained(out, node)]
    shared = {
        name: count
        for name in nodes
        if (count := sum(name in [node.name for node in cell.node.chain[:-1]] for cell in cells)) > 1
    }
    return Plan(
        [(cell.node.name, cell.block, _is_done(out, cell)) for cell in cells],
        shared,
        _tokens(missing, data_dir),
        _rate(nodes.values(), out),
        len(missing),
        max((_stage_bytes(node) for node in nodes.values()), default=0),
        _peak(cells),
    )


def _tokens(nodes: Sequence[Node], data_dir: Path | None) -> int:
    """Input tokens of the stages, with rows as they come: what the base model knows is not asked."""
    from memprobe.models import load_tokenizer

    counted: dict[str, int] = {}
    tokenizers: dict[str, Any] = {}
    total = 0
    for node in nodes:
        recipe = _last_alone(node.recipe)
        key = to_toml(recipe)
        if key not in counted:
            if recipe.base not in tokenizers:
                tokenizers[recipe.base] = load_tokenizer(resolve(recipe.base))
            try:
                counted[key] = _tokens_of_last(recipe, tokenizers[recipe.base], data_dir)
            except MemprobeError as error:
                raise MemprobeError(f"{node.name}: {error}") from error
        total += counted[key]
    return total


def _last_alone(recipe: Recipe) -> Recipe:
    """Of a recipe, what the tokens of its last stage depend on: equal for cells that differ in all else."""
    stages = recipe.stages if recipe.joint or recipe.stages[-1].replay else recipe.stages[-1:]
    plain = tuple(stage.model_copy(update={"unknown": None}) for stage in stages)
    changed = {"seed": 0, "data_seed": recipe.rows_seed, "evaluate": Evaluate(), "stages": plain}
    return recipe.model_copy(update=changed)


def _tokens_of_last(recipe: Recipe, tokenizer: Any, data_dir: Path | None) -> int:
    import tempfile

    def never() -> LensModel:
        raise AssertionError("nothing is asked")

    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(recipe, Path(folder), never, data_dir=data_dir)
    own, extra, _ = parts_of(recipe, prepared, len(recipe.stages), tokenizer, recipe.max_length)
    stage, batch = recipe.stages[-1], recipe.optimiser.batch
    return Schedule(own, extra, epochs=stage.epochs, batch=batch, seed=0, match=stage.match).tokens


def _rate(nodes: Any, out: Path) -> float | None:
    tokens = seconds = 0.0
    for node in nodes:
        if _is_trained(out, node):
            manifest = read_json(directory(out, node) / node.stage / MANIFEST)
            if manifest.get("seconds"):
                tokens += manifest["tokens"]
                seconds += manifest["seconds"]
    return tokens / seconds if seconds else None


def _stage_bytes(node: Node) -> int:
    """Of the base model's weights; a stage has as many."""
    weights = resolve(node.recipe.base).path
    return sum(file.stat().st_size for file in weights.glob("*.safetensors"))


def _peak(cells: Sequence[Cell]) -> int:
    """The most stages whose weights lie on the disk at once, when cells are done in order."""
    most, there = 0, set()
    for place, cell in enumerate(cells):
        there |= {node.name for node in cell.node.chain}
        most = max(most, len(there))
        there &= {
            node.name
            for position, other in enumerate(cells)
            if position > place or other.keep == "weights"
            for node in other.node.chain
        }
    return most
