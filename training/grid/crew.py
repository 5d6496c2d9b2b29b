"""What the workers of one command tell each other, as files in a hidden folder of the grid's directory.

::

    OUT/.workers/closed         no new cell is begun
    OUT/.workers/N.json         the cell that worker N is at
    OUT/.workers/N.log          what worker N wrote to standard error
    OUT/.workers/broken/        a file for each cell that is not tried again: why
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from memprobe.files import read_valid, write_json, write_text
from training.stopping import asked

FOLDER = ".workers"


class AtFile(BaseModel):
    """``N.json``: the cell that worker N is at."""

    model_config = ConfigDict(strict=True)

    cell: str | None


class BrokenFile(BaseModel):
    """A file in ``broken/``."""

    model_config = ConfigDict(strict=True)

    cell: str
    why: str


@dataclass(frozen=True)
class Crew:
    """The workers of one command, as one of them sees them.

    Attributes:
        out: the grid's directory.
        number: of this worker, from 1; 0 is the command that started them.
    """

    out: Path
    number: int = 0

    @property
    def folder(self) -> Path:
        """Where they meet."""
        return self.out / FOLDER

    @property
    def log(self) -> Path:
        """What a worker says where nobody listens."""
        return self.folder / f"{self.number}.log"

    def start(self) -> None:
        """Forgets the workers of an earlier command."""
        shutil.rmtree(self.folder, ignore_errors=True)
        (self.folder / "broken").mkdir(parents=True)

    def close(self) -> None:
        """Lets no worker begin another cell."""
        write_text("", self.folder / "closed")

    @property
    def closed(self) -> bool:
        """Whether no new cell is to be begun."""
        return asked() or (self.folder / "closed").exists()

    def at(self, cell: str | None) -> None:
        """Says which cell this worker is at."""
        write_json({"cell": cell}, self.folder / f"{self.number}.json")

    def cell_of(self, worker: int) -> str | None:
        """The cell that a worker is at, or was when it died."""
        path = self.folder / f"{worker}.json"
        return read_valid(path, AtFile)["cell"] if path.exists() else None

    def give_up(self, cell: str, why: str) -> None:
        """Lets no worker try a cell again."""
        name = hashlib.sha256(cell.encode()).hexdigest()[:16]
        write_json({"cell": cell, "why": why}, self.folder / "broken" / f"{name}.json")

    def broken(self) -> dict[str, str]:
        """By cell, why it is not tried again."""
        entries = [read_valid(path, BrokenFile) for path in sorted((self.folder / "broken").glob("*.json"))]
        return {one["cell"]: one["why"] for one in entries}
