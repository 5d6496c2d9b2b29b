"""What a run says while it works: a bar on a terminal, plain lines elsewhere and in ``log.txt``."""

from __future__ import annotations

import time
import traceback
from pathlib import Path
from typing import Any

_EVERY = 15.0  # seconds between two plain lines of one stage


class RunLog:
    """Lines and bars of one run; silent in all processes but the first."""

    def __init__(self, path: Path | None, *, quiet: bool = False):
        """``path`` is the log file; with ``quiet`` there is nothing but that."""
        from memprobe.cli.terminal import terminal

        self.console = terminal(stderr=True, quiet=quiet, highlight=False)
        self.path = path
        self.bar: Any = None
        self.last = 0.0

    def say(self, line: str) -> None:
        """One line, to standard error and into the log file."""
        self.console.print(line, markup=False, soft_wrap=True)
        self._log(line)

    def keep_traceback(self, error: BaseException) -> None:
        """Where an error came from, into the log file alone."""
        for line in "".join(traceback.format_exception(error)).splitlines():
            self._log(line)

    def start(self, name: str, total: int, done: int) -> None:
        """A bar for a stage of so many optimiser steps."""
        from memprobe.cli.terminal import progress_bar

        self.name, self.total, self.first, self.began = name, total, done, time.monotonic()
        self.last = self.began
        self.bar = progress_bar(self.console, "{task.fields[status]}", elapsed=False)
        self.task = self.bar.add_task(name, total=total, completed=done, status="")
        self.bar.start()

    def step(self, done: int, loss: float, exact: float | None) -> None:
        """After an optimiser step: its loss, and the share of own rows answered exactly so far."""
        elapsed = max(time.monotonic() - self.began, 1e-9)
        rate = (done - self.first) / elapsed
        status = f"loss {loss:.4g}" + (f"  exact {exact:.0%}" if exact is not None else "")
        status += f"  {rate:.2f} steps/s"
        self.bar.update(self.task, completed=done, status=status)
        if time.monotonic() - self.last >= _EVERY:
            self.last = time.monotonic()
            seconds = (self.total - done) / max(rate, 1e-9)
            line = f"{self.name}: step {done}/{self.total}  {status}  {seconds:.0f} s left"
            self._log(line)
            if not self.console.is_terminal:
                self.console.print(line, markup=False, soft_wrap=True)

    def stop(self) -> None:
        """Ends the bar."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _log(self, line: str) -> None:
        if self.path is not None and self.path.parent.is_dir():
            with self.path.open("a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}\n")
