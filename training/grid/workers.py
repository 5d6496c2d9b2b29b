"""Many cells at once on one machine: processes that share a grid's directory, started and watched by one command.

A worker is the same command for one process; it starts once and takes cell after cell. This process trains nothing.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from memprobe.errors import Interrupted, MemprobeError
from training.directories import LOG
from training.grid.cells import Cell, cells_in, cells_of
from training.grid.crew import Crew
from training.grid.file import Grid
from training.grid.stages import is_done
from training.grid.work import after_of, check_bases, started
from training.run_log import RunLog

TRIES = 3
"""Times that a cell is tried whose worker dies."""
GRACE = 60.0
"""Seconds that running cells have after the time limit, and then again to save their states."""

_LOOK, _TELL = 0.5, 15.0  # seconds between two looks at the workers, and between two lines about them
_PAUSE = 10.0  # seconds before another worker takes a dead one's place: what it died of may be over
_ROOM = 1.5  # times the memory that a killed worker held: with so much, another comes at once


@dataclass
class _Worker:
    """A worker that runs.

    Attributes:
        held: bytes of memory, the most that it was seen to hold.
    """

    number: int
    process: subprocess.Popen[bytes]
    held: int = 0

    def end(self) -> None:
        """Ends it, and what it launched, which would hold its run and its devices."""
        with suppress(ProcessLookupError, PermissionError):  # nobody is left of it
            os.killpg(self.process.pid, signal.SIGKILL)  # it leads a session of its own
        self.process.wait()

    def look(self) -> None:
        """Sees how much memory it holds."""
        with suppress(psutil.Error):
            self.held = max(self.held, psutil.Process(self.process.pid).memory_info().rss)


@dataclass(frozen=True)
class _Coming:
    """A worker that is to take a dead one's place.

    Attributes:
        due: not before this time.
        beside: by worker, the cells during which the dead one was killed. Most likely memory was short, and would be
            again until one of them ends, unless something else had taken it that is gone.
        held: bytes that the dead one held.
    """

    number: int
    due: float
    beside: dict[int, str | None]
    held: int


def run_workers(
    grid: Grid,
    path: Path,
    out: Path,
    *,
    workers: int,
    blocks: Sequence[str] = (),
    minutes: float | None = None,
    grace: float = GRACE,
    data_dir: Path | None = None,
    quiet: bool = False,
) -> list[str]:
    """Trains, probes and evaluates a grid's cells in several processes.

    A worker that dies is named, and its cell is tried by another, up to :data:`TRIES` times; where it was killed, as
    for want of memory, not before a cell beside it has ended or there is far more memory than it held. Ctrl-C stops
    all of them; they save their states first.

    Args:
        workers: processes.
        blocks: see :func:`training.grid.run_grid`.
        minutes: after so many no cell is begun any more; with 0 none at all.
        grace: seconds that running cells have after that; then they are stopped, and have as many to save their states.
        data_dir, quiet: see :func:`training.grid.run_grid`.

    Returns:
        One line for each cell that could not be trained.

    Raises:
        MemprobeError: bad input, or workers that do not start.
        Interrupted: on Ctrl-C, when the workers have ended.
    """
    every = cells_of(grid, path)
    cells = cells_in(every, blocks, path)
    crew = Crew(out)
    after_of(grid, path)
    check_bases(cells, path, out)
    with started(every, path, out, data_dir):
        return _watched(crew, cells, _command(path, out, blocks, data_dir), workers, minutes, grace, quiet)


def _watched(
    crew: Crew,
    cells: Sequence[Cell],
    command: list[str],
    workers: int,
    minutes: float | None,
    grace: float,
    quiet: bool,
) -> list[str]:
    """Starts the workers and stays until they have ended; see :func:`run_workers`."""
    out = crew.out
    crew.start()
    crowd = _Crowd(crew, cells, command, RunLog(out / LOG, quiet=quiet), grace=grace)
    try:
        crowd.run(workers, None if minutes is None else 60 * minutes)
    except KeyboardInterrupt as error:
        crowd.report.say("interrupted; the workers save their states and end")
        crowd.stop()
        raise Interrupted(
            f"interrupted; what is finished is kept in {out}, the same command goes on"
        ) from error
    finally:
        crowd.kill()
    done, broken = sum(is_done(out, cell) for cell in cells), crew.broken()
    remaining = len(cells) - done - len(broken)
    crowd.report.say(
        f"{out}: {done} of {len(cells)} cells are done"
        + (f", {len(broken)} broke" if broken else "")
        + (f", {remaining} are left (the same command goes on)" if remaining else "")
        + f"; python -m training report {shlex.quote(str(out))}"
    )
    return [f"{name}: {why}" for name, why in broken.items()]


def _command(path: Path, out: Path, blocks: Sequence[str], data_dir: Path | None) -> list[str]:
    command = [sys.executable, "-m", "training", "grid", str(path), "--out", str(out)]
    command += [word for name in blocks for word in ("--block", name)]
    return command + (["--data-dir", str(data_dir)] if data_dir is not None else [])


class _Crowd:
    """The workers as they run."""

    def __init__(
        self, crew: Crew, cells: Sequence[Cell], command: list[str], report: RunLog, *, grace: float
    ):
        self.crew, self.cells, self.command, self.report, self.grace = crew, cells, command, report, grace
        self.running: list[_Worker] = []
        self.coming: list[_Coming] = []
        self.deaths: Counter[str] = Counter()
        self.unborn = 0  # deaths in a row before a worker was at a cell
        self.began = time.monotonic()
        self.before = self._done()

    def run(self, workers: int, seconds: float | None) -> None:
        """Until every worker has ended."""
        self.report.say(
            f"{self.crew.out}: {len(self.cells)} cells, {self.before} done before; {workers} workers"
        )
        # A worker would be at a cell before the clock is looked at.
        over = seconds is not None and seconds <= 0
        for number in range(1, 1 if over else workers + 1):
            self._start(number)
        if over:
            self.report.say("0 minutes are over: no cell is begun")
        reported, closed = self.began, False
        while self.running or self.coming:
            time.sleep(_LOOK)
            now = time.monotonic()
            for one in [one for one in self.coming if self._may_come(one, now) or self.crew.closed]:
                self.coming.remove(one)
                if not self.crew.closed:
                    self._start(one.number)
            if seconds is not None and not closed and now - self.began >= seconds:
                closed = True
                self.crew.close()
                self.report.say(
                    f"{seconds / 60:g} minutes are over: no cell is begun any more, and those that run have "
                    f"{self.grace:g} s"
                )
            if seconds is not None and now - self.began >= seconds + self.grace:
                self.report.say("time is up: the workers save their states and end")
                self.stop()
                return
            for worker in list(self.running):
                worker.look()
                if (code := worker.process.poll()) is not None:
                    self.running.remove(worker)
                    worker.end()
                    if code and not self.crew.closed:
                        self._died(worker, code)
            if now - reported >= _TELL:
                reported = now
                self._tell()

    def stop(self) -> None:
        """Asks all workers to end, waits for them, and ends those that do not."""
        self.crew.close()
        for worker in self.running:
            worker.process.terminate()
        until = time.monotonic() + self.grace
        while time.monotonic() < until and any(worker.process.poll() is None for worker in self.running):
            time.sleep(0.1)
        self.kill()

    def kill(self) -> None:
        """Ends what still runs."""
        for worker in self.running:
            worker.end()
        self.running = []

    def _start(self, number: int) -> None:
        environment = {
            # The processes share the cores, and on a device whole files of memory.
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "POLARS_MAX_THREADS": "2",
            "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
        } | os.environ
        with Crew(self.crew.out, number).log.open("ab") as log:
            process = subprocess.Popen(
                [*self.command, "--worker", str(number)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,  # Ctrl-C comes to this process alone, which tells them
            )
        self.running.append(_Worker(number, process))

    def _may_come(self, one: _Coming, now: float) -> bool:
        """Whether a dead worker's place is to be taken now."""
        if one.due > now:
            return False
        at = self._at()
        ended = any(number not in at or at[number] != cell for number, cell in one.beside.items())
        return not one.beside or ended or psutil.virtual_memory().available > _ROOM * one.held

    def _at(self) -> dict[int, str | None]:
        """By running worker, the cell that it is at."""
        return {worker.number: self.crew.cell_of(worker.number) for worker in self.running}

    def _died(self, worker: _Worker, code: int) -> None:
        """Names a dead worker and its cell, and starts another in its place.

        Raises:
            MemprobeError: workers die before they come to a cell.
        """
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        last_words = self._last_line(worker.number)
        cell = self.crew.cell_of(worker.number)
        what = f"worker {worker.number} died ({how}{': ' + last_words if last_words else ''})"
        if cell is None:
            self.unborn += 1
            if self.unborn > TRIES:
                raise MemprobeError(f"{what} before it came to a cell; see {self._log(worker.number)}")
        else:
            self.unborn = 0
            self.deaths[cell] += 1
            if self.deaths[cell] >= TRIES:
                self.crew.give_up(cell, f"{what}; see {self._log(worker.number)}")
        tried = "" if cell is None else f" at {cell}" + (", which is left out" if self._out(cell) else "")
        beside = self._at() if -code == signal.SIGKILL else {}
        when = " when a cell beside it ends or memory is free" if beside else ""
        self.report.say(f"{what}{tried}; another takes its place{when}")
        Crew(self.crew.out, worker.number).at(None)
        self.coming.append(_Coming(worker.number, time.monotonic() + _PAUSE, beside, worker.held))

    def _out(self, cell: str) -> bool:
        return self.deaths[cell] >= TRIES

    def _log(self, number: int) -> Path:
        return Crew(self.crew.out, number).log

    def _last_line(self, number: int) -> str:
        path = self._log(number)
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []
        return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "")

    def _done(self) -> int:
        return sum(is_done(self.crew.out, cell) for cell in self.cells)

    def _tell(self) -> None:
        """Cells done, cells an hour, time left, and what the workers are at."""
        done, hours = self._done(), (time.monotonic() - self.began) / 3600
        rate = (done - self.before) / hours
        remaining = len(self.cells) - done - len(self.crew.broken())
        at = sorted({cell for cell in self._at().values() if cell})
        self.report.say(
            f"{done}/{len(self.cells)} cells, {rate:.1f} an hour"
            + (f", {_duration(remaining / rate)} left" if rate else "")
            + (f"; at {', '.join(at)}" if at else "; starting")
        )


def _duration(hours: float) -> str:
    return f"{60 * hours:.0f} min" if hours < 2 else f"{hours:.1f} h"
