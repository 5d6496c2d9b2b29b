"""A cell's probe: its stages, and once for a set-up the base model, read by every lens in one pass.

OUT/.probes/SETUP/CELL/       the cell's own probe directory, while it is being filled
    └─ joined to OUT/probes/SETUP/depths when it is complete, in whatever order cells end: what it says is the same
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Collection, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from memprobe.checkpoints import Checkpoint, resolve
from memprobe.factoids import Factoid
from memprobe.probe_joining import join_probe
from memprobe.probes import RUN, read_run
from memprobe.sources import subset
from training.grid.cells import Cell, Node
from training.grid.workplace import Workplace
from training.memory import Memory
from training.prepared import Prepared

if TYPE_CHECKING:
    import torch

    from memprobe.lens_set import LensSet

PROBE = "depths"
"""Name of a set-up's probe directory."""
BASE = "base"
"""Label of the base model, and so of the lens that reads with its norm and unembedding: ``logit@base``."""


def probe_of_setup(out: Path, setup: str) -> Path:
    """The probe directory of a set-up."""
    return out / "probes" / setup / PROBE


def probe_cell(
    place: Workplace, cell: Cell, stages: dict[str, Path], prepared: Prepared, *, with_base: bool
) -> float:
    """Probes a cell's stages on D_A, those that the set-up's probe does not hold yet; seconds.

    Args:
        stages: the directory of each stage by its label in probes.
        prepared: the rows of the cell's run. Where the grid's ``probe_n`` is fewer than its factoids of D_A, so many
            are asked, of every cell the same.
        with_base: also probe the base model, where the set-up's probe does not hold it.
    """
    import torch

    from memprobe.probing import probe

    out, memory = place.out, place.memory
    factoids = _factoids(prepared, place.grid.probe_n)
    name, recipe = cell.node.name, cell.node.recipe
    if not factoids:
        place.report.say(f"{name}: stage 1 has no factoids to probe")
        return 0.0
    began = time.monotonic()
    intrusions = {
        stage.name: [row for row in data.rows if isinstance(row, Factoid)]
        for stage, data in zip(recipe.stages[1:], prepared.stages[1:], strict=True)
        if stage.kind == "factoids"
    }
    base = resolve(f"{BASE}={recipe.base}")
    dtype = getattr(torch, recipe.precision.save_dtype)
    done = _held(probe_of_setup(out, cell.node.setup)).labels
    # The last stage first: its weights are still in memory.
    asked = [resolve(f"{label}={stages[label]}") for label in reversed(stages) if label not in done]
    asked += [base] if with_base and BASE not in done else []
    if asked:
        place.report.say(f"{name}: probing {', '.join(checkpoint.label for checkpoint in asked)}")
    lenses = _lenses(base, memory, dtype, place.grid.base_readout) if asked else ()
    for checkpoint in asked:
        probe(
            [memory.lens_model(checkpoint, dtype)],
            factoids,
            part_of(out, cell.node),
            template=recipe.template,
            lenses=lenses,
            intrusions=intrusions,
            origin=prepared.stages[0].origins[0],
        )
    return round(time.monotonic() - began, 1)


def join_cell(cell: Cell, cells: Sequence[Cell], out: Path) -> None:
    """Makes a cell's probe part of its set-up's.

    Args:
        cells: all of the grid, in whose order checkpoints stand.
    """
    from filelock import FileLock

    part, whole = part_of(out, cell.node), probe_of_setup(out, cell.node.setup)
    if (part / RUN).exists():
        labels = [
            node.label for other in cells if other.node.setup == cell.node.setup for node in other.node.chain
        ]
        whole.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(
            whole.parent / f".{PROBE}.lock"
        ):  # workers of one command join theirs beside each other
            join_probe(part, whole, order=list(dict.fromkeys([BASE, *labels])))
    shutil.rmtree(part, ignore_errors=True)


def part_of(out: Path, node: Node) -> Path:
    """The probe directory of the cell that ends with a node, while it is being filled."""
    return out / ".probes" / node.name


def _factoids(prepared: Prepared, n: int | None) -> list[Factoid]:
    """What is asked of every stage."""
    factoids = [row for row in prepared.stages[0].rows if isinstance(row, Factoid)]
    if n is None or n >= len(factoids):
        return factoids
    return [row for row in subset(factoids, n, 0, "probe") if isinstance(row, Factoid)]


def has_base(out: Path, setup: str) -> bool:
    """Whether a set-up's probe holds the base model."""
    return BASE in _held(probe_of_setup(out, setup)).labels


def is_probed(out: Path, setup: str, labels: Collection[str]) -> bool:
    """Whether a set-up's probe holds some checkpoints."""
    return _held(probe_of_setup(out, setup)).labels.issuperset(labels)


def probed_otherwise(folder: Path, cell: Cell, n_facts: int | None) -> str | None:
    """How a probe directory was made in place of what is asked of a cell now; ``None`` where it is the same.

    Args:
        n_facts: of D_A; ``None`` where nobody knows it yet.
    """
    held, asked = _held(folder), cell.asked
    if held.n is not None and n_facts is not None:
        wanted = n_facts if asked.probe_n is None else min(asked.probe_n, n_facts)
        if held.n != wanted:
            return f"of {held.n} facts, and {wanted} are asked for now (probe_n)"
    if held.lenses and asked.base_readout != (f"logit@{BASE}" in held.lenses):
        how = "without" if asked.base_readout else "with"
        return f"{how} the base model's readout, and base_readout = {str(asked.base_readout).lower()} now"
    return None


class _Held(NamedTuple):
    """What a probe directory holds: checkpoints that it has to the end, its lenses, and of how many facts."""

    labels: frozenset[str] = frozenset()
    lenses: frozenset[str] = frozenset()
    n: int | None = None


def _held(folder: Path) -> _Held:
    file = folder / RUN
    return _held_at(folder, file.stat().st_mtime_ns) if file.exists() else _Held()


@lru_cache(maxsize=256)  # asked of every cell at every look
def _held_at(folder: Path, changed: int) -> _Held:
    run = read_run(folder)
    done = frozenset(label for label, entry in run["checkpoints"].items() if entry["complete"])
    return _Held(done, frozenset(run.get("lenses", ())), run["factoids"]["n"])


def _lenses(base: Checkpoint, memory: Memory, dtype: torch.dtype, base_readout: bool) -> LensSet:
    """The lenses of a grid; while they are used, the base model stands beside the one that is read."""
    from memprobe.lens_set import AskedLens, LensSet
    from memprobe.lens_specs import LensSpec

    own = AskedLens(LensSpec(), None)
    return LensSet([own, AskedLens(LensSpec(), memory.second(base, dtype))] if base_readout else [own])
