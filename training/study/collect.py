"""A grid's directory becomes results: one row per cell, and statistics of placement by arm and seed.

Statistics of placement are :mod:`memprobe.compare`'s; here they are laid out by arm and seed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from memprobe.arms import Arm
from memprobe.compare import TABLES, depth_and_retention, kept_facts
from memprobe.errors import MemprobeError
from memprobe.files import read_json
from memprobe.lineage import origin
from memprobe.manifests import MANIFEST
from memprobe.probes import RUN, Probe, open_probe
from memprobe.readings import Readings
from memprobe.retention import ended_runs, retention_of
from memprobe.runs import CELL, GRID, RunDirectory
from training.grid.probing import probe_of_setup
from training.study.results import READOUTS, SETTINGS, Results
from training.study.unseen import unseen_differences

_PLACED = (
    "exact",
    "lof_mean",
    "lof_sd",
    "share_never",
    "lof_median",
    "lof_restricted_mean",
    "settled_restricted_mean",
    "depths_per_factoid",
    "effective_layers",
    "chance_lof_restricted_mean",
    "chance_recall_full",
)


def collect(
    out: Path,
    *,
    draws: int = 2000,
    cells: Collection[str] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Results:
    """Gathers a grid's finished cells; those that are not finished are not there.

    Args:
        draws: of the bootstrap.
        cells: only these, ``SETUP/RUN`` (see :func:`training.grid.names_in`); by default all.
        say: called with one line about each set-up, before its records are read.

    Raises:
        MemprobeError: the directory holds no grid, or no finished cell.
    """
    if not (out / GRID).exists():
        raise MemprobeError(
            f"{out}: holds no {GRID}, so this is not a grid (python -m training grid makes one)"
        )
    folders = [path.parent for path in sorted((out / "runs").glob(f"*/*/{CELL}"))]
    runs = [RunDirectory(path, path.name) for path in folders]
    if cells is not None:
        runs = [run for run in runs if run.cell_name in cells]
    if not runs:
        asked = "" if cells is None else " of those that were asked for"
        raise MemprobeError(f"{out}: no cell{asked} is finished yet")
    retention = retention_of(ended_runs(runs, say))
    origins = _origins(runs)
    frame = retention.cells
    parts: dict[str, list[pl.DataFrame]] = {}
    for (setup,), group in frame.group_by("setup", maintain_order=True):
        learned = group.filter(pl.col("learned"))  # what was not learned says nothing of what is kept
        say(f"{setup}: {len(group)} cells, {len(learned)} of them learned; reading where their facts surface")
        for name, table in _placed(out, str(setup), learned["labels"].to_list(), origins, draws):
            parts.setdefault(name, []).append(table)
    placed = {
        name: pl.concat(parts[name], how="diagonal_relaxed") if name in parts else pl.DataFrame()
        for name in ("placement", "arms", "differences", "spread", "lost", "kept", "depth_and_retention")
    }
    unseen = unseen_differences(placed["differences"], frame.filter("learned"))
    placed["differences"] = pl.concat([placed["differences"], unseen])
    # What is answered depends on no reading, and stands under the headline's.
    k, token = SETTINGS[0]
    for name, table in retention.asked._asdict().items():
        if len(table):
            table = table.with_columns(k=pl.lit(k), token=pl.lit(token), readout=pl.lit(READOUTS[0]))
            placed[name] = pl.concat([placed[name], table], how="diagonal_relaxed")
    return Results(frame, retention.scores, retention.over_seeds, **placed)


def _origins(runs: Iterable[RunDirectory]) -> dict[tuple[str, str], dict[str, Any]]:
    """By set-up and label, from which checkpoint and rows a stage started; probes did not always hold it."""
    origins = {}
    for run in runs:
        for stage in run.cell.stages if run.cell else ():
            path = run.path / stage.stage / MANIFEST
            if path.exists():
                origins[run.path.parent.name, stage.label] = origin(read_json(path))
    return origins


def _placed(
    out: Path,
    setup: str,
    chains: Sequence[list[str]],
    origins: Mapping[tuple[str, str], dict[str, Any]],
    draws: int,
) -> Iterable[tuple[str, pl.DataFrame]]:
    """Tables of placement of one set-up, for each readout and reading.

    Args:
        chains: labels of each cell's stages, from stage 1 on.
    """
    own: dict[tuple[int, str], Readings] = {}  # the first readout
    for readout, probe in _probes(out, setup).items() if chains else ():
        # In the order of the cells, whichever was probed first.
        entries = probe.only(probe.finished).run["checkpoints"]
        for label, entry in entries.items():
            if entry["manifest"] is not None:
                entry["manifest"] = origins.get((setup, label), {}) | entry["manifest"]
        base = [label for label, entry in entries.items() if entry["manifest"] is None]
        wanted = dict.fromkeys(label for chain in chains for label in chain if label in entries)
        made = {label: entries[label]["manifest"] or {} for label in [*base, *wanted]}
        for k, token in SETTINGS:
            named = {"setup": setup, "k": k, "token": token, "readout": readout}
            keys = [pl.lit(value).alias(key) for key, value in named.items()]
            readings = Readings.of(
                [probe.only(made)], reference=_reference(made), k=k, token=token, draws=draws
            )
            for name, table in _read_out(readings, made, chains, own.setdefault((k, token), readings)):
                yield name, table.select(*keys, pl.all())


def _probes(out: Path, setup: str) -> dict[str, Probe]:
    """The probe of a set-up in each readout; none where D_A has no factoids.

    Grids of old have a directory for each readout.
    """
    whole = probe_of_setup(out, setup)
    if (whole / RUN).exists():
        probe = open_probe(whole)
        return dict(zip(READOUTS, [probe, *probe.second_readouts()[:1]], strict=False))
    folders = {readout: whole.with_name(readout) for readout in READOUTS}
    return {readout: open_probe(path) for readout, path in folders.items() if (path / RUN).exists()}


def _reference(made: Mapping[str, Mapping[str, Any]]) -> str:
    """The first naive checkpoint, or the first that was trained."""
    trained = [label for label, manifest in made.items() if manifest]
    return next((label for label in trained if Arm.of(made[label]["arm"]).is_naive), trained[0])


def _read_out(
    readings: Readings, made: Mapping[str, Mapping[str, Any]], chains: Sequence[list[str]], own: Readings
) -> Iterable[tuple[str, pl.DataFrame]]:
    """Tables of one readout and reading.

    Args:
        made: each checkpoint's manifest, nothing for the base.
        own: the same checkpoints in their own readout.
    """
    trained = [label for label in made if made[label]]
    naive = [label for label in trained if Arm.of(made[label]["arm"]).is_naive]
    named = [
        {"checkpoint": label} | {key: made[label][key] for key in ("arm", "seed", "stage")}
        for label in trained
    ]
    yield (
        "placement",
        TABLES["placement"](readings)
        .select("checkpoint", *_PLACED)
        .join(pl.DataFrame(named), on="checkpoint", how="left", maintain_order="left"),
    )
    yield "arms", TABLES["arms"](readings)
    for arm in dict.fromkeys(made[label]["arm"] for label in reversed(trained)):
        if Arm.of(arm).is_naive or Arm.of(arm).is_control:  # what an arm is held against
            yield "differences", TABLES["arm_differences"](readings, reference=arm)
    for reference in naive:  # an arm's spread is held against naive of the same seed, after the same stage
        same = [made[reference][key] for key in ("seed", "stage")]
        like = [label for label in trained if [made[label][key] for key in ("seed", "stage")] == same]
        against = [(reference, label) for label in like if label != reference]
        if against:
            yield "spread", TABLES["spread"](readings, against).filter(pl.col("on") == "all").drop("on")
    # Cells whose arms differ in the last stage alone share the steps before it.
    pairwise = (step for chain in chains for step in itertools.pairwise(chain))
    steps = [step for step in dict.fromkeys(pairwise) if set(step) <= made.keys()]
    for step in steps:
        gone = TABLES["fates"](readings, [step]).filter(pl.col("path") == "1→0")
        gone = gone.rename({"n": "n_lost", "share": "share_lost"}).drop("path", "low", "high")
        lost = TABLES["lost"](readings, [step])
        yield "lost", gone.join(lost, on=["reference", "checkpoint"], how="left")
    pairs: dict[str, dict[str, list[tuple[str, str]]]] = {}
    for before, after in steps:
        stage = pairs.setdefault(str(made[after]["stage"]), {})
        stage.setdefault(made[after]["arm"], []).append((before, after))
    for stage_name, arms in pairs.items():
        made_of = {
            "kept": kept_facts(readings, arms),
            "depth_and_retention": depth_and_retention(readings, arms, own),
        }
        for name, table in made_of.items():
            if len(table):
                yield name, table.select(pl.lit(stage_name).alias("stage"), pl.all())
