"""A Ray cluster of several nodes on this machine, and actors that fail when a test wants it."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from memprobe.engine import Parted
from memprobe.probes import parts_dir
from tests.forks import program

WITHOUT = "Ray is not installed: python -m pip install 'memprobe[cluster]'"
SMALL = {"num_cpus": 1, "object_store_memory": 80 * 2**20}

_WORKERS = (r"*/setup_worker.py\ */default_worker.py", r"*/default_worker.py\ *")  # not servers of clients


@contextmanager
def cluster_of(nodes: int, forks: str) -> Iterator[Any]:
    """A cluster of nodes with one core each, the head among them, that this process is connected to.

    ``cluster.outside`` is where other processes reach it by Ray's client.

    Args:
        nodes: how many.
        forks: the fixture of this name. Its workers are forks; an interpreter of their own would spend ten seconds of
            a core on imports in each.
    """
    ray = pytest.importorskip("ray", reason=WITHOUT)
    from ray.cluster_utils import Cluster

    port = free_port()
    python = str(program(forks, "node-python", only=_WORKERS))
    with pytest.MonkeyPatch.context() as patch:
        # Else some one in ten server processes of a client dies as Ray's proxy forks it beside gRPC's threads.
        patch.setenv("GRPC_ENABLE_FORK_SUPPORT", "false")
        patch.setenv("TIMEOUT_FOR_SPECIFIC_SERVER_S", "5")  # half a minute, after a client is gone
        cluster = _started(_starting(Cluster, python), port)
    cluster.add_node = _starting(cluster.add_node, python)
    cluster.outside = f"ray://127.0.0.1:{port}"
    try:
        for _ in range(nodes - 1):
            cluster.add_node(**SMALL)
        ray.init(address=cluster.address, logging_level="error", log_to_driver=False)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def clients_of(cluster: Any) -> list[Any]:
    """The processes in which a cluster does what its clients from outside ask for, one for each."""
    import psutil

    def line(process: Any) -> str:
        with suppress(psutil.Error):
            return " ".join(process.cmdline())
        return ""

    lines = ((process, line(process)) for process in psutil.process_iter())
    asked = ("--mode=specific-server", f"--address={cluster.address}")
    return [process for process, line in lines if all(word in line for word in asked)]


def free_port() -> int:
    """A port of this machine that nothing listens at."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def _starting(call: Callable[..., Any], python: str) -> Callable[..., Any]:
    """A call that starts nodes, which take a program for their interpreter."""

    def started(**options: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "executable", python)
            return call(**options)

    return started


def _started(make: Any, port: int, tries: int = 3) -> Any:
    """A head; on a busy machine it may not be up within the time that Ray gives it."""
    head = SMALL | {"include_dashboard": False, "ray_client_server_port": port}
    for number in range(1, tries + 1):
        try:
            return make(initialize_head=True, head_node_args=head)
        except Exception:
            if number == tries:
                raise
    raise AssertionError


def wait_until(there: Any, seconds: float = 60.0) -> None:
    """Waits until something is so."""
    until = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.05)


class Failing(Parted):
    """Cannot read the second unit of checkpoint ``c2``."""

    def part(self, item: Any, unit: Any, *ahead: Any) -> str:
        if item.label == "c2" and unit.start == 2:
            raise OSError("the disk that holds c2 is gone")
        return super().part(item, unit, *ahead)


class Slow(Parted):
    """Takes a while for each unit, and says where it is."""

    def part(self, item: Any, unit: Any, *ahead: Any) -> str:
        time.sleep(0.3)
        return super().part(item, unit, *ahead)


class Torn(Parted):
    """Leaves its first part so that nobody can read it."""

    def part(self, item: Any, unit: Any, *ahead: Any) -> str:
        name, mark = super().part(item, unit, *ahead), Path(f"{self.folder}-torn")
        if not mark.exists():
            mark.touch()
            (parts_dir(Path(self.folder), item.label) / name.replace("outcomes", "records")).write_text("")
        return name


class Counting(Parted):
    """Notes how many checkpoints went into a model that it held."""

    def part(self, item: Any, unit: Any, *ahead: Any) -> str:
        name = super().part(item, unit, *ahead)
        Path(f"{self.folder}-reused").write_text(f"{self.loader.reused}")
        return name


def files_of(out: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path in it."""
    return {
        file.relative_to(out).as_posix(): file.read_bytes()
        for file in sorted(out.rglob("*"))
        if file.is_file()
    }


class Beside(Parted):
    """Reads nothing before there are two of it."""

    def ready(self) -> str:
        mark = Path(f"{self.folder}-actors", str(os.getpid()))
        mark.parent.mkdir(exist_ok=True)
        mark.touch()
        return super().ready()

    def part(self, item: Any, unit: Any, *ahead: Any) -> str:
        wait_until(lambda: len(list(Path(f"{self.folder}-actors").iterdir())) > 1, 120)
        return super().part(item, unit, *ahead)


def at_work() -> list[str]:
    """What processes of this process's clusters are at: actors and tasks by their names."""
    import psutil

    titles = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            titles += [title for title in process.cmdline()[:1] if title.startswith("ray::")]
    return [
        title
        for title in titles
        if not title.startswith(("ray::IDLE", "ray::SPILL")) and "Agent" not in title
    ]
