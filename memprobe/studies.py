"""A study: the probes, patches, training runs and comparisons that lie in some directories.

What a run directory holds is :mod:`memprobe.runs`'; nothing is computed here: scores and their intervals are those
that the files hold. Which probes may be compared, for :mod:`memprobe.readings`, is decided here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl

from memprobe.comparable import unlike
from memprobe.errors import MemprobeError
from memprobe.files import short_names
from memprobe.patches import FOLDER, Patches, open_patches
from memprobe.probes import FACTOIDS_FILE, PARTS, RUN, Probe, open_probe
from memprobe.results.directory import RESULTS as EVALUATED
from memprobe.runs import (
    CELL,
    GRID,
    MANIFEST,
    RECIPE,
    STATE,
    CellFile,
    RunDirectory,
    StageDirectory,
    data_loss,
    ended_stages,
)
from memprobe.sameness import same_model
from memprobe.walking import walk

COMPARISON = "comparison.json"
OUTCOMES = "outcomes.json"
"""What ``memprobe compare --out`` writes of answers alone."""
RESULTS = "tables"
"""Folder with a study's tables."""
READ = (".json", ".jsonl", ".toml", ".parquet", ".csv")
"""Suffixes of all that a study is read from; weights, pages and figures beside it have others."""
_NOTHING = (
    "nothing to show: a study holds probe directories (run.json, records), training runs (recipe.toml "
    "with stages N-NAME), patches (patches/run.json), results of other tools (results.json), comparisons "
    "(comparison.json, outcomes.json) or a study's tables (tables/*.csv)"
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
        "data_loss": pl.Float64,
        "penalty": pl.Float64,
        "own_loss": pl.Float64,
    }
)
"""Columns of :meth:`Study.training`, as :class:`memprobe.runs.StepLine` explains them; ``data_loss`` is known of every
step."""


@dataclass(frozen=True)
class Study:
    """What :func:`open_study` found, each in order of path.

    Attributes:
        probes: every probe directory.
        runs: every run directory.
        comparisons: every ``comparison.json``.
        results: every folder of a study's tables, as ``python -m training report`` leaves them; those of a grid whose
            runs are here too are not among them.
        patches: every directory of ``memprobe patch``, also where it is a probe directory.
        outcomes: every results directory of ``memprobe import``, and every ``outcomes.json``.
    """

    probes: list[Probe]
    runs: list[RunDirectory]
    comparisons: list[Path]
    results: list[Path] = field(default_factory=list)
    patches: list[Patches] = field(default_factory=list)
    outcomes: list[Path] = field(default_factory=list)

    def evaluations(self) -> pl.DataFrame:
        """Scores after each stage: one row per run, stage, evaluated set and score; see :data:`EVALUATIONS`.

        Raises:
            MemprobeError: a file is broken.
        """
        rows = []
        for run in self.runs:
            for stage in run.stages:
                who = [run.name, run.arm, run.seed, stage.number, stage.name]
                rows += [[*who, *score] for score in _scores(stage)]
        return pl.DataFrame(rows, schema=EVALUATIONS, orient="row")

    def training(self) -> pl.DataFrame:
        """Each optimiser step, of stages under way too; see :data:`TRAINING`.

        Raises:
            MemprobeError: a file is broken (a last line that is still being written is left out).
        """
        rows = []
        for run in self.runs:
            for stage in sorted([*run.stages, *run.running], key=lambda one: (one.number, one.name)):
                who = [run.name, run.arm, run.seed, stage.number, stage.name]
                measures = list(TRAINING)[len(who) :]
                lines = [line | {"data_loss": data_loss(line)} for line in stage.steps()]
                rows += [[*who, *(line.get(measure) for measure in measures)] for line in lines]
        return pl.DataFrame(rows, schema=TRAINING, orient="row", strict=False)


def open_study(paths: Sequence[Path | str]) -> Study:
    """Finds what lies in these directories and below them, also by links.

    Each directory is found once, where it lies if that is below them, too. Checkpoints and hidden folders are not
    searched. Nothing large is read yet.

    Raises:
        MemprobeError: a path is missing, nothing is found, or what is found is broken.
    """
    probes, runs, comparisons, results, patched, outcomes = (set[Path]() for _ in range(6))
    tops = []
    for given in map(Path, paths):
        if not given.exists():
            raise MemprobeError(f"{given}: no such directory")
        if given.is_file():
            if given.name not in (COMPARISON, OUTCOMES):
                raise MemprobeError(f"{given}: a file; give the directory that it lies in")
            (comparisons if given.name == COMPARISON else outcomes).add(given)
            continue
        tops.append(given)
    for folder, names in _searched(tops):
        if FOLDER in names and (folder / FOLDER / RUN).is_file():
            patched.add(folder)
        if _is_probe(folder, names):
            probes.add(folder)
        if RECIPE in names and (STATE in names or ended_stages(folder)):
            runs.add(folder)
        if COMPARISON in names:
            comparisons.add(folder / COMPARISON)
        if OUTCOMES in names:
            outcomes.add(folder / OUTCOMES)
        if EVALUATED in names and (folder / FACTOIDS_FILE).is_file():
            outcomes.add(folder)
        if RESULTS in names and any((folder / RESULTS).glob("*.csv")):
            results.add(folder)
    if not (probes or runs or comparisons or results or patched or outcomes):
        raise MemprobeError(f"{', '.join(map(str, paths)) or 'no directory'}: {_NOTHING}")
    folders = _without_beginnings(sorted(runs))
    return Study(
        probes=[open_probe(path) for path in sorted(probes)],
        runs=[_opened(path, name) for path, name in zip(folders, short_names(folders), strict=True)],
        comparisons=sorted(comparisons),
        results=sorted(results),
        patches=[open_patches(path) for path in sorted(patched)],
        outcomes=sorted(outcomes),
    )


def _opened(path: Path, name: str) -> RunDirectory:
    """A run whose recipe can be read."""
    run = RunDirectory(path, name)
    _ = run.recipe
    return run


def _without_beginnings(runs: Sequence[Path]) -> list[Path]:
    """Leaves out finished runs whose every stage is, by link, a longer run's (a grid shares first stages so).

    A cell stays: it was wanted for itself, in a set-up of its own.
    """
    stages = {run: {one.path.resolve() for one in ended_stages(run) if one.number} for run in runs}
    return [
        run
        for run in runs
        if (run / STATE).is_dir()
        or (run / CELL).exists()
        or not any(stages[run] < others for others in stages.values())
    ]


def setup_of(probe: Path) -> Path | None:
    """The set-up that a probe or run belongs to in a grid, ``OUT/probes/SETUP`` of ``OUT/probes/SETUP/READOUT``.

    Set-ups share labels, and those of one D_A share factoids too, though their checkpoints are others.
    """
    folder = probe.resolve().parent
    return folder if (folder.parent.parent / GRID).exists() else None


def asked_alike(probes: Sequence[Probe]) -> list[list[Probe]]:
    """Probes by what they were asked: the same factoids, in the ways of :data:`~memprobe.records.ALIKE`.

    Set-ups of a grid stay apart (:func:`setup_of`).
    """
    groups: list[list[Probe]] = []
    for probe in probes:
        group = next((some for some in groups if _asked_alike(some[0], probe)), None)
        if group is None:
            groups.append([probe])
        else:
            group.append(probe)
    return groups


def with_records(probe: Probe, say: Callable[[str], None], *, finished: bool = False) -> Probe:
    """A probe with those of its checkpoints that can be read; the others are said.

    Args:
        finished: leaves out those that are still being probed.
    """
    begun = set(probe.read("records").select(pl.col("checkpoint").unique()).collect()["checkpoint"])
    for label in probe.checkpoints:
        if finished and label not in probe.finished:
            say(f"{probe.path}: {label} is not finished, and left out")
        elif label not in begun:
            say(f"{probe.path}: no records yet of {label}")
    wanted = begun.intersection(probe.finished) if finished else begun
    return probe.only([label for label in probe.checkpoints if label in wanted])


def in_fixed_readout(group: Sequence[Probe], probes: Sequence[Probe]) -> list[Probe]:
    """The same checkpoints, asked the same and read with another checkpoint's norm and unembedding, where two or more
    were so read, for :meth:`memprobe.readings.Readings.of`.

    Args:
        group: of :func:`asked_alike`.
        probes: where to look, in order; the first readout that is found is taken.
    """
    first = group[0]
    if first.run["readout"] != "own":
        return []
    own = [(label, probe.run["checkpoints"][label]) for probe in group for label in probe.checkpoints]
    by_readout: list[list[Probe]] = []
    for probe in probes:
        if probe.run["readout"] != "own" and _asked_alike(first, probe, but=("readout",)):
            shared = [
                label
                for label in probe.finished
                if any(
                    label == name and same_model(entry, probe.run["checkpoints"][label])
                    for name, entry in own
                )
            ]
            alike = next((some for some in by_readout if not unlike(some[0], probe)), None)
            if alike is None:
                by_readout.append(alike := [])
            alike.append(probe.only(shared))
    for second in by_readout:
        if len({label for probe in second for label in probe.checkpoints}) > 1:
            return [probe for probe in second if probe.checkpoints]
    return []


def _asked_alike(one: Probe, other: Probe, *, but: Container[str] = ()) -> bool:
    """Whether two probes have in common what they must to be compared."""
    asked = [(setup_of(probe.path), probe.run["factoids"]["hash"]) for probe in (one, other)]
    return asked[0] == asked[1] and not unlike(one, other, but=but)


def with_cells(study: Study, cells: Collection[str]) -> Study:
    """A study that has of grids only some cells: their runs, and their checkpoints (and the base) in probes.

    Args:
        cells: their names, see :attr:`memprobe.runs.RunDirectory.cell_name`.
    """
    runs = [run for run in study.runs if setup_of(run.path) is None or run.cell_name in cells]
    chosen = replace(study, runs=runs)
    by_setup = cells_by_setup(chosen)
    probes = []
    for probe in study.probes:
        if setup_of(probe.path) is None:
            probes.append(probe)
            continue
        mine = {stage.label for cell in cells_of(probe, by_setup) for stage in cell.stages}
        entries = probe.run["checkpoints"]
        if mine:
            probes.append(
                probe.only(label for label in entries if label in mine or not entries[label]["manifest"])
            )
    return replace(chosen, probes=probes)


def cells_by_setup(study: Study) -> dict[Path, list[CellFile]]:
    """The cells of grids by the folder of their set-up's probes: two grids may hold set-ups of one name."""
    cells: dict[Path, list[CellFile]] = {}
    for run in study.runs:
        if run.cell is not None and run.setup is not None:
            cells.setdefault(run.setup, []).append(run.cell)
    return cells


def cells_of(probe: Probe, cells: Mapping[Path, list[CellFile]]) -> list[CellFile]:
    """The cells whose checkpoints a probe of a grid holds; of other probes none."""
    return cells.get(probe.path.resolve().parent, [])


def without_failed_cells(
    probe: Probe, cells: Mapping[Path, list[CellFile]], say: Callable[[str], None] = lambda text: None
) -> Probe:
    """A probe without the checkpoints of failed cells: what was not learned says nothing of what is kept."""
    mine = cells_of(probe, cells)
    kept = {stage.label for cell in mine if cell.learned for stage in cell.stages}
    failed = {stage.label for cell in mine for stage in cell.stages} - kept
    if gone := [label for label in probe.checkpoints if label in failed]:
        say(f"{probe.path}: {', '.join(gone)} left out: the cell did not learn its data")
    return probe.only([label for label in probe.checkpoints if label not in failed]) if gone else probe


def probes_below(top: Path) -> list[Path]:
    """The probe directories at a folder and below it, finished or under way, by the rule of :func:`open_study`."""
    return [folder for folder, names in _searched([top]) if _is_probe(folder, names)]


def _is_probe(folder: Path, names: Collection[str]) -> bool:
    """Whether a folder with these names in it is a probe's: other tools have a ``run.json``, too."""
    beside = (FACTOIDS_FILE, PARTS, "records", "records.parquet")
    return RUN in names and folder.name != FOLDER and any(name in names for name in beside)


def _searched(tops: Sequence[Path]) -> Iterator[tuple[Path, set[str]]]:
    """(directory, names in it) from the top down, without hidden folders and the insides of checkpoints."""
    for folder, folders, files in walk(tops):
        names = {*folders, *files}
        yield folder, names
        inside = MANIFEST in names or any(name.endswith(".safetensors") for name in files)
        folders[:] = [] if inside else sorted(name for name in folders if not name.startswith("."))


def _scores(stage: StageDirectory) -> Iterator[list[Any]]:
    """[dataset, kind, metric, n, value, low, high, headline] of one ``evaluation.json``."""
    for dataset, one in stage.evaluation.sets.items() if stage.evaluation else ():
        for metric, score in one.scores.items():
            numbers = [score.value, score.low, score.high]
            yield [dataset, one.kind, metric, one.n, *numbers, metric == one.metric]
