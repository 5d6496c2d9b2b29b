"""What one process works with while it trains the cells of a grid."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from training.grid.file import Grid
from training.memory import Memory
from training.run_log import RunLog


@dataclass(frozen=True)
class Workplace:
    """A process's own place at a grid: what every stage and probe that it makes needs.

    Attributes:
        grid: what is wanted.
        out: the grid's directory; of a task whose node does not reach it, a folder that stands for it.
        report: takes what is said of the work.
        data_dir: folder of the datasets' files; default: the user's.
        quiet: whether training shows no progress.
        memory: the models that the process holds from one stage to the next.
    """

    grid: Grid
    out: Path
    report: RunLog
    data_dir: Path | None = None
    quiet: bool = False
    memory: Memory = field(default_factory=Memory)
