"""A Ray cluster as a user names it: which one, what a task takes of it, and the connection."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from memprobe.errors import MemprobeError, first_line
from memprobe.sizes import parse_size

RAY = "ray"

_NAMES = {"num_gpus": "GPU", "num_cpus": "CPU", "memory": "memory"}  # what tasks take, as nodes have it
_MOMENT = 0.1  # seconds between two questions whether a task has ended
_ANSWERS = 10.0  # seconds that a machine has to answer
_CLIENT_PORT = 10001
_PLACE = re.compile(rf"(?:{RAY}://)?(\[[0-9A-Fa-f:.]+\]|[\w.-]+):(\d{{1,5}})/?")
_OUTSIDE = re.compile(rf"{RAY}://(\[[0-9A-Fa-f:.]+\]|[\w.-]+)(:\d{{1,5}})?/?")
_INSIDE = re.compile(r"(?P<host>[\w.-]+):\d{1,5}")


def _silent(_line: str) -> None:
    pass


@dataclass(frozen=True)
class Resources:
    """What one task or actor takes; ``memory`` in bytes. ``None``: what the cluster suggests."""

    gpus: float | None = None
    cpus: float | None = None
    memory: int | None = None

    def options(self) -> dict[str, Any]:
        """As Ray spells them."""
        named = {"num_gpus": self.gpus, "num_cpus": self.cpus, "memory": self.memory}
        return {name: value for name, value in named.items() if value is not None}


@dataclass(frozen=True)
class Engine:
    """A Ray cluster, and how it is used.

    Attributes:
        address: ``ray``: the cluster that this machine belongs to, else this machine alone; ``ray://HOST[:PORT]``: one
            that is reached from outside.
        each: what one loaded model takes; by default a GPU, or on a cluster without any all cores of a node.
        actors: models that are loaded at once; by default as many as there is room and work for.
        storage: a folder or fsspec URL that all nodes reach, where they leave what they make; by default the directory
            of results, which they must reach then.
        say: told where Ray's dashboard is.
    """

    address: str = RAY
    each: Resources = field(default_factory=Resources)
    actors: int | None = None
    storage: str | None = None
    say: Callable[[str], object] = field(default=_silent, compare=False)


def parse_engine(text: str, resources: str | None = None, storage: str | None = None) -> Engine:
    """An engine from ``--engine``, ``--resources`` and ``--storage``.

    Args:
        resources: ``gpus=1,cpus=4,memory=40GiB,actors=8``, each of them or none.

    Raises:
        MemprobeError: it names something else.
    """
    if text != RAY and not _OUTSIDE.fullmatch(text):
        raise MemprobeError(f"--engine {text}: {_what_to_write(text)}")
    amounts: dict[str, str] = {}
    for part in (resources or "").split(",") if resources else []:
        name, sign, value = (piece.strip() for piece in part.partition("="))
        if name not in ("gpus", "cpus", "memory", "actors") or not sign or name in amounts:
            raise MemprobeError(
                f"--resources {resources}: write gpus=1,cpus=4,memory=40GiB,actors=8, or some of them"
            )
        amounts[name] = value
    gpus, cpus = (_number(amounts.get(name), name) for name in ("gpus", "cpus"))
    actors = _number(amounts.get("actors"), "actors")
    if actors is not None and (actors < 1 or actors != int(actors)):
        raise MemprobeError(f"--resources actors={amounts['actors']}: give a whole number of at least 1")
    memory = parse_size(amounts["memory"]) if "memory" in amounts else None
    return Engine(text, Resources(gpus, cpus, memory), None if actors is None else int(actors), storage)


def _what_to_write(text: str) -> str:
    if text == "auto":
        return "give ray, which takes the cluster that this machine belongs to"
    if inside := _INSIDE.fullmatch(text):
        return (
            f"from a machine of that cluster set RAY_ADDRESS={text} and give ray; "
            f"from outside give ray://{inside['host']}:{_CLIENT_PORT}"
        )
    return "give ray, or ray://HOST:PORT"


def _number(text: str | None, name: str) -> float | None:
    if text is None:
        return None
    if not re.fullmatch(r"\d{1,6}(\.\d{1,3})?", text):
        raise MemprobeError(f"--resources {name}={text}: give a number")
    return float(text)


def rooms(ray: Any, options: Mapping[str, Any]) -> list[int]:
    """How many of a task or actor each node of the cluster as it is could hold, if it did nothing else.

    Args:
        options: what one takes, as :meth:`Resources.options` has it.
    """
    asked = _asked(options)
    return [
        int(min((node.get(name, 0) // amount for name, amount in asked.items()), default=1))
        for node in _nodes(ray)
    ]


def no_room(ray: Any, options: Mapping[str, Any]) -> str | None:
    """That no node could ever hold a task, for which Ray waits without a word; ``None`` where one could.

    It is no error: a cluster may grow, and nodes may join late.
    """
    if any(rooms(ray, options)):
        return None
    asked = _asked(options)
    most = {name: max((node.get(name, 0) for node in _nodes(ray)), default=0) for name in asked}
    wanted, there = (
        ", ".join(f"{name} {_amount(name, number)}" for name, number in some.items())
        for some in (asked, most)
    )
    return f"no node of the cluster has {wanted} (at most {there}): waiting until one joins it"


def _asked(options: Mapping[str, Any]) -> dict[str, float]:
    """What a task takes, by the names that nodes have for it."""
    return {name: options[key] for key, name in _NAMES.items() if options.get(key)}


def _nodes(ray: Any) -> list[Mapping[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _amount(name: str, number: float) -> str:
    return f"{number / 2**30:.3g} GiB" if name == "memory" else f"{number:g}"


def some_done(ray: Any, references: Collection[Any]) -> list[Any]:
    """Those of some tasks that have ended, none or one, after a moment.

    Asks and sleeps here. The process in which Ray waits for a client from outside never ends when that client is gone
    meanwhile (as Ray 2.60 does it): it runs at full speed, and the client's tasks stay alive.
    """
    done = ray.wait(list(references), num_returns=1, timeout=0)[0]
    if not done:
        time.sleep(_MOMENT)
    return done


def all_done(ray: Any, references: Collection[Any]) -> None:
    """Waits until some tasks have ended, however they did; as :func:`some_done` waits."""
    running = list(references)
    while running:
        for reference in some_done(ray, running):
            running.remove(reference)


def connect(address: str, say: Callable[[str], object] = _silent) -> Any:
    """Ray, connected.

    Args:
        say: told where its dashboard is, if there is one.

    Returns:
        The module, and whether this call connected it.

    Raises:
        MemprobeError: the extra is not installed, or no cluster answers.
    """
    try:
        import ray
    except ImportError as error:
        raise MemprobeError(
            "--engine ray needs the extra `cluster`: python -m pip install 'memprobe[cluster]'"
        ) from error
    if ray.is_initialized():
        return ray, False
    options: dict[str, Any] = {
        "ignore_reinit_error": True,
        "logging_level": "warning",
        "log_to_driver": False,
    }
    named = os.environ.get("RAY_ADDRESS", "")  # Ray's own, of the cluster that this machine belongs to
    if address != RAY:
        host = address.removeprefix(f"{RAY}://").rstrip("/")
        with_port = named = host if re.search(r":\d+$", host) else f"{host}:{_CLIENT_PORT}"
        options = {"address": f"{RAY}://{with_port}", "log_to_driver": False}
        logging.getLogger("ray").setLevel(logging.WARNING)
        # What a killed process began ends with it, so that the same command finds its directory free.
        os.environ.setdefault("RAY_CLIENT_RECONNECT_GRACE_PERIOD", "0")
    if place := _PLACE.fullmatch(named):
        _check_there(address, place[1].strip("[]"), int(place[2]))
    try:
        context = _init(ray, options)
    except Exception as error:  # Ray raises plain ones too, as where its own node does not come up in time
        raise MemprobeError(
            f"--engine {address}: no cluster answers, and none could be started here ({first_line(error)})"
            if address == RAY
            else f"--engine {address}: no cluster answers ({first_line(error)})"
        ) from error
    if url := getattr(context, "dashboard_url", None):
        say(f"Ray's dashboard: http://{url}")
    return ray, True


def _check_there(address: str, host: str, port: int) -> None:
    """Asks whether a machine answers at all: Ray finds out after a minute, with lines of its own, and is not to be
    stopped meanwhile.

    Raises:
        MemprobeError: it does not.
    """
    try:
        socket.create_connection((host, port), _ANSWERS).close()
    except OSError as error:
        where = ", which RAY_ADDRESS names" if address == RAY else ""
        raise MemprobeError(
            f"--engine {address}: no cluster answers at {host}:{port}{where} ({first_line(error)})"
        ) from error


def _init(ray: Any, options: dict[str, Any], tries: int = 5) -> Any:
    """Ray's context, connected; a client whose server process died at its start asks for another one.

    Ray's proxy forks that process beside threads of gRPC, and about one in ten does not live. Ray takes SIGTERM for
    itself, which ends the process without a word; who had taken it before keeps it.
    """
    taken = signal.getsignal(signal.SIGTERM)
    while True:
        tries -= 1
        try:
            return ray.init(**options)
        except ConnectionAbortedError:
            if not tries:
                raise
        finally:
            if callable(taken) and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, taken)
        time.sleep(1)


@contextmanager
def while_connected(address: str) -> Iterator[None]:
    """Says so where the connection to a cluster is lost meanwhile.

    Raises:
        MemprobeError: it was.
    """
    try:
        yield
    except ConnectionError as error:
        raise MemprobeError(
            f"--engine {address}: the connection was lost ({first_line(error)}); the same command goes on"
        ) from error
