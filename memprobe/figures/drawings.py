"""What can be drawn of a study: its comparisons, its training runs and its patches, each with what it was made from."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl

from memprobe.errors import MemprobeError, there_are
from memprobe.figures import patches, runs, tables
from memprobe.files import csv_text, sha256_of
from memprobe.fitted import notes_on_view
from memprobe.members import members_of
from memprobe.patches import Patches
from memprobe.probes import Probe
from memprobe.readings import Readings
from memprobe.retention import Retention, ended_runs, retention_of
from memprobe.retention.setups import setups_of
from memprobe.retention.tables import titles
from memprobe.statistics.patches import GAP
from memprobe.studies import (
    Study,
    asked_alike,
    cells_by_setup,
    cells_of,
    in_fixed_readout,
    setup_of,
    with_records,
    without_failed_cells,
)
from memprobe.wording import count

OF_COMPARISONS = tables.NAMES
Say = Callable[[str], None]


@dataclass(frozen=True)
class Drawing:
    """A figure that can be drawn.

    Attributes:
        name: in :data:`~memprobe.figures.drawing.DRAWN`.
        source: tells figures of one name apart; empty where there is one.
        table: what it draws.
        options: of the function that draws it, but for the width.
        settings: how the table was made.
        inputs: what it was made from, with hashes.
        beside: further text files by suffix.
    """

    name: str
    source: str
    table: pl.DataFrame
    options: dict[str, Any]
    settings: dict[str, Any]
    inputs: list[dict[str, Any]]
    beside: dict[str, str] = field(default_factory=dict)

    @property
    def stem(self) -> str:
        """Of its files' names."""
        return f"{self.name}-{self.source}" if self.source else self.name


@dataclass(frozen=True)
class LeftOut:
    """A figure that cannot be drawn, and why.

    Attributes:
        name: in :data:`~memprobe.figures.drawing.DRAWN`.
        why: the end of a sentence.
        source: tells figures of one name apart; empty where there is one.
    """

    name: str
    why: str
    source: str = ""


def lines_of(left_out: Sequence[LeftOut]) -> list[str]:
    """What is said of figures that are left out: a line for each reason."""
    names: dict[str, list[str]] = {}
    for one in left_out:
        names.setdefault(one.why, []).append(f"{one.name} of {one.source}" if one.source else one.name)
    return [f"{', '.join(given)}: left out, {why}" for why, given in names.items()]


def drawings_of(
    study: Study, wanted: list[str], asked: dict[str, Any], say: Say
) -> Iterator[Drawing | LeftOut]:
    """Every figure that is asked of a study, one by one.

    Args:
        wanted: names of figures.
        asked: reference, k, token, lens, position, draws and width, see :func:`memprobe.figures.write_figures`.
        say: called with one line about each probe, checkpoint or run that is left out.
    """
    if names := [name for name in OF_COMPARISONS if name in wanted]:
        yield from _of_comparisons(study, names, asked, say)
    if "differences" in wanted:
        yield from _of_outcomes(study, asked)
    if names := [name for name in runs.NAMES if name in wanted]:
        yield from _of_runs(study, names, asked, say)
    if names := [name for name in patches.NAMES if name in wanted]:
        yield from _of_patches(study, names, asked)


def _of_patches(study: Study, names: list[str], asked: dict[str, Any]) -> Iterator[Drawing]:
    shared = _shared_folder([one.path for one in study.patches])
    for one in study.patches:
        settings = {"facts": "all", "threshold": GAP, "draws": asked["draws"]}
        made = patches.of_patches(one, **settings)
        source = _slug(one.path, shared) if len(study.patches) > 1 else ""
        for name in names:
            if name in made:
                yield Drawing(name, source, made[name], {}, settings, [_patches_input(one)])


def _of_runs(study: Study, names: list[str], asked: dict[str, Any], say: Say) -> Iterator[Drawing | LeftOut]:
    ended = ended_runs(study.runs, say)
    retention = retention_of(ended)
    shown, keys = titles(retention.cells) if len(retention.cells) else {}, setups_of(ended)
    for drawing in of_retention(retention, names, asked["width"], {"draws": asked["draws"]}):
        if isinstance(drawing, LeftOut):
            yield drawing
            continue
        used = [run for run in ended if shown[keys[run.path]] in set(drawing.table["setup"])]
        yield replace(drawing, inputs=[_run_input(run.path) for run in used])


def of_retention(
    retention: Retention, names: Sequence[str], width: int, settings: dict[str, Any]
) -> Iterator[Drawing | LeftOut]:
    """The figures of what training runs keep, without inputs.

    Args:
        names: of the figures, some of :data:`memprobe.figures.runs.NAMES`.
        width: millimetres.
        settings: how the tables were made.
    """
    made = runs.of_retention(retention)
    for name in names:
        table = made[name]
        if isinstance(table, str):
            yield LeftOut(name, table)
            continue
        for setup, page in runs.pages(name, table, width).items():
            source = _slug(Path(setup.replace(" → ", "-")), Path.cwd()) if setup else ""
            yield Drawing(name, source, page, {}, settings, [])


def _of_comparisons(
    study: Study, names: list[str], asked: dict[str, Any], say: Say
) -> Iterator[Drawing | LeftOut]:
    cells = cells_by_setup(study)
    read = [view for probe in study.probes for view in _in_each_readout(_viewed(probe, asked))]
    probes = [without_failed_cells(probe, cells, say) for probe in read]
    ended = [probe for one in probes if (probe := with_records(one, say, finished=True)).checkpoints]
    groups = asked_alike(ended)
    if not groups and not study.comparisons:
        for name in names:
            if name == "differences" and study.outcomes:
                continue
            yield LeftOut(name, "there is no probe and no comparison")
        return
    compared = itertools.chain(_compared(groups, asked, say), _stored(study.comparisons, asked, say))
    of_groups = [cells_of(group[0], cells) for group in groups]
    for place, (source, made, settings, inputs) in enumerate(compared):
        labels = {row["label"] for row in settings["checkpoints"]}
        runs_there = [
            [stage.label for stage in cell.stages]
            for cell in (of_groups[place] if place < len(groups) else ())
        ]
        chains = [chain for chain in runs_there if labels.issuperset(chain)]
        drawable = tables.of_comparison(made, settings, chains=chains, names=names)
        chosen = {name: settings[name] for name in ("k", "token")}
        for name in names:
            table, stem = drawable[name], source if len(groups) + len(study.comparisons) > 1 else ""
            if isinstance(table, str):
                yield LeftOut(name, table, stem)
                continue
            beside = {}
            if name == "lof":
                whole = tables.lof_table(made["placement"])
                beside = {"csv": csv_text(whole), "md": tables.lof_markdown(whole, **chosen)}
            yield Drawing(name, stem, table, chosen, settings, inputs, beside)


def _of_outcomes(study: Study, asked: dict[str, Any]) -> Iterator[Drawing]:
    """Differences of answers alone, where other tools' results say no more."""
    from memprobe.compare.outcomes import outcomes_of

    folders = [path if path.is_dir() else path.parent for path in study.outcomes]
    shared = _shared_folder(folders) if len(folders) > 1 else None
    for path, folder in zip(study.outcomes, folders, strict=True):
        outcomes = outcomes_of(path, draws=asked["draws"])
        table = outcomes.tables["differences"].filter(statistic="exact")
        if table.is_empty():
            continue
        drawn = table.select(
            "reference",
            "statistic",
            "difference",
            "low",
            "high",
            row="checkpoint",
            held=pl.lit(None, pl.Boolean),
        )
        source = _slug(folder, shared) if shared else folder.name
        yield Drawing("differences", source, drawn, {}, outcomes.settings, [_outcomes_input(path)])


def _compared(
    groups: list[list[Probe]], asked: dict[str, Any], say: Say
) -> Iterator[tuple[str, Mapping[str, pl.DataFrame], dict[str, Any], list[dict[str, Any]]]]:
    """Each group of like probes as readings, and of these the tables that figures draw."""
    from memprobe.compare import TablesOnDemand, settings_of

    labels = {id(group): {member.label for member in members_of(group, {}, [])} for group in groups}
    reference = asked["reference"]
    if reference and groups and not any(reference in known for known in labels.values()):
        known = list(dict.fromkeys(label for group in groups for label in labels[id(group)]))
        raise MemprobeError(f"`reference` {reference!r}: no such checkpoint; {there_are(reference, known)}")
    setups = [setup_of(probe.path) for group in groups for probe in group]
    above = [
        setup.parent for setup in setups if setup
    ]  # a grid's figures name their set-up, be it the only one
    shared = _shared_folder([*above, *(probe.path for group in groups for probe in group)])
    every = [probe for group in groups for probe in group]
    for group in groups:
        fixed = in_fixed_readout(group, every)
        source = _slug(group[0].path, shared)
        if len(group) > 1:
            source = _slug(_shared_folder([probe.path for probe in group]) or group[0].path, shared) or source
        elif (setup := setup_of(group[0].path)) and len(group[0].lenses) > 1:
            readout = group[0].run["readout"]
            name = readout if readout == "own" else f"{readout}-readout"
            source = _slug(setup / name, shared)
        compared = count(sum(len(probe.checkpoints) for probe in group), "checkpoint")
        say(f"{source or group[0].path}: reading {compared}")
        readings = Readings.of(
            group,
            k=asked["k"],
            token=asked["token"],
            reference=reference if reference in labels[id(group)] else None,
            fixed_readout=fixed,
            draws=asked["draws"],
        )
        notes = notes_on_view(group[0])
        for note in notes:
            say(f"{source or group[0].path}: {note}")
        inputs = [_probe_input(probe) for probe in [*group, *fixed]]
        yield (
            source,
            TablesOnDemand(readings),
            settings_of(readings) | {"readout": group[0].run["readout"]} | ({"view": notes} if notes else {}),
            inputs,
        )


def _stored(
    comparisons: list[Path], asked: dict[str, Any], say: Say
) -> Iterator[tuple[str, Mapping[str, pl.DataFrame], dict[str, Any], list[dict[str, Any]]]]:
    """Each ``comparison.json``, as it was made."""
    from memprobe.compare import read_comparison

    shared = _shared_folder([path.parent for path in comparisons])
    for path in comparisons:
        comparison = read_comparison(path)
        made, settings = comparison.tables, comparison.settings
        for name in ("k", "token"):
            if asked[name] not in (None, settings[name]):
                say(f"{path}: was made with {name} {settings[name]}, and is drawn so")
        source = _slug(path.parent, shared) or "comparison"
        yield (
            source,
            made,
            settings,
            [{"kind": "comparison", "path": _named(path), "sha256": sha256_of(path)}],
        )


def _viewed(probe: Probe, asked: Mapping[str, Any]) -> Probe:
    """A probe through the lens and at the position that were asked for."""
    lens, position = asked.get("lens"), asked.get("position")
    return probe.under(lens, position) if lens or position else probe


def _in_each_readout(probe: Probe) -> list[Probe]:
    """A probe of a grid with its own readout and the base model's; another one as it is."""
    return [probe, *(probe.second_readouts()[:1] if setup_of(probe.path) else [])]


def _probe_input(probe: Probe) -> dict[str, Any]:
    return {
        "kind": "probe",
        "path": _named(probe.path),
        "readout": probe.run["readout"],
        "factoids": probe.run["factoids"]["hash"],
        "checkpoints": {label: probe.run["checkpoints"][label]["fingerprint"] for label in probe.checkpoints},
        "sha256": {file.as_posix(): sha256_of(probe.path / file) for file in probe.files()},
    }


def _run_input(folder: Path) -> dict[str, Any]:
    names = ("recipe.toml", "*/evaluation.json", "*/memprobe.json")
    files = sorted(path for name in names for path in folder.glob(name))
    return {
        "kind": "run",
        "path": _named(folder),
        "sha256": {path.relative_to(folder).as_posix(): sha256_of(path) for path in files},
    }


def _patches_input(one: Patches) -> dict[str, Any]:
    return {
        "kind": "patches",
        "path": _named(one.path),
        "factoids": one.run["factoids"]["hash"],
        "sha256": {path.relative_to(one.path).as_posix(): sha256_of(path) for path in one.files()},
    }


def _outcomes_input(path: Path) -> dict[str, Any]:
    """A results directory, or an ``outcomes.json``."""
    files = [path] if path.is_file() else sorted(one for one in path.rglob("*") if one.is_file())
    top = path.parent if path.is_file() else path
    return {
        "kind": "outcomes",
        "path": _named(path),
        "sha256": {one.relative_to(top).as_posix(): sha256_of(one) for one in files},
    }


def _named(path: Path) -> str:
    """A path as seen from here where it lies below, so that it says the same on another machine."""
    try:
        return path.resolve().relative_to(Path.cwd().resolve()).as_posix()
    except ValueError:
        return path.as_posix()


def _shared_folder(paths: Sequence[Path]) -> Path | None:
    """The deepest folder that holds all of them."""
    return Path(os.path.commonpath([path.resolve() for path in paths])) if paths else None


def _slug(path: Path, shared: Path | None) -> str:
    """A path below ``shared`` as part of a file name."""
    parts = path.resolve().parts[len(shared.parts) if shared else 0 :]
    return re.sub(r"[^A-Za-z0-9._]+", "-", "-".join(parts)).strip("-")
