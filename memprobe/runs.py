"""A training run's directory as a contract: what it holds, validated where it is read, for every reader.

Runs are read by their files, so that neither weights nor the package that trained them need be there::

    RUN/recipe.toml                     what is trained
    RUN/N-NAME/evaluation.json          scores after stage N; memprobe.json beside it says how it was made
    RUN/N-NAME/metrics.jsonl            one line per optimiser step
    RUN/.state/N-NAME/metrics.jsonl     the same while the stage is being trained
    RUN/cell.json                       how a cell of a grid ended (OUT/runs/SETUP/CELL, probed in OUT/probes/SETUP)

Keys that memprobe does not know are kept: they are only ever added. No torch here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, Field

from memprobe.arms import Arm
from memprobe.errors import MemprobeError, first_line
from memprobe.evaluations import EXACT, EvaluationFile, Parent
from memprobe.files import check_valid, read_json, read_toml, validated
from memprobe.run_file import Count, Open
from memprobe.stages import STAGE

RECIPE, EVALUATION, METRICS, MANIFEST = "recipe.toml", "evaluation.json", "metrics.jsonl", "memprobe.json"
GRID, CELL = "grid.toml", "cell.json"
"""In a grid's directory, and beside the run of each of its cells."""
STATE, MATRIX = ".state", "accuracy.csv"
"""Of a run: while a stage is under way, and what is written last of one that has ended."""

Read = TypeVar("Read", bound=BaseModel)


class Mixing(Open):
    """Rows mixed into a stage; ``words`` are the prompt's and the answer's."""

    source: str
    ratio: float = 2.0
    words: list[Count] = Field([50, 50], min_length=1)


class Replay(Open):
    """Rows of earlier stages in a later one."""

    ratio: float


class RecipeStage(Open):
    """One stage of a recipe."""

    name: str
    kind: Literal["factoids", "tasks", "texts"] = "factoids"
    mixing: list[Mixing] = Field(default_factory=list)
    replay: Replay | None = None


class RecipeFile(Open):
    """``recipe.toml``: of what is trained, what readers ask for."""

    base: str | None = None
    seed: Count = 0
    arm: str = "none"
    joint: bool = False
    stages: list[RecipeStage] = Field(default_factory=list)


class StageRows(Open):
    """The rows that a stage was trained on, by the hash of their file, and where they and those mixed in came from."""

    hash: str | None = None
    origins: list[dict[str, Any]] = Field(default_factory=list)


class ManifestFile(Open):
    """``memprobe.json``: of how a checkpoint was made, what readers ask for."""

    arm: str | None = None
    seed: int | str | None = None
    stage: int | str | None = None
    stage_name: str | None = None
    steps: Count
    tokens: Count
    seconds: float | None = None
    replayed: list[str] = Field(default_factory=list)
    base: Parent | None = None
    parent: Parent | None = None
    checkpoint: Parent | None = None
    stages: list[StageRows] = Field(default_factory=list)


class CellStage(Open):
    """One stage of a cell; ``label`` is its checkpoint's in the probes, ``run`` the cell that trained it."""

    label: str
    stage: str = ""
    run: str | None = None
    steps: Count = 0
    tokens: Count = 0
    seconds: float | None = None


class CellFile(Open):
    """``cell.json``: how a cell of a grid ended, what was kept of it, and which function was called with it."""

    learned: bool
    stages: list[CellStage]
    setup: str | None = None
    arm: str | None = None
    seed: int | None = None
    block: str | None = None
    why: str = ""
    keep: str | None = None
    after: str | None = None
    seconds_probed: float | None = None


class StepLine(Open):
    """A line of ``metrics.jsonl``: what was logged of an optimiser step.

    Attributes:
        loss: what is minimised, nats per token: that of the data, and the penalty of an arm that has one.
        data_loss: without the penalty; see :func:`data_loss`.
        penalty: as it is added to the loss; only of an arm that has one.
        own_loss: of the stage's own rows, without mixing rows; only where a stage stops by it, and of steps that hold
            own rows.
        tokens: input tokens seen in the stage so far, without padding.
        exact: share of own rows answered exactly in the last epoch that ended.
    """

    step: Count | None = None
    epoch: float | None = None
    loss: float | None = None
    data_loss: float | None = None
    penalty: float | None = None
    own_loss: float | None = None
    grad_norm: float | None = None
    learning_rate: float | None = None
    tokens: Count | None = None
    exact: float | None = None


def data_loss(line: Mapping[str, Any]) -> float | None:
    """The loss of the data, nats per token, of a line of ``metrics.jsonl``, or of what Trainer logs of a step.

    Only an arm with a penalty writes it beside ``loss``, which holds the penalty, too; without one it is ``loss``.
    """
    alone = line.get("data_loss")
    return line.get("loss") if alone is None else alone


def read_as(schema: type[Read], path: Path) -> Read:
    """A JSON file as a schema.

    Raises:
        MemprobeError: it is missing or broken, or does not fit.
    """
    return validated(schema, read_json(path), path)


def read_if_there(schema: type[Read], path: Path) -> Read | None:
    """:func:`read_as`; ``None`` where there is no such file."""
    return read_as(schema, path) if path.exists() else None


@dataclass(frozen=True)
class StageDirectory:
    """A stage that has ended, or, in a run's state, one under way.

    Attributes:
        number: from 1; 0 is the base model, which is evaluated and not trained.
        name: of the stage in the recipe.
        path: of the directory.
    """

    number: int
    name: str
    path: Path

    @cached_property
    def evaluation(self) -> EvaluationFile | None:
        """Scores after the stage; ``None`` where they are not there."""
        return read_if_there(EvaluationFile, self.path / EVALUATION)

    @cached_property
    def manifest(self) -> ManifestFile | None:
        """How the checkpoint was made; ``None`` where that is not there."""
        return read_if_there(ManifestFile, self.path / MANIFEST)

    def steps(self) -> Iterator[dict[str, Any]]:
        """What was logged of each optimiser step; a last line that is still being written is not there yet.

        Raises:
            MemprobeError: a line is broken.
        """
        path = self.path / METRICS
        if not path.exists():
            return
        *whole, _ = path.read_text(encoding="utf-8", errors="replace").split("\n")
        for number, line in enumerate(whole, 1):
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise MemprobeError(f"{path}, line {number}: not JSON ({first_line(error)})") from error
            check_valid(entry, StepLine, f"{path}, line {number}")
            yield entry


@dataclass(frozen=True)
class RunDirectory:
    """A run directory.

    Attributes:
        path: of the directory.
        name: tells it from other runs.
    """

    path: Path
    name: str

    @cached_property
    def recipe(self) -> RecipeFile:
        """As in ``recipe.toml``."""
        path = self.path / RECIPE
        return validated(RecipeFile, read_toml(path), path)

    @property
    def arm(self) -> str:
        """What is done against forgetting, as the recipe writes it; ``none`` where it names nothing."""
        return self.recipe.arm

    @cached_property
    def what(self) -> Arm:
        """The same, parsed."""
        return Arm.of(self.recipe.arm)

    @property
    def seed(self) -> int:
        """Of the training."""
        return self.recipe.seed

    @cached_property
    def stages(self) -> list[StageDirectory]:
        """The stages that have ended, in order."""
        return ended_stages(self.path)

    @cached_property
    def running(self) -> list[StageDirectory]:
        """Stages under way: their state directories."""
        ended = {(stage.number, stage.name) for stage in self.stages}
        folder = self.path / STATE
        under_way = _numbered(folder) if folder.is_dir() else []
        return [stage for stage in under_way if (stage.number, stage.name) not in ended]

    @property
    def trained(self) -> dict[int, StageDirectory]:
        """Of the stages that have ended, those that were trained and evaluated, by number."""
        return {one.number: one for one in self.stages if one.number and one.evaluation is not None}

    @property
    def has_ended(self) -> bool:
        """Whether every stage of the recipe is there; joint training has its last one only."""
        n = len(self.recipe.stages)
        return bool(n) and set(self.trained) == ({n} if self.recipe.joint else set(range(1, n + 1)))

    @property
    def datasets(self) -> list[str]:
        """The stages' datasets as evaluations name them, ``1-kvr`` first."""
        return [f"{number}-{stage.name}" for number, stage in enumerate(self.recipe.stages, 1)]

    @cached_property
    def cell(self) -> CellFile | None:
        """How the cell of a grid ended whose run this is; ``None`` for other runs."""
        return read_if_there(CellFile, self.path / CELL)

    @property
    def cell_name(self) -> str:
        """Of a cell: ``SETUP/CELL`` for ``OUT/runs/SETUP/CELL``."""
        return f"{self.path.resolve().parent.name}/{self.path.name}"

    @property
    def setup(self) -> Path | None:
        """Of a cell: the folder of its set-up's probes, ``OUT/probes/SETUP`` for ``OUT/runs/SETUP/CELL``."""
        if self.cell is None:
            return None
        folder = self.path.resolve().parent
        return folder.parent.parent / "probes" / folder.name

    @property
    def learned(self) -> bool:
        """Whether each stage of factoids ended with all its own rows exact; of a cell, what its grid says.

        Of the rows that were evaluated: a seeded sample where there are more than ``evaluate.limit``. What a stage did
        not learn, nothing can be said to keep. A run that has not ended has not learned.
        """
        if self.cell is not None:
            return self.cell.learned
        if not self.has_ended:
            return False
        for number, (name, stage) in enumerate(zip(self.datasets, self.recipe.stages, strict=True), 1):
            if stage.kind != "factoids":
                continue
            evaluation = self.trained[len(self.datasets) if self.recipe.joint else number].evaluation
            scores = evaluation.sets.get(name) if evaluation else None
            score = scores.scores.get(EXACT) if scores else None
            if score is None or score.value is None or score.value < 1:
                return False
        return True


def ended_stages(folder: Path) -> list[StageDirectory]:
    """The folders N-NAME that a run has finished."""
    return [
        stage
        for stage in _numbered(folder)
        if (stage.path / MANIFEST).exists() or (stage.path / EVALUATION).exists()
    ]


def _numbered(folder: Path) -> list[StageDirectory]:
    stages = []
    for path in folder.iterdir():
        match = STAGE.fullmatch(path.name)
        if match and path.is_dir():
            stages.append(StageDirectory(int(match[1]), match[2], path))
    return sorted(stages, key=lambda stage: (stage.number, stage.name))
