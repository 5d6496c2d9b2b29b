"""Where a grid on Ray has its stages: in its directory, which every node reaches, or in a storage, where nodes share
no folder and results come home.

::

    node      a folder of the task ── pull ──> stages before, rows, the state of an earlier try
                                   <─ push ──  every half minute and at the end: state, stage, probe
    driver    OUT                  ── pull ──> of a cell that ended: records and probe, and weights that it keeps
              drops the weights in the storage that no cell needs
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from memprobe.manifests import MANIFEST
from memprobe.probe_writer import write_run
from memprobe.probes import RUN, read_run
from memprobe.runs import CELL, MATRIX, STATE
from memprobe.storage import Mirror
from training.data import ASKED
from training.grid.cells import Cell, Node
from training.grid.probing import part_of, probe_of_setup
from training.grid.stages import (
    again,
    directory,
    drop_weights,
    has_ended,
    is_ready,
    is_whole,
    link_parent,
    stays,
)
from training.states import COMPLETE


@contextmanager
def on_node(storage: str, node: Node, out: Path) -> Iterator[Path]:
    """A grid's directory for one task of a node, with all that it starts from; what it leaves goes to the storage.

    Args:
        out: the directory that results come home to, which is what they name.
    """
    with tempfile.TemporaryDirectory(prefix="memprobe-grid-") as name:
        here = Path(name)
        mirror = Mirror(storage, here, _last)
        for one in node.chain:
            mirror.pull(_below(directory(here, one), here))
            if not is_whole(here, one):  # of a stage that was not taken to the storage to its end
                shutil.rmtree(directory(here, one) / one.stage, ignore_errors=True)
        made = [
            _below(path, here) for path in (directory(here, node), part_of(here, node), again(here, node))
        ]
        for path in (ASKED, _below(probe_of_setup(here, node.setup) / RUN, here), *made[1:]):
            mirror.pull(path)
        with mirror.pushing(ASKED, *made):
            try:
                yield here
            finally:
                _name_home(part_of(here, node) / RUN, node, out)


class Shared:
    """The driver's side where every node reaches the grid's directory: what tasks leave lies there already."""

    def __init__(self, out: Path):
        self.out = out

    def is_ready(self, node: Node) -> bool:
        """Whether another stage or a probe can go on from a node."""
        return is_ready(self.out, node)

    def begin(self, cells: Sequence[Cell]) -> None:
        """Nodes see by themselves what probes hold."""

    def take(self, cell: Cell, cells: Sequence[Cell]) -> None:
        """Nothing has to come home."""

    def joined(self, cell: Cell) -> None:
        """Nodes see by themselves what a set-up's probe holds."""

    def drop(self, cells: Sequence[Cell]) -> None:
        """Deletes weights that no cell keeps and none still needs."""
        drop_weights(cells, self.out)


class Home(Shared):
    """The same where nodes reach a storage alone: brings what a cell left, and drops weights on both sides."""

    def __init__(self, storage: str, out: Path):
        super().__init__(out)
        self.mirror = Mirror(storage, out, _last)
        self._bare: set[str] = set()  # nodes whose weights are known to be gone there

    def begin(self, cells: Sequence[Cell]) -> None:
        """Tells nodes what the probes here hold: the storage may know of those of a directory that is gone."""
        for setup in dict.fromkeys(cell.node.setup for cell in cells):
            run = probe_of_setup(self.out, setup) / RUN
            if run.exists():
                self.mirror.push(_below(run, self.out))
            else:
                self.mirror.delete(self.mirror.listed(_below(run, self.out)))

    def is_ready(self, node: Node) -> bool:
        """Whether another stage or a probe can go on from a node, as far as is known here."""
        if not has_ended(self.out, node):
            return False
        there = self.mirror.listed(_below(directory(self.out, node) / node.stage, self.out))
        names = {path.rpartition("/")[2] for path in there}
        return "config.json" in names and any(name.endswith(".safetensors") for name in names)

    def take(self, cell: Cell, cells: Sequence[Cell]) -> None:
        """Brings a cell's probe, and its stages without weights that nobody keeps."""
        for node in cell.node.chain:
            folder = directory(self.out, node)
            bare = not any(other.keep == "weights" and node in other.node.chain for other in cells)
            if node is cell.node or not has_ended(self.out, node) or not bare:
                self.mirror.pull(
                    _below(folder, self.out), lambda path, n=node, b=bare: self._comes(path, n, b)
                )
            link_parent(self.out, node, folder)
        self.mirror.pull(_below(part_of(self.out, cell.node), self.out))

    def joined(self, cell: Cell) -> None:
        """Tells nodes what the probe of a cell's set-up holds, so that they do not probe it again."""
        self.mirror.push(_below(probe_of_setup(self.out, cell.node.setup) / RUN, self.out))
        self.mirror.delete(self.mirror.listed(_below(part_of(self.out, cell.node), self.out)))

    def drop(self, cells: Sequence[Cell]) -> None:
        """Deletes weights that no cell keeps and none still needs, here and in the storage."""
        bare = drop_weights(cells, self.out)
        self._bare &= {node.name for node in bare}  # of the others, weights may come again
        for node in bare:
            if node.name in self._bare:
                continue
            there = self.mirror.listed(_below(directory(self.out, node) / node.stage, self.out))
            self.mirror.delete([path for path in there if not stays(Path(path))])
            self._bare.add(node.name)

    def _comes(self, path: str, node: Node, bare: bool) -> bool:
        """Whether a file of a run comes home: no state, and of the stage what is no weights where they are not kept."""
        inside = Path(path).relative_to(_below(directory(self.out, node), self.out))
        if inside.parts[0] == STATE:
            return False
        return not bare or inside.parts[0] != node.stage or stays(inside)


def _last(path: str) -> int:
    """Marks go after what they vouch for: a stage's manifest, a state's mark, a probe's list; then the run's own."""
    name = path.rpartition("/")[2]
    return 2 if name in (MATRIX, CELL) else 1 if name in (MANIFEST, COMPLETE, RUN) else 0


def _below(path: Path, out: Path) -> str:
    return path.relative_to(out).as_posix()


def _name_home(run: Path, node: Node, out: Path) -> None:
    """Makes a probe name its checkpoints where they come home to, not in a folder that goes with its task."""
    if not run.exists():
        return
    said = read_run(run.parent)
    for one in node.chain:
        if one.label in said["checkpoints"]:
            said["checkpoints"][one.label]["spec"] = str(directory(out, one) / one.stage)
    write_run(said, run.parent)
