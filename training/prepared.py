"""The rows of a run, as they are chosen before anything is trained and kept in the run directory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from memprobe.errors import MemprobeError, first_line
from memprobe.factoids import Factoid
from memprobe.sources import subset
from memprobe.sources.kinds import AnyRow, Text
from training.row_files import tagged, untagged


@dataclass(frozen=True, slots=True)
class StageData:
    """What one stage trains on.

    Attributes:
        rows: the stage's own.
        held_out: for tasks and texts, rows to evaluate on.
        mixing: rows of each mixing source, in the recipe's order.
        origins: where ``rows`` and each of ``mixing`` came from.
        counts: what was read and left out of ``rows``.
        known: of the rows asked for the unknown-to-base filter, those that the base model answers.
    """

    rows: list[AnyRow]
    held_out: list[AnyRow]
    mixing: list[list[AnyRow]]
    origins: list[dict[str, Any]]
    counts: dict[str, int]
    known: list[Factoid]


def facts_in(rows: Iterable[AnyRow]) -> list[Factoid]:
    """Those rows that are facts."""
    return [row for row in rows if isinstance(row, Factoid)]


def taught(stages: Iterable[StageData]) -> list[Factoid]:
    """The facts that stages train on, those that are mixed in too."""
    return [fact for data in stages for part in (data.rows, *data.mixing) for fact in facts_in(part)]


@dataclass(frozen=True, slots=True)
class Prepared:
    """The rows of a whole run: its stages', facts known before stage 1, and held-out text.

    Attributes:
        evenly: whether some of the rows of earlier stages are drawn from all of them alike, whatever else is drawn of
            them. A run that an older version began draws by the hashes by which own rows, and those that are evaluated,
            are drawn as well, and goes on so.
    """

    stages: list[StageData]
    known: list[Factoid]
    texts: list[Text]
    evenly: bool = True

    def before(self, number: int, seed: int, purpose: str) -> list[AnyRow]:
        """The rows of the stages before one, counted from 1, each once, in the order in which some are drawn."""
        rows = list({row.id: row for data in self.stages[: number - 1] for row in data.rows}.values())
        if self.evenly:
            # By this hash without the purpose own rows are drawn, so that few of many all have low ones, and those that
            # are evaluated, which would then be those that are replayed.
            return sorted(
                rows, key=lambda row: hashlib.sha256(f"{purpose} {seed} {row.id}".encode()).digest()
            )
        return subset(rows, len(rows), seed, purpose)


def to_json(prepared: Prepared) -> dict[str, Any]:
    """The rows of a run as plain data."""
    return {
        "stages": [
            {
                "rows": [tagged(row) for row in data.rows],
                "held_out": [tagged(row) for row in data.held_out],
                "mixing": [[tagged(row) for row in rows] for rows in data.mixing],
                "origins": data.origins,
                "counts": data.counts,
                "known": [tagged(row) for row in data.known],
            }
            for data in prepared.stages
        ],
        "known": [tagged(row) for row in prepared.known],
        "texts": [tagged(row) for row in prepared.texts],
        "evenly": prepared.evenly,
    }


class PreparedStage(BaseModel):
    """The rows of one stage in ``.prepared.json``."""

    model_config = ConfigDict(extra="allow", strict=True)

    origins: list[dict[str, Any]] = []


class PreparedFile(BaseModel):
    """``.prepared.json``: the rows of a run, the recipe that they were drawn for, and of files that are only evaluated
    on the content."""

    model_config = ConfigDict(extra="allow", strict=True)

    recipe: str
    stages: list[PreparedStage]
    known: list[dict[str, Any]]
    texts: list[dict[str, Any]]
    revisions: dict[str, str] = {}


def from_json(data: dict[str, Any], path: Path) -> Prepared:
    """The rows of a run from plain data, read from ``path``.

    Raises:
        MemprobeError: they are not as :func:`to_json` wrote them.
    """
    try:
        return _stages(data)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise MemprobeError(
            f"{path}: not as training wrote it ({type(error).__name__}: {first_line(error)}); delete it"
        ) from error


def _stages(data: dict[str, Any]) -> Prepared:
    stages = [
        StageData(
            [untagged(row) for row in stage["rows"]],
            [untagged(row) for row in stage["held_out"]],
            [[untagged(row) for row in rows] for rows in stage["mixing"]],
            stage["origins"],
            stage["counts"],
            _factoids(stage["known"]),
        )
        for stage in data["stages"]
    ]
    texts = [row for row in map(untagged, data["texts"]) if isinstance(row, Text)]
    return Prepared(stages, _factoids(data["known"]), texts, data.get("evenly", False) is True)


def _factoids(rows: Iterable[dict[str, Any]]) -> list[Factoid]:
    return [row for row in map(untagged, rows) if isinstance(row, Factoid)]
