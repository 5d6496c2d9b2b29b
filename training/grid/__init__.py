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
    OUT/probes/SETUP/depths/              a probe directory: the base model and every cell's stages, on D_A, read with
                                          each one's own unembedding and with the base model's

SETUP names the data and the axes that they depend on, ``kvr-lama-n64``. Killed at any moment, the same command
goes on. One command works in OUT: in this process, in several here (``--workers``), or as tasks on a Ray cluster
(``--engine ray``). Weights go as soon as nothing needs them, except where ``keep`` says so; a cell that the grid file
is given later, and that starts from such a stage, has it trained again. So does a cell that has ended and of which more
is asked later: a probe, a function ``after`` it, its weights.

::

    file.py -> cells.py -> work.py        what is wanted -> cells and the stages they share -> trained, probed
                           stages.py      a stage: trained, its weights dropped, trained again
                           found.py       whether what lies there is what is asked for
                           probing.py     a cell's probe, in one pass
                           workers.py     the same in several processes, which crew.py lets know of each other
                           workplace.py   what each process works with
                           claims.py      who may work where
                           on_ray.py      the same as tasks on Ray, a stage each
                           elsewhere.py   for nodes that share a storage instead of OUT
                        -> planning.py    what that takes
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.grid.cells import Cell, Node, cells_in, cells_of, names_in
    from training.grid.file import Block, Grid, read_grid
    from training.grid.on_ray import run_on_ray
    from training.grid.planning import GridPlan, plan
    from training.grid.stages import directory
    from training.grid.work import run_grid
    from training.grid.workers import run_workers

__all__ = [
    "Block",
    "Cell",
    "Grid",
    "GridPlan",
    "Node",
    "cells_in",
    "cells_of",
    "directory",
    "names_in",
    "plan",
    "read_grid",
    "run_grid",
    "run_on_ray",
    "run_workers",
]

_HOMES = {
    **dict.fromkeys(("Cell", "Node", "cells_in", "cells_of", "names_in"), "cells"),
    **dict.fromkeys(("Block", "Grid", "read_grid"), "file"),
    **dict.fromkeys(("GridPlan", "plan"), "planning"),
    "directory": "stages",
    "run_grid": "work",
    "run_on_ray": "on_ray",
    "run_workers": "workers",
}
"""Where names live: a report reads a grid's results, and waits for neither torch nor Ray."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
