"""Steps of a probe, and this process as the one that takes them; :mod:`memprobe.engine` has Ray for that.

A flow is what is to be done for one checkpoint, as a generator: it yields a step, and is sent what the step gave. Here
the flows run one after another; on Ray beside each other, each step wherever there is room.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from memprobe.probe_writer import Parts
from memprobe.prober import Prober, ProbeRequest, Unit

Item = Any
"""A checkpoint, one that is found when its turn comes, or a model in memory: what has a label."""


@dataclass(frozen=True)
class Do:
    """Call a method of :class:`memprobe.prober.Prober` for a checkpoint."""

    method: str
    item: Item
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Read:
    """Read units of a checkpoint; ``on_rows`` is called whenever ``parts`` has more. ``following`` is loaded next."""

    item: Item
    units: Sequence[Unit]
    parts: Parts
    on_rows: Callable[[], None]
    following: Item | None = None


@dataclass(frozen=True)
class Turn:
    """Wait for every flow before this one, so that files do not depend on who was faster.

    Attributes:
        name: of this place in a flow.
        after: the place that they must have passed if they have not ended; this one where nothing is named.
    """

    name: str
    after: str | None = None


@dataclass(frozen=True)
class Evict:
    """Delete a hub checkpoint that was read from the hub's cache."""

    item: Item


Step = Do | Read | Turn | Evict
Flow = Generator[Step, Any, None]


class Hands(Protocol):
    """Who takes steps.

    Attributes:
        dtype: in which models are read.
    """

    dtype: str

    def __enter__(self) -> Hands: ...

    def __exit__(self, *exception: object) -> None: ...

    def run(self, flows: Sequence[tuple[Item, Flow]]) -> list[str]:
        """Runs flows to their ends; a line for each that failed."""
        ...

    def fetch(self, out: Path, label: str, mark: str) -> bool:
        """Brings parts of a checkpoint that are elsewhere into a probe directory; whether there were any.

        Args:
            mark: what tells them from another probe's, see :func:`memprobe.probe_writer.mark_of_parts`.

        Raises:
            MemprobeError: what is there is another probe's.
        """
        ...

    def forget(self, label: str) -> None:
        """Deletes them elsewhere."""
        ...


class Here:
    """This process: one flow after another; what goes wrong is raised at once."""

    def __init__(self, asked: ProbeRequest):
        self.prober = Prober(asked)
        self.dtype = self.prober.dtype

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *exception: object) -> None:
        self.prober.__exit__(*exception)

    def run(self, flows: Sequence[tuple[Item, Flow]]) -> list[str]:
        """Runs flows in order. While a model computes, the next checkpoint's files are read."""
        for _, flow in flows:
            given: Any = None
            try:
                while True:
                    step = flow.send(given)
                    given = self._take(step)
            except StopIteration:
                pass
            finally:
                flow.close()
        return []

    def _take(self, step: Step) -> Any:
        if isinstance(step, Turn):
            return None
        if isinstance(step, Do):
            return getattr(self.prober, step.method)(step.item, *step.arguments)
        if isinstance(step, Evict):
            return self.prober.evict(step.item)
        self.prober.announce(step.item, step.following)
        try:
            for unit in step.units:
                for place, tables in self.prober.read(step.item, unit):
                    step.parts.add(place, tables)
                    step.on_rows()
        finally:
            step.parts.flush()  # what is finished stays, also after Ctrl-C
        return None

    def fetch(self, out: Path, label: str, mark: str) -> bool:
        """Everything is here."""
        return False

    def forget(self, label: str) -> None:
        """Nothing is elsewhere."""
