"""The stages of a grid on the disk: each trained once, and again where a new cell needs weights that went.

::

    not there ── trained ──> weights and records ── no cell needs them ──> records
                                     ^                                        │
                                     └─ trained again: the same weights ──────┘  a new cell, or one that is done again

    OUT/.again/NODE/         the run that trains a stage again, until its weights lie beside the records
"""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memprobe.checkpoints import resolve
from memprobe.errors import MemprobeError
from memprobe.evaluations import EvaluationFile
from memprobe.files import read_valid, write_text
from memprobe.manifests import MANIFEST
from memprobe.runs import CELL, EVALUATION, MATRIX, METRICS, RECIPE, STATE, CellFile, ManifestFile
from memprobe.weights import safetensors_in
from training import stopping
from training.data import ASKED, PREPARED, prepare
from training.directories import LOG
from training.grid.cells import Cell, Node
from training.grid.found import check_found, check_start, differing
from training.grid.probing import is_probed, part_of, probe_of_setup, probed_otherwise
from training.grid.workplace import Workplace
from training.prepared import Prepared
from training.recipe import to_toml
from training.starts import check_rows

if TYPE_CHECKING:
    from memprobe.models import LensModel

RECORDS = (MANIFEST, EVALUATION, METRICS, RECIPE)
"""Of a stage, what stays when its weights go; so do the rows of its datasets."""


def directory(out: Path, node: Node) -> Path:
    """A node's run directory."""
    return out / "runs" / node.name


def again(out: Path, node: Node) -> Path:
    """Where a node's stage is trained again."""
    return out / ".again" / node.name


def check_cells(cells: Sequence[Cell], out: Path) -> None:
    """Raises a MemprobeError where a grid's directory holds another stage under the name of one that is wanted, a stage
    of another base model, or a probe of other facts or readouts than are asked for; or where weights would stay that
    the grid file says do not."""
    for cell in cells:
        for stage in cell.node.recipe.stages if cell.keep == "records" else ():
            if stage.checkpoints is not None:
                raise MemprobeError(
                    f"block {cell.block}: data.{stage.name}.checkpoints: weights along the way, which no cell uses, "
                    'would stay where keep = "records"; leave them out, or give keep = "weights"'
                )
    for node in {node.name: node for cell in cells for node in cell.node.chain}.values():
        check_found(directory(out, node), node)
    for cell in cells:
        if cell.probed:
            _check_probes(cell, out)


def _check_probes(cell: Cell, out: Path) -> None:
    """Raises a MemprobeError where what is probed of a cell would not go with what was probed before."""
    first = cell.node.chain[0]
    manifest = directory(out, first) / first.stage / MANIFEST
    n_facts = _facts_of(manifest, manifest.stat().st_mtime_ns) if manifest.exists() else None
    for folder in (probe_of_setup(out, cell.node.setup), part_of(out, cell.node)):
        if other := probed_otherwise(folder, cell, n_facts):
            raise MemprobeError(
                f"{folder}: is a probe {other}: take that back, or delete this folder, and all of it is probed again"
            )


@lru_cache(maxsize=256)  # many cells have one first stage
def _facts_of(manifest: Path, changed: int) -> int | None:
    """How many rows the first stage of a run was trained on."""
    entries: Sequence[Any] = read_valid(manifest, ManifestFile).get("stages", [])
    return entries[0].get("n") if entries else None


def is_done(out: Path, cell: Cell) -> bool:
    """Whether a cell has ended, learned or not, and left all that is asked of it now."""
    folder = directory(out, cell.node)
    return (folder / CELL).exists() and not differing(folder, cell.node) and lacking(out, cell) is None


def lacking(out: Path, cell: Cell) -> str | None:
    """What is asked of a cell that has ended and that it did not leave, as less was asked then; ``None`` for nothing.

    Of cells of older versions, which do not say what was kept and called, those are not asked again.
    """
    file = directory(out, cell.node) / CELL
    if not file.exists():
        return None
    ended = _ended(file, file.stat().st_mtime_ns)
    # As they were called then: a stage that cells share is named after the first of them in the file.
    labels = [stage["label"] for stage in ended["stages"]]
    if cell.probed and not is_probed(out, cell.node.setup, labels):
        return "its probe"
    if cell.asked.after is not None and ended.get("after", cell.asked.after) != cell.asked.after:
        return f"after = {cell.asked.after!r}"
    return "its weights" if cell.keep == "weights" and ended.get("keep", cell.keep) != cell.keep else None


@cache  # asked of every cell at every look
def _ended(file: Path, changed: int) -> dict[str, Any]:
    return read_valid(file, CellFile)


def has_ended(out: Path, node: Node) -> bool:
    """Whether the run that trains a node came to its end: killed just before, its stage is there, but not all else."""
    folder = directory(out, node)
    return is_trained(out, node) and (folder / MATRIX).exists() and not (folder / STATE).exists()


def is_trained(out: Path, node: Node) -> bool:
    """Whether a node's stage has ended; its weights may be gone."""
    return is_whole(out, node) and not differing(directory(out, node), node)


def is_whole(out: Path, node: Node) -> bool:
    """Whether a stage that has ended lies where a node's belongs, be it this node's or one of another recipe."""
    return (directory(out, node) / node.stage / MANIFEST).exists()


def has_weights(out: Path, node: Node) -> bool:
    """Whether a node's weights are there, all of them."""
    folder = directory(out, node) / node.stage
    try:
        return (folder / "config.json").exists() and bool(safetensors_in(folder))
    except MemprobeError:  # what a killed process left
        return False


def is_ready(out: Path, node: Node) -> bool:
    """Whether another stage or a probe can go on from a node."""
    return has_ended(out, node) and has_weights(out, node)


def needed(cells: Iterable[Cell], out: Path) -> dict[str, Node]:
    """By name, the nodes whose weights a cell that has not ended takes: it trains from them and probes them."""
    return {node.name: node for cell in cells if not is_done(out, cell) for node in cell.node.chain}


def train(place: Workplace, node: Node) -> Prepared:
    """Trains one stage, unless it is there with its weights; the rows of the run.

    Raises:
        MemprobeError: see :func:`training.run.run`; what lies there, or what it goes on from, is of another recipe, of
            other weights or of other rows; or trained again, it ends otherwise than its records say.
    """
    out = place.out
    folder = directory(out, node)
    folder.mkdir(parents=True, exist_ok=True)
    for one in node.chain:
        check_found(directory(out, one), one)
        check_start(out / "runs", one)
    link_parent(out, node, folder)
    prepared = rows_of(place, node)
    for one in node.chain[:-1]:
        check_rows(directory(out, one) / one.stage, one.recipe, prepared)
    if not has_ended(out, node):
        _run(place, node, folder)
    elif not has_weights(out, node):
        _train_again(place, node)
    return prepared


def ask_ahead(place: Workplace, node: Node) -> None:
    """Asks what the run that trains a node asks of the base model and of this machine, where it was not asked.

    Raises:
        MemprobeError: see :func:`training.data.prepare`.
    """
    import torch

    from memprobe.models import choose_device
    from training.autocast import settled
    from training.measures import evaluate_base

    directory(place.out, node).mkdir(parents=True, exist_ok=True)
    asked, say = place.out / ASKED, place.report.say
    settled(node.recipe, asked, torch.device(choose_device("auto")), say)
    prepared = rows_of(place, node)
    base = resolve(node.recipe.base)
    evaluate_base(node.recipe, prepared, base, lambda: _base(place, node), asked, say)


def rows_of(place: Workplace, node: Node) -> Prepared:
    """The rows of a node's run."""
    return prepare(
        node.recipe,
        directory(place.out, node),
        lambda: _base(place, node),
        data_dir=place.data_dir,
        say=place.report.say,
        asked=place.out / ASKED,
    )


def _base(place: Workplace, node: Node) -> LensModel:
    """The base model of a node, as it is asked and evaluated."""
    import torch

    recipe = node.recipe
    return place.memory.lens_model(resolve(recipe.base), getattr(torch, recipe.precision.save_dtype))


def _run(place: Workplace, node: Node, folder: Path) -> None:
    """Trains a node's stage in a run directory."""
    from training.run import run

    if place.grid.launch:
        place.memory.forget()
        _launch(place, place.grid.launch, node, folder)
    else:
        run(
            node.recipe,
            folder,
            data_dir=place.data_dir,
            quiet=place.quiet,
            asked=place.out / ASKED,
            memory=place.memory,
        )


def _train_again(place: Workplace, node: Node) -> None:
    """Puts the weights of a stage back that went when the last cell that needed them ended.

    They come of the same rows, recipe and seed in a run directory aside, which may be killed and goes on. What is
    stored of the stage stays as it is, byte for byte: probes and other cells speak of those weights.

    Raises:
        MemprobeError: the stage ends otherwise than its records say, so it has other weights.
    """
    folder, anew = directory(place.out, node), again(place.out, node)
    stored, made = folder / node.stage, anew / node.stage
    place.report.say(
        f"{node.name}: {node.stage} is trained again: a cell goes on from it, and its weights went"
    )
    if (stored / "config.json").exists():  # half of them
        _drop(stored)
    anew.mkdir(parents=True, exist_ok=True)
    link_parent(place.out, node, anew)
    for name in (RECIPE, PREPARED):  # as it was begun, and the very same rows
        shutil.copyfile(folder / name, anew / name)
    _run(place, node, anew)
    if _end_of(made) != _end_of(stored):
        shutil.rmtree(anew)
        raise MemprobeError(
            f"{stored}: its weights went when its cells had ended, and trained again they come out otherwise (another "
            'machine, thread count or version?): give a new --out, and keep = "weights" where cells are to be added'
        )
    # The configuration goes last: while it is missing, the weights are not all there.
    for file in _last_config(file for file in made.iterdir() if not stays(file)):
        file.replace(stored / file.name)
    shutil.rmtree(anew)


def _end_of(stage: Path) -> object:
    """What tells a stage's weights from others: how far they are from its start, in fp64."""
    evaluation = read_valid(stage / EVALUATION, EvaluationFile)
    if (change := evaluation.get("weight_change")) is not None:
        return change["stage"]
    return evaluation["sets"]  # older runs did not measure it


_PR_SET_PDEATHSIG = 1  # of Linux's <sys/prctl.h>
_LOOK = 0.5  # seconds between two looks at whether it is asked to stop
_GRACE = 60.0
"""Seconds: a launcher that is asked to stop gives its processes 30 before it kills them (torchrun)."""


def _launch(place: Workplace, launch: str, node: Node, folder: Path) -> None:
    """Trains a stage in processes of its own.

    Raises:
        MemprobeError: they cannot be started, or end with an error.
    """
    recipe = folder / ".recipe.toml"
    write_text(to_toml(node.recipe), recipe)
    command = [*shlex.split(launch), "-m", "training", "run", str(recipe)]
    command += ["--out", str(folder), "--asked", str(place.out / ASKED)]
    command += ["--data-dir", str(place.data_dir)] if place.data_dir is not None else []
    try:
        process = subprocess.Popen(
            command, stderr=subprocess.DEVNULL if place.quiet else None, preexec_fn=_ended_with_us()
        )
    except OSError as error:
        raise MemprobeError(f"launch: {command[0]}: cannot be started ({error.strerror})") from error
    try:
        code = _exit_code(process, folder)
    except BaseException:  # asked to stop, by a signal or by Ray: the launcher ends those that it started
        process.terminate()
        try:
            process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        raise
    if code:
        raise MemprobeError(f"{folder}: {launch} ended with exit code {code}; see {folder / LOG}")


def _ended_with_us() -> Callable[[], object] | None:
    """What a process does first, so that it is asked to end when this one is killed, as Ray and systems do for want of
    memory: it would hold the run, and devices that whoever started this one takes for free. On Linux alone."""
    if sys.platform != "linux":
        return None
    return partial(ctypes.CDLL(None).prctl, _PR_SET_PDEATHSIG, signal.SIGTERM)


def _exit_code(process: subprocess.Popen[bytes], folder: Path) -> int:
    """The exit code of a process, waited for.

    Raises:
        Stopped: this process is asked to stop meanwhile; a worker's signal only says so.
    """
    while True:
        try:
            return process.wait(_LOOK)
        except subprocess.TimeoutExpired:
            if stopping.asked():
                raise stopping.Stopped(f"{folder}: stopped; the same command goes on") from None


def link_parent(out: Path, node: Node, folder: Path) -> None:
    """Makes the stages of a node's parent those of a run directory."""
    if node.parent is None:
        return
    for stage in sorted(directory(out, node.parent).iterdir()):
        link = folder / stage.name
        if (stage / MANIFEST).exists() and not link.exists():
            link.unlink(missing_ok=True)
            link.symlink_to(os.path.relpath(stage.resolve(), folder.resolve()), target_is_directory=True)


def drop_weights(cells: Sequence[Cell], out: Path) -> list[Node]:
    """Removes the weights that no cell keeps and none still needs, and names the nodes they are of."""
    kept = {node.name for cell in cells if cell.keep == "weights" for node in cell.node.chain}
    kept |= needed(cells, out).keys()
    every = {node.name: node for cell in cells for node in cell.node.chain}
    bare = [node for name, node in every.items() if name not in kept]
    for node in bare:
        folder = directory(out, node) / node.stage
        if (folder / "config.json").exists():
            _drop(folder)
    return bare


def _drop(folder: Path) -> None:
    """Removes a stage's weights, beside other processes that may be at the same."""
    # The configuration goes last: while it is there, what a killed process left is dropped by the next.
    for file in _last_config(file for file in folder.iterdir() if not stays(file)):
        if file.is_dir():
            shutil.rmtree(file, ignore_errors=True)
        else:
            file.unlink(missing_ok=True)


def stays(file: Path) -> bool:
    """Whether a file of a stage stays when its weights go."""
    return file.name in RECORDS or file.suffix == ".jsonl"


def _last_config(files: Iterable[Path]) -> list[Path]:
    """Weights first, so that one of them is missing as soon as anything is, and the configuration last."""
    return sorted(files, key=lambda file: (file.suffix != ".safetensors", file.name == "config.json"))
