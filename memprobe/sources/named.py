"""A file of rows as the name of a source: ``FILE``, ``FILE:new`` or ``FILE:both`` for the answers that an edit puts in
place of the true ones, and ``jsonl:FILE`` for JSONL whose name ends otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from memprobe.errors import MemprobeError, among
from memprobe.sources.rows import ROW_FILES
from memprobe.sources.shapes import TARGETS, Target

_JSONL = "jsonl:"


@dataclass(frozen=True, slots=True)
class NamedFile:
    """A file that the name of a source says.

    Attributes:
        answers: what stands behind it, which names the answers that are facts; ``None`` where nothing does.
    """

    path: Path
    answers: str | None = None

    @property
    def jsonl(self) -> bool:
        """Whether it is read as JSONL though its name ends otherwise."""
        return not _says_its_kind(self.path)

    def targets(self) -> Sequence[Target]:
        """The answers that are facts.

        Raises:
            MemprobeError: there are none of that name.
        """
        if self.answers is None:
            return ("true",)
        if self.answers not in TARGETS:
            raise MemprobeError(f"{self.path}:{self.answers}: which answers? {among(self.answers, TARGETS)}")
        return TARGETS[self.answers]

    def at(self, path: Path | str) -> str:
        """The name of a source that reads another file in the same way."""
        if self.answers is not None:
            return f"{path}:{self.answers}"
        return f"{_JSONL}{path}" if self.jsonl else str(path)


def named_file(source: str) -> NamedFile | None:
    """The file that the name of a source says; ``None`` for other sources."""
    path = Path(source.removeprefix(_JSONL))
    if source.startswith(_JSONL) or _says_its_kind(path):
        return NamedFile(path)
    file, _, answers = source.rpartition(":")
    return NamedFile(Path(file), answers) if _says_its_kind(Path(file)) else None


def _says_its_kind(path: Path) -> bool:
    return path.suffix.lower() in ROW_FILES
