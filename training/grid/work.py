"""A grid's work: every cell trained, evaluated and probed, in this process, alone or as one worker of a command."""

from __future__ import annotations

import importlib
import inspect
import random
import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

from memprobe.errors import MemprobeError, first_line
from memprobe.evaluations import EvaluationFile
from memprobe.files import read_valid, write_json, write_text
from memprobe.manifests import MANIFEST
from memprobe.runs import CELL, EVALUATION, GRID, RECIPE, CellFile, ManifestFile
from memprobe.sources.origins import data_folder
from training.directories import LOG
from training.grid.cells import Cell, cells_in, cells_of
from training.grid.claims import Taken, base_alone, claim, only_command
from training.grid.crew import Crew
from training.grid.file import Grid
from training.grid.found import base_at
from training.grid.probing import join_cell, probe_cell
from training.grid.stages import check_cells, directory, drop_weights, is_done, is_ready, lacking, train
from training.grid.workplace import Workplace
from training.measures import shares_learned
from training.prepared import Prepared
from training.run_log import RunLog
from training.stopping import Stopped

_CROWDED = 4  # times that a cell is tried again which found the memory full
_PAUSE = 5, 15  # seconds before it is, drawn anew each time
_NO_MEMORY = "out of memory; lower micro_batch, micro_tokens or --workers"
_POLL = 2.0  # seconds between two looks at cells that other processes are training


def run_grid(
    grid: Grid,
    path: Path,
    out: Path,
    *,
    blocks: Sequence[str] = (),
    data_dir: Path | None = None,
    quiet: bool = False,
    crew: Crew | None = None,
) -> list[str]:
    """Trains, probes and evaluates every cell that is not there yet.

    Args:
        path: of the grid file.
        blocks: names of those whose cells are wanted now, in this order; default: all, in the file's.
        crew: where this process is one of several that one command started: it says what it is at, begins nothing
            when they are to end, and leaves alone what broke in another.

    Returns:
        One line for each cell that could not be trained; the others are there.

    Raises:
        MemprobeError: bad input before anything is trained, or a directory in use or that cannot be written.
    """
    cells = cells_of(grid, path)
    wanted = cells_in(cells, blocks, path)
    work = partial(_run_cells, grid, path, out, cells, wanted, data_dir, quiet, crew)
    if crew is not None:
        return work()
    check_bases(wanted, path, out)
    with started(cells, path, out, data_dir):
        return work()


def _run_cells(
    grid: Grid,
    path: Path,
    out: Path,
    cells: Sequence[Cell],
    mine: Sequence[Cell],
    data_dir: Path | None,
    quiet: bool,
    crew: Crew | None,
) -> list[str]:
    """Trains those of ``mine``; stages from which others of ``cells`` start keep their weights."""
    import torch

    after = after_of(grid, path)
    report = RunLog(out / LOG, quiet=quiet)
    place = Workplace(grid, out, report, data_dir, quiet)
    done = sum(is_done(out, cell) for cell in mine)
    if crew is None:
        report.say(f"{out}: {len(mine)} cells, {done} done before")
    broken: dict[str, str] = {}
    waiting, crowded = False, Counter[str]()

    def left_to_do() -> list[Cell]:
        if crew is not None:
            broken.update({name: f"{name}: {why}" for name, why in crew.broken().items()})
        return [cell for cell in mine if not is_done(out, cell) and cell.node.name not in broken]

    def give_up(cell: Cell, why: str) -> None:
        broken[cell.node.name] = f"{cell.node.name}: {why}"
        report.say(broken[cell.node.name])
        if crew is not None:
            crew.give_up(cell.node.name, why)

    while remaining := left_to_do():
        for cell in remaining:
            if crew is not None and crew.closed:
                return list(broken.values())
            try:
                with claim(out, cell.node):
                    if not is_done(out, cell):  # by another process, since the list was made
                        _finish_cell(
                            place, cell, cells, after, cache(partial(_begin, cell, mine, place, crew))
                        )
            except Taken:
                continue
            except Stopped as error:
                report.say(f"{cell.node.name}: {error}")
                return list(broken.values())
            except torch.OutOfMemoryError as error:  # beside other processes; it may fit when they are done
                crowded[cell.node.name] += 1
                if crowded[cell.node.name] > _CROWDED:
                    give_up(cell, _NO_MEMORY)
                else:
                    report.say(f"{cell.node.name}: {first_line(error)}; tried again in a moment")
            except MemprobeError as error:
                give_up(cell, str(error))
            except Exception as error:  # of whatever a cell calls: torch, a penalty, the function after it
                report.keep_traceback(error)
                if crew is not None:  # another worker tries the cell, in a process that is as new
                    raise
                place.memory.forget()
                give_up(cell, unforeseen(error, out))
            if crowded[cell.node.name] and not is_done(out, cell):
                place.memory.forget()
                if cell.node.name not in broken:
                    time.sleep(random.uniform(*_PAUSE))
            waiting = False
            drop_weights(cells, out)
            if crew is not None:
                crew.at(None)
            break  # the first cell that is free now may be one that was not
        else:
            if not waiting:
                report.say(f"{len(remaining)} cells are being trained by other workers; waiting for them")
            waiting = True
            time.sleep(_POLL)
    drop_weights(cells, out)
    if crew is None:
        report.say(
            f"{out}: {len(mine) - len(broken)} of {len(mine)} cells are done; "
            f"python -m training report {shlex.quote(str(out))}"
        )
    return list(broken.values())


def _begin(cell: Cell, cells: Sequence[Cell], place: Workplace, crew: Crew | None) -> None:
    """Says that a cell is begun, or begun again."""
    anew = lacking(place.out, cell)
    place.report.say(
        f"[{cells.index(cell) + 1}/{len(cells)}] {cell.node.name}: {cell.node.recipe.arm_name}"
        + (f" (done again: the grid file asks for {anew} now)" if anew else "")
    )
    if crew is not None:
        crew.at(cell.node.name)


@contextmanager
def started(cells: Sequence[Cell], path: Path, out: Path, data_dir: Path | None = None) -> Iterator[None]:
    """Begins a grid's directory, or goes on in one, and holds it for this command.

    Args:
        cells: all of the grid.

    Raises:
        MemprobeError: another command is at it; it holds a run, or stages of another recipe; it cannot be written; or
            there is no such folder of data, which cells that need one would say after hours of others.
    """
    data_folder(data_dir)
    if (out / RECIPE).exists():
        raise MemprobeError(
            f"{out}: holds a run ({RECIPE}); a grid needs a directory of its own: give another --out"
        )
    if (out / GRID).exists() and not _is_grid(out) and not path.samefile(out / GRID):
        raise MemprobeError(
            f"{out}: holds another {GRID}, from which no grid was begun there, and which would be overwritten: give "
            "another --out"
        )
    check_cells(cells, out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise MemprobeError(f"{out}: cannot be written ({error.strerror})") from error
    with only_command(out):
        try:
            # Only now: a command that is refused says nothing of what lies there.
            write_text(text, out / GRID)
        except OSError as error:
            raise MemprobeError(f"{out}: cannot be written ({error.strerror})") from error
        yield


def check_bases(cells: Sequence[Cell], path: Path, out: Path) -> None:
    """Raises a MemprobeError where the base model of a cell that is still to be done is not there.

    Every cell would say so, one after another. On a cluster each node looks for itself.
    """
    for base in dict.fromkeys(cell.node.recipe.base for cell in cells if not is_done(out, cell)):
        try:
            base_at(base)
        except MemprobeError as error:
            raise MemprobeError(f"{path}: recipe.base: {error}") from error


def _is_grid(out: Path) -> bool:
    """Whether a grid was begun in a directory."""
    return any((out / name).exists() for name in ("runs", "probes", LOG, ".lock"))


def _finish_cell(
    place: Workplace,
    cell: Cell,
    cells: Sequence[Cell],
    after: Callable[[Path], object] | None,
    begin: Callable[[], object],
) -> None:
    """Trains the nodes of a cell whose weights are missing, probes its stages, and says how it ended.

    Args:
        cells: all of the grid.
        begin: called when no other process has what the cell needs first.

    Raises:
        Taken: another process trains one of its earlier stages.
    """
    *before, last = cell.node.chain
    for node in before:
        if not is_ready(place.out, node):
            with claim(place.out, node):
                begin()
                train(place, node)
    begin()
    prepared = train(place, last)
    with base_alone(place.out, cell.node.setup) as with_base:
        seconds = look_at(place, cell, prepared, after, with_base=with_base)
    end_cell(cell, cells, place.out, seconds, place.report)


def look_at(
    place: Workplace,
    cell: Cell,
    prepared: Prepared,
    after: Callable[[Path], object] | None,
    *,
    with_base: bool,
) -> float:
    """What needs the weights of a cell whose stages are trained: its probe, and what is called after it; seconds."""
    seconds = 0.0
    if place.grid.probe:
        stages = {node.label: directory(place.out, node) / node.stage for node in cell.node.chain}
        seconds = probe_cell(place, cell, stages, prepared, with_base=with_base)
    if after is not None:
        after(directory(place.out, cell.node))
    return seconds


def end_cell(cell: Cell, cells: Sequence[Cell], out: Path, seconds: float, report: RunLog) -> None:
    """Joins a cell's probe to its set-up's and says how the cell ended.

    Args:
        seconds: that its probe took; those of a probe before, of which this one is what was missing, are added.
    """
    join_cell(cell, cells, out)
    file = directory(out, cell.node) / CELL
    before = read_valid(file, CellFile).get("seconds_probed", 0.0) if file.exists() else 0.0
    ended = _outcome(cell, out) | {"seconds_probed": round(before + seconds, 1)}
    write_json(ended, file)
    report.say(f"{cell.node.name}: {'learned' if ended['learned'] else 'FAILED: ' + ended['why']}")


def _outcome(cell: Cell, out: Path) -> dict[str, Any]:
    """How a cell ended: whether each factoid stage was learned, and what every stage cost."""
    recipe, problems, stages = cell.node.recipe, [], []
    for node in cell.node.chain:
        folder = directory(out, node)
        manifest = read_valid(folder / node.stage / MANIFEST, ManifestFile)
        sets = read_valid(folder / node.stage / EVALUATION, EvaluationFile)["sets"]
        for name, share in shares_learned(recipe, len(node.recipe.stages), sets).items():
            if share < 1:
                problems.append(f"{name} ended at {share:.1%} exact match, not 100 %")
        stages.append(
            {
                "stage": node.stage,
                "run": node.name,
                "label": node.label,
                "steps": manifest["steps"],
                "tokens": manifest["tokens"],
                "seconds": manifest.get("seconds"),  # older runs did not count them
            }
        )
    return {
        "block": cell.block,
        "setup": cell.node.setup,
        "arm": cell.node.arm,
        "seed": recipe.seed,
        "axes": dict(cell.axes),
        "learned": not problems,
        "why": "; ".join(problems),
        "keep": cell.keep,
        "after": cell.asked.after,
        "stages": stages,
    }


def unforeseen(error: Exception, out: Path) -> str:
    """What is said of a cell that broke for a reason that nobody put into words."""
    return f"{type(error).__name__}: {first_line(error)} (where it came from: {out / LOG})"


def after_of(grid: Grid, path: Path) -> Callable[[Path], object] | None:
    """The function that a grid file names under ``after``.

    Raises:
        MemprobeError: there is none, its module cannot be imported, or it does not take a run directory.
    """
    if grid.after is None:
        return None
    spec = grid.after
    module, _, name = spec.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except Exception as error:  # a module does what it likes when it is imported
        raise MemprobeError(
            f"{path}: after: no function {spec!r} ({type(error).__name__}: {first_line(error)}); write module:function"
        ) from error
    if not callable(function):
        raise MemprobeError(f"{path}: after: {spec!r} is no function but a {type(function).__name__}")
    with suppress(ValueError):  # some that are built in do not say what they take
        signature = inspect.signature(function)
        try:
            signature.bind(path)
        except TypeError as error:
            raise MemprobeError(
                f"{path}: after: {spec!r} is called with a run directory alone ({error})"
            ) from error
    return function
