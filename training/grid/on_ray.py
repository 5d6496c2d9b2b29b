"""A grid on a Ray cluster: every stage is a task that waits for the stage before it.

    what stages ask of the base model, one task after another        Ray places, tries again, and shows them
        └──> stage 1 of a prefix ──> stage 2 of a cell, then its probe
                                         └─ this process joins the probe, says how the cell ended, drops weights

A task takes the resources that its recipe names; ``launch`` starts its processes within it. All nodes reach the grid's
directory, or a storage that has its stages (:mod:`training.grid.elsewhere`). A task that is lost with its node is run
again on another and goes on from its last state; one that fails three times is named, with the cells that wait for it,
and the others go on.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from memprobe.cluster import Engine, all_done, connect, no_room, some_done, while_connected
from memprobe.engine import TRIES, cause_of
from memprobe.errors import MemprobeError, first_line
from memprobe.recipes import RUN_ONLY
from memprobe.runs import CELL
from memprobe.sizes import parse_size
from memprobe.storage import absolute, stand_in, storage_at
from training.directories import LOG
from training.drawing import mixes_facts
from training.grid.cells import Cell, Node, cells_in, cells_of
from training.grid.elsewhere import Home, Shared, on_node
from training.grid.file import Grid
from training.grid.probing import has_base, join_cell, probe_cell
from training.grid.stages import ask_ahead, is_done, lacking, rows_of, train
from training.grid.work import after_of, end_cell, look_at, started, unforeseen
from training.grid.workplace import Workplace
from training.recipe_tables import Precision, Resources
from training.run_log import RunLog


@dataclass(frozen=True)
class _Work:
    """What every task is told."""

    grid: Grid
    path: Path
    out: Path
    data_dir: Path | None
    where: str
    storage: str | None = None

    def place(self) -> Workplace:
        """What a task's process works with; it says nothing: the process that hands out the tasks tells of them."""
        return Workplace(self.grid, self.out, RunLog(None, quiet=True), self.data_dir, quiet=True)

    def stage(self, node: Node, cell: Cell | None, with_base: bool, *_before: None) -> float:
        """Trains a stage whose weights are not there, and probes the cell that ends with it; seconds of the probe."""
        after = after_of(self.grid, self.path)
        place = self.place()
        prepared = train(place, node)
        return 0.0 if cell is None else look_at(place, cell, prepared, after, with_base=with_base)

    def ask(self, node: Node, *_before: None) -> float:
        """Asks what a stage asks of the base model and of the machine; what goes wrong, the stage will say."""
        with suppress(Exception):
            ask_ahead(self.place(), node)
        return 0.0

    def base(self, cell: Cell) -> float:
        """Probes the base model alone, as it would be beside a cell."""
        place = self.place()
        return probe_cell(place, cell, {}, rows_of(place, cell.node), with_base=True)


def run_on_ray(
    grid: Grid,
    path: Path,
    out: Path,
    *,
    engine: Engine,
    blocks: Sequence[str] = (),
    data_dir: Path | None = None,
    quiet: bool = False,
) -> list[str]:
    """Trains, probes and evaluates every cell that is not there yet, on a cluster.

    Args:
        path: of the grid file.
        out: the grid's directory, which all nodes reach.
        blocks: see :func:`training.grid.run_grid`.

    Returns:
        One line for each cell that could not be trained; the others are there.

    Raises:
        MemprobeError: bad input before anything is trained, a directory in use or that cannot be written, no such
            storage, or no cluster.
    """
    out = out.resolve()
    data_dir = None if data_dir is None else data_dir.resolve()
    cells = cells_of(grid, path)
    wanted = cells_in(cells, blocks, path)
    after_of(grid, path)
    storage = None if engine.storage is None else absolute(engine.storage)
    if storage is not None:
        storage_at(storage)
    with started(cells, path, out, data_dir):
        report = RunLog(out / LOG, quiet=quiet)
        ray, own = connect(engine.address, report.say)
        try:
            work = _Work(grid, path.resolve(), out, data_dir, str(Path.cwd()), storage)
            with while_connected(engine.address):
                return _Tasks(ray, engine, work, cells, report).run(wanted)
        finally:
            if own:
                ray.shutdown()


class _Tasks:
    """The tasks of a grid: handed to Ray at once, ended here as they come back."""

    def __init__(self, ray: Any, engine: Engine, work: _Work, cells: Sequence[Cell], report: RunLog):
        self.ray, self.engine, self.work, self.cells, self.report = ray, engine, work, cells, report
        self.work_ref = ray.put(work)
        self.gpus = any(node["Resources"].get("GPU") for node in ray.nodes() if node["Alive"])
        self.stages: dict[str, Any] = {}  # by the name of a node
        self.asked: dict[str, Any] = {}  # by what is asked
        self.broken: dict[str, str] = {}
        self.said: set[str] = set()  # of what no node has
        self.home = Shared(work.out) if work.storage is None else Home(work.storage, work.out)

    def run(self, wanted: Sequence[Cell]) -> list[str]:
        """Until every wanted cell has ended or broken; stages from which others start keep their weights."""
        out = self.work.out
        remaining = [cell for cell in wanted if not is_done(out, cell)]
        self.report.say(f"{out}: {len(wanted)} cells, {len(wanted) - len(remaining)} done before; on Ray")
        self.home.begin(self.cells)
        ends = {node.name: cell for cell in remaining for node in [cell.node]}
        with_base = self._with_base(remaining)
        running = {self._submit(cell.node, ends, with_base): cell for cell in remaining}
        try:
            while running:
                for ref in some_done(self.ray, running):
                    self._end(running.pop(ref), ref)
                    self.home.drop(self.cells)
        except BaseException:
            for ref in [*self.asked.values(), *self.stages.values()]:
                self.ray.cancel(ref, force=True)
            raise
        self._missing_bases()
        self.home.drop(self.cells)
        done = sum(is_done(out, cell) for cell in wanted)
        self.report.say(
            f"{out}: {done} of {len(wanted)} cells are done; python -m training report {shlex.quote(str(out))}"
        )
        return list(self.broken.values())

    def _with_base(self, left: Sequence[Cell]) -> set[str]:
        """The cells beside which a set-up's base model is probed: its first."""
        first: dict[str, str] = {}
        for cell in left:
            if not has_base(self.work.out, cell.node.setup):
                first.setdefault(cell.node.setup, cell.node.name)
        return set(first.values())

    def _submit(self, node: Node, ends: dict[str, Cell], with_base: set[str]) -> Any:
        """The task of a stage, after those of the stages before it."""
        if node.name not in self.stages:
            earlier = [one for one in node.chain[:-1] if not self.home.is_ready(one)]
            before = [self._submit(one, ends, with_base) for one in earlier] + [self._ask(node)]
            self.stages[node.name] = self._task(node, "stage", f"{node.name} {node.stage}").remote(
                self.work_ref, "stage", node, ends.get(node.name), node.name in with_base, *before
            )
        return self.stages[node.name]

    def _ask(self, node: Node) -> Any:
        """The task that asks what a stage asks, after all others that ask.

        Stages that begin beside each other would ask the same at once, and a lock between them holds only where the
        nodes' file system has such locks.
        """
        question = _question(node)
        if question not in self.asked:
            before = list(self.asked.values())[-1:]
            self.asked[question] = self._task(node, "ask", node.name).remote(
                self.work_ref, "ask", node, *before
            )
        return self.asked[question]

    def _task(self, node: Node, method: str, name: str) -> Any:
        asked = node.recipe.resources or Resources()
        gpus = asked.gpus if asked.gpus is not None else float(self.gpus)
        options = {
            "num_cpus": asked.cpus,
            "num_gpus": gpus,
            "max_retries": TRIES - 1,
            "retry_exceptions": True,
        }
        if asked.memory is not None:
            options["memory"] = parse_size(asked.memory)
        if (lacking := no_room(self.ray, options)) and lacking not in self.said:
            self.said.add(lacking)
            self.report.say(f"{node.name}: {lacking}")
        return self.ray.remote(_call).options(
            name=name if method == "stage" else f"{name} {method}", **options
        )

    def _end(self, cell: Cell, ref: Any) -> None:
        name = cell.node.name
        try:
            seconds = self.ray.get(ref)
        except (self.ray.exceptions.RayError, MemprobeError) as error:
            self._breaks(name, f"failed {TRIES} times: {first_line(cause_of(error))}")
            return
        try:
            self.home.take(cell, self.cells)
            end_cell(cell, self.cells, self.work.out, seconds, self.report)
            self.home.joined(cell)
            if not is_done(self.work.out, cell):  # else nothing would say that something is missing
                self._breaks(name, f"ended without {lacking(self.work.out, cell) or CELL}")
        except MemprobeError as error:
            self._breaks(name, str(error))
        except Exception as error:
            self.report.keep_traceback(error)
            self._breaks(name, unforeseen(error, self.work.out))

    def _breaks(self, name: str, why: str) -> None:
        self.broken[name] = f"{name}: {why}"
        self.report.say(self.broken[name])

    def _missing_bases(self) -> None:
        """Probes the base model of set-ups whose first cell broke."""
        out = self.work.out
        open_ = {}
        for cell in self.cells:
            setup = cell.node.setup
            if self.work.grid.probe and is_done(out, cell) and not has_base(out, setup):
                open_.setdefault(setup, cell)
        for cell in open_.values():
            task = self._task(cell.node, "base", cell.node.setup)
            ref = task.remote(self.work_ref, "base", cell)
            all_done(self.ray, [ref])
            try:
                self.ray.get(ref)
                self.home.take(cell, self.cells)
                join_cell(cell, self.cells, out)
                self.home.joined(cell)
            except (self.ray.exceptions.RayError, MemprobeError) as error:
                self._breaks(cell.node.setup, f"the base model is not probed: {first_line(cause_of(error))}")


def _question(node: Node) -> str:
    """What the questions of a stage depend on: all that its recipe says but what is known not to matter.

    Nodes that share a key are asked once; a key too many costs a task that finds its answers there.
    """
    recipe = node.recipe
    of_stage = {"stop", "match", "replay", "penalty", "lora", "train", "checkpoints"}
    if not any(
        mixes_facts(part) for stage in recipe.stages for part in stage.mixing
    ):  # which are not watched
        of_stage |= {"mixing", "epochs"}
    without = {
        **dict.fromkeys(("arm", "seed", "data_seed", "optimiser", *RUN_ONLY), True),
        "precision": set(Precision.model_fields) - {"save_dtype", "autocast"},
        "stages": {"__all__": of_stage},
    }
    return json.dumps([recipe.rows_seed, recipe.model_dump(mode="json", exclude=without)])


def _call(work: _Work, method: str, about: Node | Cell, *arguments: Any) -> float:
    """A task's body."""
    stand_in(work.where)
    if work.storage is None:
        return getattr(work, method)(about, *arguments)
    node = about.node if isinstance(about, Cell) else about
    with on_node(work.storage, node, work.out) as here:
        return getattr(replace(work, out=here), method)(about, *arguments)
