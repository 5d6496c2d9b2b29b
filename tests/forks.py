"""A quick ``python`` for tests that start many: a fork of one process that has imported what commands import.

    [*quick_python, "-m", "training", "grid", ...]    # in the place of [sys.executable, "-m", ...]

An interpreter of its own spends nearly ten seconds of a core on torch and transformers before it does anything. The
words start a small program instead, which :func:`program` writes and which runs this file: it asks the server of forks
for one and stands for it. The fork has its streams, directory and environment, gets its SIGINT and SIGTERM, dies with
it, and it ends as the fork ended. Forks name the program as their ``sys.executable``, so that what they start are forks
as well. What is special about a fresh interpreter (what is imported when, what happens at its exit) needs a real one.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

STREAMS = (0, 1, 2)
_UNUSED = ("-I", "-S", "-u")  # flags of an interpreter that a fork can leave out of account
_LOOK = 0.01  # seconds between two looks at a fork and at who asked for it


def main() -> None:
    """What stands for a fork: ``forks.py ADDRESS EXECUTABLE (-m MODULE | -c CODE | FILE) ARGUMENT...``."""
    address, executable, *words = sys.argv[1:]
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        asked = {
            "words": words,
            "cwd": str(Path.cwd()),
            "environment": dict(os.environ),
            "executable": executable,
        }
        content = json.dumps(asked).encode()
        socket.send_fds(server, [len(content).to_bytes(8, "big")], STREAMS)
        server.sendall(content)
        fork = _number(server)

        def pass_on(number: int, _frame: object) -> None:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(fork, number)

        for one in (signal.SIGINT, signal.SIGTERM):
            signal.signal(one, pass_on)
        code = _number(server)
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
        os.kill(os.getpid(), -code)
    sys.exit(code)


def program(address: str, name: str = "python", only: Sequence[str] = ()) -> Path:
    """Writes a program that stands for an interpreter into the folder of a server's socket.

    Args:
        address: the socket.
        name: of the program.
        only: patterns, as ``case`` of a shell has them, of the first two words; anything else is left to a real
            interpreter.
    """
    path = Path(address).parent / name
    words = [sys.executable, "-I", "-S", str(Path(__file__).resolve()), address, str(path)]
    lines = ["#!/bin/sh", f'exec {shlex.join(words)} "$@"']
    if only:
        lines[1:1] = [
            f'case "$1 $2" in {"|".join(only)}) ;; *) exec {shlex.quote(sys.executable)} "$@" ;; esac'
        ]
    path.write_text("\n".join([*lines, ""]), encoding="utf-8")
    path.chmod(0o755)
    return path


def serve(address: str) -> None:
    """Forks for all who ask at a socket, until standard input ends."""
    import gc
    import select

    import_everything()
    gc.collect()
    gc.freeze()  # what is shared stays shared
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        listening.listen(16)
        while sys.stdin not in (ready := select.select([listening, sys.stdin], [], [])[0]):
            if listening in ready:
                caller, _ = listening.accept()
                if os.fork() == 0:
                    listening.close()
                    _keep(caller)
                caller.close()
            _reap()
    _reap()


def _reap() -> None:
    """Takes note of those that have ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _keep(caller: socket.socket) -> None:
    """A process beside each fork: it tells how the fork ended, and ends it with whoever asked. Never returns."""
    import select

    content, streams, *_ = socket.recv_fds(caller, 8, len(STREAMS))
    asked = json.loads(_bytes(caller, int.from_bytes(content, "big")))
    fork = os.fork()
    if fork == 0:
        caller.close()
        _work(streams, **asked)
    for stream in streams:
        os.close(stream)
    caller.sendall(fork.to_bytes(8, "big", signed=True))
    while (ended := os.waitpid(fork, os.WNOHANG))[0] == 0:
        if select.select([caller], [], [], _LOOK)[0]:  # the caller says nothing more: it is gone
            os.kill(fork, signal.SIGKILL)
            os.waitpid(fork, 0)
            os._exit(0)
    caller.sendall(os.waitstatus_to_exitcode(ended[1]).to_bytes(8, "big", signed=True))
    os._exit(0)


def _work(
    streams: list[int], words: list[str], cwd: str, environment: dict[str, str], executable: str
) -> None:
    """The fork: never returns."""
    import random
    import runpy
    import traceback

    import torch

    code = 1
    try:
        os.setsid()
        for given, own in zip(streams, STREAMS, strict=True):
            os.dup2(given, own)
            os.close(given)
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update(environment)
        sys.executable = executable
        while words[0] in _UNUSED:
            words = words[1:]
        first = {"-c": "", "-m": cwd}.get(words[0], str(Path(words[0]).parent))
        paths = [first, *environment.get("PYTHONPATH", "").split(os.pathsep)]
        sys.path[:0] = [path for path in paths if path not in sys.path]
        random.seed()  # else all forks draw the same
        if "OMP_NUM_THREADS" in environment:  # torch has read it before
            torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
        sys.argv = words[words[0] == "-m" :]
        if words[0] == "-m":
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        elif words[0] == "-c":
            sys.argv = ["-c", *words[2:]]
            exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
        else:
            runpy.run_path(words[0], run_name="__main__")
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        for file in (sys.stdout, sys.stderr):
            file.flush()
        os._exit(code)


def import_everything() -> None:
    """What the commands import.

    Nothing that starts threads, which would not come along into a fork; and not Ray, which reads the environment of a
    worker when it is imported.
    """
    import peft
    import transformers.models.llama.modeling_llama
    import transformers.trainer

    import memprobe.callback
    import memprobe.capturing
    import memprobe.cli.app
    import memprobe.cli.fit
    import memprobe.cli.layers
    import memprobe.cli.patch
    import training.__main__
    import training.grid.workers
    import training.stage

    assert peft and transformers.trainer and memprobe.cli.fit and training.stage


def _bytes(one: socket.socket, n: int) -> bytes:
    content = b""
    while len(content) < n:
        more = one.recv(n - len(content))
        if not more:
            raise ConnectionError("the server of forks is gone")
        content += more
    return content


def _number(one: socket.socket) -> int:
    return int.from_bytes(_bytes(one, 8), "big", signed=True)


if __name__ == "__main__":
    main()
