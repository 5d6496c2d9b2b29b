"""A study: the probes, training runs and comparisons that lie in some directories.

Runs are read by their files, so that neither weights nor the package that trained them need be there::

    RUN/recipe.toml                     what is trained
    RUN/N-NAME/evaluation.json          scores after stage N; memprobe.json beside it says how it was made
    RUN/N-NAME/metrics.jsonl            one line per optimiser step
    RUN/.state/N-NAME/metrics.jsonl     the same while the stage is being trained

No torch here, and nothing is computed: scores and their intervals are those that the files hold.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from memprobe.errors import MemprobeError
from memprobe.files import read_json
from memprobe.probes import FACTOIDS_FILE, PARTS, RUN, Probe, open_probe

RECIPE, EVALUATION, METRICS, MANIFEST = "recipe.toml", "evaluation.json", "metrics.jsonl", "memprobe.json"
COMPARISON = "comparison.json"
GRID, CELL = "grid.toml", "cell.json"
"""In a grid's directory, and beside the run of each of its cells."""
_STATE = ".state"
_STAGE = re.compile(r"(\d+)-(.+)")
_NOTHING = (
    "nothing to show: a study holds probe directories (run.json, records), training runs (recipe.toml "
    "with stages N-NAME) or comparisons (comparison.json)"
)

_WHO = {
    "run": pl.String,
    "arm": pl.String,
    "seed": pl.Int64,
    "stage": pl.Int64,
    "stage_name": pl.String,
}
EVALUATIONS = pl.Schema(
    _WHO
    | {
        "dataset": pl.String,
        "kind": pl.String,  # factoids, task or text
        "metric": pl.String,
        "n": pl.Int64,
        "value": pl.Float64,
        "low": pl.Float64,
        "high": pl.Float64,
        "headline": pl.Boolean,  # whether this metric stands for the set
    }
)
TRAINING = pl.Schema(
    _WHO
    | {
        "step": pl.Int64,
        "epoch": pl.Float64,
        "loss": pl.Float64,
        "grad_norm": pl.Float64,
        "learning_rate": pl.Float64,
        "tokens": pl.Int64,
        "exact": pl.Float64,
    }
)


@dataclass(frozen=True)
class TrainingRun:
    """A run directory.

    Attributes:
        path: of the directory.
        name: tells it from the other runs of the study: the directory's name, with as much of the path before
            it as that needs.
        recipe: as in ``recipe.toml``.
    """

    path: Path
    name: str
    recipe: dict[str, Any]

    @property
    def arm(self) -> str:
        """What is done against forgetting, as the recipe writes it; ``none`` where it names nothing."""
        return str(self.recipe.get("arm", "none"))

    @property
    def seed(self) -> int:
        """Of the training."""
        return int(self.recipe.get("seed", 0))

    @cached_property
    def stages(self) -> list[tuple[int, str, Path]]:
        """(number, name, directory) of the stages that have ended, in order."""
        return _stages(self.path)

    @cached_property
    def running(self) -> list[tuple[int, str, Path]]:
        """The same of stages under way: their state directories."""
        ended = {(number, name) for number, name, _ in self.stages}
        under_way = _numbered(self.path / _STATE) if (self.path / _STATE).is_dir() else []
        return [stage for stage in under_way if stage[:2] not in ended]


@dataclass(frozen=True)
class Study:
    """What :func:`open_study` found, each in order of path.

    Attributes:
        probes: every probe directory.
        runs: every run directory.
        comparisons: every ``comparison.json``.
    """

    probes: list[Probe]
    runs: list[TrainingRun]
    comparisons: list[Path]

    def evaluations(self) -> pl.DataFrame:
        """Scores after each stage: one row per run, stage, evaluated set and score; see :data:`EVALUATIONS`.

        Raises:
            MemprobeError: a file is broken.
        """
        rows = []
        for run in self.runs:
            for number, name, folder in run.stages:
                path = folder / EVALUATION
                if path.exists():
                    who = [run.name, run.arm, run.seed, number, name]
                    rows += [[*who, *score] for score in _scores(path)]
        return pl.DataFrame(rows, schema=EVALUATIONS, orient="row")

    def training(self) -> pl.DataFrame:
        """Each optimiser step, of stages under way too; see :data:`TRAINING`.

        Raises:
            MemprobeError: a file is broken (a last line that is still being written is left out).
        """
        rows = []
        for run in self.runs:
            for number, name, folder in sorted([*run.stages, *run.running]):
                who = [run.name, run.arm, run.seed, number, name]
                measures = list(TRAINING)[len(who) :]
                lines = _lines(folder / METRICS)
                rows += [[*who, *(line.get(measure) for measure in measures)] for line in lines]
        return pl.DataFrame(rows, schema=TRAINING, orient="row", strict=False)


def open_study(paths: Sequence[Path | str]) -> Study:
    """Finds what lies in these directories and below them.

    Checkpoints and hidden folders are not searched. Nothing large is read yet.

    Raises:
        MemprobeError: a path is missing, nothing is found, or what is found is broken.
    """
    probes, runs, comparisons = set[Path](), set[Path](), set[Path]()
    for given in map(Path, paths):
        if not given.exists():
            raise MemprobeError(f"{given}: no such directory")
        if given.is_file():
            if given.name != COMPARISON:
                raise MemprobeError(f"{given}: a file; give the directory that it lies in")
            comparisons.add(given)
            continue
        for folder, names in _walk(given):
            if RUN in names and names & {FACTOIDS_FILE, PARTS, "records", "records.parquet"}:
                probes.add(folder)
            if RECIPE in names and (_stages(folder) or _STATE in names):
                runs.add(folder)
            if COMPARISON in names:
                comparisons.add(folder / COMPARISON)
    if not (probes or runs or comparisons):
        raise MemprobeError(f"{', '.join(map(str, paths)) or 'no directory'}: {_NOTHING}")
    found = _without_beginnings(sorted(runs))
    return Study(
        probes=[open_probe(path) for path in sorted(probes)],
        runs=[
            TrainingRun(path, name, _recipe(path / RECIPE))
            for path, name in zip(found, short_names(found), strict=True)
        ],
        comparisons=sorted(comparisons),
    )


def _without_beginnings(runs: Sequence[Path]) -> list[Path]:
    """Leaves out finished runs whose every stage is, by link, a longer run's (a grid shares first stages so)."""
    stages = {run: {folder.resolve() for number, _, folder in _stages(run) if number} for run in runs}
    return [
        run
        for run in runs
        if (run / _STATE).is_dir() or not any(stages[run] < others for others in stages.values())
    ]


def short_names(paths: Sequence[Path]) -> list[str]:
    """Each path's last parts, as few as tell it from the others."""
    parts = [path.resolve().parts for path in paths]
    names = []
    for mine in parts:
        length = 1
        while length < len(mine) and sum(other[-length:] == mine[-length:] for other in parts) > 1:
            length += 1
        names.append("/".join(mine[-length:]))
    return names


def setup_of(probe: Path) -> Path | None:
    """The set-up that a probe belongs to in a grid, ``OUT/probes/SETUP`` of ``OUT/probes/SETUP/READOUT``.

    Set-ups share labels, and those of one D_A share factoids too, though their checkpoints are others.
    """
    folder = probe.resolve().parent
    return folder if (folder.parent.parent / GRID).exists() else None


@dataclass(frozen=True)
class Cell:
    """What a grid says of a cell: whether it learned its data, and what its checkpoints are called in the probes."""

    learned: bool
    labels: list[str]


def cells_of(study: Study) -> dict[str, list[Cell]]:
    """The cells of grids by set-up, which names the folder of their runs and of their probes."""
    cells: dict[str, list[Cell]] = {}
    for run in study.runs:
        if (path := run.path / CELL).exists():
            told = read_json(path)
            cell = Cell(told["learned"], [stage["label"] for stage in told["stages"]])
            cells.setdefault(run.path.resolve().parent.name, []).append(cell)
    return cells


def learned(
    probe: Probe, cells: Mapping[str, list[Cell]], say: Callable[[str], None] = lambda text: None
) -> Probe:
    """A probe without the checkpoints of failed cells: what was not learned says nothing of what is kept."""
    mine = cells.get(probe.path.resolve().parent.name, [])
    kept = {label for cell in mine if cell.learned for label in cell.labels}
    failed = {label for cell in mine for label in cell.labels} - kept
    if gone := [label for label in probe.checkpoints if label in failed]:
        say(f"{probe.path}: {', '.join(gone)} left out: the cell did not learn its data")
    return probe.only([label for label in probe.checkpoints if label not in failed]) if gone else probe


def _walk(top: Path) -> Iterator[tuple[Path, set[str]]]:
    """(directory, names in it) from the top down, without hidden folders and the insides of checkpoints."""
    for folder, folders, files in os.walk(top):
        names = {*folders, *files}
        yield Path(folder), names
        inside = MANIFEST in names or any(name.endswith(".safetensors") for name in files)
        folders[:] = [] if inside else sorted(name for name in folders if not name.startswith("."))


def _stages(folder: Path) -> list[tuple[int, str, Path]]:
    """The folders N-NAME that a run has finished."""
    return [
        stage
        for stage in _numbered(folder)
        if (stage[2] / MANIFEST).exists() or (stage[2] / EVALUATION).exists()
    ]


def _numbered(folder: Path) -> list[tuple[int, str, Path]]:
    found = []
    for path in folder.iterdir():
        match = _STAGE.fullmatch(path.name)
        if match and path.is_dir():
            found.append((int(match[1]), match[2], path))
    return sorted(found)


def _recipe(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise MemprobeError(f"{path}: cannot be read as TOML ({reason})") from error


def _scores(path: Path) -> Iterator[list[Any]]:
    """[dataset, kind, metric, n, value, low, high, headline] of one ``evaluation.json``."""
    evaluation = read_json(path)
    try:
        for dataset, entry in evaluation["sets"].items():
            for metric, score in entry["scores"].items():
                numbers = [_number(score.get(name)) for name in ("value", "low", "high")]
                yield [dataset, entry["kind"], metric, entry["n"], *numbers, metric == entry["metric"]]
    except (AttributeError, KeyError, TypeError) as error:
        raise MemprobeError(
            f"{path}: not as training writes it ({error}); evaluate that stage again"
        ) from error


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a file that may still be written: a last line without its end is not there yet."""
    if not path.exists():
        return
    *whole, _ = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(whole, 1):
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise MemprobeError(f"{path}, line {number}: no JSON ({error})") from error
        yield entry
