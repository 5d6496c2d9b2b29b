"""Progress of long work on standard error: bars with rate and time left, plain lines where that is a file."""

from __future__ import annotations

import time
from typing import Any

from memprobe.cli.terminal import echo, progress_bar, terminal


class Bars:
    """A bar per label; ``done`` factoids of an earlier run do not count in the rate."""

    def __init__(self) -> None:
        self.console = terminal(stderr=True)
        self.progress = progress_bar(self.console, "{task.fields[rate]}", "{task.fields[note]}")
        self.tasks: dict[str, Any] = {}
        self.starts: dict[str, tuple[float, int]] = {}

    def __enter__(self) -> Bars:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def update(self, label: str, done: int, total: int, note: str = "") -> None:
        """Moves a bar; the first call for a label says where it starts."""
        if label not in self.tasks:
            self.tasks[label] = self.progress.add_task(label, total=total, completed=done, rate="", note=note)
            self.starts[label] = (time.monotonic(), done)
            if done == total:
                echo(f"{label}: all {total} factoids were done before and are kept", err=True)
            elif done:
                echo(f"{label}: {done} of {total} factoids were done before and are kept", err=True)
            return
        start, before = self.starts[label]
        rate = f"{(done - before) / max(time.monotonic() - start, 1e-9):.1f}/s"
        self.progress.update(self.tasks[label], completed=done, rate=rate, note=note)
        if not self.console.is_terminal and done == total:
            echo(f"{label}: {total} factoids at {rate}", err=True)
