"""Probing on a Ray cluster: actors that hold one loaded model each take units and write parts.

    this process ──steps of each checkpoint──> actors: open, read a unit, …      (Ray places, restarts and shows them)
                 <──a part by its name──────── parts/, or a storage that all reach
                 merges parts by name, writes run.json

An actor keeps the model that it holds as long as there are units of it; then it takes the next checkpoint, and where
none is left it helps with the units of another one. While it computes, it reads the files of the checkpoint that it is
likely to take next (:mod:`memprobe.loading`), each actor another one. There are as many actors as units and checkpoints
to take, where the cluster has room for them. A lost actor's unit is read by another; Ray starts the actor again where
there is room. A unit that fails three times is named, and the other checkpoints go on.
"""

from __future__ import annotations

import tempfile
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memprobe.cluster import Engine, all_done, connect, no_room, rooms, some_done, while_connected
from memprobe.errors import MemprobeError, first_line
from memprobe.hands import Do, Evict, Flow, Item, Read, Turn
from memprobe.probe_writer import write_part
from memprobe.prober import Prober, ProbeRequest, Unit
from memprobe.probes import part_files, parts_dir
from memprobe.records import BY_CHECKPOINT
from memprobe.residuals import folder_of
from memprobe.storage import Mirror, absolute, stand_in

TRIES = 3
"""Times that a step is tried."""
_MARK = "of"  # beside the parts of a checkpoint in a storage: whose they are
_LOOK = 5.0  # seconds between two looks at what the cluster has room for


class Parted(Prober):
    """A prober on a node: leaves each unit as a part where the driver finds it by name.

    Attributes:
        folder: that holds parts: the probe directory, or a storage.
        elsewhere: whether it is a storage.
    """

    def __init__(self, asked: ProbeRequest, folder: str, where: str, elsewhere: bool = False):
        stand_in(where)
        super().__init__(asked)
        self.folder, self.elsewhere = folder, elsewhere

    def ready(self) -> str:
        """In which dtype models are read here."""
        return self.dtype

    def part(self, item: Item, unit: Unit, following: Item | None = None, beside: int = 1) -> str:
        """Reads a unit into a part; the name of its outcomes.

        Args:
            following: the checkpoint whose files are read meanwhile.
            beside: actors of one node that may do so at once.
        """
        from memprobe.capturing import Tables

        self.model(item)  # what is read ahead is held against the model that is there
        self.announce(item, following, beside)
        pieces = list(self.read(item, unit))
        place, tables = pieces[0][0], Tables.concat([tables for _, tables in pieces])
        if not self.elsewhere:
            return write_part(parts_dir(Path(self.folder), item.label), place, tables)
        with tempfile.TemporaryDirectory(prefix="memprobe-part-") as name:
            outcomes = write_part(parts_dir(Path(name), item.label), place, tables)
            Mirror(self.folder, Path(name), _outcomes_last).push(parts_dir(Path(), item.label).as_posix())
        return outcomes

    def keep_residuals(self, item: Item, out: Path) -> dict[str, Any]:
        """Keeps the residual stream, in a storage where nodes share nothing else; a killed try goes on there."""
        if not self.elsewhere:
            return super().keep_residuals(item, out)
        shards = folder_of(Path(), item.label).as_posix()
        with tempfile.TemporaryDirectory(prefix="memprobe-residuals-") as name:
            mirror = Mirror(self.folder, Path(name))
            mirror.pull(shards)
            with mirror.pushing(shards):
                return super().keep_residuals(item, Path(name))


def _outcomes_last(path: str) -> int:
    """The outcomes of a part say that it is whole."""
    return path.rpartition("/")[2].startswith("outcomes-")


@dataclass(eq=False)
class _Actor:
    handle: Any
    label: str | None = None  # of the checkpoint that it holds
    ready: bool = False
    deaths: int = 0  # since it last did something
    ahead: _Running | None = None  # whose files it reads while it is at another


@dataclass(eq=False)
class _Running:
    """A flow."""

    item: Item
    flow: Flow
    step: Any = None
    waiting: deque[tuple[str, tuple[Any, ...]]] = field(default_factory=deque)
    out: int = 0
    readers: set[_Actor] = field(default_factory=set)  # which have its files, on whatever node
    parts: Any = None
    on_rows: Callable[[], None] | None = None
    given: Any = None
    passed: set[str] = field(default_factory=set)
    tries: Counter[str] = field(default_factory=Counter)
    begun: bool = False
    ended: bool = False


class OnRay:
    """A cluster that takes the steps of all checkpoints beside each other."""

    def __init__(self, engine: Engine, asked: ProbeRequest, out: Path):
        self.engine, self.out = engine, out
        self.folder = absolute(engine.storage or str(out))
        self.elsewhere = engine.storage is not None
        self.home = Mirror(self.folder, out, _outcomes_last) if self.elsewhere else None
        self.asked = asked
        self.dtype = ""
        self.flows: list[_Running] = []
        self.actors: list[_Actor] = []
        self.made = 0  # of them
        self.beside = 1  # of them that may be on one node
        self.pending: dict[Any, tuple[_Actor, _Running | None, Any]] = {}
        self.evicting: list[Any] = []
        self.failed: dict[int, str] = {}
        self.namespace = f"memprobe-{uuid.uuid4().hex}"  # in which names of actors are this probe's own

    def __enter__(self) -> OnRay:
        self.ray, self.own = connect(self.engine.address, self.engine.say)
        try:
            self.resources = self._resources()
            if lacking := no_room(self.ray, self.resources):
                self.engine.say(f"--engine {self.engine.address}: {lacking}")
            self._grow(1)
            self.dtype = self._first_dtype()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        for actor in self.actors:
            self.ray.kill(actor.handle, no_restart=True)
        self.actors = []
        if self.own:
            self.ray.shutdown()

    def run(self, flows: Sequence[tuple[Item, Flow]]) -> list[str]:
        """Runs flows beside each other; a line for each that failed, in their order."""
        with while_connected(self.engine.address):
            return self._run(flows)

    def _run(self, flows: Sequence[tuple[Item, Flow]]) -> list[str]:
        self.flows = [_Running(item, flow) for item, flow in flows]
        looked = 0.0
        self._advance()
        while any(not one.ended for one in self.flows):
            if time.monotonic() - looked > _LOOK:
                looked = time.monotonic()
                self._grow(self._wanted())
            self._hand_out()
            if not self.actors:
                raise MemprobeError(f"--engine {self.engine.address}: no actor stays alive; {self.last}")
            for ref in some_done(self.ray, self.pending):
                self._take(ref)
            self._advance()
        all_done(self.ray, self.evicting)
        return [self.failed[place] for place in sorted(self.failed)]

    def fetch(self, out: Path, label: str, mark: str) -> bool:
        """Copies parts that are in the storage alone; whether there were any."""
        if self.home is None:
            return False
        folder = parts_dir(Path(), label).as_posix()
        there = self.home.listed(folder)
        if not there:
            self.home.write(mark, f"{folder}/{_MARK}")
        elif self.home.read(f"{folder}/{_MARK}") != mark:
            raise MemprobeError(
                f"--storage {self.engine.storage}: {folder} holds parts of another probe, of other weights or facts; "
                "give another --storage, or delete that folder"
            )
        here = {file.name for file in part_files(out, label, "outcomes")}
        missing = {path.rpartition("/")[2] for path in there if _outcomes_last(path)} - here
        for name in sorted(missing):
            self._fetch_part(self.home, label, name)
        return bool(missing)

    def forget(self, label: str) -> None:
        """Deletes a checkpoint's parts from the storage."""
        if self.home is not None:
            self.home.delete(self.home.listed(parts_dir(Path(), label).as_posix()))

    def _fetch_part(self, home: Mirror, label: str, name: str) -> None:
        """Brings the tables of a part that is named by its outcomes, which come last."""
        for table in BY_CHECKPOINT:
            home.bring((parts_dir(Path(), label) / name.replace("outcomes", table, 1)).as_posix())

    def _resources(self) -> dict[str, Any]:
        """What an actor takes."""
        options = self.engine.each.options()
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        if "num_gpus" not in options and any(node.get("GPU") for node in nodes):
            options["num_gpus"] = 1.0
        if "num_cpus" not in options:
            cores = [node["CPU"] for node in nodes if node.get("CPU")]
            options["num_cpus"] = 1.0 if options.get("num_gpus") else min(cores, default=1.0)
        return options

    def _rooms(self) -> list[int]:
        """Actors that each node of the cluster as it is has room for."""
        return rooms(self.ray, self.resources)

    def _wanted(self) -> int:
        """Actors that are asked for, or that there is work for: a step each, or a checkpoint that is not begun."""
        if self.engine.actors is not None:
            return self.engine.actors
        return sum(len(one.waiting) + one.out if one.begun else 1 for one in self.flows)

    def _grow(self, wanted: int) -> None:
        """Starts actors up to a number, as far as there is room; those that were asked for also where there is none."""
        places = self._rooms()
        most = max(1, min(wanted, sum(places))) if self.engine.actors is None else wanted
        made = self.ray.remote(Parted)
        while len(self.actors) < most:
            # Ray starts a lost actor again, on another node if need be; its unit goes to whoever is free.
            options = {"max_restarts": -1, "max_task_retries": 0, **self.resources}
            self.made += 1
            options |= {"name": f"{self.out.name} {self.made}", "namespace": self.namespace}
            actor = _Actor(
                made.options(**options).remote(self.asked, self.folder, str(Path.cwd()), self.elsewhere)
            )
            self.actors.append(actor)
            self._wait_for(actor)
        self.beside = max(1, min(len(self.actors), max(places, default=1)))

    def _wait_for(self, actor: _Actor) -> None:
        actor.ready, actor.label, actor.ahead = False, None, None
        self._no_reader(actor)
        ready = actor.handle.ready.options(max_task_retries=-1)  # waits for the actor to be started again
        self.pending[ready.remote()] = actor, None, None

    def _first_dtype(self) -> str:
        """The dtype of the first actor; what it cannot do is said before anything is written."""
        (ref,) = self.pending
        try:
            return self.ray.get(ref)
        except self.ray.exceptions.RayError as error:
            raise cause_of(error) from None

    def _hand_out(self) -> None:
        busy = {actor for actor, _, _ in self.pending.values()}
        free = [actor for actor in self.actors if actor.ready and actor not in busy]
        # Who holds a model that is asked for chooses first, so that no other loads it for the same step.
        for actor in sorted(free, key=lambda actor: self._of_held(actor) is None):
            one = self._next_for(actor)
            if one is None:
                continue
            method, arguments = task = one.waiting.popleft()
            one.out += 1
            one.readers.add(actor)
            if method != "texts" and actor.label != one.item.label:  # for texts no model is loaded
                actor.label, actor.ahead = one.item.label, None
            if method == "part":
                arguments = (*arguments, self._ahead(actor), self.beside)
            step = getattr(actor.handle, method).options(name=f"{one.item.label} {_what(task)}")
            self.pending[step.remote(one.item, *arguments)] = actor, one, task

    def _of_held(self, actor: _Actor) -> _Running | None:
        """The flow of the model that an actor holds, if a step of it waits."""
        return next((one for one in self.flows if one.waiting and one.item.label == actor.label), None)

    def _ahead(self, actor: _Actor) -> Item | None:
        """The checkpoint whose files an actor reads while it is at another; chosen once for each that it is at."""
        if actor.ahead is None:
            actor.ahead = self._not_begun()
            if actor.ahead is not None:
                actor.ahead.readers.add(actor)
        return None if actor.ahead is None else actor.ahead.item

    def _not_begun(self) -> _Running | None:
        """The first flow that is neither begun nor read ahead by an actor."""
        ahead = {actor.ahead for actor in self.actors}
        return next((one for one in self.flows if not one.begun and one not in ahead), None)

    def _next_for(self, actor: _Actor) -> _Running | None:
        """Whose step an actor takes: of the model that it holds, of a checkpoint not begun, of any other."""
        if (held := self._of_held(actor)) is not None:
            return held
        for one in self.flows:
            # Texts are left to a reader: another node would fetch a whole checkpoint for its tokenizer.
            theirs = isinstance(one.step, Do) and one.step.method == "texts" and one.readers
            if one.waiting and isinstance(one.step, Do) and (not theirs or actor in one.readers):
                return one
        while (one := self._to_begin(actor)) is not None:
            one.begun = True
            self._advance_one(one)
            if one.waiting:
                return one
        return next((one for one in self.flows if one.waiting and isinstance(one.step, Read)), None)

    def _to_begin(self, actor: _Actor) -> _Running | None:
        """The flow that an actor begins: what it read ahead, what nobody did, or another did."""
        if actor.ahead is not None and not actor.ahead.begun:
            return actor.ahead
        return self._not_begun() or next((one for one in self.flows if not one.begun), None)

    def _take(self, ref: Any) -> None:
        """What a step gave, or how it failed."""
        actor, one, task = self.pending.pop(ref)
        lost = (self.ray.exceptions.RayActorError, self.ray.exceptions.ActorUnavailableError)
        try:
            given = self.ray.get(ref)
        except self.ray.exceptions.RayError as error:
            if isinstance(error, lost):
                actor.deaths += 1
                self.last = first_line(error)
                if actor.deaths > TRIES:
                    self.actors.remove(actor)
                    self._no_reader(actor)
                else:
                    self._wait_for(actor)
            if one is None:
                if not isinstance(error, lost):
                    raise cause_of(error) from None
                return
            self._failed(one, task, error)
            return
        if one is None:
            actor.ready = True
            return
        actor.deaths = 0
        if task[0] == "part":
            if self.home is not None:
                self._fetch_part(self.home, one.item.label, given)
            file = parts_dir(self.out, one.item.label) / given
            if not one.parts.take(file):  # else the checkpoint would be called complete without these facts
                self._failed(one, task, MemprobeError(f"{file}: cannot be read here, though a node wrote it"))
                return
            one.out -= 1
            assert one.on_rows is not None
            one.on_rows()
            return
        one.out -= 1
        if task[0] == "keep_residuals" and self.home is not None:
            shards = folder_of(Path(), one.item.label).as_posix()
            self.home.pull(shards)
            self.home.delete(self.home.listed(shards))
        one.given = given

    def _failed(self, one: _Running, task: Any, error: Exception) -> None:
        one.out -= 1
        if one.ended:
            return
        what = _what(task)
        one.tries[what] += 1
        if one.tries[what] < TRIES:
            one.waiting.appendleft(task)
            return
        cause = cause_of(error)
        self._end(one, f"{one.item.label}: {what}: failed {TRIES} times: {first_line(cause)}")

    def _end(self, one: _Running, why: str | None = None) -> None:
        one.ended = True
        one.waiting.clear()
        one.flow.close()
        if why is not None:
            self.failed[self.flows.index(one)] = why
            if self.asked.evict:
                self._evict(one)

    def _evict(self, one: _Running) -> None:
        """Deletes a checkpoint from the hub's caches of the nodes that fetched it, when no step of it is left.

        Not as soon as one actor goes on to another checkpoint: others of its node read from the same cache.
        """
        self.evicting += [actor.handle.evict.remote(one.item) for actor in one.readers]

    def _no_reader(self, actor: _Actor) -> None:
        """An actor is gone, or will be another process, maybe on another node."""
        for one in self.flows:
            one.readers.discard(actor)

    def _advance(self) -> None:
        for one in self.flows:
            if one.begun:
                self._advance_one(one)

    def _advance_one(self, one: _Running) -> None:
        """Takes a flow on as far as nothing is to be waited for."""
        while not one.ended and not one.waiting and not one.out:
            if isinstance(one.step, Turn):
                place = self.flows.index(one)
                awaited = one.step.after or one.step.name
                if not all(before.ended or awaited in before.passed for before in self.flows[:place]):
                    return
                one.passed.add(one.step.name)
            given, one.given = one.given, None
            try:
                one.step = one.flow.send(given)
            except StopIteration:
                self._end(one)
            except MemprobeError as error:
                self._end(one, f"{one.item.label}: {error}")
            else:
                if isinstance(one.step, Evict):
                    self._evict(one)
                elif isinstance(one.step, Do):
                    one.waiting.append((one.step.method, one.step.arguments))
                elif isinstance(one.step, Read):
                    one.parts, one.on_rows = one.step.parts, one.step.on_rows
                    one.waiting.extend(("part", (unit,)) for unit in one.step.units)


def _what(task: tuple[str, tuple[Any, ...]]) -> str:
    """A step in words, as it is named on Ray's dashboard and where it fails."""
    method, arguments = task
    return f"batches {arguments[0].start + 1} to {arguments[0].stop}" if method == "part" else method


def cause_of(error: Exception) -> Exception:
    """What went wrong on a node, as it was raised there."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, Exception) else MemprobeError(first_line(error))
